"""Files that must not be handed to a library that would run what is in them, or take more memory than they should."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptycho.errors import DataError
from ptycho.io.files import unreadable
from ptycho.io.source import MAX_IN_MEMORY
from ptycho.io.sparse import ERRORS

_ZARR_TEXTS = (".zarray", ".zmetadata", "zarr.json")
_MAX_TEXT_BYTES = 16 << 20
_MAX_TEXTS = 10_000


def refuse_unsafe(path: Path) -> bool:
    """True when the file may be read lazily, False when only at once. Raises DataError for a file that is not to be opened at all."""
    try:
        if path.suffix.lower() == ".prz":
            return _check_panta_rhei(path)
        if path.suffix.lower() == ".zspy":
            _check_zarr(path)
    except (*ERRORS, RecursionError) as error:
        raise unreadable(path, error) from None
    return True


def _check_panta_rhei(path: Path) -> bool:
    """An uncompressed array can be read lazily; a compressed one is unpacked at once, when it is not too large.

    Metadata of before Panta Rhei 24.03 are a pickle; rosettasciio leaves them alone unless it is told otherwise.
    """
    with zipfile.ZipFile(path) as archive:
        data = archive.getinfo("data.npy")
        with archive.open(data) as member:
            by_columns = b"'fortran_order': True" in member.read(256)  # rosettasciio reads it as rows when lazy
    if (by_columns or data.compress_type != zipfile.ZIP_STORED) and data.file_size > MAX_IN_MEMORY:
        raise DataError(f"{path}: it unpacks to {data.file_size / 1e9:.1f} GB; save it without compression, by rows, or as HDF5")
    return data.compress_type == zipfile.ZIP_STORED and not by_columns


def _check_zarr(path: Path) -> None:
    """Zarr can name any codec, and one of them unpickles. Links could lead to arrays that are not looked at here."""
    for name, text in _zarr_texts(path):
        if any("pickle" in word.lower() for word in _words(json.loads(text))):
            raise DataError(f"{path}: {name[-60:]} names a pickle codec, which can run programs; such a file is not opened")


def _zarr_texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, text) of all descriptions of arrays and groups in a Zarr folder or zip file."""
    found = 0
    if path.is_dir():
        for folder, folders, files in os.walk(path):
            for name in folders + files:
                if os.path.islink(os.path.join(folder, name)):
                    raise DataError(f"{path}: {name[:80]!r} in it is a link; copy what it leads to")
            for name in set(files).intersection(_ZARR_TEXTS):
                found += 1
                _limit(path, found, os.path.getsize(os.path.join(folder, name)))
                yield os.path.relpath(os.path.join(folder, name), path), Path(folder, name).read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.rsplit("/", 1)[-1] in _ZARR_TEXTS:
                found += 1
                _limit(path, found, info.file_size)
                yield info.filename, archive.read(info)


def _limit(path: Path, found: int, size: int) -> None:
    if found > _MAX_TEXTS or size > _MAX_TEXT_BYTES:
        raise DataError(f"{path}: the descriptions of its arrays are too many or too long; is it damaged?")


def _words(item: Any) -> Iterator[str]:
    """Every codec in a JSON text: the values of "id" (Zarr 2) and "name" (Zarr 3) at any depth, but for what users wrote (attributes)."""
    if isinstance(item, dict):
        for key, value in item.items():
            if key in ("id", "name") and isinstance(value, str):
                yield value
            if key != "attributes" and not key.endswith(".zattrs"):
                yield from _words(value)
    elif isinstance(item, list):
        for value in item:
            yield from _words(value)
