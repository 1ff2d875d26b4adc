"""What judges is apart from what is judged: laws of the held-out set."""

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree
from small import raster_px

from ptycho.holdout import hold_out


def turned(positions, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return positions @ np.array([[c, s], [-s, c]])


SCANS = {
    "raster": raster_px((48, 48), 0.7),
    "turned raster": turned(raster_px((40, 60), 0.7), 17),
    "oblong steps": raster_px((40, 60), 1.0) * [0.5, 0.9],
    "jitter": raster_px((40, 40), 0.7) + np.random.default_rng(0).normal(0, 0.15, (1600, 2)),
    "spiral": np.stack([0.4 * np.sqrt(np.arange(2000)) * f(2.39996 * np.arange(2000)) for f in (np.sin, np.cos)], -1),
    "twice over": np.concatenate([raster_px((30, 30), 0.7)] * 2),
}


@pytest.mark.parametrize("scan", SCANS)
def test_blocks_have_a_guard_ring_and_take_little(scan):
    positions = SCANS[scan]
    split = hold_out(positions, 19.0)
    count = len(positions)
    assert np.all(np.diff(split.train) > 0) and np.all(np.diff(split.held) > 0)
    assert not np.intersect1d(split.train, split.held).size and split.reason == ""
    assert len(split.held) >= 8 and 0.004 < len(split.held) / count < 0.02
    assert len(split.train) >= 0.96 * count
    # No pattern that is solved for lies within a step of one that judges.
    step = math.sqrt(np.prod(np.ptp(positions, axis=0)) / count)
    assert cKDTree(positions[split.train]).query(positions[split.held])[0].min() > 1.4 * step
    # No hole is wide: every place in the field has a probe within a few steps, and the rim is left alone.
    assert cKDTree(positions[split.train]).query(positions)[0].max() < 3 * step
    low, high = positions.min(0), positions.max(0)
    assert (positions[split.held] > low + step).all() and (positions[split.held] < high - step).all()


def test_the_seed_and_nothing_else_decides():
    positions = SCANS["raster"]
    first, again, other = (hold_out(positions, 19.0, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.held, again.held)
    np.testing.assert_array_equal(first.train, again.train)
    assert not np.array_equal(first.held, other.held)
    moved = hold_out(turned(positions, 90) * 2 + 5, 38.0)
    assert len(moved.held) == len(first.held)


def test_narrow_probes_leave_single_positions_and_sparse_scans_none():
    positions = SCANS["raster"]
    single = hold_out(positions, 3.0)
    assert len(single.held) + len(single.train) == len(positions) and 8 <= len(single.held) <= 0.01 * len(positions)
    assert cKDTree(positions[single.held]).query(positions[single.held], 2)[0][:, 1].min() > 1.4 * 0.7
    small = hold_out(raster_px((15, 15), 0.7), 19.0)
    assert len(small.held) == 8 and len(small.train) == 217
    for given, diameter, words in ((positions, 1.5, "scan step"), (positions[:80], 19.0, "too few"), (np.ones((200, 2)), 19.0, "one place")):
        sparse = hold_out(given, diameter)
        assert len(sparse.held) == 0 and len(sparse.train) == len(given) and words in sparse.reason


def test_held_out_blocks_are_spread_over_the_field():
    positions = raster_px((128, 128), 0.5)
    held = positions[hold_out(positions, 19.0).held]
    quadrants = (held > 32).astype(int) @ [2, 1]
    assert np.bincount(quadrants, minlength=4).min() > 0.1 * len(held)
