"""fold_slice / PtychoShelves ``.mat`` files, both ways; the variables are also what a person in MATLAB wants.

MATLAB's arrays: ``object`` (y, x, slices), ``probe`` (y, x, modes, variations), ``outputs.probe_positions`` (n, 2) = (x, y) in pixels from
the place where the window lies in the middle of the object, ``p`` with ``dx_spec`` in metres or Å, ``energy`` in keV. A window begins at the
MATLAB index round(y + ceil(N_object / 2 - N_probe / 2)). Phase factors are ours; there is no tilt. Version 7.3 of these files is HDF5 with all axes
reversed, version 5 is what is written here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError, OutputError
from ptycho.exchange.formats import mean_object
from ptycho.exchange.hdf5 import Opened
from ptycho.exchange.imported import Imported, Taken, aperture_mrad, checked
from ptycho.exchange.recipe_text import Draft
from ptycho.geometry import voltage_kV_of, wavelength_A
from ptycho.io.files import file_size, unreadable
from ptycho.result import EpochRecord, Result

_MOST_BYTES = 2**31 - 1
#: Pixels and wavelengths below this are in metres, those above in Å.
_METRES = 1e-6


def encode_foldslice(result: Result) -> bytes:
    """A file of version 5, at most 2 GB for each variable. Raises OutputError for more."""
    from scipy.io import savemat

    object_ = np.moveaxis(mean_object(result), 0, -1)
    phase = np.moveaxis(result.phase, 0, -1)
    if object_.nbytes > _MOST_BYTES:
        raise OutputError(f"an object of {object_.nbytes / 1e9:.1f} GB: a .mat of version 5 holds 2 GB; take --to emd, which MATLAB reads too")
    size = result.probe.shape[-1]
    distances = result.slice_thickness_A * 1e-10
    p = {
        "dx_spec": np.full((1, 2), result.pixel_A * 1e-10), "lambda": wavelength_A(result.voltage_kV) * 1e-10, "energy": result.voltage_kV,
        "asize": np.full((1, 2), float(size)), "z": 1.0, "z_distance": np.append(distances[:-1], np.inf)[None],
        "multi_slice_param": {"z_distance": np.append(distances[:-1], np.inf)[None]}, "alpha_max": result.semiangle_mrad,
    }  # fmt: skip
    outputs: dict[str, Any] = {"probe_positions": _offsets(result.positions_A / result.pixel_A, result.object.shape[-2:], size)[:, ::-1]}
    outputs |= {"fourier_error_out": np.array([[record.loss for record in result.history]]), "pixel_size": p["dx_spec"]}
    variables = {
        "object": object_ if object_.shape[-1] > 1 else object_[..., 0], "probe": np.moveaxis(result.probe, 0, -1), "p": p, "outputs": outputs,
        "phase": phase, "pixel_A": result.pixel_A, "slice_thickness_A": result.slice_thickness_A, "positions_A": result.positions_A,
    }  # fmt: skip
    content = io.BytesIO()
    savemat(content, variables,  # type: ignore[arg-type]
            do_compression=True, oned_as="row")
    return content.getvalue()


def _offsets(positions_px: NDArray[np.float64], canvas: tuple[int, ...], size: int) -> NDArray[np.float64]:
    """Positions (n, 2) = (y, x) from pixel [0, 0] as those from the middle of the object. The way back adds what this takes away."""
    return positions_px - _middle(canvas, size)


def _middle(canvas: tuple[int, ...], size: int) -> NDArray[np.float64]:
    # MATLAB counts from 1; the probe's centre is pixel n // 2 of its window.
    return np.ceil(np.array(canvas) / 2 - size / 2) - 1 + size // 2


def import_foldslice(path: Path) -> Imported:
    """Result and recipe of a reconstruction. Raises DataError when the file has none."""
    file_size(path)
    tree = _read_73(path) if _is_hdf5(path) else _read_5(path)
    taken = Taken({"p": tree.get("p", {}), "outputs": tree.get("outputs", {})})
    object_, probe = (_array(path, tree, name) for name in ("object", "probe"))
    positions = taken.numbers("outputs.probe_positions", (-1, 2))
    pixel = taken.numbers("p.dx_spec", (2,)) if taken.get("p.dx_spec") is not None else taken.numbers("outputs.pixel_size", (2,))
    wavelength = _scalar(taken, "p.lambda")
    if object_.ndim not in (2, 3) or probe.ndim not in (2, 3, 4) or positions is None or pixel is None or wavelength is None:
        raise DataError(f"{path}: object, probe, outputs.probe_positions, p.dx_spec and p.lambda are needed; it has {', '.join(tree) or 'none'}")
    if probe.shape[0] != probe.shape[1] or not math.isclose(*pixel, rel_tol=1e-4):
        raise DataError(f"{path}: a probe of {probe.shape[:2]} and a pixel of {pixel}; square ones are needed here")
    scale = 1e10 if pixel[0] < _METRES else 1.0
    pixel_A, size = float(pixel[0]) * scale, probe.shape[0]
    voltage = voltage_kV_of(wavelength * (1e10 if wavelength < _METRES else 1.0))
    slices = np.moveaxis(object_.reshape(*object_.shape[:2], -1), -1, 0)
    modes = np.moveaxis(probe[..., 0] if probe.ndim == 4 else probe.reshape(size, size, -1), -1, 0).astype(np.complex64)
    angle, found = _angle(taken, modes, pixel_A, voltage)
    result = Result(
        object=slices[None].astype(np.complex64),
        occupancy=np.ones(1),
        pixel_A=pixel_A,
        slice_thickness_A=_thicknesses(taken, len(slices)),
        probe=modes,
        positions_A=(positions[:, ::-1] + _middle(object_.shape[:2], size)) * pixel_A,
        tilt_mrad=np.zeros((1, 2)),
        history=_history(taken),
        recipe="",
        versions={"fold_slice": "unknown"},
        voltage_kV=voltage,
        semiangle_mrad=angle,
        aberrations={},
    )
    taken.get("outputs")
    return Imported(checked(result, path), *_recipe(taken, result, path, found))


def _recipe(taken: Taken, result: Result, path: Path, found: str) -> tuple[str, tuple[str, ...]]:
    draft = Draft("fold_slice", path)
    draft.add("microscope", "voltage_kV", round(result.voltage_kV, 6), "p.lambda")
    if found:
        draft.add("microscope", "semiangle_mrad", result.semiangle_mrad, found)
    else:
        draft.warnings.append(f"{path.name}: the semi-angle of {result.semiangle_mrad:.3g} mrad is that of the probe's own disk")
        draft.comment("microscope", "semiangle_mrad", round(result.semiangle_mrad, 2), "that of the probe's own disk")
    defocus = _scalar(taken, "p.probe_df")
    if defocus is not None:
        draft.add("microscope", "defocus_A", defocus, "p.probe_df, positive is underfocus in both")
    draft.add("model", "probe_modes", len(result.probe), "probe")
    draft.add("model", "slices", result.object.shape[1], "object")
    if result.object.shape[1] > 1:
        draft.add("model", "slice_thickness_A", result.slice_thickness_A, "p.multi_slice_param.z_distance")
    draft.start("result.h5")
    for name in ("p.energy", "p.asize", "p.z", "p.z_distance", "p.multi_slice_param"):
        taken.get(name)
    done = draft.done(taken)
    return done.text, done.warnings


def _angle(taken: Taken, modes: NDArray[Any], pixel_A: float, voltage: float) -> tuple[float, str]:
    known = _scalar(taken, "p.alpha_max")
    return (known, "p.alpha_max") if known else (aperture_mrad(modes, pixel_A, voltage), "")


def _thicknesses(taken: Taken, slices: int) -> NDArray[np.float64]:
    """Distances behind the slices; that of the last is infinite there, to the detector."""
    for name in ("p.multi_slice_param.z_distance", "p.z_distance"):
        value = taken.get(name)
        given = np.atleast_1d(np.asarray(value, np.float64)) if value is not None else np.zeros(0)
        finite = given[np.isfinite(given)]
        if slices > 1 and len(finite) >= slices - 1:
            scaled = finite[: slices - 1] * (1e10 if finite[0] < _METRES else 1.0)
            return np.append(scaled, scaled[-1])
    return np.full(slices, 10.0)


def _history(taken: Taken) -> tuple[EpochRecord, ...]:
    value = taken.get("outputs.fourier_error_out")
    errors = np.atleast_1d(np.asarray(value if value is not None else [], np.float64)).ravel()
    return tuple(EpochRecord(0, "fold_slice", i, float(error), math.nan) for i, error in enumerate(errors, 1) if np.isfinite(error))


def _scalar(taken: Taken, name: str) -> float | None:
    value = taken.get(name)
    array = np.asarray(value) if value is not None else np.zeros(0)
    return float(array.ravel()[0]) if array.size == 1 and array.dtype.kind in "iuf" and np.isfinite(array).all() else None


def _array(path: Path, tree: Mapping[str, Any], name: str) -> NDArray[np.complexfloating[Any, Any]]:
    """The variable ``object`` or ``probe``; of a cell of several objects the first."""
    value = tree.get(name)
    if isinstance(value, np.ndarray) and value.dtype == object and value.size:
        value = value.ravel()[0]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc":
        raise DataError(f"{path}: there is no array {name}; is it a reconstruction of fold_slice or PtychoShelves?")
    return value


# The two kinds of file


def _is_hdf5(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(520)
    return b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:])


def _read_5(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        found = loadmat(path, variable_names=["object", "probe", "outputs", "p"], simplify_cells=True)
    except Exception as error:  # scipy raises what it meets
        raise unreadable(path, error, "not a MATLAB file of version 5") from None
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _read_73(path: Path) -> dict[str, Any]:
    """The same variables of HDF5, their axes turned round."""
    with Opened(path) as opened:
        tree: dict[str, Any] = {name: opened.array(name).T for name in ("object", "probe") if opened.has(name)}
        for group in ("outputs", "p"):
            tree[group] = _reversed(opened.values(group))
        if opened.has("outputs/probe_positions"):
            tree["outputs"]["probe_positions"] = opened.array("outputs/probe_positions", (2,)).T
    return tree


def _reversed(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        array = np.asarray(value) if isinstance(value, list) and name != "#refs#" else None
        plain = np.squeeze(array.T) if array is not None and array.dtype.kind in "iuf" else value
        found[name] = _reversed(value) if isinstance(value, Mapping) else plain
    return found
