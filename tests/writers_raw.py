"""Writes raw files and folders of files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_raw(path: Path, patterns, dtype="<u2", offset=0, before=0, after=0, column_major=False) -> Path:
    """Patterns (slow, fast, ky, kx) with ``offset`` bytes before the first and gaps of 0xAB around each."""
    frames = np.asarray(patterns).reshape(-1, *np.shape(patterns)[-2:]).astype(dtype)
    pixels = [(frame.T if column_major else frame).tobytes() for frame in frames]
    path.write_bytes(b"\xab" * offset + b"".join(b"\xab" * before + frame + b"\xab" * after for frame in pixels))
    return path


def write_folder(path: Path, patterns, suffix=".npy", name="p_{}") -> Path:
    """One file per pattern of (slow, fast, ky, kx), counted from 1 without leading zeros."""
    import tifffile

    path.mkdir()
    for i, frame in enumerate(np.asarray(patterns).reshape(-1, *np.shape(patterns)[-2:]), 1):
        file = path / (name.format(i) + suffix)
        if suffix == ".npy":
            np.save(file, frame)
        elif suffix in (".tif", ".tiff"):
            tifffile.imwrite(file, frame, photometric="minisblack")
        else:
            frame.tofile(file)
    return path
