"""From the intensity of the wave to what the detector records: pixel area, blur, binning, cropping, background, mask."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ive
from torch import Tensor, nn


class Detector(nn.Module):
    """A linear map from the simulated grid (size, size) to the pattern (ky, kx), both with zero frequency in the corner.

    All of it is separable: image = rows @ intensity @ columns^T, with one small matrix per axis. A pixel integrates over its area; a
    Gaussian of ``blur_px`` detector pixels (standard deviation) adds the point spread. With ``oversample`` > 1 the simulated grid is
    that much finer than the detector's and is binned; a simulated grid that reaches further out than the pattern is cropped.

    The kernels have no negative entry, since a likelihood needs positive intensities. For the pixel it is the integral of the parabola
    through neighbouring samples, exact for waves that fill up to half of the window; for the blur the discrete Gaussian exp(-t) I_n(t)
    of exactly this variance (Lindeberg, IEEE PAMI 12 (1990) 234).

    ``mask`` (ky, kx) is 1 where a pixel counts; ``background`` (ky, kx) or (1, 1) is added, in electrons.
    """

    mask: Tensor
    rows: Tensor
    columns: Tensor

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
        self.register_buffer("mask", mask.clone(), persistent=False)
        self.background = nn.Parameter(torch.zeros(1, 1, dtype=mask.dtype) if background is None else background.clone())
        kernel = _pixel_kernel(oversample) if pixel_area else np.ones(1)
        kernel = np.convolve(kernel, _blur_kernel(blur_px * oversample, size))
        same_grid = oversample == 1 and mask.shape == (size, size)
        self.identity = same_grid and len(kernel) == 1
        # The usual case, the pixel's area alone: three taps are added up, five times faster than the matrices.
        self.taps = (float(kernel[0]), float(kernel[1])) if same_grid and len(kernel) == 3 else None
        rows, columns = (torch.from_numpy(_axis_matrix(size, kept, oversample, kernel)).to(mask.dtype) for kept in mask.shape)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, intensity: Tensor) -> Tensor:
        """Expected electrons (..., ky, kx) from the wave's intensity (..., size, size)."""
        if self.identity:
            return intensity + self.background
        image = self._three_taps(intensity) if self.taps else self.rows @ intensity @ self.columns.mT
        # In place where autograd does not look: a pass over memory less.
        return image + self.background if torch.is_grad_enabled() else image.add_(self.background)

    def adjoint(self, slope: Tensor) -> Tensor:
        """Transpose of :meth:`forward` without the background: (..., ky, kx) back to (..., size, size)."""
        if self.identity:
            return slope
        return self._three_taps(slope) if self.taps else self.rows.mT @ slope @ self.columns

    def _three_taps(self, image: Tensor) -> Tensor:
        """What the matrices do when each axis has the kernel (side, centre, side), periodic; it is its own transpose."""
        assert self.taps is not None
        side, centre = self.taps
        padded = nn.functional.pad(image.reshape(1, -1, *image.shape[-2:]), (1, 1, 1, 1), mode="circular")[0]
        by_rows = padded[:, 1:-1] * centre
        by_rows.add_(padded[:, :-2], alpha=side).add_(padded[:, 2:], alpha=side)
        blurred = by_rows[..., 1:-1] * centre
        blurred.add_(by_rows[..., :-2], alpha=side).add_(by_rows[..., 2:], alpha=side)
        return blurred.reshape(image.shape)


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


def _blur_kernel(sigma: float, size: int) -> np.ndarray:
    """The discrete Gaussian of variance sigma^2, cut where it falls below 1e-6 or at half the grid, sum 1."""
    if sigma <= 0:
        return np.ones(1)
    reach = np.arange(size // 2)
    weights = ive(reach, sigma**2)
    weights = weights[weights > 1e-6]
    kernel = np.r_[weights[:0:-1], weights]
    return np.asarray(kernel / kernel.sum())
