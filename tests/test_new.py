"""A first recipe: what the file knows is in it, what it does not know is asked for, and a calibration fills it in."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command import environment, run, write_npy, write_raw
from numpy.typing import NDArray

from ptycho.answers import Answer, Calibration
from ptycho.errors import DataError, ScanShapeError
from ptycho.pose import Pose
from ptycho.recipe import Recipe
from ptycho.recipe_new import literal, path_from
from ptycho.recipe_update import with_answers, with_given
from ptycho.survey import Disk

DISK = Disk((16.0, 16.0), 7.3, 1.0, 0.0)
UNTURNED = dict.fromkeys(("transpose", "flip_rows", "flip_columns"), False)
KNOWN = ("--voltage-kV", "80", "--semiangle-mrad", "24.9", "--step-A", "0.4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_an_empad_file_knows_stands_in_the_recipe_with_its_source(here: Path, disk_patterns: NDArray[np.float32]) -> None:
    raw = write_raw(here, disk_patterns)
    done = run("new", raw.name)
    assert done.code == 0 and done.out.splitlines()[-1].startswith("next: ptycho calibrate recipe.toml --write"), done.err
    text = Path("recipe.toml").read_text()
    lines = {line.partition(" ")[0]: line for line in text.splitlines() if "=" in line and not line.startswith("#")}
    assert lines["voltage_kV"].startswith("voltage_kV = 80.0 ") and "xml" in lines["voltage_kV"]
    assert "\n# semiangle_mrad = 21.4" in text and "not in the file" in text
    recipe = Recipe.load("recipe.toml")
    assert (recipe.scan.shape, recipe.microscope.semiangle_mrad) == ((6, 8), None)
    with pytest.raises(DataError, match=r"semiangle_mrad is not in the file"):
        _ = recipe.read().geometry
    assert Recipe.load("recipe.toml", ["microscope.semiangle_mrad=24.9"]).read().geometry.voltage_kV == 80


def test_every_placeholder_is_a_key_of_the_recipe(here: Path, disk_patterns: NDArray[np.float32]) -> None:
    """With the # taken off, each commented line is understood."""
    write_npy(here, disk_patterns)
    assert run("new", "scan.npy").code == 0
    text = Path("recipe.toml").read_text().partition("# Without a [[solve]]")
    lines = [line.removeprefix("# ") for line in text[0].splitlines()[1:]]
    stage = [line.removeprefix("# ") for line in text[2].splitlines()[1:]]
    for part in (lines, ["[data]", "path = 'a'", *stage]):
        Path("all.toml").write_text("\n".join(part))
        assert Recipe.load("all.toml").data.path
    assert "refine" in "\n".join(lines) and "[[solve]]" in stage


def test_nothing_is_replaced_unless_asked_for(here: Path, disk_patterns: NDArray[np.float32]) -> None:
    write_npy(here, disk_patterns)
    Path("recipe.toml").write_text("mine")
    assert run("new", "scan.npy").code == 5 and Path("recipe.toml").read_text() == "mine"
    assert run("new", "scan.npy", "--force").code == 0 and Recipe.load("recipe.toml")
    assert run("new", "recipe.toml", "-o", "b.toml").code == 3
    assert run("new", "scan.npy", "-o", "recipe.txt").code == 5


def test_a_file_without_a_scan_shape_asks_for_it(here: Path, disk_patterns: NDArray[np.float32]) -> None:
    np.save("series.npy", disk_patterns.reshape(48, 32, 32))
    done = run("new", "series.npy", *KNOWN)
    assert done.code == 0 and "--scan-shape ..." in done.out, done.err
    with pytest.raises(ScanShapeError):
        Recipe.load("recipe.toml").read()
    assert Recipe.load("recipe.toml", ["scan.shape=[6,8]"]).read().geometry.positions_A.shape == (48, 2)


def test_a_raw_file_keeps_the_layout_that_was_given(here: Path, disk_patterns: NDArray[np.float32]) -> None:
    Path("scan.bin").write_bytes(disk_patterns.astype("<u2").tobytes())
    layout = ("--set", 'data.layout.dtype="<u2"', "--set", "data.layout.frame_shape=[32,32]")
    settings = ("--set", "model.slices=2", "--set", "solve.0.epochs=3")
    assert run("new", "scan.bin", *layout, *KNOWN, "--scan-shape", "6,8", *settings, "-o", "deep.toml").code == 0
    recipe = Recipe.load("deep.toml")
    assert recipe.read().pattern_shape == (32, 32) and recipe.model.slices == 2 and recipe.solve[0].epochs == 3


def test_options_given_are_written(here: Path, disk_patterns: NDArray[np.float32]) -> None:
    (here / "sub").mkdir()
    write_npy(here, disk_patterns)
    assert run("new", "scan.npy", *KNOWN, "--bin", "2", "--flip-columns", "-o", "sub/r.toml").out.splitlines()[-1] == (
        f"next: ptycho calibrate {Path('sub') / 'r.toml'} --write"
    )
    recipe = Recipe.load("sub/r.toml")
    assert recipe.data.flip_columns and recipe.read().pattern_shape == (16, 16) and recipe.read().geometry.semiangle_mrad == 24.9
    assert tomllib.loads(Path("sub/r.toml").read_text())["data"]["path"] == "../scan.npy"


def test_answers_go_to_the_lines_that_were_kept_for_them(here: Path, disk_patterns: NDArray[np.float32]) -> None:
    write_npy(here, disk_patterns)
    assert run("new", "scan.npy").code == 0
    text = Path("recipe.toml").read_text()
    answers = (Answer("defocus_A", 120.0, "Å", "the data"), Answer("rotation_deg", 3.0, "°", "the data"), Answer("pixel_invA", 0.02, "1/Å", "disk"))
    found = Calibration(answers, (), DISK, 0.02, 24.9, Pose(), 120.0, {}, 1e4, 1e4)
    new = with_answers(
        with_given(text, {"microscope": {"voltage_kV": 200.0}}), found, dict.fromkeys(("transpose", "flip_rows", "flip_columns"), False)
    )
    before, after = text.splitlines(), new.splitlines()
    changed = {b.split()[1]: a for b, a in zip(before, after, strict=True) if a != b}
    assert set(changed) == {"voltage_kV", "defocus_A", "rotation_deg", "pixel_invA"}
    assert all(line.startswith(f"{name} = ") for name, line in changed.items())
    # A second time, and with all lines gone, nothing is lost or doubled.
    again = with_answers(new, found, UNTURNED)
    assert tomllib.loads(again) == tomllib.loads(new)
    bare = with_answers("[data]\npath = 'a'\n", found, UNTURNED)
    assert tomllib.loads(bare)["scan"] == {"rotation_deg": 3.0}


@pytest.mark.parametrize("path", [r"C:\data\scan.raw", r"\\server\new\t.h5::/entry/data", "it's.raw", "a\tb.raw", "Å ü.raw"])
def test_paths_of_any_system_come_back_from_the_recipe(path: str) -> None:
    assert tomllib.loads(f"path = {literal(path)}")["path"] == path


def test_the_path_in_a_recipe_starts_from_its_folder(tmp_path: Path) -> None:
    assert path_from(tmp_path / "recipes", f"{tmp_path / 'data' / 'a.h5'}::/entry/data") == "../data/a.h5::/entry/data"


def test_the_real_scan_of_an_empad(test_data: Path, here: Path) -> None:
    assert run("new", test_data / "ws2_empad" / "scan_x48_y48.raw", "--semiangle-mrad", "24.9").code == 0
    data = Recipe.load("recipe.toml").read()
    assert data.geometry.voltage_kV == 80 and data.scan_step_A == pytest.approx((0.7, 0.7), rel=1e-6)


def test_backslashes_in_double_quotes_are_explained(here: Path) -> None:
    for path, code in (("C:\\data\\scan.raw", 3), ("C:\\temp.raw", 4)):  # \\d is no escape, \\t is a tab
        Path("recipe.toml").write_text(f'[data]\npath = "{path}"\n')
        done = run("reconstruct", "recipe.toml")
        assert done.code == code and "single quotes" in done.err and done.err.count("\n") == 1, done.err


def test_the_name_inside_of_a_file_stays_as_it_is(here: Path) -> None:
    Path("recipe.toml").write_text("[data]\npath = 'a.h5::/entry//data'\n")
    assert Recipe.load("recipe.toml").data.path == "a.h5::/entry//data"


def test_slips_of_the_hand_are_answered_with_what_was_meant() -> None:
    assert "Did you mean 'reconstruct'" in run("reconstuct", "a").err
    assert "--voltage-kV" in run("reconstruct", "a", "--voltage", "80").err
    assert 'did you mean "empad"' in run("new", __file__, "--set", "data.format=empd").err


def test_shells_can_complete_verbs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptycho"],
        env=environment() | {"_PTYCHO_COMPLETE": "complete_bash", "COMP_WORDS": "ptycho rec", "COMP_CWORD": "1"},
        capture_output=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["reconstruct"], done.stderr
