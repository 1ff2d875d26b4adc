"""Priors of the object: how steep, how full a specimen is expected to be, weighed against the dose.

Each is a negative log-probability R(ln O) and acts as a proximal step in the metric of the dose: it takes ln O to the minimum of

    sum over pixels of light |ln O - ln O found|^2 + R(ln O),

with ``light`` the electrons that fall on a pixel in the whole scan. The first term is the log-likelihood about its maximum: the variance of a
phase is 1 / (2 light) at best, twice that of an ideal phase plate (Dwyer & Paganin, Phys. Rev. B 110 (2024) 024110). A solver that comes
to rest between two such steps, or that moves by the preconditioned gradient, rests at the most probable object (Combettes & Wajs,
Multiscale Model. Simul. 4 (2005) 1168): neither the number of epochs nor the batch counts, and the prior fades as the dose rises. That
is so with ``every`` = 1; a prior that acts more rarely is weaker. R counts one independent value per Å^2 of a slice, or per Å^3 between slices,
so that neither pixels nor the number of slices count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint.base import Constraint, canvas_frequencies, logarithm, scanned, unwrapped
from ptycho.errors import RecipeError
from ptycho.model import Ptychography

#: Iterations of the dual projection; noise is smooth after ten, edges of a few Å settle within thirty.
_ITERATIONS = 30
#: Pixels with less than this share of the greatest illumination count as lit by it: there the prior alone decides anyway.
_LEAST_LIGHT = 1e-3
#: Rows at a time for the variation along the beam.
_ROWS = 16


@dataclass(frozen=True)
class _Gradients(Constraint):
    """Expected slopes of phase and ln amplitude: across the beam in rad/Å, along it in rad/Å^2 (of the phase per Å of depth); 0 leaves one out."""

    xy_rad_per_A: float = 0.1
    z_rad_per_A2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not min(self.xy_rad_per_A, self.z_rad_per_A2) >= 0 or self.xy_rad_per_A == self.z_rad_per_A2 == 0:
            raise RecipeError(
                f"xy_rad_per_A = {self.xy_rad_per_A}, z_rad_per_A2 = {self.z_rad_per_A2}: an expected slope is positive; 0 leaves one of the two out"
            )


@dataclass(frozen=True)
class TotalVariation(_Gradients):
    """Slopes are mostly zero and sometimes steep, p ~ exp(-|slope| / expected): flat regions with sharp edges.

    R = sum over slices of the integral of |grad ln O| / xy over the area + of |d/dz (ln O / thickness)| / z over the volume, in Å; xy is that
    of the projected phase. Total variation of Rudin, Osher & Fatemi, Physica D 60 (1992) 259.
    """

    def apply(self, model: Ptychography) -> None:
        """Across the beam first, then along it."""
        transmission = model.object.transmission.data
        field, light = torch.view_as_real(logarithm(transmission)).movedim(-1, 0).contiguous(), _light(model)
        if self.xy_rad_per_A > 0:
            # A slice at a time stays in the processor's cache.
            for slice_ in field.unbind(2):
                slice_.copy_(least_variation(slice_, light[:, 0], model.pixel_A / self.xy_rad_per_A, (-2, -1)))
        if self.z_rad_per_A2 > 0 and transmission.shape[1] > 1:
            thickness = model.propagator.thickness_A.detach()[:, None, None]
            for rows, lit in zip(field.split(_ROWS, -2), light.split(_ROWS, -2), strict=True):
                density = least_variation(rows / thickness, lit * thickness**2, model.pixel_A**2 / self.z_rad_per_A2, (-3,))
                rows.copy_(thickness * density)
        transmission.copy_(torch.polar(torch.exp(field[0]), field[1]))


@dataclass(frozen=True)
class Tikhonov(_Gradients):
    """Slopes are normally distributed with this standard deviation: smooth everywhere.

    R = half the integral of (|grad ln O| / xy)^2 over the area, with a variance xy^2 (that of the projected phase) that slices share by their
    thickness, + half that of (d/dz (ln O / thickness) / z)^2 over the volume, in Å. The light is taken as its mean over the scanned field,
    which for one slice makes the first a filter 1 / (1 + (k / k_0)^2) with k_0 = xy sqrt(2 dose) / (2 pi), in Å^-1 for a dose per Å^2.
    """

    def apply(self, model: Ptychography) -> None:
        """Across the beam first, then along it."""
        transmission = model.object.transmission.data
        thickness = model.propagator.thickness_A.detach()
        light = model.illumination()
        dose = (light[scanned(light)].mean() * model.object.occupancy / model.pixel_A**2)[:, None, None, None]
        field = logarithm(transmission)
        if self.xy_rad_per_A > 0:
            ky, kx = canvas_frequencies(model)
            slope = (2 * math.pi / self.xy_rad_per_A) ** 2 * (ky**2 + kx**2) * (thickness.sum() / thickness)[:, None, None]
            field = torch.fft.ifft2(torch.fft.fft2(field) / (1 + slope / (2 * dose)))
        if self.z_rad_per_A2 > 0 and len(thickness) > 1:
            smooth = _smooth_depth(thickness.double(), dose[:, :, 0].double(), self.z_rad_per_A2).to(field.dtype)
            field = torch.einsum("ozs,osyx->ozyx", smooth, field)
        transmission.copy_(torch.exp(field))


@dataclass(frozen=True)
class Sparsity(Constraint):
    """Most of the field is empty: p ~ exp(-|phase| / ``mean_phase_rad``), one count per Å^2 of a slice.

    Phases move towards the median of their slice, its vacuum, which is zero up to the constant that no detector sees, and small ones arrive there
    (soft threshold; the lasso of Tibshirani, J. R. Stat. Soc. B 58 (1996) 267). The amplitude stays.
    """

    mean_phase_rad: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mean_phase_rad > 0:
            raise RecipeError(f"sparsity mean_phase_rad = {self.mean_phase_rad}: a positive phase in rad is needed; the smaller, the sparser")

    def apply(self, model: Ptychography) -> None:
        """Shrink |phase - median| by pixel area / (2 light mean_phase)."""
        transmission = model.object.transmission.data
        light = model.illumination()
        phase = unwrapped(transmission)
        vacuum = phase[..., scanned(light)].median(-1).values[..., None, None]
        contrast = phase - vacuum
        threshold = model.pixel_A**2 / (2 * self.mean_phase_rad * _light(model))
        phase = vacuum + contrast.sign() * (contrast.abs() - threshold).clamp_min(0)
        transmission.copy_(torch.polar(transmission.abs(), phase))


def least_variation(found: Tensor, weight: Tensor, cost: float, axes: tuple[int, ...]) -> Tensor:
    """Minimum u of sum ``weight`` |u - found|^2 + ``cost`` sum |D u|, with D the differences of neighbours along ``axes``; open ends.

    ``found`` (parts, ...) is real; its parts have their edges in common: |D u|^2 is summed over ``axes`` and parts. ``weight`` broadcasts to
    one part. Projected gradient on the dual (Chambolle, J. Math. Imaging Vis. 20 (2004) 89), accelerated (Beck & Teboulle, IEEE Trans. Image
    Process. 18 (2009) 2419), each pixel with the step that its own weight allows (Pock & Chambolle, ICCV 2011, 1762).
    """
    half = (0.5 / weight).expand(found.shape[1:])
    # Each pixel takes part in 2 differences per axis; the step is the reciprocal of the greatest row sum of D (1 / 2 weight) D^T.
    greatest = half.clone()
    for axis in axes:
        torch.maximum(_but_last(greatest, axis), _but_first(half, axis), out=_but_last(greatest, axis))
    step = 1 / (4 * len(axes) * greatest)
    dual = [torch.zeros_like(found) for _ in axes]
    ahead, momentum = [p.clone() for p in dual], 1.0
    for _ in range(_ITERATIONS):
        u = _primal(found, half, ahead, axes)
        for p, axis in zip(ahead, axes, strict=True):
            _but_last(p, axis).addcmul_(_but_last(step, axis), torch.diff(u, dim=axis))
        length = torch.stack([p.square().sum(0) for p in ahead]).sum(0).sqrt_()
        scale = cost / length.clamp_min_(cost)
        before, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        for p, previous in zip(ahead, dual, strict=True):
            p.mul_(scale)
            # The one becomes p + (before - 1) / momentum (p - previous), the other p.
            previous.sub_(p).mul_((1 - before) / momentum).add_(p)
        ahead, dual = dual, ahead
    return _primal(found, half, dual, axes)


def _primal(found: Tensor, half: Tensor, dual: list[Tensor], axes: tuple[int, ...]) -> Tensor:
    """u = found - D^T dual / (2 weight); the last value of each dual along its axis is zero."""
    total = torch.stack(dual).sum(0)
    for p, axis in zip(dual, axes, strict=True):
        _but_first(total, axis).sub_(_but_last(p, axis))
    return torch.addcmul(found, half, total)


def _but_first(field: Tensor, axis: int) -> Tensor:
    return field.narrow(axis, 1, field.shape[axis] - 1)


def _but_last(field: Tensor, axis: int) -> Tensor:
    return field.narrow(axis, 0, field.shape[axis] - 1)


def _light(model: Ptychography) -> Tensor:
    """Electrons per pixel that see each state, (states, 1, y, x), nowhere zero."""
    light = model.illumination()
    return light.clamp_min(_LEAST_LIGHT * light.max()) * model.object.occupancy[:, None, None, None]


def _smooth_depth(thickness: Tensor, dose: Tensor, slope: float) -> Tensor:
    """(states, slices, slices): from phases found with ``dose`` (states, 1, 1) to those most probable with rms slopes of ``slope``."""
    identity = torch.eye(len(thickness), dtype=thickness.dtype, device=thickness.device)
    steps = torch.diff(identity, dim=0)
    distance = 0.5 * (thickness[1:] + thickness[:-1])
    stiffness = steps.mT @ (steps / distance[:, None]) / slope**2 / thickness / thickness[:, None]
    return torch.linalg.inv(identity + stiffness / (2 * dose))
