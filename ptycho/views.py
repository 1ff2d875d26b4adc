"""Coarser looks at the patterns: fewer, larger pixels make a stage of a run many times faster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """The central ``shape`` = (ky, kx) pixels after ``bin`` x ``bin`` pixels were added up around the zero frequency.

    A larger pixel means a smaller window in real space, fewer pixels a coarser object. With an even ``bin`` the outer pixels of a
    sum are shared with the neighbours, half each, so that the zero frequency stays in the middle of its pixel.
    """

    bin: int
    shape: tuple[int, int]

    @property
    def blur_px(self) -> float:
        """How much wider a shared pixel sees than its own area: the standard deviation that the model has to add, in the view's pixels."""
        # Variances in fine pixels: of the taps and the pixel under each, less that of the wide pixel.
        taps = np.arange(-(self.bin // 2), self.bin // 2 + 1)
        weights = np.where((self.bin % 2 == 0) & (abs(taps) == self.bin // 2), 0.5, 1.0)
        extra = float((weights * taps**2).sum() / self.bin + 1 / 12 - self.bin**2 / 12)
        return float(np.sqrt(max(extra, 0.0))) / self.bin

    def apply(self, patterns: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, ky, kx) with zero frequency at (ky // 2, kx // 2) as the view sees them; NaN wherever a NaN took part."""
        return self._along(self._along(patterns, 1), 2)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Pixels (ky, kx) of the view all of whose parts are used and measured."""
        return self.apply(np.where(mask, np.float32(0), np.float32(np.nan))[None])[0] == 0

    def _along(self, patterns: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        size, kept, half = patterns.shape[axis], self.shape[axis - 1], self.bin // 2
        first = size // 2 - kept // 2 * self.bin
        total: NDArray[np.floating] = np.zeros(1, np.float32)
        for tap in range(-half, half + 1):
            places = first + tap + self.bin * np.arange(kept)
            part = np.take(patterns, np.clip(places, 0, size - 1), axis)
            # What lies beyond the edge was not measured.
            outside = np.expand_dims((places < 0) | (places >= size), 2 - axis)[None]
            part = np.where(outside, np.float32(np.nan), part)
            total = total + part * np.float32(0.5 if self.bin % 2 == 0 and abs(tap) == half else 1.0)
        return total.astype(np.float32, copy=False)
