"""Pairs of files ``..._dp.hdf5`` (patterns) and ``..._para.hdf5`` (positions): fold_slice (PtychoShelves for electrons), pty-chi, ptychodus.

fold_slice writes ``data_roi{label}_dp.hdf5`` from MATLAB: ``/dp`` is (n, kx, ky) in HDF5. Its positions ``/ppX`` and ``/ppY`` are those of
the probe, in Å of electron data and in metres of X-ray data. (It reads them as -ppY, -ppX and negates that again when it starts.)
Without them the frames are in MATLAB's order of a raster, y fast. The others write ``/dp`` as (n, ky, kx) and
``/probe_position_x_m`` and ``/probe_position_y_m`` of the probe in metres.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io import hdf5
from ptycho.io.cxi import add_positions, read_small
from ptycho.io.options import Options

if TYPE_CHECKING:
    import h5py

_ANGSTROM = 1e-10
_FOLD_SLICE = ("ppX", "ppY")
_PTY_CHI = ("probe_position_x_m", "probe_position_y_m")


def recognise_foldslice(file: h5py.File) -> bool:
    """Whether this is one of the two files of a pair."""
    path = Path(file.filename)
    if hdf5.find(file, "dp") is None:
        return any(all(hdf5.find(file, key) is not None for key in keys) for keys in (_FOLD_SLICE, _PTY_CHI))
    return path.stem.endswith("_dp") and (path.stem.startswith("data_roi") or _para_of(path).exists())


def _para_of(path: Path) -> Path:
    return path.with_name(f"{path.stem.removesuffix('_dp')}_para{path.suffix}")


def open_foldslice(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of the ``_dp`` file, with positions from the ``_para`` file. Raises DataError when asked to open the latter."""
    if hdf5.find(file, "dp") is None and options.dataset is None:
        patterns = path.with_name(f"{path.stem.removesuffix('_para')}_dp{path.suffix}").name
        raise DataError(f"{path}: this file has positions and parameters, no patterns; open {patterns}")
    name = hdf5.resolve(path, file, options.dataset or "dp")
    warnings: list[str] = []
    positions, keys = _read_positions(_para_of(path), warnings)
    if keys == _PTY_CHI or (keys is None and not path.stem.startswith("data_roi")):
        header = hdf5.dataset_header(path, "pty-chi", file[name])
        axes = None
    else:
        axes = ("n", "kx", "ky") if file[name].ndim == 3 else ("x", "y", "kx", "ky")
        header = hdf5.dataset_header(path, "fold_slice", file[name], axes)
    header.warnings += warnings
    if positions is not None and keys is not None:
        _add_positions(header, positions, keys)
    if keys == _PTY_CHI:
        _add_pixel(header, _para_of(path))
    elif axes is not None and "n" in axes:
        _add_order(header, options.scan_shape)
    return hdf5.Hdf5Source(file, name, header, axes)


def _read_positions(para: Path, warnings: list[str]) -> tuple[NDArray[np.float64] | None, tuple[str, str] | None]:
    """(positions (N, 2) = (y, x) as stored, their names); None, with a warning when the file is there but of no use."""
    if not para.exists():
        return None, None
    try:
        file = hdf5.open_file(para)
    except DataError as error:
        warnings.append(f"{str(error)[-180:]}: its positions are not used")
        return None, None
    try:
        keys = next((keys for keys in (_FOLD_SLICE, _PTY_CHI) if all(hdf5.find(file, key) is not None for key in keys)), None)
        if keys is None:
            warnings.append(f"{para.name}: it has neither {' and '.join(_FOLD_SLICE)} nor {' and '.join(_PTY_CHI)}; no positions are used")
            return None, None
        notes = Header(para, "", 0, (0, 0), np.dtype("f8"))
        x, y = (read_small(para, file, key, notes) for key in keys)
        warnings += notes.warnings
        if x is None or y is None or x.size != y.size:
            warnings.append(f"{para.name}: {keys[0]} and {keys[1]} are not lists of one length; no positions are used")
            return None, keys
        return np.stack([y.ravel(), x.ravel()], axis=1), keys
    except hdf5.ERRORS as error:
        warnings.append(f"{para.name}: no positions are used ({str(error)[:80]})")
        return None, None
    finally:
        file.close()


def _add_positions(header: Header, positions: NDArray[np.float64], keys: tuple[str, str]) -> None:
    name = f"{' and '.join(keys)} of {_para_of(header.path).name}"
    if keys == _PTY_CHI:
        add_positions(header, positions, name)
        return
    finite = positions[np.isfinite(positions).all(axis=1)]
    extent = float(np.ptp(finite / 2, axis=0).max()) * 2 if len(finite) else 0.0
    if 1e-3 <= extent < 0.1 or (extent >= 1e6):
        header.warnings.append(f"{header.path.name}: {name} span {extent:.2g}, neither metres nor Å; give positions_file")
    else:
        metres = extent < 1e-3
        header.warnings.append(f"{header.path.name}: {name} are taken to be in {'metres' if metres else 'Å'}, by their size")
        add_positions(header, positions, name, 1.0 if metres else _ANGSTROM)


def _add_pixel(header: Header, para: Path) -> None:
    """Pixel of the pattern from that of the object, which these programs choose as 1 / (N pixels)."""
    try:
        file = hdf5.open_file(para)
    except DataError:
        return
    try:
        size = hdf5.number(hdf5.find(file, "object"), "pixel_height_m")
    except hdf5.ERRORS:
        size = None
    finally:
        file.close()
    if size is not None and 1e-13 < size < 1e-3:
        pixel = 1 / (header.frame_shape[0] * size * 1e10)
        header.metadata["pixel_invA"] = Quantity(pixel, "1/Å", f"{para.name}: object @pixel_height_m")


def _add_order(header: Header, scan_shape: tuple[int, int] | None) -> None:
    """Where each frame is in the raster that the user gave: y is the fast index, unless the positions say that x is."""
    steps = None if header.positions_A is None else np.abs(np.diff(header.positions_A[:2], axis=0))
    if steps is not None and (not len(steps) or steps[0, 1] >= steps[0, 0]):
        return
    if steps is None:
        header.warnings.append(f"{header.path.name}: there are no positions; its frames are taken in MATLAB's order, in which scan y is fast")
    if scan_shape is not None and scan_shape[0] * scan_shape[1] == header.n_frames:
        slow, fast = scan_shape
        x, y = np.divmod(np.arange(header.n_frames), slow)
        header.acquired = y * fast + x
