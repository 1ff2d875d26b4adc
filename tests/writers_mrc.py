"""Writes MRC files for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

MODES = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}


def write_mrc(path: Path, patterns, dtype="uint16", order="<", extended=b"", kind=b"\0" * 4, volumes=False) -> Path:
    """Patterns (slow, fast, ky, kx) as sections; with ``volumes`` as slow volumes of fast sections each."""
    slow, fast, ny, nx = np.shape(patterns)
    head = bytearray(1024)
    struct.pack_into(f"{order}4i", head, 0, nx, ny, slow * fast, MODES[dtype])
    struct.pack_into(f"{order}3i", head, 28, nx, ny, fast if volumes else slow * fast)
    struct.pack_into(f"{order}3f", head, 40, nx, ny, 1)
    struct.pack_into(f"{order}3i", head, 64, 1, 2, 3)
    struct.pack_into(f"{order}2i", head, 88, 401 if volumes else 0, len(extended))
    head[104:108] = kind
    head[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    path.write_bytes(bytes(head) + extended + np.asarray(patterns).astype(np.dtype(dtype).newbyteorder(order)).tobytes())
    return path
