"""Text of a Merlin file: the header before each frame, and the ``.hdr`` beside the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.io.files import file_size, unreadable
from ptycho.io.mib_raw import CHIP, RAW_DTYPES, raw_bytes

MAX_HEADER_BYTES = 16384
_MAX_SIDE = 65536
_DTYPES = {"U08": ">u1", "U16": ">u2", "U32": ">u4", "U64": ">u8"}


@dataclass(frozen=True)
class FrameHeader:
    """What the header of one frame says.

    ``nx`` and ``ny`` are as written: in RAW frames the chips stand side by side, twice as wide for 24 bits. ``pixel`` is U08, U16, U32,
    U64 or R64 (RAW), ``layout`` that of the chips (1x1, 2x2, 2x2G), ``chip_mask`` which of them are on, ``depth`` the counter's bits.
    """

    sequence: int
    header_bytes: int
    chips: int
    nx: int
    ny: int
    pixel: str
    layout: str
    chip_mask: str
    depth: int | None
    exposure_ms: float | None
    time_s: float | None

    def same_kind(self, other: FrameHeader) -> bool:
        """Whether frames of the two can belong to one acquisition."""
        mine, others = ((h.header_bytes, h.chips, h.nx, h.ny, h.pixel, h.layout, h.depth) for h in (self, other))
        return mine == others


def parse_frame_header(head: bytes) -> FrameHeader:
    """The header at the start of ``head``. Raises ValueError, with what is wrong, for anything else."""
    fields = [field.strip() for field in head.split(b"\0")[0].decode("latin-1").split(",")]
    if fields[0] != "MQ1" or len(fields) < 7:
        raise ValueError("a frame does not begin with the header MQ1,...")
    fields += [""] * (10 - len(fields))  # early software and converters end with the type of the pixels
    sequence, header_bytes, chips, nx, ny = (_whole(field) for field in fields[1:6])
    if not 40 <= header_bytes <= MAX_HEADER_BYTES or not 1 <= nx <= _MAX_SIDE or not 1 <= ny <= _MAX_SIDE:
        raise ValueError(f"the frame header promises {header_bytes} bytes of header and {nx} x {ny} pixels")
    # What stands before MQ1A varies with the chips and the software, what follows it does not.
    tail = fields[fields.index("MQ1A") + 1 :] if "MQ1A" in fields else []
    exposure_ms, depth = None, None
    if len(tail) > 1 and re.fullmatch(r"\d{1,18} ?ns", tail[1]):
        exposure_ms = int(tail[1][:-2]) * 1e-6
    elif len(fields) > 10 and re.fullmatch(r"\d{1,9}(\.\d{0,18})?", fields[10]):
        exposure_ms = float(fields[10]) * 1e3
    if len(tail) > 2 and re.fullmatch(r"\d{1,2}", tail[2]):
        depth = int(tail[2])
    return FrameHeader(
        sequence, header_bytes, chips, nx, ny, fields[6], fields[7], fields[8].upper(), depth, exposure_ms or None, _time_s(tail, fields[9])
    )  # fmt: skip


def _whole(field: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", field):
        raise ValueError(f"the frame header has {field[:20]!r} in the place of a number")
    return int(field)


def _time_s(tail: list[str], local: str) -> float | None:
    """Seconds of the day, from the time in nanoseconds if it is there."""
    for text in (*tail[:1], local):
        found = re.search(r"[T ]([0-9]{2}):([0-9]{2}):([0-9]{2}(?:\.[0-9]{1,12})?)", text)
        if found:
            return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    return None


def read_hdr(path: Path) -> dict[str, str]:
    """Values of a ``.hdr`` by key, in lower case and without its remark in parentheses: {"scanx": "256"}. Raises DataError."""
    file_size(path)
    try:
        with open(path, "rb") as file:
            text = file.read(65536)
    except OSError as error:
        raise unreadable(path, error) from None
    if not text.startswith(b"HDR"):
        raise DataError(f"{path}: this is not the header of a Merlin, which begins with HDR; open the .mib itself")
    return parse_hdr(text)


def parse_hdr(text: bytes) -> dict[str, str]:
    """Values of the text of a ``.hdr``, which may also stand at the start of a recorded stream."""
    pairs = (line.partition(":") for line in text.decode("latin-1").splitlines()[:200])
    return {re.sub(r"\(.*", "", key).strip().lower(): value.strip() for key, colon, value in pairs if colon}


def hdr_whole(hdr: dict[str, str] | None, key: str) -> int | None:
    """A whole number of 1 and more; None when it is not there or unset."""
    found = re.fullmatch(r"[0-9]{1,9}", (hdr or {}).get(key, ""))
    return (int(found[0]) or None) if found else None


# What follows for the image


def raw_depth(path: Path, frame: FrameHeader, hdr: dict[str, str] | None) -> int:
    """Counter bits of RAW frames. Raises DataError for chips that cannot be put together."""
    depth = frame.depth or hdr_whole(hdr, "counter depth")
    if depth not in RAW_DTYPES:
        raise DataError(f"{path}: RAW frames with a counter depth of {depth or 'unknown'} bits; 1, 6, 12 and 24 are known")
    layout = frame.layout.removesuffix("G")
    known = (layout, frame.chips) == ("1x1", 1) or (layout, frame.chips, frame.chip_mask) == ("2x2", 4, "0F")
    if not known or frame.nx != CHIP * frame.chips * (2 if depth == 24 else 1) or frame.ny > CHIP:
        raise DataError(
            f"{path}: RAW frames of {frame.nx} x {frame.ny} pixels of {frame.chips} chips, layout {frame.layout[:8]!r}, "
            f"mask {frame.chip_mask[:8]!r}: only 1x1 and complete 2x2 are known; save processed frames"
        )
    return depth


def image_bytes(path: Path, frame: FrameHeader, hdr: dict[str, str] | None) -> int:
    """Bytes of a frame's pixels. Raises ValueError for an unknown type, DataError as ``raw_depth`` does."""
    if frame.pixel == "R64":
        return raw_bytes(raw_depth(path, frame, hdr), frame.ny, CHIP * frame.chips)
    if frame.pixel not in _DTYPES:
        raise ValueError(f"pixels of the type {frame.pixel[:8]!r}; known are {', '.join(_DTYPES)} and R64")
    return frame.nx * frame.ny * np.dtype(_DTYPES[frame.pixel]).itemsize


def image_type(frame: FrameHeader, depth: int | None) -> tuple[tuple[int, int], np.dtype[Any]]:
    """(ky, kx) and type of the frames that are read."""
    if depth is None:
        return (frame.ny, frame.nx), np.dtype(_DTYPES[frame.pixel])
    return (frame.ny, CHIP) if frame.chips == 1 else (2 * frame.ny, 2 * CHIP), RAW_DTYPES[depth]


def gap(shape: tuple[int, int], frame: FrameHeader, hdr: dict[str, str] | None) -> NDArray[np.bool_] | None:
    """True for the pixels between the chips of a quad that the software filled with zeros."""
    ky, kx = shape
    if "zero" not in (hdr or {}).get("gap fill mode", "").lower() or not frame.layout.startswith("2x2") or not 1 <= kx - 2 * CHIP <= 16:
        return None
    bad = np.zeros(shape, np.bool_)
    bad[:, CHIP : kx - CHIP] = True
    if ky == kx:  # with fewer rows it is not known where the gap is
        bad[CHIP : ky - CHIP] = True
    return bad


def saturation(frame: FrameHeader, hdr: dict[str, str] | None) -> float | None:
    """The largest count of a counter that is not full. Corrected counts may be larger; one bit is no count."""
    corrected = frame.pixel != "R64" and (hdr or {}).get("flat field file", "None").lower() != "none"
    return None if corrected or frame.depth not in (6, 12, 24) else 2.0**frame.depth - 2
