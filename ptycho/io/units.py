"""Units as electron microscopy programs write them, what the axes of a stack say in ours, and looking things up in JSON texts."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptycho.frames import UNITS, Header, Quantity
from ptycho.io import hdf5

_LENGTHS_A = {
    "Å": 1.0, "A": 1.0, "AA": 1.0, "ang": 1.0, "angstrom": 1.0, "angstroms": 1.0,
    "fm": 1e-5, "pm": 0.01, "nm": 10.0, "nanometer": 10.0, "nanometers": 10.0, "um": 1e4, "μm": 1e4, "micron": 1e4, "microns": 1e4,
    "mm": 1e7, "m": 1e10, "meter": 1e10, "meters": 1e10,
}  # fmt: skip
_ANGLES_MRAD = {
    "urad": 1e-3, "μrad": 1e-3, "mrad": 1.0, "milliradian": 1.0, "milliradians": 1.0, "rad": 1e3, "radian": 1e3, "radians": 1e3,
    "deg": math.radians(1) * 1e3, "degree": math.radians(1) * 1e3, "degrees": math.radians(1) * 1e3, "°": math.radians(1) * 1e3,
}  # fmt: skip


def parse_unit(unit: str | None) -> tuple[str, float] | None:
    """(kind, factor to our unit) of "nm", "[n_m]", "1 / nm", "$A^{-1}$", "mrad", ...; None for "pixels" and what is not known."""
    # NFKC makes one character of each of the two Ångström and micro signs, and "-1" of a superscript.
    plain = unicodedata.normalize("NFKC", (unit or "")[:60]).replace("\u2212", "-")
    text = re.sub(r"[\s\[\]{}()$\\_*]", "", plain)
    match = re.fullmatch(r"1/(.+)|(.+?)(?:\^?-1)|(.+)", text)
    if match is None:
        return None
    inverse, name = match[3] is None, str(match[1] or match[2] or match[3])
    name = name.lower() if name.lower() in _LENGTHS_A and len(name) > 2 else name
    if name in _LENGTHS_A:
        return ("frequency", 1 / _LENGTHS_A[name]) if inverse else ("length", _LENGTHS_A[name])
    return ("angle", _ANGLES_MRAD[name]) if name in _ANGLES_MRAD and not inverse else None


@dataclass(frozen=True)
class Dimension:
    """One axis of a data set as a file states it: the step between its points, with the file's unit and name."""

    step: float | None
    unit: str | None = None
    name: str = ""
    source: str = ""

    @property
    def in_our_unit(self) -> tuple[str, float] | None:
        """(kind, step) in Å for a "length", in 1/Å for a "frequency", in mrad for an "angle"; None when there is no usable step."""
        found = parse_unit(self.unit)
        if found is None or self.step is None or not math.isfinite(self.step) or not self.step:
            return None
        step = abs(self.step) * found[1]
        return (found[0], step) if 0 < step < math.inf else None

    @property
    def is_detector(self) -> bool:
        """True for an axis of the detector, by its unit, else by its name."""
        found = parse_unit(self.unit)
        return self.name.lower().startswith(("q", "k")) if found is None else found[0] != "length"


def read_dimension(path: Path, item: Any, source: str) -> Dimension:
    """Step, unit and name from a dataset of one axis: its first and last values, evenly spaced. ``item`` may be anything."""
    import h5py

    if not isinstance(item, h5py.Dataset):
        return Dimension(None)
    unit, name = hdf5.text(item, "units"), hdf5.text(item, "name") or ""
    if item.ndim != 1 or len(item) < 2 or item.dtype.kind not in "iuf":
        return Dimension(None, unit, name, source)
    hdf5.check(path, item)
    first, last = float(item[0]), float(item[-1])
    return Dimension((last - first) / (len(item) - 1), unit, name, source)


def add_dimensions(header: Header, axes: Sequence[str], dimensions: Sequence[Dimension]) -> None:
    """Step and detector pixel from the ``dimensions`` of the dataset's ``axes`` ("y", "x", "n", "ky", "kx"), where not known already."""
    known = dict(zip(axes, dimensions, strict=False))
    slow, fast = _pair(known.get("y"), known.get("x"))
    if slow and fast and slow[0] == fast[0] == "length":
        add(header, "step_A", (slow[1], fast[1]), known["y"].source)
    ky, kx = _pair(known.get("ky"), known.get("kx"))
    if ky and kx and ky[0] == kx[0] != "length" and not header.metadata.keys() & {"pixel_invA", "pixel_mrad"}:
        if abs(ky[1] / kx[1] - 1) > 0.01:
            header.warnings.append(f"{header.path.name}: the detector's pixels are {ky[1]:.4g} x {kx[1]:.4g}; their mean is used for both")
        mean = ky[1] if ky[1] == kx[1] else (ky[1] + kx[1]) / 2
        add(header, "pixel_invA" if ky[0] == "frequency" else "pixel_mrad", mean, known["ky"].source)


def _pair(*dimensions: Dimension | None) -> list[tuple[str, float] | None]:
    return [None if dimension is None else dimension.in_our_unit for dimension in dimensions]


def add(header: Header, key: str, value: float | tuple[float, float] | None, source: str, trusted: bool = True) -> None:
    """Put a value in the unit of ``UNITS[key]`` into the header, when there is one and none is known yet."""
    if value is not None and key not in header.metadata and all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
        header.metadata[key] = Quantity(value, UNITS[key], f"{header.path.name}: {source}", trusted)


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text of at most 4 MB that may end in NUL bytes; an empty one when it is not that."""
    try:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        found = json.loads(plain.split("\0", 1)[0]) if len(plain) <= 1 << 22 else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def json_value(item: Any, path: str) -> Any:
    """What stands at "instrument.high_tension" in nested JSON objects; None when it is not there."""
    for key in path.split("."):
        item = item.get(key) if isinstance(item, dict) else None
    return item


def json_number(item: Any, path: str, factor: float = 1.0) -> float | None:
    """The finite number, or text of one, at ``path`` in nested JSON objects, times ``factor``; None for anything else."""
    return finite(json_value(item, path), factor)


def finite(value: Any, factor: float = 1.0) -> float | None:
    """A finite number from a number or text, times ``factor``; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) * factor
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
