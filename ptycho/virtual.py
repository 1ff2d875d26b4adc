"""Virtual detectors: images made of the electrons that fall on chosen pixels of the detector.

S(R) = sum over k of w(k) I(k; R). Detectors are arrays (ky, kx), bool or any weights, made here or by hand; radii are measured from zero
frequency (pixel ``(ky // 2, kx // 2)``) to the middle of each pixel, so that detectors that touch share no pixel and leave none out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.data import Dataset4D
from ptycho.errors import DataError, RecipeError
from ptycho.geometry import wavelength_A
from ptycho.sums import weighted_sums

#: "alpha": in units of the bright-field disk's radius.
Unit: TypeAlias = Literal["mrad", "1/Å", "px", "alpha"]


def virtual_image(data: Dataset4D, inner_mrad: float, outer_mrad: float) -> NDArray[np.float64]:
    """Electrons that are scattered by inner_mrad <= angle < outer_mrad, (slow, fast); NaN at scan points without a pattern.

    Raises RecipeError for radii without a pixel between them, DataError when the detector's pixel or the scan is not known.
    """
    return virtual_images(data, annulus(data, inner_mrad, outer_mrad)[None])[0]


def virtual_images(data: Dataset4D, masks: NDArray[np.bool_ | np.floating] | Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Electrons on each of ``masks`` (m, ky, kx), weighted where they are not bool, in one pass: (m, slow, fast). Raises as ``virtual_image``."""
    data.check_raster()
    return data.on_raster(weighted_sums(data, np.asarray(masks)).masks)


def annulus(data: Dataset4D, inner: float, outer: float, unit: Unit = "mrad") -> NDArray[np.bool_]:
    """Pixels with inner <= radius < outer, bool (ky, kx); a disk when inner is 0. Raises RecipeError when there are none."""
    ky, kx = _from_centre(data)
    # A radius that is meant to meet a pixel's middle must do so whatever the rounding of its unit.
    radius = np.hypot(ky, kx) + 1e-9
    scale = pixels_per(data, unit)
    ring: NDArray[np.bool_] = (radius >= inner * scale) & (radius < outer * scale)
    if not ring.any():
        edge = min(data.pattern_shape) / 2 / scale
        raise RecipeError(f"{inner:g} to {outer:g} {unit}: no detector pixel is between these radii; the detector reaches to {edge:.4g} {unit}")
    return ring


def segments(data: Dataset4D, inner: float, outer: float, number: int = 4, unit: Unit = "mrad", start_deg: float = -45.0) -> NDArray[np.bool_]:
    """An annulus cut into equal segments, bool (number, ky, kx).

    The first one begins at ``start_deg`` from the kx axis, the others follow towards the ky axis: by default they look to +kx, +ky, -kx, -ky.
    Raises RecipeError when one of them has no pixel.
    """
    ky, kx = _from_centre(data)
    turn = (np.rad2deg(np.arctan2(ky, kx)) - start_deg) % 360 / 360 + 1e-9
    which = (turn * number).astype(int) % number
    parts = annulus(data, inner, outer, unit) & (which == np.arange(number)[:, None, None])
    if not parts.any((1, 2)).all():
        raise RecipeError(f"{number} segments from {inner:g} to {outer:g} {unit}: some of them have no pixel; use fewer or wider ones")
    return parts


def pixels_per(data: Dataset4D, unit: Unit) -> float:
    """Detector pixels in one mrad, one 1/Å, one px or one radius of the bright-field disk ("alpha").

    Raises DataError when that is not known, RecipeError for another unit.
    """
    if unit == "px":
        return 1.0
    if unit == "alpha":
        return disk_radius_px(data)
    if unit == "1/Å":
        return 1 / data.pixel_invA.value
    if unit != "mrad":
        raise RecipeError(f'unit = "{unit}": "mrad", "1/Å", "px" or "alpha" is needed')
    if "voltage_kV" not in data.calibration:
        raise DataError(f"{data.name}: voltage_kV is not in the file; give it, or the radii in another unit than mrad")
    return 1e-3 / (wavelength_A(data.calibration["voltage_kV"].value) * data.pixel_invA.value)


def disk_radius_px(data: Dataset4D) -> float:
    """Radius of the bright-field disk in pixels: from the semi-angle when it is known, else as seen. Raises DataError without either."""
    if {"voltage_kV", "semiangle_mrad"} <= data.calibration.keys():
        aperture = data.calibration["semiangle_mrad"].value * 1e-3 / wavelength_A(data.calibration["voltage_kV"].value)
        return float(aperture / data.pixel_invA.value)
    return data.disk_radius_px


def _from_centre(data: Dataset4D) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ky (rows, 1) and kx (1, columns) in pixels from zero frequency."""
    ky, kx = (np.arange(n) - n // 2 for n in data.pattern_shape)
    return ky[:, None], kx[None, :]
