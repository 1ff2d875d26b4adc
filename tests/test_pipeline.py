"""Python's side of the straight line: read, reconstruct, load."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ptycho
from ptycho import pipeline
from ptycho.defaults import default_stages
from ptycho.device import choose_device
from ptycho.diagnose import Finding
from ptycho.errors import DataError, OutOfMemoryError, OutputError, RecipeError
from ptycho.recipe import Recipe
from ptycho.result import EpochRecord
from ptycho.simulation import Simulation, simulate
from ptycho.start import ModelOptions

KNOWN: dict[str, Any] = {"voltage_kV": 80, "semiangle_mrad": 24.9, "step_A": 0.4, "defocus_A": 20}


@pytest.fixture
def data(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> ptycho.Dataset4D:
    np.save(tmp_path / "scan.npy", disk_patterns)
    return ptycho.read(tmp_path / "scan.npy", **KNOWN)


def reconstruct(source: Any, **options: Any) -> ptycho.Result:
    return ptycho.reconstruct(source, device="cpu", **options)


def assert_same(one: ptycho.Result, other: ptycho.Result) -> None:
    for name in ("object", "occupancy", "probe", "slice_thickness_A", "positions_A", "tilt_mrad"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_the_result_is_what_the_contract_says(data: ptycho.Dataset4D) -> None:
    result = reconstruct(data, probe_modes=2, slices=2, slice_thickness_A=5, epochs=2)
    assert result.phase.dtype == result.amplitude.dtype == np.float32
    assert result.phase.shape == result.amplitude.shape == (2, *result.object.shape[-2:])
    assert type(result.pixel_A) is float and result.slice_thickness_A.tolist() == [5, 5]
    assert result.probe.dtype == np.complex64 and result.probe.shape[0] == 2
    assert result.positions_A.shape == (48, 2) and result.tilt_mrad.shape[-1] == 2
    # Positions count from the centre of pixel (0, 0): all windows lie on the object, in scan order, fast axis innermost.
    pixels = result.positions_A / result.pixel_A
    assert (pixels > 0).all() and (pixels < np.array(result.phase.shape[-2:]) - 1).all()
    np.testing.assert_allclose(np.diff(result.positions_A[:8], axis=0), [[0, 0.4]] * 7, atol=1e-4)
    assert [(r.stage, r.kind, r.epoch) for r in result.history] == [(0, "gradient", 1), (0, "gradient", 2)]
    assert all(r.seconds > 0 for r in result.history) and result.history[1].loss < result.history[0].loss
    assert all(isinstance(a, np.ndarray) for a in (result.phase, result.probe, result.positions_A, result.tilt_mrad))
    assert tomllib.loads(result.recipe)["model"]["probe_modes"] == 2
    assert abs(float((np.abs(result.probe) ** 2).sum()) / data.survey().mean_electrons - 1) < 0.1


def test_nothing_is_written_unless_asked_for(data: ptycho.Dataset4D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    reconstruct(data, epochs=1)
    assert list(Path().iterdir()) == []


def test_folder_load_and_the_recipe_in_it(data: ptycho.Dataset4D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = reconstruct(data, probe_modes=2, epochs=1, output=tmp_path / "run")
    for path in (tmp_path / "run", str(tmp_path / "run" / "result.h5")):
        loaded = ptycho.load(path)
        assert_same(loaded, result)
        assert loaded.history == result.history and loaded.recipe == result.recipe
    assert (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8") == result.recipe
    # All that was read or estimated stands in it, and its paths hold from anywhere.
    recipe = tomllib.loads(result.recipe)
    assert recipe["microscope"] == {"voltage_kV": 80, "semiangle_mrad": 24.9, "defocus_A": 20}
    assert recipe["scan"]["shape"] == [6, 8] and recipe["detector"]["pixel_invA"] > 0 and recipe["data"]["path"] == str(tmp_path / "scan.npy")
    assert recipe["output"]["directory"] == str(tmp_path / "run")
    monkeypatch.chdir("/")
    assert_same(reconstruct(tmp_path / "run" / "recipe.toml"), result)
    assert_same(reconstruct(ptycho.Recipe.load(tmp_path / "run" / "recipe.toml")), result)
    with pytest.raises(OutputError, match="the run here is finished"):
        reconstruct(data, epochs=1, output=tmp_path / "run")


def test_same_seed_same_result_and_other_seed_another(data: ptycho.Dataset4D) -> None:
    first = reconstruct(data, epochs=1, batch=8)
    assert_same(reconstruct(data, epochs=1, batch=8), first)
    assert not np.array_equal(reconstruct(data, solve={"kind": "gradient", "epochs": 1, "batch": 8, "seed": 1}).object, first.object)


def test_the_callers_arithmetic_is_left_alone(data: ptycho.Dataset4D) -> None:
    threads = torch.get_num_threads()
    reconstruct(data, epochs=1)
    assert torch.get_num_threads() == threads
    assert torch.tensor(1e-310, dtype=torch.float64) * 0.5 > 0  # denormal numbers


def test_stages(data: ptycho.Dataset4D) -> None:
    result = reconstruct(data, solve=[ptycho.EPIE(epochs=1), {"kind": "mixed_state", "epochs": 2, "modes": 2}])
    assert [(r.stage, r.kind, r.epoch) for r in result.history] == [(0, "epie", 1), (1, "mixed_state", 2), (1, "mixed_state", 3)]
    assert len(result.probe) == 2
    assert [stage["kind"] for stage in tomllib.loads(result.recipe)["solve"]] == ["epie", "mixed_state"]


def test_a_finding_is_told_once_and_kept(
    data: ptycho.Dataset4D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ptycho.course.diagnose", lambda *_: (Finding("grid", "there is a grid; remove it"),))
    result = reconstruct(data, solve=[ptycho.EPIE(epochs=1)] * 2, output=tmp_path / "run")
    assert [record.note for record in result.history] == ["all epochs done; there is a grid; remove it", "all epochs done"]
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"].count("there is a grid; remove it") == 1
    assert ptycho.load(tmp_path / "run").history == result.history
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["note"] == result.history[0].note


def test_the_result_so_far_is_shown_after_every_epoch(data: ptycho.Dataset4D) -> None:
    seen: list[ptycho.Result] = []
    result = reconstruct(data, epochs=2, on_epoch=seen.append)
    assert [shown.history for shown in seen] == [result.history[:1], result.history]
    assert_same(seen[-1], result)
    assert not np.array_equal(seen[0].object, result.object)  # a copy of what was there then


def test_progress_is_told_of_every_epoch(data: ptycho.Dataset4D) -> None:
    told: list[tuple[EpochRecord, int]] = []
    recipe = Recipe.of(data).model_copy(update={"solve": (ptycho.Gradient(epochs=2),)})
    result = pipeline.run(pipeline.Job(recipe, data, choose_device("cpu"), progress=lambda record, total: told.append((record, total))))
    assert told == [(record, 2) for record in result.history]


def test_halves_tell_how_good_it_is(tmp_path: Path, disk_patterns: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "scan.npy", disk_patterns)
    data = ptycho.read(tmp_path / "scan.npy", **(KNOWN | {"step_A": 1.4}))
    plain = reconstruct(data, epochs=2, batch=8)
    told: list[tuple[int, int]] = []
    seen: list[ptycho.Result] = []
    with monkeypatch.context() as patch:
        job = pipeline.Job
        patch.setattr(pipeline, "Job", lambda *a: replace(job(*a), progress=lambda record, total: told.append((record.epoch, total))))
        result = reconstruct(data, epochs=2, batch=8, halves=True, output=tmp_path / "run", on_epoch=seen.append)
    assert [shown.history[-1].epoch for shown in seen] == [1, 2]  # of the whole, not of its halves
    # The result is the same, and the halves are no part of its history.
    assert_same(result, plain)
    assert plain.quality is None and plain.residual is not None
    assert told == [(epoch, 6) for epoch in range(1, 7)] and [record.epoch for record in result.history] == [1, 2]
    quality = result.quality
    assert quality is not None and quality.split == "electrons"
    assert quality.standard_error_rad.shape == quality.constrained.shape == result.phase.shape[-2:]
    assert 0 < quality.error_rad < 1 and quality.constrained[result.scanned].any()
    assert tomllib.loads(result.recipe)["output"].items() >= {"directory": str(tmp_path / "run"), "halves": True}.items()
    # The same again from the folder, from the recipe in it, and on the page about it.
    loaded = ptycho.load(tmp_path / "run").quality
    again = reconstruct(tmp_path / "run" / "recipe.toml").quality
    for other in (loaded, again):
        assert other is not None and other.summary() == quality.summary()
        np.testing.assert_array_equal(other.standard_error_rad, quality.standard_error_rad)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert quality.summary() in page and "scan.npy" in page
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "half 1 of 2: every second electron" in log and quality.summary() in log


def test_a_field_too_small_for_halves_keeps_its_result(disk_patterns: NDArray[np.float32], tmp_path: Path) -> None:
    data = ptycho.read(disk_patterns[:2], **KNOWN)
    result = reconstruct(data, epochs=1, halves=True, output=tmp_path / "run")
    assert result.quality is None and ptycho.load(tmp_path / "run").residual is not None
    assert "too small to compare halves" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_wrong_options(data: ptycho.Dataset4D) -> None:
    with pytest.raises(RecipeError, match=r'probe_mode: unknown key; did you mean "probe_modes"'):
        reconstruct(data, probe_mode=2)
    with pytest.raises(RecipeError, match=r'model: probe_modes = "two": a whole number is needed'):
        reconstruct(data, probe_modes="two")
    with pytest.raises(RecipeError, match=r"epochs: unknown beside solve"):
        reconstruct(data, solve=ptycho.EPIE(), epochs=2)
    with pytest.raises(RecipeError, match=r'device = "gpu": allowed are auto, cpu'):
        ptycho.reconstruct(data, device="gpu")
    with pytest.raises(DataError, match="voltage_kV"):
        reconstruct(ptycho.read(data.patterns().reshape(6, 8, 32, 32)))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(RecipeError, match=f"device = {name}: torch finds no .*--device cpu"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_memory(data: ptycho.Dataset4D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for step in ("patterns_of", "start"):
        monkeypatch.setattr(f"ptycho.course.{step}", fail)
        with pytest.raises(OutOfMemoryError, match="bin the patterns"):
            reconstruct(data, epochs=1, output=tmp_path / step)
        assert json.loads((tmp_path / step / "status.json").read_text())["code"] == 6
        monkeypatch.undo()


def test_earlier_probe_and_vacuum(data: ptycho.Dataset4D, tmp_path: Path) -> None:
    earlier = reconstruct(data, epochs=1, probe_modes=2, output=tmp_path / "run")
    again = reconstruct(data, epochs=1, probe_modes=2, probe_file=str(tmp_path / "run"), object_file=str(tmp_path / "run" / "result.h5"))
    assert again.history[0].loss < earlier.history[0].loss
    np.save(tmp_path / "vacuum.npy", data.survey().mean_pattern)
    assert np.isfinite(reconstruct(data, epochs=1, vacuum_file=str(tmp_path / "vacuum.npy")).phase).all()
    np.save(tmp_path / "small.npy", np.ones((8, 8)))
    with pytest.raises(RecipeError, match="vacuum pattern"):
        reconstruct(data, epochs=1, vacuum_file=str(tmp_path / "small.npy"))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects\.npy"):
        reconstruct(data, epochs=1, vacuum_file=str(tmp_path / "objects.npy"))


def test_refine_belongs_to_the_default_stages(data: ptycho.Dataset4D) -> None:
    with pytest.raises(RecipeError, match=r"update = \{ affine = 3 \}"):
        reconstruct(data, epochs=1, refine=("scan",))
    with pytest.raises(RecipeError, match='refine = "position"'):
        reconstruct(data, refine=("position",))
    stages = default_stages(data.geometry, ModelOptions(refine=("scan", "positions", "tilt")), 1000.0, few_counts=True)
    assert all(stage.update.affine and stage.update.tilt for stage in stages)
    assert [bool(stage.update.positions) for stage in stages] == [False] * (len(stages) - 1) + [True]
    assert not any(stage.update.aberrations for stage in stages)


def test_a_wrong_scan_is_repaired_and_the_recipe_says_what_was_found(tmp_path: Path) -> None:
    true = Simulation(scan_shape=(14, 14), defocus_A=200.0, pattern_px=64, pixel_invA=1 / 16, dose_e_per_A2=1e5)
    wrong = simulate(true).dataset(step_A=(0.82, 0.82), rotation_deg=2.0, defocus_A=180.0)
    result = reconstruct(wrong, refine=("scan", "aberrations"), output=tmp_path / "run")
    recipe = Recipe.load(tmp_path / "run" / "recipe.toml")
    assert recipe.model.refine == () and len(recipe.solve) > 0 and recipe.scan.affine is not None
    extent = np.ptp(result.positions_A, axis=0)
    np.testing.assert_allclose(extent, 13 * 0.8, rtol=0.015)  # told: 2.5 % too long
    assert -result.aberrations["C10"] == pytest.approx(200, abs=12)


def test_a_solvers_stop_is_no_function():
    with pytest.raises(RecipeError, match="a function is needed"):
        ptycho.reconstruct("recipe.toml", stop={"patience": 0})
