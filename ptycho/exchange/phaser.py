"""phaser's state files (HDF5, ``type`` = "phaser_state"), both ways.

Lengths are Å, patterns and probes electrons, as here. Its object is (z, y, x), with ``corner`` the place of pixel [0, 0]; a position is the middle of
the window, between its pixels where their number is even, while the probe's centre is pixel n // 2: half a pixel to be added. Phase
factors are ours, tilts (y, x) in mrad too. Version 0.1 of the file, which every phaser reads, is written; 0.2 has ``scan`` and ``tilt`` in a group.
"""

from __future__ import annotations

import math

import numpy as np

from ptycho.errors import DataError
from ptycho.exchange.formats import mean_object
from ptycho.exchange.hdf5 import Data, Opened, tree_bytes
from ptycho.exchange.imported import Imported, Taken, aperture_mrad, checked
from ptycho.exchange.recipe_text import Draft
from ptycho.geometry import voltage_kV_of, wavelength_A
from ptycho.result import EpochRecord, Result


def encode_phaser(result: Result) -> bytes:
    """A state that phaser reads with ``ReconsState.read_hdf5``, or as ``init: {state: FILE}``."""
    size, slices = result.probe.shape[-1], result.object.shape[1]
    sampling = np.full(2, result.pixel_A)
    scan = result.positions_A - _half_pixel(size) * result.pixel_A
    thickness = result.slice_thickness_A if slices > 1 else result.slice_thickness_A[:1]
    tree = {
        "type": "phaser_state",
        "version": "0.1",
        "wavelength": np.float64(wavelength_A(result.voltage_kV)),
        "probe": {"data": Data(result.probe), "sampling": sampling, "extent": sampling * size},
        "object": {
            "data": Data(mean_object(result)),
            "thicknesses": thickness.astype(np.float64),
            "zs": np.cumsum(thickness) - thickness if slices > 1 else np.zeros(1),
            "sampling": sampling,
            "extent": sampling * result.object.shape[-2:],
            "corner": np.zeros(2),
            "region_min": scan.min(0),
            "region_max": scan.max(0),
        },
        "scan": scan,
        "tilt": np.broadcast_to(result.tilt_mrad, scan.shape).astype(np.float64),
        "iter": {"engine_num": np.uint64(1), "engine_iter": np.uint64(len(result.history)), "total_iter": np.uint64(len(result.history))},
        "progress": {
            "total_loss": {
                "iters": np.array([record.epoch for record in result.history], np.int64),
                "values": np.array([record.loss for record in result.history], np.float64),
            }
        },
    }
    return tree_bytes(tree)


def _half_pixel(size: int) -> float:
    """From the middle of a window to the probe's centre, in pixels."""
    return size // 2 - (size - 1) / 2


def recognise_phaser(opened: Opened) -> bool:
    """Whether phaser wrote this file."""
    return opened.text("type") == "phaser_state"


def import_phaser(opened: Opened) -> Imported:
    """Result and recipe of a state. Raises DataError when it is not complete."""
    path = opened.path
    probe = opened.array("probe/data", (3,), "c").astype(np.complex64)
    object_ = opened.array("object/data", (3,), "c").astype(np.complex64)
    sampling = opened.array("object/sampling", (1,), "f")
    size = probe.shape[-1]
    pixel = opened.array("probe/extent", (1,), "f") / np.array(probe.shape[-2:])
    if size != probe.shape[-2] or not np.allclose(sampling, sampling[0], rtol=1e-6) or not np.allclose(pixel, sampling, rtol=1e-6):
        raise DataError(f"{path}: pixels of {sampling} Å (object) and {pixel} Å (probe {probe.shape}); square ones of one size are needed here")
    scan = opened.array("scan/data" if opened.has("scan/data") else "scan", None, "f").reshape(-1, 2).astype(np.float64)
    corner = opened.array("object/corner", (1,), "f")
    voltage = voltage_kV_of(opened.needed("wavelength"))
    thickness = opened.array("object/thicknesses", (1,), "f").astype(np.float64)
    single = len(object_) == 1
    angle = aperture_mrad(probe, float(sampling[0]), voltage)
    result = Result(
        object=object_[None],
        occupancy=np.ones(1),
        pixel_A=float(sampling[0]),
        slice_thickness_A=thickness if len(thickness) == len(object_) else np.full(len(object_), 10.0 if single else math.nan),
        probe=probe,
        positions_A=scan - corner + _half_pixel(size) * float(sampling[0]),
        tilt_mrad=_tilt(opened, len(scan)),
        history=_history(opened),
        recipe="",
        versions={"phaser state": opened.text("version") or "unknown"},
        voltage_kV=voltage,
        semiangle_mrad=angle,
        aberrations={},
    )
    draft = Draft("phaser", path)
    draft.add("microscope", "voltage_kV", round(voltage, 6), "wavelength")
    draft.comment("microscope", "semiangle_mrad", round(angle, 2), "that of the probe's own disk; phaser's file does not say it")
    draft.add("model", "probe_modes", len(probe), "probe")
    draft.add("model", "slices", len(object_), "object")
    if not single:
        draft.add("model", "slice_thickness_A", thickness, "object.thicknesses")
    draft.start("result.h5")
    recipe = draft.done(Taken({}))
    told = f"{path.name}: the semi-angle of {angle:.3g} mrad is that of the probe's own disk; the file does not say it"
    return Imported(checked(result, path), recipe.text, (told, *recipe.warnings))


def _tilt(opened: Opened, positions: int) -> np.ndarray:
    name = next((name for name in ("tilt", "scan/tilt") if opened.has(name)), None)
    if name is None:
        return np.zeros((1, 2))
    tilt = opened.array(name, None, "f").reshape(-1, 2).astype(np.float64)
    if len(tilt) != positions:
        raise DataError(f"{opened.path}: {len(tilt)} tilts for {positions} positions; is the file complete?")
    return tilt[:1] if (tilt == tilt[0]).all() else tilt


def _history(opened: Opened) -> tuple[EpochRecord, ...]:
    for iters, values in (("progress/total_loss/iters", "progress/total_loss/values"), ("progress/iters", "progress/detector_errors")):
        if opened.has(iters) and opened.has(values):
            pairs = zip(opened.array(iters, (1,)), opened.array(values, (1,)), strict=False)
            return tuple(EpochRecord(0, "phaser", int(epoch), float(loss), math.nan) for epoch, loss in pairs)
    return ()
