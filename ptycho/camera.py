"""A detector that integrates: what its pixels hold of the signal of each electron, and how the modulation transfer function says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import RecipeError

#: (cycles per pixel, contrast that is left), from (0, 1) on.
Mtf = Sequence[tuple[float, float]]


def check_mtf(mtf: Mtf) -> None:
    """Raises RecipeError for a curve that is none."""
    curve = np.asarray(mtf, float)
    told = "pairs [cycles per pixel, contrast from 0 to 1], the first [0, 1], then rising cycles, are needed"
    if curve.ndim != 2 or curve.shape[1] != 2 or not np.isfinite(curve).all():
        raise RecipeError(f"detector_mtf = {mtf!r}: {told}")
    frequency, contrast = curve.T
    if frequency[0] != 0 or contrast[0] != 1 or not (np.diff(frequency) > 0).all() or contrast.min() < 0 or contrast.max() > 1:
        raise RecipeError(f"detector_mtf = {[list(pair) for pair in mtf]!r}: {told}")


def spread(patterns: NDArray[np.float32], mtf: Mtf) -> NDArray[np.float32]:
    """Patterns (..., ky, kx) in which the signal of every electron spreads over the pixels around, as the MTF says.

    The point spread is the Fourier transform of the MTF, taken as isotropic and linear between its points. The sum is kept but for what
    leaves the detector. Applied to counted electrons it leaves neighbouring pixels with the same noise in part, as detectors that integrate
    have it (Meyer & Kirkland, Microsc. Res. Tech. 49 (2000) 269). The area of the pixel is not part of it: divide a measured curve by its sinc.
    """
    height, width = patterns.shape[-2:]
    # Twice as wide: what leaves at one edge must not come in at the other.
    f = np.hypot(np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width))
    transfer = np.interp(f, *np.asarray(mtf, float).T)
    shape = (2 * height, 2 * width)
    found = np.empty(patterns.shape, np.float32)
    # One at a time: a scan at twice its size may not fit in memory.
    for index in np.ndindex(patterns.shape[:-2]):
        found[index] = np.fft.irfft2(np.fft.rfft2(patterns[index], shape) * transfer, shape)[:height, :width]
    return found
