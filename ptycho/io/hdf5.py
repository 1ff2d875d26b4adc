"""Any HDF5 file: opened without following links into other files, with any dataset of images as frames.

What a known program wrote is recognised by ``hdf5_dialects``; these are the tools that all dialects share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import UNITS, FrameSource, Header, Quantity
from ptycho.io.files import file_size, unreadable
from ptycho.io.hdf5_chunks import ChunkCheck
from ptycho.io.options import Options
from ptycho.io.source import gather, stack_shape

if TYPE_CHECKING:
    import h5py

#: What h5py raises of a file that is damaged.
ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, OverflowError, UnicodeError, MemoryError)

_GOOD_NAMES = ("data", "dp", "datacube", "cbed", "frames", "diffraction", "4d", "ptychogram")
_MAX_LINKS = 32
_MAX_ITEMS = 10_000
_MAX_CHUNK_BYTES = 1 << 28
_MAX_SMALL_BYTES = 1 << 28
#: Filters that h5py and hdf5plugin carry. A file cannot make the library load another.
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 6: "scaleoffset", 32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle",
            32015: "zstd", 32026: "blosc2"}  # fmt: skip

#: Which axis of a dataset is what: scan "y" and "x", or one list of frames "n", and the detector's "ky" and "kx".
Axes = tuple[str, ...]
_AXES: dict[int, Axes] = {3: ("n", "ky", "kx"), 4: ("y", "x", "ky", "kx")}


class Hdf5Source:
    """Frames of one dataset. Implements FrameSource; the file stays open until ``close``."""

    def __init__(self, file: h5py.File, dataset: str, header: Header, axes: Axes | None = None) -> None:
        """``dataset`` is the name of a checked dataset in the open ``file``; ``axes`` names its axes, frames first by default."""
        self.header = header
        self.dataset = dataset
        self._file: h5py.File | None = file
        self._data = file[dataset]
        self._chunks = ChunkCheck(header.path, self._data)
        self._axes = axes or _AXES[self._data.ndim]
        self._fast = self._data.shape[self._axes.index("x")] if "x" in self._axes else header.n_frames
        kept = [axis for axis in self._axes if axis != "y"]
        self._order = [kept.index("x" if "x" in kept else "n"), kept.index("ky"), kept.index("kx")]

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored. Raises DataError when they cannot be read or unpacked."""
        header = self.header
        try:
            if self._file is None:
                self._file = open_file(header.path)
                self._data = self._file[self.dataset]
                self._chunks = ChunkCheck(header.path, self._data)
            return gather(frames, header.frame_shape, header.dtype, self._read_run)
        except ERRORS as error:
            raise unreadable(header.path, error, f"patterns of {self.dataset} cannot be read") from None

    def _read_run(self, first: int, out: NDArray[Any]) -> None:
        """Consecutive frames, one read for each scan line."""
        done = 0
        while done < len(out):
            y, x = divmod(first + done, self._fast)
            number = min(self._fast - x, len(out) - done)
            place = {"y": y, "x": slice(x, x + number), "n": slice(x, x + number)}
            self._chunks.check(*{"y": (y, 1), "x": (x, number), "n": (x, number)}.get(self._axes[0], (0, len(self._data))))
            part = self._data[tuple(place.get(axis, slice(None)) for axis in self._axes)]
            out[done : done + number] = part.transpose(self._order)
            done += number

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def open_generic(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of ``options.dataset``, else of the one stack of images in the file. Raises DataError naming what is there."""
    name = choose(path, file) if options.dataset is None else resolve(path, file, options.dataset)
    header = dataset_header(path, "hdf5", file[name])
    header.metadata = recipe_attributes(path.name, file[name])
    return Hdf5Source(file, name, header)


def dataset_header(path: Path, format: str, data: h5py.Dataset, axes: Axes | None = None) -> Header:
    """The header of a dataset, checked: its shape, type, filters and chunks. Raises DataError for what cannot be frames."""
    check(path, data)
    axes = axes or _AXES.get(data.ndim, ())
    if len(axes) != data.ndim:
        stack_shape(data.shape, data.dtype, f"{path}::{data.name}")
    shape = tuple(data.shape[axes.index(axis)] for axis in ("y", "x", "n", "ky", "kx") if axis in axes)
    scan_shape, n_frames, frame_shape = stack_shape(shape, data.dtype, f"{path}::{data.name}")
    header = Header(path, format, n_frames, frame_shape, data.dtype, scan_shape)
    if not data.id.get_storage_size():
        header.warnings.append(f"{path.name}: no pattern was ever written to {data.name[-40:]!r}; the acquisition may have been stopped")
    return header


def read_table(path: Path, dataset: str | None = None) -> NDArray[Any]:
    """A small dataset of two columns: ``dataset``, else the only (N, 2) one. Raises DataError when there is none."""
    file = open_file(path)
    try:
        tables = [name for name, item in datasets(file).items() if item.ndim == 2 and item.shape[1] == 2]
        if dataset is None and len(tables) != 1:
            raise DataError(f"{path}: which dataset holds the positions? The file has {listed(datasets(file))}; write {path.name}::NAME")
        return small_array(path, file, tables[0] if dataset is None else dataset)
    except ERRORS as error:
        raise unreadable(path, error) from None
    finally:
        file.close()


def small_array(path: Path, file: h5py.File, dataset: str) -> NDArray[Any]:
    """All of a dataset of at most 256 MB: positions, masks, calibration maps. Raises DataError when it is larger or not there."""
    data = file[resolve(path, file, dataset)]
    check(path, data)
    if data.size * data.dtype.itemsize > _MAX_SMALL_BYTES:
        raise DataError(f"{path}: {dataset} of the shape {data.shape} is too large for what it should be")
    if data.ndim:
        ChunkCheck(path, data).check(0, len(data))
    return np.asarray(data[()])


def open_file(path: Path) -> h5py.File:
    """The file, for reading, with the filters of detector software. Raises DataError when it is not HDF5."""
    import h5py
    import hdf5plugin  # noqa: F401  registers the compression filters of detector software

    file_size(path)
    try:
        return h5py.File(path, "r", rdcc_nbytes=64 << 20)
    except ERRORS as error:
        raise unreadable(path, error, "not an HDF5 file") from None


def datasets(group: h5py.Group, prefix: str = "") -> dict[str, h5py.Dataset]:
    """Every dataset by name, through groups but not through links; each object once, 10 000 names at most."""
    import h5py

    found: dict[str, h5py.Dataset] = {}
    waiting, seen = [(prefix, group, 0)], {_address(group)}
    while waiting:
        start, parent, depth = waiting.pop(0)
        for key in list(parent)[:_MAX_ITEMS]:
            if len(found) + len(seen) > _MAX_ITEMS or not isinstance(parent.get(key, getlink=True), h5py.HardLink):
                continue
            item, name = parent[key], f"{start}{key}"
            if isinstance(item, h5py.Dataset):
                found[name] = item
            elif isinstance(item, h5py.Group) and depth < _MAX_LINKS and _address(item) not in seen:
                seen.add(_address(item))
                waiting.append((f"{name}/", item, depth + 1))
    return found


def _address(item: Any) -> Any:
    """What is the same for two names of one object."""
    import h5py

    return h5py.h5o.get_info(item.id).addr


def external_links(group: h5py.Group, depth: int = 0) -> list[str]:
    """Names of the other files that a file links to."""
    import h5py

    names: list[str] = []
    for key in list(group)[:_MAX_ITEMS] if depth < _MAX_LINKS else ():
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            names.append(str(link.filename))
        elif isinstance(link, h5py.HardLink) and isinstance(group[key], h5py.Group) and len(names) < 100:
            names += external_links(group[key], depth + 1)
    return names


def find(file: h5py.File, name: str) -> Any:
    """The object of this name with soft links followed; None when there is none, or when a link leads into another file."""
    done = _follow(file, name)
    return file[done or "/"] if isinstance(done, str) else None


def resolve(path: Path, file: h5py.File, dataset: str) -> str:
    """The dataset's name with soft links followed. Raises DataError for links into other files and names that do not exist."""
    import h5py

    done = _follow(file, dataset)
    if isinstance(done, h5py.ExternalLink):
        raise DataError(f"{path}: {_printable(dataset[:80])} is a link into {_printable(done.filename[:80])}; open that file itself")
    if isinstance(done, h5py.SoftLink):
        raise DataError(f"{path}: the links of {_printable(dataset[:80])} run in circles")
    if done is None:
        raise DataError(f"{path}: there is no dataset {dataset[:80]!r}; the file has {listed(datasets(file))[:120]}")
    if not isinstance(file[done or "/"], h5py.Dataset):
        inside = {f"{dataset}/{name}": item for name, item in datasets(file[done or "/"]).items()}
        raise DataError(f"{path}: {_printable(dataset[:80])} is a group; name a dataset in it: {listed(inside)}")
    return done


def _follow(file: h5py.File, name: str) -> str | h5py.ExternalLink | h5py.SoftLink | None:
    """The name without soft links; the link that leads into another file or in circles; None when there is no such object."""
    import h5py

    parts, done, links = [p for p in name.split("/") if p], "", 0
    while parts:
        part = parts.pop(0)
        parent = file[done or "/"]
        link = parent.get(part, getlink=True) if isinstance(parent, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            return link
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > _MAX_LINKS:
                return link
            parts = [p for p in link.path.split("/") if p] + parts
            done = "" if link.path.startswith("/") else done
        else:
            done = f"{done}/{part}"
    return done


def choose(path: Path, file: h5py.File) -> str:
    """The dataset that holds the patterns: 4D before 3D, large before small, telling names before others."""
    found = datasets(file)
    stacks = {name: item for name, item in found.items() if item.dtype.kind in "biuf" and item.ndim in (3, 4) and item.size}
    stacks = {name: item for name, item in stacks.items() if item.ndim == 4} or stacks
    if not stacks:
        links = ", ".join(dict.fromkeys(external_links(file)))
        hint = f"; it links to {links[:60]}: open that" if links else ""
        raise DataError(f"{path}: there is no dataset of 3 or 4 axes; the file has {listed(found)[:100]}{hint}")
    largest = max(item.size for item in stacks.values())
    similar = [name for name, item in stacks.items() if item.size > largest / 4]
    named = [name for name in similar if name.rsplit("/", 1)[-1].lower() in _GOOD_NAMES]
    if len(similar) > 1 and len(named) != 1:
        raise DataError(f"{path}: which dataset holds the patterns? It has {listed({n: stacks[n] for n in similar})[:120]}; write {path.name}::NAME")
    return (named if len(similar) > 1 else similar)[0]


def listed(datasets: Mapping[str, h5py.Dataset]) -> str:
    """The first datasets with shape and type, for messages."""
    names = [f"{_printable(name[-40:])} {item.shape} {str(item.dtype)[:20]}" for name, item in list(datasets.items())[:3]]
    return ", ".join(names + ([f"{len(datasets) - 3} more"] if len(datasets) > 3 else [])) or "no datasets"


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def check(path: Path, data: h5py.Dataset) -> None:
    """Refuse data in other files, unknown filters, chunks that would fill the memory, and contiguous data that the file is too short for."""
    # Even a virtual dataset of this file may take its data from a link that leads out of it.
    if data.external or data.is_virtual:
        raise DataError(f"{path}: the patterns of {data.name} are in other files; open those, or copy them into one file")
    settings = data.id.get_create_plist()
    unknown = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())} - _FILTERS.keys()
    if unknown:
        raise DataError(f"{path}: {data.name} is compressed by the unknown filter {min(unknown)}; write it again with gzip or bitshuffle")
    n_bytes = data.size * data.dtype.itemsize
    offset = data.id.get_offset()
    if offset is not None and offset + n_bytes > path.stat().st_size:
        raise DataError(f"{path}: {data.name} of the shape {data.shape} needs {n_bytes} bytes, which the file does not have; has it been cut?")
    if data.chunks and math.prod(data.chunks) * data.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise DataError(f"{path}: {data.name} has chunks of {data.chunks}, too large to read in parts; write it again with smaller chunks")


def recipe_attributes(name: str, data: h5py.Dataset) -> dict[str, Quantity]:
    """Attributes with the recipe's names on the dataset, else on its groups up to the file."""
    metadata: dict[str, Quantity] = {}
    if text(data, "units") == "electrons":
        metadata["adu_per_electron"] = Quantity(1.0, "ADU", f"{name}: {data.name} @units = electrons")
    item: Any = data
    while True:
        for key in UNITS.keys() & item.attrs.keys():
            value = np.asarray(item.attrs[key])
            if value.dtype.kind in "iuf" and 1 <= value.size <= (2 if key == "step_A" else 1) and key not in metadata:
                plain = [float(v) for v in value.ravel()]
                trusted = number(item, f"{key}_trusted") != 0
                metadata[key] = Quantity((plain[0], plain[-1]) if key == "step_A" else plain[0], UNITS[key], f"{name}: {item.name} @{key}", trusted)
        if item.name == "/":
            return metadata
        item = item.parent


def number(item: Any, key: str = "") -> float | None:
    """A finite number from an attribute ``key`` of ``item``, or from ``item`` itself, a dataset of one value; None for anything else."""
    value = _value(item, key)
    if value is None or value.dtype.kind not in "biuf" or value.size != 1:
        return None
    result = float(value.reshape(-1)[0])
    return result if math.isfinite(result) else None


def text(item: Any, key: str = "") -> str | None:
    """Text from an attribute or a dataset of one string, at most 64 kB of it; None for anything else."""
    value = _value(item, key)
    if value is None or value.size != 1 or value.dtype.kind not in "SUO":
        return None
    only = value.reshape(-1)[0]
    only = only.decode("utf-8", "replace") if isinstance(only, bytes) else only
    return only[:65536].rstrip("\0") if isinstance(only, str) else None


def _value(item: Any, key: str) -> NDArray[Any] | None:
    """A small attribute or dataset; None when it is not there, too large or damaged."""
    import h5py

    try:
        if key:
            return np.asarray(item.attrs[key]) if item is not None and key in item.attrs else None
        return np.asarray(item[()]) if isinstance(item, h5py.Dataset) and item.size == 1 and not item.external and not item.is_virtual else None
    except ERRORS:
        return None
