"""How good a reconstruction is: what two independent halves of its data agree on, how far they scatter, what no data constrain.

Plain NumPy. Lengths in Å, frequencies in Å⁻¹ (cycles), phases in rad, arrays (y, x) or (slices, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from ptycho.errors import DataError
from ptycho.metrics import flat, fourier_shell_correlation

if TYPE_CHECKING:
    from ptycho.result import Result

Image: TypeAlias = NDArray[np.float64]

#: The correlation of two halves at which the whole has one of 0.5 with the truth (Rosenthal & Henderson, J. Mol. Biol. 333 (2003) 721).
FSC_OF_HALVES = 0.143
#: Half a bit of information in each value: signal by noise power of the whole, halved for each of the halves.
_HALF_BIT = (np.sqrt(2) - 1) / 2
#: Shot noise leaves at best half of what an ideal phase plate sees to a detector in the far field (Dwyer & Paganin, Phys. Rev. B 110 (2024) 024110).
_BEST_DQE = 0.5
#: The local scatter is averaged over about so many independent values, which know it to a tenth, and over this part of the field at most.
_VALUES, _WIDEST_WINDOW = 50, 1 / 8
#: A pixel with less than this part of the light in the scanned field, or so many times its standard error, is not constrained.
_LEAST_LIGHT, _MOST_ERROR = 0.05, 3.0
#: The halves are searched for their best overlap within this many pixels.
_SEARCH_PX = 4
_SMALLEST_FIELD_PX = 16
#: Softness of the field's edge where it does not fill the rectangle.
_EDGE_PX = 2.0
#: The first and the last crossing differ by more than this factor: the correlation has gaps.
_GAPS = 1.15
#: A frequency at which the positions have so much of a pattern, and so much more than as many scattered ones, belongs to their raster, and so
#: many pixels around it do; near zero none does.
_RASTER, _SCATTERED, _RASTER_REACH_PX, _RASTER_FREE_PX = 0.1, 4.0, 2, 8


@dataclass(frozen=True, eq=False)
class Correlation:
    """Fourier ring (2-D) or shell (3-D) correlation of the two halves.

    ``frequency_invA``, ``correlation`` and the threshold ``half_bit``, all float64 (shells,). ``half_bit_A`` is the resolution where the
    correlation first falls below half a bit of information in each value (van Heel & Schatz, J. Struct. Biol. 151 (2005) 250, eq. 17, with
    the number of independent values that the taper leaves), ``fixed_A`` where it first falls to 0.143; inf when nothing is common. The
    correlation of a crystal falls between its Bragg rings and comes back: ``outermost_A`` is where it is above half a bit for the last time.
    """

    frequency_invA: NDArray[np.float64] = field(repr=False)
    correlation: NDArray[np.float64] = field(repr=False)
    half_bit: NDArray[np.float64] = field(repr=False)
    half_bit_A: float
    fixed_A: float
    outermost_A: float


@dataclass(frozen=True, eq=False)
class Quality:
    """What two reconstructions from independent halves of the data say of the whole.

    ``split`` tells how the data were halved: "electrons" (every pattern) or "positions". ``frc`` is of the phase summed over the slices,
    ``fsc`` of all slices (None for one). ``standard_error_rad`` float32 (y, x) is that of the summed phase of the whole at each pixel, from
    half the difference of the halves averaged locally; NaN where there is no light. ``shot_noise_rad`` float32 (y, x) is the least error that the
    electrons on that place allow at the resolution ``frc.half_bit_A``: sqrt(pi / (4 D DQE)) / d with D electrons per Å² and DQE = 1/2.
    ``constrained`` bool (y, x) is False where little or no light fell, or the error is three times the usual one. ``error_rad`` is the root mean
    square of the standard error in the scanned field.

    Noise is what this measures. What both halves have in common is taken for the specimen: a wrong defocus or too few slices do not
    lower the correlation. The frequencies of a raster of positions are left out of it, where artefacts of the raster would count as
    specimen. Of a perfect crystal it is optimistic: each Bragg ring holds the sum of all unit cells.
    """

    split: str
    frc: Correlation
    fsc: Correlation | None
    standard_error_rad: NDArray[np.float32] = field(repr=False)
    shot_noise_rad: NDArray[np.float32] = field(repr=False)
    constrained: NDArray[np.bool_] = field(repr=False)
    error_rad: float

    def summary(self) -> str:
        """One line for a person."""
        if not np.isfinite(self.frc.half_bit_A):
            return "the halves of the data have nothing in common above half a bit: this dose or these settings show no specimen"
        comes_back = self.frc.half_bit_A > _GAPS * self.frc.outermost_A
        return (
            f"resolution {self.frc.half_bit_A:.3g} Å (half-bit{f'; with gaps to {self.frc.outermost_A:.3g} Å' if comes_back else ''}), "
            f"{self.frc.fixed_A:.3g} Å (FRC {FSC_OF_HALVES}), standard error {1e3 * self.error_rad:.3g} mrad in the scanned field"
        )


@dataclass(frozen=True, eq=False)
class Residual:
    """Model against data by scattering angle, for some of the patterns; all float64 (rings,), the first ring is the centre.

    ``angle_mrad``; ``measured_e`` and ``modelled_e``, mean electrons per pixel; ``deviance`` of Poisson's law over its mean for a perfect model
    and ``chi_squared``, sum (d - m)^2 / (s sum m), both 1 for a perfect model at any dose. Above it the model does not describe the ring
    (slices, modes, defocus, background); below it the fit follows the noise. ``noise_scale`` s is the variance of the noise over its
    mean: 1 for electrons, less where an electron spreads over several counts.
    """

    angle_mrad: NDArray[np.float64] = field(repr=False)
    measured_e: NDArray[np.float64] = field(repr=False)
    modelled_e: NDArray[np.float64] = field(repr=False)
    deviance: NDArray[np.float64] = field(repr=False)
    chi_squared: NDArray[np.float64] = field(repr=False)
    noise_scale: float = 1.0


def check_field(whole: Result) -> None:
    """Raise DataError when the scanned field is too small for a correlation of halves."""
    sides = [axis.stop - axis.start for axis in whole.scanned]
    if min(sides) < _SMALLEST_FIELD_PX:
        field_px = f"{sides[0]} x {sides[1]} pixels"
        raise DataError(f"the scanned field of {field_px} is too small to compare halves of the data; {_SMALLEST_FIELD_PX} are needed")


def assess(whole: Result, halves: tuple[Result, Result], kept: tuple[NDArray[np.int64], NDArray[np.int64]], split: str) -> Quality:
    """Quality of ``whole`` from the reconstructions of two halves, each with the positions ``kept`` (numbers) of the whole.

    A shift, and the constant and the plane of each slice are taken away: they are the gauges of ptychography. Raises DataError when the
    field is too small.
    """
    check_field(whole)
    one, two = (_registered(half, numbers, whole) for half, numbers in zip(halves, kept, strict=True))
    light, pixel_A, scanned = illumination(whole), whole.pixel_A, whole.scanned
    lit = light >= _LEAST_LIGHT * float(np.median(light[tuple(np.rint(whole.positions_A / pixel_A).astype(int).T)]))
    seen = lit[scanned]  # of a rotated scan not all of the rectangle about it
    use = ~raster_frequencies(whole)
    totals = [_tapered(half.sum(0)[scanned], seen) for half in (one, two)]
    frc, fsc = correlate(totals[0], totals[1], (pixel_A, pixel_A), use), None
    if len(one) > 1:
        slices = [np.stack([_tapered(part[scanned], seen) for part in half]) for half in (one, two)]
        fsc = correlate(slices[0], slices[1], (float(whole.slice_thickness_A.mean()), pixel_A, pixel_A), use)
    resolution_A = frc.half_bit_A if np.isfinite(frc.half_bit_A) else 2 * pixel_A
    where = np.zeros(lit.shape, bool)
    where[scanned] = seen
    difference = _without_plane((one - two).sum(0), where)
    error = standard_error(difference, lit, _window_px(np.where(where, difference, 0)[scanned]))
    dose = np.where(lit, light, np.nan) / pixel_A**2
    return Quality(
        split=split,
        frc=frc,
        fsc=fsc,
        standard_error_rad=error.astype(np.float32),
        shot_noise_rad=(np.sqrt(np.pi / (4 * dose * _BEST_DQE)) / resolution_A).astype(np.float32),
        constrained=lit & (error <= _MOST_ERROR * float(np.median(error[where]))),
        error_rad=float(np.sqrt(np.mean(error[where] ** 2))),
    )


def correlate(one: Image, two: Image, spacing_A: tuple[float, ...], use: NDArray[np.bool_] | None = None) -> Correlation:
    """Fourier ring or shell correlation of two registered halves (y, x) or (slices, y, x), with its thresholds and resolutions.

    Only the frequencies ``use`` (y, x), in corner order, count.
    """
    frequency, correlation, independent = fourier_shell_correlation(one, two, spacing_A, use=use)
    threshold = half_bit(independent)
    first, last = _resolved(correlation, threshold)
    return Correlation(
        frequency,
        correlation,
        threshold,
        half_bit_A=_crossing_A(frequency, correlation - threshold, first),
        fixed_A=_crossing_A(frequency, correlation - FSC_OF_HALVES, first),
        outermost_A=_crossing_A(frequency, correlation - threshold, last),
    )


def half_bit(independent: NDArray[Any]) -> Image:
    """Correlation of two halves, with so many independent values, when the whole holds half a bit in each value; any shape.

    (S + (2 sqrt(S) + 1) / sqrt(n)) / (S + 1 + 2 sqrt(S) / sqrt(n)), S = 0.2071 (van Heel & Schatz 2005, eq. 17).
    """
    root = np.sqrt(np.maximum(independent, 1e-9))
    return np.asarray((_HALF_BIT + (2 * np.sqrt(_HALF_BIT) + 1) / root) / (_HALF_BIT + 1 + 2 * np.sqrt(_HALF_BIT) / root))


def standard_error(difference: Image, lit: NDArray[np.bool_], window_px: float) -> Image:
    """Standard error (y, x) of the mean of two halves from their ``difference``, NaN where not ``lit``.

    Half the difference of two independent values has the variance of their mean; its square is averaged with a Gaussian of
    ``window_px`` (standard deviation) over what is lit.
    """
    weight = ndimage.gaussian_filter(lit.astype(np.float64), window_px, mode="constant")
    square = ndimage.gaussian_filter(np.where(lit, difference / 2, 0.0) ** 2, window_px, mode="constant")
    return np.sqrt(np.divide(square, weight, out=np.full(square.shape, np.nan), where=lit))


def _window_px(difference: Image) -> float:
    """Standard deviation of the Gaussian, 4 pi s^2 pixels of equal weight, that holds about ``_VALUES`` independent values of the difference.

    Noise with the power P at each of N frequencies has (sum P)^2 / sum P^2 of them; of a single sample sum P^2 is twice what it is on average.
    """
    power = np.abs(np.fft.fft2(difference)) ** 2
    independent = 2 * power.sum() ** 2 / max(float((power**2).sum()), 1e-300)
    widest = _WIDEST_WINDOW * min(difference.shape)
    return float(min(np.sqrt(_VALUES * difference.size / max(independent, 1.0) / (4 * np.pi)), widest))


def illumination(result: Result) -> Image:
    """Electrons that fell on each pixel of the object (y, x): the sum over positions and modes of |P(r - R)|^2."""
    intensity = (np.abs(result.probe).astype(np.float64) ** 2).sum(0)
    shape = result.object.shape[-2:]
    corners = result.positions_A / result.pixel_A - len(intensity) // 2
    spectrum = np.fft.rfft2(_visits(corners, shape)) * np.fft.rfft2(intensity, s=shape)
    return np.fft.irfft2(spectrum, s=shape).clip(0)


def raster_frequencies(result: Result) -> NDArray[np.bool_]:
    """Where in the Fourier transform of the scanned field (y, x), in corner order, the raster of the positions lies; nowhere if there is none."""
    rows, columns = result.scanned
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    visits = _visits(result.positions_A / result.pixel_A - [rows.start, columns.start], shape)
    spectrum = np.abs(np.fft.fft2(visits * np.outer(*(np.hanning(n + 2)[1:-1] for n in shape))))
    y, x = (np.fft.fftfreq(n) * n for n in shape)
    far = np.hypot(y[:, None], x) > _RASTER_FREE_PX
    # Scattered positions have 3/2 / sqrt(N) on average under Hann's window.
    least = max(_RASTER, _SCATTERED * 1.5 / np.sqrt(len(result.positions_A)))
    peaks = np.fft.fftshift(far & (spectrum > least * spectrum[0, 0]))
    reach = ndimage.binary_dilation(peaks, iterations=_RASTER_REACH_PX) if peaks.any() else peaks
    return np.asarray(np.fft.ifftshift(reach) & far)


def _visits(positions_px: NDArray[np.float64], shape: tuple[int, ...]) -> Image:
    """Number of positions (N, 2) on each pixel (y, x), each shared out among the four pixels about it; periodic."""
    first = np.floor(positions_px).astype(int)
    share = positions_px - first
    visits = np.zeros(shape)
    for y in (0, 1):
        for x in (0, 1):
            weight = np.abs(1 - y - share[:, 0]) * np.abs(1 - x - share[:, 1])
            np.add.at(visits, ((first[:, 0] + y) % shape[0], (first[:, 1] + x) % shape[1]), weight)
    return visits


def _registered(half: Result, kept: NDArray[np.int64], whole: Result) -> Image:
    """Phase (slices, y, x) of a half, with the positions ``kept``, on the pixels of the whole, where their scanned fields agree best."""
    phase, shape = np.asarray(half.phase, np.float64), whole.phase.shape[1:]
    shift = (whole.positions_A[kept].mean(0) - half.positions_A.mean(0)) / whole.pixel_A
    total, reference = phase.sum(0), np.asarray(whole.phase, np.float64).sum(0)[whole.scanned]
    shift = shift + _shift_px(_moved(total, shift, shape)[whole.scanned], reference)
    return np.stack([_moved(part, shift, shape) for part in phase])


def _moved(image: Image, shift_px: NDArray[np.float64], shape: tuple[int, ...]) -> Image:
    """The image (y, x) displaced by ``shift_px`` on a canvas of ``shape``: splines of degree 5, which stay local at a wild rim."""
    return np.asarray(ndimage.affine_transform(image, np.ones(2), -shift_px, shape, order=5, mode="nearest"))


def _shift_px(image: Image, reference: Image) -> NDArray[np.float64]:
    """Displacement (y, x) in pixels of ``image`` with which it correlates best with ``reference``: best whole pixels, then the simplex method."""
    taper = np.outer(*(np.hanning(n + 2)[1:-1] for n in image.shape))
    product = np.fft.fft2(flat(reference) * taper) * np.fft.fft2(flat(image) * taper).conj()
    ky, kx = (np.fft.fftfreq(n) for n in image.shape)

    def overlap(shift: NDArray[Any]) -> float:
        return float((np.exp(2j * np.pi * ky * shift[0]) @ product @ np.exp(2j * np.pi * kx * shift[1])).real)

    near = [np.array([y, x], float) for y in range(-_SEARCH_PX, _SEARCH_PX + 1) for x in range(-_SEARCH_PX, _SEARCH_PX + 1)]
    start = max(near, key=overlap)
    simplex = start + np.array([[0.1, 0.1], [-0.15, 0.05], [0.05, -0.15]])
    scale = abs(overlap(start)) or 1.0

    def disagreement(shift: NDArray[Any]) -> float:
        return -overlap(shift) / scale

    return np.asarray(optimize.fmin(disagreement, start, xtol=1e-3, ftol=1e-9, disp=False, initial_simplex=simplex), np.float64)


def _without_plane(image: Image, where: NDArray[np.bool_]) -> Image:
    """Without the constant and the plane that fit best at the pixels ``where``."""
    y, x = np.indices(image.shape) / max(image.shape)
    basis = np.stack([np.ones(image.shape), y, x])
    coefficients = np.linalg.lstsq(basis[:, where].T, image[where], rcond=None)[0]
    return np.asarray(image - np.tensordot(coefficients, basis, 1))


def _tapered(image: Image, where: NDArray[np.bool_]) -> Image:
    """Without its plane, and zero where nothing was seen, with a soft edge: the corners about a rotated field."""
    return _without_plane(image, where) * np.where(where, ndimage.gaussian_filter(where.astype(np.float64), _EDGE_PX, mode="nearest"), 0)


def _resolved(correlation: Image, threshold: Image) -> tuple[int, int]:
    """The ends of the innermost and of the outermost two shells in a row above the threshold, since one alone may be chance; 0, 0 without any.

    Below the innermost ones it may dip: ptychography transfers little of the lowest frequencies.
    """
    # The first two shells hold the constant and the plane, which were taken away.
    above = correlation[2:] > threshold[2:]
    pairs = np.flatnonzero(above[1:] & above[:-1])
    return (int(pairs[0]) + 3, int(pairs[-1]) + 3) if len(pairs) else (0, 0)


def _crossing_A(frequency: Image, excess: Image, last: int) -> float:
    """Resolution where the excess over the threshold falls to zero behind shell ``last``, between two shells; the grid's limit if it does not."""
    if last == 0:
        return float("inf")
    below = np.flatnonzero(excess[last + 1 :] <= 0)
    if not len(below):
        return float(1 / frequency[-1])
    i = last + 1 + int(below[0])
    part = excess[i - 1] / (excess[i - 1] - excess[i])
    return float(1 / (frequency[i - 1] + part * (frequency[i] - frequency[i - 1])))
