"""From the intensity of the wave to what the detector records: pixel area, blur, binning, cropping, background, mask."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ptycho.kept import Kept
from ptycho.optics import shift_ramps


class Detector(nn.Module):
    """A linear map from the simulated grid (size, size) to the pattern (ky, kx), both with zero frequency in the corner.

    All of it is separable: image = rows @ intensity @ columns^T, with one small matrix per axis. A pixel integrates over its area; a
    Gaussian of ``blur_px`` detector pixels (standard deviation) adds the point spread. With ``oversample`` > 1 the simulated grid is
    that much finer than the detector's and is binned; a simulated grid that reaches further out than the pattern is cropped.

    The kernels have no negative entry, since a likelihood needs positive intensities. For the pixel it is the integral of the parabola
    through neighbouring samples, exact for waves that fill up to half of the window; for the blur the discrete Gaussian exp(-t) I_n(t)
    of exactly this variance (Lindeberg, IEEE PAMI 12 (1990) 234).

    ``mask`` (ky, kx) is 1 where a pixel counts; ``background`` (ky, kx) or (1, 1) is added, in electrons. ``blur_px2`` (1,) is the
    variance of the blur, (0,) for none; ``descan_px`` (N, 2) = (y, x) how far the pattern of each position has moved on the detector, in
    its pixels, (0, 2) where none does.
    """

    mask: Tensor
    sharp_rows: Tensor
    sharp_columns: Tensor

    def __init__(
        self,
        size: int,
        mask: Tensor,
        background: Tensor | None = None,
        blur_px: float = 0.0,
        oversample: int = 1,
        pixel_area: bool = True,
    ) -> None:
        super().__init__()
        if max(mask.shape) * oversample > size:
            raise ValueError(f"a pattern of {tuple(mask.shape)} pixels does not fit on a grid of {size} with oversample {oversample}")
        self.size, self.oversample = size, oversample
        self.register_buffer("mask", mask.clone(), persistent=False)
        self.background = nn.Parameter(torch.zeros(1, 1, dtype=mask.dtype) if background is None else background.clone())
        self.blur_px2 = nn.Parameter(torch.full((1 if blur_px > 0 else 0,), blur_px**2, dtype=mask.dtype))
        self.descan_px = nn.Parameter(torch.zeros(0, 2, dtype=mask.dtype))
        kernel = _pixel_kernel(oversample) if pixel_area else np.ones(1)
        same_grid = oversample == 1 and mask.shape == (size, size)
        self._point = same_grid and len(kernel) == 1
        # The usual case, the pixel's area alone: three taps are added up, five times faster than the matrices.
        self._taps = (float(kernel[0]), float(kernel[1])) if same_grid and len(kernel) == 3 else None
        rows, columns = (torch.from_numpy(_axis_matrix(size, kept, oversample, kernel)).to(mask.dtype) for kept in mask.shape)
        self.register_buffer("sharp_rows", rows, persistent=False)
        self.register_buffer("sharp_columns", columns, persistent=False)
        self._rows_kept, self._columns_kept = Kept(), Kept()

    @property
    def blurs(self) -> bool:
        """Whether there is a blur beyond the pixel's area."""
        return len(self.blur_px2) > 0

    @property
    def blur_px(self) -> float:
        """Standard deviation of the blur in detector pixels, 0 for none."""
        return float(self.blur_px2.detach().sqrt()) if self.blurs else 0.0

    @property
    def descans(self) -> bool:
        """Whether patterns move on the detector."""
        return len(self.descan_px) > 0

    def descan_of(self, index: Tensor) -> Tensor:
        """Shifts (B, 2) in detector pixels of the patterns at the positions ``index`` (B,); (0, 2) where none moves."""
        return self.descan_px[index] if self.descans else self.descan_px

    def descan_ramps(self, shift_px: Tensor) -> tuple[Tensor, Tensor]:
        """Ramps on the exit wave in real space that shift patterns by (N, 2) detector pixels: complex (N, y, 1) and (N, 1, x)."""
        ramp_y, ramp_x = shift_ramps(-self.oversample * shift_px, self.size)
        # From the middle of the window, where the wave is.
        return torch.fft.fftshift(ramp_y, dim=1), torch.fft.fftshift(ramp_x, dim=2)

    def descan_ramp(self, index: Tensor) -> Tensor:
        """Both at once for the positions ``index``, (B, y, x)."""
        ramp_y, ramp_x = self.descan_ramps(self.descan_px[index])
        return ramp_y * ramp_x

    def descanned(self, exit_wave: Tensor, index: Tensor) -> Tensor:
        """Exit waves (..., b, states, modes, y, x) in reciprocal space, shifted as the patterns are (Fourier shift theorem)."""
        return torch.fft.fft2(torch.fft.ifft2(exit_wave) * self.descan_ramp(index)[:, None, None])

    @property
    def rows(self) -> Tensor:
        """(ky, size): what happens along y."""
        return self._rows_kept(lambda: self._blurred(self.sharp_rows), self.blur_px2) if self.blurs else self.sharp_rows

    @property
    def columns(self) -> Tensor:
        """(kx, size): what happens along x."""
        return self._columns_kept(lambda: self._blurred(self.sharp_columns), self.blur_px2) if self.blurs else self.sharp_columns

    def _blurred(self, matrix: Tensor) -> Tensor:
        """Its rows convolved with the discrete Gaussian exp(-t) I_n(t), t the variance in samples: exp(-t (1 - cos w)) in Fourier space."""
        frequency = 2 * math.pi * torch.fft.rfftfreq(self.size, dtype=matrix.dtype, device=matrix.device)
        transfer = torch.exp(-self.blur_px2 * self.oversample**2 * (1 - torch.cos(frequency)))
        # Never negative but for rounding.
        return torch.fft.irfft(torch.fft.rfft(matrix) * transfer, n=self.size).clamp_min(0)

    def forward(self, intensity: Tensor) -> Tensor:
        """Expected electrons (..., ky, kx) from the wave's intensity (..., size, size)."""
        if self._point and not self.blurs:
            return intensity + self.background
        image = self._three_taps(intensity) if self.taps else self.rows @ intensity @ self.columns.mT
        # In place where autograd does not look: a pass over memory less.
        return image + self.background if torch.is_grad_enabled() else image.add_(self.background)

    def adjoint(self, slope: Tensor) -> Tensor:
        """Transpose of :meth:`forward` without the background: (..., ky, kx) back to (..., size, size)."""
        if self._point and not self.blurs:
            return slope
        return self._three_taps(slope) if self.taps else self.rows.mT @ slope @ self.columns

    @property
    def taps(self) -> tuple[float, float] | None:
        """(side, centre) where these three numbers are all that happens along each axis."""
        return None if self.blurs else self._taps

    def _three_taps(self, image: Tensor) -> Tensor:
        """What the matrices do when each axis has the kernel (side, centre, side), periodic; it is its own transpose."""
        assert self.taps is not None
        side, centre = self.taps
        # A padded copy would be two passes over memory more.
        by_rows = image * centre
        by_rows[..., 1:, :].add_(image[..., :-1, :], alpha=side)
        by_rows[..., 0, :].add_(image[..., -1, :], alpha=side)
        by_rows[..., :-1, :].add_(image[..., 1:, :], alpha=side)
        by_rows[..., -1, :].add_(image[..., 0, :], alpha=side)
        blurred = by_rows * centre
        blurred[..., 1:].add_(by_rows[..., :-1], alpha=side)
        blurred[..., 0].add_(by_rows[..., -1], alpha=side)
        blurred[..., :-1].add_(by_rows[..., 1:], alpha=side)
        blurred[..., -1].add_(by_rows[..., 0], alpha=side)
        return blurred


def _axis_matrix(size: int, kept: int, oversample: int, kernel: np.ndarray) -> np.ndarray:
    """(kept, size): blur, sum ``oversample`` samples into one, keep the ``kept`` lowest frequencies; corner order on both sides."""
    pixels = np.fft.ifftshift(np.arange(kept) - kept // 2)
    matrix = np.zeros((kept, size))
    for tap, weight in enumerate(kernel, start=-(len(kernel) // 2)):
        matrix[np.arange(kept), (pixels * oversample + tap) % size] += weight * oversample
    return matrix


def _pixel_kernel(width: int) -> np.ndarray:
    """Weights that average over a pixel ``width`` samples wide: exact for parabolas, never negative, sum 1.

    1 sample: (1/24, 22/24, 1/24). Even widths end half-way between pixels: end weights e and inner weights c from
    the sum, (w - 1) c + 2 e = w, and the second moment, w^3 / 12 (w = 2 is Simpson's rule).
    """
    if width % 2:
        return np.convolve(np.full(width, 1 / width), [1 / 24, 22 / 24, 1 / 24])
    inner = np.arange(1 - width // 2, width // 2)
    end, c = np.linalg.solve([[2, width - 1], [width**2 / 2, (inner**2).sum()]], [width, width**3 / 12])
    return np.r_[end, np.full(width - 1, c), end] / width
