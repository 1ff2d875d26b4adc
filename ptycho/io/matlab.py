"""MATLAB files: versions 5 to 7 ("MATLAB 5.0 MAT-file"), and 7.3, which is HDF5 with every axis reversed.

MATLAB's order of the axes is (ky, kx, scan_y, scan_x), the first of them fastest in the file: a pattern lies in one piece, its columns
one after the other, and scan_y runs faster than scan_x.
"""

from __future__ import annotations

import math
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io import hdf5
from ptycho.io.files import file_size, unreadable
from ptycho.io.mat5 import ColumnSource, Variable, check_size, load_array, variables
from ptycho.io.options import Options
from ptycho.io.source import LateSource, stack_header

if TYPE_CHECKING:
    import h5py


def open_mat(path: Path, options: Options) -> FrameSource:
    """Frames of ``options.dataset``, else of the one 4D or 3D array of the file. Raises DataError naming what is there."""
    if _is_hdf5(path):
        from ptycho.io import hdf5_dialects  # late: it lists the reader of MATLAB 7.3 below

        return hdf5_dialects.open_hdf5(path, options)
    variable = _choose(path, variables(path), options.dataset, (4, 3))
    return _source(path, variable, matlab_axes(variable.shape, options.scan_shape))


def open_mat_frame(path: Path, options: Options) -> FrameSource:
    """The one pattern of a file that holds no more: ``options.dataset``, else its only 2D array. Raises DataError for anything else."""
    if _is_hdf5(path):
        return _open_frame_73(path, options)
    variable = _choose(path, variables(path), options.dataset, (2,))
    alone = Variable(variable.name, "", (*variable.shape, 1), variable.dtype, variable.stored, variable.offset, variable.packed)
    return _source(path, alone, ("ky", "kx", "n"))


def recognise_matlab(file: h5py.File) -> bool:
    """Whether MATLAB wrote this HDF5 file: with its 512 bytes in front, and its class on the variables."""
    return bool(file.userblock_size >= 512 and any("MATLAB_class" in item.attrs for item in hdf5.datasets(file).values()))


def open_matlab(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of a MATLAB 7.3 file, its axes reversed. Raises DataError naming what is there."""
    name = hdf5.choose(path, file) if options.dataset is None else hdf5.resolve(path, file, options.dataset)
    axes = matlab_axes(file[name].shape[::-1], options.scan_shape)[::-1]
    header = hdf5.dataset_header(path, "mat", file[name], axes)
    header.metadata = hdf5.recipe_attributes(path.name, file[name])
    _tell_scan_shape(header, name)
    return hdf5.Hdf5Source(file, name, header, axes)


def matlab_axes(shape: tuple[int, ...], scan_shape: tuple[int, int] | None) -> tuple[str, ...]:
    """Which axis of an array in MATLAB's order is what; () when it is neither 3D nor 4D.

    The detector comes first unless only the other order has the scan shape that the user gave: NumPy arrays come so into MATLAB files.
    """
    if len(shape) == 4:
        scan_first = scan_shape is not None and shape[:2] == scan_shape != shape[2:]
        return ("y", "x", "ky", "kx") if scan_first else ("ky", "kx", "y", "x")
    if len(shape) == 3:
        scan_first = scan_shape is not None and shape[0] == math.prod(scan_shape) != shape[2]
        return ("n", "ky", "kx") if scan_first else ("ky", "kx", "n")
    return ()


def _tell_scan_shape(header: Header, name: str) -> None:
    if header.scan_shape is not None:
        header.metadata["scan_shape"] = Quantity(header.scan_shape, "", f"{header.path.name}: shape of {name.strip('/')}")


def _is_hdf5(path: Path) -> bool:
    file_size(path)
    try:
        with FileIO(path) as file:
            head = file.read(520)
    except OSError as error:
        raise unreadable(path, error) from None
    return b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:])


# Version 5


def _choose(path: Path, found: list[Variable], dataset: str | None, ndims: tuple[int, ...]) -> Variable:
    """``dataset``, else the only array with the first of ``ndims`` axes that any has; those of one pixel are no images."""
    names = ", ".join(str(v) for v in found[:4]) + (f", {len(found) - 4} more" if len(found) > 4 else "") or "no variables"
    if dataset is not None:
        named = [v for v in found if v.name == dataset.strip("/")]
    else:
        arrays = [v for v in found if not v.kind and v.name and min(v.shape) > (1 if len(v.shape) == 2 else 0)]
        named = next((some for n in ndims if (some := [v for v in arrays if len(v.shape) == n])), [])
    if not named:
        wanted = f"variable {dataset[:40]!r}" if dataset is not None else f"array of {' or '.join(map(str, ndims))} axes"
        raise DataError(f"{path}: there is no {wanted}; the file has {names[:120]}")
    if len(named) > 1:
        raise DataError(f"{path}: which variable holds the patterns? The file has {names[:120]}; write {path.name}::NAME")
    if named[0].kind or len(named[0].shape) not in ndims:
        axes = " or ".join(map(str, ndims))
        raise DataError(f"{path}: {str(named[0])[:80]} cannot be patterns; an array of {axes} axes of real numbers is needed")
    return named[0]


def _source(path: Path, variable: Variable, axes: tuple[str, ...]) -> FrameSource:
    order = [axes.index(axis) for axis in ("y", "x", "n", "ky", "kx") if axis in axes]
    header = stack_header(path, "mat", tuple(variable.shape[i] for i in order), variable.dtype, f"{path}::{variable.name}")
    _tell_scan_shape(header, variable.name)
    check_size(path, variable)
    if variable.packed is None and axes[:2] == ("ky", "kx"):
        return ColumnSource(header, variable)
    return LateSource(header, partial(load_array, path, variable, order))


# Version 7.3


def _open_frame_73(path: Path, options: Options) -> FrameSource:
    file = hdf5.open_file(path)
    try:
        name = _frame_name(path, file) if options.dataset is None else hdf5.resolve(path, file, options.dataset)
        data, reverse = file[name], recognise_matlab(file)
        hdf5.check(path, data)
        if data.ndim != 2:
            raise DataError(f"{path}: {name} has the shape {data.shape}; one pattern (ky, kx) is needed")
        header = stack_header(path, "mat", (1, *(data.shape[::-1] if reverse else data.shape)), data.dtype, f"{path}::{name}")
    except hdf5.ERRORS as error:
        raise unreadable(path, error) from None
    finally:
        file.close()
    return LateSource(header, partial(_load_frame_73, path, name, reverse))


def _frame_name(path: Path, file: h5py.File) -> str:
    found = hdf5.datasets(file)
    images = [name for name, item in found.items() if item.ndim == 2 and item.dtype.kind in "biuf" and min(item.shape) > 1]
    images = [name for name in images if hdf5.text(found[name], "MATLAB_class") not in ("char", "cell", "struct")]
    if len(images) != 1:
        raise DataError(f"{path}: which dataset holds the pattern? The file has {hdf5.listed(found)}; write {path.name}::NAME")
    return images[0]


def _load_frame_73(path: Path, name: str, reverse: bool) -> NDArray[Any]:
    file = hdf5.open_file(path)
    try:
        image = np.asarray(file[name][()])
        return np.ascontiguousarray(image.T if reverse else image)
    except (*hdf5.ERRORS, MemoryError) as error:
        raise unreadable(path, error) from None
    finally:
        file.close()
