"""ptycho check: a good recipe has nothing to mend, a recipe with one fault has that fault named with its remedy."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import environment, run

from ptycho import check as checks
from ptycho.check import Plan, check, warnings_of
from ptycho.forecast import Load, peak_bytes
from ptycho.pipeline import plan_of
from ptycho.recipe import Recipe
from ptycho.simulation import Simulation
from ptycho.solvers import Gradient

GOOD = Simulation(scan_shape=(12, 12), step_A=0.8, defocus_A=150.0, pattern_px=64, pixel_invA=1 / 20, dose_e_per_A2=2e4)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patterns that look like an experiment's: a disk with a little dark field, whole counts."""
    place = tmp_path_factory.mktemp("check")
    y, x = np.indices((64, 64)) - 32
    aperture = 24.9e-3 / 0.0417571 * 20
    disk = np.clip(aperture + 0.5 - np.hypot(y, x), 0, 1)
    mean = (disk / disk.sum() + 5e-6) * GOOD.electrons_per_pattern
    np.save(place / "scan.npy", np.random.default_rng(0).poisson(mean, (12, 12, 64, 64)).astype(np.uint16))
    (place / "recipe.toml").write_text(
        """
[data]
path = "scan.npy"
centre = "none"
adu_per_electron = 1.0
[microscope]
voltage_kV = 80.0
semiangle_mrad = 24.9
defocus_A = 150.0
[scan]
shape = [12, 12]
step_A = 0.8
[detector]
pixel_invA = 0.05
"""
    )
    return place


def plan(folder: Path, *settings: str) -> Plan:
    return plan_of(Recipe.load(folder / "recipe.toml", settings), "cpu")


def bad(found: Plan) -> dict[str, str]:
    """Remedy of each thing that is not good."""
    return {c.name: c.remedy for c in check(found) if not c.good}


def test_a_good_recipe_has_nothing_to_mend(folder: Path) -> None:
    found = check(plan(folder))
    assert all(c.good for c in found), [str(c) for c in found if not c.good]
    assert [c.name for c in found] == [
        "scan", "overlap", "areal oversampling", "window", "bright-field disk", "detector", "band limit", "measured per unknown", "dose", "slices",
        "memory", "disk space", "time",
    ]  # fmt: skip
    assert warnings_of(plan(folder)) == ()


@pytest.mark.parametrize(
    ("settings", "name", "remedy"),
    [
        (["scan.step_A=5.0"], "overlap", "scan with a step of 3 Å or less"),
        (["scan.step_A=4.0"], "areal oversampling", "5 are wanted: scan with a step of 3 Å or less"),
        (["microscope.defocus_A=350.0"], "window", "[model] oversample = 2"),
        (["microscope.semiangle_mrad=8.0", "microscope.defocus_A=0.0", "scan.step_A=1.0"], "bright-field disk", "bin less"),
        (["data.detector_crop=[20, 44, 20, 44]"], "detector", "crop less"),
        (["model.slices=4", "model.slice_thickness_A=2.0", "model.band_limit=0.2"], "band limit", "the probe itself is cut off: set [model] pad ="),
        (["model.slices=100", "model.slice_thickness_A=1.0"], "measured per unknown", "fewer or thicker slices"),
        (["data.adu_per_electron=2000.0"], "dose", "for 0.84 Å (lambda / 2 alpha)"),
        (["model.slices=2", "model.slice_thickness_A=100.0", "microscope.defocus_A=100.0"], "slices", "set slices = 3 or more for the same 200 Å"),
        (["model.slices=3", "model.slice_thickness_A=3000.0"], "window", "bin less, or record with less defocus"),
    ],
)
def test_one_fault_is_named_with_its_remedy(folder: Path, settings: list[str], name: str, remedy: str) -> None:
    found = plan(folder, *settings)
    assert remedy in bad(found)[name]
    assert any(warning.startswith(f"{name}: ") and remedy in warning for warning in warnings_of(found))


def test_a_scan_that_the_file_does_not_fill(folder: Path) -> None:
    whole = plan(folder)
    assert "check scan.shape" in bad(replace(whole, data=whole.data.without(np.arange(20))))["scan"]


def test_what_does_not_fit_into_memory_or_on_the_disk_or_into_a_day(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(folder, "solve.0.kind=gradient", "solve.0.epochs=100000000")
    monkeypatch.setattr(checks, "free_bytes", lambda device: 1 << 28)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    remedies = bad(found)
    assert "bin the patterns" in remedies["memory"] and "choose another folder" in remedies["disk space"] and "GPU" in remedies["time"]
    assert not any(warning.startswith("time") for warning in warnings_of(found))


def test_the_command_says_it_and_warns_without_failing(folder: Path) -> None:
    good, coarse = run("check", folder / "recipe.toml"), run("check", folder / "recipe.toml", "--set", "scan.step_A=5.0")
    assert good.code == coarse.code == 0 and "WARN" not in good.out and "time" in good.out
    assert "WARN  overlap" in coarse.out and "-> scan with a step of" in coarse.out
    found = json.loads(run("check", folder / "recipe.toml", "--json", "--set", "scan.step_A=5.0").out)["checks"]
    assert [c["name"] for c in found if not c["good"]] == ["overlap", "areal oversampling", "dose"]


@pytest.mark.parametrize(
    ("words", "code"),
    [(["none.toml"], 3), (["recipe.toml", "--set", "scan.stop=3"], 3), (["recipe.toml", "--set", "data.path=none.raw"], 4), (["scan.npy"], 4)],
)
def test_broken_input_has_its_exit_code(folder: Path, words: list[str], code: int) -> None:
    found = run("check", folder / words[0], *words[1:])
    assert found.code == code and found.err.startswith("ptycho: error: ") and len(found.err.splitlines()) == 1


def test_a_window_that_cannot_hold_the_probe_is_shown_and_refused(folder: Path) -> None:
    found = run("check", folder / "recipe.toml", "--set", "microscope.defocus_A=900")
    assert found.code == 3 and "WARN  window" in found.out and "the probe is" in found.err


def test_a_run_begins_with_its_warnings_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ptycho.pipeline import reconstruct

    recipe = Recipe.load(folder / "recipe.toml", ["scan.step_A=5.0"])
    with caplog.at_level(logging.INFO, "ptycho"):
        reconstruct(recipe, solve=Gradient(epochs=1, batch=36), device="cpu")
    told = [record.getMessage() for record in caplog.records]
    assert sum(text.startswith("overlap: ") for text in told) == 1
    assert [text.startswith("overlap: ") for text in told].index(True) < [text.startswith("epoch 1") for text in told].index(True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a program's memory is read from /proc")
@pytest.mark.parametrize("settings", [("solve.0.batch=32",), ("solve.0.batch=32", "model.slices=6", "model.slice_thickness_A=3.0", "model.pad=16")])
def test_the_forecast_of_memory_is_what_is_then_used(folder: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Within a fifth of the peak of a process of its own."""
    options = ["solve.0.epochs=1", *settings]
    made = plan(folder, *options)
    words = [w for option in options for w in ("--set", option)]
    # Not ru_maxrss, which a child inherits from the process that started it.
    code = "from ptycho.cli import main; main(); print(open('/proc/self/status').read())"
    command = [sys.executable, "-c", code, "reconstruct", str(folder / "recipe.toml"), "-o", str(tmp_path / "run"), "--device", "cpu", *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env=environment(), check=True)
    used = int(done.stdout.partition("VmHWM:")[2].split()[0]) << 10
    assert peak_bytes(made.data, made.options, made.stages, torch.device("cpu")) == pytest.approx(used, rel=0.2)


def test_the_forecast_grows_with_what_is_asked_for(folder: Path) -> None:
    made = plan(folder)
    small = Load.of(made.geometry, made.options, Gradient(batch=8))
    assert Load.of(made.geometry, made.options, Gradient(batch=64)).bytes(CPU) >= small.bytes(CPU)
    thick = Load.of(made.geometry, replace(made.options, slices=10, pad=0), Gradient(batch=8))
    assert thick.bytes(CPU) > 1.5 * small.bytes(CPU) and thick.object_pixels == 10 * small.object_pixels
    assert math.prod(small.canvas) == small.object_pixels


@pytest.mark.parametrize("region", ["[0, 1, 0, 8]", "[0, 1, 0, 1]"])
def test_a_line_or_a_point_is_no_reason_to_fail(folder: Path, region: str) -> None:
    """It covers no area: nothing is divided by it."""
    assert [c.name for c in check(plan(folder, f"data.scan_region={region}"))][1:3] == ["overlap", "areal oversampling"]
