"""HDF5 files: any dataset (slow, fast, ky, kx) or (n, ky, kx) of real numbers, compressed or not.

Values in attributes with the recipe's names (``voltage_kV``, ``step_A`` ...) on the dataset, its groups or the file are used.
Links into other files are refused: a data file must not make the program open others. MATLAB 7.3 files are HDF5 with the axes
reversed; scan and detector are transposed alike, so that they fit each other.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data import FrameSource, Quantity
from ptycho.errors import DataError, OutputError
from ptycho.io.source import UNITS, file_size, gather, stack_shape, unreadable

if TYPE_CHECKING:
    import h5py

_GOOD_NAMES = ("data", "dp", "datacube", "cbed", "frames", "diffraction", "4d", "ptychogram")
_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError)
_MAX_LINKS = 32
_MAX_CHUNK_BYTES = 1 << 30


class Hdf5Source:
    """Frames of one dataset. Implements FrameSource; the file stays open until ``close``."""

    def __init__(self, path: Path, dataset: str, file: h5py.File) -> None:
        """``dataset`` is the name of a checked dataset in the open ``file``."""
        self.path, self.format, self.dataset = path, "hdf5", dataset
        self._file: h5py.File | None = file
        self._data = file[dataset]
        self.dtype = self._data.dtype
        self.scan_shape, self.n_frames, self.frame_shape = stack_shape(self._data.shape, self.dtype, f"{path}::{dataset}")
        self.metadata = _metadata(path.name, self._data)
        self.warnings: list[str] = []
        self.default_flip_rows = False

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored. Raises DataError when they cannot be read or unpacked."""
        try:
            if self._file is None:
                self._file = _open(self.path)
                self._data = self._file[self.dataset]
            return gather(frames, self.frame_shape, self.dtype, self._read_run)
        except _ERRORS as error:
            raise unreadable(self.path, error, f"patterns of {self.dataset} cannot be read") from None

    def _read_run(self, first: int, out: NDArray[Any]) -> None:
        """Consecutive frames, one read for each scan line."""
        if self.scan_shape is None:
            out[:] = self._data[first : first + len(out)]
            return
        fast = self.scan_shape[1]
        done = 0
        while done < len(out):
            y, x = divmod(first + done, fast)
            number = min(fast - x, len(out) - done)
            out[done : done + number] = self._data[y, x : x + number]
            done += number

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def open_hdf5(path: Path, dataset: str | None = None) -> FrameSource:
    """Frames of ``dataset``, else of the one stack of images in the file. Raises DataError naming what is there."""
    file_size(path)
    file = _open(path)
    try:
        name = _choose(path, file) if dataset is None else _resolve(path, file, dataset)
        _check(path, file[name])
        return Hdf5Source(path, name, file)
    except DataError:
        file.close()
        raise
    except _ERRORS as error:
        file.close()
        raise unreadable(path, error) from None


def read_table(path: Path, dataset: str | None = None) -> NDArray[Any]:
    """A small dataset of two columns: ``dataset``, else the only (N, 2) one. Raises DataError when there is none."""
    file = _open(path)
    try:
        tables = [name for name, item in _datasets(file).items() if item.ndim == 2 and item.shape[1] == 2]
        if dataset is None and len(tables) != 1:
            raise DataError(f"{path}: which dataset holds the positions? The file has {_listed(_datasets(file))}; write {path.name}::NAME")
        name = tables[0] if dataset is None else _resolve(path, file, dataset)
        _check(path, file[name])
        return np.asarray(file[name][()])
    except _ERRORS as error:
        raise unreadable(path, error) from None
    finally:
        file.close()


def _open(path: Path) -> h5py.File:
    import h5py
    import hdf5plugin  # noqa: F401  registers the compression filters of detector software

    try:
        return h5py.File(path, "r", rdcc_nbytes=64 << 20)
    except _ERRORS as error:
        raise unreadable(path, error, "not an HDF5 file") from None


def _datasets(group: h5py.Group, prefix: str = "", depth: int = 0) -> dict[str, h5py.Dataset]:
    """Every dataset by name, through groups but not through links."""
    import h5py

    found: dict[str, h5py.Dataset] = {}
    for key in group if depth < _MAX_LINKS else ():
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            continue
        item, name = group[key], f"{prefix}{key}"
        if isinstance(item, h5py.Dataset):
            found[name] = item
        elif isinstance(item, h5py.Group):
            found |= _datasets(item, f"{name}/", depth + 1)
    return found


def _external_links(group: h5py.Group, depth: int = 0) -> list[str]:
    """Names of the other files that a file links to."""
    import h5py

    names: list[str] = []
    for key in group if depth < _MAX_LINKS else ():
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            names.append(str(link.filename))
        elif isinstance(link, h5py.HardLink) and isinstance(group[key], h5py.Group):
            names += _external_links(group[key], depth + 1)
    return names


def _resolve(path: Path, file: h5py.File, dataset: str) -> str:
    """The dataset's name with soft links followed. Raises DataError for links into other files and names that do not exist."""
    import h5py

    parts, done, links = [p for p in dataset.split("/") if p], "", 0
    while parts:
        part = parts.pop(0)
        parent = file[done or "/"]
        link = parent.get(part, getlink=True) if isinstance(parent, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise DataError(f"{path}: {dataset} is a link into {link.filename}; open that file itself")
        if link is None:
            raise DataError(f"{path}: there is no dataset {dataset!r}; the file has {_listed(_datasets(file))}")
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > _MAX_LINKS:
                raise DataError(f"{path}: the links of {dataset} run in circles")
            target = [p for p in link.path.split("/") if p]
            parts = target + parts
            done = "" if link.path.startswith("/") else done
        else:
            done = f"{done}/{part}"
    if not isinstance(file[done or "/"], h5py.Dataset):
        inside = {f"{dataset}/{name}": item for name, item in _datasets(file[done or "/"]).items()}
        raise DataError(f"{path}: {dataset} is a group; name a dataset in it: {_listed(inside)}")
    return done


def _choose(path: Path, file: h5py.File) -> str:
    """The dataset that holds the patterns: 4D before 3D, large before small, telling names before others."""
    found = _datasets(file)
    stacks = {name: item for name, item in found.items() if item.dtype.kind in "biuf" and item.ndim in (3, 4) and item.size}
    stacks = {name: item for name, item in stacks.items() if item.ndim == 4} or stacks
    if not stacks:
        links = ", ".join(dict.fromkeys(_external_links(file)))
        hint = f"; it links to {links}: open that" if links else ""
        raise DataError(f"{path}: there is no dataset of 3 or 4 axes; the file has {_listed(found)}{hint}")
    largest = max(item.size for item in stacks.values())
    similar = [name for name, item in stacks.items() if item.size > largest / 4]
    named = [name for name in similar if name.rsplit("/", 1)[-1].lower() in _GOOD_NAMES]
    if len(similar) > 1 and len(named) != 1:
        raise DataError(f"{path}: which dataset holds the patterns? It has {_listed({n: stacks[n] for n in similar})}; write {path.name}::NAME")
    return (named if len(similar) > 1 else similar)[0]


def _listed(datasets: Mapping[str, h5py.Dataset]) -> str:
    names = [f"{name} {item.shape} {item.dtype}" for name, item in list(datasets.items())[:10]]
    return ", ".join(names + (["..."] if len(datasets) > 10 else [])) or "no datasets"


def _check(path: Path, data: h5py.Dataset) -> None:
    """Refuse data in other files and chunks that would fill the memory."""
    if data.external or (data.is_virtual and any(source.file_name != "." for source in data.virtual_sources())):
        raise DataError(f"{path}: the patterns of {data.name} are in other files; open those, or copy them into one file")
    if data.chunks and math.prod(data.chunks) * data.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise DataError(f"{path}: {data.name} has chunks of {data.chunks}, too large to read in parts; write it again with smaller chunks")


def _metadata(name: str, data: h5py.Dataset) -> dict[str, Quantity]:
    """Attributes with the recipe's names on the dataset, else on its groups up to the file."""
    metadata: dict[str, Quantity] = {}
    item: Any = data
    while True:
        for key in UNITS.keys() & item.attrs.keys():
            value = np.asarray(item.attrs[key])
            if value.dtype.kind in "iuf" and value.size in (1, 2) and key not in metadata:
                plain = tuple(value.ravel().tolist())
                metadata[key] = Quantity(plain if len(plain) == 2 else float(plain[0]), UNITS[key], f"{name}: {item.name} @{key}")
        if item.name == "/":
            return metadata
        item = item.parent


def write_hdf5(
    path: str | os.PathLike[str],
    patterns: NDArray[Any] | Iterable[NDArray[Any]],
    calibration: Mapping[str, Any] | None = None,
    dataset: str = "entry/data",
) -> Path:
    """Write patterns (slow, fast, ky, kx) in electrons, or scan lines (fast, ky, kx), as one compressed dataset.

    Integers from 0 to 65534 become uint16 (lines of an iterable: when their type is an integer), everything else float32.
    ``calibration`` holds values or Quantities by the recipe's names; the reader finds them again. An older file is replaced
    only when the new one is complete. Raises OutputError when it cannot be written.
    """
    import h5py

    path = Path(path)
    integer = _fits_uint16(patterns) if isinstance(patterns, np.ndarray) else None
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        with h5py.File(temporary, "w") as file:
            data: Any = None
            for y, line in enumerate(patterns):
                if line.ndim != 3 or (data is not None and data.shape[1:] != line.shape):
                    raise OutputError(f"{path}: scan line {y} has the shape {line.shape}; all must be alike, (fast, ky, kx)")
                if data is None:
                    integer = line.dtype.kind in "bu" if integer is None else integer
                    data = _create(file, dataset, line.shape, "u2" if integer else "f4")
                data.resize(y + 1, axis=0)
                data[y] = line
            if data is None:
                raise OutputError(f"{path}: there are no patterns to write")
            _write_attributes(data, calibration or {})
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def _fits_uint16(patterns: NDArray[Any]) -> bool:
    """True for whole numbers that uint16 holds; its largest value is kept for pixels that were not measured."""
    return all(bool((line >= 0).all() and (line < 65535).all() and (line == np.round(line)).all()) for line in patterns)


def _create(file: h5py.File, name: str, line_shape: tuple[int, ...], dtype: str) -> Any:
    # gzip and not a faster filter: every HDF5 program reads it.
    shape = (0, *line_shape)
    chunk = (1, 1, *line_shape[1:])
    data = file.create_dataset(name, shape, dtype, maxshape=(None, *line_shape), chunks=chunk, compression="gzip", compression_opts=1, shuffle=True)
    data.attrs["units"] = "electrons"
    return data


def _write_attributes(data: Any, calibration: Mapping[str, Any]) -> None:
    for key, given in calibration.items():
        value = given.value if isinstance(given, Quantity) else given
        if key in UNITS and key != "adu_per_electron" and value is not None:  # the patterns are in electrons already
            data.attrs[key] = np.asarray(value, float)
            data.attrs[f"{key}_units"] = UNITS[key]
