"""NanoMEGAS block files ``.blo`` (ASTAR): a header, an image of the scan, then each pattern behind 6 bytes (AA 55 and its number)."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.source import BinarySource
from ptycho.io.units import add

#: Little-endian, without gaps; names are those of the format's description.
_HEADER = struct.Struct("<6s H I I I H H H H H d d I H I")
_NAMES = (
    "ID", "MAGIC", "Data_offset_1", "Data_offset_2", "UNKNOWN1", "DP_SZ", "DP_rotation", "NX", "NY", "Scan_rotation", "SX", "SY",
    "Beam_energy", "SDP", "Camera_length",
)  # fmt: skip
_MAGIC = 0x0102
_BEFORE_BYTES = 6


def open_blockfile(path: Path, options: Options) -> FrameSource:
    """Frames of a ``.blo`` file, uint8. Raises DataError for anything else. What is missing at its end is left out with a warning."""
    size = file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: a .blo file has no datasets; remove ::{options.dataset}")
    try:
        with open(path, "rb") as file:
            fields = dict(zip(_NAMES, _HEADER.unpack(file.read(_HEADER.size)), strict=True))
            file.seek(fields["Data_offset_2"])
            mark = file.read(2)
    except (OSError, struct.error) as error:
        raise unreadable(path, error, "not a NanoMEGAS block file") from None
    side, slow, fast = fields["DP_SZ"], fields["NY"], fields["NX"]
    if fields["ID"] != b"IMGBLO" or fields["MAGIC"] != _MAGIC or not side * slow * fast or mark != b"\xaa\x55":
        raise DataError(f"{path}: not a NanoMEGAS block file, or damaged: its header promises {slow} x {fast} patterns of {side} x {side} pixels")
    stride = _BEFORE_BYTES + side * side
    n_frames = min(slow * fast, (size - fields["Data_offset_2"]) // stride)
    if not n_frames:
        raise DataError(f"{path}: {size} bytes hold no whole pattern of {side} x {side} pixels; has it been cut?")
    header = Header(path, "blo", n_frames, (side, side), np.dtype(np.uint8), (slow, fast))
    if n_frames < slow * fast:
        header.warnings.append(f"{path.name}: {n_frames} of {slow * fast} patterns are in the file; has it been cut?")
    header.warnings.append(f"{path.name}: 8-bit block files are scaled for display, not counts; dose and noise are not those of the measurement")
    _add_metadata(header, fields)
    return BinarySource(header, fields["Data_offset_2"] + _BEFORE_BYTES, stride)


def _add_metadata(header: Header, fields: dict[str, Any]) -> None:
    """Values as the operator entered them; 0 is what was not entered."""
    step = (fields["SY"] * 10, fields["SX"] * 10)
    if all(math.isfinite(length) and length > 0 for length in step):
        add(header, "step_A", step, "SY, SX")
    if fields["Beam_energy"]:
        add(header, "voltage_kV", fields["Beam_energy"] / 1e3, "Beam_energy")
    if fields["Scan_rotation"]:
        add(header, "rotation_deg", fields["Scan_rotation"] / 100, "Scan_rotation", trusted=False)
    if fields["Camera_length"]:
        camera_length_m = fields["Camera_length"] * 1e-4
        add(header, "camera_length_m", camera_length_m, "Camera_length", trusted=False)
        if fields["SDP"]:
            # SDP is 100 times the pixels in a centimetre of the viewing screen.
            add(header, "pixel_mrad", 1e3 * math.atan(1 / fields["SDP"] / camera_length_m), "SDP, Camera_length", trusted=False)
    header.metadata["scan_shape"] = Quantity(header.scan_shape, "", f"{header.path.name}: NY, NX")
