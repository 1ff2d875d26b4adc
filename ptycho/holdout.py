"""Patterns that no step is taken on: what judges a model must not have made it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ptycho.batches import hilbert_order

#: With fewer positions every pattern is needed.
_FEWEST = 100
#: So many held-out patterns at least, and of the scan at most this share is taken from the solvers, guards included.
_FEWEST_HELD, _MOST_SHARE = 8, 0.04
#: More blocks say nothing more.
_MOST_BLOCKS = 64
#: Positions of a block, the guard's reach in scan steps (the eight neighbours), and about how many are gone with both.
_BLOCK, _GUARD, _HOLE = 4, 1.5, 16
#: A hole in the scan must be narrower than this share of the probe's diameter, or its middle is seen by few other probes.
_WIDEST_HOLE = 0.5
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Split:
    """Numbers of the positions that are solved for, ``train`` (n,), and that judge, ``held`` (m,), both ascending; guards are in neither.

    ``reason`` says why nothing is held out, where it is so.
    """

    train: NDArray[np.int64] = field(repr=False)
    held: NDArray[np.int64] = field(repr=False)
    reason: str = ""

    @classmethod
    def whole(cls, count: int, reason: str = "") -> Split:
        """All of ``count`` positions are solved for."""
        return cls(np.arange(count), np.arange(0), reason)


def hold_out(positions: NDArray[np.floating], diameter: float, seed: int = 0, share: float = _MOST_SHARE) -> Split:
    """Small blocks of positions, spread over the field, each with a guard ring; a function of the arguments and nothing else.

    ``positions`` (N, 2) and the ``diameter`` of the probe have the same unit. Neighbouring probes see the same atoms, so that a block of
    four is held out whole and its neighbours belong to neither set. Where such a hole, four steps wide, would be too wide for
    the probe, or the scan too small for it, single positions without a guard are taken; where even these leave a hole, none. At most
    ``share`` of the scan is taken from the solvers.
    """
    count = len(positions)
    if count < _FEWEST:
        return Split.whole(count, f"{count} positions are too few to hold some out")
    tree = cKDTree(positions)
    spacing = _spacing(positions, tree)
    if not spacing > 0:
        return Split.whole(count, "all positions are one place")
    if 2 * spacing > _WIDEST_HOLE * diameter:
        return Split.whole(count, f"a scan step of {spacing / diameter:.0%} of the probe's diameter leaves no pattern to spare")
    blocks = 4 * spacing <= _WIDEST_HOLE * diameter and share * count >= _HOLE * _FEWEST_HELD / _BLOCK
    size, guard = (_BLOCK, _GUARD * spacing) if blocks else (1, 0.0)
    budget = share * count if blocks else max(share / 4 * count, _FEWEST_HELD)
    taken, held = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    random = np.random.default_rng([seed, 0])  # the epochs' batches have the numbers from 1 on
    for centre in _spread(positions, _inner(tree, max(3 * spacing, diameter / 4)), random):
        block = np.atleast_1d(tree.query(positions[centre] + spacing / 2 * (size > 1), size)[1])
        hole = np.unique(np.concatenate([np.asarray(near) for near in tree.query_ball_point(positions[block], guard)])).astype(np.int64)
        around = np.concatenate([np.asarray(near) for near in tree.query_ball_point(positions[hole], 1.5 * spacing)]).astype(np.int64)
        if taken[around].any():
            continue  # two holes side by side would be one too wide
        if taken.sum() + len(hole) > budget or held.sum() >= _MOST_BLOCKS * size:
            break
        taken[hole] = held[block] = True
    if held.sum() < _FEWEST_HELD:
        return Split.whole(count, "the positions leave no room for patterns to hold out")
    return Split(np.flatnonzero(~taken), np.flatnonzero(held))


def illuminated_diameter(intensity: NDArray[np.floating]) -> float:
    """Diameter in pixels of the disk that is as wide as ``intensity`` (y, x): of area (sum I)^2 / sum I^2."""
    area = float(intensity.sum()) ** 2 / float((intensity**2).sum())
    return 2 * float(np.sqrt(area / np.pi))


def _spacing(positions: NDArray[np.floating], tree: cKDTree) -> float:
    """A typical step: of the area per position, or of the neighbours on a line."""
    area = float(np.prod(np.ptp(positions, axis=0)))
    nearest = np.asarray(tree.query(positions, 2)[0])[:, 1]
    return max(float(np.sqrt(area / len(positions))), float(np.median(nearest)))


def _inner(tree: cKDTree, radius: float) -> NDArray[np.int64]:
    """Positions with about as many others around them as anywhere: not those at the rim."""
    neighbours = tree.query_ball_point(tree.data, radius, return_length=True)
    return np.flatnonzero(neighbours >= 0.75 * np.percentile(neighbours, 90))


def _spread(positions: NDArray[np.floating], inner: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """``inner`` in an order of which every beginning is spread evenly over the field: golden-ratio steps along a space-filling curve."""
    ordered = inner[hilbert_order(positions[inner])]
    places = (random.random() + _GOLDEN * np.arange(len(ordered))) % 1
    return ordered[(places * len(ordered)).astype(np.int64)]
