"""Laws of the aberrations, the probe, the propagator and the Fourier shift."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptycho.aberrations import HAIDER, ORDERS, name_aberrations, parse_aberrations
from ptycho.errors import RecipeError
from ptycho.optics import aberration_phase, aperture, band_limit, frequency_grid, probe_wave, propagation_phase, shift_ramps
from ptycho.propagator import Propagator

SIZE, PIXEL, WAVELENGTH, SEMIANGLE = 64, 0.25, 0.0197, 20.0
NO_TILT = torch.zeros(2, dtype=torch.float64)


def probe(size: int = SIZE, /, **coefficients: float) -> Tensor:
    return probe_wave(size, PIXEL, WAVELENGTH, SEMIANGLE, parse_aberrations(coefficients))


def propagate(wave: Tensor, distance_A: float, tilt_rad: Tensor = NO_TILT) -> Tensor:
    ky, kx = frequency_grid(wave.shape[-1], PIXEL)
    kappa = propagation_phase(ky, kx, WAVELENGTH, tilt_rad)
    return torch.fft.ifft2(torch.fft.fft2(wave) * torch.polar(torch.ones_like(kappa), kappa * distance_A))


def centre_of_mass(wave: Tensor) -> Tensor:
    """(y, x) in Å from pixel size // 2."""
    weight = wave.abs() ** 2
    axis = (torch.arange(wave.shape[-1], dtype=torch.float64) - wave.shape[-1] // 2) * PIXEL
    return torch.stack([(weight * axis[:, None]).sum(), (weight * axis).sum()]) / weight.sum()


# Names of aberrations


@pytest.mark.parametrize("haider", HAIDER)
def test_haider_and_krivanek_names_give_the_same_probe(haider: str) -> None:
    n, m, factor = HAIDER[haider]
    value = 0.02 ** -(n + 1) * WAVELENGTH / factor  # some radians at the edge
    angle = {} if m == 0 else {f"{haider}_deg": 17.0}
    krivanek_angle = {} if m == 0 else {f"phi{n}{m}_deg": 17.0}
    torch.testing.assert_close(probe(**{haider: value}, **angle), probe(**{f"C{n}{m}": value * factor}, **krivanek_angle), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("haider", "factor"), [("B2", 3), ("S3", 4), ("B4", 5), ("D4", 5), ("S5", 6), ("R5", 6), ("A1", 1), ("A2", 1), ("C3", 1)])
def test_haider_coefficients_carry_n_plus_one(haider: str, factor: int) -> None:
    (term,) = parse_aberrations({haider: 100.0})
    assert term.magnitude_A == pytest.approx(100.0 * factor)


def test_defocus_is_minus_c10() -> None:
    torch.testing.assert_close(probe(defocus_A=150.0), probe(C10=-150.0), rtol=0, atol=0)


@st.composite
def named_coefficients(draw: st.DrawFn) -> dict[str, float]:
    """Krivanek names in the form name_aberrations writes: m > 0 with a positive magnitude and an angle within one period."""
    named = {}
    for n, m in draw(st.lists(st.sampled_from(ORDERS), unique=True).map(sorted)):
        size = draw(st.floats(1e-3, 1e7))
        named[f"C{n}{m}"] = size if m else draw(st.sampled_from([-1, 1])) * size
        if m:
            named[f"phi{n}{m}_deg"] = draw(st.floats(0.01, 179.0)) * draw(st.sampled_from([-1, 1])) / m
    return named


@settings(max_examples=50, deadline=None)
@given(named_coefficients())
def test_names_survive_the_round_trip(named: dict[str, float]) -> None:
    assert name_aberrations(parse_aberrations(named)) == pytest.approx(named, rel=1e-9)


def test_a_negative_magnitude_comes_back_as_the_same_term() -> None:
    terms = parse_aberrations({"C12": -30.0, "phi12_deg": 10.0, "C10": -5.0})
    again = parse_aberrations(name_aberrations(terms))
    assert [(t.n, t.m) for t in again] == [(t.n, t.m) for t in terms] == [(1, 0), (1, 2)]
    assert [x for t in again for x in (t.a, t.b)] == pytest.approx([x for t in terms for x in (t.a, t.b)])


@pytest.mark.parametrize(
    "wrong", [{"C13": 1.0}, {"defocus": 1.0}, {"C10": 1.0, "defocus_A": 1.0}, {"phi12_deg": 1.0}, {"C10": math.nan}, {"C10": 1.0, "phi10_deg": 3.0}]
)
def test_a_wrong_coefficient_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"^aberrations\."):
        parse_aberrations(wrong)


@pytest.mark.parametrize(("n", "m"), ORDERS)
def test_each_term_of_chi(n: int, m: int) -> None:
    angle, magnitude, ky, kx = 11.0, 70.0, 0.31, -0.47
    named = {f"C{n}{m}": magnitude, **({f"phi{n}{m}_deg": angle} if m else {})}
    k = torch.tensor([[ky]], dtype=torch.float64), torch.tensor([[kx]], dtype=torch.float64)
    alpha, phi = WAVELENGTH * math.hypot(ky, kx), math.atan2(ky, kx)
    expected = 2 * math.pi / WAVELENGTH * alpha ** (n + 1) / (n + 1) * magnitude * math.cos(m * (phi - math.radians(angle if m else 0)))
    assert aberration_phase(parse_aberrations(named), *k, WAVELENGTH).item() == pytest.approx(expected, rel=1e-12)


def test_chi_is_the_sum_of_its_terms() -> None:
    grid = frequency_grid(8, PIXEL)
    parts = [{"C10": 30.0}, {"C12": 20.0, "phi12_deg": 40.0}, {"B2": 300.0, "B2_deg": -70.0}, {"C30": 1e5}]
    whole = {name: value for part in parts for name, value in part.items()}
    total = sum(aberration_phase(parse_aberrations(part), *grid, WAVELENGTH) for part in parts)
    torch.testing.assert_close(aberration_phase(parse_aberrations(whole), *grid, WAVELENGTH), total, rtol=0, atol=1e-12)


# The probe


@pytest.mark.parametrize("size", [32, 33])
def test_a_focused_probe_has_unit_power_and_stands_in_the_centre(size: int) -> None:
    wave = probe(size)
    assert torch.linalg.vector_norm(wave).item() == pytest.approx(1, rel=1e-12)
    assert wave.abs().argmax().item() == size // 2 * size + size // 2
    assert wave[size // 2, size // 2].angle().abs().item() < 1e-12


def test_the_soft_edge_keeps_the_area_of_the_aperture() -> None:
    ky, kx = frequency_grid(SIZE, PIXEL)
    pixel, radius = 1 / (SIZE * PIXEL), 1.0
    soft, hard = aperture(ky, kx, radius, pixel), aperture(ky, kx, radius, 0.0)
    assert soft.square().sum().item() * pixel**2 == pytest.approx(math.pi * radius**2, rel=2e-3)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert soft[0, 0] == 1 and soft[torch.hypot(ky, kx) > radius + pixel].max() == 0


def test_a_ray_of_direction_k_is_displaced_by_the_gradient_of_chi() -> None:
    """A probe cut down to one direction stands at grad chi / 2 pi = lambda C10 k."""
    ky, kx = frequency_grid(SIZE, PIXEL)
    c10, direction = 120.0, 0.5
    spectrum = torch.fft.fft2(torch.fft.ifftshift(probe(C10=c10))) * torch.exp(-((ky / 0.15) ** 2 + ((kx - direction) / 0.15) ** 2))
    wave = torch.fft.fftshift(torch.fft.ifft2(spectrum))
    torch.testing.assert_close(centre_of_mass(wave), torch.tensor([0.0, WAVELENGTH * c10 * direction], dtype=torch.float64), rtol=0, atol=5e-3)


# Propagation


def test_underfocus_comes_to_focus_behind_the_specimen_plane() -> None:
    torch.testing.assert_close(propagate(probe(defocus_A=200.0), 200.0), probe(), rtol=0, atol=1e-12)


def test_overfocus_has_its_focus_before_the_specimen_plane() -> None:
    overfocused = probe(defocus_A=-200.0)
    torch.testing.assert_close(propagate(overfocused, -200.0), probe(), rtol=0, atol=1e-12)
    assert torch.vdot(propagate(overfocused, 200.0).flatten(), probe().flatten()).abs() < 0.5


def test_propagation_adds_up() -> None:
    wave, tilt = probe(C12=50.0, phi12_deg=20.0), torch.tensor([0.01, -0.02], dtype=torch.float64)
    torch.testing.assert_close(propagate(propagate(wave, 30.0, tilt), 45.0, tilt), propagate(wave, 75.0, tilt), rtol=0, atol=1e-12)


def test_a_tilted_specimen_moves_the_wave_by_minus_z_tan_tilt() -> None:
    tilt, distance = torch.tensor([0.010, -0.025], dtype=torch.float64), 80.0
    axis = (torch.arange(SIZE, dtype=torch.float64) - SIZE // 2) * PIXEL
    gaussian = torch.exp(-(axis[:, None] ** 2 + axis**2)).to(torch.complex128)  # no tails that wrap around
    moved = centre_of_mass(propagate(gaussian, distance, tilt)) - centre_of_mass(propagate(gaussian, distance))
    torch.testing.assert_close(moved, -distance * torch.tan(tilt), rtol=1e-9, atol=0)


@pytest.mark.parametrize("tilts", [1, 3])
def test_kernels_are_unitary_in_the_pass_band_and_zero_outside(tilts: int) -> None:
    tilt = 0.01 * torch.arange(2.0 * tilts, dtype=torch.float64).reshape(tilts, 2)
    propagator = Propagator(SIZE, PIXEL, WAVELENGTH, torch.tensor([10.0, 20.0, 5.0], dtype=torch.float64), tilt)
    kernels = propagator.kernels(torch.arange(tilts)).detach()
    assert kernels.shape == (2, tilts, SIZE, SIZE)
    torch.testing.assert_close(kernels.abs(), band_limit(SIZE, 2 / 3).expand(kernels.shape), rtol=0, atol=1e-12)
    inside = propagator.pass_band == 1
    torch.testing.assert_close((kernels[0] ** 2)[:, inside], kernels[1][:, inside], rtol=0, atol=1e-11)  # 10 Å twice is 20 Å


def test_the_band_limit_is_a_disk() -> None:
    fy, fx = frequency_grid(48, 1.0)
    torch.testing.assert_close(band_limit(48, 2 / 3) == 1, torch.hypot(fy, fx) <= 1 / 3 + 1e-9)


# Sub-pixel shifts


@pytest.mark.parametrize("size", [16, 15])
def test_a_fourier_shift_by_whole_pixels_is_a_roll(size: int) -> None:
    wave = torch.randn(size, size, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    shifts = [(0, 0), (3, -2), (-7, 5)]
    ramp_y, ramp_x = shift_ramps(torch.tensor(shifts, dtype=torch.float64), size)
    moved = torch.fft.ifft2(torch.fft.fft2(wave) * ramp_y * ramp_x)
    expected = torch.stack([torch.roll(wave, shift, (0, 1)) for shift in shifts])
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_a_sub_pixel_shift_moves_the_centre_of_mass() -> None:
    ramp_y, ramp_x = shift_ramps(torch.tensor([[0.3, -0.4]], dtype=torch.float64), SIZE)
    moved = torch.fft.ifft2(torch.fft.fft2(probe()) * ramp_y[0] * ramp_x[0])
    expected = centre_of_mass(probe()) + PIXEL * torch.tensor([0.3, -0.4], dtype=torch.float64)
    torch.testing.assert_close(centre_of_mass(moved), expected, rtol=0, atol=2e-3)
