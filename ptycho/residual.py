"""Model against data, ring by ring of the detector: at which scattering angles a fit is too loose or too close."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptycho.deviance import Deviance, noise_scale
from ptycho.geometry import Geometry
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.quality import Residual

#: So many patterns, spread over the scan, are compared: 256 x (pixels of a ring) counts leave nothing to chance.
_PATTERNS = 256
#: Fields that are computed at a time.
_FIELDS = 1 << 22
#: Electrons that are added to model and data, so that the deviance of a dark pixel is finite.
_FLOOR_E = 1e-6


@torch.no_grad()
def residual_by_angle(model: Ptychography, patterns: Patterns, geometry: Geometry) -> Residual:
    """Mean electrons of model and data, and how far they are apart, for each ring one detector pixel wide.

    ``geometry`` is that of the patterns. Pixels that are masked, were not measured or lie in a ring without any are left out.
    """
    count = len(patterns)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _PATTERNS)).astype(np.int64))
    scale = noise_scale(patterns, model.positions.value_px.detach().cpu().numpy(), np.arange(count))
    deviance = Deviance(_FLOOR_E, scale, model.object.transmission.device)
    fields = len(chosen) * model.probe.wave.numel() * model.object.transmission.shape[0]
    sums = torch.zeros(6, *patterns.shape, dtype=torch.float64, device=model.object.transmission.device)
    for index, counts in patterns.batches(np.array_split(chosen, -(-fields // _FIELDS))):
        sums += _sums(model(index), counts, model.detector.mask, deviance)
    ring = np.rint(np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * n for n in patterns.shape), indexing="ij"))).astype(int)
    rings = np.stack([np.bincount(ring.ravel(), image.ravel()) for image in sums.cpu().numpy()])
    seen = rings[0] > 0
    measured, data, modelled, squares, found, expected = rings[:, seen]
    angle_mrad = np.asarray(np.flatnonzero(seen) * (geometry.pixel_invA * geometry.wavelength_A * 1e3), np.float64)
    return Residual(
        angle_mrad=angle_mrad,
        measured_e=data / measured,
        modelled_e=modelled / measured,
        deviance=found / np.maximum(expected, _FLOOR_E),
        chi_squared=squares / np.maximum(scale * modelled, _FLOOR_E),
        noise_scale=scale,
    )


def _sums(modelled: Tensor, counts: Tensor, mask: Tensor, deviance: Deviance) -> Tensor:
    """Over a batch (B, ky, kx): number measured, data, model, (data - model)^2, deviance and its expectation, float64 (6, ky, kx)."""
    use = torch.isfinite(counts) * (mask > 0)
    data = torch.where(use, counts, 0).double()
    model = torch.where(use, modelled, 0).double()
    electrons = data.clamp_min(0)  # an integrating detector's small negative values
    found, expected = use * deviance.measured(model, electrons), use * deviance.expected(model.float())
    return torch.stack([part.sum(0, dtype=torch.float64) for part in (use, data, model, (data - model) ** 2, found, expected)])
