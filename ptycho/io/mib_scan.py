"""Which frames of a Merlin's scan a file has: dropped frames, the scan's shape, flyback."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho.frames import Header, Quantity
from ptycho.io.files import factor_pairs
from ptycho.io.mib_header import hdr_whole

WRAP = 10**6  # sequence numbers have six digits


def lost_before(sequence: Callable[[int], int], n_frames: int) -> NDArray[np.int64] | None:
    """Frames lost just before each of ``n_frames`` frames; None when there are none. Raises ValueError when numbers do not increase.

    ``sequence(i)`` is the number that frame i has in the acquisition, modulo ``WRAP``. Where two frames are as far apart in it as in the
    file, nothing is missing between them, so that few frames are looked at.
    """
    lost = np.zeros(n_frames, np.int64)
    spans = [(0, sequence(0), n_frames - 1, sequence(n_frames - 1))]
    while spans:
        i, first, j, last = spans.pop()
        missing = (last - first - (j - i)) % WRAP
        if missing > WRAP // 2 or (missing and i == j):
            raise ValueError("the numbers of the frames do not increase")
        if missing and j == i + 1:
            lost[j] = missing
        elif missing:
            middle = (i + j) // 2
            number = sequence(middle)
            spans += [(middle, number, j, last), (i, first, middle, number)]
    return lost if lost.any() else None


def scan_from_hdr(header: Header, hdr: dict[str, str], name: str) -> bool:
    """Set the scan shape from the ``.hdr``'s ScanX and ScanY, else from its frames per trigger; False when it does not say."""
    fast, slow = hdr_whole(hdr, "scanx"), hdr_whole(hdr, "scany")
    keys = "ScanX, ScanY"
    if fast is None or slow is None:
        total, fast = hdr_whole(hdr, "frames in acquisition") or _acquired_frames(header), hdr_whole(hdr, "frames per trigger")
        keys = "Frames per Trigger"
        # One trigger for each frame, or one for all of them, says nothing of lines.
        if fast is None or not 1 < fast < total or total % fast:
            return False
        slow = total // fast
    n = _acquired_frames(header)
    if slow * fast < n:
        header.warnings.append(f"{header.path.name}: {n} frames for a scan of {slow} x {fast}; the last {n - slow * fast} belong to no point")
    if slow * fast > n:
        header.warnings.append(f"{header.path.name}: {n} frames for a scan of {slow} x {fast}: {n // fast} whole scan lines are used")
        slow = n // fast
    if slow:
        header.scan_shape = (slow, fast)
        header.metadata["scan_shape"] = Quantity((slow, fast), "", f"{name}: {keys}")
    return True


def scan_from_times(header: Header, times_s: NDArray[np.float64], exposures_ms: NDArray[np.float64]) -> bool:
    """Set the scan shape, and the flyback, from the first frames' times and exposures; False when these show no lines.

    A frame for the flyback is exposed longer than the others; else there is a pause after each line.
    """
    peaks = regular_peaks(exposures_ms)
    what = "a longer exposure of one frame"
    if peaks is not None:
        first, period = peaks
        flyback = {0: (1, 0), period - 1: (0, 1)}.get(first)
        exposure = Quantity(float(np.median(exposures_ms)), "ms", f"{header.path.name}: usual exposure in the frames' headers")
        header.metadata["exposure_ms"] = exposure
    else:
        peaks = regular_peaks(np.diff(times_s) % 86400)
        what = "a pause"
        if peaks is None:
            return False
        first, period = peaks
        flyback = (0, 0) if first == period - 1 else None
    if flyback is None or header.n_frames < period:
        header.warnings.append(f"{header.path.name}: {what} in every {period} frames, first in frame {first}, may be the flyback; give scan_shape")
        return False
    shape = (header.n_frames // period, period - sum(flyback))
    header.scan_shape, header.flyback = shape, flyback
    header.metadata["scan_shape"] = Quantity(shape, "", f"a guess from {what} in every {period} frames", trusted=False)
    return True


def guess_scan(header: Header) -> None:
    """Set a square scan shape if the number of frames allows one."""
    n = _acquired_frames(header)
    side = math.isqrt(n)
    if side * side == n and header.scan_shape is None:
        header.scan_shape = (side, side)
        header.metadata["scan_shape"] = Quantity((side, side), "", f"a guess from {n} frames ({factor_pairs(n)} fit)", trusted=False)


def _acquired_frames(header: Header) -> int:
    return header.n_frames if header.acquired is None else int(header.acquired[-1]) + 1


def regular_peaks(values: NDArray[np.float64]) -> tuple[int, int] | None:
    """(first, period) of values well above the median, at regular places; None when they are fewer than three or irregular."""
    middle = np.median(values) if len(values) else 0.0
    peaks = np.flatnonzero(values > 1.5 * middle)
    periods = np.unique(np.diff(peaks))
    if middle <= 0 or len(peaks) < 3 or len(periods) != 1:
        return None
    first, period = int(peaks[0]), int(periods[0])
    complete = first < period and len(values) - 1 - peaks[-1] < period
    return (first, period) if complete and period > 1 else None
