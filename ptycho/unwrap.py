"""Phases beyond pi: heavy columns in thick slices reach there in a few pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Half the width of the widest peak that is put back.
_MOST_PIXELS = 6


def unwrap_peaks(phase: NDArray[Any]) -> NDArray[np.float32]:
    """Phases (..., y, x) in rad, float32, each within pi of the median of its 3 x 3 neighbourhood: peaks that passed pi are put back on top.

    From the rim of a peak inwards, so that it may be some pixels wide. A phase that nowhere jumps by pi against its neighbourhood stays
    bit for bit what it was.
    """
    phase = np.asarray(phase, np.float32)
    if np.abs(phase).max(initial=0.0) < np.pi / 2:
        return phase
    from scipy.ndimage import median_filter  # late: it takes longer to import than to use

    for _ in range(_MOST_PIXELS):
        median = median_filter(phase, size=(1,) * (phase.ndim - 2) + (3, 3), mode="nearest")
        turns = np.rint((median - phase) / np.float32(2 * np.pi))
        if not turns.any():
            break
        phase = phase + np.float32(2 * np.pi) * turns
    return phase
