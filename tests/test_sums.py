"""One pass over the patterns: sums over masks and centre of mass are exact, whatever the type, the threads and the place of the data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import ptycho.sums
from ptycho.errors import DataError, RecipeError
from ptycho.io import read
from ptycho.sums import weighted_sums
from ptycho.virtual import annulus, segments, virtual_image, virtual_images

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5, "adu_per_electron": 1.0, "centre": "none"}


def rings(data, edges, unit="px"):
    return np.stack([annulus(data, low, high, unit) for low, high in pairwise(edges)])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_rings_add_up_to_all_electrons_exactly(disk_patterns, kind):
    patterns = disk_patterns.astype(kind)
    data = read(patterns, **KNOWN)
    sums = weighted_sums(data, rings(data, [0, 3, 5.5, 8, 12, 100]))
    np.testing.assert_array_equal(sums.masks.sum(0), patterns.sum((2, 3), dtype=float).ravel())
    np.testing.assert_array_equal(sums.total, patterns.sum((2, 3), dtype=float).ravel())


def test_counts_beyond_float32_are_added_exactly_too(disk_patterns):
    patterns = (disk_patterns * 1000 + np.arange(32)).astype(np.uint16)
    data = read(np.tile(patterns, (1, 1, 3, 3)), **KNOWN)
    sums = weighted_sums(data, rings(data, [0, 20, 40, 100]))
    total = 9 * patterns.sum((2, 3), dtype=np.int64).ravel()
    assert total.max() > 2**24
    np.testing.assert_array_equal(sums.masks.sum(0).astype(np.int64), total)


def test_centre_of_mass_is_the_mean_position(disk_patterns):
    sums = weighted_sums(read(disk_patterns, **KNOWN))
    ky, kx = np.indices((32, 32)) - 16
    flat = disk_patterns.reshape(-1, 32, 32)
    wanted = np.stack([(flat * ky).sum((1, 2)), (flat * kx).sum((1, 2))]) / flat.sum((1, 2))
    np.testing.assert_allclose(sums.centre_px, wanted, atol=1e-5)
    disk_patterns[0, 0] = 0
    disk_patterns[0, 1, 0, 0] = 0.5
    assert np.isnan(weighted_sums(read(disk_patterns, **KNOWN)).centre_px[:, 0]).all()


@pytest.mark.parametrize("options", [{}, {"flip_rows": True, "transpose": True}, {"bin": 2}, {"window": 40, "centre": (16, 16)}])
def test_sums_are_those_of_the_prepared_patterns(disk_patterns, options):
    disk_patterns[1, 2, 10:12, 10:12] = np.nan
    data = read(disk_patterns, **{**KNOWN, **options})
    mask = annulus(data, 0, 5, "px")
    patterns = np.where(data.mask, np.nan_to_num(data.patterns()), 0)
    np.testing.assert_allclose(virtual_images(data, mask[None])[0].ravel(), patterns[:, mask].sum(1), rtol=1e-6)


def test_the_file_the_array_and_the_threads_give_the_same_bits(disk_patterns, tmp_path, monkeypatch):
    monkeypatch.setattr(ptycho.sums, "_READ_BYTES", 7 * 32 * 32 * 2)
    patterns = np.random.default_rng(0).poisson(30, (9, 10, 32, 32)).astype(np.uint16)
    np.save(tmp_path / "a.npy", patterns)
    data, weights = read(tmp_path / "a.npy", **KNOWN), np.random.default_rng(1).random((3, 32, 32))
    sums = weighted_sums(data, weights, workers=1)
    for other, workers in ((data, 2), (read(patterns, **KNOWN), 1)):
        again = weighted_sums(other, weights, workers)
        np.testing.assert_array_equal(sums.masks, again.masks)
        np.testing.assert_array_equal(sums.moment_px, again.moment_px)


@pytest.mark.parametrize("brightness", [1, 50])
def test_marks_of_unmeasured_pixels_do_not_count(disk_patterns, brightness):
    patterns = (disk_patterns * brightness).astype(np.uint16)
    clean = weighted_sums(read(patterns, **KNOWN)).total
    marked = patterns.copy()
    marked[2, 3, 16, 16] = 65535
    total = weighted_sums(read(marked, **KNOWN)).total
    assert total[2 * 8 + 3] == clean[2 * 8 + 3] - patterns[2, 3, 16, 16]
    np.testing.assert_array_equal(np.delete(total, 19), np.delete(clean, 19))


def test_hot_pixels_and_missing_points_do_not_count(disk_patterns):
    clean = virtual_image(read(disk_patterns, **KNOWN), 0, 100)
    disk_patterns[:, :, 3, 3] = 5000
    data = read(disk_patterns, **KNOWN)
    image = virtual_image(data.without(np.array([9])), 0, 100)
    assert np.isnan(image[1, 1])
    assert np.nanmax(np.abs(image - clean)) < 10


def test_radii_are_the_same_in_every_unit(disk_patterns):
    data = read(disk_patterns, **KNOWN, pixel_invA=0.05)
    by_pixel = annulus(data, 4, 9, "px")
    np.testing.assert_array_equal(by_pixel, annulus(data, 4 * 0.05, 9 * 0.05, "1/Å"))
    mrad = 0.05 * data.geometry.wavelength_A * 1e3
    np.testing.assert_array_equal(by_pixel, annulus(data, 4 * mrad, 9 * mrad))
    np.testing.assert_array_equal(by_pixel, annulus(data, 4 * mrad / 20, 9 * mrad / 20, "alpha"))
    parts = segments(data, 4, 9, 6, "px")
    np.testing.assert_array_equal(parts.sum(0), by_pixel)
    # Without a voltage the radius is that of the disk that is seen.
    assert annulus(read(disk_patterns), 0, 1, "alpha").sum() == pytest.approx(np.pi * 7.3**2, rel=0.08)


def test_what_cannot_be_is_said_in_one_line(disk_patterns):
    data = read(disk_patterns, **KNOWN, pixel_invA=0.05)
    with pytest.raises(RecipeError, match="no detector pixel is between these radii; the detector reaches to"):
        virtual_image(data, 500, 600)
    with pytest.raises(RecipeError, match=r"\(n, 32 x 32\) is needed"):
        virtual_images(data, np.ones((1, 5, 5)))
    with pytest.raises(RecipeError, match="some of them have no pixel"):
        segments(data, 0, 1, 9, "px")
    with pytest.raises(RecipeError, match='"mrad", "1/Å", "px" or "alpha"'):
        annulus(data, 0, 1, "cm")
    with pytest.raises(DataError, match="voltage_kV is not in the file"):
        annulus(read(disk_patterns, pixel_invA=0.05), 0, 5)
