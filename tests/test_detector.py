"""Laws of the detector: kernels that are likelihood-safe and exact, and a transpose that is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho.detector import Detector


def detector(size: int, shape: tuple[int, int], **options: float) -> Detector:
    return Detector(size, torch.ones(shape, dtype=torch.float64), **options)  # type: ignore[arg-type]


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


GRIDS = [(32, 1), (31, 1), (32, 2), (33, 3), (48, 3), (64, 4), (60, 5)]


@pytest.mark.parametrize(("size", "oversample"), GRIDS)
@pytest.mark.parametrize("blur_px", [0.0, 0.4, 1.3])
def test_kernels_are_not_negative_and_sum_to_one_sample(size: int, oversample: int, blur_px: float) -> None:
    of = detector(size, (size // oversample,) * 2, blur_px=blur_px, oversample=oversample)
    for axis in (of.rows, of.columns):
        assert (axis >= 0).all()
        torch.testing.assert_close(axis.sum(1), torch.full((len(axis),), float(oversample), dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("size", "oversample"), GRIDS)
@pytest.mark.parametrize("blur_px", [0.0, 0.3, 1.0])
def test_kernels_have_the_variance_of_pixel_and_blur(size: int, oversample: int, blur_px: float) -> None:
    of = detector(size, (size // oversample,) * 2, blur_px=blur_px, oversample=oversample)
    position = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64) / oversample  # in detector pixels from the central one
    kernel = of.rows[0] / oversample
    assert (kernel * position).sum().item() == pytest.approx(0, abs=1e-6)  # the tail at half the grid has no mirror image
    assert (kernel * position**2).sum().item() == pytest.approx(1 / 12 + blur_px**2, rel=2e-4)


def test_the_blur_alone_has_its_variance() -> None:
    position = torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    kernel = detector(32, (32, 32), blur_px=0.8, pixel_area=False).rows[0]
    assert (kernel * position**2).sum().item() == pytest.approx(0.8**2, rel=2e-4)


def test_a_parabola_is_integrated_exactly() -> None:
    size, oversample = 48, 3
    position = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    image = (2 + 0.3 * position + 0.1 * position**2)[:, None] * torch.ones(size, dtype=torch.float64)
    got = detector(size, (16, 16), oversample=oversample)(image).detach()[:6, 0]  # away from the wrap of the parabola
    edges = oversample * (torch.arange(7, dtype=torch.float64) - 0.5)
    antiderivative = 2 * edges + 0.15 * edges**2 + 0.1 / 3 * edges**3
    torch.testing.assert_close(got, oversample * antiderivative.diff(), rtol=1e-12, atol=1e-12)


CASES = [
    (16, (16, 16), 1), (15, (15, 15), 1), (16, (11, 14), 1), (15, (12, 7), 1),
    (16, (8, 8), 2), (18, (9, 7), 2), (22, (8, 10), 2),
    (24, (8, 8), 3), (27, (9, 5), 3), (25, (7, 8), 3),
]  # fmt: skip


@pytest.mark.parametrize(("size", "shape", "oversample"), CASES)
@pytest.mark.parametrize("blur_px", [0.0, 0.7])
@pytest.mark.parametrize("pixel_area", [True, False])
def test_adjoint_is_the_transpose(size: int, shape: tuple[int, int], oversample: int, blur_px: float, pixel_area: bool) -> None:
    of = detector(size, shape, oversample=oversample, blur_px=blur_px, pixel_area=pixel_area)
    image, slope = random(3, size, size), random(3, *shape) - 0.5
    forward = (of(image).detach() * slope).sum()
    back = (image * of.adjoint(slope)).sum()
    assert of(image).shape == slope.shape
    assert forward.item() == pytest.approx(back.item(), rel=1e-12)


@pytest.mark.parametrize("size", [2, 3, 15, 16])
def test_the_three_tap_path_is_the_matrix_path(size: int) -> None:
    of = detector(size, (size, size))
    assert of.taps is not None
    image = random(2, size, size)
    torch.testing.assert_close(of(image).detach(), of.rows @ image @ of.columns.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of.adjoint(image), of.rows.mT @ image @ of.columns, rtol=1e-12, atol=1e-12)


def test_a_point_detector_changes_nothing() -> None:
    image = random(2, 8, 8)
    of = detector(8, (8, 8), pixel_area=False)
    torch.testing.assert_close(of(image).detach(), image, rtol=0, atol=0)
    torch.testing.assert_close(of.adjoint(image), image, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "oversample"), [(16, 1), (15, 1), (24, 3), (27, 3), (20, 5)])
@pytest.mark.parametrize("blur_px", [0.0, 0.7])
def test_electrons_are_conserved(size: int, oversample: int, blur_px: float) -> None:
    image = random(2, size, size)
    pattern = detector(size, (size // oversample,) * 2, blur_px=blur_px, oversample=oversample)(image).detach()
    torch.testing.assert_close(pattern.sum((1, 2)), image.sum((1, 2)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("oversample", [2, 4])
def test_even_binning_conserves_the_electrons_of_a_wave_within_half_the_window(oversample: int) -> None:
    """Simpson's rule weighs samples unequally: it is exact for what the sampling theorem allows, not for a single sample."""
    size = 32
    wave = torch.zeros(size, size, dtype=torch.complex128)
    wave[8:22, 9:23] = torch.randn(14, 14, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    if oversample == 4:  # its kernel resolves a quarter of the window
        wave[15:], wave[:, 16:] = 0, 0
    intensity = torch.fft.fft2(wave, norm="ortho").abs() ** 2
    pattern = detector(size, (size // oversample,) * 2, oversample=oversample)(intensity).detach()
    assert pattern.sum().item() == pytest.approx(intensity.sum().item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(9, 12), (12, 9), (8, 8), (7, 7)])
def test_cropping_keeps_the_low_frequencies_in_corner_order(shape: tuple[int, int]) -> None:
    image = random(16, 16)
    centred = np.fft.fftshift(image.numpy())
    y0, x0 = 8 - shape[0] // 2, 8 - shape[1] // 2
    expected = np.fft.ifftshift(centred[y0 : y0 + shape[0], x0 : x0 + shape[1]])
    got = detector(16, shape, pixel_area=False)(image).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_background_is_added_once() -> None:
    background = random(8, 6)
    of = Detector(8, torch.ones(8, 6, dtype=torch.float64), background=background)
    torch.testing.assert_close(of(torch.zeros(3, 8, 8, dtype=torch.float64)).detach(), background.expand(3, 8, 6))


def test_a_blur_follows_its_variance() -> None:
    """Two blurs in a row are one with the sum of their variances; a changed one is not mistaken for the last."""
    image = random(2, 16, 16)

    def blurred(blur_px: float, image: Tensor) -> Tensor:
        return detector(16, (16, 16), blur_px=blur_px, pixel_area=False)(image).detach()

    torch.testing.assert_close(blurred(0.4, blurred(0.3, image)), blurred(0.5, image), rtol=0, atol=1e-12)
    of = detector(16, (16, 16), blur_px=0.4, pixel_area=False)
    with torch.no_grad():
        of(image)
        of.blur_px2 += 0.09
        assert of.blur_px == pytest.approx(0.5)
        torch.testing.assert_close(of(image), blurred(0.5, image), rtol=0, atol=1e-12)


@pytest.mark.parametrize("oversample", [1, 2])
def test_the_descan_moves_the_pattern(oversample: int) -> None:
    size = 32
    of = detector(size, (size // oversample,) * 2, oversample=oversample)
    of.descan_px.data = torch.tensor([[0.0, 0.0], [3.0, -2.0]], dtype=torch.float64)
    wave = torch.zeros(size, size, dtype=torch.complex128)
    wave[8:24, 10:22] = torch.randn(16, 12, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    exit_wave = torch.fft.fft2(wave, norm="ortho").expand(2, 1, 1, size, size)
    with torch.no_grad():
        still, moved = of(of.descanned(exit_wave, torch.tensor([0, 1])).abs().square()[:, 0, 0])
    torch.testing.assert_close(moved, torch.roll(still, (3, -2), (0, 1)), rtol=1e-10, atol=1e-10)
