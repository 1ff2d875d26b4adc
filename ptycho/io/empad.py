"""EMPAD, first generation: ``scan_x48_y48.raw`` and the ``.xml`` beside it (``empad_xml``).

A frame is 130 x 128 float32, little-endian: 128 rows of image, then 2 rows of trailer. There is no file header; x is the fast
axis. Rows are stored upside down relative to the scan.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError, OutputError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io.empad_xml import EmpadHeader, read_xml, xml_text
from ptycho.io.files import factor_pairs, file_size
from ptycho.io.options import Options
from ptycho.io.source import BinarySource

FRAME_BYTES = 130 * 128 * 4
_TYPICAL_ADU = {80.0: 148.0, 200.0: 375.0, 300.0: 579.0}


def typical_adu_per_electron(voltage_kV: float) -> float:
    """What one electron gives on an EMPAD of the first generation, in ADU; interpolated in the voltage."""
    return float(np.interp(voltage_kV, list(_TYPICAL_ADU), list(_TYPICAL_ADU.values())))


def open_empad(path: Path, options: Options) -> FrameSource:
    """Frames of a ``.raw``, or of the ``.raw`` that an ``.xml`` names. Raises DataError for anything that is not one."""
    if options.dataset is not None:
        raise DataError(f"{path}: an EMPAD file has no datasets; remove ::{options.dataset}")
    warnings: list[str] = []
    header: EmpadHeader | None
    if path.suffix.lower() == ".xml":
        header = read_xml(path)
        raw = _raw_of(path, header.raw_name)
    else:
        raw = path
        file_size(raw)
        header = _header_of(raw, warnings)
    source = _open_raw(raw, warnings)
    if header is not None:
        source.header.metadata = dict(header.metadata)
    source.header.scan_shape = _scan_shape(source.header, header)
    _add_step(source.header, header)
    return source


def _open_raw(raw: Path, warnings: list[str]) -> BinarySource:
    size = file_size(raw)
    n_frames, rest = divmod(size, FRAME_BYTES)
    if not n_frames:
        raise DataError(f"{raw}: {size} bytes are less than one EMPAD frame of {FRAME_BYTES} bytes; is it complete and from an EMPAD?")
    if rest:
        warnings.append(f"{raw.name}: {rest} bytes after the last whole frame are left out; the file may have been cut")
    header = Header(raw, "empad", n_frames, (128, 128), np.dtype("<f4"), warnings=warnings, flip_rows=True)
    return BinarySource(header, stride=FRAME_BYTES)


def _raw_of(xml: Path, raw_name: str) -> Path:
    raw = xml.with_name(raw_name)
    if not raw.exists():
        raise DataError(f"{xml}: it names {raw_name!r}, which is not beside it; put the two together or open the .raw itself")
    return raw


def _header_of(raw: Path, warnings: list[str]) -> EmpadHeader | None:
    """The XML beside a raw file that names it; None, with a warning, when there are only others."""
    others = []
    for xml in sorted(raw.parent.glob("*.xml"), key=lambda p: (p.stem != raw.stem, p.name))[:50]:
        try:
            header = read_xml(xml)
        except DataError as error:
            if xml.stem == raw.stem:
                warnings.append(str(error))
            continue
        if header.raw_name == raw.name:
            return header
        others.append((xml.name, header.raw_name))
    if others:
        name, named = others[0]
        warnings.append(f"{name} is not used: it names {named}, not {raw.name}")
    return None


def _scan_shape(source: Header, header: EmpadHeader | None) -> tuple[int, int] | None:
    """(slow, fast) from the first of file name, XML and a perfect square that fits the size of the file."""
    if header is not None and header.kind == "series":
        return None
    match = re.search(r"x(\d{1,5})_y(\d{1,5})", source.path.stem)
    shapes = [(int(match[2]), int(match[1]))] if match else []
    shapes = [shape for shape in shapes + (header.shapes if header else []) if min(shape) > 0]
    n = source.n_frames
    for shape in shapes:
        if shape[0] * shape[1] == n:
            source.metadata["scan_shape"] = Quantity(shape, "", "file name" if match and shape == shapes[0] else header.path.name if header else "")
            return shape
    for slow, fast in shapes[:1]:
        lines = min(slow, n // fast)
        if not lines:
            raise DataError(f"{source.path}: {n} frames are less than one scan line of {fast}; the scan was to have {slow} x {fast} points")
        source.warnings.append(f"{source.path.name}: {n} frames for a scan of {slow} x {fast}: {lines} whole scan lines are used")
        return lines, fast
    side = math.isqrt(n)
    if side * side != n:
        return None
    source.metadata["scan_shape"] = Quantity((side, side), "", f"a guess from {n} frames ({factor_pairs(n)} fit)", trusted=False)
    return side, side


def _add_step(source: Header, header: EmpadHeader | None) -> None:
    """Step from the field of view: rosettasciio's rule. Whether ``scan_size`` scales it is not known, so it is not trusted."""
    if header is None or header.field_of_view_A is None or source.scan_shape is None:
        return
    declared = next((shape for shape in header.shapes if shape[1] == source.scan_shape[1]), source.scan_shape)
    slow, fast = (length / max(declared) for length in header.field_of_view_A)
    source.metadata["step_A"] = Quantity((slow, fast), "Å", f"{header.path.name}: field of view / {max(declared)}", trusted=False)


def write_empad(
    path: str | os.PathLike[str],
    patterns: NDArray[Any] | Iterable[NDArray[Any]],
    *,
    adu_per_electron: float = 1.0,
    voltage_kV: float | None = None,
    step_A: float | tuple[float, float] | None = None,
    rotation_deg: float = 0.0,
    camera_length_m: float | None = None,
    exposure_ms: float = 1.0,
    flip_rows: bool = True,
) -> Path:
    """Write patterns (slow, fast, 128, 128) in electrons, or scan lines (fast, 128, 128), as an EMPAD ``.raw`` with its ``.xml``.

    With ``flip_rows`` rows are stored upside down, as the detector does it and the reader expects. Both files replace older
    ones only when complete. Returns the path of the raw file. Raises OutputError when it cannot be written.
    """
    raw = Path(path).with_suffix(".raw")
    try:
        shape = _write_frames(raw, patterns, adu_per_electron, flip_rows)
        step = (step_A, step_A) if isinstance(step_A, int | float) else step_A
        text = xml_text(raw, shape, voltage_kV, step, rotation_deg, camera_length_m, exposure_ms)
        _replace(raw.with_suffix(".xml"), text.encode())
    except OSError as error:
        raise OutputError(f"{raw}: cannot be written ({error.strerror or error})") from None
    return raw


def _write_frames(raw: Path, patterns: NDArray[Any] | Iterable[NDArray[Any]], gain: float, flip_rows: bool) -> tuple[int, int]:
    shapes: list[int] = []
    with tempfile.NamedTemporaryFile(dir=raw.parent, prefix=f".{raw.name}.", delete=False) as file:
        try:
            for line in patterns:
                if line.ndim != 3 or line.shape[1:] != (128, 128) or (shapes and shapes[0] != len(line)):
                    raise OutputError(f"{raw}: a scan line of the shape {line.shape}; EMPAD has 128 x 128 pixels and lines of one length")
                frames = np.zeros((len(line), 130, 128), "<f4")
                frames[:, :128] = (line[:, ::-1] if flip_rows else line) * gain
                frames[:, 128, 0] = len(shapes) * len(line) + np.arange(len(line))
                file.write(frames.tobytes())
                shapes.append(len(line))
            if not shapes:
                raise OutputError(f"{raw}: there are no patterns to write")
            file.close()
            _publish(Path(file.name), raw)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return len(shapes), shapes[0]


def _publish(temporary: Path, path: Path) -> None:
    """Move a complete file to its place, readable as a file made in the usual way."""
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    os.replace(temporary, path)


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    _publish(Path(file.name), path)
