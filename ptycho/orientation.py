"""How the detector lies to the scan: transposition, flips and rotation from the centre of mass, which has no curl in the right orientation.

The field k' = T k, turned by theta into scan axes, has curl C cos - D sin with C = d_x k_y - d_y k_x and D = d_x k_x + d_y k_y. The sum of its
square is least at theta = atan2(2 sum C D, sum D^2 - sum C^2) / 2 (Savitzky, Zeltmann et al., Microsc. Microanal. 27 (2021) 712, in closed form).
Curl cannot tell theta from theta + 180 degrees; that atoms are peaks of the phase, not holes, can. It fails where specimens are so thick
that the curl is real.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.centre_of_mass import on_detector, without_descan
from ptycho.data import Dataset4D
from ptycho.errors import DataError
from ptycho.integrate import Field, filled, integrate
from ptycho.sums import weighted_sums

#: Width of the Gaussian whose derivative is taken, in scan points: the least that is isotropic; borders of three of it are left out.
_SIGMA, _BORDER = 1.0, 3
#: Tiles along each axis, of which one after the other is left out for the error.
_TILES = 4
#: From where on an answer is plain enough to be told unasked: agreement, its margin over the mirrored one, error, difference in degrees.
_PLAIN, _MARGIN, _MOST_ERROR_DEG, _NOTABLE_DEG = 0.5, 0.2, 5.0, 2.0
#: Derivatives of one scan, (tiles, 3): sums of C^2, D^2 and C D.
_Moments = NDArray[np.float64]


@dataclass(frozen=True)
class Orientation:
    """One of the eight orientations of the patterns, as the recipe's [data] and [scan] have it, with the rotation that goes with it.

    ``agreement``: 1 where the curl vanishes, about 0 where the field is no gradient; ``error_deg`` standard error of the rotation (jackknife
    over tiles of the scan); ``skewness`` of the iDPC image, which 180 degrees more would turn to its negative.
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool
    rotation_deg: float
    error_deg: float
    agreement: float
    skewness: float


def orientations(data: Dataset4D, centre_px: NDArray[np.float64] | None = None) -> tuple[Orientation, ...]:
    """All eight, the best first; of those with equal curl (four describe the same) the one nearest to the data's own settings first.

    ``centre_px`` (2, N) is the centre of mass where it is known already. The margin against a mirrored detector is how far the ``agreement``
    of the first is above that of the fifth. Raises DataError for scans of less than 10 x 10 points, and as :func:`ptycho.centre_of_mass.com`.
    """
    step_A = data.scan_step_A
    if min(data.scan_shape) < 4 + 2 * _BORDER:
        raise DataError(f"{data.name}: the scan of {data.scan_shape[0]} x {data.scan_shape[1]} points is too small to find its rotation from")
    centre_px = weighted_sums(data).centre_px if centre_px is None else centre_px
    as_stored = _turned_back(data, filled(without_descan(on_detector(data, centre_px), "plane")))
    found = [
        _orientation(as_stored, step_A, transpose, flip_rows, flip_columns)
        for transpose in (False, True)
        for flip_rows in (False, True)
        for flip_columns in (False, True)
    ]
    return tuple(sorted(found, key=lambda one: (-round(one.agreement, 6), *_far(data, one))))


def _far(data: Dataset4D, one: Orientation) -> tuple[int, float]:
    """How far an orientation is from the data's: switches that differ, degrees."""
    now = data.preparation
    same = (one.transpose == now.transpose, one.flip_rows == now.flip_rows, one.flip_columns == now.flip_columns)
    given = data.rotation_deg
    return 3 - sum(same), abs((one.rotation_deg - given + 180) % 360 - 180)


def _turned_back(data: Dataset4D, field: Field) -> Field:
    """The field of the patterns as they are stored: flips undone, then the transposition."""
    signs = [-1 if flipped else 1 for flipped in (data.preparation.flip_rows, data.preparation.flip_columns)]
    field = field * np.reshape(signs, (2, 1, 1))
    return field[::-1] if data.preparation.transpose else field


def _orientation(stored: Field, step_A: tuple[float, float], transpose: bool, flip_rows: bool, flip_columns: bool) -> Orientation:
    field = stored[::-1] if transpose else stored
    field = field * np.reshape([-1 if flip_rows else 1, -1 if flip_columns else 1], (2, 1, 1))
    sums = _moments(field, step_A)
    total = sums.sum(0)
    angle = _angle(total)
    curl2, divergence2, product = total
    strength = np.hypot(2 * product, divergence2 - curl2)
    agreement = float(strength / (curl2 + divergence2)) if curl2 + divergence2 > 0 else 0.0
    cos, sin = np.cos(angle), np.sin(angle)
    phase = integrate(np.stack([cos * field[0] - sin * field[1], sin * field[0] + cos * field[1]]), step_A)
    skewness = float((phase**3).mean() / max(phase.var(), 1e-300) ** 1.5)
    degrees = float(np.rad2deg(angle)) + (180.0 if skewness < 0 else 0.0)
    return Orientation(transpose, flip_rows, flip_columns, (degrees + 180) % 360 - 180, _error_deg(sums, angle), agreement, abs(skewness))


def _moments(field: Field, step_A: tuple[float, float]) -> _Moments:
    """Sums of C^2, D^2 and C D in tiles of the scan, without its borders."""
    from scipy.ndimage import gaussian_filter  # late: it takes longer to import than to use

    # Gaussian derivatives: differences of neighbours are anisotropic at high frequencies, which turns the result.
    def slope(part: Field, axis: int) -> Field:
        order = (1, 0) if axis == 0 else (0, 1)
        return gaussian_filter(part, _SIGMA, order=order)[_BORDER:-_BORDER, _BORDER:-_BORDER] / step_A[axis]

    curl, divergence = slope(field[0], 1) - slope(field[1], 0), slope(field[1], 1) + slope(field[0], 0)
    products = np.stack([curl**2, divergence**2, curl * divergence])
    rows = np.array_split(products, _TILES, axis=1)
    return np.array([tile.sum((1, 2)) for row in rows for tile in np.array_split(row, _TILES, axis=2)])


def _angle(total: NDArray[np.float64]) -> float:
    curl2, divergence2, product = total
    return float(np.arctan2(2 * product, divergence2 - curl2) / 2)


def _error_deg(tiles: _Moments, angle: float) -> float:
    """Jackknife: the spread of the angles found without one tile."""
    left_out = np.array([_angle(tiles.sum(0) - tile) for tile in tiles])
    off = (left_out - angle + np.pi / 2) % np.pi - np.pi / 2  # the angle is known up to 180 degrees
    return float(np.rad2deg(np.sqrt((len(tiles) - 1) / len(tiles) * ((off - off.mean()) ** 2).sum())))


def disagreement(data: Dataset4D, centre_px: NDArray[np.float64] | None = None) -> str | None:
    """One sentence when the curl plainly asks for another orientation than the data set's; None when it agrees or cannot tell."""
    found = orientations(data, centre_px)
    best, mirrored, now = found[0], found[4], data.preparation
    if best.agreement < _PLAIN or best.agreement - mirrored.agreement < _MARGIN or best.error_deg > _MOST_ERROR_DEG:
        return None
    given = data.rotation_deg
    off = abs((best.rotation_deg - given + 180) % 360 - 180)
    same = (best.transpose, best.flip_rows, best.flip_columns) == (now.transpose, now.flip_rows, now.flip_columns)
    if same and off < max(_NOTABLE_DEG, 3 * best.error_deg):
        return None
    switches = [f"data.{name} = {str(getattr(best, name)).lower()}" for name in ("transpose", "flip_rows", "flip_columns")]
    wanted = ", ".join([switch for switch in switches if not same] + [f"scan.rotation_deg = {best.rotation_deg:.1f} ± {best.error_deg:.1f}"])
    return f"the centre of mass has least curl with {wanted} (agreement {best.agreement:.2f}, mirrored {mirrored.agreement:.2f}); given: {given:g}°"
