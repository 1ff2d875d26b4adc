"""Some patterns, as measured and as the model has them, kept with a result to be looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Larger patterns are kept more coarsely: they are for the eye.
_MOST_PX = 256


@dataclass(frozen=True, eq=False)
class Examples:
    """The mean pattern, a typical one and the one that the model describes worst: float32 (3, ky, kx), electrons per detector pixel.

    Zero frequency is in the centre, NaN was not measured; a pixel is ``pixel_mrad`` wide. ``positions`` int64 (2,) are the numbers of the two single
    patterns, ``chi_squared`` float64 (2,) what they have: sum (d - m)^2 / (s sum m), 1 for a perfect model (s: the noise scale of the residual).
    """

    measured_e: NDArray[np.float32] = field(repr=False)
    modelled_e: NDArray[np.float32] = field(repr=False)
    positions: NDArray[np.int64]
    chi_squared: NDArray[np.float64]
    pixel_mrad: float

    @classmethod
    def of(cls, pairs: NDArray[Any], positions: NDArray[np.int64], chi_squared: NDArray[np.float64], pixel_mrad: float) -> Examples:
        """From ``pairs`` (2, 3, ky, kx) of measured and modelled electrons, zero frequency in the corner; at most 256 pixels wide are kept."""
        shift = np.fft.fftshift(pairs, axes=(-2, -1))
        factor = -(-max(shift.shape[-2:]) // _MOST_PX)
        measured, modelled = (coarser(part, factor).astype(np.float32) for part in shift)
        return cls(measured, modelled, np.asarray(positions, np.int64), np.asarray(chi_squared, np.float64), float(pixel_mrad * factor))


def coarser(images: NDArray[Any], factor: int) -> NDArray[Any]:
    """Means over ``factor`` x ``factor`` pixels of images (..., y, x), NaN with any that is; incomplete ones at the edges are left out."""
    *leading, height, width = (*images.shape[:-2], images.shape[-2] // factor, images.shape[-1] // factor)
    whole = images[..., : height * factor, : width * factor]
    return np.asarray(whole.reshape(*leading, height, factor, width, factor).mean((-3, -1)))
