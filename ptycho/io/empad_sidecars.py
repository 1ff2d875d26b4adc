"""Which files belong to an EMPAD ``.raw``, of either generation, and what they say of it.

The ``.json`` (``empad_json``), which people edit, comes before the name of the raw file and that before the ``.xml`` (``empad_xml``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ptycho.errors import DataError
from ptycho.frames import Header, Quantity
from ptycho.io.empad_json import read_json
from ptycho.io.empad_xml import EmpadHeader, read_xml
from ptycho.io.files import beside, factor_pairs, file_size
from ptycho.io.options import Options

_MAX_OTHERS = 50
_READERS: dict[str, Callable[[Path], EmpadHeader]] = {".json": read_json, ".xml": read_xml}


@dataclass(frozen=True, eq=False)
class EmpadFiles:
    """A raw file of ``size`` bytes and what its ``json`` and ``xml`` say; ``warnings`` are of sidecars that could not be used."""

    raw: Path
    size: int
    json: EmpadHeader | None
    xml: EmpadHeader | None
    warnings: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> list[tuple[tuple[int, int], str]]:
        """Every ((slow, fast), where from) that is said of the scan, the most reliable first; they need not fit the size."""
        match = re.search(r"x(\d{1,5})_y(\d{1,5})", self.raw.stem)
        name = [((int(match[2]), int(match[1])), "file name")] if match else []
        json, xml = ([(shape, said.path.name) for shape in said.shapes] if said else [] for said in (self.json, self.xml))
        return [item for item in json + name + xml if min(item[0]) > 0]


def find_files(path: Path, options: Options) -> EmpadFiles:
    """The files that belong to a ``.raw``, or to the ``.raw`` that an ``.xml`` or ``.json`` names. Raises DataError when there is none."""
    if options.dataset is not None:
        raise DataError(f"{path}: an EMPAD file has no datasets; remove ::{options.dataset[:80]}")
    warnings: list[str] = []
    said: dict[str, EmpadHeader | None] = {}
    suffix = path.suffix.lower()
    raw = path
    if suffix in _READERS:
        opened = _READERS[suffix](path)
        said[suffix] = opened
        raw = _raw_of(path, opened.raw_name)
    size = file_size(raw)
    for other in _READERS.keys() - said.keys():
        said[other] = _beside(raw, other, warnings)
    return EmpadFiles(raw, size, said[".json"], said[".xml"], warnings)


def _raw_of(path: Path, raw_name: str) -> Path:
    raw = beside(path, raw_name)
    if not raw.exists():
        raise DataError(f"{path}: it names {raw_name[:80]!r}, which is not beside it; put the two together or open the .raw itself")
    if raw.suffix.lower() in _READERS:
        raise DataError(f"{path}: it names {raw_name[:80]!r} as its data; open the .raw itself")
    return raw


def _beside(raw: Path, suffix: str, warnings: list[str]) -> EmpadHeader | None:
    """The sidecar that names a raw file, or a ``.json`` of its name; None, with a warning, when there are only others."""
    others: list[EmpadHeader] = []
    try:
        found = sorted(raw.parent.glob(f"*{suffix}"), key=lambda p: (p.stem != raw.stem, p.name))
    except OSError:
        return None
    for path in found[:_MAX_OTHERS]:
        try:
            header = _READERS[suffix](path)
        except DataError as error:
            if path.stem == raw.stem:
                warnings.append(str(error))
            continue
        if header.raw_name == raw.name:
            return header
        if path.stem == raw.stem and suffix == ".json":
            warnings.append(f"{path.name} names {header.raw_name[:80]!r} and is used for {raw.name}, whose name it has")
            return header
        others.append(header)
    if others and suffix == ".xml":
        named = " ".join(others[0].raw_name[:80].split())
        warnings.append(f"{others[0].path.name} is not used: it names {named}, not {raw.name}")
    return None


def describe(header: Header, files: EmpadFiles) -> None:
    """Put what the files say into the header of the raw file. Raises DataError when it is shorter than one scan line."""
    json, xml = files.json, files.xml
    header.warnings += files.warnings + (json.warnings if json else [])
    header.metadata = {**(xml.metadata if xml else {}), **(json.metadata if json else {})}
    header.scan_shape = _scan_shape(header, files)
    if xml is not None and "step_A" not in header.metadata:
        _add_step(header, xml)
    if json is not None and json.flips is not None:
        header.flip_rows = json.flips[0]
        keys = [key for key, flip in zip(("flip_columns", "transpose"), json.flips[1:], strict=True) if flip]
        if keys:
            wanted = " and ".join(f"{key} = true" for key in keys)
            header.warnings.append(f"{json.path.name}: its det_flips need [data] {wanted}, which is not applied")
    if json is not None and json.positions_A is not None:
        if len(json.positions_A) == header.n_frames:
            header.positions_A = json.positions_A
        else:
            header.warnings.append(f"{json.path.name}: {len(json.positions_A)} scan_positions for {header.n_frames} frames are not used")


def _scan_shape(header: Header, files: EmpadFiles) -> tuple[int, int] | None:
    """(slow, fast) from the first of JSON, file name, XML and a perfect square that fits the size of the file."""
    if files.json is None and files.xml is not None and files.xml.kind == "series":
        return None
    n, shapes = header.n_frames, files.shapes
    for shape, source in shapes:
        if shape[0] * shape[1] == n:
            header.metadata["scan_shape"] = Quantity(shape, "", source)
            return shape
    for (slow, fast), _ in shapes[:1]:
        lines = min(slow, n // fast)
        if not lines:
            raise DataError(f"{header.path}: {n} frames are less than one scan line of {fast}; the scan was to have {slow} x {fast} points")
        header.warnings.append(f"{header.path.name}: {n} frames for a scan of {slow} x {fast}: {lines} whole scan lines are used")
        return lines, fast
    side = math.isqrt(n)
    if side * side != n:
        return None
    header.metadata["scan_shape"] = Quantity((side, side), "", f"a guess from {n} frames ({factor_pairs(n)} fit)", trusted=False)
    return side, side


def _add_step(header: Header, xml: EmpadHeader) -> None:
    """Step from the field of view: rosettasciio's rule. Whether ``scan_size`` scales it is not known, so it is not trusted."""
    if xml.field_of_view_A is None or header.scan_shape is None:
        return
    declared = next((shape for shape in xml.shapes if shape[1] == header.scan_shape[1]), header.scan_shape)
    slow, fast = (length / max(declared) for length in xml.field_of_view_A)
    header.metadata["step_A"] = Quantity((slow, fast), "Å", f"{xml.path.name}: field of view / {max(declared)}", trusted=False)
