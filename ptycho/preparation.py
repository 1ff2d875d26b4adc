"""What is done to stored frames before anything else sees them: bad values, dark, gain, orientation, window, binning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import RecipeError

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is done to each pattern, in this order: bad values, dark, gain, transpose, flips, window, bin.

    ``dark`` (ADU), ``gain`` (a factor on each pixel) and ``bad_pixels`` (True: never use) are in the stored orientation; stored values above
    ``saturation`` are not measurements. ``box`` (y0, y1, x0, x1) is the part of the turned frame that is kept; what of it lies outside of
    the frame is not measured. ``mask`` (True = use) is on the final grid. Transpose and flips together make every quarter turn.
    """

    dark: NDArray[Any] | None = None
    gain: NDArray[Any] | None = None
    bad_pixels: NDArray[np.bool_] | None = None
    saturation: float | None = None
    adu_per_electron: float = 1.0
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    box: Box | None = None
    bin: int = 1
    mask: NDArray[np.bool_] | None = None

    def keeps(self, stored: np.dtype[Any]) -> bool:
        """True when unsigned counts are patterns as they are stored, but for the marks of what was not measured."""
        images = (self.dark, self.gain, self.bad_pixels, self.saturation, self.box)
        turned = self.transpose or self.flip_rows or self.flip_columns
        return stored.kind in "bu" and all(image is None for image in images) and not turned and self.bin == 1 and self.adu_per_electron == 1

    def turned_shape(self, frame_shape: tuple[int, int]) -> tuple[int, int]:
        """(ky, kx) of a frame after transposition."""
        return (frame_shape[1], frame_shape[0]) if self.transpose else frame_shape

    def cropped_shape(self, frame_shape: tuple[int, int]) -> tuple[int, int]:
        """(ky, kx) before binning. Raises RecipeError when binning does not divide it."""
        height, width = self.turned_shape(frame_shape)
        y0, y1, x0, x1 = self.box or (0, height, 0, width)
        if self.bin < 1 or (y1 - y0) % self.bin or (x1 - x0) % self.bin:
            raise RecipeError(
                f"data.bin = {self.bin} does not divide the pattern of {y1 - y0} x {x1 - x0} pixels; choose a divisor, a window or a detector_crop"
            )
        return y1 - y0, x1 - x0

    def pattern_shape(self, frame_shape: tuple[int, int]) -> tuple[int, int]:
        """(ky, kx) after window and binning. Raises RecipeError as ``cropped_shape`` does."""
        height, width = self.cropped_shape(frame_shape)
        return height // self.bin, width // self.bin

    def turn(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Frames (n, ky, kx) transposed and flipped, a view."""
        if self.transpose:
            frames = frames.swapaxes(1, 2)
        if self.flip_rows:
            frames = frames[:, ::-1]
        return frames[:, :, ::-1] if self.flip_columns else frames

    def electrons(self, stored: NDArray[Any], shifts_px: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Electrons float32 (n, ky, kx) of stored frames, turned and windowed, not yet binned; what was not measured is NaN.

        ``shifts_px`` (n, 2) moves the window of each pattern: the descan.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is no measurement, and is told as that
            patterns = stored.astype(np.float32)
            self._blank(stored, patterns)
            if self.dark is not None:
                patterns -= self.dark.astype(np.float32)
            if self.gain is not None:
                patterns *= self.gain.astype(np.float32)
            if self.adu_per_electron != 1:
                patterns /= np.float32(self.adu_per_electron)
        patterns = self.turn(patterns)
        if shifts_px is not None or self.box is not None:
            patterns = self._windowed(patterns, shifts_px)
        return patterns

    def apply(self, stored: NDArray[Any], shifts_px: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Prepared patterns float32 (n, ky, kx) of stored frames; what was not measured is NaN."""
        patterns = self.electrons(stored, shifts_px)
        if stored.dtype.kind not in "bu" or self.dark is not None or self.gain is not None:
            patterns[~measured(patterns)] = np.nan
        return np.ascontiguousarray(bin_sum(patterns, self.bin))

    def _blank(self, stored: NDArray[Any], patterns: NDArray[np.float32]) -> None:
        """NaN for pixels that are bad, saturated or switched off."""
        if stored.dtype.kind == "u" and stored.dtype.itemsize > 1:
            # Counting detectors store the largest value for pixels that saturated or are switched off.
            most: float = np.iinfo(stored.dtype).max - 1
            most = most if self.saturation is None else min(most, self.saturation)
            if stored.size and stored.max() > most:
                patterns[stored > most] = np.nan
        elif self.saturation is not None:
            patterns[stored > self.saturation] = np.nan
        if self.bad_pixels is not None:
            patterns[:, self.bad_pixels] = np.nan

    def _windowed(self, patterns: NDArray[np.float32], shifts_px: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """The box of each pattern, NaN where it lies outside of the frame."""
        height, width = patterns.shape[1:]
        y0, y1, x0, x1 = self.box or (0, height, 0, width)
        if shifts_px is None:
            if y0 >= 0 and y1 <= height and x0 >= 0 and x1 <= width:
                return patterns[:, y0:y1, x0:x1]
            shifts_px = np.zeros((len(patterns), 2), np.int64)
        out = np.full((len(patterns), y1 - y0, x1 - x0), np.nan, np.float32)
        for shift in np.unique(shifts_px, axis=0):
            these = (shifts_px == shift).all(1)
            rows, to_rows = _overlap(y0 + int(shift[0]), y1 - y0, height)
            columns, to_columns = _overlap(x0 + int(shift[1]), x1 - x0, width)
            out[these, to_rows, to_columns] = patterns[these, rows, columns]
        return out


def _overlap(start: int, length: int, size: int) -> tuple[slice, slice]:
    """(part of 0 .. size that start .. start + length covers, the same counted from start)."""
    low, high = min(max(start, 0), size), max(min(start + length, size), 0)
    high = max(low, high)
    return slice(low, high), slice(low - start, high - start) if high > low else slice(0, 0)


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
