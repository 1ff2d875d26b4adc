"""EMPAD, first generation: ``scan_x48_y48.raw`` and what lies beside it (``empad_sidecars``); and which generation a file is of.

A frame is 130 x 128 float32, little-endian: 128 rows of image, then 2 rows of trailer. There is no file header; x is the fast
axis. Rows are stored upside down relative to the scan. The second generation (``empad_g2``) has no trailer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.atomic import write_file
from ptycho.errors import DataError, OutputError
from ptycho.frames import FrameSource, Header
from ptycho.io.empad_g2 import G2_FRAME_BYTES, open_combined, open_words
from ptycho.io.empad_sidecars import EmpadFiles, describe, find_files
from ptycho.io.empad_xml import xml_text
from ptycho.io.files import publish, unreadable
from ptycho.io.options import Options
from ptycho.io.source import BinarySource

FRAME_BYTES = 130 * 128 * 4
_TYPICAL_ADU = {80.0: 148.0, 200.0: 375.0, 300.0: 579.0}


def typical_adu_per_electron(voltage_kV: float) -> float:
    """What one electron gives on an EMPAD of the first generation, in ADU; interpolated in the voltage."""
    return float(np.interp(voltage_kV, list(_TYPICAL_ADU), list(_TYPICAL_ADU.values())))


def open_empad(path: Path, options: Options) -> FrameSource:
    """Frames of a ``.raw`` of either generation, or of the ``.raw`` that an ``.xml`` or ``.json`` names.

    Raises DataError for anything that is not one, and when the file does not show which of the three kinds it is.
    """
    files = find_files(path, options)
    kind = _kind(files, options)
    if kind == "empad_g2":
        return open_words(files, options)
    return open_combined(files) if kind == "empad_combined" else _open_frames(files)


def open_empad_g1(path: Path, options: Options) -> FrameSource:
    """Frames of a file that is known to be of the first generation. Raises DataError for anything that is not one."""
    return _open_frames(find_files(path, options))


def _open_frames(files: EmpadFiles) -> FrameSource:
    n_frames, rest = divmod(files.size, FRAME_BYTES)
    if not n_frames:
        size = f"{files.size} bytes are less than one EMPAD frame of {FRAME_BYTES} bytes"
        raise DataError(f"{files.raw}: {size}; is it complete and from an EMPAD?")
    header = Header(files.raw, "empad", n_frames, (128, 128), np.dtype("<f4"), flip_rows=True)
    if rest:
        header.warnings.append(f"{files.raw.name}: {rest} bytes after the last whole frame are left out; the file may have been cut")
    describe(header, files)
    return BinarySource(header, stride=FRAME_BYTES)


# Which kind of file it is


def _kind(files: EmpadFiles, options: Options) -> str:
    """The format by the size of the file and of the scan; where these allow several, by the frames at its beginning."""
    given = [options.scan_shape] if options.scan_shape else []
    for slow, fast in given + [shape for shape, _ in files.shapes]:
        if slow * fast * FRAME_BYTES == files.size:
            return "empad"
        if slow * fast * G2_FRAME_BYTES == files.size:
            return _kind_of_g2(files, options)
    first, second = files.size % FRAME_BYTES == 0, files.size % G2_FRAME_BYTES == 0
    if second and not first:
        return _kind_of_g2(files, options)
    if first and not second:
        return "empad"
    if _are_words(files):
        return "empad_g2"
    stride = _stride(files)
    if stride is None and first:
        raise _undecided(files, '"empad" (first generation), "empad_g2" or "empad_combined"')
    return "empad_combined" if stride == G2_FRAME_BYTES else "empad"  # a file that was cut is most likely of the first generation


def _kind_of_g2(files: EmpadFiles, options: Options) -> str:
    words = _are_words(files)
    if words is None and options.calibration_file is None:
        raise _undecided(files, '"empad_g2" (as the detector writes it) or "empad_combined"')
    return "empad_combined" if words is False else "empad_g2"


def _undecided(files: EmpadFiles, formats: str) -> DataError:
    return DataError(f"{files.raw}: its {files.size} bytes do not show of which EMPAD they are; give [data] format = {formats}")


def _are_words(files: EmpadFiles) -> bool | None:
    """Whether the first frame, or the middle of the file when that is empty, holds words of the second generation; None when all is zero.

    Read as floats, words of pixels with less than some 10 000 electrons are denormal numbers, which no measurement is.
    """
    for start in (0, files.size // 2 // FRAME_BYTES * FRAME_BYTES):
        words = _read(files.raw, start, G2_FRAME_BYTES).view("<u4") & 0x7FFFFFFF
        filled = np.count_nonzero(words)
        if filled:
            return bool(np.count_nonzero((words > 0) & (words < 1 << 23)) > filled // 2)
    return None


def _stride(files: EmpadFiles) -> int | None:
    """The distance of frames at which patterns lie over each other: with the wrong one they are shifted by half a pattern. None if unclear."""
    if files.size < 40 * FRAME_BYTES:
        return None
    alike = {}
    for stride in (FRAME_BYTES, G2_FRAME_BYTES):
        early, late = (sum(_values(files.raw, (first + k) * stride) for k in range(8)) for first in (0, 32))
        alike[stride] = float(np.corrcoef(early, late)[0, 1]) if np.ptp(early) and np.ptp(late) else 0.0
    best, other = sorted(alike, key=lambda stride: alike[stride], reverse=True)
    return best if alike[best] - alike[other] > 0.2 else None


def _values(raw: Path, start: int) -> NDArray[np.float64]:
    """The values of one image, 0 for what can be none."""
    values = _read(raw, start, G2_FRAME_BYTES).view("<f4").astype(float)
    return np.where(np.abs(values) < 1e12, values, 0.0)


def _read(raw: Path, start: int, size: int) -> NDArray[np.uint8]:
    """Bytes of the file; fewer, in whole values, where it ends."""
    try:
        with open(raw, "rb", buffering=0) as file:
            file.seek(start)
            data = file.read(size)
    except OSError as error:
        raise unreadable(raw, error) from None
    return np.frombuffer(data, np.uint8, len(data) // 4 * 4)


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
        write_file(raw.with_suffix(".xml"), text.encode())
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
            publish(Path(file.name), raw)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return len(shapes), shapes[0]
