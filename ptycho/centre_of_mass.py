"""Centre of mass of the patterns and the phase that it is the gradient of: CoM, iDPC, dCoM, pixelated and with a segmented detector.

<k>(R) = sum k I / sum I = (1 / 2 pi) (|probe|^2 correlated with grad phi)(R) for a phase object (Lazic, Bosch & Lazar, Ultramicroscopy 160
(2016) 265, eq. 9), in the axes of the nominal scan: rotation and affine of the scan are undone, transposition and flips of the patterns are
what the data set says. It points to where the potential is higher.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho.data import Dataset4D
from ptycho.errors import DataError, RecipeError
from ptycho.geometry import interaction_parameter
from ptycho.integrate import Field, integrate, minus_divergence
from ptycho.optics import aperture
from ptycho.sums import weighted_sums
from ptycho.virtual import Unit, disk_radius_px, segments

#: What of the centre of mass is no specimen: nothing, one shift of the beam, or a shift that grows along the scan.
Descan: TypeAlias = Literal["none", "constant", "plane"]

#: Rounds without outliers, and what is one, in sigma: atoms on one side of the field must not be.
_ROUNDS, _OUTLIER = 10, 6.0


def com(data: Dataset4D, descan: Descan = "none") -> Field:
    """Centre of mass (2, slow, fast) = (slow, fast component) in 1/Å from zero frequency; NaN without a pattern or an electron.

    Raises DataError when pixel or step are not known or the positions are a list, RecipeError for another ``descan``.
    """
    data.check_raster()
    return in_scan_axes(data, without_descan(on_detector(data, weighted_sums(data).centre_px), descan))


def idpc(data: Dataset4D, descan: Descan = "plane", highpass_invA: float | Literal["noise"] = 0.0, unit: Literal["rad", "V·Å"] = "rad") -> Field:
    """Phase (slow, fast) in rad, of mean zero, or projected potential in V·Å: the integrated centre of mass; atoms are positive.

    In focus it is the projected phase with the transfer F[|probe|^2](q) = (2 / pi) (arccos x - x sqrt(1 - x^2)), x = lambda q / 2 alpha.
    ``highpass_invA``: see :func:`ptycho.integrate.integrate`. Raises as ``com``, and DataError when V·Å are wanted and the voltage is not known.
    """
    factor = 1.0 if unit == "rad" else potential_VA(data)
    return factor * phase_of(com(data, descan), data.scan_step_A, descan, highpass_invA)


def phase_of(field: Field, step_A: tuple[float, float], descan: Descan, highpass_invA: float | Literal["noise"] = 0.0) -> Field:
    """The phase (slow, fast) in rad of which a field (2, slow, fast) without its ``descan`` is the gradient; level on the whole, unless "none".

    The mean of a gradient depends on the borders of the phase alone, so that to take it off tilts a crystal that ends in mid cell. How far the
    beam itself moved is not known anyway: what is taken off is the plane through all points of the phase.
    """
    phase = integrate(field, step_A, highpass_invA)
    return phase if descan == "none" else phase - _fit(phase, 3)


def dcom(data: Dataset4D, descan: Descan = "none") -> Field:
    """-div CoM (slow, fast) in 1/Å^2, proportional to the projected charge density: nuclei are positive. Raises as ``com``."""
    return minus_divergence(com(data, descan), data.scan_step_A)


def segmented_com(data: Dataset4D, parts: NDArray[np.bool_], descan: Descan = "none") -> Field:
    """The centre of mass (2, slow, fast) in 1/Å as a detector of the segments ``parts`` (n, ky, kx) sees it; see ``segment_weights``.

    :func:`ptycho.integrate.integrate` makes iDPC of it. Raises as ``com``.
    """
    data.check_raster()
    weights = segment_weights(data, parts)
    sums = weighted_sums(data, weights)
    return in_scan_axes(data, without_descan(on_detector(data, sums.masks / np.where(sums.total > 0, sums.total, np.nan)), descan))


def segment_weights(data: Dataset4D, parts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights (2, ky, kx) whose sums over the total are the disk's shift (y, x) in pixels as segments ``parts`` (n, ky, kx) see it.

    Each segment counts in the direction of its middle; the scale is that of a uniform disk that moves as a whole, the usual calibration of
    segmented detectors. Raises RecipeError when the disk's edge does not cross the segments, DataError when the disk is not known.
    """
    ky, kx = (torch.arange(n, dtype=torch.float64) - n // 2 for n in data.pattern_shape)
    middles = np.array([[(part.sum(1) * ky.numpy()).sum(), (part.sum(0) * kx.numpy()).sum()] for part in parts])
    middles /= np.maximum(np.hypot(*middles.T), 1e-12)[:, None]
    weights = np.tensordot(middles.T, parts.astype(float), 1)
    radius, by = disk_radius_px(data), 0.25
    response = np.empty((2, 2))
    for axis, shift in enumerate(((by, 0.0), (0.0, by))):
        disks = [aperture(ky[:, None] - sign * shift[0], kx - sign * shift[1], radius, 1.0).square().numpy() for sign in (1, -1)]
        response[:, axis] = (weights * (disks[0] - disks[1])).sum((1, 2)) / disks[0].sum() / (2 * by)
    if abs(np.linalg.det(response)) < 1e-9:
        raise RecipeError(f"the segments do not see the disk of {radius:.3g} px move; they must cover its edge on all sides")
    return np.tensordot(np.linalg.inv(response), weights, 1)


def quadrants(data: Dataset4D, inner: float = 0.0, outer: float = 1.25, unit: Unit = "alpha") -> NDArray[np.bool_]:
    """The four segments (4, ky, kx) that look to +kx, +ky, -kx and -ky, by default somewhat wider than the disk."""
    return segments(data, inner, outer, 4, unit)


def on_detector(data: Dataset4D, centre_px: NDArray[np.float64]) -> Field:
    """Centres (2, N) in pixels as images (2, slow, fast) in 1/Å, in the detector's axes."""
    return data.on_raster(centre_px) * data.pixel_invA.value


def in_scan_axes(data: Dataset4D, field: Field) -> Field:
    """A gradient (2, slow, fast) in the detector's axes as one along the axes of the nominal scan."""
    return np.tensordot(data.scan_axes, field, 1)


def without_descan(field: Field, descan: Descan) -> Field:
    """The field (2, slow, fast) without the part that the beam's own movement explains: its mean, or a plane, without outliers."""
    if descan == "none":
        return field
    if descan not in ("constant", "plane"):
        raise RecipeError(f'descan = "{descan}": "none", "constant" or "plane" is needed')
    if not np.isfinite(field).any():
        raise DataError("the centre of mass is nowhere known: there is no electron in any pattern")
    return np.stack([part - _fit(part, 1 if descan == "constant" else 3) for part in field])


def _fit(part: Field, terms: int) -> Field:
    """The constant or plane (slow, fast) through most points: least squares, again and again without what is more than 6 sigma away."""
    y, x = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in part.shape)
    basis = np.stack(np.broadcast_arrays(1.0, y[:, None], x), -1).reshape(-1, 3)[:, :terms]
    values = part.ravel()
    keep = np.isfinite(values)
    plane = np.zeros_like(values)
    for _ in range(_ROUNDS):
        plane = basis @ np.linalg.lstsq(basis[keep], values[keep], rcond=None)[0]
        rest = np.abs(values - plane)
        kept = rest <= _OUTLIER * 1.4826 * np.nanmedian(rest) + 1e-15
        if kept.sum() < 3 or np.array_equal(kept, keep):
            break
        keep = kept
    return plane.reshape(part.shape)


def potential_VA(data: Dataset4D) -> float:
    """V·Å of projected potential that make a phase of 1 rad, 1 / sigma. Raises DataError when the voltage is not known."""
    if "voltage_kV" not in data.calibration:
        raise DataError(f"{data.name}: voltage_kV is not in the file; give it for a potential in V·Å")
    return 1 / interaction_parameter(data.calibration["voltage_kV"].value)
