"""How the scan lies on the detector: a turn and a handedness, and the flips in which they can be written.

The orientation is an orthogonal 2 x 2 matrix A, (y, x): the probe stands at A (slow, fast) in the detector's frame. A transposition and two
flips of the patterns, eight in all, times a rotation of the scan are a redundant way to write it: each A can be written in four ways.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry import raster_positions_A

Matrix = NDArray[np.float64]
#: y -> -y.
MIRROR = np.diag([-1.0, 1.0])


@dataclass(frozen=True)
class Pose:
    """``transpose``, then ``flip_rows`` and ``flip_columns`` of the stored frames, and the scan's ``rotation_deg``, as in a recipe."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    rotation_deg: float = 0.0

    @property
    def flips(self) -> Matrix:
        """Maps (ky, kx) of the stored frame to that of the turned one."""
        swap = np.array([[0.0, 1.0], [1.0, 0.0]]) if self.transpose else np.eye(2)
        return np.diag([-1.0 if self.flip_rows else 1.0, -1.0 if self.flip_columns else 1.0]) @ swap

    @property
    def matrix(self) -> Matrix:
        """Maps (slow, fast) of the scan to (y, x) in the stored frame: the same for all ways to write one orientation."""
        return self.flips.T @ turn(self.rotation_deg)

    def difference_deg(self, other: Pose) -> float:
        """Angle in degrees between two orientations, inf when their handedness differs."""
        return angle_between_deg(self.matrix, other.matrix)

    def __str__(self) -> str:
        names = [name for name in ("transpose", "flip_rows", "flip_columns") if getattr(self, name)]
        return f"{' + '.join(names) or 'no flips'}, rotation {self.rotation_deg:.2f}°"


def turn(rotation_deg: float) -> Matrix:
    """Matrix of a rotation as :func:`ptycho.geometry.raster_positions_A` has it: y' = y cos + x sin, x' = x cos - y sin."""
    corners = raster_positions_A((2, 2), (1.0, 1.0), rotation_deg)
    return np.stack([corners[2] - corners[0], corners[1] - corners[0]], axis=1)


def angle_between_deg(a: Matrix, b: Matrix) -> float:
    """Angle in degrees from 0 to 180 between two orthogonal matrices, inf when one mirrors and the other does not."""
    change = b @ a.T
    return float(abs(_angle_deg(change))) if np.linalg.det(change) > 0 else float("inf")


def written(matrix: Matrix, like: Pose) -> Pose:
    """The way to write an orientation (a matrix as ``Pose.matrix``) whose rotation is nearest to that of ``like``.

    Of ways that are equally near, within a degree, the one with the fewest changes of the flips.
    """
    ways = []
    for transpose, rows, columns in itertools.product((False, True), repeat=3):
        turned = Pose(transpose, rows, columns).flips @ matrix
        if np.linalg.det(turned) > 0:
            angle = float(_angle_deg(turned))
            ways.append(Pose(transpose, rows, columns, angle))

    def cost(way: Pose) -> tuple[float, int]:
        away = abs((way.rotation_deg - like.rotation_deg + 180) % 360 - 180)
        changes = sum(getattr(way, name) != getattr(like, name) for name in ("transpose", "flip_rows", "flip_columns"))
        return round(away), changes

    return min(ways, key=cost)


def _angle_deg(rotation: Matrix) -> float:
    return float(np.degrees(np.arctan2(rotation[0, 1], rotation[1, 1])))
