"""How far a model is from data that were counted, in units of what the noise alone makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import gammaln, xlogy
from torch import Tensor

from ptycho.loss import Loss

#: The table of the expected deviance: ln of the least and greatest mean, and its entries.
_LOWEST, _HIGHEST, _ENTRIES = np.log(1e-8), np.log(200.0), 512
#: Noise within a tenth of Poisson's is Poisson's: the estimate is no better.
_POISSON_FROM = 0.9
#: Pairs of patterns for the scale of the noise.
_PAIRS = 64


class Batches(Protocol):
    """What gives patterns, such as :class:`ptycho.patterns.Patterns`."""

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, counts (B, ky, kx)) of each part of the plan."""
        ...


class Deviance:
    """Poisson deviance 2 sum [E ln(E / J) - E + J], J = I + f, E = D + f, and what a perfect model would have on average.

    The latter is 1 per pixel for many counts, but neither 1 nor a constant for few (2 I ln(1 / I) as I goes to 0, without ``floor_e`` f): it
    is summed up for each pixel of the model. The ratio of the two is 1 for a perfect model at any dose. ``scale`` is the variance of
    the noise over its mean: where an electron makes n counts, each worth 1 / n, counts have Poisson's law in units of 1 / n
    (quasi-likelihood; McCullagh & Nelder, Generalized Linear Models, 1989, ch. 9).
    """

    def __init__(self, floor_e: float, scale: float, device: torch.device) -> None:
        self.loss = Loss("poisson", floor_e)
        # Of very many counts it is 1 and their number does not matter.
        mean = np.minimum(np.exp(np.linspace(_LOWEST, _HIGHEST, _ENTRIES)) / scale, np.exp(_HIGHEST))
        table = scale * expected_deviance(mean, floor_e / scale)
        self.table = torch.from_numpy(table.astype(np.float32)).to(device)

    def measured(self, intensity: Tensor, counts: Tensor) -> Tensor:
        """Deviance of each pixel, same shape as ``counts``, which are finite."""
        return 2 * (self.loss.value(intensity, counts) - self.loss.least(counts))

    def expected(self, intensity: Tensor) -> Tensor:
        """Its mean over the noise if ``intensity`` is the truth; same shape, from a table in ln I."""
        place = (torch.log(intensity.clamp_min(1e-30)) - _LOWEST) * ((_ENTRIES - 1) / (_HIGHEST - _LOWEST))
        place = place.clamp(0, _ENTRIES - 1.001)
        low = place.long()
        return torch.lerp(self.table[low], self.table[low + 1], place - low)


def expected_deviance(mean: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Mean of 2 [E ln(E / J) - E + J] over counts D of Poisson's law about ``mean`` (n,), by summing its series."""
    most = mean.max()
    counts = np.arange(int(most + 12 * np.sqrt(most) + 40))[:, None]
    data, model = counts + floor, mean + floor
    deviance = 2 * (xlogy(data, data) - xlogy(data, model) - data + model)
    probability = np.exp(xlogy(counts, mean) - mean - gammaln(counts + 1))
    return (probability * deviance).sum(0)


def noise_scale(patterns: Batches, positions: NDArray[np.floating], train: NDArray[np.int64]) -> float:
    """Variance of the noise over its mean, in electrons, at most 1: from differences of patterns at neighbouring ``positions`` (N, 2).

    What the specimen changes between neighbours adds to it, so that it is an upper bound, close for few counts; 1, Poisson's, when it is
    about that or more. ``train`` are the positions to look at.
    """
    near = cKDTree(positions[train])
    first = np.unique(np.linspace(0, len(train) - 1, min(_PAIRS, len(train))).astype(np.int64))
    second = np.atleast_2d(near.query(positions[train[first]], min(2, len(train)))[1])[:, -1]
    difference = total = 0.0
    pairs = [np.array([train[a], train[b]]) for a, b in zip(first, second, strict=True) if a != b]
    for _, counts in patterns.batches(pairs) if pairs else ():
        known = torch.isfinite(counts).all(0)
        one, other = torch.where(known, counts, torch.zeros_like(counts)).double()
        difference += float((one - other).square().sum())
        total += float((one + other).sum())
    scale = difference / total if total > 0 else 1.0
    return 1.0 if scale > _POISSON_FROM else max(scale, 1e-3)
