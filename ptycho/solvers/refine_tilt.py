"""The tilt of a crystal from the lean of its slices: a move along the gauge, where the gradient sees nothing.

A tilted specimen and a stack of slices each displaced a little from the one above give the same patterns (but for the tangent's small part):
the gradient of the tilt is next to nothing, and a reconstruction from tilt zero leans. The lean can be measured, by the cross-correlation
of slices far enough apart to be told from each other. It is given to the tilt of the propagator, and the slices go back on top of
each other. What tilt means here is that what the slices have in common, atomic columns, stands upright in the column's frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho.model import Ptychography

#: No lean is believed beyond this tilt (rad), nor one whose correlation is below this share of that of equal slices.
_MOST_RAD, _LEAST_CORRELATION = 0.05, 0.7
#: Illuminated: at least this share of the brightest.
_BRIGHT = 0.3


@torch.no_grad()
def lean_rad(model: Ptychography) -> Tensor | None:
    """(2,) = (y, x): displacement of the slices over depth, as :attr:`Propagator.tilt_rad`; None when slices are not alike enough to tell.

    Slices about a depth of focus apart are compared, 1 / (lambda k^2) with k the probe's radius: nearer ones share what they hold,
    because the beam does not tell them apart, and seem more upright than they are.
    """
    p, transmission = model.propagator, model.object.transmission.detach()
    slices = transmission.shape[1]
    if slices < 2:
        return None
    focus_A = 1 / (p.wavelength_A * (2 * model.probe.width_invA) ** 2)
    gap = min(max(1, round(focus_A / float(p.thickness_A[:-1].mean()))), slices // 2)
    depth = torch.cat([p.thickness_A.new_zeros(1), p.thickness_A.detach()[:-1].cumsum(0)])
    distance = float((depth[gap:] - depth[:-gap]).mean()) / model.pixel_A
    light = model.illumination()
    weight = (light > _BRIGHT * light.max()).to(light.dtype)
    mean = (transmission * weight).sum((-2, -1), keepdim=True) / weight.sum()
    spectra = torch.fft.fft2((transmission - mean) * weight)
    return _peak(torch.fft.ifft2((spectra[:, gap:] * spectra[:, :-gap].conj()).sum((0, 1))).real, _power(spectra, gap), distance)


def _power(spectra: Tensor, gap: int) -> Tensor:
    """What the correlation of equal slices would be."""
    upper, lower = (part.abs().square().sum() for part in (spectra[:, gap:], spectra[:, :-gap]))
    return torch.sqrt(upper * lower) / (spectra.shape[-1] * spectra.shape[-2])


def _peak(correlation: Tensor, most: Tensor, distance: float) -> Tensor | None:
    """Place of the maximum near the middle over ``distance``, both in pixels, by parabolas; None at the rim or when it is low."""
    reach = max(2, min(int(_MOST_RAD * distance) + 1, min(correlation.shape) // 4))
    near = torch.roll(correlation, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    y, x = divmod(int(near.argmax()), 2 * reach + 1)
    if not (0 < y < 2 * reach and 0 < x < 2 * reach) or float(near[y, x] / most) < _LEAST_CORRELATION:
        return None
    lines = torch.stack([near[y - 1 : y + 2, x], near[y, x - 1 : x + 2]])
    bend = 2 * lines[:, 1] - lines[:, 0] - lines[:, 2]
    place = torch.tensor([y - reach, x - reach], dtype=lines.dtype, device=lines.device) + 0.5 * (lines[:, 2] - lines[:, 0]) / bend
    return place / distance


@torch.no_grad()
def straighten(model: Ptychography) -> None:
    """Give the lean of the slices to the tilt: the slices move back over the first one, the patterns stay (nearly) as they are."""
    lean = lean_rad(model)
    if lean is None:
        return
    p, transmission = model.propagator, model.object.transmission.data
    depth = torch.cat([p.thickness_A.new_zeros(1), p.thickness_A.data[:-1].cumsum(0)]) / model.pixel_A
    fy, fx = (torch.fft.fftfreq(n, dtype=depth.dtype, device=depth.device) for n in transmission.shape[-2:])
    angle = 2 * torch.pi * depth[:, None, None] * (lean[0] * fy[:, None] + lean[1] * fx)
    # One is subtracted, so that the vacuum around the specimen has no edge at the canvas's rim.
    moved = torch.fft.ifft2(torch.fft.fft2(transmission - 1) * torch.complex(torch.cos(angle), torch.sin(angle))) + 1
    transmission.copy_(moved)
    p.tilt_rad.data += lean
