"""The phase image of a direct method, and how it becomes the object that an iterative one begins with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DirectPhase:
    """A phase image on the points of the scan.

    ``phase`` float32 (slow, fast) in rad, positive where atoms are, of mean zero: a direct method does not see the mean. Point [i, j]
    lies at ``origin_A`` + i ``axes_A[0]`` + j ``axes_A[1]``, each (y, x) in Å in the frame of ``Geometry.positions_A``, which is the
    detector's. ``cutoff_invA`` is the highest frequency that the method and the scan transfer.
    """

    phase: NDArray[np.float32]
    axes_A: NDArray[np.float64]
    origin_A: NDArray[np.float64]
    cutoff_invA: float

    @property
    def pixel_A(self) -> tuple[float, float]:
        """Distance between neighbouring points (slow, fast) in Å."""
        return float(np.hypot(*self.axes_A[0])), float(np.hypot(*self.axes_A[1]))

    def upright(self, pixel_A: float | None = None) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """(image (y, x) on square pixels parallel to the detector, 0 outside; where its pixel [0, 0] is, (y, x) in Å).

        Pixels are as large as the smaller step by default. The scan itself may be turned, sheared or of unequal steps. Cubic interpolation.
        """
        from scipy.ndimage import map_coordinates  # late: it takes longer to import than to use

        pixel = min(self.pixel_A) if pixel_A is None else pixel_A
        rows, columns = self.phase.shape
        corners = self.origin_A + np.array([[i, j] for i in (0, rows - 1) for j in (0, columns - 1)]) @ self.axes_A
        low, high = corners.min(0), corners.max(0)
        y, x = (low[i] + np.arange(int((high[i] - low[i]) / pixel + 1e-6) + 1) * pixel for i in (0, 1))
        places = np.stack(np.meshgrid(y, x, indexing="ij"), -1) - self.origin_A
        index = np.moveaxis(places @ np.linalg.inv(self.axes_A), -1, 0)
        return map_coordinates(self.phase, index, order=3, mode="constant", prefilter=True), low

    def object(self, thicknesses_A: tuple[float, ...]) -> tuple[NDArray[np.complex64], float, tuple[float, float]]:
        """The image as a pure phase object, complex (1, slices, y, x), shared out over the slices by thickness; its pixel in Å and where [0, 0] is.

        What ``start.Known`` takes: an iterative reconstruction can begin with it.
        """
        pixel = min(self.pixel_A) / 2  # the model's own grid is found by linear interpolation, which needs finer points
        phase, origin = self.upright(pixel)
        share = np.array(thicknesses_A) / sum(thicknesses_A)
        return np.exp(1j * share[:, None, None] * phase).astype(np.complex64)[None], pixel, (float(origin[0]), float(origin[1]))
