"""Calibration: a scan that was told nothing but voltage, semiangle and step says the rest, or that it cannot."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomlkit
from command import run
from numpy.typing import NDArray

import ptycho
from ptycho.answers import Answer, Calibration
from ptycho.calibration import calibrate
from ptycho.errors import DataError, RecipeError
from ptycho.pose import Pose
from ptycho.preparation import Preparation
from ptycho.recipe import Recipe
from ptycho.recipe_update import with_answers
from ptycho.simulation import Simulation, simulate
from ptycho.survey import Disk, measure_disk

SMALL = Simulation(scan_shape=(18, 18), pattern_px=32, pixel_invA=1 / 13, dose_e_per_A2=1e5)
TOLD = {"voltage_kV": 80.0, "semiangle_mrad": 24.9, "step_A": 0.8, "adu_per_electron": 1.0}


def stored(simulation: Simulation, flips: Pose) -> NDArray[np.float32]:
    """The patterns as a detector with these flips would have stored them."""
    patterns = simulate(simulation).patterns
    turning = Preparation(transpose=flips.transpose, flip_rows=flips.flip_rows, flip_columns=flips.flip_columns)
    return np.ascontiguousarray(turning.turn(patterns.reshape(-1, *patterns.shape[2:]))).reshape(patterns.shape)


@pytest.mark.parametrize(
    ("defocus_A", "rotation_deg", "flips"), [(110.0, -126.0, Pose(transpose=True)), (-110.0, 17.0, Pose(flip_rows=True, flip_columns=True))]
)
def test_orientation_and_defocus_are_found_from_nothing(defocus_A: float, rotation_deg: float, flips: Pose) -> None:
    patterns = stored(Simulation(**{**vars(SMALL), "defocus_A": defocus_A, "rotation_deg": rotation_deg}), flips)
    found = calibrate(ptycho.read(patterns, **TOLD))
    truth = Pose(flips.transpose, flips.flip_rows, flips.flip_columns, rotation_deg)  # the flips in question are their own inverse
    assert found.pose.difference_deg(truth) < 1 and abs(found.pose.rotation_deg) <= 46
    assert found.defocus_A == pytest.approx(defocus_A - 3, abs=10)
    assert found.sure and found.verdict == "sure" and not found.open_questions
    middle = 16 - np.array([flips.flip_rows, flips.flip_columns])
    assert found.dose_e_per_A2 == pytest.approx(1e5, rel=0.05) and found.pixel_invA == pytest.approx(1 / 13, rel=0.02)
    assert np.abs(np.array(found.disk.centre) - 16).max() < 0.2 or np.abs(np.array(found.disk.centre) - middle).max() < 0.2
    best, *others = found.candidates
    assert best.deviance is not None and all(other.explained <= best.explained * 1.01 for other in others)
    assert "Candidates, ranked" in str(found) and "Verdict: sure" in str(found)


def test_vacuum_cannot_tell_and_says_so() -> None:
    found = calibrate(simulate(Simulation(specimen="vacuum", scan_shape=(12, 12), pattern_px=32, pixel_invA=1 / 12, defocus_A=40.0)).dataset())
    assert not found.sure and found.verdict.startswith("unsure: ")
    open_ = " ".join(found.open_questions)
    assert "handedness" in open_ and "half a turn" in open_ and "chance explains" in open_


def test_what_is_missing_is_told(disk_patterns: NDArray[np.float32]) -> None:
    with pytest.raises(DataError, match="step_A is not in the file"):
        calibrate(ptycho.read(disk_patterns, voltage_kV=80, semiangle_mrad=20))


def test_an_elliptic_disk_is_measured() -> None:
    y, x = np.indices((64 * 4, 64 * 4)) / 4 - 32
    angle = np.deg2rad(30)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    image = (np.hypot((along - 0.3) / 16, across / 15) < 1).reshape(64, 4, 64, 4).mean((1, 3)) * 50.0
    disk = measure_disk(image)
    assert disk is not None
    assert disk.ellipticity == pytest.approx(16 / 15, rel=0.01) and disk.angle_deg == pytest.approx(30, abs=5)
    assert disk.radius_px == pytest.approx(np.sqrt(16 * 15), rel=0.01)


FOUND = (
    Answer("transpose", True, "", "shifts"), Answer("flip_rows", False, "", "shifts"), Answer("flip_columns", False, "", "shifts"),
    Answer("defocus_A", 350.1, "Å", "likelihood", "the sign"), Answer("rotation_deg", -3.25, "°", "shifts"),
    Answer("pixel_invA", 0.08, "1/Å", "disk"), Answer("semiangle_mrad", 25.0, "mrad", "user"), Answer("centre_px", (1.0, 2.0), "px", "disk"),
)  # fmt: skip
UNFLIPPED = {"transpose": False, "flip_rows": True, "flip_columns": False}


def calibration(*more: Answer, aberrations: dict[str, float] | None = None) -> Calibration:
    return Calibration((*FOUND, *more), (), Disk((1, 1), 3, 1, 0), 0.08, 25.0, Pose(True), 350.1, aberrations or {}, 1.0, 1.0)


RECIPE = """\
# mine
[data]
path = "a.raw"  # where
flip_rows = true  # as ever

[microscope]
semiangle_mrad = 24.0  # nominal
defocus_A = 90.0  # by eye
aberrations = { C12 = 50.0, C30 = 1e4 }

[[solve]]
kind = "gradient"
"""


def test_answers_are_written_with_sources_and_comments_stay() -> None:
    text = with_answers(RECIPE, calibration(), UNFLIPPED)
    recipe = Recipe.parse(tomllib.loads(text))
    assert (recipe.data.transpose, recipe.data.flip_rows, recipe.data.flip_columns) == (True, False, False)
    assert (recipe.microscope.defocus_A, recipe.scan.rotation_deg, recipe.detector.pixel_invA) == (350.1, -3.25, 0.08)
    assert recipe.microscope.semiangle_mrad == 24.0  # what the recipe knows is not asked of the data
    assert recipe.microscope.aberrations == {"C30": 1e4}  # without astigmatism in the answers none is left
    for kept in ("# mine", "# where", "# as ever | calibrated: shifts, was true", "# nominal", "by eye | calibrated, UNSURE of the sign"):
        assert kept in text
    assert with_answers(text, calibration(), {"transpose": True, "flip_rows": False, "flip_columns": False}).count("[detector]") == 1


def test_astigmatism_joins_the_other_aberrations() -> None:
    values = {"C12": 12.0, "phi12_deg": 30.0}
    text = with_answers(RECIPE, calibration(Answer("aberrations", values, "Å", "likelihood"), aberrations=values), UNFLIPPED)
    assert tomlkit.parse(text)["microscope"]["aberrations"] == {"C30": 1e4, "C12": 12.0, "phi12_deg": 30.0}


def test_a_mask_for_other_flips_is_not_left_behind() -> None:
    with pytest.raises(RecipeError, match=r"data.mask is for the patterns as they are turned now, and transpose, flip_rows must change"):
        with_answers(RECIPE.replace("flip_rows = true", 'mask = "m.npy"'), calibration(), UNFLIPPED)


def test_the_command_writes_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", stored(Simulation(**{**vars(SMALL), "defocus_A": 110.0, "scan_shape": (10, 10)}), Pose()))
    monkeypatch.setattr("ptycho.calibration.calibrate", lambda data, options, workers: calibration())
    words = ("scan.npy", "--voltage-kV", 80, "--semiangle-mrad", 24.9, "--step-A", 0.8, "--set", "data.adu_per_electron=1.0")
    code, out, err = run("calibrate", *words, "--write", "--picture", "look.png")
    assert (code, err) == (0, "") and "Verdict: unsure: the sign" in out
    recipe = Recipe.load("recipe.toml")
    assert recipe.data.transpose and recipe.microscope.defocus_A == 350.1 and recipe.microscope.semiangle_mrad == 24.9
    assert recipe.read().n_positions == 100
    assert Path("look.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run("calibrate", *words, "--write")
    assert code == 5 and "it is there already" in err and err.count("\n") == 1
