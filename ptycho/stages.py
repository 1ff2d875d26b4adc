"""Stages of a run: each may look at the data more coarsely and model more or less; what was learned goes on to the next."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from ptycho.geometry import Geometry
from ptycho.model import Ptychography
from ptycho.optics import frequency_grid, propagation_phase
from ptycho.probe import seed_modes
from ptycho.start import ModelOptions, canvas_origin_A, fit_window, probe_diameter_A
from ptycho.unwrap import unwrap_peaks
from ptycho.views import View

#: A coarse stage keeps the disk and this many times its radius: beyond is what only fine details scatter.
_COARSE_RADII = 1.85
#: Pixels are added up as long as the window in real space stays this many times as wide as the probe.
_COARSE_WINDOW = 1.5
#: A coarse stage with more than this share of the pixels is not worth its while.
_COARSE_SHARE = 0.6


def coarse_view(geometry: Geometry, depth_A: float) -> View | None:
    """The coarsest look at the patterns that still shows what the object is; None when it would be hardly coarser.

    Kept are the disk and what lies within ``_COARSE_RADII`` of its radius; pixels are added up while the window holds the probe all
    through a specimen of ``depth_A``.
    """
    smallest = min(geometry.pattern_shape)
    window_A = 1 / geometry.pixel_invA
    bins = max(1, int(window_A / (_COARSE_WINDOW * probe_diameter_A(geometry, depth_A))))
    # Pixels on which the disk is too small to be seen as a disk say little.
    bins = min(bins, max(1, int(geometry.disk_radius_px / 8)), smallest // 16 or 1)
    wanted = 2 * math.ceil(_COARSE_RADII * geometry.disk_radius_px / bins)
    most = smallest // bins // 2 * 2
    size = most if wanted >= most else min(next_fast_len(wanted + wanted % 2), most)
    if size**2 > _COARSE_SHARE * geometry.pattern_shape[0] * geometry.pattern_shape[1]:
        return None
    return View(bins, (size, size))


def view_of(pattern_shape: tuple[int, int], bin: int, detector_px: int) -> View | None:
    """The view that a stage asks for; None for the patterns as they are."""
    whole = (pattern_shape[0] // bin, pattern_shape[1] // bin)
    height, width = (min(n, detector_px) if detector_px else n for n in whole)
    return None if bin == 1 and (height, width) == pattern_shape else View(bin, (height, width))


def seen_through(geometry: Geometry, view: View | None) -> Geometry:
    """The geometry of the patterns that a view makes."""
    return geometry if view is None else replace(geometry, pattern_shape=view.shape, pixel_invA=geometry.pixel_invA * view.bin)


def options_of(options: ModelOptions, view: View | None, slices: int, probe_modes: int) -> ModelOptions:
    """The [model] section of a stage: ``slices`` equal slices through the same thickness, ``probe_modes`` modes; 0 keeps the model's."""
    if view is not None:
        blur_px = math.hypot(options.detector_blur_px / view.bin, view.blur_px)
        options = replace(options, detector_blur_px=blur_px, background_e=options.background_e * view.bin**2)
    if probe_modes:
        options = replace(options, probe_modes=probe_modes)
    if slices and slices != options.slices:
        options = replace(options, slices=slices, slice_thickness_A=sum(options.thicknesses_A) / slices)
    return options


@torch.no_grad()
def carry_over(before: Ptychography, fresh: Ptychography, geometry: Geometry) -> Ptychography:
    """``fresh``, a model of the same scan on another grid, with what ``before`` has learned; it is changed in place.

    The object is resampled and shared out over the slices by depth, the probe resampled and taken to the middle of the new first slice,
    its modes kept and new ones seeded; positions, tilt, thickness, aberrations, source, variation of the probe, descan and background are
    taken over in their units, the blur where the detector's pixels stay.
    """
    origin = canvas_origin_A(geometry, before.size, before.pixel_A)
    new_origin = canvas_origin_A(geometry, fresh.size, fresh.pixel_A)
    positions_A = before.positions.value_px.double() * before.pixel_A + torch.from_numpy(origin)
    placed = (positions_A - torch.from_numpy(new_origin)) / fresh.pixel_A
    fresh.positions.value_px.copy_(placed)
    _carry_propagator(before, fresh)
    _carry_object(before, fresh, (new_origin - origin) / before.pixel_A)
    _carry_probe(before, fresh)
    _carry_detector(before, fresh)
    return fresh


def _carry_propagator(before: Ptychography, fresh: Ptychography) -> None:
    old, new = before.propagator, fresh.propagator
    new.tilt_rad.copy_(old.tilt_rad)
    if len(old.thickness_A) == len(new.thickness_A):
        new.thickness_A.copy_(old.thickness_A)
    else:
        new.thickness_A.mul_(old.thickness_A.sum() / new.thickness_A.sum())


def _carry_object(before: Ptychography, fresh: Ptychography, shift_px: NDArray[np.float64]) -> None:
    """ln O is what adds up along the beam and stays smooth between pixels."""
    from scipy.ndimage import map_coordinates  # late: it takes longer to import than to use

    old, new = before.object.transmission, fresh.object.transmission
    share = depth_shares(before.propagator.thickness_A, fresh.propagator.thickness_A).to(old.dtype)
    phase = torch.from_numpy(unwrap_peaks(old.angle().cpu().numpy())).to(old.device)
    logarithm = torch.einsum("zs,osyx->ozyx", share, torch.complex(torch.log(old.abs().clamp_min(1e-6)), phase))
    ratio = fresh.pixel_A / before.pixel_A
    if ratio > 1:
        logarithm = _below(logarithm, 1 / ratio)
    axes = [torch.arange(n).double() * ratio + float(shift) for n, shift in zip(new.shape[-2:], shift_px, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).numpy()
    sampled = torch.zeros(old.shape[0], *new.shape[1:], dtype=new.dtype)
    for state, slice_ in np.ndindex(*sampled.shape[:2]):
        sampled[state, slice_] = torch.from_numpy(map_coordinates(logarithm[state, slice_].cpu().numpy(), places, order=3, prefilter=True))
    if len(sampled) != len(new):
        # More states start alike but for a little noise, which `fresh` has.
        sampled = sampled.mean(0, keepdim=True) + torch.log(new.cpu())
    new.copy_(torch.exp(sampled))


def _carry_detector(before: Ptychography, fresh: Ptychography) -> None:
    old, new = before.detector, fresh.detector
    pixels = before.size * before.pixel_A / (fresh.size * fresh.pixel_A)
    if new.background.shape == old.background.shape:
        new.background.copy_(old.background * pixels**2)
    # One detector pixel in those of the other, both of which add up finer samples.
    scale = old.oversample * pixels / new.oversample
    if old.descans:
        new.descan_px.data = old.descan_px * (1 / scale)
    if old.blurs and math.isclose(scale, 1):
        new.blur_px2.data = old.blur_px2.detach().clone()


def _carry_probe(before: Ptychography, fresh: Ptychography) -> None:
    count = len(before.probe.wave)
    waves = fit_window(torch.cat([before.probe.wave, before.probe.variations]), fresh.size, before.pixel_A, fresh.pixel_A)
    depth = _first_depth_A(fresh) - _first_depth_A(before)
    if depth:
        waves = travelled(waves, fresh.pixel_A, fresh.propagator.wavelength_A, depth)
    waves = waves * torch.sqrt(fresh.initial_power) / torch.linalg.vector_norm(waves[:count])
    fresh.probe.wave.copy_(seed_modes(waves[:count], len(fresh.probe.wave)))
    fresh.probe.correction_A.copy_(before.probe.correction_A)
    fresh.probe.source_A2.data = before.probe.source_A2.detach().clone()
    fresh.probe.refit_source()
    fresh.probe.variations.data = waves[count:]
    fresh.probe.coefficients.data = before.probe.coefficients.detach().clone()


def _first_depth_A(model: Ptychography) -> float:
    """Where the first slice acts: in its middle, a single one at the entrance (ModelOptions.entrance_A)."""
    thickness = model.propagator.thickness_A
    return float(thickness[0]) / 2 if len(thickness) > 1 else 0.0


def travelled(wave: Tensor, pixel_A: float, wavelength_A: float, distance_A: float) -> Tensor:
    """Waves (..., y, x) after ``distance_A`` of free space along the beam."""
    ky, kx = (k.to(wave.device) for k in frequency_grid(wave.shape[-1], pixel_A))
    angle = distance_A * propagation_phase(ky, kx, wavelength_A, torch.zeros(2, device=wave.device))
    return torch.fft.ifft2(torch.fft.fft2(wave) * torch.polar(torch.ones_like(angle), angle).to(wave.dtype))


def depth_shares(old_A: Tensor, new_A: Tensor) -> Tensor:
    """(new, old): which part of each old slice lies in each new one, both stacks beginning at the entrance."""
    old_end, new_end = old_A.cumsum(0), new_A.cumsum(0)
    low = torch.maximum((new_end - new_A)[:, None], old_end - old_A)
    high = torch.minimum(new_end[:, None], old_end)
    return (high - low).clamp(min=0) / old_A


def _below(image: Tensor, fraction: float) -> Tensor:
    """Without frequencies beyond ``fraction`` of the highest, with which a coarser grid would show false details."""
    ky, kx = (torch.fft.fftfreq(n, device=image.device) for n in image.shape[-2:])
    keep = torch.hypot(ky[:, None], kx) <= 0.5 * fraction
    return torch.fft.ifft2(torch.fft.fft2(image) * keep)
