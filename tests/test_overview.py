"""A first look at a data set: what the picture of ``ptycho info -o`` shows."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho.io import read
from ptycho.overview import overview
from ptycho.plot import overview_png

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5}


def test_bright_field_is_what_falls_into_the_disk(disk_patterns):
    disk_patterns[2, 3] *= 3
    look = overview(read(disk_patterns, **KNOWN))
    assert look.disk == pytest.approx((16, 16, 7.3), abs=0.1) and look.stride == 1
    y, x = np.indices((32, 32))
    inside = np.hypot(y - look.disk[0], x - look.disk[1]) < look.disk[2]
    np.testing.assert_allclose(look.bright_field, disk_patterns[..., inside].sum(-1))
    np.testing.assert_allclose(look.mean_pattern, disk_patterns.mean((0, 1)), rtol=1e-6)
    counts = np.bincount(disk_patterns.astype(int).ravel())
    centres = (look.edges[:-1] + look.edges[1:]) / 2
    np.testing.assert_array_equal(look.counts[:20], counts[:20])
    np.testing.assert_allclose(centres[:20], np.arange(20), atol=1e-9)


def test_gaps_are_empty_and_masked_pixels_do_not_count(disk_patterns):
    data = read(disk_patterns, **KNOWN)
    look = overview(data.without(np.array([5, 20])))
    assert np.argwhere(np.isnan(look.bright_field)).tolist() == [[0, 5], [2, 4]]
    disk_patterns[:, :, 16, 16] = np.nan
    assert np.isnan(overview(read(disk_patterns, **KNOWN)).mean_pattern[16, 16])


def test_of_a_large_file_every_nth_point_is_looked_at(disk_patterns, monkeypatch):
    monkeypatch.setattr("ptycho.overview._ALL_BYTES", 0)
    monkeypatch.setattr("ptycho.overview._MOST_POINTS", 12)
    look = overview(read(disk_patterns, **KNOWN))
    assert look.stride == 2 and look.bright_field.shape == (3, 4)
    np.testing.assert_array_equal(look.bright_field, overview_of_all(disk_patterns, monkeypatch)[::2, ::2])


def overview_of_all(patterns, monkeypatch):
    monkeypatch.undo()
    return overview(read(patterns, **KNOWN)).bright_field


@pytest.mark.parametrize("step", [None, 0.5])
def test_the_picture_is_a_png(disk_patterns, step):
    for patterns in (disk_patterns, disk_patterns[1:2, 1:2] / 3, disk_patterns[:1]):
        png = overview_png(overview(read(patterns, adu_per_electron=1, **KNOWN)), "scan", step)
        assert png.startswith(b"\x89PNG") and len(png) > 5000
