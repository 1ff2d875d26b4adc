"""What lies before and behind the specimen comes back from the data: varying probe, descan, blur, background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import PIXEL_A, WAVELENGTH_A, correlation, counts_of, empty, make, solve, summed_phase
from torch import Tensor

from ptycho.aberrations import parse_aberrations
from ptycho.constraint import Constraints
from ptycho.errors import RecipeError
from ptycho.model import Ptychography
from ptycho.optics import probe_wave
from ptycho.probe import Probe
from ptycho.solvers.base import Updates
from ptycho.solvers.epie import EPIE
from ptycho.solvers.gradient import Gradient
from ptycho.solvers.stop import Snapshot

OPTIONS = {"scan": (8, 8), "step_px": 2.0, "strength": 1.0, "defocus_A": 60.0}


def learn(model: Ptychography, counts: Tensor, kind: type = Gradient, epochs: int = 12, loss: str = "amplitude", **update: int) -> list[float]:
    """Only what is named is updated."""
    return solve(kind(loss=loss, epochs=epochs, batch=16, update=Updates(**{"object": 0, "probe": 0, **update})), model, counts)


@pytest.mark.parametrize(("kind", "loss"), [(Gradient, "amplitude"), (Gradient, "poisson"), (EPIE, "amplitude")])
def test_blur_and_background_come_back(kind: type, loss: str) -> None:
    counts = counts_of(make(**OPTIONS, blur_px=0.6, background=3.0))
    model = make(**OPTIONS)
    losses = learn(model, counts, kind, epochs=15, loss=loss, blur=1, background=1)
    assert model.detector.blur_px == pytest.approx(0.6, rel=0.02)
    assert model.detector.background.item() == pytest.approx(3.0, rel=0.05)
    assert losses[-1] < 1e-3 * losses[0]


def test_no_blur_and_no_background_are_found_where_there_is_none() -> None:
    model = make(**OPTIONS, blur_px=0.3, background=1.0)
    learn(model, counts_of(make(**OPTIONS)), epochs=15, blur=1, background=1)
    assert model.detector.blur_px < 0.05
    assert 0 <= model.detector.background.item() < 0.05


def test_a_background_of_its_own_for_each_pixel() -> None:
    truth, model = make(**OPTIONS), make(**OPTIONS)
    shape = truth.detector.mask.shape
    distance = torch.hypot(*torch.meshgrid(*(torch.fft.fftfreq(n) for n in shape), indexing="ij"))
    truth.detector.background.data = 5 * torch.exp(-((distance / 0.2) ** 2)) + 0.5
    model.detector.background.data = torch.zeros(shape)
    learn(model, counts_of(truth), epochs=40, background=1)
    found, wanted = model.detector.background.detach(), truth.detector.background.detach()
    # Inside of the disk a few electrons among many are slow to tell apart.
    outside = distance * 1 / PIXEL_A > 0.75
    assert (found >= 0).all()
    torch.testing.assert_close(found[outside], wanted[outside], rtol=0.1, atol=0.05)


def plane(model: Ptychography, slope_px: float) -> Tensor:
    """(N, 2): shifts that grow across the scan, from -slope to slope along y and half as much along x."""
    place = model.positions.value_px.detach()
    return (place - place.mean(0)) / (place - place.mean(0)).abs().amax(0) * torch.tensor([slope_px, -slope_px / 2])


@pytest.mark.parametrize("known", [True, False], ids=["object known", "from vacuum"])
def test_a_descan_comes_back(known: bool) -> None:
    truth = make(**OPTIONS)
    truth.detector.descan_px.data = plane(truth, 1.0)
    model = make(**OPTIONS) if known else empty(make(**OPTIONS))
    learn(model, counts_of(truth), epochs=12 if known else 40, descan=1 if known else 2, object=0 if known else 1)
    error = model.detector.descan_px.detach() - truth.detector.descan_px.detach()
    assert error.square().mean().sqrt() < (0.02 if known else 0.1)


def wave(defocus_A: float, size: int = 32) -> Tensor:
    return 316.0 * probe_wave(size, PIXEL_A, WAVELENGTH_A, 25.0, parse_aberrations({"defocus_A": defocus_A})).to(torch.complex64)


def drifting() -> Ptychography:
    """The probe's defocus and its current change linearly across the scan."""
    truth = make(**OPTIONS)
    across = plane(truth, 1.0)
    truth.probe.variations.data = torch.stack([(wave(66.0) - wave(54.0)) / 2, 0.1 * wave(60.0)])
    truth.probe.coefficients.data = across
    truth.probe.wave.data = wave(60.0)[None]
    return truth


def probe_error(model: Ptychography, truth: Ptychography) -> float:
    """Of all probes, relative to how much they vary."""
    index = torch.arange(len(truth.positions.value_px))
    with torch.no_grad():
        wanted = truth.probe.waves(index)[:, 0]
        found = model.probe.waves(index)[:, 0].expand_as(wanted)
        # No pattern tells the phase of its probe as a whole.
        found, mean = (_turned(other, wanted) for other in (found, wanted.mean(0, keepdim=True).expand_as(wanted)))
        return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(mean - wanted))


def _turned(waves: Tensor, wanted: Tensor) -> Tensor:
    overlap = (waves.conj() * wanted).sum((-2, -1), keepdim=True).angle()
    return waves * torch.polar(torch.ones_like(overlap), overlap)


def test_a_probe_that_drifts_is_followed() -> None:
    truth = drifting()
    counts = counts_of(truth)
    model, fixed = (make(**OPTIONS, opr_modes=n) for n in (2, 0))
    for start in (model, fixed):
        start.probe.wave.data = wave(60.0)[None]
    before = learn(fixed, counts, epochs=15, probe=1)
    losses = learn(model, counts, epochs=45, opr=1, probe=1)
    assert losses[-1] < 0.05 * before[-1]
    assert probe_error(model, truth) < 0.5


def test_variations_are_orthonormal_and_coefficients_smooth_of_mean_zero() -> None:
    model = make(**OPTIONS, opr_modes=2)
    learn(model, counts_of(drifting()), epochs=3, opr=1, probe=1)
    flat = torch.view_as_real(model.probe.variations.detach()).flatten(1)
    torch.testing.assert_close(flat @ flat.mT, torch.eye(2), rtol=0, atol=1e-5)
    coefficients = model.probe.coefficients.detach()
    assert (coefficients.mean(0).abs() < 1e-4 * coefficients.abs().amax()).all()
    grid = coefficients.reshape(8, 8, 2)
    assert grid.diff(dim=0).abs().amax() < 0.5 * coefficients.abs().amax()


def test_normalising_keeps_every_probe() -> None:
    random = torch.Generator().manual_seed(1)
    probe = Probe(torch.randn(2, 16, 16, dtype=torch.complex128, generator=random), 0.3, 0.04, opr_modes=3)
    probe.variations.data = torch.randn(3, 16, 16, dtype=torch.complex128, generator=random)
    probe.coefficients.data = torch.randn(9, 3, dtype=torch.float64, generator=random) + 1
    before = probe.waves(torch.arange(9)).detach()
    probe.normalise_variations()
    torch.testing.assert_close(probe.waves(torch.arange(9)).detach(), before)
    assert probe.coefficients.detach().mean(0).abs().max() < 1e-12


def test_a_varying_probe_needs_variations() -> None:
    model = make(**OPTIONS)
    with pytest.raises(RecipeError, match="opr_modes"):
        learn(model, counts_of(model), epochs=1, opr=1)


def test_any_optimiser_learns_them_all() -> None:
    truth = drifting()
    truth.detector.descan_px.data = plane(truth, 0.5)
    truth.detector.background.data.fill_(3.0)
    model = make(**OPTIONS, opr_modes=2)
    update = Updates(object=0, probe=1, opr=1, descan=1, background=1, blur=1, source=1)
    losses = solve(Gradient(loss="amplitude", optimizer="Adam", epochs=20, batch=16, update=update), model, counts_of(truth))
    assert losses[-1] < 0.3 * losses[0]
    assert model.detector.background.item() > 0.3


def test_what_is_not_due_changes_nothing() -> None:
    """Bit by bit: variations without coefficients, and a schedule that never begins."""
    counts = counts_of(make(**OPTIONS))
    plain, other = empty(make(**OPTIONS)), empty(make(**OPTIONS, opr_modes=2))
    for model, update in ((plain, Updates()), (other, Updates(source=9, opr=9, descan=9, background=9, blur=9))):
        solve(Gradient(loss="amplitude", epochs=3, batch=16, update=update), model, counts)
    assert torch.equal(plain.object.transmission, other.object.transmission)
    assert torch.equal(plain.probe.wave, other.probe.wave)


def test_a_descan_left_out_costs_the_object() -> None:
    truth = make(**OPTIONS)
    truth.detector.descan_px.data = plane(truth, 1.0)
    found = []
    for descan in (0, 2):
        model = empty(make(**OPTIONS))
        learn(model, counts_of(truth), epochs=25, object=1, descan=descan)
        found.append(correlation(summed_phase(model), summed_phase(truth)))
    assert found[1] > found[0] + 0.02 and np.isfinite(found).all()


@pytest.mark.parametrize("slice_by_slice", [False, True])
def test_every_engine_sees_descan_and_drift(slice_by_slice: bool) -> None:
    """At the truth nothing moves."""
    truth = drifting()
    truth.detector.descan_px.data = plane(truth, 1.0)
    counts, before = counts_of(truth), truth.object.transmission.detach().clone()
    update = Updates(object=1, probe=1)
    losses = solve(EPIE(loss="amplitude", epochs=2, batch=16, slice_by_slice=slice_by_slice, update=update, constraints=Constraints()), truth, counts)
    assert losses[-1] < 1e-5
    torch.testing.assert_close(truth.object.transmission.detach(), before, rtol=0, atol=0.02)


def test_a_snapshot_takes_back_what_was_switched_on() -> None:
    model = make(**OPTIONS, opr_modes=1)
    kept = Snapshot(model)
    learn(model, counts_of(drifting()), epochs=1, opr=1, descan=1, source=1, blur=1)
    assert model.probe.varies and model.detector.descans and model.detector.blurs and model.probe.source_A > 0
    kept.restore(model)
    assert not (model.probe.varies or model.detector.descans or model.detector.blurs or model.probe.source_A > 0)
