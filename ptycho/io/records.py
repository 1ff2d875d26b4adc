"""Pieces of result.h5: arrays and texts with their units and checksums, and records of them as groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.account import Account
from ptycho.examples import Examples
from ptycho.instrument import Instrument
from ptycho.quality import Correlation, Quality, Residual

#: The group's name -> what it holds.
_KINDS: dict[str, Any] = {
    "residual": Residual,
    "quality": Quality,
    "frc": Correlation,
    "fsc": Correlation,
    "instrument": Instrument,
    "examples": Examples,
    "account": Account,
}
#: Unit of a number by the end of its name.
_UNITS = {"_invA": "1/Å", "_A": "Å", "_mrad": "mrad", "_rad": "rad", "_e": "electrons", "_px": "pixel", "_coefficients": "√electrons"}
_UNITS |= {"_GB": "GB", "seconds": "s"}


def write_array(file: h5py.File, name: str, array: NDArray[Any], unit: str) -> None:
    """A dataset with its unit and, if it holds anything, a checksum for each chunk."""
    # One chunk per image: a reader gets a slice without the rest, and its checksum with it.
    chunks = (1,) * (array.ndim - 2) + array.shape[-2:] if array.size else None
    data = file.create_dataset(name, data=array, chunks=chunks, fletcher32=bool(array.size) or None)
    write_text(data, "units", unit)


def read_array(file: h5py.File, name: str) -> NDArray[Any]:
    """A dataset of this very file, all of it stored: a damaged header must not ask for more memory than the file has bytes."""
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.file.filename != file.filename or data.external or data.is_virtual:
        raise ValueError(f"{name} is not stored in the file")
    needed = math.prod(data.shape) * data.dtype.itemsize
    if data.id.get_storage_size() < needed or file.id.get_filesize() < needed:
        raise ValueError(f"{name} is not stored completely")
    return np.asarray(data[()])


def write_text(item: h5py.HLObject, name: str, text: str) -> None:
    """An attribute of fixed length."""
    item.attrs.create(name, text.encode(), dtype=h5py.string_dtype("utf-8", max(len(text.encode()), 1)))


def text_array(texts: Sequence[str] | Sequence[Sequence[str]]) -> NDArray[Any]:
    """Texts, or rows of them, as an array of fixed length."""
    encoded = np.vectorize(str.encode, otypes=[object])(np.array(texts, object)) if len(texts) else np.array([], object)
    return np.array(encoded, h5py.string_dtype("utf-8", max([1, *map(len, encoded.ravel())])))


def read_text(value: Any) -> str:
    """A text of the file."""
    return value if isinstance(value, str) else bytes(value).decode()


def write_record(file: h5py.File, path: str, record: Residual | Quality | Correlation | Instrument | Examples | Account) -> None:
    """A record as the group ``path``: arrays as datasets, numbers and texts as attributes, None as nothing."""
    group = file.create_group(path)
    for field in dataclasses.fields(record):
        name, value = field.name, getattr(record, field.name)
        unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), "1")
        if isinstance(value, np.ndarray):
            write_array(file, f"{path}/{name}", value, unit)
        elif dataclasses.is_dataclass(value):
            write_record(file, f"{path}/{name}", value)  # type: ignore[arg-type]
        elif isinstance(value, tuple):
            write_array(file, f"{path}/{name}", text_array(value), "")
        elif isinstance(value, str):
            write_text(group, name, value)
        elif value is not None:
            group.attrs[name] = np.float64(value)
            write_text(group, f"{name}_units", unit)


def read_record(file: h5py.File, path: str) -> Any:
    """The record that ``write_record`` put there; None when there is none."""
    if path not in file:
        return None
    group = file[path]
    kind = _KINDS[path.rpartition("/")[2]]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        item = f"{path}/{field.name}"
        if field.name in group.attrs:
            value = group.attrs[field.name]
            values[field.name] = float(value) if isinstance(value, (float, np.floating)) else read_text(value)
        elif field.name in _KINDS:
            values[field.name] = read_record(file, item)
        else:
            array = read_array(file, item)
            values[field.name] = _texts(array.tolist()) if array.dtype.kind in "SO" else array
    return kind(**values)


def _texts(values: Any) -> Any:
    """Lists of stored texts as tuples."""
    return tuple(_texts(value) for value in values) if isinstance(values, list) else read_text(values)
