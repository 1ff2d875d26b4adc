"""The affine map between two sets of scan positions, in the terms in which a microscope errs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Affine:
    """found - mean = matrix (nominal - mean) + residual, least squares, (y, x).

    ``matrix`` (2, 2) is turn [[``scale_y``, 0], [scale_y tan ``shear_deg``, ``scale_x``]]: the steps, the slow axis leaning along the fast one
    (a drift does that), then the turn by ``rotation_deg``, positive as in :func:`ptycho.geometry.raster_positions_A`. ``shift`` (2,) is
    the mean displacement and ``residual`` (N, 2) what is left of each position, in the unit of the positions.
    """

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]
    residual: NDArray[np.float64] = field(repr=False)

    @property
    def rotation_deg(self) -> float:
        """Turn of the fast axis, positive from x towards y."""
        return float(np.degrees(np.arctan2(self.matrix[0, 1], self.matrix[1, 1])))

    @property
    def scale_x(self) -> float:
        """Found over nominal step along the fast axis."""
        return float(np.hypot(self.matrix[0, 1], self.matrix[1, 1]))

    @property
    def scale_y(self) -> float:
        """Found over nominal step across the fast axis."""
        return float(np.linalg.det(self.matrix) / self.scale_x)

    @property
    def shear_deg(self) -> float:
        """By how much the slow axis leans towards the fast one, beyond the right angle."""
        along = (self.matrix[:, 0] @ self.matrix[:, 1]) / self.scale_x
        return float(np.degrees(np.arctan2(along, self.scale_y)))

    @property
    def residual_rms(self) -> float:
        """Root mean square length of the residuals."""
        return float(np.sqrt((self.residual**2).sum(1).mean()))

    def __str__(self) -> str:
        return (
            f"step x {self.scale_y:.4f} (slow) and {self.scale_x:.4f} (fast), rotation {self.rotation_deg:+.2f}°, shear {self.shear_deg:+.2f}°, "
            f"residual {self.residual_rms:.3f} rms"
        )


def affine_between(nominal: NDArray[np.float64], found: NDArray[np.float64]) -> Affine:
    """The map from positions (N, 2) = (y, x) to others; a scan without extent along an axis keeps it as it is."""
    start = np.asarray(nominal, float) - nominal.mean(0)
    end = np.asarray(found, float) - found.mean(0)
    # Of what the positions do not show, the identity is kept: least squares of the change.
    change = np.linalg.lstsq(start, end - start, rcond=1e-9)[0].T
    return Affine(np.eye(2) + change, found.mean(0) - nominal.mean(0), end - start @ (np.eye(2) + change).T)
