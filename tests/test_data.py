"""Laws of Dataset4D: what is done to patterns, what is masked, what is measured from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.errors import DataError, RecipeError
from ptycho.frames import Quantity
from ptycho.geometry import raster_positions_A, wavelength_A
from ptycho.io import read, write_hdf5
from ptycho.preparation import Preparation, bin_sum
from ptycho.survey import find_disk

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5}


def test_preparation_is_dark_transpose_flips_crop_bin():
    rng = np.random.default_rng(0)
    stored, dark = rng.uniform(10, 20, (3, 12, 16)), rng.uniform(0, 1, (12, 16))
    kwargs = {"transpose": True, "flip_rows": True, "flip_columns": True, "box": (2, 14, 0, 8), "bin": 4}
    got = Preparation(dark=dark, adu_per_electron=2.0, **kwargs).apply(stored)
    wanted = ((stored - dark) / 2).swapaxes(1, 2)[:, ::-1, ::-1][:, 2:14, 0:8].reshape(3, 3, 4, 2, 4).sum((2, 4))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert got.dtype == np.float32 and got.flags.c_contiguous


@pytest.mark.parametrize("turns", range(4))
def test_transpose_and_flips_make_every_quarter_turn(turns):
    image = np.arange(20.0).reshape(1, 4, 5)
    keys = [{}, {"transpose": True, "flip_rows": True}, {"flip_rows": True, "flip_columns": True}, {"transpose": True, "flip_columns": True}]
    np.testing.assert_array_equal(Preparation(**keys[turns]).apply(image)[0], np.rot90(image[0], turns))


def test_what_was_not_measured_is_nan_and_noise_stays(disk_patterns):
    disk_patterns[0, 0, 3, 4], disk_patterns[0, 0, 5, 6], disk_patterns[0, 1, 7, 7], disk_patterns[0, 2, 1, 1] = np.nan, np.inf, -1.5, -0.5
    data = read(disk_patterns, adu_per_electron=1, **KNOWN)
    patterns = data.patterns(slice(0, 3))
    assert np.isnan(patterns).sum() == 3 and patterns[2, 1, 1] == -0.5
    assert (data.survey().n_nonfinite, data.survey().n_negative) == (2, 1)
    assert data.mask.all()


def test_saturated_integers_are_not_measured(disk_patterns):
    counts = disk_patterns.astype(np.uint16)
    counts[0, 0, 3, 3] = 65535
    assert np.isnan(read(counts, **KNOWN).patterns([0])[0, 3, 3])


def test_patterns_come_in_the_order_asked_for(disk_patterns):
    data = read(disk_patterns, **KNOWN)
    flat = disk_patterns.reshape(-1, 32, 32)
    order = np.array([7, 3, 3, 40, 0])
    np.testing.assert_array_equal(data.patterns(order), flat[order])
    np.testing.assert_array_equal(data.patterns(), flat)
    np.testing.assert_array_equal(data.patterns(np.arange(48) % 5 == 0), flat[::5])


def test_scan_region_takes_frames_and_positions_together(disk_patterns, tmp_path: Path):
    positions = raster_positions_A((6, 8), (0.5, 0.7))
    np.savetxt(tmp_path / "p.csv", positions, delimiter=",", header="y,x", comments="")
    data = read(disk_patterns, scan_region=(1, 4, 2, 7), positions_file=tmp_path / "p.csv", voltage_kV=80, semiangle_mrad=20)
    np.testing.assert_array_equal(data.patterns().reshape(3, 5, 32, 32), disk_patterns[1:4, 2:7])
    np.testing.assert_allclose(data.geometry.positions_A.reshape(3, 5, 2), positions.reshape(6, 8, 2)[1:4, 2:7])
    assert data.scan_shape == (3, 5) and data.n_positions == 15


def test_explicit_positions_turn_like_a_raster(disk_patterns, tmp_path: Path):
    np.save(tmp_path / "p.npy", raster_positions_A((6, 8), (0.5, 0.5)))
    turned = {"rotation_deg": 33.0, "affine": [[1.1, 0.2], [-0.1, 0.9]]}
    explicit = read(disk_patterns, positions_file=tmp_path / "p.npy", **turned, voltage_kV=80, semiangle_mrad=20)
    raster = read(disk_patterns, **turned, **KNOWN)
    np.testing.assert_allclose(explicit.geometry.positions_A, raster.geometry.positions_A, atol=1e-12)


@pytest.mark.parametrize(("centre", "radius"), [((32.0, 32.0), 10.0), ((31.3, 33.8), 14.6), ((30.1, 32.9), 5.25)])
def test_disk_is_found_to_a_small_part_of_a_pixel(centre, radius):
    y, x = (np.indices((64 * 8, 64 * 8)) + 0.5) / 8 - 0.5
    disk = (np.hypot(y - centre[0], x - centre[1]) < radius).reshape(64, 8, 64, 8).mean((1, 3))
    found = find_disk(100 * disk + 3.0 / (1 + np.hypot(*np.indices((64, 64))) / 20))
    assert found == pytest.approx((*centre, radius), abs=0.06)


def test_pixel_is_given_or_from_the_angle_or_from_the_disk(disk_patterns):
    aperture = 20e-3 / wavelength_A(80)
    fitted = read(disk_patterns, **KNOWN)
    assert fitted.pixel_invA.value == pytest.approx(aperture / 7.3, rel=0.01)
    assert fitted.pixel_invA.source.startswith("estimate") and not fitted.pixel_invA.trusted
    assert read(disk_patterns, pixel_mrad=2.7, **KNOWN).geometry.pixel_invA == pytest.approx(2.7e-3 / wavelength_A(80))
    assert read(disk_patterns, pixel_invA=0.06, bin=2, **KNOWN).geometry.pixel_invA == pytest.approx(0.12)
    assert read(disk_patterns, bin=2, **KNOWN).pixel_invA.value == pytest.approx(2 * aperture / 7.3, rel=0.03)


def test_geometry_lists_every_missing_key(disk_patterns):
    with pytest.raises(DataError, match=r"voltage_kV, semiangle_mrad, step_A are not in the file.*\[microscope\] voltage_kV.*--semiangle-mrad"):
        _ = read(disk_patterns).geometry
    with pytest.raises(DataError, match=r"step_A is not in the file.*\[scan\] step_A"):
        _ = read(disk_patterns, voltage_kV=80, semiangle_mrad=20).geometry


def test_hot_and_dead_pixels_are_masked_and_counted(disk_patterns):
    disk_patterns[:, :, 2, 30] = 100
    disk_patterns[:, :, 30, 5:7] = 50  # two side by side
    disk_patterns[:, :, 16, 14] = 0
    disk_patterns[:, :, 0, 0] = np.nan
    data = read(disk_patterns, **KNOWN)
    survey = data.survey()
    assert (survey.n_hot, survey.n_dead, int(survey.static_bad.sum())) == (3, 1, 1)
    assert {tuple(i) for i in np.argwhere(~data.mask)} == {(2, 30), (30, 5), (30, 6), (16, 14), (0, 0)}
    assert any("3 hot" in w for w in data.warnings)
    binned = read(disk_patterns, bin=2, **KNOWN)
    assert {tuple(i) for i in np.argwhere(~binned.mask)} == {(1, 15), (15, 2), (15, 3), (8, 7), (0, 0)}


def test_a_clean_set_has_no_bad_pixels(disk_patterns):
    data = read(disk_patterns, **KNOWN)
    survey = data.survey()
    assert (survey.n_hot, survey.n_dead, len(survey.bad_frames), data.warnings) == (0, 0, 0, [])
    assert survey.mean_electrons == pytest.approx(disk_patterns.sum((2, 3)).mean())
    np.testing.assert_allclose(survey.mean_pattern, disk_patterns.mean((0, 1)), rtol=1e-6)
    assert data.centre() == pytest.approx((16, 16), abs=0.05)


def test_damaged_frames_are_found_and_dropped(disk_patterns):
    disk_patterns[1, 3], disk_patterns[5, 7] = np.nan, 0
    data = read(disk_patterns, **KNOWN)
    np.testing.assert_array_equal(data.survey().bad_frames, [11, 47])
    kept = data.without_bad_frames()
    assert kept.n_positions == 46 and kept.scan_shape == (6, 8) and len(kept.points) == 46
    np.testing.assert_allclose(kept.geometry.positions_A, np.delete(data.geometry.positions_A, [11, 47], axis=0))
    np.testing.assert_array_equal(kept.patterns([11]), disk_patterns.reshape(-1, 32, 32)[12][None])


def test_many_damaged_frames_are_an_error(disk_patterns):
    disk_patterns[:2] = np.nan
    with pytest.raises(DataError, match="16 of 48 patterns are damaged"):
        read(disk_patterns, **KNOWN).survey()


@pytest.mark.parametrize(("value", "message"), [(np.nan, "no pixel is usable"), (0.0, "all pixels are 0"), (7.0, "all pixels are 7")])
def test_nothing_to_reconstruct_from_is_an_error(value, message):
    with pytest.raises(DataError, match=message):
        read(np.full((3, 3, 16, 16), value, np.float32), adu_per_electron=1).survey()


def test_a_disk_off_the_centre_is_told_when_it_is_not_to_be_shifted(disk_patterns):
    data = read(np.roll(disk_patterns, 2, axis=3), centre="none", **KNOWN)
    data.survey()
    assert any("centred at (16.0" in w and "centre" in w for w in data.warnings)
    assert data.centre()[1] == pytest.approx(18, abs=0.05)


@pytest.mark.parametrize("centre", [None, "auto", (16.2, 17.9)])
def test_patterns_are_centred_by_whole_pixels(disk_patterns, centre):
    data = read(np.roll(disk_patterns, 2, axis=3), centre=centre, **KNOWN)
    patterns = data.patterns().reshape(disk_patterns.shape)
    np.testing.assert_array_equal(patterns[..., :-2], disk_patterns[..., :-2])
    assert np.isnan(patterns[..., -2:]).all()  # what was beyond the edge of the detector
    assert data.centre() == pytest.approx((16, 16), abs=0.05) and data.mask.sum() == 32 * 30
    found = data.calibration["centre_px"]
    assert found.value == pytest.approx((16, 18), abs=0.3) and found.trusted == (centre == (16.2, 17.9))


def test_noise_does_not_move_the_window(disk_patterns):
    for factor in (1, 2, 4):
        assert read(disk_patterns, bin=factor, **KNOWN).preparation.box is None


@pytest.mark.parametrize("size", [24, (40, 36), 32])
def test_a_window_is_cut_or_padded_about_the_centre(disk_patterns, size):
    height, width = (size, size) if isinstance(size, int) else size
    data = read(disk_patterns, window=size, **KNOWN)
    patterns = data.patterns([0])[0]
    assert data.pattern_shape == patterns.shape == (height, width)
    assert data.centre() == pytest.approx((height // 2, width // 2), abs=0.05)
    inside = patterns[np.isfinite(patterns)]
    assert inside.size == min(height, 32) * min(width, 32)
    assert np.nansum(patterns) == (disk_patterns[0, 0].sum() if height >= 32 else disk_patterns[0, 0, 4:28, 4:28].sum())


def test_window_and_crop_exclude_each_other(disk_patterns):
    with pytest.raises(RecipeError, match="keep one"):
        read(disk_patterns, window=16, detector_crop=(0, 16, 0, 16), **KNOWN)


@pytest.mark.parametrize("kind", ["plane", "parabola"])
def test_descan_is_found_and_taken_back(kind):
    """A disk that wanders by up to 4 px over the scan, in whole pixels here, stands still afterwards."""
    slow, fast = 12, 16
    v, u = np.indices((slow, fast)) - np.array([slow - 1, fast - 1])[:, None, None] / 2
    dy, dx = 0.6 * v - 0.1 * u, 0.5 * u
    if kind == "parabola":
        dy = dy + 0.06 * v**2
    y, x = np.indices((64, 64)) - 32
    wander = np.stack([np.round(dy), np.round(dx)], axis=-1)
    disks = np.hypot(y - wander[..., 0, None, None], x - wander[..., 1, None, None]) < 9.3
    counts = np.random.default_rng(0).poisson(disks * 5.0 + 0.02).astype(np.uint16)
    data = read(counts, descan=kind, **KNOWN)
    found = data.shifts_px.reshape(slow, fast, 2)
    wanted = wander - wander.reshape(-1, 2).mean(0)
    assert np.abs(found - wanted).max() <= 1.1  # rounded twice
    still = np.nan_to_num(data.patterns())
    centres = [np.array([(p * (y + 32)).sum(), (p * (x + 32)).sum()]) / p.sum() for p in still[:, :, :]]
    assert np.ptp(centres, axis=0).max() < 2.5 < np.ptp(wander.reshape(-1, 2), axis=0).min()
    assert kind in data.calibration["descan"].source and not data.calibration["descan"].trusted
    np.testing.assert_array_equal(data.patterns([5, 190]), data.patterns()[[5, 190]])


def test_gain_image_multiplies_after_the_dark(disk_patterns):
    gain = np.random.default_rng(0).uniform(0.5, 2, (32, 32))
    data = read(disk_patterns / gain + 3, dark=np.full((32, 32), 3.0), gain=gain, adu_per_electron=1, **KNOWN)
    np.testing.assert_allclose(data.patterns([7])[0], disk_patterns.reshape(-1, 32, 32)[7], atol=1e-4)


def test_counts_of_one_electron_in_several_pixels_are_found():
    """Every electron makes 5 counts, spread over its neighbours: a pixel looks Poisson, a block does not."""
    rng = np.random.default_rng(0)
    y, x = np.indices((128, 128)) - 64
    electrons = rng.poisson(np.where(np.hypot(y, x) < 20, 1.0, 0.01), (12, 12, 128, 128))
    counts = np.zeros(electrons.shape, np.uint8)
    for _ in range(5):
        counts += np.roll(electrons, rng.integers(-1, 2, 2), (2, 3)).astype(np.uint8)
    data = read(counts, **KNOWN)
    found = data.calibration["adu_per_electron"]
    assert found.value == pytest.approx(5, rel=0.15) and not found.trusted and any("counts" in w for w in data.warnings)
    assert read(electrons.astype(np.uint8), **KNOWN).calibration["adu_per_electron"].value == 1
    assert read(counts, adu_per_electron=1, **KNOWN).calibration["adu_per_electron"].source == "user"


def test_user_mask_and_dark(disk_patterns, tmp_path: Path):
    mask = np.ones((32, 32), np.uint8)
    mask[:4] = 0
    np.save(tmp_path / "mask.npy", mask)
    data = read(disk_patterns + 2, mask=tmp_path / "mask.npy", dark=np.full((32, 32), 2.0), **KNOWN)
    np.testing.assert_array_equal(data.mask, mask != 0)
    np.testing.assert_array_equal(data.patterns([0])[0], disk_patterns[0, 0])
    with pytest.raises(DataError, match="32 x 32 is needed"):
        read(disk_patterns, mask=np.ones((16, 16)))


def test_a_disk_larger_than_the_pattern_is_an_error(disk_patterns):
    with pytest.raises(DataError, match=r"semiangle_mrad = 20 with pixel_invA = 0.01 .* larger than the pattern of 32 x 32"):
        read(disk_patterns, pixel_invA=0.01, **KNOWN)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"voltage_kV": 80000}, "voltage_kV = 80000 is in V[?] write 80"),
        ({"voltage_kV": 0.5}, "from 1 to 3000"),
        ({"voltage_kV": "80"}, "a number in kV is needed"),
        ({"semiangle_mrad": 0}, "semiangle_mrad = 0"),
        ({"semiangle_mrad": 500}, "at most 200"),
        ({"step_A": -1}, "step_A = -1"),
        ({"step_A": (1, 2, 3)}, "step_A"),
        ({"adu_per_electron": 0}, "adu_per_electron = 0"),
        ({"rotation_deg": float("nan")}, "rotation_deg"),
        ({"pixel_invA": 0.1, "pixel_mrad": 1.0}, "keep one"),
        ({"aberrations": {"C99": 1.0}}, "C99"),
        ({"aberrations": {"C10": 1.0}, "defocus_A": 2.0}, "given twice"),
        ({"scan_shape": (6,)}, "slow, fast"),
        ({"scan_shape": (6.5, 8)}, "whole number"),
        ({"scan_region": (0, 7, 0, 8)}, "not within the scan of 6 x 8"),
        ({"scan_region": (3, 3, 0, 8)}, "y0 < y1"),
        ({"detector_crop": (0, 40, 0, 32)}, "within 32 x 32"),
        ({"bin": 3}, "bin = 3 does not divide"),
        ({"bin": 0}, "bin = 0"),
        ({"affine": [[1, 0], [1, 0]]}, "invertible"),
        ({"format": "bmp"}, "format"),
    ],
)
def test_wrong_values_are_recipe_errors(disk_patterns, tmp_path: Path, values, message):
    np.save(tmp_path / "a.npy", disk_patterns)
    with pytest.raises(RecipeError, match=message) as error:
        read(tmp_path / "a.npy", **values)
    assert "\n" not in str(error.value) and error.value.exit_code == 3


def test_bin_sum_keeps_electrons():
    image = np.random.default_rng(0).uniform(size=(2, 12, 8))
    assert bin_sum(image, 4).shape == (2, 3, 2)
    np.testing.assert_allclose(bin_sum(image, 4).sum((1, 2)), image.sum((1, 2)))


def test_a_nominal_pixel_gives_way_to_the_disk(disk_patterns, tmp_path: Path):
    """A pixel from a nominal camera length is used only when nothing tells the angle of the disk."""
    guesses = {"pixel_mrad": Quantity(5.0, "mrad", "", trusted=False), "defocus_A": Quantity(300.0, "Å", "", trusted=False)}
    path = write_hdf5(tmp_path / "a.h5", disk_patterns, {"voltage_kV": 80.0, **guesses})
    with_angle = read(path, semiangle_mrad=20, step_A=0.5)
    assert with_angle.pixel_invA.value == pytest.approx(20e-3 / wavelength_A(80) / 7.3, rel=0.01) and "disk" in with_angle.pixel_invA.source
    assert any("defocus_A = 300 Å is a guess" in w for w in with_angle.warnings)
    without = read(path, step_A=0.5)
    assert without.pixel_invA.value == pytest.approx(5e-3 / wavelength_A(80)) and not without.pixel_invA.trusted
    assert read(path, semiangle_mrad=20, pixel_mrad=2.7).pixel_invA.source == "user (a.h5: /datacube_root/datacube/data @pixel_mrad says 5 mrad)"
