"""RAW frames of a Merlin: unpacking of the counters' bits, and the four chips of a quad put together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Counter depth -> type of an unpacked frame.
RAW_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 6: np.dtype(np.uint8), 12: np.dtype(np.uint16), 24: np.dtype(np.uint32)}
CHIP = 256  # pixels of a Medipix3 chip along each side


def raw_bytes(depth: int, rows: int, width: int) -> int:
    """Bytes of a RAW frame of ``rows`` x ``width`` pixels, ``depth`` bits each."""
    return rows * width // 8 if depth == 1 else rows * width * RAW_DTYPES[depth].itemsize


def unpack(packed: NDArray[np.uint8], depth: int, rows: int, width: int) -> NDArray[Any]:
    """Counts (n, rows, width) of RAW frames (n, ``raw_bytes``).

    A word of 64 bits holds consecutive pixels of a row, the first in its lowest bits, and is stored with its highest byte first. 24 bits
    are two planes of 12, the upper one first.
    """
    n = len(packed)
    if depth == 24:
        upper, lower = (unpack(half, 12, rows, width) for half in np.split(packed, 2, axis=1))
        return upper.astype(np.uint32) << 12 | lower
    if depth == 1:
        words = np.unpackbits(packed.reshape(n, -1, 8)[..., ::-1], axis=-1, bitorder="little")
    elif depth == 6:
        words = packed.reshape(n, -1, 8)[..., ::-1]
    else:
        words = np.ascontiguousarray(packed).view(">u2").reshape(n, -1, 4)[..., ::-1].astype(np.uint16)
    return words.reshape(n, rows, width)


def assemble_quad(side_by_side: NDArray[Any]) -> NDArray[Any]:
    """Images (n, 2 rows, 512) of RAW frames (n, rows, 1024), in which the four chips stand side by side.

    The last two are the upper half; the first two, turned by 180 degrees, the lower one.
    """
    n, rows, _ = side_by_side.shape
    chips = side_by_side.reshape(n, rows, 4, CHIP)
    image = np.empty((n, 2, rows, 2, CHIP), side_by_side.dtype)
    image[:, 0, :, 0], image[:, 0, :, 1] = chips[:, :, 3], chips[:, :, 2]
    image[:, 1, :, 0], image[:, 1, :, 1] = chips[:, ::-1, 1, ::-1], chips[:, ::-1, 0, ::-1]
    return image.reshape(n, 2 * rows, 2 * CHIP)
