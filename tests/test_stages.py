"""Between stages nothing that was learned is lost: the same specimen, probe and positions on another grid, in other slices, with more modes."""

import dataclasses

import numpy as np
import pytest
import torch

import ptycho
from ptycho.aberrations import parse_aberrations
from ptycho.defaults import default_stages
from ptycho.geometry import Geometry, raster_positions_A
from ptycho.solvers import Gradient
from ptycho.stages import carry_over, coarse_view, depth_shares, options_of, seen_through, travelled, view_of
from ptycho.start import ModelOptions, start
from ptycho.unwrap import unwrap_peaks
from ptycho.views import View

ELECTRONS = 1e4


def geometry(shape=(64, 64), pixel_invA=0.05, defocus_A=80.0, scan=(5, 6), step_A=0.8):
    return Geometry(300.0, 15.0, pixel_invA, shape, raster_positions_A(scan, (step_A, step_A)), parse_aberrations({"defocus_A": defocus_A}))


def model_of(where, options=None):
    return start(where, options or ModelOptions(), ELECTRONS, np.ones(where.pattern_shape, bool))


def specimen(model, where, strength=0.5):
    """Smooth blobs at the same places in Å on any canvas, another set in each slice."""
    first = where.positions_A[0] - model.positions.value_px.detach().numpy()[0] * model.pixel_A
    y, x = (first[i] + np.arange(n) * model.pixel_A for i, n in enumerate(model.object.transmission.shape[-2:]))
    random = np.random.default_rng(0)
    phase = np.zeros(model.object.transmission.shape)
    for s in range(phase.shape[1]):
        for a, b in random.uniform(-3, 3, (12, 2)):
            phase[:, s] += strength * np.exp(-((y[:, None] - a) ** 2 + (x - b) ** 2) / 2 / 0.6**2)
    model.object.transmission.data.copy_(torch.polar(torch.ones(phase.shape), torch.from_numpy(phase).float()))
    return model


def patterns(model):
    with torch.no_grad():
        return model(torch.arange(len(model.positions.value_px))).double()


def difference(a, b):
    return float((a - b).abs().sum() / b.abs().sum())


def test_a_finer_grid_gives_the_same_patterns():
    where = geometry()
    coarse = seen_through(where, View(1, (40, 40)))
    before = specimen(model_of(coarse), where)
    fresh = carry_over(before, model_of(where), where)
    fine = torch.fft.fftshift(patterns(fresh), dim=(-2, -1))[:, 12:52, 12:52]
    assert difference(fine, torch.fft.fftshift(patterns(before), dim=(-2, -1))) < 0.02
    torch.testing.assert_close(fresh.positions.value_px, model_of(where).positions.value_px, atol=1e-3, rtol=0)


def test_there_and_back_again():
    where = geometry()
    before = specimen(model_of(where), where)
    before.positions.value_px.data += 0.3 * torch.randn(before.positions.value_px.shape, generator=torch.Generator().manual_seed(0))
    before.probe.correction_A.data[0] = 7.0
    coarse = carry_over(before, model_of(seen_through(where, View(1, (48, 48)))), where)
    back = carry_over(coarse, model_of(where), where)
    torch.testing.assert_close(back.positions.value_px, before.positions.value_px, atol=1e-3, rtol=0)
    assert back.probe.correction_A[0] == 7
    assert difference(patterns(back), patterns(before)) < 0.03


def test_more_slices_of_a_weak_object_give_the_same_patterns():
    where = geometry()
    two = specimen(model_of(where, ModelOptions(slices=2, slice_thickness_A=20.0)), where, 0.1)
    four = carry_over(two, model_of(where, options_of(ModelOptions(slices=2, slice_thickness_A=20.0), None, 4, 0)), where)
    assert four.propagator.thickness_A.tolist() == [10.0] * 4
    # The first half of the specimen is the first two slices; nothing is lost.
    summed = [model.object.transmission.detach().angle()[0] for model in (two, four)]
    torch.testing.assert_close(summed[1][:2].sum(0), summed[0][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(summed[1][2:].sum(0), summed[0][1], atol=1e-5, rtol=0)
    assert difference(patterns(four), patterns(two)) < 0.02


def test_the_defocus_refers_to_the_entrance_whatever_the_slices():
    where, options = geometry(), ModelOptions(slices=2, slice_thickness_A=40.0)
    thin = model_of(where, options_of(options, None, 8, 0))
    moved = carry_over(model_of(where, options), model_of(where, options_of(options, None, 8, 0)), where)
    a, b = moved.probe.wave.detach(), thin.probe.wave.detach()
    assert (a - b).norm() < 2e-2 * b.norm()


def test_travelled_there_and_back_is_nothing():
    wave = model_of(geometry()).probe.wave.detach()
    torch.testing.assert_close(travelled(travelled(wave, 0.3, 0.02, 50.0), 0.3, 0.02, -50.0), wave, atol=1e-4, rtol=0)


def test_modes_are_kept_and_new_ones_seeded():
    where = geometry()
    before = model_of(where, ModelOptions(probe_modes=2))
    fresh = carry_over(before, model_of(where, ModelOptions(probe_modes=3)), where)
    assert fresh.probe.power().sum() == pytest.approx(ELECTRONS, rel=1e-4)
    old, new = before.probe.wave.detach().flatten(1), fresh.probe.wave.detach().flatten(1)
    overlap = (new[:2].conj() * old).sum(1).abs() / new[:2].norm(dim=1) / old.norm(dim=1)
    np.testing.assert_allclose(overlap, 1, atol=1e-4)


def test_shares_of_depth():
    share = depth_shares(torch.tensor([10.0, 30.0]), torch.tensor([20.0, 20.0]))
    np.testing.assert_allclose(share, [[1, 1 / 3], [0, 2 / 3]])
    np.testing.assert_allclose(depth_shares(torch.full((3,), 5.0), torch.full((7,), 15 / 7)).sum(0), 1, atol=1e-5)


def test_peaks_beyond_pi_are_put_back():
    y, x = np.mgrid[:40, :40]
    phase = 3.9 * np.exp(-((y - 20) ** 2 + (x - 17) ** 2) / 2 / 2.5**2) + 3.6 * np.exp(-((y - 8) ** 2 + (x - 30) ** 2) / 2 / 1.5**2)
    wrapped = np.angle(np.exp(1j * phase)).astype(np.float32)
    assert wrapped.min() < -2
    np.testing.assert_allclose(unwrap_peaks(wrapped), phase, atol=1e-5)
    weak = (phase / 3).astype(np.float32)
    assert np.array_equal(unwrap_peaks(weak), weak)


def test_views():
    assert view_of((64, 64), 1, 0) is None and view_of((64, 64), 1, 64) is None
    assert view_of((64, 64), 2, 0) == View(2, (32, 32)) and view_of((64, 48), 1, 40) == View(1, (40, 40))
    where = geometry(shape=(128, 128))
    view = coarse_view(where, 0.0)
    assert view is not None
    seen = seen_through(where, view)
    # The disk is on the coarse patterns, with room for the dark field, and the window holds the probe.
    assert seen.disk_radius_px * 1.5 < view.shape[0] / 2
    assert 1 / seen.pixel_invA > 1.5 * 80 * 2 * 0.015
    assert coarse_view(geometry(shape=(20, 20)), 0.0) is None


def test_default_stages_end_with_all_that_was_measured():
    where = geometry(shape=(128, 128))
    for options in (ModelOptions(), ModelOptions(slices=4, slice_thickness_A=20.0)):
        stages = default_stages(where, options, 1000.0, few_counts=True)
        assert len(stages) > 1 and (stages[0].bin, stages[0].detector_px) != (1, 0)
        assert (stages[-1].bin, stages[-1].detector_px, stages[-1].slices) == (1, 0, 0)
    # Where a coarser look would hardly be faster there is one stage.
    (only,) = default_stages(geometry(shape=(20, 20)), ModelOptions(), 1000.0, few_counts=True)
    assert (only.bin, only.detector_px) == (1, 0)


def test_stages_of_a_run_hand_the_object_on():
    """A coarse stage, then one without steps worth mentioning: the object is there on the fine grid."""
    where = geometry(scan=(8, 8))
    truth = specimen(model_of(where), where)
    counts = torch.fft.fftshift(patterns(truth), dim=(-2, -1)).reshape(8, 8, 64, 64).float().numpy()
    data = ptycho.read(counts, voltage_kV=300, semiangle_mrad=15, step_A=0.8, defocus_A=80, pixel_invA=0.05, adu_per_electron=1, centre="none")
    coarse = Gradient(epochs=8, batch=16, detector_px=48)
    still = Gradient(epochs=1, memory=(1e6, 1e6))
    result = ptycho.reconstruct(data, solve=[coarse, still])
    assert result.phase.shape == truth.object.transmission.shape[1:] and result.pixel_A == pytest.approx(truth.pixel_A)
    rows, columns = result.scanned
    found, wanted = (p[0, rows, columns] for p in (result.phase, truth.object.transmission.detach().angle()[0].numpy()))
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.98
    again = ptycho.reconstruct(data, solve=[dataclasses.replace(coarse), still])
    assert np.array_equal(again.object, result.object)


def test_source_drift_and_descan_go_on():
    where = geometry()
    coarse, options = seen_through(where, View(1, (40, 40))), ModelOptions(opr_modes=1)
    before = specimen(model_of(coarse, ModelOptions(opr_modes=1, source_A=0.3)), where)
    count, random = len(before.positions.value_px), torch.Generator().manual_seed(1)
    before.probe.variations.data = 0.2j * before.probe.wave.data * torch.linspace(-1, 1, before.size)[:, None]
    before.probe.coefficients.data = torch.randn(count, 1, generator=random)
    before.detector.descan_px.data = torch.randn(count, 2, generator=random)
    fresh = carry_over(before, model_of(where, options), where)
    fine = torch.fft.fftshift(patterns(fresh), dim=(-2, -1))[:, 12:52, 12:52]
    assert fresh.probe.source_A == pytest.approx(0.3)
    assert difference(fine, torch.fft.fftshift(patterns(before), dim=(-2, -1))) < 0.02
    binned = carry_over(before, model_of(geometry((32, 32), 0.1), options), where)
    torch.testing.assert_close(binned.detector.descan_px, before.detector.descan_px / 2)
