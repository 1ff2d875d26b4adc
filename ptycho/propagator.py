"""The adaptive propagator: free space between slices, with thicknesses and specimen tilt that may be learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptycho.optics import band_limit, frequency_grid, propagation_phase


class Propagator(nn.Module):
    """``thickness_A`` (slices,): the distance after each slice (the last one is not used: nothing propagates behind the specimen).

    ``tilt_rad`` (1, 2) for one tilt or (N, 2) for one per position, (y, x): columns are displaced by +z tan(tilt) relative to the beam
    (Sha, Cui & Yu, Sci. Adv. 8 (2022) eabn2275). ``limit`` is the fraction of the highest frequency that passes.
    """

    ky: Tensor
    kx: Tensor
    pass_band: Tensor

    def __init__(self, size: int, pixel_A: float, wavelength_A: float, thickness_A: Tensor, tilt_rad: Tensor, limit: float = 2 / 3) -> None:
        super().__init__()
        self.wavelength_A = wavelength_A
        self.thickness_A = nn.Parameter(thickness_A.clone())
        self.tilt_rad = nn.Parameter(tilt_rad.clone())
        ky, kx = frequency_grid(size, pixel_A)
        dtype = thickness_A.dtype
        self.register_buffer("ky", ky.to(dtype), persistent=False)
        self.register_buffer("kx", kx.to(dtype), persistent=False)
        self.register_buffer("pass_band", band_limit(size, limit, dtype), persistent=False)

    def tilt_of(self, index: Tensor) -> Tensor:
        """Tilts of the given positions, (1, 2) when there is one for all."""
        return self.tilt_rad if len(self.tilt_rad) == 1 else self.tilt_rad[index]

    def kernels(self, index: Tensor) -> Tensor:
        """Complex (slices - 1, N or 1, y, x): exp(i kappa dz) inside the pass band, zero outside."""
        kappa = propagation_phase(self.ky, self.kx, self.wavelength_A, self.tilt_of(index))
        angle = self.thickness_A[:-1, None, None, None] * kappa
        return torch.complex(torch.cos(angle), torch.sin(angle)) * self.pass_band
