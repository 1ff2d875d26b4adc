"""One streamed pass over the patterns: their mean, their hot, dead and damaged pixels, and the bright-field disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.preparation import bin_sum
from ptycho.preparation import measured as find_measured

#: (position numbers (n,), their patterns (n, ky, kx) in electrons before binning), one block after the other.
Blocks: TypeAlias = Iterable[tuple[NDArray[np.int64], NDArray[Any]]]

#: Electrons in a pixel of which float32 can add up all of a block.
_HUGE = 1e30


@dataclass(frozen=True, eq=False)
class Survey:
    """One pass over the patterns (over 400 spread ones of more than 2 GB): statistics and what is wrong with them.

    ``mean_pattern`` float64 (ky, kx) in electrons, NaN where never measured; ``mean_electrons`` per pattern; ``max_electrons`` of a
    pixel; ``n_nonfinite`` and ``n_negative`` (below -1 electron) count values of all patterns; ``hot``, ``dead`` and ``static_bad``
    (never measured, and not among these values) are bool (ky, kx); ``bad_frames`` are positions to be dropped: more than 10 % bad
    pixels, or no electron at all.
    """

    n_surveyed: int
    mean_pattern: NDArray[np.float64]
    mean_electrons: float
    max_electrons: float
    n_nonfinite: int
    n_negative: int
    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    static_bad: NDArray[np.bool_]
    bad_frames: NDArray[np.int64]

    @property
    def n_hot(self) -> int:
        """Number of hot pixels."""
        return int(self.hot.sum())

    @property
    def n_static_bad(self) -> int:
        """Number of pixels that were never measured."""
        return int(self.static_bad.sum())

    @property
    def n_dead(self) -> int:
        """Number of dead pixels."""
        return int(self.dead.sum())


def survey_patterns(blocks: Blocks, shape: tuple[int, int], factor: int, name: str) -> Survey:
    """One streamed pass over ``blocks`` of patterns of ``shape``, to be binned by ``factor``; ``name`` is the file's, for messages.

    Raises DataError when nothing is usable, all pixels are the same, or more than a fifth of the patterns are damaged.
    """
    total, measured, finite = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    surveyed, bad_pixels, sums = [], [], []
    lowest, highest = np.inf, -np.inf
    for numbers, patterns in blocks:
        surveyed.append(numbers)
        least, most = float(patterns.min()), float(patterns.max())
        if least >= -1 and np.isfinite(most):  # all are measured, as in nearly every block; NaN is never >= -1
            finite += len(patterns)
            measured += len(patterns)
            bad_pixels.append(np.zeros(len(patterns), np.int64))
        else:
            good = find_measured(patterns)
            finite += np.isfinite(patterns).sum(0)
            measured += good.sum(0)
            bad_pixels.append((~good).sum((1, 2)))
            least = float(patterns.min(where=good, initial=np.inf))
            most = float(patterns.max(where=good, initial=-np.inf))
            patterns = np.where(good, patterns, np.float32(0))
        # Sums of one block in float32, which is exact for counts, and of blocks in float64; numbers that no detector gives would overflow.
        kind = np.float32 if most < _HUGE else np.float64
        total += patterns.sum(0, dtype=kind)
        sums.append(patterns.reshape(len(patterns), -1).sum(1, dtype=kind).astype(np.float64))
        lowest, highest = min(lowest, least), max(highest, most)
    if not measured.any():
        raise DataError(f"{name}: no pixel is usable, all are NaN or below -1 electron; check the file, dark and adu_per_electron")
    if lowest == highest:
        raise DataError(f"{name}: all pixels are {lowest:g}; this is not a diffraction data set, check the file and the dataset's name")
    static = measured == 0
    bad = np.concatenate(bad_pixels) - static.sum() > 0.1 * (~static).sum()
    per_pattern = np.concatenate(sums)
    typical = float(per_pattern[~bad].mean()) if not bad.all() else 0.0
    bad |= (per_pattern == 0) & (typical > 100)  # a beam that was on leaves no empty pattern
    if bad.mean() > 0.2:
        raise DataError(
            f"{name}: {bad.sum()} of {len(bad)} patterns are damaged (more than 10 % bad pixels or empty); check dark and adu_per_electron"
        )
    positions = np.concatenate(surveyed)
    mean = np.divide(total, measured, out=np.full(shape, np.nan), where=~static)
    hot, dead = _hot_and_dead(mean, measured)
    return Survey(
        n_surveyed=len(positions),
        mean_pattern=bin_sum(mean, factor),
        mean_electrons=float(per_pattern[~bad].mean()),
        max_electrons=highest,
        n_nonfinite=int((len(positions) - finite)[~static].sum()),
        n_negative=int((finite - measured)[~static].sum()),
        hot=bin_sum(hot, factor) > 0,
        dead=bin_sum(dead, factor) > 0,
        static_bad=bin_sum(static, factor) > 0,
        bad_frames=positions[bad],
    )


def _hot_and_dead(mean: NDArray[np.float64], measured: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels that cannot be what the beam did, from the mean pattern and the number of measurements of each pixel.

    Hot: more than 3 times the second largest of its 8 neighbours, and by more than 10 electrons and 10 sigma of all patterns.
    Dead: exactly zero where all but two of its neighbours have more than 20 electrons (beside a sharp edge of the disk at least
    three have few).
    """
    height, width = mean.shape
    padded = np.pad(np.nan_to_num(mean), 1, mode="reflect")
    shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    neighbours = np.sort(np.stack([padded[y : y + height, x : x + width] for y, x in shifts]), axis=0)
    total, expected = np.nan_to_num(mean) * measured, neighbours[-2].clip(0) * measured
    excess = total - expected
    hot = (total > 3 * expected) & (excess > 10) & (excess > 10 * np.sqrt(np.maximum(expected, 1)))
    dead = (total == 0) & (measured > 0) & (neighbours[2] * measured > 20)
    return hot, dead


@dataclass(frozen=True)
class Disk:
    """The bright-field disk of a mean pattern: sub-pixel centre and radius (of a circle with its area) in pixels, and the ellipse of its edge.

    ``ellipticity`` is the long over the short axis, ``angle_deg`` the direction of the long one from x towards y.
    """

    centre: tuple[float, float]
    radius_px: float
    ellipticity: float
    angle_deg: float


def measure_disk(mean_pattern: NDArray[Any]) -> Disk | None:
    """The disk of a mean pattern (NaN = not measured), its ellipse from the second moments of its area; None without a disk.

    The edge is where the intensity is half of the plateau.
    """
    weight = _disk_weight(mean_pattern)
    if weight is None:
        return None
    area, places = weight.sum(), np.stack([i.ravel() for i in np.indices(weight.shape)])
    centre = places @ weight.ravel() / area
    away = places - centre[:, None]
    moments, axes = np.linalg.eigh((away * weight.ravel()) @ away.T / area)
    y, x = axes[:, 1]
    angle = float(np.degrees(np.arctan2(y, x)))
    ellipticity = float(np.sqrt(moments[1] / moments[0])) if moments[0] > 0 else np.inf
    return Disk((float(centre[0]), float(centre[1])), float(np.sqrt(area / np.pi)), ellipticity, (angle + 90) % 180 - 90)


def find_disk(mean_pattern: NDArray[Any]) -> tuple[float, float, float] | None:
    """Centre y, x and radius in pixels of the bright-field disk, as :func:`measure_disk` finds them; None without a disk."""
    disk = measure_disk(mean_pattern)
    return None if disk is None else (*disk.centre, disk.radius_px)


def _disk_weight(mean_pattern: NDArray[Any]) -> NDArray[np.float64] | None:
    """How much of each pixel is inside of the disk, from 0 to 1; None without a disk."""
    valid = np.isfinite(mean_pattern)
    image = np.where(valid, mean_pattern, 0.0).clip(0)
    if not image.any():
        return None
    from scipy import ndimage  # late: it takes longer to import than to use

    image = np.where(valid, image, ndimage.median_filter(image, 5))
    plateau = float((image**2).sum() / image.sum())
    for _ in range(10):
        plateau = float(np.median(image[image > plateau / 2]))
    labels, _ = ndimage.label(image > plateau / 4)
    sizes = np.bincount(labels.ravel(), weights=image.ravel())
    sizes[0] = 0
    disk = ndimage.binary_fill_holes(labels == sizes.argmax())
    # A pixel that the edge cuts holds a part of the plateau: a ramp about one half measures that part.
    inside = ndimage.binary_erosion(disk, iterations=2)
    weight = np.where(inside, 1.0, np.where(disk, ((image / plateau - 0.25) * 2).clip(0, 1), 0.0))
    return None if weight.sum() < 3 else weight
