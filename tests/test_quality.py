"""What two halves say of the whole: resolution where theory puts it, errors of the size they have, gauges that do not count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import small
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift

import ptycho
from ptycho.errors import DataError
from ptycho.metrics import fourier_shell_correlation
from ptycho.quality import Correlation, Quality, assess, correlate, half_bit, illumination, raster_frequencies, standard_error
from ptycho.result import EpochRecord, Result

PIXEL_A, PROBE = 0.25, 32
SCAN = small.raster_px((15, 16), 6.0)  # 84 x 90 pixels


def white(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def result_of(phase: NDArray[np.float64], positions_px: NDArray[np.float64] | None = None) -> Result:
    """A result with this phase (slices, y, x), a probe some 6 pixels wide and the positions from pixel (40, 40) on."""
    y, x = np.indices((PROBE, PROBE)) - PROBE // 2
    positions = SCAN + 40 if positions_px is None else positions_px
    return Result(
        object=np.exp(1j * phase)[None].astype(np.complex64),
        occupancy=np.ones(1, np.float32),
        pixel_A=PIXEL_A,
        slice_thickness_A=np.full(len(phase), 8.0),
        probe=(10 * np.exp(-(y**2 + x**2) / 30.0))[None].astype(np.complex64),
        positions_A=positions * PIXEL_A,
        tilt_mrad=np.zeros((1, 2)),
        history=(EpochRecord(0, "epie", 1, 1.0, 0.1),),
        recipe="",
        versions={},
        voltage_kV=80.0,
        semiangle_mrad=25.0,
        aberrations={},
    )


def specimen(slices: int = 1, shape: tuple[int, int] = (164, 170), seed: int = 9) -> NDArray[np.float64]:
    return 0.3 * gaussian_filter(white(slices, *shape, seed=seed), (0, 1.2, 1.2)) / slices


def judged(truth: NDArray[np.float64], one: NDArray[np.float64], two: NDArray[np.float64]) -> Any:
    """Quality when the whole is the mean of the halves."""
    everywhere = np.arange(len(SCAN))
    return assess(result_of(truth + (one + two) / 2), (result_of(truth + one), result_of(truth + two)), (everywhere, everywhere), "electrons")


def test_half_a_bit():
    """Limits and values of van Heel & Schatz (2005), eq. 17."""
    assert half_bit(np.array([1e12, 1.0, 100.0])) == pytest.approx([0.2071 / 1.2071, 1.0, (0.2071 + 0.19102) / (1.2071 + 0.09102)], abs=1e-4)
    assert (np.diff(half_bit(np.geomspace(1, 1e6, 50))) < 0).all()


@pytest.mark.parametrize("shape", [(160, 200), (6, 120, 120)])
def test_noise_alone_correlates_as_the_number_of_independent_values_says(shape):
    spacing = (8.0, 0.3, 0.3)[-len(shape) :]
    curves = [fourier_shell_correlation(white(*shape, seed=i), white(*shape, seed=i + 100), spacing) for i in range(12)]
    scaled = np.array([correlation * np.sqrt(independent) for _, correlation, independent in curves])[:, 3:]
    assert scaled.std() == pytest.approx(1, abs=0.06) and abs(scaled.mean()) < 0.1


@pytest.mark.parametrize("size", [200, 320])
def test_resolution_is_where_the_noise_takes_over(size):
    """Signal by noise of each half A exp(-q^2 / s^2): FRC = SNR / (SNR + 1), so that it is 0.143 at q = s sqrt(ln(A / 0.1669))."""
    power, width, q = 20.0, 0.5, np.hypot(np.fft.fftfreq(size, PIXEL_A)[:, None], np.fft.fftfreq(size, PIXEL_A))
    signal = np.fft.ifft2(np.fft.fft2(white(size, size, seed=1)) * np.sqrt(power) * np.exp(-(q**2) / (2 * width**2))).real
    curve = correlate(signal + white(size, size, seed=2), signal + white(size, size, seed=3), (PIXEL_A, PIXEL_A))
    assert 1 / curve.fixed_A == pytest.approx(width * np.sqrt(np.log(power / 0.1669)), rel=0.06)
    # Half a bit at about 160 independent values is a correlation of 0.28.
    wanted = np.interp(1 / curve.half_bit_A, curve.frequency_invA, curve.half_bit)
    assert 1 / curve.half_bit_A == pytest.approx(width * np.sqrt(np.log(power * (1 - wanted) / wanted)), rel=0.06)
    assert curve.outermost_A == pytest.approx(curve.half_bit_A, rel=0.1)


def test_noise_has_no_resolution_and_no_noise_has_that_of_the_grid():
    one, two = white(2, 128, 128, seed=4)
    assert np.isinf(correlate(one, two, (PIXEL_A, PIXEL_A)).half_bit_A)
    same = correlate(one, one, (PIXEL_A, PIXEL_A))
    assert same.half_bit_A == same.fixed_A == same.outermost_A == pytest.approx(2 * PIXEL_A)


def test_between_the_bragg_rings_of_a_crystal_there_is_nothing():
    y, x = np.indices((128, 128))
    lattice = sum(np.cos(2 * np.pi * n * (axis + 0.3) / 9) for axis in (y, x) for n in (1, 2, 3))
    curve = correlate(lattice + 0.5 * white(128, 128), lattice + 0.5 * white(128, 128, seed=1), (PIXEL_A, PIXEL_A))
    assert 1 / curve.outermost_A == pytest.approx(3 / (9 * PIXEL_A), rel=0.1) and 1 / curve.half_bit_A == pytest.approx(1 / (9 * PIXEL_A), rel=0.3)


def test_gaps_of_the_correlation_are_said():
    frequency = np.arange(9) / 10
    curve = Correlation(frequency, np.ones(9), np.ones(9), half_bit_A=2.5, fixed_A=2.4, outermost_A=1.3)
    nothing = np.zeros((4, 4))
    quality = Quality("electrons", curve, None, nothing, nothing, nothing > 0, error_rad=0.0123)
    wanted = "resolution 2.5 Å (half-bit; with gaps to 1.3 Å), 2.4 Å (FRC 0.143), standard error 12.3 mrad in the scanned field"
    assert quality.summary() == wanted
    assert "(half-bit)" in replace(quality, frc=replace(curve, outermost_A=2.4)).summary()
    assert "nothing in common" in replace(quality, frc=replace(curve, half_bit_A=np.inf)).summary()


def test_standard_error_is_the_error():
    """Two regions of different noise: the predicted and the true rms error of the mean agree within 15 % in each."""
    scale = np.where(np.arange(240) < 120, 0.02, 0.07) * np.ones((200, 1))
    one, two = (scale * gaussian_filter(white(200, 240, seed=i), 1) for i in (1, 2))
    predicted = standard_error(one - two, np.ones(scale.shape, bool), 6.0)
    for part in (np.s_[:, 20:100], np.s_[:, 140:220]):
        true = np.sqrt(np.mean(((one + two) / 2)[part] ** 2))
        assert np.mean(predicted[part]) == pytest.approx(true, rel=0.15)
        assert predicted[part].std() < 0.2 * true


def test_error_of_the_whole_is_the_error_in_the_scanned_field():
    truth, one, two = specimen(), *(0.03 * white(1, 164, 170, seed=i) for i in (1, 2))
    quality = judged(truth, one, two)
    assert quality.error_rad == pytest.approx(0.03 / np.sqrt(2), rel=0.1)
    assert np.nanmedian(quality.standard_error_rad) == pytest.approx(0.03 / np.sqrt(2), rel=0.1)
    assert quality.fsc is None and quality.summary().endswith("mrad in the scanned field")


def test_light_and_what_it_does_not_reach():
    quality, result = judged(specimen(), *np.zeros((2, 1, 164, 170))), result_of(specimen())
    light = illumination(result)
    assert light.sum() == pytest.approx(len(SCAN) * (np.abs(result.probe) ** 2).sum(), rel=1e-6)
    assert quality.constrained[result.scanned].all() and not quality.constrained[:20].any() and not quality.constrained[:, -20:].any()
    assert np.isnan(quality.standard_error_rad[0, 0]) and quality.error_rad < 1e-4
    # The law: 886 mrad / (d sqrt(D DQE)), d in Å and D in electrons per Å2.
    dose = np.median(light[result.scanned]) / PIXEL_A**2
    assert np.nanmedian(quality.shot_noise_rad[result.scanned]) == pytest.approx(0.886 / (quality.frc.half_bit_A * np.sqrt(dose / 2)), rel=0.01)


def test_what_the_halves_do_not_agree_on_is_not_constrained():
    wild = np.zeros((1, 164, 170))
    wild[:, 70:90, 70:90] = white(1, 20, 20)
    quality = judged(specimen(), 0.02 * white(1, 164, 170) + wild, 0.02 * white(1, 164, 170, seed=1) - wild)
    assert not quality.constrained[75:85, 75:85].any() and quality.constrained[45:60, 45:60].all()


def test_gauges_of_a_half_do_not_count():
    """A half on another canvas, displaced by parts of a pixel together with its positions, or against them, with constants and planes."""
    y, x = np.indices((164, 170))
    truth = gaussian_filter(specimen(2), (0, 1.5, 1.5))
    plane = np.stack([0.4 + 0.001 * y - 0.002 * x, -0.3 + 0.003 * x])
    moved = np.stack([shift(part, (0.3, -0.4), order=5, mode="nearest") for part in truth]) + plane
    larger = np.pad(np.stack([shift(part, (-0.45, 0.2), order=5, mode="nearest") for part in truth]), ((0, 0), (5, 8), (3, 2)), mode="edge")
    first, second = np.arange(0, len(SCAN), 2), np.arange(1, len(SCAN), 2)
    halves = (result_of(moved, SCAN[first] + 40), result_of(larger, SCAN[second] + [40 + 5 - 0.45, 40 + 3 + 0.2]))
    quality = assess(result_of(truth), halves, (first, second), "positions")
    assert quality.error_rad < 0.02 * truth.sum(0).std()
    assert quality.frc.correlation[2:20].min() > 0.995 and quality.fsc is not None and quality.fsc.correlation[2:20].min() > 0.98


def test_a_pattern_at_the_frequency_of_the_raster_is_no_specimen():
    """A grid in both halves alike, of the period of the positions, 6 pixels: it neither lifts the correlation nor counts as a Bragg ring."""
    y, x = np.indices((164, 170))
    grid = (0.1 * (np.cos(2 * np.pi * y / 6) + np.cos(2 * np.pi * x / 6) + np.cos(2 * np.pi * x / 3)))[None]
    one, two = (0.02 * white(1, 164, 170, seed=i) for i in (1, 2))
    truth = gaussian_filter(specimen(), (0, 3, 3))
    plain, quality = judged(truth, one, two).frc, judged(truth + grid, one, two).frc
    np.testing.assert_allclose(quality.correlation[1:], plain.correlation[1:], atol=0.15)
    assert quality.outermost_A == pytest.approx(plain.outermost_A, rel=0.05) and plain.outermost_A > 6 * PIXEL_A
    scattered = result_of(truth, SCAN + 40 + 3 * white(*SCAN.shape))
    assert raster_frequencies(result_of(truth)).any() and not raster_frequencies(scattered).any()


def test_the_corners_about_a_rotated_field_do_not_count():
    """Both halves have the same wild rim outside of a field that stands on its corner; inside there is noise alone."""
    turned = (SCAN - SCAN.mean(0)) @ np.array([[1, 1], [-1, 1]]) / np.sqrt(2) + [82, 85]
    noise = 0.05 * white(2, 1, 164, 170)
    whole = result_of(noise.mean(0), turned)
    rim = np.where(illumination(whole) < 0.02 * illumination(whole).max(), white(164, 170, seed=5), 0)
    everywhere = np.arange(len(SCAN))
    quality = assess(whole, tuple(result_of(part + rim, turned) for part in noise), (everywhere, everywhere), "electrons")
    assert np.isinf(quality.frc.half_bit_A) and np.isinf(quality.frc.outermost_A)


def test_a_field_of_few_pixels_is_refused():
    phase = specimen()
    with pytest.raises(DataError, match="too small to compare halves"):
        assess(result_of(phase, SCAN[:5] + 40), (result_of(phase), result_of(phase)), (np.arange(5), np.arange(5)), "electrons")


@pytest.fixture(scope="module")
def repeated() -> list[Result]:
    """The same small scan, 9000 electrons per pattern, measured four times; the first with its halves. On the right three of four are missing."""
    model = small.make(scan=(22, 22), step_px=2.0, electrons=9000.0, strength=0.6)
    expected = np.fft.fftshift(small.counts_of(model).numpy(), axes=(1, 2)).reshape(22, 22, 32, 32)
    row, column = np.divmod(np.arange(22 * 22), 22)
    missing = (column > 11) & ((row % 2 == 1) | (column % 2 == 1))
    known: dict[str, Any] = {"voltage_kV": 80, "semiangle_mrad": 25, "step_A": 0.6, "defocus_A": 100, "pixel_invA": 1 / 9.6}

    def measured(seed: int) -> Result:
        counts = np.random.default_rng(seed).poisson(expected).astype(np.float32)
        data = ptycho.read(counts, adu_per_electron=1, centre="none", **known).without(missing)
        return ptycho.reconstruct(data, kind="gradient", epochs=8, halves=seed == 0, device="cpu")

    return [measured(seed) for seed in range(4)]


def test_one_measurement_knows_how_far_many_would_scatter(repeated):
    first, quality = repeated[0], repeated[0].quality
    assert quality.split == "electrons" and quality.fsc is None and 2 * first.pixel_A <= quality.frc.half_bit_A < 2
    phases = np.array([small.flat(np.asarray(result.phase[0][first.scanned], np.float64)) for result in repeated])
    scatter, predicted = phases.std(0, ddof=1), quality.standard_error_rad[first.scanned]
    assert quality.error_rad == pytest.approx(np.sqrt(np.mean(scatter**2)), rel=0.2)
    # Of waves as long as the field a single pair of halves is a single sample.
    for side in (np.s_[:, :20], np.s_[:, 26:]):
        assert np.sqrt(np.mean(predicted[side] ** 2)) == pytest.approx(np.sqrt(np.mean(scatter[side] ** 2)), rel=0.35)
    assert np.corrcoef(np.sqrt(gaussian_filter(scatter**2, 4)).ravel(), predicted.ravel())[0, 1] > 0.4


def test_model_and_data_are_compared_ring_by_ring(repeated):
    residual = repeated[0].residual
    ring, disk = residual.angle_mrad, residual.angle_mrad < 22
    assert ring[0] == 0 and np.allclose(np.diff(ring), 41.76 / 9.6, rtol=1e-3)
    np.testing.assert_allclose(residual.modelled_e[disk], residual.measured_e[disk], rtol=0.05)
    assert 0.7 < residual.chi_squared[disk].mean() < 1.5 and 0.7 < residual.deviance[disk].mean() < 1.5 and residual.noise_scale == 1
