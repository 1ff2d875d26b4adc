"""What is done to stored frames before anything else sees them: dark, gain, orientation, crop, bad values, binning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import RecipeError


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is done to each pattern, in this order: dark, gain, transpose, flips, crop, mark what was not measured, bin.

    ``dark`` is in stored units and in the stored orientation; ``detector_crop`` (y0, y1, x0, x1) is in the flipped frame;
    ``mask`` (True = use) is on the final grid. Transpose and flips together make every quarter turn.
    """

    dark: NDArray[Any] | None = None
    adu_per_electron: float = 1.0
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    detector_crop: tuple[int, int, int, int] | None = None
    bin: int = 1
    mask: NDArray[np.bool_] | None = None

    def cropped_shape(self, frame_shape: tuple[int, int]) -> tuple[int, int]:
        """(ky, kx) before binning. Raises RecipeError when the crop leaves the frame or binning does not divide it."""
        height, width = frame_shape[::-1] if self.transpose else frame_shape
        y0, y1, x0, x1 = self.detector_crop or (0, height, 0, width)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise RecipeError(f"data.detector_crop = {list(self.detector_crop or ())}: y0, y1, x0, x1 within {height} x {width} pixels are needed")
        if self.bin < 1 or (y1 - y0) % self.bin or (x1 - x0) % self.bin:
            raise RecipeError(
                f"data.bin = {self.bin} does not divide the pattern of {y1 - y0} x {x1 - x0} pixels; choose a divisor or a detector_crop"
            )
        return y1 - y0, x1 - x0

    def pattern_shape(self, frame_shape: tuple[int, int]) -> tuple[int, int]:
        """(ky, kx) after crop and binning. Raises RecipeError as ``cropped_shape`` does."""
        height, width = self.cropped_shape(frame_shape)
        return height // self.bin, width // self.bin

    def electrons(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Electrons float32 (n, ky, kx) of stored frames, turned and cropped, not yet marked or binned."""
        patterns = stored.astype(np.float32)
        if stored.dtype.kind == "u" and stored.dtype.itemsize > 1:
            # Counting detectors store the largest value for pixels that saturated or are switched off.
            patterns[stored == np.iinfo(stored.dtype).max] = np.nan
        if self.dark is not None:
            patterns -= self.dark.astype(np.float32)
        if self.adu_per_electron != 1:
            patterns /= np.float32(self.adu_per_electron)
        if self.transpose:
            patterns = patterns.swapaxes(1, 2)
        if self.flip_rows:
            patterns = patterns[:, ::-1]
        if self.flip_columns:
            patterns = patterns[:, :, ::-1]
        if self.detector_crop is not None:
            y0, y1, x0, x1 = self.detector_crop
            patterns = patterns[:, y0:y1, x0:x1]
        return patterns

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Prepared patterns float32 (n, ky, kx) of stored frames; what was not measured is NaN."""
        patterns = self.electrons(stored)
        patterns[~measured(patterns)] = np.nan
        return np.ascontiguousarray(bin_sum(patterns, self.bin))


def bin_sum(patterns: NDArray[Any], factor: int) -> NDArray[Any]:
    """Sum of factor x factor pixels over the last two axes, which factor divides."""
    if factor == 1:
        return patterns
    *lead, height, width = patterns.shape
    blocks: NDArray[Any] = patterns.reshape(*lead, height // factor, factor, width // factor, factor).sum((-3, -1))
    return blocks


def measured(patterns: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Finite and not below -1 electron: small negative values are detector noise and stay."""
    good: NDArray[np.bool_] = np.isfinite(patterns) & (patterns >= -1)
    return good
