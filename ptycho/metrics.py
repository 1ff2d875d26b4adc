"""How far a recovered phase agrees with a known one, and how two reconstructions agree with each other.

Legitimate differences (a shift, a constant, a plane: the gauges of ptychography) are taken away; scale, rotation, blur and
contrast are not, they are what is judged. Lengths in Å, frequencies in Å⁻¹ (cycles), arrays (y, x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, signal

from ptycho.errors import DataError

Image: TypeAlias = NDArray[np.float64]

#: Correlation of two spectra below which a shell is not resolved, when one of them has no noise (truth).
FRC_AGAINST_TRUTH = 0.5


@dataclass(frozen=True)
class Agreement:
    """How well a recovered phase agrees with the truth.

    ``correlation`` (Pearson); ``slope``, recovered over true phase by least squares: 1 is quantitative; ``resolution_A``, where the
    Fourier ring correlation falls to 0.5; ``shift_px`` (y, x), how far the recovered image lies from the truth, in its own pixels;
    ``rms_rad`` of the difference; ``rings``, (frequency in Å⁻¹, correlation) of each Fourier ring: between the reflections of a crystal
    there is nothing to agree on, so that at low dose its first fall says little. All in the compared part of the field, after the band
    limit, without constant and plane.
    """

    correlation: float
    slope: float
    resolution_A: float
    shift_px: tuple[float, float]
    rms_rad: float
    rings: tuple[tuple[float, float], ...] = field(repr=False)

    def ring_at(self, spacing_A: float) -> float:
        """Fourier ring correlation of the ring that holds a lattice spacing."""
        return min(self.rings, key=lambda ring: abs(ring[0] - 1 / spacing_A))[1]


def compare_with_truth(
    phase: NDArray[Any],
    pixel_A: float,
    truth: NDArray[Any],
    truth_pixel_A: float,
    centre_A: tuple[float, float],
    field_A: tuple[float, float],
    cutoff_invA: float | None = None,
    margin_A: float | None = None,
    search_A: float = 2.0,
) -> Agreement:
    """Compare ``phase`` (y, x) with ``truth`` (y, x), both in rad, inside the scanned field.

    ``centre_A`` (y, x) is the centre of the scanned field from the centre of ``phase[0, 0]`` and ``field_A`` its sides; in the truth,
    taken as periodic, it lies at half the array, (n / 2) pixels from ``truth[0, 0]``. Both are limited to ``cutoff_invA`` (default:
    the limit of the phase's grid), the last fifth with a cosine edge. ``margin_A`` is left out on each side (default: 5 % of the
    shorter side; the rim is seen by few probe positions). The shift that maximises the correlation is looked for within
    ``search_A``: of a crystal, the equivalent one nearest to perfect wins. Raises DataError when there is nothing to compare.
    """
    phase, truth = _checked("phase", phase), _checked("truth", truth)
    cutoff = min(cutoff_invA or np.inf, 0.5 / pixel_A)
    margin = 0.05 * min(field_A) if margin_A is None else margin_A
    rows, columns = (_axis_inside(n, pixel_A, c, f / 2 - margin) for n, c, f in zip(phase.shape, centre_A, field_A, strict=True))
    if min(len(rows), len(columns)) < 8:
        sides = f"{field_A[0]:g} x {field_A[1]:g} Å without {margin:g} Å on each side"
        raise DataError(f"the scanned field of {sides} has less than 8 pixels in the phase; check centre_A, field_A and margin_A")
    recovered = flat(_band_limited(phase, pixel_A, cutoff)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    true_at = _sampler(truth, truth_pixel_A, cutoff)

    def expected(shift_px: NDArray[Any], border: int = 0) -> Image:
        """The truth on the pixels of ``recovered`` and ``border`` more on each side, when the recovered image lies ``shift_px`` from it."""
        y, x = (
            (np.arange(axis[0] - border, axis[-1] + border + 1) - shift) * pixel_A - centre + n / 2 * truth_pixel_A
            for axis, shift, centre, n in zip((rows, columns), shift_px, centre_A, truth.shape, strict=True)
        )
        return true_at(y, x)

    if recovered.std() <= 1e-9 * np.abs(phase).max() or flat(expected(np.zeros(2))).std() <= 1e-9 * np.abs(truth).max():
        raise DataError("phase or truth is flat in the scanned field; there is nothing to compare")
    shift = _register(recovered, expected, border=max(4, round(search_A / pixel_A)))
    true = flat(expected(shift))
    frequency, frc = fourier_ring_correlation(recovered, true, pixel_A)
    return Agreement(
        correlation=_correlation(recovered, true),
        slope=float((recovered * true).sum() / (true * true).sum()),
        resolution_A=1 / _crossing(frequency, frc, cutoff),
        shift_px=(float(shift[0]), float(shift[1])),
        rms_rad=float(np.sqrt(np.mean((recovered - true) ** 2))),
        rings=tuple(zip(frequency.tolist(), frc.tolist(), strict=True)),
    )


def fourier_ring_correlation(a: NDArray[Any], b: NDArray[Any], pixel_A: float, window: bool = True) -> tuple[Image, Image]:
    """Correlation of two registered images (y, x) ring by ring: (frequency_invA, frc), both (rings,), from 0 to the grid's limit.

    FRC(q) = Re sum F_a F_b* / sqrt(sum |F_a|^2 sum |F_b|^2) (Saxton & Baumeister, J. Microsc. 127 (1982) 127), rings one pixel of
    reciprocal space wide. ``window`` tapers both with a Hann window, without which the borders correlate. Resolution is where it
    falls to 0.5 against a truth, to 0.143 between two halves of the data. Raises DataError when the shapes differ.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise DataError(f"two images of the same shape are needed, not {a.shape} and {b.shape}")
    return fourier_shell_correlation(a, b, (pixel_A, pixel_A), window)[:2]


def fourier_shell_correlation(
    a: NDArray[Any], b: NDArray[Any], spacing_A: tuple[float, ...], window: bool = True, use: NDArray[np.bool_] | None = None
) -> tuple[Image, Image, Image]:
    """The same for images (y, x) or volumes (z, y, x) of ``spacing_A`` along each axis: (frequency_invA, fsc, independent), all (shells,).

    Shells of |q| (Harauz & van Heel, Optik 73 (1986) 146), from 0 to the limit of the grid in y and x, which the window tapers; z, of which
    there are few samples, it does not. ``independent`` is the number of independent real values in a shell: of noise alone the
    correlation has the standard deviation 1 / sqrt(independent). A conjugate pair counts twice; the taper makes neighbours alike, of
    which only those along the shell are in it, and leaves (sum w^2)^2 / (n sum w^4), 0.51 for Hann's. ``use`` (y, x), in corner order, is False
    at frequencies that do not count.
    """
    sides, pixel_A = a.shape[-2:], spacing_A[-1]
    tapers = [np.hanning(n + 2)[1:-1] if window else np.ones(n) for n in sides]
    taper = np.outer(*tapers)
    spectrum_a, spectrum_b = np.fft.fftn(a * taper), np.fft.fftn(b * taper)
    shell_invA = 1 / (min(sides) * pixel_A)
    shells = min(sides) // 2 + 1
    shell = np.rint(_frequency(a.shape, spacing_A) / shell_invA).astype(int)
    inside = (shell < shells) if use is None else (shell < shells) & use

    def total(values: NDArray[Any]) -> Image:
        return np.asarray(np.bincount(shell[inside], values[inside], shells), np.float64)

    power = total(np.abs(spectrum_a) ** 2) * total(np.abs(spectrum_b) ** 2)
    common = total((spectrum_a * spectrum_b.conj()).real)
    alone = float(np.mean([(w**2).sum() ** 2 / (len(w) * (w**4).sum()) for w in tapers]))
    correlation = np.divide(common, np.sqrt(power), out=np.zeros(shells), where=power > 0)
    return np.arange(shells) * shell_invA, correlation, total(np.ones(a.shape)) * alone


def _checked(name: str, image: NDArray[Any]) -> Image:
    if image.ndim != 2:
        raise DataError(f"{name} has the shape {image.shape}; two axes (y, x) are needed: sum the slices")
    if not np.isfinite(image).all():
        raise DataError(f"{name} has {np.count_nonzero(~np.isfinite(image))} values that are not finite")
    return np.asarray(image, np.float64)


def _axis_inside(size: int, pixel_A: float, centre_A: float, half_A: float) -> NDArray[np.intp]:
    """Pixels within ``half_A`` of the centre; empty when there are none."""
    return np.flatnonzero(np.abs(np.arange(size) * pixel_A - centre_A) <= half_A)


def _frequency(shape: tuple[int, ...], spacing_A: tuple[float, ...]) -> Image:
    axes = np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(shape, spacing_A, strict=True)), indexing="ij", sparse=True)
    return np.asarray(np.sqrt(sum(k**2 for k in axes)))


def _pass_band(frequency_invA: Image, cutoff_invA: float) -> Image:
    """1 up to 0.8 of the cut-off, then half a cosine to 0: a sharp edge would ring from the noisy rim into the field."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(frequency_invA / (0.2 * cutoff_invA) - 4, 0, 1))


def _band_limited(image: Image, pixel_A: float, cutoff_invA: float) -> Image:
    return np.fft.ifft2(np.fft.fft2(image) * _pass_band(_frequency(image.shape, (pixel_A, pixel_A)), cutoff_invA)).real


def _sampler(truth: Image, pixel_A: float, cutoff_invA: float) -> Callable[[Image, Image], Image]:
    """The band-limited truth at any rows and columns (Å from truth[0, 0]): its Fourier series, no interpolation."""
    spectrum = np.fft.fft2(truth) / truth.size * _pass_band(_frequency(truth.shape, (pixel_A, pixel_A)), cutoff_invA)
    ky, kx = (np.fft.fftfreq(n, pixel_A) for n in truth.shape)
    keep_y, keep_x = np.abs(ky) < cutoff_invA, np.abs(kx) < cutoff_invA
    kept, ky, kx = spectrum[np.ix_(keep_y, keep_x)], ky[keep_y], kx[keep_x]

    def at(y: Image, x: Image) -> Image:
        return (np.exp(2j * np.pi * np.outer(y, ky)) @ kept @ np.exp(2j * np.pi * np.outer(kx, x))).real

    return at


def flat(image: Image) -> Image:
    """Without the constant and the plane that fit it best: the global phase, and a ramp that belongs to the probe's tilt."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in image.shape)
    # The three are orthogonal on a rectangle, so that each projects by itself.
    image = image - image.mean()
    image = image - np.outer(y, np.ones_like(x)) * ((image.sum(1) @ y) / (len(x) * (y @ y)))
    return np.asarray(image - np.outer(np.ones_like(y), x) * ((image.sum(0) @ x) / (len(y) * (x @ x))))


def _correlation(a: Image, b: Image) -> float:
    """Pearson; both have no mean."""
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _register(recovered: Image, expected: Callable[..., Image], border: int) -> NDArray[np.float64]:
    """Shift in pixels (y, x) of the highest correlation: the best within ``border``, then by the simplex method."""
    wide = expected(np.zeros(2), border)
    wide = wide - wide.mean()
    ones = np.ones_like(recovered)
    products = signal.correlate(wide, recovered, "valid")
    mean = signal.correlate(wide, ones, "valid") / ones.size
    variance = signal.correlate(wide**2, ones, "valid") / ones.size - mean**2
    score = products / np.sqrt(np.maximum(variance, 1e-6 * variance.max()))
    # A crystal has several peaks nearly as high as the right one: whole pixels are too coarse to tell which is the highest.
    fine = np.mgrid[0 : 2 * border : (16 * border + 1) * 1j, 0 : 2 * border : (16 * border + 1) * 1j]
    peak = ndimage.map_coordinates(score, fine, order=3).argmax()
    start = border - fine.reshape(2, -1)[:, peak]
    simplex = start + np.array([[0.1, 0.1], [-0.15, 0.05], [0.05, -0.15]])

    def disagreement(shift: NDArray[Any]) -> float:
        return -_correlation(recovered, flat(expected(shift)))

    return np.asarray(optimize.fmin(disagreement, start, xtol=1e-3, ftol=1e-9, disp=False, initial_simplex=simplex), np.float64)


def _crossing(frequency_invA: Image, frc: Image, cutoff_invA: float) -> float:
    """Frequency in Å⁻¹ where the correlation first falls to 0.5, between two rings; the cut-off when it does not."""
    # The first rings hold the constant and the plane, which were taken away.
    for i in range(2, len(frc)):
        if frequency_invA[i] > cutoff_invA:
            break
        if frc[i] < FRC_AGAINST_TRUTH:
            if i == 2:
                return float(frequency_invA[i])
            part = (frc[i - 1] - FRC_AGAINST_TRUTH) / (frc[i - 1] - frc[i])
            return float(frequency_invA[i - 1] + part * (frequency_invA[i] - frequency_invA[i - 1]))
    return float(cutoff_invA)
