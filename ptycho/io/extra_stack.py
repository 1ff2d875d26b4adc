"""What rosettasciio found in a file: which of its arrays is a stack of diffraction patterns, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.errors import DataError
from ptycho.frames import Header, Quantity
from ptycho.io.units import Dimension, add, add_dimensions, finite, json_value

#: Recipe's name -> (where HyperSpy's metadata have it, factor from its unit: keV, mm, mrad, s, s).
_METADATA = {
    "voltage_kV": (("beam_energy",), 1.0),
    "camera_length_m": (("camera_length",), 1e-3),
    "semiangle_mrad": (("convergence_angle",), 1.0),
    "exposure_ms": (("Camera.exposure", "Detector.Camera.exposure"), 1e3),
}
#: What HyperSpy calls patterns; everything else (EELS, EDS_TEM, CL, ...) is spectra.
_PATTERNS = ("", "diffraction", "electron_diffraction", "diffraction2d")
#: Camera lengths are nominal, and a camera's exposure is not always that of the scan.
_NOT_TRUSTED = ("camera_length_m", "exposure_ms")


@dataclass(frozen=True)
class Stack:
    """An array of NumPy or dask with the scan's axes first, and their dimensions in the same order.

    ``detector_first``: the file has the detector's axes first; ``data`` is a view of it with the axes exchanged. ``assumed_order``: nothing
    in the file says so.
    """

    data: Any
    axes: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, Any]
    detector_first: bool = False
    assumed_order: bool = False

    @property
    def n_frames(self) -> int:
        """Number of patterns."""
        return math.prod(int(n) for n in self.data.shape[:-2])

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Pixels of a pattern (ky, kx)."""
        return int(self.data.shape[-2]), int(self.data.shape[-1])

    @property
    def scan_shape(self) -> tuple[int, int] | None:
        """(slow, fast) of two scan axes, (1, n) of one with a length; None for a series."""
        scan = [int(n) for n in self.data.shape[:-2]]
        if len(scan) == 2:
            return scan[0], scan[1]
        found = dimension(self.axes[0]).in_our_unit
        return (1, scan[0]) if found is not None and found[0] == "length" else None


def choose_stack(path: Path, kind: str, signals: Sequence[Mapping[str, Any]]) -> Stack:
    """The largest stack of patterns. Raises DataError naming what was found when there is none."""
    stacks = [stack for signal in signals if (stack := _as_stack(signal)) is not None]
    if not stacks:
        found = ", ".join(_shown(signal) for signal in signals[:3]) or "nothing"
        raise DataError(f"{path}: there are no diffraction patterns of a scan in this {kind} file; it has {found}")
    return max(stacks, key=lambda stack: math.prod(stack.data.shape))


def dimension(axis: Mapping[str, Any]) -> Dimension:
    """An axis of rosettasciio in our terms."""
    unit, name = str(axis.get("units") or ""), str(axis.get("name") or "")
    step = axis.get("scale")
    return Dimension(
        None if step is None else float(step),
        unit.removesuffix("s") if unit.endswith("rads") else unit,
        name,
        " ".join(["axis", *name.split(), "in", *unit.split()]),
    )


def describe(header: Header, stack: Stack) -> None:
    """Put steps, pixel and instrument values into the header."""
    dimensions = [dimension(axis) for axis in stack.axes]
    if len(dimensions) == 3 and header.scan_shape is not None:
        dimensions = [dimensions[0], *dimensions]  # one line: its step for both directions
    if header.scan_shape is not None:
        header.metadata["scan_shape"] = Quantity(header.scan_shape, "", f"{header.path.name}: scan axes")
    if header.format == "tvips":
        # rosettasciio gives the camera's physical pixels (nm) as 1/nm.
        dimensions = dimensions[:-2]
        header.warnings.append(f"{header.path.name}: the scan is not stored; frames from before it began may come first (skip_frames)")
    axes = ("y", "x", "ky", "kx") if header.scan_shape is not None else ("n", "ky", "kx")
    add_dimensions(header, axes, dimensions)
    for key, (places, factor) in _METADATA.items():
        for place in places:
            stored = json_value(stack.metadata, f"Acquisition_instrument.TEM.{place}")
            value = finite(stored.item() if isinstance(stored, np.generic) else stored, factor)
            if value is not None and value > 0:
                add(header, key, value, place, trusted=key not in _NOT_TRUSTED)
    if header.format == "pantarhei" and not header.metadata.keys() - {"scan_shape"}:
        header.warnings.append(f"{header.path.name}: nothing is known of the instrument; metadata of before Panta Rhei 24.03 (a pickle) are not read")
    if stack.assumed_order:
        header.warnings.append(f"{header.path.name}: that the detector's axes come before the scan's is assumed; look at a pattern")


def _as_stack(signal: Mapping[str, Any]) -> Stack | None:
    """A signal as patterns of a scan; None for spectra, single images and more axes than two of scan and two of detector."""
    data, axes = signal["data"], list(signal["axes"])
    if not _may_be_patterns(signal) or len(axes) != data.ndim or min(data.shape, default=0) < 1:
        return None
    order = [i for i, axis in enumerate(axes) if axis.get("navigate")] + [i for i, axis in enumerate(axes) if not axis.get("navigate")]
    data, axes = data.transpose(order), [axes[i] for i in order]
    while data.ndim > 4 and axes[0].get("navigate") and data.shape[0] == 1:
        data, axes = data[0], axes[1:]
    if data.ndim not in (3, 4) or sum(not axis.get("navigate") for axis in axes) != 2:
        return None
    swapped = _said_to_be_swapped(signal)
    kinds = [found[0] if (found := dimension(axis).in_our_unit) else "" for axis in axes]
    unknown = swapped is False and not any(kinds)  # DigitalMicrograph's own order is detector first
    detector_first = data.ndim == 4 and not swapped and (unknown or ("length" not in kinds[:2] and all(kinds[:2]) and kinds[2:] == ["length"] * 2))
    if detector_first:
        data, axes = data.transpose(2, 3, 0, 1), axes[2:] + axes[:2]
    return Stack(data, tuple(axes), _metadata(signal), detector_first, unknown and data.ndim == 4)


def _may_be_patterns(signal: Mapping[str, Any]) -> bool:
    """False for spectra, complex numbers and colours."""
    spectra = any(str(axis.get("units")).lower() in ("ev", "kev") for axis in signal["axes"])
    type_of_signal = json_value(signal.get("metadata"), "Signal.signal_type")
    return not spectra and signal["data"].dtype.kind in "biuf" and str(type_of_signal or "").lower() in _PATTERNS


def _said_to_be_swapped(signal: Mapping[str, Any]) -> bool | None:
    """DigitalMicrograph's word that the scan's axes are the slow ones; None for other formats."""
    images = json_value(signal.get("original_metadata"), "ImageList.TagGroup0.ImageTags")
    if images is None:
        return None
    return bool(json_value(images, "Meta Data.Data Order Swapped"))


def _metadata(signal: Mapping[str, Any]) -> dict[str, Any]:
    """The signal's metadata, with what its ``mapping`` makes of the original ones: path -> (path in metadata, function or None)."""
    metadata: dict[str, Any] = dict(signal.get("metadata") or {})
    wanted = {f"Acquisition_instrument.TEM.{place}" for places, _ in _METADATA.values() for place in places}
    for path, (target, function) in (signal.get("mapping") or {}).items():
        value = _look_up(signal.get("original_metadata"), path)
        if target not in wanted or value is None or json_value(metadata, target) is not None:
            continue
        try:
            value = value if function is None else function(value)
        except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError):
            continue
        *parents, last = target.split(".")
        place = metadata
        for parent in parents:
            place[parent] = dict(place[parent]) if isinstance(place.get(parent), dict) else {}
            place = place[parent]
        place[last] = value
    return metadata


def _look_up(item: Any, path: str) -> Any:
    """What stands at "Microscope Info.Voltage" in nested dictionaries; blanks in their keys may be "_" in the path."""
    for key in path.replace(" ", "_").split("."):
        item = next((value for name, value in item.items() if str(name).replace(" ", "_") == key), None) if isinstance(item, dict) else None
    return item


def _shown(signal: Mapping[str, Any]) -> str:
    axes = signal.get("axes") or []
    scan = " x ".join(str(axis.get("size")) for axis in axes if axis.get("navigate")) or "1"
    each = " x ".join(str(axis.get("size")) for axis in axes if not axis.get("navigate"))
    return f"{scan} signals of {each} {getattr(signal.get('data'), 'dtype', '')}"[:80]
