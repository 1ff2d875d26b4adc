"""Writers of MATLAB files for tests: version 5 by scipy, and 7.3 as MATLAB writes it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import scipy.io

_CLASSES = {"f8": "double", "f4": "single", "u1": "uint8", "u2": "uint16", "i2": "int16", "u4": "uint32", "i4": "int32"}


def write_mat(path: Path, patterns, name: str = "cbed", compress: bool = False) -> Path:
    """Patterns (slow, fast, ky, kx), (n, ky, kx) or (ky, kx) as a variable of version 5 in MATLAB's order of axes."""
    scipy.io.savemat(path, {name: _matlab_order(patterns), "voltage": 300.0, "note": "text"}, do_compression=compress)
    return path


def write_mat73(path: Path, patterns, name: str = "cbed") -> Path:
    """Patterns as a variable of version 7.3: HDF5 with its axes reversed behind 512 bytes of MATLAB's own."""
    stored = _matlab_order(patterns).T
    with h5py.File(path, "w", userblock_size=512) as file:
        data = file.create_dataset(name, data=stored, chunks=True, compression="gzip")
        data.attrs["MATLAB_class"] = np.bytes_(_CLASSES[stored.dtype.str[1:]])
        note = file.create_dataset("note", data=np.frombuffer("text".encode("utf-16-le"), "u2")[:, None])
        note.attrs["MATLAB_class"] = np.bytes_("char")
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"
    with open(path, "r+b") as file:
        file.write(head)
    return path


def _matlab_order(patterns) -> np.ndarray:
    patterns = np.asarray(patterns)
    return np.moveaxis(patterns, (-2, -1), (0, 1))
