"""The patterns of a data set, held by several processes, a part by each."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.data import Dataset4D
from ptycho.errors import DataError
from ptycho.loss import Loss
from ptycho.patterns import Patterns
from ptycho.ranks import Ranks
from ptycho.shards import Shard
from ptycho.views import View

logger = logging.getLogger("ptycho")


def patterns_of(data: Dataset4D, device: torch.device, view: View | None, ranks: Ranks) -> Patterns:
    """All patterns for a process by itself, else its part of them. Raises DataError when there are fewer patterns than processes."""
    return Patterns(data, device, view) if ranks.count == 1 else SharedPatterns(data, device, view, ranks)


class SharedPatterns(Patterns):
    """As :class:`Patterns`, numbered as in the whole data set; ``held`` are those that this process has."""

    def __init__(self, data: Dataset4D, device: torch.device, view: View | None, ranks: Ranks) -> None:
        # Not the parent's own beginning, which would load everything: it is that of the part.
        if data.n_positions < ranks.count:
            raise DataError(f"{data.name}: {data.n_positions} patterns are too few for {ranks.count} processes; start fewer of them")
        self.shard = Shard.of(data.geometry.positions_A, ranks, device)
        assert self.shard.owner is not None
        self._mine = self.shard.owner.cpu().numpy() == ranks.index
        self._place = np.cumsum(self._mine) - 1
        self.held = Patterns(data.part(self._mine), device, view, ranks.local_count if device.type == "cpu" else 1)
        self.data, self.device, self.view, self.shape, self.mask = data, device, view, self.held.shape, self.held.mask
        self.mean_electrons, self.electrons_per_pixel = self.held.mean_electrons, self.held.electrons_per_pixel
        self.missing = ranks.any(self.held.missing)
        logger.info(f"{ranks.count} processes, the first with {len(self.held)} of {len(self)} patterns")

    @property
    def resident(self) -> bool:
        """True when this process's patterns are in memory."""
        return self.held.resident

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """As the parent's, complete in every process: each gives what it has. For a few patterns; all processes have to ask for the same."""
        for index, counts in self._filled(plan, 0.0):
            yield index, self.shard.ranks.sum_(counts)

    def shares(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`batches`, with NaN in the rows of other processes."""
        return self._filled(plan, math.nan)

    def batch(self, index: Tensor) -> Tensor:
        """Counts (B, ky, kx) of the positions ``index``, complete in every process."""
        return next(self.batches([index.cpu().numpy()]))[1]

    def least(self, loss: Loss, mask: Tensor) -> Tensor:
        """The summed loss of a perfect model for each pattern of all, (N,) float64."""
        sums = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        sums[torch.from_numpy(self._mine).to(self.device)] = self.held.least(loss, mask)
        return self.shard.ranks.sum_(sums)

    def _filled(self, plan: Sequence[NDArray[np.int64]], other: float) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, counts) of each part of the plan with this process's rows, and ``other`` in the rest."""
        own = [self._place[part[self._mine[part]]] for part in plan]
        read = self.held.batches([numbers for numbers in own if len(numbers)]) if any(map(len, own)) else iter(())
        for part, numbers in zip(plan, own, strict=True):
            counts = torch.full((len(part), *self.shape), other, device=self.device)
            if len(numbers):
                counts[torch.from_numpy(self._mine[part]).to(self.device)] = next(read)[1]
            yield torch.from_numpy(part).to(self.device), counts
