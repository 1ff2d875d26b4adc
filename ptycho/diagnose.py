"""What goes wrong in reconstructions and how it shows: each finding is one sentence with its number and the remedy.

Thresholds are far from what sound runs have: no finding is no proof, a finding is worth a look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from ptycho.model import Ptychography

#: Share of its power below which a probe has vanished.
_VANISHED = 0.1
#: Share of the probe's power in the outer sixteenth of the window on each side.
_MOST_AT_EDGE = 0.05
#: Spread of the probe's intensity over its aperture, standard deviation over mean.
_MOST_UNEVEN = 0.4
#: Skewness of the phase below which atoms are taken to be dark.
_DARK_ATOMS = -1.0
#: Power at the scan's frequency over its neighbourhood's median, and over the whole.
_GRID_CONTRAST, _GRID_SHARE = 30.0, 0.01
#: So many orders of the raster are looked at; positions that add up to less than this share are none.
_ORDERS, _RASTER = 8, 0.3
#: Beams within this part of an order's frequency are the crystal's own, if one of them has this part of the order's power.
_RING, _CRYSTAL = 0.2, 0.25
#: The specimen's middle lies this far from the ends of the model, as a share of the depth; one slice holds at most this share.
_LEAST_DEPTH, _MOST_IN_ONE = 0.2, 0.6
#: Positions: rms away from an affine map in scan steps, the map's stretch, share of positions with another one closer than a fifth of a step.
_MOST_AWAY, _STRETCH, _MOST_MERGED = 0.5, 0.1, 0.05
#: Of fewer positions nothing can be said.
_FEWEST = 25
#: Factors of power and amplitude, and the least noise of counts over Poisson's.
_POWER, _AMPLITUDE, _LEAST_NOISE = 1.5, 1.3, 0.5


@dataclass(frozen=True)
class Finding:
    """A ``name`` of one word for the kind, a ``sentence`` for the person."""

    name: str
    sentence: str


@dataclass(frozen=True, eq=False)
class Before:
    """What a run is compared with, its beginning.

    Intensity (y, x) in the ``aperture``, zero frequency in the corner; ``positions`` (N, 2) in pixels.
    """

    aperture: Tensor = field(repr=False)
    positions: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, model: Ptychography) -> Before:
        """The model as it is now."""
        return cls(_power(model.probe.spectrum()), _positions_px(model))


@torch.no_grad()
def diagnose(model: Ptychography, before: Before) -> tuple[Finding, ...]:
    """All that looks wrong with a model that began as ``before``; costs a few transforms of the object."""
    found = (
        *_probe(model),
        *_mixing(model, before),
        *_grid(model, before.positions),
        *_depth(model),
        *_positions(model, before.positions),
        *_gain(model),
    )
    return tuple(found)


def diagnose_counts(scale: float) -> tuple[Finding, ...]:
    """What the noise of the data says: ``scale`` is its variance over its mean, as from :func:`ptycho.deviance.noise_scale`."""
    if scale >= _LEAST_NOISE:
        return ()
    sentence = (
        f"counts vary {scale:.2f} times as much as electrons would: each electron makes at least {1 / scale:.1f} counts, or, if it makes one, "
        f"adu_per_electron is {1 / scale:.1f} times too large or more"
    )
    return (Finding("gain", sentence),)


def _probe(model: Ptychography) -> list[Finding]:
    """At the window's edge, where the specimen begins or ends; or gone."""
    spectrum = model.probe.spectrum()
    power = float(_power(spectrum).sum())
    share = power / float(model.initial_power)
    if not share > _VANISHED:
        return [Finding("probe", f"the probe has vanished to {share:.0%} of its power; use shorter steps, or a later update.probe")]
    kernels = model.propagator.kernels(torch.zeros(1, dtype=torch.long, device=spectrum.device))
    worst = max(_at_edge(spectrum), _at_edge(spectrum * kernels.prod(0)))
    if worst < _MOST_AT_EDGE:
        return []
    sentence = f"{worst:.0%} of the probe lie at the edge of its window and wrap around; check defocus_A, bin less, or use oversample = 2"
    return [Finding("window", sentence)]


def _at_edge(spectrum: Tensor) -> float:
    """Share of the power in the outer sixteenth of the window on each side."""
    power = _power(torch.fft.ifft2(spectrum))
    edge = power.shape[-1] // 16
    return float(1 - power[edge:-edge, edge:-edge].sum() / power.sum())


def _mixing(model: Ptychography, before: Before) -> list[Finding]:
    """The aperture is evenly lit: Bragg disks in it are the specimen's; and atoms are bright in phase."""
    found = []
    lit = before.aperture > 0.5 * before.aperture.max()
    inside = _power(model.probe.spectrum())[lit] / before.aperture[lit]
    uneven = float(inside.std() / inside.mean())
    if uneven > _MOST_UNEVEN:
        remedy = "use a later update.probe, or a smaller probe_step"
        sentence = f"the probe's aperture is uneven by {uneven:.0%}: a part of the specimen has gone into it; {remedy}"
        found.append(Finding("mixing", sentence))
    phase, light = _phase(model).sum(0), model.illumination()
    seen = phase[light > 0.5 * light.max()].double()
    skew = float(((seen - seen.mean()) ** 3).mean() / seen.std().clamp_min(1e-9) ** 3)
    if skew < _DARK_ATOMS:
        found.append(Finding("contrast", f"atoms are dark (skewness of the phase {skew:.1f}); check the sign of defocus_A, flips and transpose"))
    return found


def _grid(model: Ptychography, positions: NDArray[np.float64]) -> list[Finding]:
    """A peak in the power spectrum of the phase at a frequency of the scan's own raster."""
    if len(positions) < _FEWEST:
        return []
    phase = _phase(model).sum(0).double()
    shape = (2 * phase.shape[0], 2 * phase.shape[1])
    visits = torch.zeros_like(phase)
    y, x = torch.from_numpy(np.rint(positions).astype(np.int64)).to(phase.device).T
    visits.index_put_((y, x), torch.ones(len(y), dtype=phase.dtype, device=phase.device), accumulate=True)
    raster = torch.fft.rfft2(visits, s=shape).abs().square() / len(y) ** 2
    taper = visits.new_tensor(_hann(positions[:, 0], phase.shape[0]))[:, None] * visits.new_tensor(_hann(positions[:, 1], phase.shape[1]))
    mean = (phase * taper).sum() / taper.sum()
    power = torch.fft.rfft2((phase - mean) * taper, s=shape).abs().square()
    # The orders of the raster are where the positions add up, away from zero frequency and its width.
    fy = torch.fft.fftfreq(shape[0], dtype=power.dtype, device=power.device)[:, None]
    fx = torch.fft.rfftfreq(shape[1], dtype=power.dtype, device=power.device)
    y_extent, x_extent = np.maximum(np.ptp(positions, axis=0), 1.0)
    raster[(fy * y_extent).square() + (fx * x_extent).square() < 9] = 0
    radius, beside = torch.hypot(fy, fx), ~_near(raster >= _RASTER, 3 * shape[0] / y_extent, 3 * shape[1] / x_extent)
    found = []
    for _ in range(_ORDERS):
        row, column = divmod(int(raster.argmax()), raster.shape[1])
        if raster[row, column] < _RASTER:
            break
        away = (((fy - fy[row]) * y_extent).square() + ((fx - fx[column]) * x_extent).square()).sqrt()
        contrast = float(power[away < 1].amax() / power[(away > 3) & (away < 8)].median().clamp_min(1e-30))
        share = float(power[away < 1.5].sum() / power.sum().clamp_min(1e-30))
        # A crystal has beams of its own in other directions too, about as strong; a raster has none but at its orders.
        others = power[((radius / radius[row, column] - 1).abs() < _RING) & beside]
        own = len(others) > 0 and float(others.amax()) > _CRYSTAL * float(power[away < 1].amax())
        if contrast > _GRID_CONTRAST and share > _GRID_SHARE and not own:
            found.append((contrast, model.pixel_A / math.hypot(float(fy[row]), float(fx[column]))))
        raster[away < 3] = 0
    if not found:
        return []
    contrast, period_A = max(found)
    sentence = (
        f"the phase has a grid of {period_A:.2f} Å, the scan's own, {contrast:.0f} times above its surroundings; "
        "use constraints.grid_filter, or record with more defocus or overlap"
    )
    return [Finding("grid", sentence)]


def _near(marked: Tensor, y: float, x: float) -> Tensor:
    """What is marked (rows periodic) and all that is at most ``y`` rows and ``x`` columns from it."""
    rows, columns = math.ceil(y), math.ceil(x)
    wide = torch.nn.functional.pad(marked[None].float(), (0, 0, rows, rows), mode="circular")
    return torch.nn.functional.max_pool2d(wide, (2 * rows + 1, 2 * columns + 1), stride=1, padding=(0, columns))[0] > 0


def _hann(positions: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A window (size,) over what was scanned along an axis, zero outside."""
    place = (np.arange(size) - positions.min()) / max(float(np.ptp(positions)), 1.0)
    return np.where((place > 0) & (place < 1), np.sin(np.pi * place) ** 2, 0.0)


def _depth(model: Ptychography) -> list[Finding]:
    """Where along the beam the scattering is."""
    phase = _phase(model)
    if len(phase) < 4:
        return []
    light = model.illumination()
    seen = phase[:, light > 0.5 * light.max()].double()
    weight = seen.var(1)
    if not float(weight.sum()) > 0:
        return []
    thickness = model.propagator.thickness_A.double()
    share = weight / weight.sum()
    middle = (torch.cumsum(thickness, 0) - thickness / 2) / thickness.sum()
    centre, most = float((share * middle).sum()), int(share.argmax())
    if _LEAST_DEPTH < centre < 1 - _LEAST_DEPTH and float(share[most]) < _MOST_IN_ONE:
        return []
    off_A = (centre - 0.5) * float(thickness.sum())
    sentence = (
        f"the specimen lies about {centre:.0%} of the depth, {float(share[most]):.0%} of its scattering in slice {most + 1} of {len(share)}; "
        f"use fewer or thinner slices, or a defocus_A that is {abs(off_A):.0f} Å {'less' if off_A > 0 else 'more'}"
    )
    return [Finding("depth", sentence)]


def _positions(model: Ptychography, before: NDArray[np.float64]) -> list[Finding]:
    """Positions that have left their places, beyond what an affine map of the scan explains, or that have merged."""
    now = _positions_px(model)
    if len(now) < _FEWEST or np.allclose(now, before):
        return []
    step = float(np.median(_nearest(before)))
    if not step > 0:
        return []
    start = np.column_stack([before - before.mean(0), np.ones(len(before))])
    affine = np.linalg.lstsq(start, now, rcond=None)[0]
    away = float(np.sqrt(((now - start @ affine) ** 2).sum(1).mean())) / step
    stretch = np.linalg.svd(affine[:2], compute_uv=False)
    merged = float((_nearest(now) < 0.2 * step).mean())
    remedy = "use a later update.positions, and check step_A, rotation_deg and defocus_A"
    if np.abs(stretch - 1).max() > _STRETCH:
        return [Finding("positions", f"the scan is stretched by {stretch.max():.2f} and {stretch.min():.2f}; {remedy}")]
    if away > _MOST_AWAY or merged > _MOST_MERGED:
        return [Finding("positions", f"positions are {away:.2f} scan steps (rms) from their places, {merged:.0%} on top of others; {remedy}")]
    return []


def _nearest(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each position to its nearest neighbour."""
    return np.asarray(cKDTree(positions).query(positions, 2)[0])[:, 1]


def _gain(model: Ptychography) -> list[Finding]:
    """Electrons in the probe against those in the patterns, and the transparency of the object, which trade with each other."""
    power = float(model.probe.power().sum() / model.initial_power)
    if not power > _VANISHED:
        return []  # told already
    light = model.illumination()
    # What passes all slices one behind the other: the mean slice to the power of their number would count a dark column in every pixel.
    passed = float(model.object.transmission.abs().square().prod(1).mean(0)[light > 0.5 * light.max()].mean())
    if 1 / _POWER < power < _POWER and 1 / _AMPLITUDE**2 < passed < _AMPLITUDE**2:
        return []
    sentence = (
        f"the probe has {power:.2f} times the electrons of a pattern and the object transmits {passed:.2f} of them; "
        "use constraints.probe_power or pure_phase, and check adu_per_electron, dark and mask"
    )
    return [Finding("gain", sentence)]


def _power(waves: Tensor) -> Tensor:
    """|wave|^2 summed over the modes, (y, x)."""
    return waves.abs().square().sum(0)


def _phase(model: Ptychography) -> Tensor:
    """Phase of the mean of the object states, (slices, y, x)."""
    return torch.einsum("o,osyx->syx", model.object.occupancy.to(model.object.transmission.dtype), model.object.transmission).angle()


def _positions_px(model: Ptychography) -> NDArray[np.float64]:
    return model.positions.value_px.detach().cpu().double().numpy()
