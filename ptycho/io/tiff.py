"""TIFF stacks, also BigTIFF, ImageJ hyperstacks and OME-TIFF: one frame per page. Axes before the rows are the scan's."""

from __future__ import annotations

import logging
import math
import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.raw import set_scan_shape, shape_in_name, whole_frames
from ptycho.io.source import BinarySource, gather, stack_shape

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

#: (offset, bytes) of each strip or tile of one page.
Segments = tuple[tuple[int, int], ...]

_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)
_COMPRESSIONS = (_UNCOMPRESSED, 5, *_DEFLATE, 32773)  # 5: LZW, 32773: PackBits
#: None of these makes data smaller than by this factor.
_MAX_RATIO = 2000
#: Bytes of a value of each type of tag.
_TYPE_BYTES = np.zeros(1 << 16)
_TYPE_BYTES[1:19] = [1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8]
#: tifffile holds the values of tags in memory, in up to 20 times their bytes. Those of 16 384 frames as OME-TIFF have 3 MB.
_MAX_TAG_BYTES = 16 << 20
#: From so many pages on they must all be alike: tifffile compares each with all others when they are not.
_MANY_PAGES = 2000
#: Kinds of TIFF that hold no scans and follow numbers, or names of files, of their own.
_FOREIGN = "lsm mmstack ndtiff micromanager fluoview stk sis svs scn qpi ndpi bif avs eer philips scanimage nih mdgel"
#: What tifffile has to say of a damaged file becomes one DataError, not lines on the screen.
_SILENT = logging.NullHandler()


def open_tiff(path: Path, options: Options) -> FrameSource:
    """Frames of a TIFF stack; two axes before the rows are (slow, fast). Raises DataError for colour and for damaged files."""
    size = file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: a TIFF file has no datasets; remove ::{options.dataset[:60]}")
    import tifffile  # late: other formats do without it

    logging.getLogger("tifffile").addHandler(_SILENT)
    warnings: list[str] = []
    try:
        with open(path, "rb") as file:
            n_pages = _check_pages(path, file, size, warnings)
        flags: dict[str, Any] = {f"is_{kind}": False for kind in _FOREIGN.split() if kind in tifffile.TIFF.FILE_FLAGS}
        if n_pages > _MANY_PAGES:
            flags["is_uniform"] = True
        with tifffile.TiffFile(path, _multifile=False, **flags) as tiff:
            return _source(path, _choose(path, tiff, n_pages, warnings), size, warnings)
    except DataError:
        raise
    except Exception as error:  # tifffile meets damage with errors of any type
        raise unreadable(path, error, "not a TIFF file that can be read") from None


def _check_pages(path: Path, file: BinaryIO, size: int, warnings: list[str]) -> int:
    """Number of pages. Raises DataError before tifffile can run in circles or fill the memory with a damaged file's tags."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) == 16 else 0
    if version not in (42, 43):
        raise DataError(f"{path}: not a TIFF file; is it complete and of the right format?")
    number, place, value = ("Q", "Q", 8) if version == 43 else ("H", "I", 4)
    entry = np.dtype([("code", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u{value}"), ("value", f"V{value}")])
    (offset,) = struct.unpack_from(f"{order}{place}", head, value)
    seen: set[int] = set()
    n_pages = 0
    tag_bytes = list_bytes = 0.0
    while offset:
        file.seek(min(offset, size))
        start = file.read(struct.calcsize(number))
        n_tags = int.from_bytes(start, "little" if order == "<" else "big")
        tags = file.read(min(n_tags, 4097) * entry.itemsize + value)
        if offset in seen or n_tags > 4096 or list_bytes > size:
            raise DataError(f"{path}: its list of pages goes in circles or is damaged at page {len(seen)}; write the stack again")
        seen.add(offset)
        if len(tags) < n_tags * entry.itemsize + value or not n_tags:
            if not warnings:
                warnings.append(f"{path.name}: the list of pages ends after page {n_pages}; has the file been cut?")
            if len(tags) < value:
                break
            # It has ended, but tifffile takes the last bytes that are there as the place of the next page: that way may be a circle.
        elif not warnings:
            n_pages += 1
        entries = np.frombuffer(tags, entry, min(n_tags, len(tags) // entry.itemsize))
        taken = entries["count"] * _TYPE_BYTES[entries["type"]]
        tag_bytes, list_bytes = tag_bytes + taken.sum(), list_bytes + len(tags)
        if taken.max(initial=0) > _MAX_TAG_BYTES or tag_bytes > _MAX_TAG_BYTES + size / 4 or 330 in entries["code"]:
            raise DataError(f"{path}: page {len(seen) - 1} has tags that no stack has (an image pyramid, or damaged); write the stack again")
        (offset,) = struct.unpack(f"{order}{place}", tags[-value:])
    return n_pages


def _choose(path: Path, tiff: TiffFile, n_pages: int, warnings: list[str]) -> TiffPageSeries:
    """The largest series of equal pages."""
    if not tiff.series:
        raise DataError(f"{path}: there are no images in it; has it been cut?")
    series = max(tiff.series, key=lambda s: s.size)
    n_images = math.prod(series.shape[:-2])
    promised = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    if n_images < promised or (warnings and n_images < n_pages and len(tiff.series) == 1):
        raise DataError(f"{path}: only {n_images} of {max(promised, n_pages)} images can be found; it has been cut")
    if len(tiff.series) > 1:
        others = ", ".join(str(s.shape) for s in tiff.series if s is not series)
        warnings.append(f"{path.name}: the largest stack {str(series.shape)[:60]} is read; others are left out: {others[:80]}")
    return series


def _source(path: Path, series: TiffPageSeries, size: int, warnings: list[str]) -> FrameSource:
    axes, shape, dtype, page = series.axes, tuple(int(n) for n in series.shape), series.dtype, series.keyframe
    if dtype is None or "S" in axes or not axes.endswith("YX") or page.imagedepth != 1:
        raise DataError(f"{path}: axes {axes[:20]} of the shape {str(shape)[:60]}: one grey image per pattern is needed, no colour")
    _, n_frames, frame_shape = stack_shape((1, *shape)[-4:] if len(shape) < 4 else (math.prod(shape[:-2]), *shape[-2:]), dtype, str(path))
    header = Header(path, "tiff", n_frames, frame_shape, dtype.newbyteorder("="), warnings=warnings)
    stored = dtype.newbyteorder(page.parent.byteorder)
    found = _regular(series, header)
    source: FrameSource
    if found is not None:
        offset, stride = found
        header.n_frames = min(n_frames, whole_frames(size, offset, stride, header.frame_bytes))
        source = BinarySource(header, offset, stride, stored=stored)
    else:
        pages = _pages(path, series, header)
        header.n_frames = next((i for i, page in enumerate(pages) if not _inside(page, size)), n_frames)
        source = TiffSource(header, pages, page)
    if header.n_frames < n_frames:
        if not header.n_frames:
            raise DataError(f"{path}: its {n_frames} frames do not lie within its {size} bytes; has it been cut?")
        warnings.append(f"{path.name}: {header.n_frames} of {n_frames} frames are whole; the file has been cut")
    set_scan_shape(header, (shape[0], shape[1]) if len(shape) == 4 else None, f"{path.name}: axes {axes}")
    if header.scan_shape is None:
        set_scan_shape(header, shape_in_name(path), "file name")
    return source


def _regular(series: TiffPageSeries, header: Header) -> tuple[int, int] | None:
    """(offset, stride) when uncompressed frames lie at equal distances, else None."""
    if series.dataoffset is not None:
        return int(series.dataoffset), header.frame_bytes
    if not series.keyframe.is_final or len(series.pages) != header.n_frames or None in series.pages:
        return None
    starts = np.array([page.dataoffsets[0] for page in series.pages if page is not None and page.dataoffsets], np.int64)
    steps = np.unique(np.diff(starts))
    if len(starts) != header.n_frames or len(steps) > 1 or (len(steps) == 1 and steps[0] < header.frame_bytes):
        return None
    return int(starts[0]), int(steps[0]) if len(steps) else header.frame_bytes


def _pages(path: Path, series: TiffPageSeries, header: Header) -> list[Segments]:
    """Where the parts of each page are. Raises DataError for pages that cannot be unpacked, or that promise more than they can hold."""
    keyframe = series.keyframe
    if keyframe.compression not in _COMPRESSIONS:
        raise DataError(f"{path}: compression {str(keyframe.compression)[:40]!r} is not read; save the stack uncompressed or with deflate")
    if keyframe.bitspersample != 8 * header.dtype.itemsize:
        raise DataError(f"{path}: {str(keyframe.bitspersample)[:40]} bits per pixel are not read; save it with 8, 16 or 32 bits")
    if len(series.pages) != header.n_frames or None in series.pages:
        raise DataError(f"{path}: {len(series.pages)} pages for {header.n_frames} frames; one page per frame is needed")
    n_segments, largest = math.prod(keyframe.chunked), math.prod(keyframe.chunks) * header.dtype.itemsize
    pages: list[Segments] = []
    for i, page in enumerate(series.pages):
        assert page is not None
        parts = tuple(zip(page.dataoffsets, page.databytecounts, strict=True))
        packed = sum(count for _, count in parts)
        wrong = len(parts) != n_segments or max(count for _, count in parts) > 2 * largest + 4096
        if wrong or header.frame_bytes > packed * _MAX_RATIO or largest > 4 * header.frame_bytes + (1 << 24):
            raise DataError(f"{path}: page {i} of {packed} bytes in {len(parts)} parts cannot hold a frame; is it damaged?")
        pages.append(parts)
    return pages


def _inside(parts: Segments, size: int) -> bool:
    return all(count > 0 and 0 < offset <= size - count for offset, count in parts)


class TiffSource:
    """Frames that lie anywhere in a file, one or several compressed parts each. Implements FrameSource."""

    def __init__(self, header: Header, pages: list[Segments], keyframe: TiffPage) -> None:
        """``keyframe`` is the page of which tifffile has made the function that unpacks a part."""
        self.header = header
        self._pages = pages
        self._decode: Callable[..., Any] = keyframe.decode
        self._deflated = keyframe.compression in _DEFLATE
        self._largest = math.prod(keyframe.chunks) * header.dtype.itemsize

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx). Raises DataError when the file ends too early or a part cannot be unpacked."""
        header = self.header
        try:
            with FileIO(header.path) as file:
                return gather(frames, header.frame_shape, header.dtype, partial(self._read_run, file))
        except DataError:
            raise
        except Exception as error:  # decoders fail in many ways
            raise unreadable(header.path, error, "a frame cannot be unpacked") from None

    def _read_run(self, file: FileIO, first: int, out: NDArray[Any]) -> None:
        for frame, parts in zip(out, self._pages[first : first + len(out)], strict=True):
            for index, (offset, count) in enumerate(parts):
                file.seek(offset)
                self._unpack(file.read(count), index, frame)

    def _unpack(self, packed: bytes, index: int, frame: NDArray[Any]) -> None:
        """Put one strip or tile into its place in the frame."""
        if self._deflated and len(zlib.decompressobj().decompress(packed, self._largest + 1)) > self._largest:
            # Without a limit tifffile would unpack a few MB to many GB.
            raise ValueError("a part unpacks to more than it should")
        part, (_, _, y, x, _), (_, height, width, _) = self._decode(packed, index)
        frame[y : y + height, x : x + width] = part[0, : frame.shape[0] - y, : frame.shape[1] - x, 0]

    def close(self) -> None:
        """Nothing to release: the file is open only while it is read."""
