"""Quantum Detectors Merlin (Medipix3): ``.mib``, with its ``.hdr``, in one file or in numbered ones that continue each other.

Each frame is a text header and an image: big-endian counts, or RAW (``mib_raw``). Streams that were recorded have ``MPX,<10 digits>,``
before each frame. Rows are stored from the bottom of the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io.files import file_size, natural_order, unreadable
from ptycho.io.mib_header import (
    MAX_HEADER_BYTES,
    FrameHeader,
    gap,
    image_bytes,
    image_type,
    parse_frame_header,
    parse_hdr,
    raw_depth,
    read_hdr,
    saturation,
)
from ptycho.io.mib_raw import CHIP, assemble_quad, unpack
from ptycho.io.mib_scan import WRAP, guess_scan, lost_before, scan_from_hdr, scan_from_times
from ptycho.io.options import Options
from ptycho.io.source import gather, read_strided

_TIMED_FRAMES = 4096


@dataclass(frozen=True)
class _Part:
    """One file: its first frame's header is at ``start`` + ``prefix``; ``image_bytes`` of each frame are pixels."""

    path: Path
    start: int
    prefix: int
    frame: FrameHeader
    image_bytes: int
    n_frames: int
    rest_bytes: int
    last_sequence: int
    stream_hdr: dict[str, str] | None

    @property
    def stride(self) -> int:
        return self.prefix + self.frame.header_bytes + self.image_bytes

    @property
    def image_start(self) -> int:
        return self.start + self.prefix + self.frame.header_bytes


class MibSource:
    """Frames of the files of one acquisition. Implements FrameSource."""

    def __init__(self, header: Header, parts: list[_Part], depth: int | None) -> None:
        """``depth`` is the counter's bits when the frames are RAW."""
        self.header = header
        self._parts = parts
        self._depth = depth
        self._ends = np.cumsum([part.n_frames for part in parts])

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored, RAW ones unpacked. Raises DataError with the byte where a file ends too early."""
        header = self.header
        frames = np.asarray(frames, np.int64)
        if frames.size and (frames.min() < 0 or frames.max() >= header.n_frames):
            raise DataError(f"{header.path}: frames {frames.min()} to {frames.max()} are asked for; there are {header.n_frames}")
        try:
            with ExitStack() as stack:
                files: dict[int, FileIO] = {}
                return gather(frames, header.frame_shape, header.dtype, partial(self._read_run, stack, files))
        except (OSError, ValueError) as error:
            raise unreadable(header.path, error) from None

    def _read_run(self, stack: ExitStack, files: dict[int, FileIO], first: int, out: NDArray[Any]) -> None:
        """Consecutive frames, from as many files as they lie in."""
        done = 0
        while done < len(out):
            index = int(np.searchsorted(self._ends, first + done, side="right"))
            part = self._parts[index]
            if index not in files:
                files[index] = stack.enter_context(FileIO(part.path))
            in_part = first + done - (int(self._ends[index]) - part.n_frames)
            number = min(len(out) - done, part.n_frames - in_part)
            self._read_part(files[index], part, in_part, out[done : done + number])
            done += number

    def _read_part(self, file: FileIO, part: _Part, first: int, out: NDArray[Any]) -> None:
        places = (part.image_start, part.stride, part.image_bytes)
        if self._depth is None:
            read_strided(file, part.path, places, first, out)
            return
        packed = np.empty((len(out), part.image_bytes), np.uint8)
        read_strided(file, part.path, places, first, packed)
        image = unpack(packed, self._depth, part.frame.ny, CHIP * part.frame.chips)
        out[:] = image if part.frame.chips == 1 else assemble_quad(image)

    def close(self) -> None:
        """Nothing to release: files are open only while they are read."""


def open_mib(path: Path, options: Options) -> FrameSource:
    """Frames of a ``.mib``, or of the ``.mib`` that belongs to a ``.hdr``. Raises DataError for anything that is not one."""
    if options.dataset is not None:
        raise DataError(f"{path}: a Merlin file has no datasets; remove ::{options.dataset}")
    warnings: list[str] = []
    hdr_path = path if path.suffix.lower() == ".hdr" else _hdr_beside(path, path.stem)
    hdr = _read_hdr(hdr_path, path, warnings)
    opened = _open_part(_mib_of(path) if path == hdr_path else path, hdr)
    parts = _series(opened, hdr)
    if hdr is None and len(parts) > 1:
        first = parts[0].path
        hdr_path = _hdr_beside(first, first.stem) or _hdr_beside(first, re.sub(r"[-_]?[0-9]+$", "", first.stem))
        hdr = _read_hdr(hdr_path, path, warnings)
    if hdr is None and parts[0].stream_hdr:
        hdr, hdr_path = parts[0].stream_hdr, parts[0].path
    warnings += [f"{p.path.name}: {p.rest_bytes} bytes after the last whole frame are left out; it may have been cut" for p in parts if p.rest_bytes]

    frame = opened.frame
    depth = raw_depth(opened.path, frame, hdr) if frame.pixel == "R64" else None
    header = Header(opened.path, "mib", sum(p.n_frames for p in parts), *image_type(frame, depth), warnings=warnings)
    header.acquired = _acquired(parts, warnings)
    header.bad_pixels = gap(header.frame_shape, frame, hdr)
    header.saturation = saturation(frame, hdr)
    if frame.exposure_ms is not None:
        header.metadata["exposure_ms"] = Quantity(frame.exposure_ms, "ms", f"{opened.path.name}: exposure in the first frame's header")
    name = hdr_path.name if hdr_path is not None else ""
    if not scan_from_hdr(header, hdr or {}, name) and not (header.acquired is None and scan_from_times(header, *_timing(parts[0]))):
        guess_scan(header)
    return MibSource(header, parts, depth)


# The files


def _hdr_beside(path: Path, stem: str) -> Path | None:
    return next((found for found in (path.with_name(stem + suffix) for suffix in (".hdr", ".HDR")) if found.is_file()), None)


def _read_hdr(hdr_path: Path | None, path: Path, warnings: list[str]) -> dict[str, str] | None:
    """Values of a ``.hdr``. One that was not asked for and cannot be read is left out with a warning."""
    if hdr_path is None:
        return None
    try:
        return read_hdr(hdr_path)
    except DataError as error:
        if hdr_path == path:
            raise
        warnings.append(str(error))
        return None


def _mib_of(hdr: Path) -> Path:
    """The .mib of a .hdr: of the same stem, else the first of the numbered ones that have no .hdr of their own."""
    same = [hdr.with_name(hdr.stem + suffix) for suffix in (".mib", ".MIB")]
    numbered = re.compile(re.escape(hdr.stem) + r"[-_]?[0-9]+\.mib", re.IGNORECASE)
    try:
        others = sorted((p for p in hdr.parent.iterdir() if numbered.fullmatch(p.name) and not _hdr_beside(p, p.stem)), key=natural_order)
    except OSError as error:
        raise unreadable(hdr, error) from None
    found = next((mib for mib in same + others if mib.is_file()), None)
    if found is None:
        raise DataError(f"{hdr}: there is no {hdr.stem}.mib beside it; put the two together")
    return found


def _open_part(path: Path, hdr: dict[str, str] | None) -> _Part:
    """Where the frames of a file are. Its first and last frame header are read."""
    size = file_size(path)
    try:
        with FileIO(path) as file:
            head = _read_at(file, 0, 2 * MAX_HEADER_BYTES)
            at = 0 if head.startswith(b"MQ1,") or not head.startswith(b"MPX,") else head.find(b"MQ1,")
            prefix = 15 if at and re.fullmatch(rb"MPX,[0-9]{10},", head[max(at - 15, 0) : at]) else 0
            if at < 0 or (at and not prefix):
                raise ValueError("the stream that begins with MPX has no frame header MQ1,... after it")
            length = parse_frame_header(head[at : at + MAX_HEADER_BYTES]).header_bytes
            frame = parse_frame_header(head[at : at + length])
            n_bytes = image_bytes(path, frame, hdr)
            n_frames, rest = divmod(size - (at - prefix), prefix + frame.header_bytes + n_bytes)
            if not n_frames:
                raise DataError(f"{path}: {size} bytes are less than one frame of {frame.header_bytes} + {n_bytes} bytes; has it been cut?")
            stream_hdr = parse_hdr(head[: at - prefix]) if b"HDR," in head[: at - prefix] else None
            part = _Part(path, at - prefix, prefix, frame, n_bytes, n_frames, rest, frame.sequence, stream_hdr)
            return replace(part, last_sequence=_sequence(file, part, n_frames - 1))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "not a Merlin file") from None


def _read_at(file: FileIO, offset: int, n_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(n_bytes) or b""


def _sequence(file: FileIO, part: _Part, index: int) -> int:
    """Sequence number of a frame. Raises ValueError when no frame header is where it must be."""
    found = re.match(rb"MQ1,([0-9]{1,9}),", _read_at(file, part.start + index * part.stride + part.prefix, 16))
    if not found:
        raise ValueError(f"frame {index} of {part.n_frames} does not begin with the header MQ1,...")
    return int(found[1])


def _series(opened: _Part, hdr: dict[str, str] | None) -> list[_Part]:
    """The file and those before and after it whose frames' numbers continue."""
    earlier = list(_neighbours(opened, -1, hdr))
    return earlier[::-1] + [opened] + list(_neighbours(opened, 1, hdr))


def _neighbours(part: _Part, direction: int, hdr: dict[str, str] | None) -> Iterator[_Part]:
    name = re.fullmatch(r"(.*?)([0-9]{1,9})", part.path.stem, re.DOTALL)
    number = int(name[2]) if name else 0
    while name:
        number += direction
        names = [f"{name[1]}{text}{part.path.suffix}" for text in (str(number).zfill(len(name[2])), str(number))] if number >= 0 else []
        path = next((p for p in (part.path.with_name(text) for text in names) if p.is_file()), None)
        if path is None:
            return
        try:
            if path.stat().st_size == 0:
                continue  # the software may begin a file and write nothing to it
            other = _open_part(path, hdr)
        except (OSError, DataError):
            return
        first, last = (part, other) if direction > 0 else (other, part)
        if not first.frame.same_kind(last.frame) or (last.frame.sequence - first.last_sequence - 1) % WRAP:
            return
        part = other
        yield other


def _acquired(parts: list[_Part], warnings: list[str]) -> NDArray[np.int64] | None:
    """Number of each frame in the acquisition, from 0; None when none is missing. The parts follow each other without a gap."""
    lost: list[NDArray[np.int64]] = []
    for part in parts:
        found = None
        if (part.last_sequence - part.frame.sequence - part.n_frames + 1) % WRAP:
            try:
                with FileIO(part.path) as file:
                    found = lost_before(partial(_sequence, file, part), part.n_frames)
            except (OSError, ValueError) as error:
                warnings.append(f"{part.path.name}: {error}; frames are taken in the order of the file")
                return None
        lost.append(np.zeros(part.n_frames, np.int64) if found is None else found)
    missing = np.concatenate(lost)
    if not missing.any():
        return None
    first = int(np.flatnonzero(missing)[0])
    warnings.append(f"{parts[0].path.name}: {missing.sum()} frames of the acquisition are missing, the first before frame {first}")
    return np.arange(len(missing)) + np.cumsum(missing)


def _timing(part: _Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(times in s, exposures in ms) of the first frames; empty when their headers do not say."""
    read: list[tuple[float, float]] = []
    try:
        with FileIO(part.path) as file:
            for index in range(min(part.n_frames, _TIMED_FRAMES)):
                head = _read_at(file, part.start + index * part.stride + part.prefix, part.frame.header_bytes)
                frame = parse_frame_header(head)
                if frame.time_s is None or frame.exposure_ms is None:
                    return np.empty(0), np.empty(0)
                read.append((frame.time_s, frame.exposure_ms))
    except (OSError, ValueError):
        return np.empty(0), np.empty(0)
    times, exposures = np.array(read).T
    return times, exposures
