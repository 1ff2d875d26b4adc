"""Model against data, ring by ring of the detector: at which scattering angles a fit is too loose or too close."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.deviance import Deviance, noise_scale
from ptycho.examples import Examples
from ptycho.geometry import Geometry
from ptycho.memory import with_less
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.quality import Residual

#: So many patterns, spread over the scan, are compared: 256 x (pixels of a ring) counts leave nothing to chance.
_PATTERNS = 256
#: Fields that are computed at a time.
_FIELDS = 1 << 22
#: Electrons that are added to model and data, so that the deviance of a dark pixel is finite.
_FLOOR_E = 1e-6


def residual_by_angle(model: Ptychography, patterns: Patterns, geometry: Geometry) -> Residual:
    """The residual of :func:`compare` alone."""
    return compare(model, patterns, geometry)[0]


@torch.no_grad()
def compare(model: Ptychography, patterns: Patterns, geometry: Geometry) -> tuple[Residual, Examples]:
    """Mean electrons of model and data, and how far they are apart, for each ring one detector pixel wide; and patterns to look at.

    ``geometry`` is that of the patterns. Pixels that are masked, were not measured or lie in a ring without any are left out.
    """
    count = len(patterns)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _PATTERNS)).astype(np.int64))
    scale = noise_scale(patterns, model.positions.value_px.detach().cpu().numpy(), np.arange(count))
    deviance = Deviance(_FLOOR_E, scale, model.object.transmission.device)
    fields = len(chosen) * model.probe.wave.numel() * model.object.transmission.shape[0]
    sums = torch.zeros(6, *patterns.shape, dtype=torch.float64, device=model.object.transmission.device)
    each: list[Tensor] = []
    most = count
    for index, counts in patterns.batches(np.array_split(chosen, -(-fields // _FIELDS))):

        def summed(chunk: int, index: Tensor = index, counts: Tensor = counts) -> list[tuple[Tensor, Tensor]]:
            parts = zip(index.split(chunk), counts.split(chunk), strict=True)
            return [_sums(model(part), some, model.detector.mask, deviance) for part, some in parts]

        found, most = with_less(summed, most, len(index), index.device)
        for of_pixels, of_patterns in found:
            sums += of_pixels
            each.append(of_patterns.cpu())
    expected_e, squared = torch.cat(each, 1).numpy()
    pixel_mrad = geometry.pixel_invA * geometry.wavelength_A * 1e3
    examples = _examples(model, patterns, sums, (chosen, squared / np.maximum(scale * expected_e, _FLOOR_E)), pixel_mrad)
    return _residual(sums.cpu().numpy(), pixel_mrad, scale), examples


def _residual(sums: NDArray[np.float64], pixel_mrad: float, scale: float) -> Residual:
    """By ring, from the sums (6, ky, kx) over patterns."""
    ring = np.rint(np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * n for n in sums.shape[1:]), indexing="ij"))).astype(int)
    rings = np.stack([np.bincount(ring.ravel(), image.ravel()) for image in sums])
    seen = rings[0] > 0
    measured, data, modelled, squares, found, expected = rings[:, seen]
    angle_mrad = np.asarray(np.flatnonzero(seen) * pixel_mrad, np.float64)
    return Residual(
        angle_mrad=angle_mrad,
        measured_e=data / measured,
        modelled_e=modelled / measured,
        deviance=found / np.maximum(expected, _FLOOR_E),
        chi_squared=squares / np.maximum(scale * modelled, _FLOOR_E),
        noise_scale=scale,
    )


def _examples(
    model: Ptychography, patterns: Patterns, sums: Tensor, judged: tuple[NDArray[np.int64], NDArray[np.float64]], pixel_mrad: float
) -> Examples:
    """The mean of the patterns that were compared, the one in the middle of those ``judged`` (numbers, chi squared) and the worst."""
    numbers, chi_squared = judged
    order = np.argsort(chi_squared, kind="stable")
    shown = np.array([order[len(order) // 2], order[-1]])
    number, measured, modelled = sums[:3].cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.stack([measured, modelled]) / number  # NaN where nothing was measured
    pairs = np.empty((2, 3, *patterns.shape), np.float32)
    pairs[:, 0] = means
    for index, counts in patterns.batches([numbers[shown]]):
        use = torch.isfinite(counts) * (model.detector.mask > 0)
        for pair, images in zip(pairs, (counts, model(index)), strict=True):
            pair[1:] = torch.where(use, images, torch.nan).float().cpu().numpy()
    return Examples.of(pairs, numbers[shown], chi_squared[shown], pixel_mrad)


def _sums(modelled: Tensor, counts: Tensor, mask: Tensor, deviance: Deviance) -> tuple[Tensor, Tensor]:
    """Over a batch (B, ky, kx): number measured, data, model, (data - model)^2, deviance and its expectation, float64 (6, ky, kx).

    And of each pattern the model and (data - model)^2, float64 (2, B).
    """
    use = torch.isfinite(counts) * (mask > 0)
    data = torch.where(use, counts, 0).double()
    model = torch.where(use, modelled, 0).double()
    electrons = data.clamp_min(0)  # an integrating detector's small negative values
    found, expected = use * deviance.measured(model, electrons), use * deviance.expected(model.float())
    squares = (data - model) ** 2
    of_pixels = torch.stack([part.sum(0, dtype=torch.float64) for part in (use, data, model, squares, found, expected)])
    return of_pixels, torch.stack([model.sum((1, 2)), squares.sum((1, 2))])
