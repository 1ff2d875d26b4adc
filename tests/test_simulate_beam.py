"""What makes a beam imperfect: a source that is no point, aberrations, a scan that misses its raster."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho.errors import RecipeError
from ptycho.recipe import Recipe
from ptycho.simulated_files import write_simulation
from ptycho.simulation import Simulation, expected_patterns, forward_model, simulate

SMALL = Simulation(scan_shape=(3, 4), pattern_px=32, pixel_invA=0.06, defocus_A=160.0, read_noise_electrons=0.0)


def expected(simulation: Simulation, atoms: np.ndarray | None = None) -> np.ndarray:
    return expected_patterns(forward_model(simulation, atoms)[0])


def test_source_is_the_mean_of_shifted_probes() -> None:
    """Against a plain sum over a fine grid of shifts with Gaussian weights."""
    sigma = 0.4
    atoms = np.array([[42, 0.0, 0.5, 1.0], [16, 0.0, -1.5, 0.4]])
    point = replace(SMALL, scan_shape=(5, 5), step_A=1.0)
    blurred = expected(replace(point, source_A=sigma), atoms)[12]
    model = forward_model(point, atoms)[0]
    sharp, centre = expected_patterns(model)[12], model.positions.value_px.data[12:13].clone()
    axis = np.linspace(-4, 4, 25) * sigma
    shifts = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    weights = np.exp(-(shifts**2).sum(1) / 2 / sigma**2)
    mean = np.zeros_like(blurred)
    for shift, weight in zip(shifts[weights > 1e-4], weights[weights > 1e-4], strict=True):
        model.positions.value_px.data = centre + torch.tensor(shift / SMALL.fine_pixel_A, dtype=torch.float32)
        mean += weight * expected_patterns(model)[0]
    mean /= weights[weights > 1e-4].sum()
    assert np.abs(blurred - mean).sum() < 2e-3 * mean.sum()
    assert np.abs(sharp - mean).sum() > 1e-2 * mean.sum()
    assert blurred.sum() == pytest.approx(sharp.sum(), rel=1e-3)


def test_powers_of_the_source_modes() -> None:
    """A coherent state of each mode: a small source leaves nearly all in the first, the next two are equal."""
    for sigma, least in ((0.05, 0.98), (0.4, 0.3)):
        power = forward_model(replace(SMALL, source_A=sigma))[0].probe.power()
        share = (power / power.sum()).tolist()
        assert share[0] > least and share == pytest.approx(sorted(share, reverse=True), rel=1e-4)
        assert share[1] == pytest.approx(share[2], rel=0.05)
        assert power.sum() == pytest.approx(SMALL.electrons_per_pattern, rel=1e-4)


def test_scan_errors_have_the_size_that_was_asked_for() -> None:
    jittered = replace(SMALL, scan_shape=(40, 40), jitter_A=0.3)
    np.testing.assert_allclose((jittered.positions_A - jittered.raster_A).std(0), 0.3, rtol=0.05)
    drifting = replace(SMALL, drift_A=(2.0, -1.0))
    errors = drifting.positions_A - drifting.raster_A
    np.testing.assert_allclose(errors[-1] - errors[0], [2.0, -1.0])
    np.testing.assert_allclose(errors.mean(0), 0, atol=1e-12)
    np.testing.assert_array_equal(SMALL.positions_A, SMALL.raster_A)


def test_aberrations_are_in_the_probe() -> None:
    """Astigmatism makes the shadow of an atom oblong, and turns with its angle."""
    there = replace(SMALL, scan_shape=(1, 1), specimen="vacuum")
    waves = [forward_model(replace(there, aberrations=a))[0].probe.wave[0].detach() for a in ({}, {"C12": 80.0}, {"C12": 80.0, "phi12_deg": 90.0})]
    index = torch.arange(waves[0].shape[-1], dtype=torch.float32) - waves[0].shape[-1] // 2
    spread = [[float((w.abs() ** 2).sum(axis) @ index**2) for axis in (1, 0)] for w in waves]
    assert spread[0][0] == pytest.approx(spread[0][1], rel=1e-3)
    assert spread[1][0] == pytest.approx(spread[2][1], rel=1e-3) and not 0.5 < spread[1][0] / spread[1][1] < 2


def test_recipe_knows_the_raster_and_the_truth_the_positions(tmp_path: Path) -> None:
    simulation = replace(SMALL, jitter_A=0.3, source_A=0.3, aberrations={"C12": 20.0, "phi12_deg": 30.0})
    recipe_path = write_simulation(simulate(simulation), tmp_path, "hdf5")
    recipe = tomllib.loads(recipe_path.read_text(encoding="utf-8"))
    assert recipe["model"]["probe_modes"] == 4 and recipe["microscope"]["aberrations"] == {"C12": 20.0, "phi12_deg": 30.0}
    data = Recipe.load(recipe_path).read()
    np.testing.assert_allclose(data.geometry.positions_A, simulation.raster_A, atol=1e-9)
    with np.load(tmp_path / "truth.npz", allow_pickle=False) as truth:
        np.testing.assert_allclose(truth["positions_A"], simulation.positions_A)


def test_data_set_in_memory_is_that_of_the_file(tmp_path: Path) -> None:
    simulated = simulate(replace(SMALL, aberrations={"C12": 20.0}))
    memory, file = simulated.dataset(), Recipe.load(write_simulation(simulated, tmp_path, "hdf5")).read()
    np.testing.assert_array_equal(memory.patterns(), file.patterns())
    assert memory.geometry == file.geometry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_A": -0.1}, "source_A"),
        ({"jitter_A": float("nan")}, "jitter_A"),
        ({"drift_A": (1.0,)}, "drift_A"),
        ({"aberrations": {"C99": 1.0}}, "C99"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]
