"""The model that a run begins with: what is known of probe and object lies where it should, in Å, on any window."""

import numpy as np
import pytest
import torch
from scipy.fft import next_fast_len

from ptycho.aberrations import parse_aberrations
from ptycho.errors import RecipeError
from ptycho.geometry import Geometry, raster_positions_A
from ptycho.optics import probe_wave
from ptycho.start import Known, ModelOptions, place_positions, probe_diameter_A, start

ELECTRONS = 1e4


def geometry(shape=(32, 32), pixel_invA=0.1, defocus_A=60.0, scan=(4, 5), step_A=1.0, **aberrations):
    terms = parse_aberrations({"defocus_A": defocus_A, **aberrations})
    return Geometry(80.0, 25.0, pixel_invA, shape, raster_positions_A(scan, (step_A, step_A)), terms)


def model_of(where, options=None, known=None):
    return start(where, options or ModelOptions(), ELECTRONS, np.ones(where.pattern_shape, bool), known)


def patterns(model):
    with torch.no_grad():
        return model(torch.arange(len(model.positions.value_px))).double()


def origin_A(model, where):
    """Where the canvas's pixel 0 lies in the scan's frame, from the positions of both."""
    return where.positions_A[0] - model.positions.value_px.detach().numpy()[0] * model.pixel_A


def put_specimen(model, where):
    """A smooth phase without symmetry, the same function of Å on every canvas."""
    y0, x0 = origin_A(model, where)
    height, width = model.object.transmission.shape[-2:]
    y, x = y0 + np.arange(height)[:, None] * model.pixel_A, x0 + np.arange(width) * model.pixel_A
    blobs = np.random.default_rng(0).uniform(-4, 4, (25, 2))
    phase = sum(0.4 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / 2 / 0.5**2) for a, b in blobs)
    model.object.transmission.data.copy_(torch.polar(torch.ones(phase.shape), torch.from_numpy(phase).float()))
    return model


def difference(a, b):
    return ((a - b).abs().sum() / b.abs().sum()).item()


def test_pixel_and_window():
    where = geometry()
    model = model_of(where)
    assert model.size == 32 and model.pixel_A == pytest.approx(1 / (32 * 0.1))
    # One window is one period of the detector's pixel.
    assert model.size * model.pixel_A == pytest.approx(1 / where.pixel_invA)
    assert patterns(model).shape == (20, 32, 32)


@pytest.mark.parametrize(("options", "size", "window"), [({"pad": 4}, 40, 40), ({"oversample": 2}, 64, 32), ({"pad": 4, "oversample": 3}, 120, 40)])
def test_pad_widens_reciprocal_and_oversample_real_space(options, size, window):
    model = model_of(geometry(), ModelOptions(**options))
    assert model.size == size
    assert model.pixel_A == pytest.approx(1 / (window * 0.1))
    assert patterns(model).shape == (20, 32, 32)


@pytest.mark.parametrize("shape", [(31, 31), (37, 37), (29, 43), (32, 20), (25, 24), (24, 25)])
def test_odd_prime_and_rectangular_patterns(shape):
    where = geometry(shape)
    model = model_of(where)
    assert model.size == next_fast_len(max(shape))
    assert model.pixel_A == pytest.approx(1 / (model.size * where.pixel_invA))
    image = patterns(model)
    assert image.shape == (20, *shape)
    # The disk is centred on the first pixel, as everywhere inside the model.
    centred = torch.fft.fftshift(image[0])
    y, x = torch.meshgrid(*(torch.arange(n) - n // 2 for n in shape), indexing="ij")
    assert abs((centred * y).sum() / centred.sum()) < 0.02 and abs((centred * x).sum() / centred.sum()) < 0.02


def test_the_canvas_holds_all_windows_with_a_margin():
    positions = np.random.default_rng(0).uniform(-40, 70, (50, 2))
    for size in (16, 25):
        placed, (height, width) = place_positions(positions, size)
        low = torch.floor(placed + 0.5) - size // 2
        assert low.min() >= 8 and (low + size <= torch.tensor([height, width]) - 8).all()
        np.testing.assert_allclose(placed.diff(dim=0), np.diff(positions, axis=0), atol=1e-4)


def test_the_probe_carries_the_electrons_and_the_object_is_empty():
    model = model_of(geometry(), ModelOptions(probe_modes=3, slices=2))
    assert model.probe.power().sum().item() == pytest.approx(ELECTRONS, rel=1e-5)
    assert (model.object.transmission == 1).all() and model.object.transmission.shape[:2] == (1, 2)
    assert patterns(model).sum((1, 2)).numpy() == pytest.approx(ELECTRONS, rel=1e-3)


def test_object_states_start_apart_and_depend_on_the_seed():
    one, two, other = (model_of(geometry(), ModelOptions(object_states=2, seed=seed)).object.transmission.detach() for seed in (0, 0, 1))
    assert (one[0] - one[1]).abs().std() > 1e-3
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("options", [{"pad": 8}, {"oversample": 2}, {"oversample": 2, "pad": 8}])
def test_pad_and_oversample_give_the_same_patterns(options):
    where = geometry(defocus_A=30.0)
    # A soft edge makes a probe without tails.
    plain = put_specimen(model_of(where, ModelOptions(aperture_edge_px=4.0)), where)
    wide = put_specimen(model_of(where, ModelOptions(aperture_edge_px=4.0, **options)), where)
    assert difference(patterns(wide), patterns(plain)) < 0.01
    assert difference(patterns(plain), patterns(model_of(where))) > 0.1  # there is something to see


@pytest.mark.parametrize("shape", [(32, 32), (31, 31), (24, 35), (35, 24), (25, 25)])
@pytest.mark.parametrize("options", [{}, {"pad": 3}, {"oversample": 2}, {"oversample": 3}])
def test_a_vacuum_pattern_is_reproduced(shape, options):
    where = geometry(shape)
    y, x = (np.arange(n) - n // 2 for n in shape)
    radius = np.hypot(y[:, None], x)
    vacuum = 30 * np.clip(6.5 - radius, 0, 1) * (1 + 0.05 * y[:, None] - 0.03 * x)  # an uneven disk
    model = model_of(where, ModelOptions(pixel_area=False, **options), Known(vacuum=vacuum.astype(np.float32)))
    found = torch.fft.fftshift(patterns(model)[3]).numpy()
    error = np.abs(found / found.sum() - vacuum / vacuum.sum()).sum()
    # Finer samples have to be invented between those measured, which blurs the edge.
    assert error < (0.1 if options.get("oversample") == 2 else 0.02)
    assert np.array([(found * y[:, None]).sum(), (found * x).sum()]) / found.sum() == pytest.approx(
        np.array([(vacuum * y[:, None]).sum(), (vacuum * x).sum()]) / vacuum.sum(), abs=0.02
    )


def test_a_vacuum_pattern_may_lack_pixels_and_has_the_patterns_shape():
    where = geometry()
    vacuum = torch.fft.fftshift(patterns(model_of(where))[0]).float().numpy()
    vacuum[3, 4] = np.nan
    assert torch.isfinite(patterns(model_of(where, known=Known(vacuum=vacuum)))).all()
    with pytest.raises(RecipeError, match="vacuum"):
        model_of(where, known=Known(vacuum=vacuum[:16]))


@pytest.mark.parametrize(("size", "pixel"), [(48, 0.25), (64, 0.5), (25, 0.3), (80, 0.125)])
def test_a_probe_from_a_file_keeps_its_shape(size, pixel):
    where = geometry(C12=20.0)
    earlier = probe_wave(size, pixel, where.wavelength_A, 25.0, where.aberrations)
    model = model_of(where, known=Known(probe=earlier[None].to(torch.complex64).numpy(), probe_pixel_A=pixel))
    wanted = model_of(where).probe.wave.detach()[0]
    found = model.probe.wave.detach()[0]
    assert model.probe.power().sum().item() == pytest.approx(ELECTRONS, rel=1e-5)
    overlap = torch.vdot(found.flatten(), wanted.flatten()).abs() / ELECTRONS
    assert overlap > 0.98  # the same wave at the same place; what differs are tails beyond the smaller window


def test_modes_are_added_to_a_probe_from_a_file_or_left_out():
    earlier = model_of(geometry(), ModelOptions(probe_modes=3))
    known = Known(probe=earlier.probe.wave.detach().numpy(), probe_pixel_A=earlier.pixel_A)
    for modes in (1, 2, 5):
        model = model_of(geometry(), ModelOptions(probe_modes=modes), known)
        assert len(model.probe.wave) == modes
        assert model.probe.power().sum().item() == pytest.approx(ELECTRONS, rel=1e-5)


@pytest.mark.parametrize(("options", "step_A", "tolerance"), [({}, 3 * 0.3125, 1e-5), ({}, 1.0, 0.01), ({"pad": 8}, 1.0, 0.02)])
def test_an_object_from_a_file_gives_its_patterns_again(options, step_A, tolerance):
    where = geometry(step_A=step_A)
    earlier = put_specimen(model_of(where), where)
    earlier.object.transmission.data *= 0.97
    known = Known(object=earlier.object.transmission.detach().numpy(), object_pixel_A=earlier.pixel_A, object_origin_A=origin_A(earlier, where))
    part = Geometry(80.0, 25.0, 0.1, (32, 32), where.positions_A[5:], where.aberrations)  # a smaller scan of the same place
    again = patterns(model_of(part, ModelOptions(**options), known))
    assert difference(again, patterns(earlier)[5:]) < tolerance
    shifted = Known(object=known.object, object_pixel_A=earlier.pixel_A, object_origin_A=(known.object_origin_A[0] + 0.3, known.object_origin_A[1]))
    assert difference(patterns(model_of(part, ModelOptions(**options), shifted)), patterns(earlier)[5:]) > 0.02


def test_slices_from_a_file_stay_or_are_shared_out_by_thickness():
    where = geometry()
    three = model_of(where, ModelOptions(slices=3, slice_thickness_A=(4.0, 10.0, 6.0)))
    phase = torch.rand(three.object.transmission.shape, generator=torch.Generator().manual_seed(0))
    three.object.transmission.data.copy_(torch.polar(torch.ones_like(phase), phase))
    known = Known(object=three.object.transmission.detach().numpy(), object_pixel_A=three.pixel_A, object_origin_A=origin_A(three, where))
    same = model_of(where, ModelOptions(slices=3, slice_thickness_A=(4.0, 10.0, 6.0)), known)
    torch.testing.assert_close(same.object.transmission.angle(), phase, rtol=1e-3, atol=1e-3)
    two = model_of(where, ModelOptions(slices=2, slice_thickness_A=(15.0, 5.0)), known).object.transmission.angle()
    torch.testing.assert_close(two, phase.sum(1, keepdim=True) * torch.tensor([0.75, 0.25])[:, None, None], rtol=1e-3, atol=1e-3)


def test_unequal_thicknesses_and_tilts():
    model = model_of(geometry(), ModelOptions(slices=3, slice_thickness_A=(4.0, 10.0, 6.0), tilt_mrad=(5.0, -3.0)))
    assert model.propagator.thickness_A.tolist() == [4, 10, 6]
    torch.testing.assert_close(model.propagator.tilt_rad.detach(), torch.tensor([[0.005, -0.003]]))
    assert model_of(geometry(), ModelOptions(tilt_per_position=True)).propagator.tilt_rad.shape == (20, 2)
    with pytest.raises(RecipeError, match="2 numbers for slices = 3"):
        ModelOptions(slices=3, slice_thickness_A=(4.0, 10.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probe_modes": 0}, "probe_modes = 0"),
        ({"oversample": 0}, "oversample = 0"),
        ({"pad": -1}, "pad = -1"),
        ({"band_limit": 0.0}, "band_limit = 0"),
        ({"tilt_mrad": (0.0, 1000.0)}, "mrad"),
        ({"slice_thickness_A": 0.0}, "slice_thickness_A = 0"),
    ],
)
def test_impossible_numbers_are_refused(options, words):
    with pytest.raises(RecipeError, match=words):
        ModelOptions(**options)


def test_a_probe_wider_than_the_window_is_refused_and_the_remedy_works():
    where = geometry(defocus_A=400.0)
    with pytest.raises(RecipeError, match=r"wide.*oversample = (\d)") as caught:
        model_of(where)
    remedy = int(str(caught.value).split("oversample = ")[1][0])
    model = model_of(where, ModelOptions(oversample=remedy))
    assert model.size * model.pixel_A > probe_diameter_A(where)
    # The thickness counts too: the beam leaves a thick specimen wider than it enters.
    with pytest.raises(RecipeError, match="oversample"):
        model_of(geometry(defocus_A=0.0), ModelOptions(slices=5, slice_thickness_A=80.0))


def test_the_probe_diameter_holds_most_of_the_probe():
    where = geometry(shape=(128, 128), pixel_invA=0.04, defocus_A=200.0)
    wave = probe_wave(128, 1 / (128 * 0.04), where.wavelength_A, 25.0, where.aberrations)
    axis = (torch.arange(128) - 64) / (128 * 0.04)
    inside = torch.hypot(axis[:, None], axis) < probe_diameter_A(where) / 2
    assert wave.abs().square()[inside].sum() > 0.9


def test_the_mask_is_in_corner_order():
    mask = np.ones((32, 20), bool)
    mask[16, 10] = False
    model = start(geometry((32, 20)), ModelOptions(), ELECTRONS, mask)
    assert (model.detector.mask == 0).nonzero().tolist() == [[0, 0]]
