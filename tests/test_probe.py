"""Laws of the incoherent probe modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptycho.aberrations import parse_aberrations
from ptycho.optics import probe_wave
from ptycho.probe import Probe, orthogonalise, seed_modes

SIZE, PIXEL, WAVELENGTH = 32, 0.25, 0.0197


def wave(**coefficients: float) -> Tensor:
    return probe_wave(SIZE, PIXEL, WAVELENGTH, 20.0, parse_aberrations(coefficients))


def gram(modes: Tensor) -> Tensor:
    flat = modes.flatten(1)
    return flat @ flat.mH


def random_modes(count: int) -> Tensor:
    return torch.randn(count, SIZE, SIZE, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("modes", [1, 2, 3, 6, 10])
def test_seeded_modes_are_orthogonal_and_keep_the_power(modes: int) -> None:
    seeded = seed_modes(30 * wave(defocus_A=60.0)[None], modes)
    assert seeded.shape == (modes, SIZE, SIZE)
    products = gram(seeded)
    power = products.diagonal().real
    assert power.sum().item() == pytest.approx(900, rel=1e-12)
    torch.testing.assert_close(products, torch.diag_embed(products.diagonal()), rtol=0, atol=1e-9)
    assert (power[:-1] >= power[1:] - 1e-9).all()


def test_seeded_modes_are_those_of_a_source() -> None:
    """Together the modes are the probe seen from a Gaussian source of 0.15 / k_aperture: their shares are those of probes shifted at random."""
    mode = wave(defocus_A=60.0)
    share = torch.linalg.vector_norm(seed_modes(mode[None], 6), dim=(1, 2)) ** 2
    spectrum = torch.fft.fft2(mode)
    k = torch.fft.fftfreq(SIZE, PIXEL, dtype=torch.float64)
    sigma = 0.15 / (20e-3 / WAVELENGTH)
    shifts = sigma * torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = spectrum.abs() > 1e-3 * spectrum.abs().max()
    ky, kx = (axis[inside] for axis in torch.meshgrid(k, k, indexing="ij"))
    shifted = spectrum[inside] * torch.exp(-2j * torch.pi * (shifts[:, :1] * ky + shifts[:, 1:] * kx))
    true = torch.linalg.svdvals(shifted)[:6].square()
    torch.testing.assert_close(share / share.sum(), true / true.sum(), rtol=0.15, atol=2e-3)


def test_seeding_keeps_the_modes_that_are_there() -> None:
    two = orthogonalise(random_modes(2))
    four = seed_modes(two, 4)
    scale = torch.linalg.vector_norm(four[0]) / torch.linalg.vector_norm(two[0])
    torch.testing.assert_close(four[:2], two * scale, rtol=1e-12, atol=1e-12)
    products = gram(four)
    torch.testing.assert_close(products, torch.diag_embed(products.diagonal()), rtol=0, atol=1e-9)


def test_fewer_modes_take_over_the_power() -> None:
    fewer = seed_modes(random_modes(4), 2)
    assert fewer.shape[0] == 2
    assert torch.linalg.vector_norm(fewer).item() == pytest.approx(torch.linalg.vector_norm(random_modes(4)).item(), rel=1e-12)


def test_orthogonalising_keeps_the_intensity_and_sorts_by_power() -> None:
    modes = random_modes(4) * torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)[:, None, None]
    modes[1] += 0.7 * modes[0]
    turned = orthogonalise(modes)
    products = gram(turned)
    torch.testing.assert_close(products, torch.diag_embed(products.diagonal()), rtol=0, atol=1e-9 * products.abs().max().item())
    power = products.diagonal().real
    assert (power[:-1] >= power[1:] - 1e-9).all()

    def at_detector(x: Tensor) -> Tensor:
        return (torch.fft.fft2(x, norm="ortho").abs() ** 2).sum(0)

    torch.testing.assert_close(at_detector(turned), at_detector(modes), rtol=1e-10, atol=1e-10)


def test_orthogonalising_a_dependent_mode_leaves_it_empty() -> None:
    modes = random_modes(2)
    modes[1] = 2j * modes[0]
    power = gram(orthogonalise(modes)).diagonal().real
    assert power[1].item() == pytest.approx(0, abs=1e-9 * power[0].item())


def test_without_a_correction_the_spectrum_is_the_unitary_transform() -> None:
    probe = Probe(random_modes(2), PIXEL, WAVELENGTH, parse_aberrations({"C10": 5.0, "C12": 7.0}))
    torch.testing.assert_close(probe.spectrum().detach(), torch.fft.fft2(random_modes(2), norm="ortho"), rtol=0, atol=1e-12)
    torch.testing.assert_close((probe.spectrum().detach().abs() ** 2).sum((1, 2)), probe.power(), rtol=1e-12, atol=0)


def test_a_correction_adds_to_the_aberrations_of_the_wave() -> None:
    names = {"C10": -100.0, "C12": 20.0, "phi12_deg": 30.0, "C21": 500.0, "phi21_deg": -20.0}
    terms = parse_aberrations(names)
    probe = Probe(wave()[None], PIXEL, WAVELENGTH, terms)
    coefficients = [c for term in terms for c in ((term.a,) if term.m == 0 else (term.a, term.b))]
    probe.correction_A.data = torch.tensor(coefficients, dtype=torch.float64)
    expected = torch.fft.fft2(wave(**names), norm="ortho")
    torch.testing.assert_close(probe.spectrum()[0].detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("corrected", [False, True])
def test_pull_back_is_the_transpose_of_the_spectrum(corrected: bool) -> None:
    probe = Probe(random_modes(2), PIXEL, WAVELENGTH, parse_aberrations({"C10": 1.0, "C30": 1.0}) if corrected else ())
    probe.correction_A.data += 20.0
    gradient = random_modes(2).flip(0)
    (expected,) = torch.autograd.grad(probe.spectrum(), probe.wave, gradient)
    torch.testing.assert_close(probe.pull_back(gradient).detach(), expected, rtol=0, atol=1e-12)
