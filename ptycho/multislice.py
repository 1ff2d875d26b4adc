"""The specimen as slices, and how a wave passes through them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Object(nn.Module):
    """Complex transmission ``transmission`` (states, slices, y, x), slice 0 where the beam enters; phase = + sigma * projected potential.

    ``occupancy`` (states,) weighs the incoherent sum over object states and adds up to one.
    """

    occupancy: Tensor

    def __init__(self, transmission: Tensor, occupancy: Tensor | None = None) -> None:
        super().__init__()
        self.transmission = nn.Parameter(transmission.clone())
        states = transmission.shape[0]
        weights = (torch.ones(states) if occupancy is None else occupancy).to(transmission.real.dtype)
        self.register_buffer("occupancy", weights / weights.sum())

    def patches(self, corners: Tensor, size: int) -> Tensor:
        """Windows (N, states, slices, size, size) whose first pixels are ``corners`` (N, 2) = (y, x)."""
        return gather(self.transmission.flatten(0, 1), corners, size).unflatten(1, self.transmission.shape[:2])


def gather(canvas: Tensor, corners: Tensor, size: int) -> Tensor:
    """(N, c, size, size) windows of ``canvas`` (c, y, x) at integer ``corners`` (N, 2); differentiable."""
    window = torch.arange(size, device=canvas.device)
    rows = corners[:, 0, None] + window
    columns = corners[:, 1, None] + window
    return canvas[:, rows[:, :, None], columns[:, None, :]].movedim(0, 1)


def multislice(wave: Tensor, patches: Tensor, kernels: Tensor) -> Tensor:
    """Exit wave in reciprocal space, (N, states, modes, y, x), zero frequency in the corner.

    ``wave`` (N, 1, modes, y, x) enters, ``patches`` (N, states, slices, y, x) multiply it and ``kernels`` (slices - 1, N or 1, y, x)
    carry it from slice to slice (Cowley & Moodie, Acta Cryst. 10 (1957) 609; Maiden, Humphry & Rodenburg, JOSA A 29 (2012) 1606, eq. 3-6).
    """
    for s in range(patches.shape[2]):
        wave = wave * patches[:, :, s, None]
        spectrum = torch.fft.fft2(wave, norm="ortho")
        if s == patches.shape[2] - 1:
            break
        wave = torch.fft.ifft2(spectrum * kernels[s][:, None, None], norm="ortho")
    return spectrum
