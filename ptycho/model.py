"""The forward model of 4D-STEM ptychography: from a position to the expected electrons on the detector.

This is the reference, in plain autograd, written to be read. The solvers use ``adjoint.py``: the same function with its exact
gradient by hand, held to this one by a test in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptycho.detector import Detector
from ptycho.multislice import Object, multislice
from ptycho.optics import shift_ramps
from ptycho.probe import Probe
from ptycho.propagator import Propagator


class Positions(nn.Module):
    """Probe centres ``value_px`` (N, 2) = (y, x) in pixels from the centre of the object's pixel [0, 0]."""

    def __init__(self, value_px: Tensor) -> None:
        super().__init__()
        self.value_px = nn.Parameter(value_px.clone())

    def split(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Integer window corners (B, 2) and the remaining sub-pixel offsets (B, 2) in [-1/2, 1/2).

        Taken from the present positions at every call, so that a probe that moves never leaves its window.
        """
        position = self.value_px[index]
        centre = torch.floor(position.detach() + 0.5)
        return centre.long() - size // 2, position - centre


class Ptychography(nn.Module):
    """Probe modes x object states x slices x positions, each a tensor axis; coherent single-slice is 1, 1, 1.

    I_j(k) = sum_o w_o sum_m |F[ O_S ... prop[ O_1(r + R_j) P_m(r - d_j) ] ]|^2, seen by the detector (Thibault & Menzel, Nature 494
    (2013) 68; Maiden, Humphry & Rodenburg, JOSA A 29 (2012) 1606; Chen et al., Science 372 (2021) 826). The modes m include those of a
    source of finite size; the first may vary with the position (OPR), and the descan may shift each pattern.
    ``pixel_A`` is the pixel of object and probe, ``initial_power`` the electrons per pattern that the probe began with.
    """

    initial_power: Tensor

    def __init__(self, object_: Object, probe: Probe, propagator: Propagator, positions: Positions, detector: Detector, pixel_A: float) -> None:
        super().__init__()
        self.object, self.probe, self.propagator, self.positions, self.detector = object_, probe, propagator, positions, detector
        self.pixel_A = pixel_A
        self.register_buffer("initial_power", probe.power().sum())

    @property
    def size(self) -> int:
        """Side of the simulated window in pixels."""
        return int(self.probe.wave.shape[-1])

    def forward(self, index: Tensor) -> Tensor:
        """Expected electrons (B, ky, kx), zero frequency in the corner, at the positions ``index`` (B,)."""
        corners, offsets = self.positions.split(index, self.size)
        ramp_y, ramp_x = shift_ramps(offsets, self.size)
        illumination = torch.fft.ifft2(self.probe.spectra(index) * (ramp_y * ramp_x)[:, None], norm="ortho")
        patches = self.object.patches(corners, self.size)
        exit_wave = multislice(illumination[:, None], patches, self.propagator.kernels(index))
        if self.detector.descans:
            exit_wave = self.detector.descanned(exit_wave, index)
        intensity = exit_wave.real**2 + exit_wave.imag**2
        return torch.as_tensor(self.detector(torch.einsum("o,bomyx->byx", self.object.occupancy, intensity)))

    @torch.no_grad()
    def illumination(self, index: Tensor | None = None) -> Tensor:
        """Electrons that fall on each pixel of the object during a pass, (y, x): the sum over positions and modes of |P(r - R)|^2.

        Of the positions ``index`` (n,), or of all.
        """
        intensity = self.probe.wave.detach().abs().square().sum(0)
        shape = self.object.transmission.shape[-2:]
        if index is None:
            index = torch.arange(len(self.positions.value_px), device=intensity.device)
        corners, _ = self.positions.split(index, self.size)
        visits = torch.zeros(shape, dtype=intensity.dtype, device=intensity.device)
        visits.index_put_((corners[:, 0], corners[:, 1]), torch.ones_like(corners[:, 0], dtype=intensity.dtype), accumulate=True)
        # A convolution of the corners with the probe's intensity; corners leave room for a window, so nothing wraps.
        product = torch.fft.rfft2(visits) * torch.fft.rfft2(intensity, s=shape)
        return torch.fft.irfft2(product, s=shape).clamp_min_(0)
