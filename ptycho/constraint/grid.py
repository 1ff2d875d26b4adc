"""The raster's own grid in the object, an artefact of equal steps ("raster grid pathology"), taken out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint.base import Constraint, logarithm
from ptycho.errors import RecipeError
from ptycho.model import Ptychography

#: Half-width of a notch and the outer radius of its neighbourhood, in steps of 1 / (extent of the scanned field).
_NOTCH, _RING = 1.5, 6.0
#: ln of the mean minus the mean of the ln of a power that is exponentially distributed, as that of noise: Euler's constant.
_EULER = 0.5772156649
#: Fewer frequencies than this are no neighbourhood to judge by.
_FEW = 12


@dataclass(frozen=True)
class GridFilter(Constraint):
    """Takes out what stands above its neighbourhood at the reciprocal lattice of a raster scan, k = n / step.

    A frequency within a notch whose power is more than ``contrast`` times the neighbourhood's (of random detail, one in exp(contrast)) is
    brought down to it, unless the power is higher still on the notch's edge; everything else stays. A crystal whose own lattice coincides
    with the raster's would lose that beam: leave the filter out there, or scan with another step.
    """

    contrast: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.contrast >= 1:
            raise RecipeError(f"grid_filter contrast = {self.contrast}: at least 1, peak over neighbourhood, is needed")

    def apply(self, model: Ptychography) -> None:
        """Subtract the excess. Raises RecipeError when the positions are no raster."""
        lattice, extent = _raster(model.positions.value_px.detach().double())
        transmission, light = model.object.transmission.data, model.illumination()
        # What is not lit is not to be counted, and an edge of the field would be seen as a frequency.
        taper = (light / (0.5 * light.max())).clamp(max=1)
        field = logarithm(transmission)
        mean = (field * taper).sum((-2, -1), keepdim=True) / taper.sum()
        spectrum = torch.fft.fft2((field - mean) * taper)
        height, width = transmission.shape[-2:]
        fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64, device=light.device) for n in (height, width))
        order, distance = _nearest(fy, fx, lattice)
        excess = _excess(spectrum, order, distance * extent, self.contrast)
        transmission.mul_(torch.exp(-torch.fft.ifft2(excess)))


def _excess(spectrum: Tensor, order: Tensor, distance: Tensor, contrast: float) -> Tensor:
    """The part of ``spectrum`` (..., y, x) that stands above the neighbourhood of the lattice point ``order`` (y, x; 0: none), zero elsewhere."""
    power = spectrum.abs().square().flatten(-2)
    ring = ((order > 0) & (distance >= _NOTCH) & (distance < _RING)).flatten().to(power.dtype).expand(power.shape)
    edge = ((distance >= _NOTCH) & (distance < 2 * _NOTCH)).flatten()
    place = order.flatten().expand(power.shape)
    empty = power.new_zeros(*power.shape[:-1], int(order.max()) + 1)
    # The mean of the logarithm does not mind a beam of the specimen nearby.
    count = empty.scatter_add(-1, place, ring)
    total = empty.scatter_add(-1, place, ring * torch.log(power.clamp_min(1e-30)))
    level = torch.exp(total / count.clamp_min(1) + _EULER).masked_fill(count < _FEW, torch.inf)
    # The foot of such a beam is no peak: it is higher still on the notch's edge.
    foot = empty.scatter_reduce(-1, place, power * edge, "amax")
    least = torch.maximum(contrast * level, foot).gather(-1, place)
    above = (order > 0).flatten() & (distance < _NOTCH).flatten() & (power > least)
    kept = torch.sqrt(level.gather(-1, place) / power.clamp_min(1e-30))
    return torch.where(above, spectrum.flatten(-2) * (1 - kept), 0).view_as(spectrum)


def _nearest(fy: Tensor, fx: Tensor, lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest reciprocal lattice point (0: the origin) and the distance to it in cycles per pixel, both (y, x).

    ``lattice`` (2, 2) holds the steps in pixels as rows (slow, fast), each (y, x).
    """
    reciprocal = torch.linalg.inv(lattice).mT
    index = torch.round(fy[:, None, None] * lattice[:, 0] + fx[None, :, None] * lattice[:, 1])
    point = index @ reciprocal
    distance = torch.hypot(fy[:, None] - point[..., 0], fx - point[..., 1])
    _, order = torch.unique(index.flatten(0, 1), dim=0, return_inverse=True)
    order = order.view(distance.shape) + 1
    return torch.where((index == 0).all(-1), 0, order), distance


def _raster(positions: Tensor) -> tuple[Tensor, float]:
    """Steps (2, 2) in pixels, rows (slow, fast), of positions (N, 2) in the order of the scan, and the scanned field's extent in pixels.

    Raises RecipeError when they are no raster of lines of one length.
    """
    steps = positions.diff(dim=0)
    fast = steps.median(0).values if len(steps) else positions.new_zeros(2)
    ends = torch.nonzero((steps - fast).norm(dim=-1) > 0.5 * fast.norm())
    columns = int(ends[0]) + 1 if len(ends) else len(positions)
    rows = len(positions) // columns
    if rows < 3 or columns < 3 or rows * columns != len(positions):
        raise RecipeError(f"grid_filter: the {len(positions)} positions are no raster of equal lines; leave grid_filter out")
    slow = (positions[columns:] - positions[:-columns]).median(0).values
    lattice = torch.stack([slow, fast])
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).reshape(-1, 2).to(positions)
    left = positions - place @ lattice
    if float((left - left.mean(0)).square().sum(1).mean().sqrt()) > 0.25 * float(lattice.norm(dim=1).min()):
        raise RecipeError("grid_filter: the positions are too far from a raster for one to leave a grid; leave grid_filter out")
    return lattice, math.sqrt(rows * columns * abs(float(torch.linalg.det(lattice))))
