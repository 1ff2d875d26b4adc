"""Electrons per count of a detector, from its data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.frames import FrameSource


def sample_frames(source: FrameSource, number: int = 200) -> NDArray[Any]:
    """A few frames spread over the whole scan, in pairs of neighbours, at most 32 MB of them."""
    n_frames = source.header.n_frames
    number = max(2, min(number, n_frames, (32 << 20) // max(1, source.header.frame_bytes)))
    first = np.linspace(0, max(n_frames - 2, 0), number // 2).astype(np.int64)
    pairs = np.stack([first, np.minimum(first + 1, n_frames - 1)], axis=1).ravel()
    return source.read(pairs)


def counts_per_electron(frames: NDArray[Any]) -> float | None:
    """What one electron adds to the counts, from the noise of frames in pairs of neighbours (n, ky, kx); None when it cannot be told.

    The variance of sums over blocks of pixels against their mean, in the dark field, is the charge of an electron if its counts fall
    within a block: it no longer grows with the block. Where it does, it is the specimen that changes from neighbour to neighbour.
    """
    smaller, larger = (_variance_by_mean(frames, size) for size in (8, 16))
    if smaller is None or larger is None or larger > 1.25 * smaller:
        return None
    return larger


def charge_spread(frames: NDArray[Any], factor: int = 1) -> float:
    """How many counts of neighbouring pixels one electron makes, from frames in pairs of neighbours (n, ky, kx); 1 when it cannot be told.

    Variance by mean of blocks of pixels, which is the charge of an electron, over that of the pixels, ``factor`` x ``factor`` stored ones
    summed: where the counts of an electron fall on one pixel both are the charge, where they fall on many a pixel has Poisson's 1.
    """
    charge, single = counts_per_electron(frames), _variance_by_mean(frames, factor)
    return 1.0 if charge is None or not single else charge / single


def _variance_by_mean(frames: NDArray[Any], size: int) -> float | None:
    """Variance by mean of sums over size x size pixels in the dark field; the median over the blocks, since Bragg disks change."""
    pairs, height, width = len(frames) // 2, frames.shape[1] // size, frames.shape[2] // size
    if pairs < 10 or min(height, width) < 4:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # of a file that is no diffraction data at all
        values = frames[: 2 * pairs, : height * size, : width * size].astype(np.float64)
        blocks = np.nan_to_num(values, nan=0, posinf=0, neginf=0).reshape(pairs, 2, height, size, width, size).sum((3, 5))
        mean = blocks.mean((0, 1))
        variance = (np.diff(blocks, axis=1)[:, 0] ** 2).mean(0) / 2
    # Many counts in a block show what the specimen changes from neighbour to neighbour, not what an electron makes.
    enough = (mean < min(0.05 * mean.max(), size * size)) & (mean * len(frames) > 50)
    return float(np.median(variance[enough] / mean[enough])) if enough.sum() >= 10 else None


def find_adu_per_electron(frames: NDArray[Any]) -> tuple[float, str] | None:
    """(ADU per electron, how it was found) from stored frames (n, ky, kx), or None when they do not show it.

    Counted data have levels at multiples of one value; an analogue detector has a peak of single electrons in its dark field.
    """
    values = np.where(np.isfinite(frames), frames, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # of a file that is no diffraction data at all
        step = _level_spacing(values)
    if step is not None:
        return step, f"values are multiples of {step:g}"
    if frames.dtype.kind in "biu":
        return 1.0, "counts are integers"
    if float(values.max()) < 50:
        return 1.0, "values are small"
    with np.errstate(over="ignore", invalid="ignore"):  # of a file that is no diffraction data at all
        peak = _single_electron_peak(values.astype(np.float32))
    return None if peak is None else (peak, "peak of single electrons in the dark field")


def _level_spacing(values: NDArray[Any]) -> float | None:
    """Spacing of the levels when all values are multiples of the smallest one."""
    positive = np.abs(values[values != 0].astype(np.float64))
    if len(positive) < 100:
        return None
    positive = np.sort(positive)[: len(positive) * 9 // 10]  # hot pixels and saturation are at the top
    first = positive[len(positive) // 1000]
    multiples = np.round(positive / first)
    low = (multiples > 0) & (multiples < 20)
    if low.sum() < 0.5 * len(positive) or np.mean(np.abs(positive / first - multiples)[low] < 0.02) < 0.999:
        return None
    if len(np.unique(multiples[low])) < 2 and low.all():
        return None  # one level alone has no spacing
    return float(positive[low].sum() / multiples[low].sum())


def _single_electron_peak(values: NDArray[np.float32]) -> float | None:
    """Charge of one electron from events that stand alone: the peak of 3 x 3 sums about local maxima in quiet surroundings.

    An electron shares its charge with its neighbours, so that the sum and not the highest pixel is its charge.
    """
    from scipy import ndimage  # late: it takes longer to import than to use

    noise = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    threshold = max(6 * noise, 1e-3 * float(values.max()))
    event = values > threshold
    dark_field = event.mean(0) < 0.05
    in_window = ndimage.uniform_filter(event.astype(np.float32), (1, 7, 7)) * 49
    in_centre = ndimage.uniform_filter(event.astype(np.float32), (1, 3, 3)) * 9
    alone = np.abs(in_window - in_centre) < 0.5
    highest = values == ndimage.maximum_filter(values, (1, 3, 3))
    sums = ndimage.uniform_filter(values, (1, 3, 3)) * 9
    charges = sums[event & alone & highest & dark_field]
    return _peak(charges) if len(charges) >= 200 else None


def _peak(charges: NDArray[Any]) -> float | None:
    """Centre of the main peak of a distribution; None when there is no clear one."""
    low, high = np.quantile(charges, [0.02, 0.9])
    if not 0 < low < high:
        return None
    histogram, edges = np.histogram(charges, bins=60, range=(low / 2, high * 1.5))
    smooth = np.convolve(histogram, [0.25, 0.5, 0.25], "same")
    centre = float((edges[:-1] + edges[1:])[smooth.argmax()] / 2)
    for _ in range(5):
        near = charges[np.abs(charges / centre - 1) < 0.25]
        centre = float(np.median(near)) if len(near) else centre
    return centre if len(near) > 0.4 * len(charges) else None
