"""PtyRAD's model files (``model_iter*.hdf5``), both ways.

Its object is amplitude and phase (states, slices, y, x), its probe complex (modes, y, x) with the centre at pixel n // 2. A position is an
integer corner of a window, ``crop_pos``, plus a shift of the probe in it, ``probe_pos_shifts``, in pixels. Signs are ours: positive C10 is
overfocus, propagation and tilt (y, x in mrad) have the same phase factors. There is one distance between all slices.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.exchange.formats import slice_distance_A
from ptycho.exchange.hdf5 import Data, Opened, tree_bytes
from ptycho.exchange.imported import Imported, aperture_mrad, checked
from ptycho.exchange.ptyrad_params import ptyrad_recipe
from ptycho.geometry import voltage_kV_of, wavelength_A
from ptycho.result import EpochRecord, Result


def encode_ptyrad(result: Result) -> bytes:
    """A model file that ``ptyrad`` takes as ``probe_params``, ``pos_params``, ``obj_params`` and ``tilt_params``."""
    size = result.probe.shape[-1]
    position = result.positions_A / result.pixel_A
    centre = np.floor(position + 0.5)
    distance, wavelength = slice_distance_A(result), wavelength_A(result.voltage_kV)
    tree = {
        "ptyrad_version": "1.0.0",
        "output_path": "",
        "optimizable_tensors": {
            "obja": Data(np.abs(result.object)),
            "objp": Data(np.angle(result.object)),
            "obj_tilts": result.tilt_mrad.astype(np.float32),
            "slice_thickness": np.float32(distance),
            "probe": Data(result.probe),
            "probe_pos_shifts": position - centre,
        },
        "model_attributes": {
            "detector_blur_std": (result.instrument and result.instrument.detector_blur_px) or "__NONE__",
            "omode_occu": result.occupancy.astype(np.float32),
            "crop_pos": (centre - size // 2).astype(np.int32),
            "slice_thickness": np.float64(distance),
            "dx": np.float64(result.pixel_A),
            "dk": np.float64(1 / (size * result.pixel_A)),
            "lambd": np.float64(wavelength),
            "meas_Npix": size,
            "simu_Npix": size,
            "simu_match_mode": "__NONE__",
            "scan_affine": "__NONE__",
            "tilt_obj": bool(result.tilt_mrad.any()),
            "probe_int_sum": np.float64((np.abs(result.probe) ** 2).sum()),
        },
        "params": {"init_params": _params(result, distance)},
        "loss_iters": np.array([(record.epoch, record.loss) for record in result.history]).reshape(-1, 2),
        "iter_times": np.array([record.seconds for record in result.history]),
        "niter": len(result.history),
    }
    return tree_bytes(tree)


def _params(result: Result, distance_A: float) -> dict[str, object]:
    """What its parameters say of the model, by their names."""
    size = result.probe.shape[-1]
    return {
        "probe_kv": result.voltage_kV,
        "probe_conv_angle": result.semiangle_mrad,
        # Its names have no "_deg".
        "probe_aberrations": {name.removesuffix("_deg"): value for name, value in result.aberrations.items()},
        "meas_Npix": size,
        "meas_calibration": {"mode": "dx", "value": result.pixel_A},
        "probe_pmode_max": len(result.probe),
        "obj_omode_max": len(result.object),
        "obj_Nlayer": result.object.shape[1],
        "obj_slice_thickness": distance_A,
        "pos_N_scans": len(result.positions_A),
    }


def recognise_ptyrad(opened: Opened) -> bool:
    """Whether PtyRAD wrote this file."""
    return opened.has("optimizable_tensors/objp") and opened.has("model_attributes")


def import_ptyrad(opened: Opened) -> Imported:
    """Result and recipe of a model file. Raises DataError when it is not complete."""
    path = opened.path
    result, warnings = _result(opened)
    recipe = ptyrad_recipe(opened.values("params"), path, "result.h5")
    return Imported(result, recipe.text, (*warnings, *recipe.warnings))


def _result(opened: Opened) -> tuple[Result, list[str]]:
    amplitude = opened.array("optimizable_tensors/obja", (4,), "f")
    phase = opened.array("optimizable_tensors/objp", (4,), "f")
    probe = opened.array("optimizable_tensors/probe", (3,), "c").astype(np.complex64)
    if amplitude.shape != phase.shape or probe.shape[-1] != probe.shape[-2]:
        raise DataError(f"{opened.path}: amplitude {amplitude.shape}, phase {phase.shape} and probe {probe.shape} do not fit together")
    size, pixel_A = probe.shape[-1], opened.needed("model_attributes/dx")
    voltage = opened.number("params/init_params/probe_kv") or voltage_kV_of(opened.needed("model_attributes/lambd"))
    known, warnings = opened.number("params/init_params/probe_conv_angle"), []
    if known is None:
        known = aperture_mrad(probe, pixel_A, voltage)
        warnings.append(f"{opened.path.name}: the semi-angle of {known:.3g} mrad is that of the probe's own disk")
    corner, shift = opened.array("model_attributes/crop_pos", (2,)), opened.array("optimizable_tensors/probe_pos_shifts", (2,))
    if corner.shape != shift.shape or corner.shape[-1] != 2:
        raise DataError(f"{opened.path}: crop_pos {corner.shape} and probe_pos_shifts {shift.shape} do not fit together; (n, 2) is needed")
    thickness = opened.number("optimizable_tensors/slice_thickness") or opened.needed("model_attributes/slice_thickness")
    result = Result(
        object=(amplitude * np.exp(1j * phase)).astype(np.complex64),
        occupancy=_occupancy(opened, len(phase)),
        pixel_A=pixel_A,
        slice_thickness_A=np.full(phase.shape[1], thickness),
        probe=probe,
        positions_A=(corner.astype(np.float64) + shift + size // 2) * pixel_A,
        tilt_mrad=_tilt(opened, len(corner)),
        history=_history(opened),
        recipe="",
        versions={"ptyrad": opened.text("ptyrad_version") or "unknown"},
        voltage_kV=voltage,
        semiangle_mrad=known,
        aberrations={},
    )
    return checked(result, opened.path), warnings


def _occupancy(opened: Opened, states: int) -> NDArray[np.float64]:
    if opened.has("model_attributes/omode_occu"):
        given = np.atleast_1d(opened.array("model_attributes/omode_occu"))
        if given.shape == (states,):
            return given.astype(np.float64)
    return np.full(states, 1 / states)


def _tilt(opened: Opened, positions: int) -> NDArray[np.float64]:
    if opened.has("optimizable_tensors/obj_tilts"):
        given = np.atleast_2d(opened.array("optimizable_tensors/obj_tilts"))
        if given.shape in ((1, 2), (positions, 2)):
            return given.astype(np.float64)
    return np.zeros((1, 2))


def _history(opened: Opened) -> tuple[EpochRecord, ...]:
    """PtyRAD's losses, which are not ours: normalised errors of the amplitude, as a rule."""
    if not opened.has("loss_iters"):
        return ()
    losses = np.atleast_2d(opened.array("loss_iters"))
    seconds = np.atleast_1d(opened.array("iter_times")) if opened.has("iter_times") else np.zeros(0)
    if losses.shape[-1] != 2:
        return ()
    times = [float(seconds[i]) if i < len(seconds) else math.nan for i in range(len(losses))]
    return tuple(EpochRecord(0, "ptyrad", int(epoch), float(loss), time) for (epoch, loss), time in zip(losses, times, strict=True))
