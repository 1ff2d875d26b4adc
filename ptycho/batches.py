"""Which positions go together: random, and yet spread evenly over the field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hilbert_order(positions: NDArray[np.floating]) -> NDArray[np.int64]:
    """Order (N,) of positions (N, 2) along a Hilbert curve through their bounding box: neighbours in the list are neighbours in the field.

    The curve of Hilbert, Math. Ann. 38 (1891) 459, on a grid of 4096 x 4096 cells.
    """
    side = 1 << 12
    low, span = positions.min(0), np.ptp(positions, axis=0).max() or 1.0
    y, x = np.minimum(((positions - low) / span * side).astype(np.int64), side - 1).T
    distance = np.zeros(len(positions), dtype=np.int64)
    s = side // 2
    while s:
        right, up = (x & s) > 0, (y & s) > 0
        distance += s * s * ((3 * right) ^ up)
        # Turn the quadrant so that the next level starts in its lower left corner.
        flip = ~up & right
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(~up, y, x), np.where(~up, x, y)
        s //= 2
    return np.argsort(distance, kind="stable")


def stratified_batches(order: NDArray[np.int64], batch: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Batches of at most ``batch`` positions for one epoch, each position once; a function of (seed, epoch) and nothing else.

    The list ``order`` is cut into strata as long as there are batches; each batch takes one random member of every stratum, so that
    their sizes differ by one at most (the last stratum may be shorter).
    """
    random = np.random.default_rng([seed, epoch])
    count = len(order)
    batches = -(-count // batch)
    strata = -(-count // batches)
    rank = random.permuted(np.tile(np.arange(batches), (strata, 1)), axis=1).ravel()[:count]
    ends = np.cumsum(np.bincount(rank, minlength=batches))[:-1]
    return np.split(order[np.argsort(rank, kind="stable")], ends)
