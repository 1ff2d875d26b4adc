"""The one table of formats: from suffix and first bytes to the reader."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from ptycho.errors import DataError, RecipeError
from ptycho.explain import suggestion
from ptycho.frames import FrameSource
from ptycho.io import blockfile, empad, empad_g2, event_files, extra, folder, hdf5_dialects, matlab, mib, mrc, nion, numpy_file, raw, seq, tiff
from ptycho.io.files import file_size, unreadable
from ptycho.io.guard import check_in_child
from ptycho.io.options import Options

Opener: TypeAlias = Callable[[Path, Options], FrameSource]

#: Format -> reader. A new format is one module and one line in each of these tables (HDF5 dialects: ``hdf5_dialects``).
FORMATS: Mapping[str, Opener] = {
    "empad": empad.open_empad_g1,
    "empad_g2": empad_g2.open_empad_g2,
    "empad_combined": empad_g2.open_empad_combined,
    "mib": mib.open_mib,
    "hdf5": hdf5_dialects.open_hdf5,
    "mat": matlab.open_mat,
    "npy": numpy_file.open_npy,
    "npz": numpy_file.open_npz,
    "events": event_files.open_event_npz,
    "tiff": tiff.open_tiff,
    "mrc": mrc.open_mrc,
    "nion": nion.open_ndata,
    "blo": blockfile.open_blockfile,
    "seq": seq.open_seq,
    "raw": raw.open_raw,
    "folder": folder.open_folder,
    "extra": extra.open_extra,
}
SUFFIXES = {
    ".raw": "empad", ".xml": "empad", ".json": "empad",
    ".mib": "mib", ".hdr": "mib",
    ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".he5": "hdf5", ".emd": "hdf5", ".nxs": "hdf5", ".cxi": "hdf5", ".hspy": "hdf5", ".nhdf": "hdf5",
    ".ptyd": "hdf5", ".ptyr": "hdf5",
    ".mat": "mat", ".npy": "npy", ".npz": "npz", ".tif": "tiff", ".tiff": "tiff", ".mrc": "mrc", ".mrcs": "mrc",
    ".ndata": "nion", ".ndata1": "nion", ".blo": "blo", ".seq": "seq",
    **dict.fromkeys(extra.SUFFIXES, "extra"),
}  # fmt: skip
_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "hdf5"), (b"\x93NUMPY", "npy"), (b"PK\x03\x04", "npz"), (b"MQ1,", "mib"), (b"MPX,", "mib"), (b"MATLAB 5.0", "mat"),
    (b"II*\x00", "tiff"), (b"MM\x00*", "tiff"), (b"II+\x00", "tiff"), (b"MM\x00+", "tiff"), (b"IMGBLO", "blo"), (b"\xed\xfe\0\0", "seq"),
)  # fmt: skip
_COMPRESSED = (b"BZh", b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
#: Read by a library that a damaged file can send into an endless loop: tried in a child process first.
_GUARDED = {"hdf5", "mat", "tiff", "extra"}


def open_source(path: str | os.PathLike[str], format: str | None = None, options: Options | None = None) -> FrameSource:
    """The frames of a file as stored, by ``format``, suffix or first bytes. Raises DataError when it cannot be opened.

    "file.h5::/entry/data" names a dataset in the file.
    """
    name, _, dataset = os.fspath(path).partition("::")
    file = Path(name).expanduser()
    if format is not None and format not in FORMATS:
        raise RecipeError(f"data.format = {format!r}: unknown{suggestion(format, list(FORMATS))}")
    options = replace(options or Options(), dataset=dataset or None)
    _check_name(file)
    kind = format or ("raw" if options.layout is not None and not file.is_dir() else guess_format(file))
    if kind in _GUARDED:
        check_in_child(file, kind, options)
    if options.calibration_file is not None:
        check_in_child(options.calibration_file, "calibration", Options())
    # Without a format, which of the EMPADs it is comes from the file itself.
    opener = empad.open_empad if kind == "empad" and format is None else FORMATS[kind]
    return opener(file, options)


def _check_name(path: Path) -> None:
    """Raise DataError for a name that no file can have."""
    try:
        path.exists()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def guess_format(path: Path) -> str:
    """The format by suffix and first bytes. Raises DataError when neither is known."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "extra" if suffix in extra.SUFFIXES else "folder"
    file_size(path)
    try:
        with open(path, "rb") as file:
            head = file.read(520)
    except OSError as error:
        raise unreadable(path, error) from None
    if head.startswith(_COMPRESSED) or suffix == ".zip":
        raise DataError(f"{path}: this file is compressed; unpack it first")
    found = SUFFIXES.get(suffix) or next((kind for magic, kind in _MAGIC if head.startswith(magic) or head[512:].startswith(magic)), None)
    if found is None and suffix in (".bin", ".dat"):
        return "raw"  # it asks for a layout
    if found is None:
        raise DataError(f"{path}: the format is not recognised; choose one with format = {' | '.join(FORMATS)}")
    if found == "npz" and event_files.is_event_npz(path):
        return "events"
    return "hdf5" if found == "extra" and head.startswith(_MAGIC[0][0]) else found
