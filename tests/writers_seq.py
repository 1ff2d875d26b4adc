"""StreamPix files, byte by byte."""

import struct
from pathlib import Path

import numpy as np


def write_seq(path: Path, patterns: np.ndarray, *, version: int = 5, gap: int = 24, promised: int | None = None) -> Path:
    """Patterns (slow, fast, ky, kx) of unsigned integers, each with ``gap`` bytes behind it."""
    height, width = patterns.shape[-2:]
    frames = patterns.reshape(-1, height, width)
    image_bytes, bits = frames[0].nbytes, 8 * frames.itemsize
    head = bytearray(8192 if version >= 5 else 1024)
    struct.pack_into("<I", head, 0, 0xFEED)
    head[4:28] = "Norpix seq\n".encode("utf-16-le").ljust(24, b"\0")
    struct.pack_into("<ii", head, 28, version, 1024)
    number = len(frames) if promised is None else promised
    struct.pack_into("<9I", head, 548, width, height, bits, bits, image_bytes, 100, number, 0, image_bytes + gap)
    path.write_bytes(bytes(head) + b"".join(frame.astype(frame.dtype.newbyteorder("<")).tobytes() + b"\xab" * gap for frame in frames))
    return path
