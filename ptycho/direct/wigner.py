"""Wigner distribution deconvolution: the object's spectrum from its products with itself.

Over the scan and the detector G(k, Q) = sum_k' O(k') O*(k' - Q) P(k - k') P*(k - k' + Q) (Rodenburg & Bates, Phil. Trans. R. Soc. A 339
(1992) 521, eq. 18): a convolution over k, undone in the space of r, conjugate to k. Of what comes out, k' = Q and k' = 0 have the factor
O(0), the strong unscattered wave, and give O(Q) and O*(-Q).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from ptycho.data import Dataset4D
from ptycho.direct.overlap import Overlaps, pixel_grid
from ptycho.direct.raster import Raster
from ptycho.geometry import Geometry

#: Pixels within this many radii of the disk, along each axis, are looked at: the filter spreads a little beyond the disk.
_REACH = 1.25
#: Elements of a block of transforms.
_AT_A_TIME = 1 << 21
#: Frequencies that the filter passes less than this, against the best, are noise.
_LEAST_PASSED = 0.01
#: Of what tells O(Q) from O*(-Q): at low frequencies both are the same pixels.
_LEAST_APART = 0.1


@dataclass(frozen=True, eq=False)
class _Box:
    """The square of detector pixels that takes part: numbers of its ``pixels`` (n,) in the pattern and their places (n, 2) in it, in corner order."""

    pixels: NDArray[np.int64]
    places: NDArray[np.int64]
    size: int
    r_A: Tensor

    @classmethod
    def of(cls, geometry: Geometry) -> _Box:
        ky, kx = (np.arange(n) - n // 2 for n in geometry.pattern_shape)
        half = math.ceil(_REACH * geometry.disk_radius_px)
        y, x = np.meshgrid(ky, kx, indexing="ij")
        inside = np.maximum(abs(y), abs(x)).ravel() <= half
        size = next_fast_len(2 * half + 1)
        places = np.stack([y.ravel(), x.ravel()], 1)[inside] % size
        return cls(np.flatnonzero(inside), places, size, torch.fft.fftfreq(size, geometry.pixel_invA, dtype=torch.float64))

    def transformed(self, places: NDArray[np.int64], values: Tensor) -> Tensor:
        """sum_k exp(2 pi i k.r) of values (n, m) on some places (n, 2), zero on others: complex (m, r, r)."""
        whole = torch.zeros(values.shape[1], self.size, self.size, dtype=values.dtype)
        whole[:, places[:, 0], places[:, 1]] = values.mT
        return torch.fft.ifft2(whole, norm="forward")

    def at(self, values: Tensor, q: Tensor) -> Tensor:
        """sum_r exp(-2 pi i q.r) of values (m, r, r), each at its own q (m, 2): complex (m,)."""
        ramps = torch.exp(-2j * math.pi * q[:, :, None] * self.r_A)
        return torch.einsum("myx,my,mx->m", values.to(ramps.dtype), ramps[:, 0], ramps[:, 1])


def deconvolved(data: Dataset4D, raster: Raster, wanted: Tensor, epsilon: float) -> NDArray[np.complex128]:
    """The object complex (slow, fast) on the points of the scan, up to a factor that makes its mean positive.

    ``wanted`` (rows, columns) are the frequencies, ``epsilon`` the noise of the filter in parts of the greatest \\|A\\|^2.
    """
    box, overlaps, k = _Box.of(data.geometry), Overlaps.of(data.geometry), pixel_grid(data.geometry)
    lit = np.flatnonzero((overlaps.intensity(k) > 0).numpy())
    lit = lit[np.isin(lit, box.pixels)]
    place_of = dict(zip(box.pixels.tolist(), range(len(box.pixels)), strict=True))
    lit_places = box.places[[place_of[n] for n in lit.tolist()]]
    q = torch.cat([raster.frequencies_invA()[wanted], torch.zeros(1, 2, dtype=torch.float64)])  # the last is Q = 0
    upper, lower, apart, passed = (torch.zeros(len(q), dtype=torch.complex128) for _ in range(4))
    used = box.pixels[data.mask.ravel()[box.pixels]]
    for part, spectra, means in raster.spectra(data, used, wanted):
        places = box.places[[place_of[n] for n in part.tolist()]]
        all_spectra = torch.cat([spectra, (means * math.prod(raster.padded)).to(spectra.dtype)[:, None]], 1)
        for some in torch.arange(len(q)).split(max(1, _AT_A_TIME // box.size**2)):
            probe = box.transformed(lit_places, overlaps.product(k[lit], q[some]))
            strength = probe.abs().square()
            noise = strength + epsilon  # the greatest |A|^2 is that of r = 0, Q = 0: the beam's power, 1
            found = box.transformed(places, all_spectra[:, some]) * probe.conj() / noise
            upper[some] += box.at(found, q[some])
            lower[some] += found.sum((1, 2))
            filter_ = strength / noise
            apart[some], passed[some] = box.at(filter_, q[some]).to(torch.complex128), filter_.sum((1, 2)).to(torch.complex128)
    return _object(raster, wanted, upper / passed, lower / passed, apart / passed, passed.real)


def _object(raster: Raster, wanted: Tensor, upper: Tensor, lower: Tensor, apart: Tensor, passed: Tensor) -> NDArray[np.complex128]:
    """The wave whose terms Q and -Q, of the half plane, are told apart: upper = a + w b and lower = w* a + b with a = O(Q) O*(0), b = O(0) O*(-Q)."""
    whole = (1 - apart.abs().square()).clamp_min(_LEAST_APART)
    a, b = (upper - apart * lower) / whole, (lower - apart.conj() * upper) / whole
    kept = passed > _LEAST_PASSED * passed.max()
    centre = upper[-1].real  # Q = 0: |O(0)|^2
    rows, columns = raster.padded
    spectrum = torch.zeros(rows, columns, dtype=torch.complex128)
    row, column = torch.nonzero(wanted, as_tuple=True)
    scale = math.prod(raster.padded) / centre
    for sign, values in ((-1, b.conj()), (1, a)):
        spectrum[(sign * row) % rows, (sign * column) % columns] = torch.where(kept, values * scale, 0)[:-1]
    spectrum[0, 0] = math.prod(raster.padded)
    return np.asarray(torch.fft.ifft2(spectrum)[: raster.shape[0], : raster.shape[1]].numpy())
