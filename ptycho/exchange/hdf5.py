"""HDF5 of other programs: a tree of plain values as a file in memory, and parts of a file, each looked at before it is read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.io import hdf5

#: A dataset that unpacks to more than this many times its bytes in the file is refused.
_MOST_RATIO = 1000


def tree_bytes(tree: Mapping[str, Any]) -> bytes:
    """An HDF5 file whose groups are the mappings and whose datasets the values of ``tree``, texts of variable length as other programs have them.

    A key "@name" is an attribute, a :class:`Data` an array with attributes of its own.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        _fill(file, tree)
    return content.getvalue()


def _fill(group: h5py.Group, tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _fill(group.create_group(name), value)
        elif name.startswith("@"):
            group.attrs[name[1:]] = value
        elif isinstance(value, Data):
            _fill_data(group, name, value)
        elif isinstance(value, h5py.SoftLink):
            group[name] = value
        else:
            group.create_dataset(name, data=value)


class Data:
    """An array with attributes; one of images is stored image by image, packed by gzip."""

    def __init__(self, values: Any, **attributes: Any) -> None:
        self.values, self.attributes = np.asarray(values), attributes


def _fill_data(group: h5py.Group, name: str, data: Data) -> None:
    images = data.values.ndim > 2 and data.values.size > 0
    chunks = (1,) * (data.values.ndim - 2) + data.values.shape[-2:] if images else None
    made = group.create_dataset(name, data=data.values, chunks=chunks, compression="gzip" if images else None, shuffle=images or None)
    made.attrs.update(data.attributes)


class Opened:
    """A file that is open for reading; what is asked for and not there is a DataError of one line."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, hdf5.open_file(path)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def has(self, name: str) -> bool:
        """Whether there is such a group or dataset in this very file."""
        return hdf5.find(self.file, name) is not None

    def array(self, name: str, ndim: tuple[int, ...] | None = None, kinds: str = "biufc") -> NDArray[Any]:
        """All of a dataset; MATLAB's pairs (real, imag) are complex numbers. Raises DataError."""
        data = self.file[hdf5.resolve(self.path, self.file, name)]
        hdf5.check(self.path, data)
        n_bytes, stored = data.size * data.dtype.itemsize, data.id.get_storage_size()
        if n_bytes > max(stored, 1) * _MOST_RATIO:
            raise DataError(f"{self.path}: {name} of the shape {data.shape} has {stored} bytes in the file, too few for what it is; is it damaged?")
        try:
            values = np.asarray(data[()])
        except (*hdf5.ERRORS, MemoryError) as error:
            raise DataError(f"{self.path}: {name} cannot be read ({str(error)[:80]})") from None
        if values.dtype.names == ("real", "imag"):
            values = values["real"] + 1j * values["imag"]
        if values.dtype.kind not in kinds or (ndim is not None and values.ndim not in ndim):
            axes = "" if ndim is None else f" with {' or '.join(map(str, ndim))} axes"
            raise DataError(f"{self.path}: {name} has the shape {values.shape} of {values.dtype}; numbers{axes} are needed")
        return values

    def number(self, name: str) -> float | None:
        """A finite number; None where there is none."""
        return hdf5.number(hdf5.find(self.file, name))

    def text(self, name: str) -> str | None:
        """A text; None where there is none."""
        return hdf5.text(hdf5.find(self.file, name))

    def needed(self, name: str) -> float:
        """A number that has to be there. Raises DataError."""
        value = self.number(name)
        if value is None:
            raise DataError(f"{self.path}: there is no number {name}; is the file complete?")
        return value

    def values(self, group: str) -> dict[str, Any]:
        """A group as a tree of plain values, small ones only: what parameters are."""
        found = hdf5.find(self.file, group)
        return _plain(found) if isinstance(found, h5py.Group) else {}


def _plain(group: h5py.Group, depth: int = 0) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in list(group)[:1000]:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            tree[name] = _plain(item, depth + 1) if depth < 8 else {}
        elif isinstance(item, h5py.Dataset) and item.size <= 10_000 and not item.external and not item.is_virtual:
            tree[name] = _value(item[()])
    return tree


def _value(stored: Any) -> Any:
    """Python's own numbers, texts and lists; a text "__NONE__" is None."""
    if isinstance(stored, bytes):
        stored = stored.decode("utf-8", "replace")
    if isinstance(stored, str):
        return None if stored == "__NONE__" else stored
    if isinstance(stored, (np.ndarray, np.generic)):
        listed = stored.tolist()
        return [_value(item) for item in listed] if isinstance(listed, list) else _value(listed) if isinstance(listed, bytes) else listed
    return stored
