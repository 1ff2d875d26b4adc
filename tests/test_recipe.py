"""The recipe: it comes back from its own text, and says in one sentence what is wrong."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ptycho
from ptycho.constraint import Constraints, PositivePhase, ProbePower, PurePhase, SliceSmoothing
from ptycho.errors import RecipeError
from ptycho.recipe import Recipe, solvers_from
from ptycho.solvers import EPIE, Gradient, MixedState, Updates
from ptycho.start import ModelOptions

DATA: dict[str, Any] = {"data": {"path": "/d/scan.raw"}}

FULL = """
[data]
path = "scan.h5::/entry/data"
format = "hdf5"
flip_rows = true
flip_columns = true
transpose = true
scan_region = [0, 4, 1, 5]
detector_crop = [0, 64, 0, 64]
bin = 2
mask = "mask.npy"
dark = "dark.tif"
adu_per_electron = 148.5

[microscope]
voltage_kV = 80
semiangle_mrad = 24.9
defocus_A = 350.0
aberrations = { C12 = 20.0, phi12_deg = 30, C30 = 1e4 }

[scan]
shape = [48, 48]
step_A = [0.7, 0.71]
rotation_deg = -1.5
affine = [[1, 0.01], [0.0, 0.99]]
positions_file = "positions.csv"

[detector]
pixel_invA = 0.033333

[model]
probe_modes = 2
object_states = 2
slices = 2
slice_thickness_A = [10.0, 12]
tilt_mrad = [1, -2]
seed = 7

[[solve]]
kind = "gradient"
epochs = 3
update = { probe = 2, positions = 10, tilt = 20 }
constraints = { positive_phase = { start = 2 }, slice_smoothing = { sigma_A = 8 } }

[[solve]]
kind = "epie"
object_step = [1.0, 0.1]

[[solve]]
kind = "mixed_state"
modes = 3
loss = "poisson"

[output]
directory = "result"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_is_read_and_comes_back(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, FULL))
    assert recipe.microscope.voltage_kV == 80 and recipe.microscope.aberrations == {"C12": 20.0, "phi12_deg": 30, "C30": 1e4}
    assert recipe.scan.step_A == (0.7, 0.71) and recipe.scan.affine == ((1, 0.01), (0.0, 0.99))
    assert recipe.model.slice_thickness_A == (10.0, 12) and recipe.model.thicknesses_A == (10.0, 12)
    assert [type(stage) for stage in recipe.solve] == [Gradient, EPIE, MixedState]
    assert isinstance(recipe.solve[0], Gradient) and recipe.solve[0].update == Updates(probe=2, positions=10, tilt=20)
    assert recipe.solve[0].constraints == Constraints(positive_phase=PositivePhase(start=2), slice_smoothing=SliceSmoothing(sigma_A=8))
    (tmp_path / "elsewhere").mkdir()
    again = Recipe.load(write(tmp_path / "elsewhere", recipe.text()))  # its paths are absolute now
    assert again == recipe and again.text() == recipe.text()


def test_paths_start_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(write(tmp_path, FULL))
    assert recipe.data.path == str(tmp_path / "scan.h5::/entry/data")
    assert (recipe.data.mask, recipe.data.dark) == (str(tmp_path / "mask.npy"), str(tmp_path / "dark.tif"))
    assert recipe.scan.positions_file == str(tmp_path / "positions.csv") and recipe.output.directory == str(tmp_path / "result")
    for name in ("probe_file", "vacuum_file", "object_file"):
        assert getattr(Recipe.load(write(tmp_path, f'[data]\npath = "/d"\n[model]\n{name} = "x"\n')).model, name) == str(tmp_path / "x")
    monkeypatch.setenv("HOME", "/home/someone")
    assert Recipe.load(write(tmp_path, '[data]\npath = "~/scan.raw"\n')).data.path == "/home/someone/scan.raw"
    assert Recipe.load(write(tmp_path, '[data]\npath = "/abs/scan.raw"\n')).data.path == "/abs/scan.raw"


numbers = st.floats(1e-3, 1e6, allow_nan=False)
tilts = st.floats(-500, 500, allow_subnormal=False)
whole = st.integers(1, 1000)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
pure = st.none() | st.builds(PurePhase)
solvers = st.one_of(
    st.builds(Gradient, epochs=whole, lr=numbers, loss=st.sampled_from(["auto", "poisson", "amplitude"]), update=st.builds(Updates, probe=whole)),
    st.builds(EPIE, epochs=whole, object_step=st.tuples(numbers, numbers), constraints=st.none() | st.just(Constraints())),
    st.builds(MixedState, modes=whole, constraints=st.builds(Constraints, pure_phase=pure, probe_power=st.builds(ProbePower, electrons=numbers))),
)


@given(
    path=words,
    voltage=st.none() | numbers,
    step=numbers | st.tuples(numbers, numbers),
    model=st.builds(ModelOptions, probe_modes=whole, slice_thickness_A=numbers, tilt_mrad=st.tuples(tilts, tilts)),
    solve=st.lists(solvers, min_size=1, max_size=3),
)
def test_text_and_load_undo_each_other(path: str, voltage: float | None, step: Any, model: ModelOptions, solve: list[Any]) -> None:
    recipe = Recipe.parse({"data": {"path": path}, "microscope": {"voltage_kV": voltage} if voltage else {}, "scan": {"step_A": step}})
    recipe = recipe.model_copy(update={"model": model, "solve": tuple(solve)})
    assert Recipe.parse(tomllib.loads(recipe.text())) == recipe


@pytest.mark.parametrize("kind", [Gradient, EPIE, MixedState])
def test_every_default_of_a_solver_is_written(kind: type) -> None:
    text = Recipe.parse(DATA).model_copy(update={"solve": (kind(),)}).text()
    for f in fields(kind):
        if f.default is not None and f.default is not MISSING:
            assert f"{f.name} = " in text, f.name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data]\npth = 'a'", 'data.pth: unknown key; did you mean "path"? Allowed are path, format,'),
        ("[data]", "data.path: missing"),
        ("", "data: missing"),
        ("[data]\npath = 3", 'data.path = 3: a text in quotes, "...", is needed'),
        ("data = 3", "data = 3: a section with keys is needed"),
        ("[data]\npath = 'a'\nbin = 2.5", "data.bin = 2.5: a whole number is needed"),
        ("[data]\npath = 'a'\nflip_rows = 'yes'", 'data.flip_rows = "yes": true or false is needed'),
        ("[data]\npath = 'a'\nscan_region = [1, 2]", "data.scan_region"),
        ("[data]\npath = 'a'\n[micrscope]\nx = 1", 'micrscope: unknown key; did you mean "microscope"?'),
        ("[data]\npath = 'a'\n[microscope]\nvoltage_kV = '80'", 'microscope.voltage_kV = "80": a number is needed'),
        ("[data]\npath = 'a'\n[microscope]\nvoltage_kV = 2026-01-01", 'microscope.voltage_kV = "2026-01-01": a number is needed'),
        ("[data]\npath = 'a'\n[microscope]\nvoltage_kV = nan", "microscope.voltage_kV = NaN: a finite number is needed"),
        ("[data]\npath = 'a'\n[microscope]\ndefocus_A = inf", "microscope.defocus_A = Infinity: a finite number is needed"),
        ("[data]\npath = 'a'\n[microscope]\nvoltage = 80", 'did you mean "voltage_kV"?'),
        ("[data]\npath = 'a'\n[microscope]\naberrations = { C12 = 'x' }", 'microscope.aberrations.C12 = "x": a number is needed'),
        ("[data]\npath = 'a'\n[scan]\nstep_A = 'x'", 'scan.step_A = "x": a number, or a list'),
        ("[data]\npath = 'a'\n[scan]\nstep_A = [1, 'x']", 'scan.step_A.1 = "x": a number is needed'),
        ("[data]\npath = 'a'\n[scan]\nstep_A = [1, 2, 3]", "scan.step_A"),
        ("[data]\npath = 'a'\n[scan]\nshape = [48]", "scan.shape"),
        ("[data]\npath = 'a'\n[model]\nslices = 0", "model: slices = 0: at least 1 is needed"),
        ("[data]\npath = 'a'\n[model]\nslices = 3\nslice_thickness_A = [1, 2]", "slice_thickness_A has 2 numbers for slices = 3"),
        ("[data]\npath = 'a'\n[model]\ntilt_mrad = [1e3, 0]", "tilt_mrad = [1000.0, 0.0]"),
        ("[data]\npath = 'a'\n[model]\nslice = 3", 'model.slice: unknown key; did you mean "slices"?'),
        ("[data]\npath = 'a'\n[solve]\nkind = 'epie'", "solve: a stage has two brackets: write [[solve]]"),
        ("[data]\npath = 'a'\n[[solve]]\nepochs = 3", "solve.0.kind: missing; allowed are"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'epi'", 'solve.0.kind: found "epi"; allowed are "gradient", "epie", "mixed_state", "lsqml", "pol'),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'epie'\nlr = 1", "solve.0.lr: unknown key; allowed are epochs,"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'epie'\nobject_stp = 1", 'did you mean "object_step"?'),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'epie'\nloss = 'huber'", "solve.0.loss = \"huber\": one of 'auto'"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'epie'\nepochs = 1.5", "solve.0.epochs = 1.5: a whole number is needed"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'gradient'\noptimizer = 'adm'", 'optimizer = "adm": use "nesterov"'),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'gradient'\nupdate = { probes = 2 }", 'solve.0.update.probes: unknown key; did you mean "probe"?'),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'gradient'\nupdate = { probe = -2 }", "solve.0.update: update.probe = -2"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'gradient'\nconstraints.amplitude.mx = 2", "solve.0.constraints.amplitude.mx: unknown key"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'gradient'\nconstraints.amplitude = 3", "solve.0.constraints.amplitude = 3: a table {"),
        ("[data]\npath = 'a'\nbin = 'x'\nmask = 3", "(and 1 more)"),
        ("[data]\npath = 'a'\nfloat = 1", "data.float: unknown key"),
        ("[data]\npath = 'a'\n'' = 1", "data.: unknown key"),
        ("[data]\npath = 'a'\ngradient = { solve = 1 }", "data.gradient: unknown key"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = {}", "solve.0.kind: found {}; allowed are"),
        ("[data]\npath = 'a'\n[[solve]]\nkind = 'epie'\nepie = 1", "solve.0.epie: unknown key"),
        ("solve = [3]\n[data]\npath = 'a'", "solve.0 = 3: a table { name = value } is needed"),
        ("[data\npath", "not a TOML file"),
        ("x = " + "[" * 5000 + "]" * 5000, "not a TOML file"),
    ],
)
def test_what_is_wrong_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message, message
    assert "pydantic" not in message and "Input should" not in message and len(message) - len(str(path)) < 400


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: No such file or directory; give the recipe's path"):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(RecipeError, match=r"folder\.toml: Is a directory"):
        Recipe.load(tmp_path / "folder.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.toml: not a TOML file"):
        Recipe.load(tmp_path / "binary.toml")
    (tmp_path / "long.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(RecipeError, match="is it a data file"):
        Recipe.load(tmp_path / "long.toml")


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("model.slices=4", "model.slices", 4),
        (" model.slices = 4 ", "model.slices", 4),
        ("scan.step_A=[0.5, 0.6]", "scan.step_A", (0.5, 0.6)),
        ("data.format=hdf5", "data.format", "hdf5"),
        ('data.format="hdf5"', "data.format", "hdf5"),
        ("data.mask=a=b.npy", "data.mask", "a=b.npy"),
        ("data.transpose=true", "data.transpose", True),
        ("microscope.aberrations.C30=1e4", "microscope.aberrations", {"C30": 1e4}),
        ("solve.0.epochs=3", "solve.0.epochs", 3),
        ("solve.0.update.positions=3", "solve.0.update.positions", 3),
        ("solve.0.constraints.positive_phase.start=2", "solve.0.constraints.positive_phase.start", 2),
        ("solve.0.kind=epie", "solve.0.kind", "epie"),
        ("output.directory=there", "output.directory", "there"),
    ],
)
def test_set(setting: str, key: str, value: Any) -> None:
    found: Any = Recipe.parse(DATA, [setting])
    for name in key.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == value


def test_set_makes_and_changes_stages() -> None:
    tree = {**DATA, "solve": [{"kind": "epie"}]}
    recipe = Recipe.parse(tree, ["solve.0.epochs=3", "solve.1.epochs=4"])
    assert recipe.solve == (EPIE(epochs=3), Gradient(epochs=4))
    assert Recipe.parse(tree, ['solve=[{kind="gradient", epochs=2}]']).solve == (Gradient(epochs=2),)  # a key without a dot
    assert tree == {**DATA, "solve": [{"kind": "epie"}]}  # what was given stays
    assert Recipe.parse({**DATA, "solve": []}).solve == Recipe.parse(DATA).solve == ()  # the run fills in what suits the data


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.slices", "write it as section.key=value"),
        ("=4", "write it as section.key=value"),
        ("solve.3.epochs=4", "there is no entry 3; stages count from 0"),
        ("solve.x.epochs=4", "solve"),
        ("data.path.name=4", "data.path is a value, not a section"),
        ("data.path.name.more=4", "data.path"),
        ("model.slces=4", 'did you mean "slices"?'),
    ],
)
def test_set_that_cannot_be(setting: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(DATA, [setting])
    assert said in str(caught.value), caught.value


def test_solvers_from_records_and_dictionaries() -> None:
    assert solvers_from(EPIE(epochs=2)) == (EPIE(epochs=2),)
    assert solvers_from([{"kind": "gradient", "epochs": 2}, EPIE()]) == (Gradient(epochs=2), EPIE())
    with pytest.raises(RecipeError, match=r'solve: epoch: unknown key; did you mean "epochs"'):
        solvers_from({"kind": "gradient", "epoch": 2})
    with pytest.raises(RecipeError, match='found "magic"'):
        solvers_from({"kind": "magic"})
    made = solvers_from({"kind": "epie", "update": Updates(probe=3), "constraints": Constraints(pure_phase=PurePhase()), "epochs": np.int64(3)})
    assert made == (EPIE(update=Updates(probe=3), constraints=Constraints(pure_phase=PurePhase()), epochs=3),)


def test_recipe_of_a_data_set_reads_it_again(tmp_path: Path, disk_patterns: Any) -> None:
    np.save(tmp_path / "scan.npy", disk_patterns)
    np.save(tmp_path / "mask.npy", np.ones((16, 16)))
    options: dict[str, Any] = {
        "voltage_kV": 80, "semiangle_mrad": np.float64(24.9), "step_A": [0.4, 0.5], "aberrations": {"C12": 3, "phi12_deg": 10.0}, "bin": 2,
        "scan_region": np.array([0, 4, 1, 7]), "transpose": True, "flip_columns": True, "mask": tmp_path / "mask.npy", "scan_shape": (6, 8),
    }  # fmt: skip
    data = ptycho.read(tmp_path / "scan.npy", **options)
    recipe = Recipe.of(data)
    assert recipe.data.mask == str(tmp_path / "mask.npy") and recipe.data.scan_region == (0, 4, 1, 7) and recipe.scan.shape == (6, 8)
    again = Recipe.parse(tomllib.loads(recipe.text())).read()
    np.testing.assert_array_equal(again.patterns(), data.patterns())
    np.testing.assert_array_equal(again.geometry.positions_A, data.geometry.positions_A)
    assert again.geometry.aberrations == data.geometry.aberrations
    in_memory = Recipe.of(ptycho.read(disk_patterns, mask=np.ones((32, 32)), voltage_kV=80))
    assert in_memory.data.mask is None and in_memory.data.path == "array" and in_memory.microscope.voltage_kV == 80


def test_all_that_can_be_said_of_a_file_survives_the_run_folder(disk_patterns, tmp_path: Path):
    """Raw binary with gaps, flyback and a gain image: the recipe in the run folder gives the same bits, wherever it stands."""
    lines = np.pad(disk_patterns.astype("u2"), ((0, 0), (1, 1), (0, 0), (0, 0)))
    (tmp_path / "frames.bin").write_bytes(bytes(10) + b"".join(frame.tobytes() + bytes(6) for frame in lines.reshape(-1, 32, 32)))
    np.save(tmp_path / "gain.npy", np.ones((32, 32), "f4"))
    (tmp_path / "recipe.toml").write_text("""
[data]
path = "frames.bin"
layout = { dtype = "<u2", frame_shape = [32, 32], offset_bytes = 10, after_bytes = 6 }
gain = "gain.npy"
centre = "auto"
window = [28, 28]
memory_GB = 0
[microscope]
voltage_kV = 80
semiangle_mrad = 24.9
defocus_A = 20
[scan]
shape = [6, 8]
flyback = [1, 1]
step_A = 0.4
[[solve]]
kind = "gradient"
epochs = 1
""")
    first = ptycho.reconstruct(str(tmp_path / "recipe.toml"), output=tmp_path / "run", device="cpu")
    data = Recipe.load(tmp_path / "run" / "recipe.toml").read()
    np.testing.assert_array_equal(data.patterns().reshape(6, 8, 28, 28), disk_patterns[:, :, 2:30, 2:30])
    again = ptycho.reconstruct(str(tmp_path / "run" / "recipe.toml"), device="cpu")
    np.testing.assert_array_equal(first.object, again.object)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('layout = { dtype = "text", frame_shape = [8, 8] }', "data.layout"),
        ('layout = { dtype = "u2" }', "frame_shape"),
        ('layout = { dtype = "u2", frame_shape = [8, 8], gap = 3 }', "gap"),
        ('centre = "middle"', "data.centre"),
        ('descan = "cubic"', "data.descan"),
        ("window = [8, 0]", "data.window"),
    ],
)
def test_wrong_words_about_a_file(text: str, said: str, tmp_path: Path):
    (tmp_path / "frames.bin").write_bytes(bytes(1000))
    (tmp_path / "recipe.toml").write_text(f'[data]\npath = "frames.bin"\n{text}\n')
    with pytest.raises(RecipeError, match=said) as error:
        Recipe.load(tmp_path / "recipe.toml").read()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300, str(error.value)


def test_a_setting_without_a_section_is_named_and_no_bug() -> None:
    with pytest.raises(RecipeError, match="seed: unknown key"):
        Recipe.parse({"data": {"path": "x"}}, ["seed=3"])
