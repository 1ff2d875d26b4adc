"""The measured patterns as the solvers need them: electrons, zero frequency in the corner, on the device."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from ptycho.data import Dataset4D
from ptycho.loss import Loss

#: Patterns are read and converted in blocks of about this many bytes.
_BLOCK_BYTES = 32 * 2**20


class Patterns:
    """Batches of a data set. They stay in memory if they take less than half of what is free, else each batch is read from the file.

    ``missing`` tells that some pixels of some patterns are NaN, not measured.
    """

    def __init__(self, data: Dataset4D, device: torch.device) -> None:
        self.data, self.device = data, device
        self.shape = data.pattern_shape
        self._buffer = torch.empty(0, device=device)
        self._resident: Tensor | None = None
        size = 4 * data.n_positions * self.shape[0] * self.shape[1]
        survey = data.survey()
        # Of a large file the survey has seen a part only.
        self.missing = survey.n_nonfinite > 0 or survey.n_negative > 0 or survey.n_surveyed < data.n_positions
        if size < _free_bytes(device) / 2:
            self._resident = self._load()
            self.missing = bool(torch.isnan(self._resident.sum()))

    def __len__(self) -> int:
        return self.data.n_positions

    def batch(self, index: Tensor) -> Tensor:
        """Counts (B, ky, kx) of the positions ``index``, in a buffer that the next call overwrites."""
        if self._resident is None:
            return self._read(index.cpu().numpy()).to(self.device)
        if len(self._buffer) < len(index):
            self._buffer = self._resident.new_empty(len(index), *self.shape)
        return torch.index_select(self._resident, 0, index, out=self._buffer[: len(index)])

    def least(self, loss: Loss, mask: Tensor) -> Tensor:
        """The summed loss of a perfect model for each pattern, (N,) float64: what is above it is half the deviance."""
        sums = torch.empty(len(self), dtype=torch.float64, device=self.device)
        for block in self._blocks():
            counts = self.batch(torch.from_numpy(block).to(self.device))
            sums[block[0] : block[-1] + 1] = (loss.least(torch.nan_to_num(counts)) * mask * torch.isfinite(counts)).sum((1, 2))
        return sums

    def _load(self) -> Tensor:
        resident = torch.empty(len(self), *self.shape, dtype=torch.float32, device=self.device)
        for block in self._blocks():
            resident[block[0] : block[-1] + 1] = self._read(block).to(self.device)
        return resident

    def _read(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(np.fft.ifftshift(self.data.patterns(index), axes=(-2, -1)))

    def _blocks(self) -> list[np.ndarray]:
        step = max(1, _BLOCK_BYTES // (4 * self.shape[0] * self.shape[1]))
        return [np.arange(start, min(start + step, len(self))) for start in range(0, len(self), step)]


def _free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 * 2**30
