"""Agreement with a known phase: what is taken away (shift, constant, plane) and what is judged (scale, noise, orientation)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.metrics import Agreement, compare_with_truth, fourier_ring_correlation

TRUTH_PIXEL, PIXEL = 0.12, 0.25
CENTRE, FIELD = (14.3, 15.1), (18.0, 20.0)
N = 400  # of the truth: 48 Å
_RANDOM = np.random.default_rng(3)
ATOMS = _RANDOM.uniform(0, N * TRUTH_PIXEL, (260, 2))
HEIGHTS = _RANDOM.uniform(0.05, 0.4, 260)


def specimen(y_A: NDArray[np.float64], x_A: NDArray[np.float64], width_A: float = 0.45) -> NDArray[np.float64]:
    """Gaussian atoms at ATOMS, periodic over 48 Å, at the rows and columns given."""
    period = N * TRUTH_PIXEL

    def gaussians(coordinate_A, atoms_A):
        away = (coordinate_A[:, None] - atoms_A + period / 2) % period - period / 2
        return np.exp(-(away**2) / (2 * width_A**2))

    return gaussians(y_A, ATOMS[:, 0]) @ (HEIGHTS[:, None] * gaussians(x_A, ATOMS[:, 1]).T)


def truth() -> NDArray[np.float64]:
    axis = np.arange(N) * TRUTH_PIXEL
    return specimen(axis, axis)


def recovered(shift_px: tuple[float, float] = (0, 0), shape: tuple[int, int] = (115, 124)) -> NDArray[np.float64]:
    """The specimen as a perfect reconstruction displaced by ``shift_px`` sees it."""
    y, x = ((np.arange(n) - shift) * PIXEL - centre + N / 2 * TRUTH_PIXEL for n, shift, centre in zip(shape, shift_px, CENTRE, strict=True))
    return specimen(y, x)


def compare(phase: NDArray[np.float64], **options: float) -> Agreement:
    return compare_with_truth(phase, PIXEL, truth(), TRUTH_PIXEL, CENTRE, FIELD, **options)


@pytest.mark.parametrize("shift", [(0, 0), (0.37, -0.61), (5.5, 3.5), (-7.2, 1.9)])
def test_a_known_shift_is_found(shift):
    agreement = compare(recovered(shift))
    assert agreement.shift_px == pytest.approx(shift, abs=0.01)
    assert agreement.correlation > 0.9999 and agreement.slope == pytest.approx(1, abs=2e-3) and agreement.rms_rad < 2e-3
    assert agreement.resolution_A == pytest.approx(2 * PIXEL, abs=0.03)  # the highest rings pass the filter with nearly nothing


def test_constant_and_plane_do_not_count_but_scale_does():
    phase = recovered((0.2, 0.3))
    y, x = np.indices(phase.shape)
    agreement = compare(0.6 * phase + 1.7 + 0.01 * y - 0.02 * x)
    assert agreement.slope == pytest.approx(0.6, abs=2e-3) and agreement.correlation > 0.999


def test_noise_lowers_the_correlation_as_it_must():
    clean, rms = recovered(), 0.1
    noisy = clean + rms * np.random.default_rng(0).standard_normal(clean.shape)
    agreement = compare(noisy)
    rows, columns = (slice(round((c - f * 0.45) / PIXEL), round((c + f * 0.45) / PIXEL)) for c, f in zip(CENTRE, FIELD, strict=True))
    # The noise that passes the filter: its mean square over the grid of frequencies.
    ky, kx = (np.fft.fftfreq(n) for n in clean.shape)
    passed = 0.5 + 0.5 * np.cos(np.pi * np.clip((np.hypot(ky[:, None], kx) - 0.4) / 0.1, 0, 1))
    noise = rms * np.sqrt(np.mean(passed**2))
    assert agreement.rms_rad == pytest.approx(noise, rel=0.05)
    assert agreement.correlation == pytest.approx(1 / np.sqrt(1 + noise**2 / clean[rows, columns].var()), abs=0.01)
    assert agreement.slope == pytest.approx(1, abs=0.02)


def test_resolution_is_where_the_noise_takes_over():
    phase = recovered()
    k = np.hypot(np.fft.fftfreq(phase.shape[0], PIXEL)[:, None], np.fft.fftfreq(phase.shape[1], PIXEL))
    noise = np.fft.ifft2(np.fft.fft2(np.random.default_rng(0).standard_normal(phase.shape)) * (k > 0.8)).real
    assert compare(phase + 0.1 * noise).resolution_A == pytest.approx(1 / 0.8, rel=0.06)


@pytest.mark.parametrize("wrong", [np.flipud, np.fliplr, np.negative, lambda phase: phase[::-1, ::-1]], ids=["rows", "columns", "sign", "turned"])
def test_a_wrong_orientation_or_sign_does_not_agree(wrong):
    assert compare(wrong(recovered())).correlation < 0.5


def test_the_highest_of_a_crystals_peaks_is_taken():
    """Two nearly equivalent shifts, the right one at half a pixel and the wrong one at whole pixels."""
    axis = np.arange(N) * TRUTH_PIXEL
    shift = (2.5, -2.5)
    y, x = ((np.arange(120) - s) * PIXEL - centre + N / 2 * TRUTH_PIXEL for s, centre in zip(shift, CENTRE, strict=True))

    def crystal(y_A, x_A):
        columns = [np.exp(2 * np.cos(2 * np.pi * c / 2.0)) for c in (y_A, x_A)]
        return np.outer(*columns) + 0.3 * specimen(y_A, x_A)

    agreement = compare_with_truth(crystal(y, x), PIXEL, crystal(axis, axis), TRUTH_PIXEL, CENTRE, FIELD)
    assert agreement.shift_px == pytest.approx(shift, abs=0.02) and agreement.correlation > 0.999


def test_both_are_limited_to_the_cut_off():
    phase = recovered()
    x = np.arange(phase.shape[1])
    fast = 0.2 * np.cos(2 * np.pi * 1.5 * PIXEL * x)
    assert compare(phase + fast).correlation < 0.9
    limited = compare(phase + fast, cutoff_invA=1.2)
    assert limited.correlation > 0.999 and limited.resolution_A == pytest.approx(1 / 1.2)


def test_nothing_to_compare_is_said():
    with pytest.raises(DataError, match="flat"):
        compare(np.ones((115, 124)))
    with pytest.raises(DataError, match="not finite"):
        compare(np.full((115, 124), np.nan))
    with pytest.raises(DataError, match="sum the slices"):
        compare(np.ones((1, 115, 124)))
    with pytest.raises(DataError, match="less than 8 pixels"):
        compare(recovered(), margin_A=9.0)


@pytest.mark.parametrize("window", [True, False])
def test_frc_of_equal_images_is_one_and_of_noise_is_none(window):
    a, b = np.random.default_rng(1).standard_normal((2, 96, 128))
    frequency, same = fourier_ring_correlation(a, 2.5 * a, 0.3, window)
    assert frequency[0] == 0 and frequency[-1] == pytest.approx(1 / 0.6) and same == pytest.approx(1)
    assert np.abs(fourier_ring_correlation(a, b, 0.3, window)[1][8:]).mean() < 0.1


def test_frc_of_two_noisy_halves():
    """FRC = SNR / (SNR + 1) for two halves of equal, white signal-to-noise power ratio."""
    signal, one, two = np.random.default_rng(2).standard_normal((3, 256, 256))
    frc = fourier_ring_correlation(signal + one, signal + two, 1.0)[1]
    assert frc[20:].mean() == pytest.approx(0.5, abs=0.02)


def test_frc_needs_two_images_alike():
    with pytest.raises(DataError, match="same shape"):
        fourier_ring_correlation(np.ones((4, 4)), np.ones((4, 5)), 1.0)


def test_metrics_and_result_need_no_torch_and_no_files():
    code = "import sys, ptycho.metrics, ptycho.result; assert not {'torch', 'h5py', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
