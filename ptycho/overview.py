"""A first look at a data set: mean pattern, bright-field image and histogram of the counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.data import Dataset4D
from ptycho.errors import DataError

_BLOCK_BYTES = 16 << 20
_ALL_BYTES = 2 << 30
_MOST_POINTS = 4096
_HISTOGRAM_FRAMES = 200


@dataclass(frozen=True, eq=False)
class Overview:
    """``mean_pattern`` (ky, kx) in electrons, NaN where masked; ``bright_field`` (slow, fast) electrons within the disk, NaN where there is no
    pattern; ``stride`` scan points of the file for each of its pixels; ``counts`` and ``edges``: histogram of electrons per pixel;
    ``disk`` centre y, x and radius in pixels, None without a disk (then all electrons are counted).
    """

    mean_pattern: NDArray[np.float64]
    bright_field: NDArray[np.float64]
    stride: int
    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    disk: tuple[float, float, float] | None


def overview(data: Dataset4D) -> Overview:
    """Look at all patterns, or at about 4096 on a coarser raster of more than 2 GB. Raises DataError when nothing is usable."""
    survey = data.survey()
    try:
        disk = (*data.centre(), data.disk_radius_px)
    except DataError:
        disk = None
    y, x = np.indices(data.pattern_shape)
    inside = data.mask if disk is None else data.mask & (np.hypot(y - disk[0], x - disk[1]) < disk[2])
    image, stride = _image(data, inside)
    frames = np.unique(np.linspace(0, data.n_positions - 1, _HISTOGRAM_FRAMES).astype(np.int64))
    values = data.patterns(frames)[:, data.mask]
    values = values[np.isfinite(values)]
    most = float(np.quantile(values, 0.9999)) if values.size else 1.0
    # Whole counts fall into bins of one count, or of some.
    count = 1 / data.preparation.adu_per_electron if data.source.header.dtype.kind in "bu" else 1.0
    whole = bool((np.abs(values / count - np.round(values / count)) < 1e-3).all())
    width = count * max(1.0, np.ceil(most / count / 100)) if whole else max(most, 1e-3) / 60
    counts, edges = np.histogram(values, np.arange(-0.5 * width, most + 1.5 * width, width))
    return Overview(np.where(data.mask, survey.mean_pattern, np.nan), image, stride, counts, edges, disk)


def _image(data: Dataset4D, inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """(electrons inside for each scan point, stride)."""
    slow, fast = data.scan_shape
    points = np.arange(data.n_positions) if data.points is None else data.points
    large = data.n_positions * data.source.header.frame_bytes > _ALL_BYTES
    stride = max(1, int(np.ceil(np.sqrt(slow * fast / _MOST_POINTS)))) if large else 1
    row, column = np.divmod(points, fast)
    chosen = np.flatnonzero((row % stride == 0) & (column % stride == 0))
    image = np.full((-(-slow // stride), -(-fast // stride)), np.nan)
    size = max(1, _BLOCK_BYTES // (4 * inside.size))
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        image[row[block] // stride, column[block] // stride] = np.nan_to_num(data.patterns(block)[:, inside]).sum(1, dtype=np.float64)
    return image, stride
