"""Displacements of the bright-field images against each other: what the defocus and the turn of the scan do to them.

The image that is made by the part k of the bright-field disk is displaced against the gradient of the aberrations there, by -lambda C k with
C = [[C10 - C12a, C12b], [C12b, C10 + C12a]] in (y, x) (tilt-corrected bright field, parallax: Spoth et al., Appl. Phys. Lett. 111 (2017)
081602; Varnavides et al., arXiv:2507.19476). In the scan's pixels that is a linear map B of k, the same for all pairs of images
with the same difference of k: their cross-correlations are added up, one image for each difference, and B is what makes their sum along B d
greatest. It needs no reference image, and differences that are small are not mistaken by a period of the lattice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.ndimage import map_coordinates

from ptycho.bright_field import BrightField, spectra
from ptycho.pose import MIRROR, Matrix, turn

#: Differences of k up to this share of the disk's diameter: beyond, few pairs overlap.
_REACH = 0.5
#: At most so many differences and angles are looked at.
_DIFFERENCES, _ANGLES = 300, 180


@dataclass(frozen=True)
class Shifts:
    """``matrix`` (2, 2): displacement (slow, fast) in Å of the image of k (ky, kx) in 1/Å, that is -A^T lambda C with the orientation A.

    ``contrast`` is how far the sum of correlations stands above that of wrong maps, in their standard deviations; ``mirrored`` tells of the
    handedness of A, which is that of the matrix while the twofold astigmatism is less than the defocus.
    """

    matrix: Matrix
    contrast: float
    mirrored: bool

    @property
    def orientation(self) -> Matrix:
        """A for underfocus, by the polar decomposition of the shifts; with overfocus -A makes the same shifts."""
        u, _, vh = np.linalg.svd(self.matrix)
        return (u @ vh).T

    @property
    def underfocus_A2(self) -> float:
        """lambda times the defocus in Å^2 that goes with ``orientation``."""
        return float(np.linalg.svd(self.matrix, compute_uv=False).mean())


def fit_shifts(bright: BrightField, widest_A: float) -> tuple[Shifts, Shifts]:
    """The best map of either handedness, the better one first; the probe is taken to be no wider than ``widest_A``."""
    stack, steps = _correlations(bright)
    differences = np.linalg.norm(steps, axis=1)
    # Displacement of an image in Å is at most half of what the probe is wide, at the edge of the disk.
    most = widest_A / 2 / bright.aperture_invA
    pixel = min(bright.step_A)
    reach = float(differences.max())
    most = min(most, min(bright.scan_shape) / 2 * pixel / reach)
    sizes = np.arange(1, max(2, math.ceil(most * reach / (0.5 * pixel)))) * 0.5 * pixel / reach
    angles = [np.arange(n) * 360 / n for n in (min(max(8, int(2 * math.pi * size * reach / pixel)), _ANGLES) for size in sizes)]
    found, every = [], []
    for mirrored in (False, True):
        numbers = np.array([(size, angle) for size, at in zip(sizes, angles, strict=True) for angle in at])
        maps = np.stack([_similar(size, angle, mirrored) for size, angle in numbers])
        values = np.concatenate([_sum(stack, steps, bright.step_A, part) for part in np.array_split(maps, max(1, len(maps) // 200))])
        every.append(values)
        found.append((numbers[values.argmax()], mirrored))
    spread = float(np.std(np.concatenate(every))) or 1.0
    refined = []
    for start, mirrored in found:

        def cost(numbers: NDArray[np.float64], mirrored: bool = mirrored) -> float:
            return -float(_sum(stack, steps, bright.step_A, _similar(numbers[0], numbers[1], mirrored)[None])[0]) / spread

        simplex = start + np.array([[0, 0], [sizes[0] / 2, 0], [0, 90 * sizes[0] / start[0]]])
        (size, angle), least, *_ = optimize.fmin(
            cost, start, xtol=1e-3 * start[0], ftol=1e-3, maxfun=60, initial_simplex=simplex, full_output=True, disp=False
        )
        refined.append(Shifts(_similar(size, angle, mirrored), -float(least), mirrored))
    refined.sort(key=lambda s: -s.contrast)
    return refined[0], refined[1]


def _similar(size: float, angle_deg: float, mirrored: bool) -> Matrix:
    """A^T times a number: a turn, a mirror if wanted, and a scale; astigmatism is left to what comes after."""
    forward = MIRROR @ turn(angle_deg) if mirrored else turn(angle_deg)
    return size * forward.T


def _correlations(bright: BrightField) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Summed cross-correlations (d, slow, fast), zero displacement in the centre, and the differences of k (d, 2) in 1/Å that they belong to."""
    spectrum, _ = spectra(bright)
    count, (slow, fast) = len(bright.inside), bright.scan_shape
    reach = max(1, int(_REACH * count))
    pairs = [(y, x) for y in range(reach + 1) for x in range(-reach, reach + 1) if (y, x) > (0, 0) and math.hypot(y, x) <= reach]
    pairs = pairs[:: math.ceil(len(pairs) / _DIFFERENCES)]
    size = 2 * count
    flat = spectrum.reshape(count, count, -1)
    summed = np.empty((len(pairs), flat.shape[2]), np.complex64)
    at = np.array(pairs) % size
    # The autocorrelation over k of each spatial frequency, some frequencies at a time.
    for block in np.array_split(np.arange(flat.shape[2]), max(1, flat.shape[2] * size * size // (1 << 22))):
        power = np.abs(np.fft.fft2(flat[:, :, block], s=(size, size), axes=(0, 1))) ** 2
        summed[:, block] = np.fft.ifft2(power, axes=(0, 1))[at[:, 0], at[:, 1]]
    stack = np.fft.fftshift(np.fft.ifft2(summed.reshape(-1, slow, fast)).real, axes=(1, 2)).astype(np.float32)
    k = np.diff(bright.k_invA, axis=1).mean(1)
    return stack - stack.mean((1, 2), keepdims=True), np.array(pairs) * k


def _sum(stack: NDArray[np.float32], steps: NDArray[np.float64], step_A: tuple[float, float], maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of the correlations along each of the maps (n, 2, 2)."""
    shifts = np.einsum("nij,dj->nid", maps, steps) / np.array(step_A)[:, None]
    middle = np.array(stack.shape[1:]) // 2
    number = np.broadcast_to(np.arange(len(steps)), (len(maps), len(steps)))
    places = [number, shifts[:, 0] + middle[0], shifts[:, 1] + middle[1]]
    total: NDArray[np.float64] = map_coordinates(stack, places, order=1, mode="constant", output=np.float64).sum(1)
    return total
