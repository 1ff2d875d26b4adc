"""Compressed chunks of HDF5, looked at before they are unpacked: the LZ4 filters believe the lengths in a damaged chunk, and crash."""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho.errors import DataError

if TYPE_CHECKING:
    import h5py

_LZ4, _BITSHUFFLE = 32004, 32008


class ChunkCheck:
    """Checks the lengths in LZ4 and bitshuffle chunks of one dataset; other filters check themselves."""

    def __init__(self, path: Path, data: h5py.Dataset) -> None:
        """Raises DataError for filters that cannot be checked. ``data`` stays in use."""
        self._path, self._id, self._name = path, data.id, f"{data.name[-40:]!r}"
        settings = data.id.get_create_plist()
        filters = [settings.get_filter(i) for i in range(settings.get_nfilters())]
        self._needed = any(code in (_LZ4, _BITSHUFFLE) for code, *_ in filters)
        if not self._needed:
            return
        code, _, values, _ = filters[-1]
        if any(other in (_LZ4, _BITSHUFFLE) for other, *_ in filters[:-1]):
            raise DataError(f"{path}: {self._name} is packed twice, which is not supported; write it again with gzip or bitshuffle")
        if code == _BITSHUFFLE and (len(values) < 3 or values[2] != data.dtype.itemsize):
            raise DataError(f"{path}: {self._name} has a damaged bitshuffle filter; is the file complete?")
        self._item = data.dtype.itemsize if code == _BITSHUFFLE else 0
        self._plain = code == _BITSHUFFLE and (len(values) < 5 or values[4] == 0)
        self._last_filter = len(filters) - 1
        self._unpacked = math.prod(data.chunks) * data.dtype.itemsize
        self._per_chunk = int(data.chunks[0])
        self._starts = [range(0, size, chunk) for size, chunk in zip(data.shape[1:], data.chunks[1:], strict=True)]

    def check(self, first: int, number: int) -> None:
        """The chunks of ``number`` frames from ``first`` along the first axis. Raises DataError when one of them is damaged."""
        if not self._needed:
            return
        begin = first // self._per_chunk * self._per_chunk
        for place in itertools.product(range(begin, first + number, self._per_chunk), *self._starts):
            info = self._id.get_chunk_info_by_coord(place)
            # A chunk that was never written is filled by HDF5.
            if info.size and info.byte_offset is not None and not (info.size <= 2 * self._unpacked + 65536 and self._is_sound(place)):
                raise DataError(f"{self._path}: the compressed data of frame {place[0]} of {self._name} are damaged; is the file complete?")

    def _is_sound(self, place: tuple[int, ...]) -> bool:
        mask, packed = self._id.read_direct_chunk(place)
        if self._plain or mask >> self._last_filter & 1:
            return len(packed) == self._unpacked
        return _lengths_fit(packed, self._unpacked, self._item)


def _lengths_fit(packed: bytes, unpacked: int, item: int) -> bool:
    """Do the lengths in a chunk of LZ4 blocks add up? ``item`` is the size of bitshuffle's elements in bytes, 0 for LZ4 alone.

    A chunk begins with the number of unpacked bytes (8) and of those in each block (4), both big-endian; every block with its packed length (4).
    """
    if len(packed) < 12:
        return False
    total, block = struct.unpack_from(">QI", packed)
    if total != unpacked or not block or (item and block % (8 * item)):
        return False
    rest = total % block
    tail = rest % (8 * item) if item else 0  # bitshuffle works on groups of 8 elements and stores what is left over as it is
    at = 12
    for _ in range(total // block + (rest > tail)):
        if at + 4 > len(packed):
            return False
        at += 4 + int.from_bytes(packed[at : at + 4], "big")
    return at + tail <= len(packed)
