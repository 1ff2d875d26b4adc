"""Weighted sums over the detector, at every scan point: any number of masks and the centre of mass in one pass over the patterns.

A stack of masks is one matrix product, (patterns, pixels) @ (pixels, masks), with the total and the two moments as further columns. Blocks
are small enough for a core's cache, and their borders do not depend on where the patterns are kept, so that neither do the sums.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.data import Dataset4D
from ptycho.errors import RecipeError
from ptycho.threads import single_threaded

#: Stored bytes that are read at once, and bytes of float32 patterns that are multiplied at once.
_READ_BYTES, _BLOCK_BYTES = 4 << 20, 2 << 20
#: float32 adds whole numbers exactly up to here.
_EXACT = 2**24


@dataclass(frozen=True, eq=False)
class Sums:
    """``masks`` (m, N) electrons on each mask, ``total`` (N,) on all pixels in use, ``moment_px`` (2, N) = sum of (ky, kx) times electrons.

    ky and kx count detector pixels from zero frequency.
    """

    masks: NDArray[np.float64]
    total: NDArray[np.float64]
    moment_px: NDArray[np.float64]

    @property
    def centre_px(self) -> NDArray[np.float64]:
        """Centre of mass (2, N) = (ky, kx) in pixels from zero frequency; NaN where there is no electron."""
        return self.moment_px / np.where(self.total > 0, self.total, np.nan)


def weighted_sums(data: Dataset4D, masks: NDArray[np.bool_ | np.floating] | None = None, workers: int | None = None) -> Sums:
    """Sums over ``masks`` (m, ky, kx), bool or any weights, of every pattern, in one pass; ``workers`` threads (default: as many as torch has).

    Pixels that ``data.mask`` leaves out, and those that were not measured in a pattern, count nothing. Whole electrons are added exactly.
    Raises RecipeError for masks of another shape, DataError of the file.
    """
    masks = np.zeros((0, *data.pattern_shape), bool) if masks is None else np.asarray(masks)
    if masks.ndim != 3 or masks.shape[1:] != data.pattern_shape:
        shape = f"{data.pattern_shape[0]} x {data.pattern_shape[1]}"
        raise RecipeError(f"masks have the shape {masks.shape}; (n, {shape}) is needed, {shape} being the pattern's")
    product = _Product(data, masks)
    workers = workers or torch.get_num_threads()
    step = max(1, _READ_BYTES // data.source.header.frame_bytes)
    parts = [np.arange(start, min(start + step, data.n_positions)) for start in range(0, data.n_positions, step)]
    # The number of threads of a matrix product is each thread's own: with more than one in a worker the last bits would depend on it.
    with single_threaded(), ThreadPoolExecutor(workers, "sums", torch.set_num_threads, (1,)) as pool:
        for _ in pool.map(product.add, parts):
            pass
    sums = np.ascontiguousarray(product.sums.T)
    return Sums(sums[3:], sums[0], sums[1:3])


class _Product:
    """Patterns times columns: total, two moments, masks."""

    def __init__(self, data: Dataset4D, masks: NDArray[np.bool_ | np.floating]) -> None:
        self.data = data
        ky, kx = (np.arange(n) - n // 2 for n in data.pattern_shape)
        pixels = np.ones(data.pattern_shape)
        columns = np.stack([pixels, ky[:, None] * pixels, kx * pixels, *masks]) * data.mask
        self.sums = np.empty((data.n_positions, len(columns)))
        self.columns = torch.from_numpy(columns.reshape(len(columns), -1)).float()
        self.step = max(8, _BLOCK_BYTES // (4 * pixels.size))
        self.kept = threading.local()  # each thread converts into the same memory again and again, which stays in its cache
        self.unchanged = data.preparation.keeps(data.source.header.dtype) and data.shifts_px is None

    def add(self, positions: NDArray[np.int64]) -> None:
        """The sums of these positions."""
        data = self.data
        stored, shifts = data.source.read(data.frames[positions]), data.shifts_of(positions)
        for start in range(0, len(positions), self.step):
            part = slice(start, start + self.step)
            sums = self._of_counts(stored[part]) if self.unchanged else None
            if sums is None:
                patterns = data.preparation.apply(stored[part], None if shifts is None else shifts[part])
                sums = self._of_patterns(torch.from_numpy(patterns).flatten(1))
            self.sums[positions[part]] = sums.numpy()

    def _of_counts(self, stored: NDArray[Any]) -> Tensor | None:
        """Sums of whole counts as stored; None when one of them may be the mark of a pixel that was not measured."""
        if not hasattr(self.kept, "buffer"):
            self.kept.buffer = torch.empty(self.step, self.columns.shape[1])
        patterns: Tensor = self.kept.buffer[: len(stored)]
        np.copyto(patterns.numpy(), stored.reshape(len(stored), -1), casting="unsafe")
        sums = self._product(patterns)
        largest = float(sums[:, 0].max())
        # Marks are the largest numbers of the type: to look for them would take as long as all the rest, and few electrons cannot hide one.
        if stored.dtype.itemsize > 1 and largest >= np.iinfo(stored.dtype).max - 1 and bool((stored >= np.iinfo(stored.dtype).max - 1).any()):
            return None
        return patterns.double() @ self.columns.T.double() if largest >= _EXACT else sums

    def _of_patterns(self, patterns: Tensor) -> Tensor:
        """Sums of electrons (n, pixels); NaN was not measured."""
        sums = self._product(patterns)
        largest = float(sums[:, 0].abs().max())
        if not np.isfinite(largest):  # to look for it in every pattern takes as long as the product
            patterns = torch.nan_to_num(patterns, posinf=0.0, neginf=0.0)
            sums = self._product(patterns)
            largest = float(sums[:, 0].abs().max())
        return patterns.double() @ self.columns.T.double() if largest >= _EXACT else sums

    def _product(self, patterns: Tensor) -> Tensor:
        """(n, columns). The narrow side first: the other order is slower by half."""
        return (self.columns @ patterns.T).T
