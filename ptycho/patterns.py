"""The measured patterns as the solvers need them: electrons, zero frequency in the corner, on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.data import Dataset4D
from ptycho.loss import Loss
from ptycho.memory import free_bytes
from ptycho.shards import Shard
from ptycho.views import View

#: Patterns are read and converted in blocks of about this many bytes.
_BLOCK_BYTES = 16 << 20
#: So many batches are read ahead: one is being read while another waits and a third is worked on.
_AHEAD = 2
#: So many patterns show what kind of numbers there are.
_SAMPLE = 32
#: What stands for "not measured" in the whole-number types, and the largest count that they hold.
_MARKS: dict[np.dtype[Any], tuple[int, int]] = {np.dtype(np.uint8): (255, 254), np.dtype(np.int16): (-1, 32767)}


class Patterns:
    """Batches of a data set. They stay in memory if they take less than ``data.memory_GB`` (half of what is free), else they are read ahead.

    In memory, whole counts stay whole numbers of 8 or 16 bits. Pixels that the mask leaves out are 0. ``missing`` tells that some other
    pixels of some patterns are NaN, not measured. ``view`` makes them coarser; ``mask`` (ky, kx), zero frequency in the centre, and
    ``mean_electrons`` per pattern are then those of the view, ``electrons_per_pixel`` remains that of the detector. ``sharing`` processes
    share what is free of the memory.
    """

    #: Which patterns are this process's: all.
    shard = Shard()

    def __init__(self, data: Dataset4D, device: torch.device, view: View | None = None, sharing: int = 1) -> None:
        self.data, self.device, self.view = data, device, view
        self.shape = data.pattern_shape if view is None else view.shape
        survey = data.survey()
        self.mask = data.mask if view is None else view.mask(data.mask)
        self.mean_electrons = data.beam_electrons if view is None else _seen(survey.mean_pattern, view, self.mask)
        self.electrons_per_pixel = survey.mean_electrons / (data.pattern_shape[0] * data.pattern_shape[1])
        self._masked = np.fft.ifftshift(~self.mask)
        self._adu = np.float32(data.preparation.adu_per_electron)
        self._unit = np.float32(1)
        self._buffer = self._stored = torch.empty(0, device=device)
        # Of a large file the survey has seen a part only.
        self.missing = survey.n_nonfinite > 0 or survey.n_negative > 0 or survey.n_surveyed < data.n_positions
        self._limit = free_bytes(device) / 2 / sharing if data.memory_GB is None else data.memory_GB * 1e9
        self._resident = self._load()
        if self._resident is not None:
            self.missing = self._has_marks(self._resident)

    def __len__(self) -> int:
        return self.data.n_positions

    @property
    def resident(self) -> bool:
        """True when the patterns are in memory."""
        return self._resident is not None

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, counts (B, ky, kx)) of each part of the plan; the next one overwrites the counts. Raises DataError of the file."""
        joined = torch.from_numpy(np.concatenate(plan)).to(self.device)
        indices = joined.split([len(part) for part in plan])
        if self._resident is not None:
            for index in indices:
                yield index, self.batch(index)
            return
        for index, counts in zip(indices, self._read_ahead(plan), strict=True):
            yield index, counts.to(self.device, non_blocking=True)

    def shares(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`batches`, of which a process needs to have only its own rows."""
        return self.batches(plan)

    def batch(self, index: Tensor) -> Tensor:
        """Counts (B, ky, kx) of the positions ``index``, in a buffer that the next call overwrites."""
        if self._resident is None:
            return torch.from_numpy(self._read(index.cpu().numpy())).to(self.device)
        if len(self._buffer) < len(index):
            self._buffer = torch.empty(len(index), *self.shape, device=self.device)
            self._stored = self._resident.new_empty(len(index), *self.shape) if self._resident.dtype != torch.float32 else self._buffer
        counts = self._buffer[: len(index)]
        stored = torch.index_select(self._resident, 0, index, out=self._stored[: len(index)])
        if stored.dtype == torch.float32:
            return stored
        counts.copy_(stored)
        if self._unit != 1:
            counts.div_(float(self._unit))
        return counts.masked_fill_(stored == self._mark(stored), torch.nan) if self.missing else counts

    def least(self, loss: Loss, mask: Tensor) -> Tensor:
        """The summed loss of a perfect model for each pattern, (N,) float64: what is above it is half the deviance."""
        sums = torch.empty(len(self), dtype=torch.float64, device=self.device)
        for index, counts in self.batches(self._blocks()):
            sums[index] = (loss.least(torch.nan_to_num(counts)) * mask * torch.isfinite(counts)).sum((1, 2), dtype=torch.float64)
        return sums

    def _read_ahead(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Each part of the plan, read by a thread while the caller works on the one before; where a GPU fetches it without a halt."""
        waiting: deque[Future[Tensor]] = deque()
        parts = iter(plan)
        with ThreadPoolExecutor(1, "reader") as reader:
            try:
                for part in parts:
                    waiting.append(reader.submit(self._read_pinned, part))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read_pinned(self, index: NDArray[np.int64]) -> Tensor:
        patterns = torch.from_numpy(self._read(index))
        return patterns.pin_memory() if self.device.type == "cuda" else patterns

    def _read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        seen = self.data.patterns(index)
        if self.view is not None:
            seen = self.view.apply(seen)
        patterns = np.fft.ifftshift(seen, axes=(-2, -1))
        patterns[:, self._masked] = 0
        return patterns

    def _load(self) -> Tensor | None:
        """All patterns in the smallest type that holds them exactly; None when they take more than the limit."""
        stored: NDArray[np.generic] | None = None
        kind: np.dtype[np.generic] = np.dtype(np.uint8)
        blocks = self._blocks()
        for number, part in enumerate(blocks):
            if not self._fits(kind):
                return None
            patterns = self._read(part)
            if number == 0 and self._adu != 1 and _packed(patterns, np.dtype(np.int16), np.float32(1)) is None:
                self._unit = self._adu  # counts of which an electron makes several are whole numbers still
            packed = _packed(patterns, kind, self._unit)
            while packed is None:
                kind = np.dtype(np.int16) if kind == np.uint8 else np.dtype(np.float32)
                if not self._fits(kind):
                    return None
                packed = _packed(patterns, kind, self._unit)
            if stored is None or stored.dtype != kind:
                stored = self._widened(stored, kind, part[0])
            stored[part] = packed
        return None if stored is None else torch.from_numpy(stored).to(self.device)

    def _fits(self, kind: np.dtype[np.generic]) -> bool:
        return len(self) * self.shape[0] * self.shape[1] * kind.itemsize < self._limit

    def _widened(self, stored: NDArray[np.generic] | None, kind: np.dtype[np.generic], done: int) -> NDArray[np.generic]:
        """What is loaded already, ``done`` patterns, in a larger type."""
        wider = np.empty((len(self), *self.shape), kind)
        step = len(self._blocks()[0])
        for start in range(0, done, step) if stored is not None else ():
            part = slice(start, min(start + step, done))
            wider[part] = _packed(_unpacked(stored[part], self._unit), kind, self._unit)  # type: ignore[index]
        return wider

    def _has_marks(self, resident: Tensor) -> bool:
        if resident.dtype == torch.float32:
            return bool(torch.isnan(resident.sum()))
        return any(bool((part == self._mark(part)).any()) for part in resident.split(4096))

    def _mark(self, stored: Tensor) -> int:
        return 255 if stored.dtype == torch.uint8 else -1

    def _blocks(self) -> list[NDArray[np.int64]]:
        height, width = self.data.pattern_shape
        step = max(1, _BLOCK_BYTES // (4 * height * width))
        return [np.arange(start, min(start + step, len(self))) for start in range(0, len(self), step)]


def pixel_bytes(data: Dataset4D, view: View | None = None) -> int:
    """Bytes that a pixel takes in memory, as 32 patterns spread over the scan and the brightest pixel of the survey show."""
    seen = data.patterns(np.unique(np.linspace(0, data.n_positions - 1, _SAMPLE).astype(np.int64)))
    seen = seen if view is None else view.apply(seen)
    seen = np.append(seen[:, data.mask if view is None else view.mask(data.mask)], np.float32(np.rint(data.survey().max_electrons)))
    units = (np.float32(1), np.float32(data.preparation.adu_per_electron))
    return next((kind.itemsize for kind in _MARKS if any(_packed(seen, kind, unit) is not None for unit in units)), 4)


def _seen(mean_pattern: NDArray[np.floating], view: View, mask: NDArray[np.bool_]) -> float:
    """Electrons per pattern that the view catches."""
    return float(view.apply(np.nan_to_num(mean_pattern).astype(np.float32)[None])[0][mask].sum(dtype=np.float64))


def _packed(patterns: NDArray[np.float32], kind: np.dtype[np.generic], unit: np.float32) -> NDArray[np.generic] | None:
    """Patterns times unit as this type, if they come back from it exactly; None if not."""
    if kind == np.float32:
        return patterns
    mark, most = _MARKS[kind]
    known = ~np.isnan(patterns)
    counts = np.rint(patterns * unit)
    if not bool(((counts >= 0) & (counts <= most) & (counts / unit == patterns) | ~known).all()):
        return None
    return np.where(known, counts, np.float32(mark)).astype(kind)


def _unpacked(stored: NDArray[np.generic], unit: np.float32) -> NDArray[np.float32]:
    return np.where(stored == _MARKS[stored.dtype][0], np.float32(np.nan), stored.astype(np.float32) / unit)
