"""``ptycho tune``: ranges, the plan, the runs, the report, the command."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from command import environment, run, shell

import ptycho
from ptycho.aberrations import parse_aberrations
from ptycho.errors import OutputError, RecipeError
from ptycho.geometry import Geometry, raster_positions_A
from ptycho.recipe import Recipe
from ptycho.recipe_update import with_values
from ptycho.start import ModelOptions
from ptycho.tune_ranges import Range, default_ranges, own_value, parse_range

NEEDS = "the search needs optuna: pip install ptycho[tune]"
DEFOCUS_A = 150.0


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scan whose recipe has a defocus 25 % too high, and a comment."""
    folder = tmp_path_factory.mktemp("tune")
    words = ["simulate", "-o", folder / "data", "--scan", 20, "--step-A", 0.8, "--defocus-A", DEFOCUS_A, "--dose-e-per-A2", 1e4]
    assert run(*words).code == 0
    recipe = folder / "data" / "recipe.toml"
    text = with_values(recipe.read_text(), {"microscope.defocus_A": 1.25 * DEFOCUS_A}, "")
    recipe.write_text("# mine\n" + text)
    return recipe


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.b=80:240", Range("a.b", 80.0, 240.0)),
        ("a.b = 1e-4:1e-1:log", Range("a.b", 1e-4, 1e-1, log=True)),
        ("a.b=-5:5", Range("a.b", -5.0, 5.0)),
        ("a.b=1,2,4,8", Range("a.b", choices=(1, 2, 4, 8))),
        ("a.b=ssb,flat", Range("a.b", choices=("ssb", "flat"))),
        ("a.b=true,false", Range("a.b", choices=(True, False))),
    ],
)
def test_a_range_is_read(text: str, found: Range) -> None:
    assert parse_range(text) == found


@pytest.mark.parametrize("text", ["", "a.b", "a.b=", "a.b=3", "a.b=5:1", "a.b=1:2:3", "a.b=1:x", "a.b=0:1:log", "a.b=1:inf", "a.b=nan:1"])
def test_what_is_no_range_is_told_in_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match="--vary"):
        parse_range(text)


def test_the_default_ranges_hold_what_is_likely() -> None:
    def geometry(defocus_A: float) -> Geometry:
        return Geometry(80.0, 25.0, 0.03, (64, 64), raster_positions_A((8, 8), (1.0, 1.0)), parse_aberrations({"defocus_A": defocus_A}))

    depth_A = 0.04176 / 0.025**2
    near = default_ranges(geometry(100.0), ModelOptions(), "microscope.defocus_A", 30.0)
    assert [r.key for r in near] == ["microscope.defocus_A", "scan.rotation_deg", "model.probe_modes"]
    assert (near[0].low, near[0].high) == pytest.approx((100 - depth_A, 100 + depth_A), rel=1e-3)
    assert (near[1].low, near[1].high) == (25.0, 35.0)
    far = default_ranges(geometry(1000.0), ModelOptions(slices=4, slice_thickness_A=10.0), "microscope.aberrations.C10", 0.0)
    assert (far[0].low, far[0].high) == (-1200.0, -800.0)
    assert far[3] == Range("model.slices", choices=(2, 4, 8))
    assert far[4].log and far[4].low < 10 < far[4].high


def test_own_values_are_found_wherever_they_are() -> None:
    tree = {"model": {"tilt_mrad": [1.0, 2.0]}, "solve": [{"update": {"probe": 3}}]}
    assert own_value(tree, "model.tilt_mrad.1") == 2.0
    assert own_value(tree, "solve.0.update.probe") == 3
    assert own_value(tree, "scan.rotation_deg") == 0.0
    assert own_value(tree, "microscope.defocus_A") is None


def test_values_are_written_into_a_recipe_and_its_comments_stay() -> None:
    text = '# top\n[microscope]\ndefocus_A = 1.0 # mine\naberrations = { C12 = 2.0 } # there\n\n[[solve]]\nkind = "gradient" # kind\n'
    values = {"microscope.defocus_A": 3.0, "microscope.aberrations.C12": 4.0, "model.slices": 2, "solve.0.update.probe": 5, "model.tilt_mrad.0": 1.0}
    new = with_values(text.replace("[[solve]]", "[model]\ntilt_mrad = [0, 0]\n[[solve]]"), values, "found")
    tree = tomllib.loads(new)
    assert tree["microscope"] == {"defocus_A": 3.0, "aberrations": {"C12": 4.0}}
    assert tree["model"] == {"slices": 2, "tilt_mrad": [1.0, 0]}
    assert tree["solve"] == [{"kind": "gradient", "update": {"probe": 5}}]
    assert "# top" in new and "# mine | found, was 1.0" in new and "# there" in new and "# kind" in new
    assert with_values(text, {"microscope.defocus_A": 1.0}, "found") == text


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ("microscope.defocus=1:2", 'did you mean "microscope.defocus_A"'),
        ("model.defocus_A=80:240", 'did you mean "microscope.defocus_A"'),
        ("model.probe_mods=1,2", 'did you mean "model.probe_modes"'),
        ("data.bin=1,2", "another likelihood"),
        ("scan.shape=1,2", "which patterns"),
        ("solve.0.memory=1:2", "no [[solve]] stage"),
        ("model.slices=0,1", "slices"),
        ("model.start=ssb,foo", "foo"),
    ],
)
def test_a_key_that_cannot_be_varied_is_told_with_exit_code_3(scan: Path, tmp_path: Path, vary: str, said: str) -> None:
    pytest.importorskip("optuna", reason=NEEDS)
    ran = run("tune", scan, "-o", tmp_path / "t", "--vary", vary)
    assert ran.code == 3 and said in ran.err and len(ran.err.splitlines()) == 1
    assert not (tmp_path / "t").exists()


def test_stages_of_the_recipe_are_varied_where_they_stay_comparable(scan: Path) -> None:
    pytest.importorskip("optuna", reason=NEEDS)
    from ptycho.tune_objective import Effort
    from ptycho.tune_plan import planned

    recipe = Recipe.load(scan).model_copy(update={"solve": (ptycho.Gradient(epochs=3),)})
    plan = planned(recipe, ["solve.0.update.probe=0:4", "model.probe_modes=1,2"], Effort())
    assert plan.ranges[0].whole and plan.own == {"solve.0.update.probe": 2, "model.probe_modes": 1}
    for key in ("solve.0.bin=1,2", "solve.0.epochs=1:4", "solve.1.floor_e=0:1"):
        with pytest.raises(RecipeError, match="cannot be varied"):
            planned(recipe, [key], Effort())
    with pytest.raises(RecipeError, match="twice"):
        planned(recipe, ["model.slices=1,2", "model.slices=1,4"], Effort())


def test_all_candidates_are_judged_by_the_same_patterns_and_the_right_one_is_the_best(scan: Path) -> None:
    pytest.importorskip("optuna", reason=NEEDS)
    from ptycho.tune_objective import Effort, Short
    from ptycho.tune_plan import planned

    plan = planned(Recipe.load(scan), ["microscope.defocus_A=100:200", "model.probe_modes=1,2"], Effort(epochs=2))
    short = Short(plan.recipe, plan.ranges, plan.effort, torch.device("cpu"))
    blocks = len(set(short.blocks))
    assert not set(short.split.held) & set(short.split.train)
    scores = {defocus: list(short({"microscope.defocus_A": defocus, "model.probe_modes": 1})) for defocus in (110.0, DEFOCUS_A, 190.0)}
    assert all(len(passes) == 2 and len(passes[-1].blocks) == blocks for passes in scores.values())
    assert all(np.mean(passes[-1].blocks) == pytest.approx(passes[-1].deviance) for passes in scores.values())
    final = {defocus: passes[-1].deviance for defocus, passes in scores.items()}
    assert min(final, key=lambda defocus: final[defocus]) == DEFOCUS_A
    again = list(short({"microscope.defocus_A": DEFOCUS_A, "model.probe_modes": 1}))
    assert [score.deviance for score in again] == pytest.approx([score.deviance for score in scores[DEFOCUS_A]], rel=1e-6)


def test_a_wrong_defocus_is_found_and_the_recipe_of_the_best_trial_can_be_run(scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason=NEEDS)
    words = ["tune", scan, "-o", tmp_path / "t", "--vary", "microscope.defocus_A=75:300", "--trials", 14, "--epochs", 2, "--device", "cpu"]
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert "0 (recipe)" in ran.out and "the best" in ran.out
    text = (tmp_path / "t" / "best.toml").read_text()
    best = Recipe.load(tmp_path / "t" / "best.toml")
    assert best.microscope.defocus_A == pytest.approx(DEFOCUS_A, rel=0.07)
    assert "# mine" in text and f"was {1.25 * DEFOCUS_A}" in text
    assert best.read().n_positions == 400
    for name in ("parallel.png", "importance.png"):
        assert (tmp_path / "t" / name).read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "t" / "trials.csv").read_text().splitlines()
    assert len(lines) == 15 and lines[1].startswith("0,done,")
    # The same words again: all is done; other words are another search.
    again = run(*words)
    assert again.code == 0 and again.out == ran.out
    other = run(*words, "--vary", "model.probe_modes=1,2")
    assert other.code == 5 and "another search" in other.err


def test_processes_share_a_search_and_python_has_it_too(scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason=NEEDS)
    told = []
    found = ptycho.tune(
        scan, ["microscope.defocus_A=100:200"], output=tmp_path, trials=5, epochs=1, workers=2, device="cpu", prune=False,
        news=lambda row, rows: told.append(row.slot),
    )  # fmt: skip
    assert found.complete and sorted(told) == list(range(5))
    assert found.own is not None and found.own.values == {"microscope.defocus_A": 1.25 * DEFOCUS_A}
    assert len({row.worker for row in found.rows}) <= 2
    assert not list((tmp_path / "workers").iterdir())


def test_a_search_that_is_stopped_says_so_and_goes_on(scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason=NEEDS)
    words = ["tune", scan, "-o", tmp_path, "--vary", "microscope.defocus_A=100:200", "--trials", 6, "--epochs", 1, "--device", "cpu"]
    command = [sys.executable, "-m", "ptycho", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), encoding="utf-8") as process:
        assert process.stderr is not None
        while ": trial" not in (line := process.stderr.readline()):
            assert line, "it ended too early"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command goes on" in said
    ran = run(*words)
    assert ran.code == 0 and "6 trials carried to the end" in ran.out.replace(", 0 cut short", "")


def test_a_folder_with_something_else_is_left_alone(scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason=NEEDS)
    from ptycho.tune_plan import kept

    (tmp_path / "thesis.txt").write_text("mine")
    ran = run("tune", scan, "-o", tmp_path, "--vary", "microscope.defocus_A=100:200")
    assert ran.code == 5 and "not empty" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="no search"):
        kept(tmp_path)


def test_without_optuna_it_says_what_to_install(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ran = run("tune", scan, "-o", tmp_path / "t")
    assert ran.code == 3 and "pip install ptycho[tune]" in ran.err and len(ran.err.splitlines()) == 1


def test_help_needs_neither_optuna_nor_torch() -> None:
    script = "import sys; sys.argv = ['ptycho', 'tune', '--help']; from ptycho.cli import main; main(); import ptycho; "
    script += "sys.exit(bool({'torch', 'optuna', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment(), encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "--vary" in done.stdout and "--workers" in done.stdout
    assert "tune" in shell("--help").out
