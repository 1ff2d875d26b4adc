"""Small models and noise-free counts that the tests of the solvers share; any precision, no file."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ptycho.aberrations import parse_aberrations
from ptycho.detector import Detector
from ptycho.loss import Loss
from ptycho.model import Positions, Ptychography
from ptycho.multislice import Object
from ptycho.optics import probe_wave
from ptycho.probe import Probe
from ptycho.propagator import Propagator
from ptycho.shards import Shard

PIXEL_A, WAVELENGTH_A, SEMIANGLE_MRAD, MARGIN = 0.3, 0.0418, 25.0, 8
REFINABLE = parse_aberrations({"C10": 1.0, "C12": 1.0})


def random_phase(shape: tuple[int, ...], strength: float = 0.5, blur_px: float = 1.5, seed: int = 0) -> NDArray[np.float64]:
    """Atoms at random places in vacuum, phase (..., y, x) up to ``strength``, without symmetry."""
    atoms = (np.random.default_rng(seed).random(shape) < 0.012).astype(np.float64)
    phase = gaussian_filter(atoms, (0,) * (len(shape) - 2) + (blur_px, blur_px), mode="wrap")
    return phase * (strength / phase.max())


def raster_px(scan: tuple[int, int], step_px: float) -> NDArray[np.float64]:
    """Positions (N, 2) of a raster from (0, 0)."""
    return np.stack(np.meshgrid(*(np.arange(n) * step_px for n in scan), indexing="ij"), -1).reshape(-1, 2)


def make(
    scan: tuple[int, int] = (8, 8),
    step_px: float = 3.0,
    size: int = 32,
    slices: int = 1,
    modes: int = 1,
    states: int = 1,
    strength: float = 0.5,
    defocus_A: float = 100.0,
    electrons: float = 1e5,
    thickness_A: float | tuple[float, ...] = 20.0,
    tilt_mrad: tuple[float, float] = (0.0, 0.0),
    pixel_area: bool = True,
    mask: Tensor | None = None,
    background: float = 0.0,
    source_A: float = 0.0,
    opr_modes: int = 0,
    blur_px: float = 0.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Ptychography:
    """A model with a random phase object; take ``empty`` of it as a start."""
    positions = torch.from_numpy(raster_px(scan, step_px) + size // 2 + MARGIN)
    height, width = (math.ceil(extent) + size - size // 2 + MARGIN for extent in positions.amax(0).tolist())
    phase = torch.from_numpy(random_phase((states, slices, height, width), strength / slices, seed=seed)).to(dtype)
    wave = probe_wave(size, PIXEL_A, WAVELENGTH_A, SEMIANGLE_MRAD, parse_aberrations({"defocus_A": defocus_A}))
    wave = several(math.sqrt(electrons) * wave, modes).to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    thickness = torch.tensor(thickness_A if isinstance(thickness_A, tuple) else (thickness_A,) * slices, dtype=dtype)
    mask = torch.ones(size, size) if mask is None else mask
    return Ptychography(
        Object(torch.polar(torch.ones_like(phase), phase)),
        Probe(wave, PIXEL_A, WAVELENGTH_A, REFINABLE, source_A=source_A, opr_modes=opr_modes),
        Propagator(size, PIXEL_A, WAVELENGTH_A, thickness, torch.tensor([tilt_mrad], dtype=dtype) * 1e-3),
        Positions(positions.to(dtype)),
        Detector(size, mask.to(dtype), torch.full((1, 1), background, dtype=dtype), blur_px, pixel_area=pixel_area),
        PIXEL_A,
    )


def several(wave: Tensor, modes: int, share: float = 0.1) -> Tensor:
    """Orthogonal modes (modes, y, x): the wave (y, x) times 1, x, y, x^2, ..., each but the first with ``share`` of the power."""
    axis = torch.arange(len(wave), dtype=torch.float64) - len(wave) // 2
    products = [wave * axis[:, None] ** a * axis**b for order in range(modes) for a in range(order + 1) for b in (order - a,)][:modes]
    unit, _ = torch.linalg.qr(torch.stack(products).flatten(1).mT)
    power = torch.tensor([1 - share * (modes - 1)] + [share] * (modes - 1), dtype=torch.float64)
    shares = (power.sqrt() * torch.linalg.vector_norm(wave))[:, None, None]
    return unit.mT.reshape(modes, *wave.shape) * shares


def empty(model: Ptychography) -> Ptychography:
    """A copy whose object is vacuum."""
    start = copy.deepcopy(model)
    start.object.transmission.data.fill_(1)
    return start


class Counts:
    """What the solvers ask of Patterns, from a tensor (N, ky, kx) in corner order; each process has its ``shard``, if there are several."""

    resident = False

    def __init__(self, counts: Tensor, shard: Shard | None = None) -> None:
        self.shard = shard or Shard()
        self.counts, self.shape = counts, tuple(counts.shape[1:])
        self.missing = bool(torch.isnan(counts).any())
        mean = float(torch.nan_to_num(counts).sum((1, 2)).mean())
        self.mean_electrons, self.electrons_per_pixel = mean, mean / (self.shape[0] * self.shape[1])

    def __len__(self) -> int:
        return len(self.counts)

    def batches(self, plan: list[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        for part in plan:
            yield torch.from_numpy(part), self.counts[part]

    def shares(self, plan: list[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        for index, counts in self.batches(plan):
            rows = self.shard.rows(index)
            if rows is not None:
                whole, counts = counts, torch.full_like(counts, torch.nan)
                counts[rows] = whole[rows]
            yield index, counts

    def least(self, loss: Loss, mask: Tensor) -> Tensor:
        return (loss.least(torch.nan_to_num(self.counts)) * mask * torch.isfinite(self.counts)).sum((1, 2))


def counts_of(model: Ptychography) -> Tensor:
    """Expected electrons (N, ky, kx) at all positions."""
    with torch.no_grad():
        return model(torch.arange(len(model.positions.value_px)))


def solve(solver: Any, model: Ptychography, counts: Tensor, workers: int = 1) -> list[float]:
    """Run to the end; the loss after each epoch."""
    return [epoch.loss for epoch in solver.run(model, Counts(counts), workers)]


def scanned(model: Ptychography) -> tuple[slice, slice]:
    """Rows and columns of the canvas between the outermost positions."""
    low, high = model.positions.value_px.detach().amin(0), model.positions.value_px.detach().amax(0)
    return slice(int(low[0]), int(high[0]) + 1), slice(int(low[1]), int(high[1]) + 1)


def summed_phase(model: Ptychography, field: Ptychography | None = None) -> NDArray[np.float64]:
    """Phase (y, x) of the field that was scanned (by another model), summed over slices, mean of the states, without the plane that fits best."""
    rows, columns = scanned(field or model)
    return flat(model.object.transmission.detach().angle().sum(1).mean(0)[rows, columns].double().numpy())


def flat(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the plane that fits best."""
    y, x = np.indices(image.shape)
    basis = np.stack([np.ones(image.size), y.ravel(), x.ravel()], 1)
    return image - (basis @ np.linalg.lstsq(basis, image.ravel(), rcond=None)[0]).reshape(image.shape)


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
