"""The images that each part of the bright-field disk makes while the probe scans, and the centre of mass beside them: one pass over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.data import Dataset4D
from ptycho.errors import DataError
from ptycho.geometry import wavelength_A

#: Detector pixels are added up until the disk is this many wide: enough for the shifts, and each has its counts.
_ACROSS = 36
#: Images of larger scans are made of their middle.
_MOST_POINTS = 192
#: A part of the disk is used where this share of it is inside: the edge is no plane wave.
_INSIDE = 0.95
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class BrightField:
    """Images of the scan, one for each part of the bright-field disk.

    ``images`` float32 (m, m, slow, fast) in units of the mean intensity of the disk, for the parts of a square grid at ``k_invA`` (2, m):
    ky of the rows and kx of the columns about the disk's centre; ``inside`` bool (m, m) says which lie in the disk, the others are 0.
    ``centre_of_mass_invA`` (2, slow, fast) = (y, x) of the whole patterns. ``electrons`` is the mean number in one image's pixel,
    ``step_A`` (slow, fast). Images have no mean; scan points without a pattern are 0.
    """

    images: NDArray[np.float32]
    inside: NDArray[np.bool_]
    k_invA: NDArray[np.float64]
    centre_of_mass_invA: NDArray[np.float64]
    electrons: float
    electrons_per_pattern: float
    step_A: tuple[float, float]
    aperture_invA: float
    wavelength_A: float

    @property
    def scan_shape(self) -> tuple[int, int]:
        """(slow, fast) of each image."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def k_inside_invA(self) -> NDArray[np.float64]:
        """(n, 2) = (ky, kx) of the images inside, in the order of ``images[inside]``."""
        ky, kx = np.meshgrid(*self.k_invA, indexing="ij")
        return np.stack([ky[self.inside], kx[self.inside]], axis=1)


def bright_field(data: Dataset4D) -> BrightField:
    """Make the images from all patterns, or from the middle 192 x 192 of a larger scan.

    Raises DataError without a raster, without a disk, or when voltage, semiangle or step are not known.
    """
    if data.positions_A is not None:
        raise DataError(f"{data.name}: the positions are a list; bright-field images need a raster scan: give [scan] shape and step_A instead")
    geometry = data.geometry
    cy, cx = data.centre()
    radius = data.disk_radius_px
    factor = max(1, math.ceil(2 * radius / _ACROSS))
    labels, inside, offsets = _parts(data.pattern_shape, (cy, cx), radius, factor, data.mask)
    points, shape = _chosen(data)
    count = len(inside)
    images = np.zeros((count * count, shape[0] * shape[1]), np.float32)
    com = np.zeros((2, shape[0] * shape[1]))
    total = np.zeros(shape[0] * shape[1])
    rows, columns = (np.arange(n) - c for n, c in zip(data.pattern_shape, (cy, cx), strict=True))
    # One matrix product makes all images: pixels x parts.
    flat = labels.ravel()
    used = np.flatnonzero(flat >= 0)
    places = points[:, 1]
    size = max(1, _BLOCK_BYTES // (4 * labels.size))
    for start in range(0, len(points), size):
        block = points[start : start + size]
        patterns = np.where(data.mask, np.nan_to_num(data.patterns(block[:, 0])), np.float32(0))
        here = places[start : start + size]
        total[here] = patterns.sum((1, 2), dtype=np.float64)
        com[0, here] = patterns.sum(2, dtype=np.float64) @ rows
        com[1, here] = patterns.sum(1, dtype=np.float64) @ columns
        sums = np.zeros((len(block), count * count), np.float32)
        np.add.at(sums.T, flat[used], patterns.reshape(len(block), -1)[:, used].T)
        images[:, here] = sums.T
    pixel = data.pixel_invA.value
    com = np.divide(com, total, out=np.zeros_like(com), where=total > 0) * pixel
    measured = np.zeros(shape[0] * shape[1], bool)
    measured[places] = total[places] > 0
    images, plateau = _normalised(images.reshape(count, count, -1), inside, measured)
    com[:, measured] -= com[:, measured].mean(1, keepdims=True)
    com[:, ~measured] = 0
    step = np.atleast_1d(np.asarray(data.calibration["step_A"].value, float))
    return BrightField(
        images=images.reshape(count, count, *shape),
        inside=inside,
        k_invA=offsets * pixel,
        centre_of_mass_invA=com.reshape(2, *shape),
        electrons=plateau,
        electrons_per_pattern=float(total[measured].mean()),
        step_A=(float(step[0]), float(step[-1])),
        aperture_invA=geometry.aperture_invA,
        wavelength_A=wavelength_A(geometry.voltage_kV),
    )


def spectra(bright: BrightField) -> tuple[NDArray[np.complex64], float]:
    """Fourier transforms over the scan (m, m, slow, fast) of the images under a Hann window, and the variance of their shot noise.

    G(k, q) = sum over R of I(k, R) exp(-2 pi i q R).
    """
    slow, fast = bright.scan_shape
    window = np.hanning(slow + 2)[1:-1, None] * np.hanning(fast + 2)[1:-1]
    spectrum = np.zeros(bright.images.shape, np.complex64)
    spectrum[bright.inside] = np.fft.fft2(bright.images[bright.inside] * window.astype(np.float32))
    return spectrum, float((window**2).sum()) / max(bright.electrons, 1e-30)


def _parts(
    shape: tuple[int, int], centre: tuple[float, float], radius: float, factor: int, mask: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """(part of each pixel or -1, which parts are inside, the parts' places (2, m) about the centre in pixels)."""
    count = 2 * math.ceil(radius / factor) + 1
    first = [round(c - (factor - 1) / 2) - factor * (count // 2) for c in centre]
    row, column = (np.floor_divide(np.arange(n) - f, factor) for n, f in zip(shape, first, strict=True))
    valid = ((row >= 0) & (row < count))[:, None] & ((column >= 0) & (column < count))
    labels = np.where(valid, row[:, None] * count + column, -1)
    y, x = np.indices(shape)
    within = mask & (np.hypot(y - centre[0], x - centre[1]) < radius - 0.5)
    share = np.bincount(labels[valid], weights=within[valid].astype(float), minlength=count * count) / factor**2
    inside = (share >= _INSIDE).reshape(count, count)
    labels[~np.isin(labels, np.flatnonzero(inside))] = -1
    offsets = np.stack([f + factor * np.arange(count) + (factor - 1) / 2 - c for f, c in zip(first, centre, strict=True)])
    if inside.sum() < 8:
        raise DataError(f"the bright-field disk is only {2 * radius:.1f} pixels wide; bin less")
    return labels, inside, offsets


def _chosen(data: Dataset4D) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """(pattern number, place in the raster that is kept) (n, 2), and the shape of that raster."""
    slow, fast = data.scan_shape
    if min(slow, fast) < 4:
        raise DataError(f"{data.name}: a scan of {slow} x {fast} points is too small to be calibrated; give [scan] shape if that is not its shape")
    points = np.arange(data.n_positions) if data.points is None else data.points
    row, column = np.divmod(points, fast)
    (y0, height), (x0, width) = ((max(0, (n - _MOST_POINTS) // 2), min(n, _MOST_POINTS)) for n in (slow, fast))
    row, column = row - y0, column - x0
    kept = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.stack([np.flatnonzero(kept), (row * width + column)[kept]], axis=1), (height, width)


def _normalised(images: NDArray[np.float32], inside: NDArray[np.bool_], measured: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    """Images without their means, in units of the disk's mean; and that mean in electrons."""
    means = images[:, :, measured].mean(2, dtype=np.float64)
    plateau = float(means[inside].mean())
    images = ((images - means[:, :, None]) / max(plateau, 1e-30)).astype(np.float32)
    images[:, :, ~measured] = 0
    images[~inside] = 0
    return images, plateau
