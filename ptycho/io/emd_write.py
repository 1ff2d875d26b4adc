"""Writing patterns as an EMD 1.0 datacube, which emdfile (py4DSTEM), RosettaSciIO (HyperSpy) and ``emd.open_emd`` read."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ptycho.errors import OutputError
from ptycho.frames import UNITS, Quantity
from ptycho.io.files import publish

if TYPE_CHECKING:
    import h5py

#: Patterns are read one by one, at random: a chunk of many would be unpacked for each of them.
_CHUNK_BYTES = 32 << 10
_CACHE_BYTES = 64 << 20


def write_emd(
    path: str | os.PathLike[str],
    blocks: Iterable[NDArray[Any]],
    *,
    shape: tuple[int, int] | int,
    pattern_shape: tuple[int, int],
    dtype: DTypeLike,
    calibration: Mapping[str, Any] | None = None,
    positions_A: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``blocks`` (n, ky, kx) of any lengths, in scan order, as a datacube ``shape`` (slow, fast) or a list of so many patterns.

    ``dtype`` is that of the file. Floats keep NaN for what was not measured; in unsigned integers of 2 bytes or more it becomes the
    largest value. ``calibration`` holds values or Quantities by the recipe's names, ``positions_A`` (N, 2) is y, x of each pattern, ``mask``
    (ky, kx) is nonzero for pixels to use; ``open_emd`` finds them again. ``progress`` is told (patterns done, of how many). An older file is
    replaced only when the new one is complete. Raises OutputError when it cannot be written or the patterns are not as announced.
    """
    path = Path(path)
    scan = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    stack, stored = (*scan, *pattern_shape), np.dtype(dtype)
    if len(stack) not in (3, 4) or min(stack) < 1 or stored.kind not in "uif" or stored.itemsize > 8:
        raise OutputError(f"{path}: patterns of the shape {stack} and the type {stored} cannot be written; (slow, fast, ky, kx) is needed")
    values = _values(calibration or {})
    beside = _beside(path, math.prod(scan), pattern_shape, positions_A, mask)
    temporary: Path | None = None
    try:
        with _failures(path):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
            temporary = Path(name)
            os.close(handle)
        with _created(path, temporary) as (file, sink):
            with _failures(path):
                group = _write_tree(file, values, len(scan))
                data = _create(group, stack, stored)
                _write_attributes(data, values, calibration or {})
                for key, array in beside.items():
                    group[key] = array
            _fill(path, data, blocks, sink, progress)
        with _failures(path):
            publish(temporary, path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def write_hdf5(path: str | os.PathLike[str], patterns: NDArray[Any], calibration: Mapping[str, Any] | None = None) -> Path:
    """Write patterns (slow, fast, ky, kx) in electrons as a datacube: whole numbers up to 65534 as uint16, everything else as float32.

    ``calibration`` holds values or Quantities by the recipe's names; the reader finds them again. An older file is replaced only when the
    new one is complete. Raises OutputError when it cannot be written.
    """
    if patterns.ndim != 4 or not patterns.size:
        raise OutputError(f"{path}: patterns of the shape {patterns.shape}; (slow, fast, ky, kx) is needed")
    dtype = np.uint16 if all(map(_fits_uint16, patterns)) else np.float32
    return write_emd(path, patterns, shape=patterns.shape[:2], pattern_shape=patterns.shape[2:], dtype=dtype, calibration=calibration)


def _fits_uint16(patterns: NDArray[Any]) -> bool:
    """True for whole numbers that uint16 holds; its largest value is kept for pixels that were not measured."""
    return bool((patterns >= 0).all() and (patterns < 65535).all() and (patterns == np.round(patterns)).all())


@contextlib.contextmanager
def _failures(path: Path) -> Iterator[None]:
    """What the system and HDF5 raise, as OutputError. The patterns' own errors are never raised in here."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or str(error)[:120]})") from None


@contextlib.contextmanager
def _created(path: Path, temporary: Path) -> Iterator[tuple[h5py.File, _Sink]]:
    """A new HDF5 file and what it is written to. After an error its own failure to close is of no interest."""
    import h5py

    with _failures(path):
        sink = _Sink(temporary, "w+")
        file = h5py.File(sink, "w", rdcc_nbytes=_CACHE_BYTES)
    try:
        yield file, sink
    except BaseException:
        with contextlib.suppress(Exception):
            file.close()
            sink.close()
        raise
    with _failures(path):
        file.close()
        sink.close()
        sink.check()


class _Sink(FileIO):
    """A file whose first failure to write is remembered, not raised: HDF5 cannot close a file that fails, and crashes later."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        length = len(left)
        while self.failure is None and left:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.failure = error
        return length

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def check(self) -> None:
        """Raise the failure, when there was one."""
        if self.failure is not None:
            raise self.failure


def _values(calibration: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Numbers by the recipe's names; the step as (slow, fast)."""
    given = {key: value.value if isinstance(value, Quantity) else value for key, value in calibration.items()}
    values = {key: np.asarray(given[key], np.float64) for key in UNITS if given.get(key) is not None}
    if "step_A" in values:
        values["step_A"] = np.broadcast_to(values["step_A"], 2)
    return values


def _beside(
    path: Path, n_frames: int, pattern_shape: tuple[int, int], positions_A: ArrayLike | None, mask: ArrayLike | None
) -> dict[str, NDArray[Any]]:
    """What stands next to the patterns, checked against them."""
    found: dict[str, NDArray[Any]] = {}
    if positions_A is not None:
        found["positions_A"] = np.asarray(positions_A, np.float64)
        if found["positions_A"].shape != (n_frames, 2):
            raise OutputError(f"{path}: positions of the shape {found['positions_A'].shape} for {n_frames} patterns; ({n_frames}, 2) is needed")
    if mask is not None:
        found["mask"] = (np.asarray(mask) != 0).astype(np.uint8)
        if found["mask"].shape != tuple(pattern_shape):
            raise OutputError(f"{path}: a mask of the shape {found['mask'].shape} for patterns of {tuple(pattern_shape)}")
    return found


# The tree


def _write_tree(file: h5py.File, values: Mapping[str, NDArray[np.float64]], n_scan_axes: int) -> h5py.Group:
    """Groups, axes and calibration of EMD 1.0; returns the group that the data belong to."""
    file.attrs.update(emd_group_type="file", version_major=1, version_minor=0, authoring_program="ptycho", authoring_user="", UUID=str(uuid.uuid4()))
    root = file.create_group("datacube_root")
    root.attrs.update(emd_group_type="root", python_class="Root")
    group = root.create_group("datacube")
    group.attrs.update(emd_group_type="array", python_class="Array")  # "DataCube" would open in py4DSTEM only
    scan, detector = _axes(values, n_scan_axes)
    for index, (name, step, unit) in enumerate(scan + detector):
        group[f"dim{index}"] = np.array([0.0, step])  # two numbers: evenly spaced
        group[f"dim{index}"].attrs.update(name=name, units=unit)
    bundle = root.create_group("metadatabundle")
    bundle.attrs["emd_group_type"] = "metadatabundle"
    _write_calibration(bundle.create_group("calibration"), values, scan[-1], detector[-1])
    return group


def _axes(values: Mapping[str, NDArray[np.float64]], n_scan_axes: int) -> tuple[list[tuple[str, float, str]], list[tuple[str, float, str]]]:
    """(name, step, unit) of the scan's and the detector's axes, in py4DSTEM's words: its x is the first axis, "A" is Å."""
    scan = [("n", 1.0, "pixels")]
    if n_scan_axes == 2:
        steps = values["step_A"].tolist() if "step_A" in values else None
        scan = [(name, steps[i] if steps else 1.0, "A" if steps else "pixels") for i, name in enumerate(("Rx", "Ry"))]
    pixel, unit = 1.0, "pixels"
    for key, key_unit in (("pixel_mrad", "mrad"), ("pixel_invA", "A^-1")):
        pixel, unit = (float(values[key]), key_unit) if key in values else (pixel, unit)
    return scan, [("Qx", pixel, unit), ("Qy", pixel, unit)]


def _write_calibration(
    group: h5py.Group, values: Mapping[str, NDArray[np.float64]], scan: tuple[str, float, str], detector: tuple[str, float, str]
) -> None:
    """py4DSTEM's own keys, then the recipe's."""
    group.attrs.update(emd_group_type="metadata", python_class="Metadata")
    theirs: dict[str, Any] = {"R_pixel_size": scan[1], "R_pixel_units": scan[2], "Q_pixel_size": detector[1], "Q_pixel_units": detector[2]}
    if "semiangle_mrad" in values:
        theirs["convergence_semiangle_mrad"] = float(values["semiangle_mrad"])
    for key, value in (theirs | dict(values)).items():
        group[key] = value
        group[key].attrs["type"] = "string" if isinstance(value, str) else "tuple" if np.ndim(value) else "number"


def _create(group: h5py.Group, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    """The empty array: chunks of whole patterns of one scan line, at most 32 KiB unless one is larger, and gzip, which every program reads."""
    fast = shape[-3]
    most = max(1, _CHUNK_BYTES // (shape[-2] * shape[-1] * dtype.itemsize))
    in_line = math.ceil(fast / most)
    chunk = (*(1,) * (len(shape) - 3), math.ceil(fast / in_line), *shape[-2:])
    return group.create_dataset("data", shape, dtype, chunks=chunk, compression="gzip", compression_opts=1, shuffle=True)


def _write_attributes(data: h5py.Dataset, values: Mapping[str, NDArray[np.float64]], calibration: Mapping[str, Any]) -> None:
    data.attrs["units"] = "counts" if "adu_per_electron" in values else "electrons"
    for key, value in values.items():
        data.attrs[key] = value
        data.attrs[f"{key}_units"] = UNITS[key]
        if isinstance(calibration[key], Quantity) and not calibration[key].trusted:
            data.attrs[f"{key}_trusted"] = False  # a guess must not become a fact on its way through a file


# The patterns


def _fill(path: Path, data: h5py.Dataset, blocks: Iterable[NDArray[Any]], sink: _Sink, progress: Callable[[int, int], None] | None) -> None:
    """All blocks, one after the other. Raises OutputError when the file cannot take them or their number is not what was announced."""
    done, n_frames = 0, math.prod(data.shape[:-2])
    for given in blocks:
        block = np.asarray(given)
        if block.ndim != 3 or block.shape[1:] != data.shape[-2:] or block.dtype.kind not in "buif":
            raise OutputError(f"{path}: a block of the shape {block.shape} and type {block.dtype}; (n, {data.shape[-2]}, {data.shape[-1]}) is needed")
        if done + len(block) > n_frames:
            raise OutputError(f"{path}: there are more patterns than the {n_frames} that were announced")
        stored = _as_stored(path, block, data.dtype)
        with _failures(path):
            _put(data, done, stored)
            sink.check()
        done += len(block)
        if progress is not None:
            progress(done, n_frames)
    if done != n_frames:
        raise OutputError(f"{path}: there are {done} patterns, not the {n_frames} that were announced")


def _put(data: h5py.Dataset, first: int, block: NDArray[Any]) -> None:
    """Consecutive patterns, one write for each scan line."""
    if data.ndim == 3:
        data[first : first + len(block)] = block
        return
    done, fast = 0, data.shape[1]
    while done < len(block):
        y, x = divmod(first + done, fast)
        number = min(fast - x, len(block) - done)
        data[y, x : x + number] = block[done : done + number]
        done += number


def _as_stored(path: Path, block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Patterns in the type of the file. Raises OutputError rather than change a number, but for the precision of floats."""
    if dtype.kind == "f" or block.dtype == dtype or not block.size:
        return block.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    missing = np.isnan(block) if block.dtype.kind == "f" else np.zeros((), bool)
    values = np.where(missing, 0, block) if missing.any() else block
    least, most = values.min().item(), values.max().item()
    if least < limits.min or most > limits.max or (block.dtype.kind == "f" and not (values == np.round(values)).all()):
        raise OutputError(f"{path}: values from {least:g} to {most:g} do not fit into {dtype}; choose float32")
    if missing.any() and (dtype.kind != "u" or dtype.itemsize == 1):
        raise OutputError(f"{path}: {dtype} has no value for what was not measured; choose uint16 or float32")
    result = values.astype(dtype)
    if missing.any():
        result[missing] = limits.max
    return result
