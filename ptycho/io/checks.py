"""Checks of what a person typed: each returns the value in its final type or raises RecipeError with the key, the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ptycho.data import Affine
from ptycho.errors import RecipeError
from ptycho.frames import UNITS

#: Name -> (section of the recipe, exclusive lower and inclusive upper limit) of every scalar that a user or a file can give.
LIMITS = {
    "voltage_kV": ("microscope", 0.9999, 3000.0),
    "semiangle_mrad": ("microscope", 0.0, 200.0),
    "defocus_A": ("microscope", -math.inf, math.inf),
    "rotation_deg": ("scan", -math.inf, math.inf),
    "pixel_invA": ("detector", 0.0, math.inf),
    "pixel_mrad": ("detector", 0.0, math.inf),
    "adu_per_electron": ("data", 0.0, math.inf),
}
#: No microscope has so small an aperture; the same number in rad is a usual one.
_LEAST_MRAD = 0.05
#: Steps in Å that are taken for a step, and the largest of any other number.
_STEPS_A, _MOST = (1e-4, 1e6), 1e30


def check_number(name: str, value: Any) -> float:
    """A finite number within ``LIMITS[name]``, in the unit of ``UNITS[name]``."""
    section, low, high = LIMITS[name]
    key = f"{section}.{name} = {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not math.isfinite(value):
        raise RecipeError(f"{key}: a number in {UNITS[name]} is needed")
    if name == "semiangle_mrad" and 0 < value < _LEAST_MRAD:
        raise RecipeError(f"{key} is in rad? write {value * 1e3:g}")
    if name == "adu_per_electron" and not 0 < np.float32(min(value, _MOST)) < _MOST:  # what divides the patterns
        raise RecipeError(f"{key}: must be more than 0 ADU, and a number that has a meaning")
    if low < value <= high:
        return float(value)
    if name == "voltage_kV" and low < value / 1e3 <= high:
        raise RecipeError(f"{key} is in V? write {value / 1e3:g}")
    limits = f"more than 0 and at most {high:g}" if high < math.inf else "more than 0"
    raise RecipeError(f"{key}: must be {'from 1 to 3000' if name == 'voltage_kV' else limits} {UNITS[name]}")


def check_step(step: float | Sequence[float]) -> tuple[float, float]:
    """Scan step (slow, fast) in Å from one number or two."""
    try:
        pair = np.asarray(step, float).ravel()
    except (TypeError, ValueError):
        pair = np.empty(0)
    if pair.size not in (1, 2) or not (np.isfinite(pair).all() and (pair > 0).all()):
        raise RecipeError(f"scan.step_A = {step!r}: one number or [slow, fast] in Å, more than 0, is needed")
    if not _STEPS_A[0] <= pair.min() <= pair.max() <= _STEPS_A[1]:
        raise RecipeError(f"scan.step_A = {step!r}: from {_STEPS_A[0]:g} to {_STEPS_A[1]:g} Å is a step; is it in another unit?")
    return float(pair[0]), float(pair[-1])


def check_affine(affine: Sequence[Sequence[float]]) -> Affine:
    """An invertible 2 x 2 matrix on (y, x)."""
    try:
        matrix = np.asarray(affine, float)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (2, 2) or not (np.abs(matrix) <= 1e6).all() or abs(np.linalg.det(matrix)) < 1e-6:
        raise RecipeError(f"scan.affine = {affine!r}: an invertible matrix [[yy, yx], [xy, xx]] is needed")
    (a, b), (c, d) = matrix.tolist()
    return (a, b), (c, d)


def check_whole(key: str, value: Any) -> int:
    """A whole number of at least 1; ``key`` is its name in the recipe."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise RecipeError(f"{key} = {value!r}: a whole number of at least 1 is needed")
    return int(value)


def check_shape(key: str, shape: Sequence[int]) -> tuple[int, int]:
    """A shape (slow, fast) of whole numbers."""
    values = [shape] if isinstance(shape, int | float | str) else list(shape)
    if len(values) != 2:
        raise RecipeError(f"{key} = {shape!r}: two whole numbers, [slow, fast], are needed")
    return check_whole(key, values[0]), check_whole(key, values[1])


def check_box(key: str, box: Sequence[int]) -> tuple[int, int, int, int]:
    """A region (y0, y1, x0, x1), the ends excluded."""
    values = [box] if isinstance(box, int | float | str) else list(box)
    if len(values) != 4 or any(isinstance(v, bool) or not isinstance(v, int | np.integer) for v in values):
        raise RecipeError(f"{key} = {box!r}: four whole numbers, [y0, y1, x0, x1], are needed")
    y0, y1, x0, x1 = (int(v) for v in values)
    if not (0 <= y0 < y1 and 0 <= x0 < x1):
        raise RecipeError(f"{key} = {box!r}: 0 <= y0 < y1 and 0 <= x0 < x1 are needed")
    return y0, y1, x0, x1


def check_centre(centre: str | Sequence[float]) -> tuple[float, float] | Literal["auto", "none"]:
    """A centre (y, x) in detector pixels, "auto" or "none"."""
    if centre == "auto" or centre == "none":
        return "auto" if centre == "auto" else "none"
    try:
        values = np.asarray(centre, float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (2,) or not np.isfinite(values).all() or np.abs(values).max() > 1e6:
        raise RecipeError(f'data.centre = {centre!r}: "auto", "none" or [y, x] in detector pixels is needed')
    return float(values[0]), float(values[1])


def check_window(window: int | Sequence[int] | None) -> tuple[int, int] | None:
    """A size (ky, kx) in detector pixels from one number or two."""
    if window is None:
        return None
    pair = [window, window] if isinstance(window, int | np.integer) else window
    height, width = check_shape("data.window", pair)
    if max(height, width) > 16384:
        raise RecipeError(f"data.window = {window!r}: at most 16384 pixels")
    return height, width


def check_counts(key: str, counts: Sequence[int]) -> tuple[int, int]:
    """Two whole numbers, 0 or more."""
    values = [counts] if isinstance(counts, int | float | str) else list(counts)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int | np.integer) or v < 0 for v in values):
        raise RecipeError(f"{key} = {values if key == 'scan.flyback' else values[0]!r}: whole numbers of frames, 0 or more, are needed")
    return int(values[0]), int(values[1])


def check_descan(descan: str | None) -> Literal["plane", "parabola"] | None:
    """How the descan is fitted."""
    if descan is not None and descan not in ("plane", "parabola"):
        raise RecipeError(f'data.descan = {descan!r}: "plane" or "parabola" is needed')
    return descan  # type: ignore[return-value]


def check_memory(memory_GB: float | None) -> float | None:
    """A limit in GB, 0 (nothing is kept) or more."""
    if memory_GB is None:
        return None
    if isinstance(memory_GB, bool) or not isinstance(memory_GB, int | float) or not 0 <= memory_GB < math.inf:
        raise RecipeError(f"data.memory_GB = {memory_GB!r}: a number of GB, 0 or more, is needed")
    return float(memory_GB)
