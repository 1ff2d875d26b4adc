"""Which patterns are whose, when several processes share them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.batches import hilbert_order
from ptycho.ranks import Ranks


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of the patterns that this process holds: those whose ``owner`` (N,) is its number; None: all.

    The same from the first batch to the last. A batch, which has a member of every part of the field, has about as many of each process.
    """

    ranks: Ranks = field(default_factory=Ranks)
    owner: Tensor | None = None

    @classmethod
    def of(cls, positions: NDArray[np.floating], ranks: Ranks, device: torch.device) -> Shard:
        """Runs of equal length along a Hilbert curve through the ``positions`` (N, 2)."""
        if ranks.count == 1:
            return cls(ranks)
        owner = np.empty(len(positions), np.int64)
        owner[hilbert_order(positions)] = np.arange(len(positions)) * ranks.count // len(positions)
        # Rounding of the positions must not leave a pattern without an owner, or with two.
        return cls(ranks, torch.from_numpy(ranks.told(owner)).to(device))

    def rows(self, index: Tensor) -> Tensor | None:
        """Rows (n,) of a batch of the positions ``index`` (B,) that are this process's, None for all of them."""
        return None if self.owner is None else torch.nonzero(self.owner[index] == self.ranks.index)[:, 0]
