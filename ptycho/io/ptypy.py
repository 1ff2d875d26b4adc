"""PtyPy's prepared data: ``.ptyd``, patterns in ``/chunks/<k>``, each chunk in the file itself or in a ``.part<k>`` beside it.

A chunk has ``data`` (n, ky, kx), and mostly ``indices`` (n,), ``positions`` (n, 2) = (y, x) of the probe in metres, and ``weights``, where
0 is a bad pixel. Lengths are in metres, the energy is that of photons in keV.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io import hdf5
from ptycho.io.cxi import add_angle, add_positions, read_small, tell_photons
from ptycho.io.files import beside
from ptycho.io.options import Options

if TYPE_CHECKING:
    import h5py

_MAX_CHUNKS = 10_000
_MAX_INDEX = 1 << 31


class ChunkSource:
    """Frames of several datasets of one shape and type, in the order of ``stored``. Implements FrameSource."""

    def __init__(self, header: Header, chunks: list[hdf5.Hdf5Source], stored: NDArray[np.int64]) -> None:
        """``stored`` (n_frames,) is the place of each frame among the frames of all ``chunks``, counted one after the other."""
        self.header = header
        self._chunks = chunks
        self._stored = stored
        self._starts = np.cumsum([0] + [chunk.header.n_frames for chunk in chunks])

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored. Raises DataError when they cannot be read."""
        stored = self._stored[np.asarray(frames, np.int64)]
        chunk_of = np.searchsorted(self._starts, stored, side="right") - 1
        out = np.empty((len(stored), *self.header.frame_shape), self.header.dtype)
        for number in np.unique(chunk_of):
            here = chunk_of == number
            out[here] = self._chunks[number].read(stored[here] - self._starts[number])
        return out

    def close(self) -> None:
        """Release all files; a later read opens them again."""
        for chunk in self._chunks:
            chunk.close()


def recognise_ptypy(file: h5py.File) -> bool:
    """Whether this is a ``.ptyd``, or a result of PtyPy (``.ptyr``)."""
    return _is_result(file) or (hdf5.find(file, "chunks") is not None and hdf5.find(file, "meta") is not None)


def _is_result(file: h5py.File) -> bool:
    return hdf5.find(file, "content/obj") is not None and hdf5.find(file, "content/probe") is not None


def open_ptypy(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of a ``.ptyd`` in the order of their indices. Raises DataError for a result of PtyPy and for what cannot be frames."""
    if _is_result(file):
        raise DataError(f"{path}: this is a result of PtyPy, not patterns; open the .ptyd that it was made from")
    if options.dataset is not None:
        return hdf5.open_generic(path, file, options)
    chunks: list[_Chunk] = []
    try:
        warnings = _open_chunks(path, file, chunks)
        sources = [hdf5.Hdf5Source(c.file, c.name, hdf5.dataset_header(c.path, "ptyd", c.file[c.name], ("n", "ky", "kx"))) for c in chunks]
        if not sources:
            raise DataError(f"{path}: it has no chunks of patterns; was PtyPy still to write them?")
        first = sources[0].header
        for source in sources:
            if (source.header.frame_shape, source.header.dtype) != (first.frame_shape, first.dtype):
                raise DataError(f"{path}: the patterns of {chunks[0].name} and {source.dataset} are not of one shape and type")
        n_frames = sum(source.header.n_frames for source in sources)
        header = Header(path, "ptyd", n_frames, first.frame_shape, first.dtype, warnings=warnings)
        stored = _describe(header, file, chunks)
    except BaseException:
        for chunk in chunks:
            chunk.file.close()
        raise
    return ChunkSource(header, sources, stored)


@dataclass(frozen=True)
class _Chunk:
    """An open chunk: the ``file`` at ``path`` that it is in, the group's name there ("" or with a slash at its end), its patterns' name."""

    path: Path
    file: h5py.File
    group: str
    name: str


def _open_chunks(path: Path, file: h5py.File, chunks: list[_Chunk]) -> list[str]:
    """Add the chunks in the order of their numbers; returns warnings. Links are followed only to files beside this one."""
    import h5py

    parent, warnings = hdf5.find(file, "chunks"), []
    keys = [key for key in list(parent)[:_MAX_CHUNKS] if re.fullmatch("[0-9]{1,9}", key)] if isinstance(parent, h5py.Group) else []
    for key in sorted(keys, key=int):
        link = parent.get(key, getlink=True)
        if not isinstance(link, h5py.ExternalLink):
            group = f"chunks/{key}/"
            chunks.append(_Chunk(path, file, group, hdf5.resolve(path, file, f"{group}data")))
            continue
        # PtyPy writes whole paths, of the machine that it ran on.
        name = link.filename.replace("\\", "/").rsplit("/", 1)[-1]
        part = beside(path, name)
        if not part.exists():
            warnings.append(f"{path.name}: chunk {key} is left out: {name[:60]} is not beside it")
            continue
        opened, group = hdf5.open_file(part), f"{link.path.strip('/')}/".lstrip("/")
        try:
            chunks.append(_Chunk(part, opened, group, hdf5.resolve(part, opened, f"{group}data")))
        except BaseException:
            opened.close()
            raise
    return warnings


def _describe(header: Header, file: h5py.File, chunks: list[_Chunk]) -> NDArray[np.int64]:
    """Add to the header what chunks and meta say of the frames; the place (n_frames,) of each frame among those of the chunks."""
    indices = _joined(header, chunks, "indices", ())
    order = np.arange(header.n_frames)
    if indices is not None:
        whole = np.isfinite(indices).all() and (indices >= 0).all() and (indices < _MAX_INDEX).all()
        if whole and len(np.unique(indices)) == len(indices):
            order = np.argsort(indices)
            acquired = indices[order].astype(np.int64)
            header.acquired = None if np.array_equal(acquired, np.arange(len(acquired))) else acquired
        else:
            header.warnings.append(f"{header.path.name}: the indices of its frames are not distinct numbers and are not used")
    positions = _joined(header, chunks, "positions", (2,))
    if positions is not None:
        add_positions(header, positions[order], "positions")
    _add_weights(header, file, chunks)
    _add_meta(header, file)
    return order


def _joined(header: Header, chunks: list[_Chunk], key: str, row: tuple[int, ...]) -> NDArray[np.float64] | None:
    """The rows (n_frames, *row) of all chunks; None when any has none."""
    parts = []
    for chunk in chunks:
        data = _dataset(chunk.file, f"{chunk.group}{key}")
        if data is None or data.shape != (chunk.file[chunk.name].shape[0], *row):
            return None
        values = read_small(chunk.path, chunk.file, f"{chunk.group}{key}", header)
        if values is None:
            return None
        parts.append(values)
    return np.concatenate(parts)


def _add_weights(header: Header, file: h5py.File, chunks: list[_Chunk]) -> None:
    """Bad pixels from one weight for all frames, else from those of the first and the last frame when they agree."""
    common = [(header.path, file, "meta/weight2d"), *((chunk.path, chunk.file, f"{chunk.group}weights") for chunk in chunks[:1])]
    for path, opened, name in common:
        data = _dataset(opened, name)
        if data is not None and data.shape == header.frame_shape:
            weights = read_small(path, opened, name, header)
            if weights is not None:
                _set_bad_pixels(header, weights)
            return
    ends = []
    for chunk, row in ((chunks[0], 0), (chunks[-1], -1)):
        data = _dataset(chunk.file, f"{chunk.group}weights")
        if data is None or data.shape != chunk.file[chunk.name].shape or data.dtype.kind not in "biuf":
            return
        hdf5.check(chunk.path, data)
        ends.append(np.asarray(data[row]))
    if np.array_equal(ends[0] > 0, ends[1] > 0):
        _set_bad_pixels(header, ends[0])
    else:
        header.warnings.append(f"{header.path.name}: its frames have different weights, which are not used; give a mask")


def _set_bad_pixels(header: Header, weights: NDArray[Any]) -> None:
    bad = ~(weights > 0)
    if bad.all():
        header.warnings.append(f"{header.path.name}: its weights are 0 for all pixels and are not used")
    elif bad.any():
        header.bad_pixels = bad


def _add_meta(header: Header, file: h5py.File) -> None:
    if (hdf5.text(hdf5.find(file, "meta/propagation")) or "").lower() == "nearfield":
        header.warnings.append(f"{header.path.name}: its patterns are of the near field, which cannot be reconstructed here")
    else:
        size = _numbers(file, "meta/psize")
        distance = hdf5.number(hdf5.find(file, "meta/distance"))
        if size:
            add_angle(header, [size[0], size[-1]], distance, "meta/psize / distance")
    energy = hdf5.number(hdf5.find(file, "meta/energy"))
    if energy is not None and energy > 0:
        tell_photons(header, energy * 1e3)


def _numbers(file: h5py.File, name: str) -> list[float | None]:
    """One or two numbers; [] when there are none."""
    data = _dataset(file, name)
    if data is None or data.size not in (1, 2) or data.dtype.kind not in "iuf":
        return []
    return [float(value) if np.isfinite(value) else None for value in np.asarray(data[()], np.float64).reshape(-1)]


def _dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    import h5py

    item = hdf5.find(file, name)
    return item if isinstance(item, h5py.Dataset) and item.shape is not None and not item.external and not item.is_virtual else None
