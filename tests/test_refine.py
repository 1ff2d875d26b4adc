"""Positions, aberrations, tilt and thickness come back from a wrong start, without a rate to tune."""

import copy
import math

import numpy as np
import pytest
import torch
from small import PIXEL_A, correlation, counts_of, empty, make, random_phase, solve, summed_phase

from ptycho.affine import affine_between
from ptycho.constraint import Constraints
from ptycho.solvers import EPIE, Gradient, Updates


def rms(shift):
    """Of (N, 2) shifts, without their mean: the object moves along with all positions."""
    return (shift - shift.mean(0)).square().sum(1).mean().sqrt().item()


def shaken(model, px=0.3):
    noise = torch.randn(model.positions.value_px.shape, generator=torch.Generator().manual_seed(1))
    model.positions.value_px.data += noise * (px / rms(noise))
    return model


def position_error(model, truth):
    return rms(model.positions.value_px.detach() - truth.positions.value_px.detach())


@pytest.mark.parametrize(("strength", "electrons"), [(0.3, 2e6), (1.0, 1e5), (3.0, 1e5)])
def test_positions_come_back(strength, electrons):
    truth = make(scan=(10, 10), strength=strength, electrons=electrons)
    model = shaken(empty(truth))
    assert position_error(model, truth) == pytest.approx(0.3)
    still = copy.deepcopy(model)
    counts = counts_of(truth)
    losses = solve(Gradient(epochs=12, batch=8, update=Updates(positions=3)), model, counts)
    assert position_error(model, truth) < 0.1
    assert losses[-1] < 0.5 * solve(Gradient(epochs=12, batch=8), still, counts)[-1]


def fitted(model, truth):
    """The affine map from the true positions to the model's, in Å."""
    true_A, found_A = (m.positions.value_px.detach().double().numpy() * PIXEL_A for m in (truth, model))
    return affine_between(true_A, found_A)


def noisy(model, seed=0):
    return torch.poisson(counts_of(model), generator=torch.Generator().manual_seed(seed))


def crowded(**options):
    """A model with five times as many atoms."""
    model = make(**options)
    shape = tuple(model.object.transmission.shape)
    phase = torch.from_numpy(sum(random_phase(shape, options["strength"] / shape[1], seed=seed) for seed in range(5))).float()
    model.object.transmission.data = torch.polar(torch.ones(shape), phase)
    return model


def test_jitter_and_drift_come_back_from_shot_noise():
    truth = crowded(scan=(14, 14), step_px=2.5, strength=1.0)
    model = shaken(empty(truth), 0.3 / PIXEL_A)
    model.positions.value_px.data += torch.linspace(0, 1, 196)[:, None] * torch.tensor([1.0, -2.0])  # a drift of 0.7 Å
    assert fitted(model, truth).residual_rms == pytest.approx(0.3, abs=0.01)
    solve(Gradient(epochs=12, batch=16, loss="poisson", update=Updates(positions=2, affine=1)), model, noisy(truth))
    assert fitted(model, truth).residual_rms < 0.05


def test_right_positions_do_not_walk_at_low_dose():
    truth = make(scan=(12, 12), strength=1.0, electrons=1e4)
    model = empty(truth)
    solve(Gradient(epochs=20, batch=16, loss="poisson", update=Updates(positions=2)), model, noisy(truth))
    assert position_error(model, truth) < 0.1


def test_a_pattern_from_elsewhere_does_not_carry_its_position_away():
    truth = make(scan=(10, 10), strength=1.0)
    model, counts = empty(truth), noisy(truth)
    counts[44] = counts[12]
    solve(Gradient(epochs=10, batch=8, update=Updates(positions=2)), model, counts)
    off = (model.positions.value_px - truth.positions.value_px).detach().norm(dim=1)
    assert off.median() < 0.1 and off[44] < 0.5


@pytest.mark.parametrize("wrong", [((1.02, 0.0), (0.0, 1.02)), ((0.9986, 0.0523), (-0.0523, 0.9986)), ((1.0, 0.0), (0.04, 1.0))])
def test_the_affine_map_of_the_scan_moves_towards_the_truth(wrong):
    truth = crowded(scan=(14, 14), step_px=2.5, strength=1.0, electrons=2e4)
    model = empty(truth)
    centre = model.positions.value_px.data.mean(0)
    model.positions.value_px.data = centre + (model.positions.value_px.data - centre) @ torch.tensor(wrong).mT
    before = np.abs(fitted(model, truth).matrix - np.eye(2)).max()
    # The amplitude loss would scatter too little into dark pixels, and stretch the scan by a percent for it.
    solve(Gradient(epochs=5, batch=8, loss="poisson", memory=(0.1, 0.1), update=Updates(affine=2)), model, noisy(truth))
    found = fitted(model, truth)
    assert np.abs(found.matrix - np.eye(2)).max() < 0.7 * before
    assert found.residual_rms < 1e-4


def test_positions_come_back_with_epie():
    truth = make(scan=(10, 10), strength=1.0)
    model = shaken(empty(truth))
    solve(EPIE(epochs=16, update=Updates(positions=3)), model, counts_of(truth))
    assert position_error(model, truth) < 0.15


@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
def test_positions_converge_fast_when_all_else_is_known(loss):
    truth = make(scan=(5, 5), strength=1.0)
    model = shaken(copy.deepcopy(truth))
    solve(Gradient(epochs=20, batch=5, loss=loss, update=Updates(object=0, probe=0, positions=1)), model, counts_of(truth))
    # A stretch or a turn of them all is left to update.affine.
    assert fitted(model, truth).residual_rms < 0.03 * PIXEL_A


def test_a_position_stays_on_the_canvas():
    truth = make(scan=(3, 3))
    model = copy.deepcopy(truth)
    model.positions.value_px.data[0] = 16.0  # the first row and column
    model.object.transmission.data *= torch.polar(torch.tensor(1.0), torch.rand(model.object.transmission.shape))
    solve(Gradient(epochs=10, update=Updates(positions=1)), model, counts_of(truth))
    corners, _ = model.positions.split(torch.arange(9), 32)
    assert corners.min() >= 0 and (corners + 32 <= torch.tensor(model.object.transmission.shape[-2:])).all()


@pytest.mark.parametrize("wrong_A", [(8.0, 0.0, 0.0), (-5.0, 5.0, -4.0)])
@pytest.mark.parametrize("object_known", [True, False])
def test_aberrations_come_back(wrong_A, object_known):
    truth = make(scan=(7, 7), strength=1.0)
    model = copy.deepcopy(truth) if object_known else empty(truth)
    model.probe.correction_A.data += torch.tensor(wrong_A)
    solve(Gradient(epochs=14, batch=8, update=Updates(object=int(not object_known), probe=0, aberrations=1)), model, counts_of(truth))
    error = (model.probe.correction_A.detach() - truth.probe.correction_A.detach()).abs().max().item()
    assert error < (0.01 if object_known else 0.5)


@pytest.mark.parametrize("slices", [3, 5])
def test_tilt_comes_back_with_the_object_known(slices):
    truth = make(scan=(6, 6), strength=1.0, slices=slices, thickness_A=25.0, tilt_mrad=(3.0, -2.0))
    model = copy.deepcopy(truth)
    model.propagator.tilt_rad.data += torch.tensor([[5e-3, -4e-3]])
    solve(Gradient(epochs=6, batch=8, update=Updates(object=0, probe=0, tilt=1), constraints=Constraints()), model, counts_of(truth))
    assert (model.propagator.tilt_rad - truth.propagator.tilt_rad).abs().max() < 1e-4


def test_tilts_of_single_positions_come_back_with_the_object_known():
    truth = make(scan=(6, 6), strength=1.5, slices=4, thickness_A=40.0)
    field = truth.positions.value_px.detach() - truth.positions.value_px.detach().mean(0)
    truth.propagator.tilt_rad = torch.nn.Parameter(field.flip(-1) * 5e-4)  # a bent specimen
    model = copy.deepcopy(truth)
    model.propagator.tilt_rad.data.zero_()
    solve(Gradient(epochs=10, batch=8, update=Updates(object=0, probe=0, tilt=1), constraints=Constraints()), model, counts_of(truth))
    error = (model.propagator.tilt_rad - truth.propagator.tilt_rad).detach().square().mean().sqrt()
    assert error < 0.3 * truth.propagator.tilt_rad.detach().square().mean().sqrt()


def test_tilt_moves_towards_the_truth_with_the_object():
    truth = make(scan=(8, 8), strength=1.0, slices=4, thickness_A=30.0)
    model = empty(truth)
    model.propagator.tilt_rad.data += torch.tensor([[5e-3, -3e-3]])
    solve(Gradient(epochs=16, batch=8, update=Updates(probe=0, tilt=3)), model, counts_of(truth))
    left = model.propagator.tilt_rad.detach().abs()[0] / torch.tensor([5e-3, 3e-3])
    assert (left < 0.8).all()


def test_thickness_comes_back_with_the_object_known():
    truth = make(scan=(6, 6), strength=1.0, slices=4, thickness_A=(30.0, 20.0, 25.0, 40.0))
    model = copy.deepcopy(truth)
    model.propagator.thickness_A.data += torch.tensor([5.0, -4.0, 6.0, 0.0])
    solve(Gradient(epochs=8, batch=8, update=Updates(object=0, probe=0, thickness=1), constraints=Constraints()), model, counts_of(truth))
    torch.testing.assert_close(model.propagator.thickness_A.detach(), truth.propagator.thickness_A.detach(), rtol=0, atol=0.2)


def test_one_change_of_thickness_for_all_slices_comes_back_with_the_object_known():
    truth = make(scan=(6, 6), strength=1.0, slices=4, thickness_A=(30.0, 20.0, 25.0, 40.0))
    model = copy.deepcopy(truth)
    model.propagator.thickness_A.data[:3] += 5.0
    updates = Updates(object=0, probe=0, total_thickness=1)
    solve(Gradient(epochs=4, batch=8, update=updates, constraints=Constraints()), model, counts_of(truth))
    torch.testing.assert_close(model.propagator.thickness_A.detach(), truth.propagator.thickness_A.detach(), rtol=0, atol=0.2)
    assert (model.propagator.thickness_A.detach() - truth.propagator.thickness_A.detach())[:3].std() < 1e-4


def test_everything_at_once_does_not_diverge():
    truth = make(scan=(7, 7), strength=1.0, slices=3, thickness_A=30.0)
    model = shaken(empty(truth), 0.1)
    model.probe.correction_A.data += torch.tensor([5.0, 3.0, -3.0])
    model.propagator.tilt_rad.data += 2e-3
    everything = Updates(object=1, probe=2, positions=2, affine=2, tilt=3, thickness=3, aberrations=2)
    losses = solve(Gradient(epochs=12, batch=8, update=everything), model, counts_of(truth))
    assert losses[-1] < 0.1 * losses[0]
    assert correlation(summed_phase(model, truth), summed_phase(truth)) > 0.9


def test_curvatures_leave_the_model_as_it_is():
    truth = make(scan=(4, 4), slices=3)
    model = copy.deepcopy(truth)
    updates = Updates(object=0, probe=0, tilt=1, thickness=1, aberrations=1)
    solve(Gradient(epochs=1, batch=0, update=updates, constraints=Constraints()), model, counts_of(truth))
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, dict(truth.named_parameters())[name], rtol=1e-4, atol=1e-4, msg=name)


def test_illumination_is_the_sum_over_positions():
    model = make(scan=(3, 4), step_px=3.3, modes=2, dtype=torch.float64)
    light = torch.zeros(model.object.transmission.shape[-2:], dtype=torch.float64)
    corners, _ = model.positions.split(torch.arange(12), model.size)
    for y, x in corners.tolist():
        light[y : y + 32, x : x + 32] += model.probe.wave.detach().abs().square().sum(0)
    torch.testing.assert_close(model.illumination(), light, rtol=1e-9, atol=1e-9 * light.max().item())
    assert math.isclose(light.sum().item(), 12e5, rel_tol=1e-9)
