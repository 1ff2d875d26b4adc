"""What a run knows of source and detector at its end, as numbers that belong to its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ptycho.model import Ptychography


@dataclass(frozen=True, eq=False)
class Instrument:
    """Given in the recipe or learned.

    ``source_A`` standard deviation of the source on the specimen and ``detector_blur_px`` that of the detector's point spread in its pixels,
    0 for none; ``background_e`` electrons per pixel (1, 1) or (ky, kx) with zero frequency in the corner; ``descan_px`` (N, 2) = (y, x) shift
    of each pattern in detector pixels, (0, 2) where none was modelled. At position j the probe's first mode is that of the result plus
    the sum over k of ``opr_coefficients`` [j, k] (N, k), in √electrons, times ``opr_modes`` [k], complex64 (k, y, x) of unit norm; k = 0 for
    a probe that stays the same. A beam current that drifts shows as a mode like the probe itself.
    """

    source_A: float
    detector_blur_px: float
    background_e: NDArray[np.float64] = field(repr=False)
    descan_px: NDArray[np.float64] = field(repr=False)
    opr_modes: NDArray[np.complex64] = field(repr=False)
    opr_coefficients: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, model: Ptychography) -> Instrument:
        """The present state of ``model``."""
        probe, detector = model.probe, model.detector
        if probe.varies:
            modes = np.fft.ifft2(_numpy(probe.transformed(probe.variations)), norm="ortho").astype(np.complex64)
        else:
            modes = np.zeros((0, *probe.wave.shape[-2:]), np.complex64)
        return cls(
            source_A=probe.source_A,
            detector_blur_px=detector.blur_px,
            background_e=_numpy(detector.background).astype(np.float64),
            descan_px=_numpy(detector.descan_px).astype(np.float64),
            opr_modes=modes,
            opr_coefficients=_numpy(probe.coefficients).astype(np.float64)[:, : len(modes)],
        )

    @property
    def summary(self) -> str:
        """What there is beside a point source and an ideal detector, in one line; empty for nothing."""
        parts = []
        if self.source_A > 0:
            parts.append(f"source {self.source_A:.3f} Å")
        if self.detector_blur_px > 0:
            parts.append(f"detector blur {self.detector_blur_px:.3f} px")
        if self.background_e.any():
            parts.append(f"background {self.background_e.mean():.4g} electrons per pixel")
        if len(self.descan_px):
            (y0, x0), (y1, x1) = self.descan_px.min(0), self.descan_px.max(0)
            parts.append(f"descan from {y0:.2f} to {y1:.2f} px in y, {x0:.2f} to {x1:.2f} px in x")
        if len(self.opr_modes):
            strength = np.sqrt(np.mean(self.opr_coefficients**2, 0))
            parts.append(f"probe varies by {', '.join(f'{s:.3g}' for s in strength)} √electrons rms")
        return "; ".join(parts)


def _numpy(tensor: Any) -> NDArray[Any]:
    return np.array(tensor.detach().cpu().numpy())
