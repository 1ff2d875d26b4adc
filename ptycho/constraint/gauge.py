"""What the patterns do not say: changes of object, probe and positions together that leave every pattern as it is.

Left alone they drift, and results of two runs differ by them. Each record chooses one of the equivalent models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint.base import Constraint, scanned
from ptycho.model import Ptychography
from ptycho.optics import shift_ramps


@dataclass(frozen=True)
class PhaseRamp(Constraint):
    """No mean slope of the projected phase: a ramp exp(2 pi i g.r) of the first slice is a tilt of the probe.

    P(r - R) O(r) = [P exp(+2 pi i g.r)](r - R) [O exp(-2 pi i g.r)](r) up to a phase of the whole pattern (exactly so for a probe that is dark at
    the edge of its window).
    """

    acts_on = frozenset({"object", "probe"})

    def apply(self, model: Ptychography) -> None:
        """Turn the ramp that the scanned field has on average over to the probe."""
        transmission = model.object.transmission.data
        slope = _mean_slope(model)
        rows, columns = (_ramp(-slope[i], torch.arange(n, device=slope.device)) for i, n in enumerate(transmission.shape[-2:]))
        transmission[:, 0].mul_((rows[:, None] * columns).to(transmission.dtype))
        within = torch.arange(model.size, device=slope.device) - model.size // 2
        tilt = (_ramp(slope[0], within)[:, None] * _ramp(slope[1], within)).to(transmission.dtype)
        model.probe.change(lambda wave: wave * tilt)


@dataclass(frozen=True)
class CentreProbe(Constraint):
    """The probe's centre of mass stands in the centre of its window, and the positions where the probe is.

    P(r - R) = [P(r + c)](r - R - c) (exactly so for a probe that is dark at the edge of its window).
    """

    acts_on = frozenset({"probe"})

    def apply(self, model: Ptychography) -> None:
        """Shift all modes back and all positions forth, as far as the canvas has room."""
        positions = model.positions.value_px.data
        wave = torch.fft.ifft2(model.probe.mode_spectrum(), norm="ortho")
        light = wave.abs().square().sum(0)
        axis = torch.arange(model.size, dtype=light.dtype, device=light.device) - model.size // 2
        centre = torch.stack([(light.sum(1) * axis).sum(), (light.sum(0) * axis).sum()]) / light.sum()
        room = torch.tensor(model.object.transmission.shape[-2:], device=positions.device) - (model.size - model.size // 2) - 1
        centre = torch.minimum(torch.maximum(centre, model.size // 2 - positions.amin(0)), room - positions.amax(0))
        ramp_y, ramp_x = shift_ramps(-centre[None], model.size)
        model.probe.change(lambda wave: torch.fft.ifft2(torch.fft.fft2(wave) * (ramp_y * ramp_x)[0]))
        positions.add_(centre)


@dataclass(frozen=True)
class ObjectScale(Constraint):
    """Each slice lets as many electrons pass as fall on it, |O| = 1 rms where the light is; the probe takes the factor.

    The probe then carries the mean electrons per pattern by itself, without being told a power as by ``probe_power``.
    """

    acts_on = frozenset({"object", "probe"})

    def apply(self, model: Ptychography) -> None:
        """Divide the slices, multiply the probe."""
        transmission, light = model.object.transmission.data, model.illumination()
        passed = torch.einsum("o,osyx,yx->s", model.object.occupancy, transmission.abs().square(), light / light.sum())
        scale = passed.sqrt()
        transmission.div_(scale[:, None, None])
        model.probe.wave.data.mul_(scale.prod())
        model.probe.coefficients.data.mul_(scale.prod())


def _mean_slope(model: Ptychography) -> Tensor:
    """Cycles per pixel of the projected phase, (2,) = (y, x): the phase of O(r + 1) O*(r), averaged over the scanned field."""
    light = model.illumination()
    weight = light * scanned(light) * model.object.occupancy[:, None, None]
    projected = model.object.transmission.data.prod(1)
    slopes = []
    for axis in (-2, -1):
        here, there = (projected.narrow(axis, first, projected.shape[axis] - 1) for first in (0, 1))
        slopes.append(torch.angle((weight.narrow(axis, 0, here.shape[axis]) * there * here.conj()).sum()))
    return torch.stack(slopes).double() / (2 * math.pi)


def _ramp(slope: Tensor, pixel: Tensor) -> Tensor:
    """exp(2 pi i slope pixel), complex128."""
    angle = 2 * math.pi * slope * pixel
    return torch.polar(torch.ones_like(angle), angle)
