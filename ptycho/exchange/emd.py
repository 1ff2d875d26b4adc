"""EMD 1.0: arrays with their axes for emdfile, RosettaSciIO and HyperSpy, and py4DSTEM's own saved reconstructions, both ways.

py4DSTEM calls the first axis x. Its object is (z, first, second), its probe lies about pixel [0, 0] and is scaled for a transform without a
factor: the sum of |probe|^2 times the number of pixels is that of the pattern. Positions are in pixels of the object. Waves, propagator
and C10 have our signs; a tilt has the other one. Potentials are phases.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from ptycho.aberrations import parse_aberrations
from ptycho.errors import DataError
from ptycho.exchange.formats import mean_object
from ptycho.exchange.hdf5 import Data, Opened, tree_bytes
from ptycho.exchange.imported import Imported, Taken, aperture_mrad, checked
from ptycho.exchange.recipe_text import Draft, krivanek
from ptycho.geometry import wavelength_A
from ptycho.io import hdf5
from ptycho.result import EpochRecord, Result

_CLASSES = {
    (False, False): "SingleslicePtychography",
    (True, False): "MultislicePtychography",
    (False, True): "MixedstatePtychography",
    (True, True): "MixedstateMultislicePtychography",
}
_POLAR = ("C10", "C12", "C21", "C23", "C30", "C32", "C34", "C41", "C43", "C45", "C50", "C52", "C54", "C56")


def encode_emd(result: Result) -> bytes:
    """Phase, amplitude, complex object, probe and positions, each with its axes in Å."""
    depth = ("z", float(np.mean(result.slice_thickness_A)), "A")
    plane = [("y", result.pixel_A, "A"), ("x", result.pixel_A, "A")]
    return tree_bytes(
        _file(
            "ptychography",
            {
                "object_phase": _array(result.phase, "rad", [depth, *plane]),
                "object_amplitude": _array(result.amplitude, "", [depth, *plane]),
                "object_complex": _array(result.object, "", [("state", 1.0, ""), depth, *plane]),
                "probe": _array(result.probe, "sqrt(electrons)", [("mode", 1.0, ""), *plane]),
                "positions": _array(result.positions_A, "A", [("n", 1.0, ""), ("yx", 1.0, "")]),
            },
            {
                "calibration": {
                    "R_pixel_size": result.pixel_A,
                    "R_pixel_units": "A",
                    "voltage_kV": result.voltage_kV,
                    "semiangle_mrad": result.semiangle_mrad,
                }
            },
        )
    )


def _file(name: str, content: Mapping[str, Any], metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The groups that make a file EMD 1.0."""
    root = {"@emd_group_type": "root", "@python_class": "Root", "metadatabundle": _bundle(metadata), **content}
    head = {"emd_group_type": "file", "version_major": 1, "version_minor": 0, "authoring_program": "ptycho", "authoring_user": ""}
    return {**{f"@{key}": value for key, value in head.items()}, "@UUID": str(uuid.uuid4()), name: root}


def _array(values: Any, unit: str, axes: list[tuple[str, float, str]], kind: str = "array") -> dict[str, Any]:
    dims = {f"dim{i}": Data([0.0, step], name=name, units=units) for i, (name, step, units) in enumerate(axes)}
    return {"@emd_group_type": kind, "@python_class": "Array", "data": Data(values, units=unit), **dims}


def _bundle(metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    head = {"@emd_group_type": "metadata", "@python_class": "Metadata"}
    return {"@emd_group_type": "metadatabundle", **{name: head | {key: _item(v) for key, v in values.items()} for name, values in metadata.items()}}


def _item(value: Any) -> Data:
    """A value as emdfile has it in its metadata: with its kind beside it."""
    if value is None:
        return Data(np.bytes_(b"_None"), type=np.bytes_(b"None"))
    kind = "string" if isinstance(value, str) else "array" if isinstance(value, np.ndarray) else "bool" if isinstance(value, bool) else ""
    kind = kind or ("tuple" if isinstance(value, tuple) else "list" if isinstance(value, list) else "number")
    return Data(np.bytes_(value.encode()) if isinstance(value, str) else value, type=np.bytes_(kind.encode()))


# py4DSTEM's reconstructions


def encode_py4dstem(result: Result) -> bytes:
    """A saved reconstruction, which ``py4DSTEM.read`` opens as an object of its class."""
    modes, slices = len(result.probe), result.object.shape[1]
    size = result.probe.shape[-1]
    name = _CLASSES[slices > 1, modes > 1]
    probe = np.fft.ifftshift(result.probe, axes=(-2, -1)) / size
    tilt = -result.tilt_mrad.mean(0)
    instance: dict[str, Any] = {
        "energy": result.voltage_kV * 1e3, "semiangle_cutoff": result.semiangle_mrad, "rolloff": 2.0,
        "object_padding_px": None, "object_fov_ang": None, "object_type": "complex", "verbose": True, "device": "cpu", "storage": "cpu",
        "clear_fft_cache": True, "name": name, "vacuum_probe_intensity": None, "positions": result.positions_A,
    }  # fmt: skip
    if slices > 1:
        instance |= {"num_slices": slices, "slice_thicknesses": result.slice_thickness_A[:-1].copy()}
        instance |= {"theta_x": float(tilt[0]), "theta_y": float(tilt[1])}
    if modes > 1:
        instance |= {"num_probes": modes}
    pixel_mrad = _angular(result)
    metadata: dict[str, dict[str, Any]] = {
        "instantiation_metadata": instance,
        "preprocess_metadata": {
            "rotation_angle_rad": 0.0, "data_transpose": False, "positions_px": (result.positions_A / result.pixel_A).astype(np.float32),
            "region_of_interest_shape": np.array([size, size]), "amplitudes_shape": np.array([size, size]),
            "num_diffraction_patterns": len(result.positions_A), "sampling": (result.pixel_A, result.pixel_A),
            "angular_sampling": (pixel_mrad, pixel_mrad), "positions_mask": None,
        },
        "reconstruction_metadata": {"reconstruction_error": [record.loss for record in result.history] or [0.0]},
        "aberrations_metadata": _polar(result),
    }  # fmt: skip
    object_ = mean_object(result)
    plane = [("x", result.pixel_A, "A"), ("y", result.pixel_A, "A")]
    depth = [("z", float(np.mean(result.slice_thickness_A)), "A")] if slices > 1 else []
    content = {
        "@emd_group_type": "custom",
        "@python_class": name,
        "metadatabundle": _bundle(metadata),
        "_object_emd": _array(object_ if slices > 1 else object_[0], "", [*depth, *plane], "custom_array"),
        "_probe_emd": _array(probe if modes > 1 else probe[0], "", [*([("mode", 1.0, "")] if modes > 1 else []), *plane], "custom_array"),
    }
    return tree_bytes(_file(f"{name}_root", {name: content}, {}))


def _angular(result: Result) -> float:
    """Angle of a pixel of the pattern in mrad."""
    return wavelength_A(result.voltage_kV) / (result.probe.shape[-1] * result.pixel_A) * 1e3


def _polar(result: Result) -> dict[str, float]:
    """Its names: C10 ... in Å, phi12 ... in rad."""
    known = {term.name: term for term in parse_aberrations(result.aberrations)} if result.aberrations else {}
    found = {name: float(known[name].magnitude_A) if name in known else 0.0 for name in _POLAR}
    angles = {f"phi{name[1:]}": math.radians(known[name].angle_deg) if name in known else 0.0 for name in _POLAR if name[2] != "0"}
    return found | angles


def find_py4dstem(opened: Opened) -> str | None:
    """The group of a saved reconstruction; None where there is none."""
    for top in list(opened.file)[:100]:
        group = hdf5.find(opened.file, top)
        for name in list(group)[:100] if isinstance(group, h5py.Group) else ():
            if opened.has(f"{top}/{name}/_object_emd/data") and opened.has(f"{top}/{name}/_probe_emd/data"):
                return f"{top}/{name}"
    return None


def import_py4dstem(opened: Opened, group: str) -> Imported:
    """Result and recipe of a saved reconstruction. Raises DataError when it is not complete or of another kind."""
    path, metadata = opened.path, opened.values(f"{group}/metadatabundle")
    taken = Taken(metadata)
    instance, prepared = "instantiation_metadata.", "preprocess_metadata."
    energy, sampling = taken.number(instance + "energy"), taken.numbers(prepared + "sampling", (2,))
    positions = opened.array(f"{group}/metadatabundle/preprocess_metadata/positions_px", (2,))
    if energy is None or sampling is None or not math.isclose(*sampling, rel_tol=1e-4):
        raise DataError(f"{path}: energy {energy} eV and sampling {sampling} Å; an energy and square pixels are needed here")
    object_ = opened.array(f"{group}/_object_emd/data", (2, 3))
    object_ = object_ if object_.dtype.kind == "c" else np.exp(1j * object_)
    probe = opened.array(f"{group}/_probe_emd/data", (2, 3), "c")
    slices, modes = object_.reshape(-1, *object_.shape[-2:]), probe.reshape(-1, *probe.shape[-2:])
    if modes.shape[-1] != modes.shape[-2]:
        raise DataError(f"{path}: a window of {modes.shape[-2:]}; a square one is needed here")
    pixel_A, voltage = float(sampling[0]), energy * 1e-3
    wave = (np.fft.fftshift(modes, axes=(-2, -1)) * modes.shape[-1]).astype(np.complex64)
    thickness = np.atleast_1d(np.asarray(taken.get(instance + "slice_thicknesses", 10.0), np.float64))
    tilt = [taken.number(instance + name) or 0.0 for name in ("theta_x", "theta_y")]
    angle = taken.number(instance + "semiangle_cutoff") or aperture_mrad(wave, pixel_A, voltage)
    draft = Draft("py4DSTEM", path)
    terms = _krivanek(taken)
    draft.add("microscope", "voltage_kV", voltage, "energy")
    draft.add("microscope", "semiangle_mrad", angle, "semiangle_cutoff")
    draft.aberrations(terms, "aberrations at the start")
    angular = taken.numbers(prepared + "angular_sampling", (2,))
    draft.add("detector", "pixel_mrad", None if angular is None else float(angular[0]), "angular_sampling")
    draft.add("model", "probe_modes", len(wave), "probe")
    draft.add("model", "slices", len(slices), "object")
    result = Result(
        object=slices[None].astype(np.complex64),
        occupancy=np.ones(1),
        pixel_A=pixel_A,
        slice_thickness_A=_thicknesses(thickness, len(slices)),
        probe=wave,
        positions_A=positions.astype(np.float64) * pixel_A,
        tilt_mrad=-np.array([tilt]) + 0.0,
        history=_history(taken),
        recipe="",
        versions={"py4DSTEM": "unknown"},
        voltage_kV=voltage,
        semiangle_mrad=angle,
        aberrations=terms,
    )
    if len(slices) > 1:
        draft.add("model", "slice_thickness_A", result.slice_thickness_A, "slice_thicknesses; the last one has no meaning there")
    if any(tilt):
        draft.add("model", "tilt_mrad", result.tilt_mrad[0], "theta_x (first axis), theta_y, whose sign is the other one")
    draft.start("result.h5")
    for name in ("instantiation_metadata", "preprocess_metadata", "reconstruction_metadata"):
        taken.get(name)
    recipe = draft.done(taken)
    return Imported(checked(result, path), recipe.text, recipe.warnings)


def _thicknesses(given: np.ndarray, slices: int) -> np.ndarray:
    """One for each slice: there it is one fewer, for nothing is behind the last."""
    if len(given) == slices - 1 and slices > 1:
        return np.append(given, given[-1])
    return given if len(given) == slices else np.full(slices, given[0])


def _krivanek(taken: Taken) -> dict[str, float]:
    """Aberrations by our names, angles in degrees; those that are zero left out."""
    terms: dict[str, float] = {}
    for name in taken.get("aberrations_metadata", {}):
        value = taken.number(f"aberrations_metadata.{name}")
        if value and krivanek(name):
            terms[name] = value
            if name[2] != "0" and (phi := taken.number(f"aberrations_metadata.phi{name[1:]}")):
                terms[f"phi{name[1:]}_deg"] = math.degrees(phi)
    taken.get("aberrations_metadata")
    return terms


def _history(taken: Taken) -> tuple[EpochRecord, ...]:
    errors = taken.numbers("reconstruction_metadata.reconstruction_error", (-1,))
    return () if errors is None else tuple(EpochRecord(0, "py4dstem", i, float(error), math.nan) for i, error in enumerate(errors, 1))
