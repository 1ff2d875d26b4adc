"""Direct ptychography: phase images in one pass over the bright field, linear in the data.

With G(k, Q) the Fourier transform over the scan of what detector pixel k records, a weak phase phi gives

    G(k, Q) = i Phi(Q) gamma(k, Q),    gamma = P*(k) P(k - Q) - P(k) P*(k + Q)

with P the probe's spectrum and its aberrations (Rodenburg, McCallum & Nellist, Ultramicroscopy 48 (1993) 304): every pixel in which the disk
overlaps with a diffracted one measures Phi. The methods differ in how they weigh the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.data import Dataset4D
from ptycho.direct.image import DirectPhase
from ptycho.direct.overlap import Overlaps, pixel_grid
from ptycho.direct.raster import Raster
from ptycho.direct.wigner import deconvolved
from ptycho.start import probe_diameter_A

__all__ = ["METHODS", "DirectPhase", "obf", "ssb", "wdd"]

#: Weights of pixels and frequencies, complex (n, m), from P*(k) P(k - Q) and P(k) P*(k + Q), both (n, m), and |P(k)|^2 (n,).
Weights = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Products of pixels and frequencies at a time.
_AT_A_TIME = 1 << 19
#: A frequency with less than this share of the best one's weight is noise.
_LEAST_WEIGHT = 0.01


def ssb(data: Dataset4D, pad_A: float | None = None) -> DirectPhase:
    """Single side band: the phase of a weak object, from the pixels in which two disks overlap and not three.

    Phi(Q) = -i sum_k w* G / sum_k w* gamma with w the product of the probe in double overlaps (Pennycook et al., Ultramicroscopy 151 (2015)
    160; Yang et al., Ultramicroscopy 171 (2016) 117): every frequency up to twice the aperture's radius is transferred with gain 1, with
    the aberrations of the geometry corrected. ``pad_A`` (default: the diameter of the probe) is the room beyond the borders of the
    scan; 0 takes the scan as one period of a crystal. The scan step must not exceed lambda / (4 alpha), or frequencies alias.
    Raises DataError when the positions are no raster or the geometry is not known.
    """
    numerator, denominator, raster, wanted = _summed(data, pad_A, _two_disks)
    good = denominator.abs() > _LEAST_WEIGHT * denominator.abs().max()
    spectrum = torch.where(good, -1j * numerator / torch.where(good, denominator, 1), 0)
    return _image(data, raster, spectrum, wanted)


def obf(data: Dataset4D, pad_A: float | None = None) -> DirectPhase:
    """Optimum bright field: all pixels of the disk weighed for the best signal to noise, every frequency damped to the same noise.

    w = gamma / I_0 with I_0 the counts that make the noise of a pixel, and Phi(Q) -i sum_k w* G / sqrt(sum_k w* gamma), scaled so that the
    frequency which is transferred best has gain 1 and others as much less as they are noisier (Ooe et al., Ultramicroscopy 220 (2021)
    113133). For few electrons. Arguments and errors as :func:`ssb`.
    """
    numerator, denominator, raster, wanted = _summed(data, pad_A, _best_signal)
    strength = denominator.real.clamp_min(1e-12 * float(denominator.real.max()))
    spectrum = -1j * numerator / torch.sqrt(strength * strength.max())
    return _image(data, raster, spectrum, wanted)


def wdd(data: Dataset4D, epsilon: float = 0.01, pad_A: float | None = None) -> DirectPhase:
    """Wigner distribution deconvolution: the phase of a thin object that need not be weak.

    The ambiguity function of the probe is divided out with a Wiener filter, conj(A) / (|A|^2 + ``epsilon`` max|A|^2), and the object follows
    from O(Q) O*(0) and O(0) O*(-Q) (Rodenburg & Bates, Phil. Trans. R. Soc. A 339 (1992) 521; Li, Edo & Rodenburg, Ultramicroscopy 147
    (2014) 106). Its angle is the image. Other arguments and errors as :func:`ssb`.
    """
    raster, wanted = _raster(data, pad_A)
    wave = deconvolved(data, raster, wanted, epsilon)
    return DirectPhase(np.angle(wave).astype(np.float32), raster.axes_A, raster.origin_A, _cutoff(data, raster))


#: What the recipe's [model] start can name besides "flat".
METHODS: Mapping[str, Callable[[Dataset4D], DirectPhase]] = MappingProxyType({"ssb": ssb, "obf": obf, "wdd": wdd})


def _two_disks(minus: Tensor, plus: Tensor, intensity: Tensor) -> Tensor:
    """gamma without what lies in both overlaps; the edges are soft, and so is the border between two and three disks."""
    whole = intensity.max()
    return minus * (1 - plus.abs() / whole).clamp_min(0) - plus * (1 - minus.abs() / whole).clamp_min(0)


def _best_signal(minus: Tensor, plus: Tensor, intensity: Tensor) -> Tensor:
    """gamma over the counts of the pixel; the faint rim of the disk also has counts that are scattered there."""
    return (minus - plus) / (intensity + 0.01 * intensity.max())[:, None]


def _summed(data: Dataset4D, pad_A: float | None, weights: Weights) -> tuple[Tensor, Tensor, Raster, Tensor]:
    """(sum_k w* G, sum_k w* gamma), each complex128 (M,), over the pixels of the disk, with their raster and frequencies."""
    raster, wanted = _raster(data, pad_A)
    overlaps, k = Overlaps.of(data.geometry), pixel_grid(data.geometry)
    intensity = overlaps.intensity(k)
    pixels = np.flatnonzero((intensity > 0).numpy() & data.mask.ravel())
    q = raster.frequencies_invA()[wanted]
    numerator, denominator = torch.zeros(2, len(q), dtype=torch.complex128)
    for part, spectra, _ in raster.spectra(data, pixels, wanted):
        for some in torch.arange(len(q)).split(max(1, _AT_A_TIME // len(part))):
            minus, plus = overlaps.product(k[part], -q[some]).conj(), overlaps.product(k[part], q[some])
            weight = weights(minus, plus, intensity[part]).conj()
            numerator[some] += (weight * spectra[:, some]).sum(0)
            denominator[some] += (weight * (minus - plus)).sum(0)
    return numerator, denominator, raster, wanted


def _raster(data: Dataset4D, pad_A: float | None) -> tuple[Raster, Tensor]:
    """The raster and the frequencies up to twice the aperture's radius."""
    geometry = data.geometry
    raster = Raster.of(data, probe_diameter_A(geometry) if pad_A is None else pad_A)
    finest = 1 / (4 * geometry.aperture_invA)
    if max(raster.steps_A) > 1.02 * finest:
        warning = (
            f"direct methods: a scan step of {max(raster.steps_A):.3g} Å is coarser than lambda / (4 alpha) = {finest:.3g} Å; "
            "frequencies above the scan's Nyquist limit fold back"
        )
        if warning not in data.warnings:
            data.warnings.append(warning)
    return raster, raster.within(2 * geometry.aperture_invA)


def _cutoff(data: Dataset4D, raster: Raster) -> float:
    return min(2 * data.geometry.aperture_invA, 0.5 / max(raster.steps_A))


def _image(data: Dataset4D, raster: Raster, spectrum: Tensor, wanted: Tensor) -> DirectPhase:
    phase: NDArray[np.float32] = raster.cropped(spectrum, wanted)
    return DirectPhase(phase - phase.mean(), raster.axes_A, raster.origin_A, _cutoff(data, raster))
