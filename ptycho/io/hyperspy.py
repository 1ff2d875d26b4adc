"""HyperSpy's .hspy: /Experiments/<title>/data with a group axis-0, axis-1, ... for each of its axes, navigation (scan) axes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io import hdf5
from ptycho.io.options import Options
from ptycho.io.units import Dimension, add, add_dimensions

if TYPE_CHECKING:
    import h5py


def recognise_hyperspy(file: h5py.File) -> bool:
    """True for files whose root says so and that have an experiment."""
    return (hdf5.text(file, "file_format") or "").lower() == "hyperspy" and bool(_signals(file))


def open_hyperspy(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of ``options.dataset``, else of the only signal of 3 or 4 axes. Raises DataError when there are several, or none."""
    name = _choose(path, file) if options.dataset is None else hdf5.resolve(path, file, options.dataset)
    data = file[name]
    groups = [_axis_group(file, data, index) for index in range(data.ndim)]
    axes = _axes([bool(hdf5.number(group, "navigate")) for group in groups])
    header = hdf5.dataset_header(path, "hyperspy", data, axes)
    header.metadata = hdf5.recipe_attributes(path.name, data)
    if axes is not None:
        add_dimensions(header, axes, [_dimension(group) for group in groups])
    _add_instrument(header, file, data)
    return hdf5.Hdf5Source(file, name, header, axes)


def _signals(file: h5py.File) -> dict[str, h5py.Dataset]:
    import h5py

    group = hdf5.find(file, "Experiments")
    found = hdf5.datasets(group, "/Experiments/") if isinstance(group, h5py.Group) else {}
    return {name: item for name, item in found.items() if name.endswith("/data") and name.count("/") == 3}


def _choose(path: Path, file: h5py.File) -> str:
    signals = _signals(file)
    stacks = {name: item for name, item in signals.items() if item.ndim in (3, 4) and item.dtype.kind in "biuf" and item.size}
    stacks = {name: item for name, item in stacks.items() if item.ndim == 4} or stacks
    if not stacks:
        raise DataError(f"{path}: there is no signal of 3 or 4 axes of real numbers; the file has {hdf5.listed(signals)}")
    if len(stacks) > 1:
        raise DataError(f"{path}: which signal holds the patterns? The file has {hdf5.listed(stacks)}; write {path.name}::NAME")
    return next(iter(stacks))


def _axis_group(file: h5py.File, data: h5py.Dataset, index: int) -> Any:
    """The attributes of one axis, or None."""
    return hdf5.find(file, f"{data.parent.name.rstrip('/')}/axis-{index}")


def _axes(navigate: list[bool]) -> hdf5.Axes | None:
    """What each axis is, from which of them are navigated; frames first when that tells nothing. None unless there are 3 or 4."""
    names = {3: (("n",), ("ky", "kx")), 4: (("y", "x"), ("ky", "kx"))}.get(len(navigate))
    if names is None:
        return None
    scan, detector = list(names[0]), list(names[1])
    if sum(navigate) != len(scan):
        return (*scan, *detector)
    return tuple((scan if is_scan else detector).pop(0) for is_scan in navigate)


def _dimension(group: Any) -> Dimension:
    """Step and unit; an axis that is not uniform has no scale."""
    source = "" if group is None else f"{group.name} scale"
    return Dimension(hdf5.number(group, "scale"), hdf5.text(group, "units"), hdf5.text(group, "name") or "", source)


def _add_instrument(header: Header, file: h5py.File, data: h5py.Dataset) -> None:
    """HyperSpy's units: kV, mrad, mm, nA. Of exposure and camera length programs disagree about the unit (ms or s, mm or cm)."""
    start = f"{data.parent.name.rstrip('/')}/metadata/Acquisition_instrument/TEM"
    for key, name, factor, trusted in (
        ("voltage_kV", "beam_energy", 1.0, True),
        ("semiangle_mrad", "convergence_angle", 1.0, True),
        ("camera_length_m", "camera_length", 1e-3, False),
        ("beam_current_pA", "beam_current", 1e3, True),
        ("exposure_ms", "Detector/Diffraction/exposure_time", 1.0, False),
        ("rotation_deg", "scan_rotation", 1.0, False),
    ):
        place, _, attribute = f"{start}/{name}".rpartition("/")
        value = hdf5.number(hdf5.find(file, place), attribute)
        if value is not None and (value > 0 or key == "rotation_deg"):
            add(header, key, value * factor, f"{place} {attribute}", trusted)
