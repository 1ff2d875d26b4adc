"""Batches: neighbours along the curve are neighbours in the field, and every batch sees all of it."""

import numpy as np
import pytest
from small import raster_px

from ptycho.batches import hilbert_order, stratified_batches


@pytest.mark.parametrize("side", [2, 8, 16])
def test_hilbert_neighbours_are_neighbours(side):
    positions = raster_px((side, side), 1.0)
    steps = np.abs(np.diff(positions[hilbert_order(positions)], axis=0)).sum(1)
    np.testing.assert_array_equal(steps, 1)


def test_hilbert_keeps_scattered_positions_close():
    positions = np.random.default_rng(0).uniform(0, 1, (1000, 2)) * [3, 1]
    order = hilbert_order(positions)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    steps = np.linalg.norm(np.diff(positions[order], axis=0), axis=1)
    assert np.median(steps) < 2 * np.sqrt(3 / 1000)


def test_hilbert_does_not_depend_on_scale_and_origin():
    positions = np.random.default_rng(0).uniform(0, 1, (200, 2))
    np.testing.assert_array_equal(hilbert_order(positions), hilbert_order(positions * 64 - 128))


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (1, 32), (5, 32), (33, 32), (64, 32), (100, 7), (100, 1), (100, 100), (1023, 32)])
def test_each_position_once_in_batches_of_equal_size(count, batch):
    plan = stratified_batches(np.random.default_rng(0).permutation(count), batch, seed=3, epoch=2)
    np.testing.assert_array_equal(np.sort(np.concatenate(plan)), np.arange(count))
    sizes = [len(part) for part in plan]
    assert len(plan) == -(-count // batch)
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch


def test_a_function_of_seed_and_epoch():
    order = np.arange(100)

    def flat(seed, epoch):
        return np.concatenate(stratified_batches(order, 8, seed, epoch)).tolist()

    np.random.seed(1)
    first = flat(0, 1)
    np.random.seed(2)
    assert flat(0, 1) == first
    assert len({tuple(flat(seed, epoch)) for seed in (0, 1) for epoch in (1, 2, 3)}) == 6


def test_every_batch_covers_the_field():
    positions = raster_px((32, 32), 1.0)
    for batch in stratified_batches(hilbert_order(positions), 32, 0, 1):
        quadrant = (positions[batch] > 15.5) @ [2, 1]
        assert set(np.bincount(quadrant, minlength=4)) == {8}


def test_pairs_of_positions_meet_in_many_batches():
    together = np.zeros((64, 64))
    for epoch in range(1, 41):
        for batch in stratified_batches(np.arange(64), 8, 0, epoch):
            together[np.ix_(batch, batch)] += 1
    # Two of one stratum never meet, all others do.
    strata = np.arange(64) // 8
    assert ((together > 0) == ((strata[:, None] != strata) | np.eye(64, dtype=bool))).mean() > 0.98
