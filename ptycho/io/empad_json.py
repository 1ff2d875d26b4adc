"""The ``.json`` that phaser leaves beside an EMPAD ``.raw`` and that people edit (``file_type`` "empad_metadata", version 2.0).

Its units: voltage V, conv_angle mrad, defocus m (positive is overfocus), diff_step mrad per pixel, scan_step m, scan_rotation °,
exposure_time s, beam_current A, adu ADU per electron. Pairs are (x, y). A value that is null is not known.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import UNITS, Quantity
from ptycho.io.empad_xml import EmpadHeader
from ptycho.io.files import file_size, unreadable

_MAX_JSON_BYTES = 4 << 20
_TYPES = ("empad_metadata", "pyMultislicer_metadata")
#: Field -> (the recipe's name, factor to its unit, trusted). phaser asks for the current with a preset of 30 pA.
_FIELDS = {
    "voltage": ("voltage_kV", 1e-3, True),
    "conv_angle": ("semiangle_mrad", 1.0, True),
    "defocus": ("defocus_A", -1e10, True),
    "camera_length": ("camera_length_m", 1.0, True),
    "diff_step": ("pixel_mrad", 1.0, True),
    # phaser turns the scan the other way round, y' = y cos - x sin; like the XML's, its zero differs between microscopes.
    "scan_rotation": ("rotation_deg", -1.0, False),
    "exposure_time": ("exposure_ms", 1e3, True),
    "beam_current": ("beam_current_pA", 1e12, False),
    "adu": ("adu_per_electron", 1.0, True),
}


def read_json(path: Path) -> EmpadHeader:
    """What phaser's metadata say. Raises DataError for any other file; a value that makes no sense is left out with a warning."""
    fields = _parse(path)
    if fields.get("file_type") not in _TYPES:
        raise DataError(f'{path}: this is no EMPAD metadata: its file_type is {_shown(fields.get("file_type"))}, not "empad_metadata"')
    if str(fields.get("version", "2.0")) not in ("2", "2.0"):
        raise DataError(f"{path}: EMPAD metadata of version {_shown(fields['version'])} may have other units; version 2.0 is needed")
    raw_name = fields.get("raw_filename")
    if not isinstance(raw_name, str) or not raw_name:
        raise DataError(f"{path}: raw_filename = {_shown(raw_name)}: the name of the .raw beside it is needed")
    warnings: list[str] = []
    metadata = _metadata(path.name, fields, warnings)
    shape = _shape(path.name, fields, warnings)
    return EmpadHeader(
        path,
        raw_name,
        "scan",
        [shape] if shape else [],
        None,
        metadata,
        flips=_flips(path.name, fields, warnings),
        positions_A=_positions_A(path.name, fields, warnings),
        warnings=warnings + _not_applied(path.name, fields),
    )


def _parse(path: Path) -> dict[str, Any]:
    if file_size(path) > _MAX_JSON_BYTES:
        raise DataError(f"{path}: more than {_MAX_JSON_BYTES} bytes; this is no EMPAD metadata")
    try:
        data = path.read_bytes()
        if b'"raw_filename"' not in data:
            raise ValueError("it names no raw_filename")
        fields = json.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error, "not the JSON of EMPAD metadata") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path}: this is no EMPAD metadata: it holds {_shown(fields)}, not named values")
    return fields


def _shown(value: Any) -> str:
    """A value of the file for messages, short and on one line."""
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."


def _number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _numbers(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Numbers of this shape, -1 for any length, of a size that can be calculated with; None for anything else."""
    try:
        array = np.asarray(value)
        numbers = array.astype(float) if array.dtype.kind in "iuf" else None
    except (ValueError, TypeError, OverflowError):
        return None
    if numbers is None or numbers.ndim != len(shape) or not numbers.size or not (np.abs(numbers) < 1e100).all():
        return None
    return numbers if all(wanted in (-1, n) for wanted, n in zip(shape, numbers.shape, strict=True)) else None


def _unusable(name: str, key: str, value: Any) -> str:
    return f"{name}: {key} = {_shown(value)} is not used: it is not of the kind that belongs there"


def _metadata(name: str, fields: dict[str, Any], warnings: list[str]) -> dict[str, Quantity]:
    """Values in the recipe's names and units."""
    metadata = {}
    for key, (ours, factor, trusted) in _FIELDS.items():
        value = _number(fields.get(key))
        if value is not None and math.isfinite(value * factor):
            # A defocus of exactly 0 is phaser's preset, and 0.0 + makes -0 to 0.
            metadata[ours] = Quantity(0.0 + value * factor, UNITS[ours], f"{name}: {key}", trusted and (key != "defocus" or value != 0))
        elif fields.get(key) is not None:
            warnings.append(_unusable(name, key, fields[key]))
    step = _numbers(fields.get("scan_step"), (2,))
    if step is not None:
        metadata["step_A"] = Quantity((float(step[1]) * 1e10, float(step[0]) * 1e10), "Å", f"{name}: scan_step")
    elif fields.get("scan_step") is not None:
        warnings.append(_unusable(name, "scan_step", fields["scan_step"]))
    return metadata


def _shape(name: str, fields: dict[str, Any], warnings: list[str]) -> tuple[int, int] | None:
    """(slow, fast) of the scan."""
    shape = fields.get("scan_shape")
    if shape is None:
        return None
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 100_000 for n in shape)
    if not whole:
        warnings.append(_unusable(name, "scan_shape", shape))
        return None
    return shape[1], shape[0]


def _flips(name: str, fields: dict[str, Any], warnings: list[str]) -> tuple[bool, bool, bool] | None:
    """Whether rows and columns are to be flipped and the pattern transposed."""
    flips = fields.get("det_flips")
    if flips is None:
        return None
    if not isinstance(flips, list) or len(flips) != 3 or not all(isinstance(flip, bool) for flip in flips):
        warnings.append(_unusable(name, "det_flips", flips))
        return None
    return flips[0], flips[1], flips[2]


def _positions_A(name: str, fields: dict[str, Any], warnings: list[str]) -> NDArray[np.float64] | None:
    """Probe positions (N, 2) = (y, x), with phaser's correction of them."""
    given = fields.get("scan_positions")
    if given is None:
        return None
    positions = _numbers(given, (-1, 2))
    if positions is None:
        warnings.append(_unusable(name, "scan_positions", given))
        return None
    correction = _numbers(fields.get("scan_correction"), (2, 2))
    return (positions if correction is None else positions @ correction.T)[:, ::-1] * 1e10


def _not_applied(name: str, fields: dict[str, Any]) -> list[str]:
    """What the file says and the user must say too, because it changes which data are used and how."""
    notes = []
    correction = _numbers(fields.get("scan_correction"), (2, 2))
    if correction is not None and fields.get("scan_positions") is None and not np.array_equal(correction, np.eye(2)):
        rows = ", ".join(f"[{row[0]:.6g}, {row[1]:.6g}]" for row in correction[::-1, ::-1])
        notes.append(f"{name}: its scan_correction is not applied; give [scan] affine = [{rows}]")
    crop = _numbers(fields.get("crop"), (4,))
    if crop is not None:
        y0, y1, x0, x1 = (int(n) for n in np.clip(crop, 0, 99_999))
        notes.append(f"{name}: by its crop the scan is valid in [data] scan_region = [{y0}, {y1}, {x0}, {x1}], which is not applied")
    return notes
