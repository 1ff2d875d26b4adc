"""Model against data, ring by ring of the detector: at which scattering angles a fit is too loose or too close."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptycho.geometry import Geometry
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.quality import Residual

#: So many patterns, spread over the scan, are compared: 256 x (pixels of a ring) counts leave nothing to chance.
_PATTERNS = 256
#: Fields that are computed at a time.
_FIELDS = 1 << 22
#: A modelled intensity counts as this many electrons at least where its logarithm is taken.
_LEAST_E = 1e-6


@torch.no_grad()
def residual_by_angle(model: Ptychography, patterns: Patterns, geometry: Geometry) -> Residual:
    """Mean electrons of model and data, and how far they are apart, for each ring one detector pixel wide.

    The deviance of counted electrons is 2 (m - d + d ln(d / m)), with d = 0 for the small negative values of an integrating detector.
    Pixels that are masked, were not measured or lie in a ring without any are left out.
    """
    count = len(patterns)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _PATTERNS)).astype(np.int64))
    fields = model.probe.wave.numel() * model.object.transmission.shape[0]
    sums = torch.zeros(5, *patterns.shape, dtype=torch.float64, device=model.object.transmission.device)
    for index, counts in patterns.batches(np.array_split(chosen, -(-len(chosen) * fields // _FIELDS))):
        sums += _sums(model(index), counts, model.detector.mask)
    ring = np.rint(np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * n for n in patterns.shape), indexing="ij"))).astype(int)
    measured, data, modelled, deviance, squares = (np.bincount(ring.ravel(), image.ravel()) for image in sums.cpu().numpy())
    seen = measured > 0
    n = measured[seen]
    angle_mrad = np.asarray(np.flatnonzero(seen) * (geometry.pixel_invA * geometry.wavelength_A * 1e3), np.float64)
    return Residual(
        angle_mrad=angle_mrad,
        measured_e=data[seen] / n,
        modelled_e=modelled[seen] / n,
        deviance=deviance[seen] / n,
        chi_squared=squares[seen] / np.maximum(modelled[seen], _LEAST_E),
    )


def _sums(modelled: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
    """Over a batch (B, ky, kx): number measured, data, model, deviance and (data - model)^2 of each pixel, float64 (5, ky, kx)."""
    use = torch.isfinite(counts) * (mask > 0)
    data = torch.where(use, counts, 0).double()
    model = torch.where(use, modelled, 0).double()
    least = torch.where(use, modelled.clamp_min(_LEAST_E), 1).double()
    electrons = data.clamp_min(0)
    deviance = 2 * use * (least - electrons + torch.special.xlogy(electrons, electrons / least))
    return torch.stack([use.double().sum(0), data.sum(0), model.sum(0), deviance.sum(0), ((data - model) ** 2).sum(0)])
