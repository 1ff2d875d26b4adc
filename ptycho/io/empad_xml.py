"""The ``.xml`` that the EMPAD's acquisition software leaves beside a ``.raw``. Two dialects exist (software 0.51 and 1.2.x)."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import UNITS, Quantity
from ptycho.io.files import file_size, unreadable

_MAX_XML_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class EmpadHeader:
    """What an EMPAD XML says, or phaser's JSON (``empad_json``).

    ``shapes`` are (slow, fast), the most reliable first; they need not fit the raw file. ``flips`` are those of rows and columns and
    the transposition, ``positions_A`` (N, 2) = (y, x) the probe positions, ``warnings`` what could not be used: only the JSON has them.
    """

    path: Path
    raw_name: str
    kind: str
    shapes: list[tuple[int, int]]
    count: int | None
    metadata: dict[str, Quantity] = field(default_factory=dict)
    field_of_view_A: tuple[float, float] | None = None
    flips: tuple[bool, bool, bool] | None = None
    positions_A: NDArray[np.float64] | None = None
    warnings: list[str] = field(default_factory=list)


def read_xml(path: Path) -> EmpadHeader:
    """The header in an EMPAD XML of either dialect. Raises DataError for any other file."""
    root = _parse(path)
    if root.tag != "root":
        raise DataError(f"{path}: this is not an EMPAD XML: its first element is <{root.tag[:40]}>, not <root>")
    texts = {child.tag: (child.text or "").strip() for child in root}
    raw_element = root.find("raw_file")
    raw_name = "" if raw_element is None else raw_element.get("filename", "").strip()
    if not raw_name or raw_name != os.path.basename(raw_name) or "\\" in raw_name or raw_name in (".", "..") or "\0" in raw_name:
        raise DataError(f"{path}: raw_file filename = {raw_name[:80]!r}: a plain file name is needed")
    measured = root.find("iom_measurements")
    metadata = _metadata(path.name, texts, {} if measured is None else {child.tag: (child.text or "").strip() for child in measured})
    scan = [texts, *_scan_parameters(root)]
    shapes = [
        shape
        for shape in (_shape(s.get("pix_y"), s.get("pix_x")) or _shape(s.get("scan_resolution_y"), s.get("scan_resolution_x")) for s in scan)
        if shape
    ]
    count = _shape(texts.get("count"), "1")
    return EmpadHeader(path, raw_name, texts.get("type", "scan"), shapes, count[0] if count else None, metadata, _field_of_view_A(measured))


def _parse(path: Path) -> ElementTree.Element:
    if file_size(path) > _MAX_XML_BYTES:
        raise DataError(f"{path}: more than {_MAX_XML_BYTES} bytes; this is not an EMPAD XML")
    try:
        data = path.read_bytes()
        # Entities let a small file grow without bound or read other files; EMPAD writes none.
        if b"\0" in data:
            raise ValueError("it is no text")
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise DataError(f"{path}: XML with a DOCTYPE or entities is refused, EMPAD writes none; open the .raw itself")
        return ElementTree.fromstring(data.decode("utf-8-sig"))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise unreadable(path, error, "not an EMPAD XML") from None


def _scan_parameters(root: ElementTree.Element) -> list[dict[str, str]]:
    """Texts of the scan settings, "acquire" before "search"; both may be those of another scan."""
    settings = sorted(root.findall("scan_parameters"), key=lambda e: e.get("mode") != "acquire")
    return [{child.tag: (child.text or "").strip() for child in element} for element in settings]


def _shape(slow: str | None, fast: str | None) -> tuple[int, int] | None:
    if slow and fast and re.fullmatch(r"[1-9]\d{0,4}", slow) and re.fullmatch(r"[1-9]\d{0,4}", fast):
        return int(slow), int(fast)
    return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _metadata(name: str, texts: dict[str, str], measured: dict[str, str]) -> dict[str, Quantity]:
    """Values in the recipe's names and units; a text that is no number is left out."""
    degree = 180 / math.pi
    wanted = [
        ("voltage_kV", 1e-3, ("high_voltage", "source.get_voltage"), True),
        ("camera_length_m", 1.0, ("nominal_camera_length", "optics.get_cameralength"), True),
        ("rotation_deg", degree, ("scan_rotation", "column.get_scanrotation"), False),  # its sign and zero differ between microscopes
        ("pixel_mrad", 1e3, ("calibrated_diffraction_angle",), True),
    ]
    metadata = {}
    for key, factor, tags, trusted in wanted:
        for tag in tags:
            value = _number(measured.get(tag))
            if value is not None:
                metadata[key] = Quantity(value * factor, UNITS[key], f"{name}: iom_measurements/{tag}", trusted)
    dwell = _number(texts.get("exposure_time"))
    if dwell is not None:
        metadata["exposure_ms"] = Quantity(dwell, "ms", f"{name}: exposure_time")
    return metadata


def _field_of_view_A(measured: ElementTree.Element | None) -> tuple[float, float] | None:
    """(slow, fast) extent of the scan in Å."""
    if measured is None:
        return None
    x = y = None
    scale: float | None = 1.0
    for child in measured:
        if child.tag == "full_scan_field_of_view":
            parts = {part.tag: part.text for part in child}
            x, y, scale = _number(parts.get("x")), _number(parts.get("y")), _number(parts.get("scale_factor", "1"))
        elif child.tag == "optics.get_full_scan_field_of_view":
            pair = re.fullmatch(r"\[\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\]", (child.text or "").strip())
            x, y = (_number(pair[1]), _number(pair[2])) if pair else (None, None)
    if not x or not y or not scale or min(x, y, scale) <= 0:
        return None
    return y / scale * 1e10, x / scale * 1e10


def xml_text(
    raw: Path,
    shape: tuple[int, int],
    voltage_kV: float | None,
    step_A: tuple[float, float] | None,
    rotation_deg: float,
    camera_length_m: float | None,
    exposure_ms: float,
) -> str:
    """The XML of software 1.2.x."""
    slow, fast = shape
    scans = "".join(
        f'<scan_parameters mode="{mode}"><scan_size>1</scan_size><scan_resolution_y>{slow}</scan_resolution_y>'
        f"<scan_resolution_x>{fast}</scan_resolution_x></scan_parameters>"
        for mode in ("search", "acquire")
    )
    measured = f"<scan_rotation>{math.radians(rotation_deg)!r}</scan_rotation><is_column_in_stem_mode>True</is_column_in_stem_mode>"
    if step_A is not None:
        y, x = (step * max(shape) * 1e-10 for step in step_A)
        measured += f"<full_scan_field_of_view><scale_factor>1.0</scale_factor><x>{x!r}</x><y>{y!r}</y></full_scan_field_of_view>"
    if camera_length_m is not None:
        measured += f"<nominal_camera_length>{camera_length_m!r}</nominal_camera_length>"
    if voltage_kV is not None:
        measured += f"<high_voltage_state>True</high_voltage_state><high_voltage>{voltage_kV * 1e3!r}</high_voltage>"
    return (
        f"<root name={quoteattr(raw.stem)}><software_version>1.2.2  (2021-08-20)</software_version><raw_file filename={quoteattr(raw.name)}/>"
        f"<exposure_time>{exposure_ms!r}</exposure_time><post_exposure_time>0</post_exposure_time>{scans}"
        f"<iom_measurements>{measured}</iom_measurements></root>"
    )
