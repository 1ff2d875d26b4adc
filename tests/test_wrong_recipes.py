"""The table of wrong recipes, shapes and values: each one line on stderr, the right exit code, what came and where, and nothing written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
from command import run
from numpy.typing import NDArray

#: A recipe that works, on the scan of 6 x 8 patterns of 32 x 32 pixels that lies beside it.
GOOD: dict[str, Any] = {
    "data": {"path": "scan.npy"},
    "microscope": {"voltage_kV": 80, "semiangle_mrad": 24.9, "defocus_A": 20},
    "scan": {"step_A": 0.4},
    "solve": [{"kind": "gradient", "epochs": 1}],
}
STAGE = "solve.0."

#: Keys that are changed in it, the exit code, what the line says.
VALUES: list[tuple[dict[str, Any], int, list[str]]] = [
    # Keys and types
    ({"data.pth": "scan.npy"}, 3, ["data.pth: unknown key", 'did you mean "path"?']),
    ({"outputs.directory": "run"}, 3, ["outputs: unknown key", 'did you mean "output"?']),
    ({"microscope": 5}, 3, ["microscope = 5", "a section"]),
    ({"microscope.voltage_kV": "80"}, 3, ['microscope.voltage_kV = "80"', "a number"]),
    ({"microscope.voltage_kV": [80]}, 3, ["microscope.voltage_kV = [80]", "a number"]),
    ({"data.bin": 2.5}, 3, ["data.bin = 2.5", "a whole number"]),
    ({"data.bin": True}, 3, ["data.bin = true", "a whole number"]),
    ({"output.halves": "yes"}, 3, ['output.halves = "yes"', "true or false"]),
    ({"data.path": None}, 3, ["data.path: missing"]),
    ({"data.path": 5}, 3, ["data.path = 5", "a text in quotes"]),
    ({"solve": {"kind": "gradient"}}, 3, ["solve", "[[solve]]"]),
    ({"solve": [{}]}, 3, ["solve.0.kind: missing", '"gradient"']),
    ({"solve": [3]}, 3, ["solve.0 = 3"]),
    # Files
    ({"data.path": "none.npy"}, 4, ["none.npy: no such file"]),
    ({"data.path": "x" * 5000}, 4, ["xxx: cannot be read", "name too long"]),
    ({"data.path": "a\0b"}, 4, ["cannot be read", "null byte"]),
    ({"data.path": "/dev/zero"}, 4, ["/dev/zero: this is a pipe or a device"]),
    ({"data.path": "scan.npy::/a"}, 4, ["scan.npy", "remove ::/a"]),
    ({"data.path": "recipe.toml"}, 4, ["recipe.toml: the format is not recognised", "empad"]),
    ({"data.format": "mib"}, 4, ["scan.npy: not a Merlin file"]),
    ({"data.calibration_file": "none.h5"}, 4, ["none.h5: no such file"]),
    ({"data.mask": "five.npy"}, 4, ["five.npy: data.mask has the shape (5, 5); 32 x 32 is needed"]),
    ({"data.mask": "zeros.npy"}, 4, ["scan.npy: no bright-field disk", "the mask"]),
    ({"data.dark": "five.npy"}, 4, ["five.npy: data.dark has the shape (5, 5)"]),
    ({"data.gain": "zeros.npy"}, 4, ["scan.npy: all pixels are 0"]),
    ({"model.vacuum_file": "five.npy"}, 3, ["five.npy: the vacuum pattern is (5, 5), the patterns are (32, 32)"]),
    ({"model.vacuum_file": "nan.npy"}, 4, ["nan.npy: there is no electron"]),
    ({"model.probe_file": "scan.npy"}, 4, ["scan.npy: not a complete result"]),
    ({"model.object_file": "."}, 4, ["there is no result.h5"]),
    ({"scan.positions_file": "three.csv"}, 4, ["scan.npy: 3 positions are given for 48 frames", "scan.positions_file"]),
    ({"scan.positions_file": "letters.csv"}, 4, ["letters.csv"]),
    ({"scan.positions_file": "nan.csv"}, 4, ["nan.csv"]),
    ({"output.directory": "scan.npy"}, 5, ["scan.npy: this is a file"]),
    ({"output.directory": "a" * 300}, 5, ["aaa", "name too long"]),
    ({"output.directory": "a\0b"}, 5, ["null byte"]),
    # Shapes
    ({"scan.shape": [48]}, 3, ["scan.shape"]),
    ({"scan.shape": [6, 8, 1]}, 3, ["scan.shape = [6, 8, 1]", "2 values"]),
    ({"scan.shape": [6.0, 8.5]}, 3, ["scan.shape.0 = 6.0", "a whole number"]),
    ({"scan.shape": [-6, -8]}, 3, ["scan.shape = -6", "at least 1"]),
    ({"scan.shape": [7, 9]}, 4, ["scan.npy", "63 frames, the file has 48"]),
    ({"scan.shape": [10**20, 1]}, 4, ["scan.npy", "the file has 48"]),
    ({"scan.skip_frames": 100}, 4, ["scan.npy", "100"]),
    ({"data.scan_region": [0, 9, 0, 8]}, 3, ["data.scan_region = [0, 9, 0, 8]", "6 x 8"]),
    ({"data.scan_region": [3, 3, 0, 8]}, 3, ["data.scan_region = (3, 3, 0, 8)", "y0 < y1"]),
    ({"data.detector_crop": [0, 64, 0, 64]}, 3, ["data.detector_crop = [0, 64, 0, 64]", "32 x 32"]),
    ({"data.detector_crop": [0, 8, 0, 16]}, 4, ["scan.npy", "larger than the pattern of 8 x 16"]),
    ({"data.window": 10**9}, 3, ["data.window = 1000000000", "at most 16384"]),
    ({"data.bin": 64}, 3, ["data.bin = 64 does not divide", "32 x 32"]),
    ({"data.bin": 10**30}, 3, ["data.bin = 1000", "does not divide"]),
    ({"model.slices": 2, "model.slice_thickness_A": [1.0, 2.0, 3.0]}, 3, ["slice_thickness_A has 3 numbers for slices = 2"]),
    ({STAGE + "bin": 32}, 3, ["the window 0 Å", "bin less"]),
    ({STAGE + "detector_px": 1}, 3, ["the bright-field disk", "1 x 1 px", "detector_px"]),
    # Numbers
    ({"microscope.voltage_kV": 80000}, 3, ["microscope.voltage_kV = 80000", "is in V? write 80"]),
    ({"microscope.voltage_kV": 0}, 3, ["microscope.voltage_kV = 0", "from 1 to 3000 kV"]),
    ({"microscope.semiangle_mrad": 0.0249}, 3, ["microscope.semiangle_mrad = 0.0249", "is in rad? write 24.9"]),
    ({"microscope.semiangle_mrad": 2000}, 3, ["microscope.semiangle_mrad = 2000", "at most 200 mrad"]),
    ({"microscope.semiangle_mrad": 190, "detector.pixel_invA": 0.08}, 4, ["semiangle_mrad = 190", "32 x 32"]),
    ({"microscope.defocus_A": float("nan")}, 3, ["microscope.defocus_A = NaN", "finite"]),
    ({"microscope.defocus_A": float("inf")}, 3, ["microscope.defocus_A = Infinity", "finite"]),
    ({"microscope.defocus_A": 1e12}, 3, ["the probe is", "the window 13 Å", "defocus_A"]),
    ({"microscope.aberrations": {"C99": 3.0}}, 3, ["aberrations.C99: unknown coefficient", "C30"]),
    ({"microscope.aberrations": {"C30": 1e300}}, 3, ["aberrations.C30 = 1e+300", "at most"]),
    ({"microscope.aberrations": {"C10": -20.0}}, 3, ["C10 is given twice"]),
    ({"microscope.aberrations": {"phi12_deg": 30.0}}, 3, ["aberrations.phi12_deg", "coefficient is not given"]),
    ({"scan.step_A": -1}, 3, ["scan.step_A = -1", "more than 0"]),
    ({"scan.step_A": [0.4, 0.0]}, 3, ["scan.step_A = (0.4, 0.0)", "more than 0"]),
    ({"scan.step_A": 1e200}, 3, ["scan.step_A = 1e+200", "unit"]),
    ({"scan.step_A": 4e-11}, 3, ["scan.step_A = 4e-11", "unit"]),
    ({"scan.step_A": 50000}, 6, ["solve.0: an object of 1 x", "scan.step_A"]),
    ({"scan.affine": [[1, 0], [0, 0]]}, 3, ["scan.affine = ((1.0, 0.0), (0.0, 0.0))", "invertible"]),
    ({"scan.affine": [[1e200, 0], [0, 1]]}, 3, ["scan.affine = ((1e+200", "invertible"]),
    ({"detector.pixel_invA": 0}, 3, ["detector.pixel_invA = 0", "more than 0"]),
    ({"detector.pixel_invA": 0.03, "detector.pixel_mrad": 1.0}, 3, ["pixel_invA and detector.pixel_mrad are both given"]),
    ({"data.adu_per_electron": 1e-300}, 3, ["data.adu_per_electron = 1e-300", "more than 0 ADU"]),
    ({"data.memory_GB": -1}, 3, ["data.memory_GB = -1", "0 or more"]),
    ({"model.probe_modes": 10**6}, 3, ["probe_modes = 1000000", "at most 10000"]),
    ({"model.slices": 0}, 3, ["slices = 0", "at least 1"]),
    ({"model.slice_thickness_A": 0}, 3, ["slice_thickness_A = 0", "positive"]),
    ({"model.tilt_mrad": [600, 0]}, 3, ["tilt_mrad = [600.0, 0.0]", "500 mrad"]),
    ({"model.pad": -1}, 3, ["pad = -1", "negative"]),
    ({"model.pad": 10**8}, 6, ["patterns of", "do not fit", "pad"]),
    ({"model.oversample": 5000}, 6, ["patterns of 160000 x 160000 px", "oversample"]),
    ({"model.band_limit": 2}, 3, ["band_limit = 2", "between 0 and 1"]),
    ({"model.start": "magic"}, 3, ['start = "magic"', "flat, ssb, obf, wdd"]),
    ({"model.refine": ["position"]}, 3, ['refine = "position"', 'did you mean "positions"?']),
    ({"model.refine": ["scan"]}, 3, ["refine = ['scan']", "update = { affine = 3 }"]),
    # Stages
    ({STAGE + "kind": "sgd"}, 3, ['solve.0.kind: found "sgd"', '"epie"']),
    ({STAGE + "epochs": 0}, 3, ["epochs = 0", "at least 1"]),
    ({STAGE + "batch": -1}, 3, ["batch = -1", "at least 0"]),
    ({STAGE + "loss": "l2"}, 3, ['solve.0.loss = "l2"', "'poisson'"]),
    ({STAGE + "slices": 10**7}, 3, ["slices = 10000000", "at most 10000"]),
    ({STAGE + "optimizer": "Adamm"}, 3, ['optimizer = "Adamm"', '"Adam"']),
    ({STAGE + "optimizer": "Muon"}, 3, ['optimizer = "Muon"', '"Adam"']),
    ({STAGE + "optimizer": "SparseAdam"}, 3, ['optimizer = "SparseAdam"', '"Adam"']),
    ({STAGE + "momentum": 1}, 3, ["momentum = 1", "< 1"]),
    ({STAGE + "memory": [0, 1]}, 3, ["memory = [0.0, 1.0]", "positive"]),
    ({STAGE + "lr": -1}, 3, ["lr = -1", "negative"]),
    ({STAGE + "illumination_floor": 0}, 3, ["illumination_floor = 0", "positive"]),
    ({STAGE + "update": {"prob": 1}}, 3, ["solve.0.update.prob: unknown key", 'did you mean "probe"?']),
    ({STAGE + "update": {"probe": -1}}, 3, ["update.probe = -1", "0 for never"]),
    ({STAGE + "update": {"opr": 2}}, 3, ["solve.0.update.opr = 2", "opr_modes"]),
    ({STAGE + "constraints": {"nothing": {}}}, 3, ["solve.0.constraints.nothing: unknown key", "pure_phase"]),
    ({STAGE + "constraints": {"low_pass": {}}}, 3, ["solve.0.constraints.low_pass.cutoff_invA: missing"]),
    ({STAGE + "constraints": {"amplitude": {"min": 2.0, "max": 1.0}}}, 3, ["amplitude min = 2.0, max = 1.0"]),
    ({STAGE + "constraints": {"pure_phase": {}, "absorption": {}}}, 3, ["pure_phase", "absorption", "leave one"]),
    ({STAGE + "stop": {"patience": -1}}, 3, ["stop.patience = -1", "negative"]),
    ({STAGE + "kind": "epie", STAGE + "object_damping": 0}, 3, ["object_damping = 0", "<= 1"]),
    ({STAGE + "kind": "epie", STAGE + "optimizer": "Adam"}, 3, ["solve.0.optimizer: unknown key"]),
    ({STAGE + "kind": "lsqml", STAGE + "measured_every": 0}, 3, ["measured_every = 0", "at least 1"]),
    ({"output.checkpoint_minutes": -1}, 3, ["output.checkpoint_minutes = -1", "0"]),
]

#: Files that are no recipe.
TEXTS: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["data: missing"]),
    "binary": ("\x00\x01", ["not a TOML file", "line 1"]),
    "a key twice": ("[data]\npath = 'a'\npath = 'b'\n", ["not a TOML file", "line 3"]),
    "a section twice": ("[data]\npath = 'scan.npy'\n[data]\n", ["not a TOML file", "line 3"]),
    "YAML": ("data:\n  path: scan.npy\n", ["not a TOML file", "line 1"]),
    "unclosed": ("[data\n", ["not a TOML file", "line 1"]),
    "deep": ("a = " + "[" * 5000 + "]" * 5000, ["not a TOML file"]),
    "long": ("#" * 2_000_000, ["2000000 bytes is too long"]),
    "a Windows path": ('[data]\npath = "C:\\data\\x.raw"\n', ["not a TOML file", "'single quotes'"]),
    "a date": ("[data]\npath = 'scan.npy'\n[microscope]\nvoltage_kV = 2020-01-01\n", ['microscope.voltage_kV = "2020-01-01"', "a number"]),
}

#: Arrays that are no scan of patterns: what makes them of one that is, what the line says beside the file's name.
ARRAYS: dict[str, tuple[Any, list[str]]] = {
    "2 axes": (lambda p: p[0, 0], ["(32, 32)", "(n, ky, kx)"]),
    "5 axes": (lambda p: p[None], ["(1, 6, 8, 32, 32)", "(n, ky, kx)"]),
    "a number": (lambda p: p.sum(), ["()", "(n, ky, kx)"]),
    "no scan point": (lambda p: p[:0], ["(0, 8, 32, 32)"]),
    "no pixel": (lambda p: p[:, :, :0], ["(6, 8, 0, 32)"]),
    "axes exchanged": (lambda p: p.transpose(2, 3, 0, 1), ["the pattern of 6 x 8 px"]),
    "one column": (lambda p: p[..., :1], ["the pattern of 32 x 1 px"]),
    "one pixel": (lambda p: p[..., 16:17, 16:17], ["no bright-field disk"]),
    "complex": (lambda p: p.astype(complex), ["complex128", "real numbers"]),
    "text": (lambda p: np.array(["a", "b"]), ["<U1", "real numbers"]),
    "infinite": (lambda p: np.full_like(p, np.inf), ["no pixel is usable"]),
    "below nothing": (lambda p: -p, ["no bright-field disk"]),
    "all alike": (lambda p: np.ones_like(p), ["all pixels are 1"]),
}

ROWS = [
    *(pytest.param(changes, None, None, code, said, id=" ".join(f"{k}={str(v)[:20]}" for k, v in changes.items())) for changes, code, said in VALUES),
    *(pytest.param({}, text, None, 3, ["recipe.toml: ", *said], id=name) for name, (text, said) in TEXTS.items()),
    *(pytest.param({}, None, make, 4, ["scan.npy: ", *said], id=name) for name, (make, said) in ARRAYS.items()),
]


def changed(changes: dict[str, Any]) -> str:
    """The good recipe with these keys; None takes one away."""
    tree = copy.deepcopy(GOOD)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node: Any = tree
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return tomlkit.dumps(tree)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the recipes name."""
    folder = tmp_path_factory.mktemp("files")
    y, x = np.indices((32, 32)) - 16
    patterns = np.random.default_rng(1).poisson(20.0 * (np.hypot(y, x) < 7.3) + 0.05, (6, 8, 32, 32)).astype(np.float32)
    arrays = {"scan": patterns, "five": np.ones((5, 5)), "zeros": np.zeros((32, 32)), "nan": np.full((32, 32), np.nan)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    lines = {"three": ["0,0", "1,1", "2,2"], "letters": ["a,b"] * 48, "nan": ["0,nan"] * 48}
    for name, text in lines.items():
        (folder / f"{name}.csv").write_text("\n".join(text))
    return folder


@pytest.mark.parametrize(("changes", "text", "make", "code", "said"), ROWS)
def test_one_line_and_the_right_code(
    changes: dict[str, Any], text: str | None, make: Any, code: int, said: list[str], beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in beside.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    monkeypatch.chdir(tmp_path)
    if make is not None:
        patterns: NDArray[np.float32] = np.load("scan.npy")
        Path("scan.npy").unlink()
        np.save("scan.npy", make(patterns))
    Path("recipe.toml").write_text(changed(changes) if text is None else text, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    ran = run("reconstruct", "recipe.toml", "--device", "cpu")
    assert ran.code == code, ran.err
    assert ran.err.startswith("ptycho: error: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err and "bug" not in ran.err and ran.out == ""
    for words in said:
        assert words in ran.err, ran.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_recipe_that_all_of_them_are_made_of_is_good(beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's byte order mark does no harm."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.npy").hardlink_to(beside / "scan.npy")
    Path("recipe.toml").write_text(changed({}), encoding="utf-8-sig")
    assert run("check", "recipe.toml").code == 0
