"""Files for tests of what rosettasciio reads: Gatan DM4, TVIPS and HyperSpy zspy, byte by byte."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CODES = {int: ("<i", 3), float: ("<d", 7), bool: ("<?", 8)}
_TYPES = {"u1": (6, 10), "u2": (10, 4), "f4": (2, 6)}


def write_tvips(path: Path, patterns: NDArray, *, voltage_kV: int = 200, part_frames: int | None = None) -> None:
    """Patterns (slow, fast, ky, kx) as ``name_000.tvips`` (the path), and parts 001, ... when there are more than ``part_frames``."""
    frames = patterns.reshape(-1, *patterns.shape[2:]).astype("<u2")
    ky, kx = frames.shape[1:]
    header = struct.pack("<13I", 256, 2, kx, ky, 16, 0, 0, 1, 1, 15_600, voltage_kV, 80, 60).ljust(256, b" ")
    step = part_frames or len(frames)
    for part in range(0, len(frames), step):
        records = [header if part == 0 else b""]
        for k, frame in enumerate(frames[part : part + step], part):
            records += [struct.pack("<4IfII5fIff", k, 1_000_000 + k, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, k + 1, 0, 0), frame.tobytes()]
        path.with_name(f"{path.name[:-9]}{part // step:03d}.tvips").write_bytes(b"".join(records))


def write_dm4(path: Path, patterns: NDArray, *, swapped: bool | None = True, step_nm: float = 0.5, units: tuple[str, str] = ("nm", "1/nm")) -> None:
    """Patterns (slow, fast, ky, kx) with the scan's axes slow in the file (``swapped``), else the detector's."""
    data = patterns if swapped else patterns.transpose(2, 3, 0, 1)
    scan, detector = {"Origin": 0.0, "Scale": step_nm, "Units": units[0]}, {"Origin": 0.0, "Scale": 0.2, "Units": units[1]}
    order = (detector, detector, scan, scan) if swapped else (scan, scan, detector, detector)  # fastest first
    tags: dict[str, Any] = {"Microscope Info": {"Voltage": 300_000.0, "STEM Camera Length": 115.0}}
    if swapped is not None:
        tags["Meta Data"] = {"Data Order Swapped": swapped}
    image = {
        "ImageData": {
            "Calibrations": {"Brightness": {"Origin": 0.0, "Scale": 1.0, "Units": ""}, "Dimension": {f"\0{k}": d for k, d in enumerate(order)}},
            "Data": np.ascontiguousarray(data),
            "DataType": _TYPES[data.dtype.str[1:]][0],
            "Dimensions": {f"\0{k}": n for k, n in enumerate(data.shape[::-1])},
        },
        "ImageTags": tags,
        "Name": "scan",
    }
    body = _group({"ImageList": {"\0": image}})
    path.write_bytes(struct.pack(">IQI", 4, len(body), 1) + body + bytes(8))


def write_zspy(folder: Path, patterns: NDArray, *, step_nm: float = 0.5, voltage_kV: float = 200.0) -> None:
    """Patterns (slow, fast, ky, kx) as a folder of Zarr 2 with one chunk for each scan line."""
    names = (("y", step_nm, "nm"), ("x", step_nm, "nm"), ("dy", 0.1, "1 / nm"), ("dx", 0.1, "1 / nm"))
    attributes: dict[str, dict[str, Any]] = {"": {"file_format": "ZSPY", "file_format_version": "3.3"}, "Experiments": {}, "Experiments/scan": {}}
    for k, ((name, scale, units), size) in enumerate(zip(names, patterns.shape, strict=True)):
        axis = {"name": name, "scale": scale, "units": units, "size": size, "offset": 0.0, "navigate": k < 2, "_type": "UniformDataAxis"}
        attributes[f"Experiments/scan/axis-{k}"] = {**axis, "is_binned": False, "index_in_array": k}
    for name, values in (
        ("", {}), ("/General", {"title": "scan"}), ("/Signal", {"signal_type": "electron_diffraction"}), ("/Acquisition_instrument", {}),
        ("/Acquisition_instrument/TEM", {"beam_energy": voltage_kV, "camera_length": 100.0, "convergence_angle": 21.4}),
    ):  # fmt: skip
        attributes[f"Experiments/scan/metadata{name}"] = values
    attributes |= {f"Experiments/scan/{name}": {} for name in ("original_metadata", "learning_results")}
    for name, values in attributes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / name / ".zattrs").write_text(json.dumps(values))
    array = {"zarr_format": 2, "shape": patterns.shape, "chunks": (1, *patterns.shape[1:]), "dtype": "<u2", "order": "C"}
    data = folder / "Experiments" / "scan" / "data"
    data.mkdir()
    (data / ".zarray").write_text(json.dumps({**array, "compressor": None, "fill_value": 0, "filters": None}))
    for k, line in enumerate(patterns):
        (data / f"{k}.0.0.0").write_bytes(line.astype("<u2").tobytes())


def _group(tags: dict[str, Any]) -> bytes:
    return struct.pack(">BBQ", 1, 0, len(tags)) + b"".join(_tag(name, value) for name, value in tags.items())


def _tag(name: str, value: Any) -> bytes:
    """A tag; names that begin with NUL are written as none."""
    plain = b"" if name.startswith("\0") else name.encode()
    body = _group(value) if isinstance(value, dict) else _value(value)
    return struct.pack(">BH", 20 if isinstance(value, dict) else 21, len(plain)) + plain + struct.pack(">Q", len(body)) + body


def _value(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return b"%%%%" + struct.pack(">4Q", 3, 20, _TYPES[value.dtype.str[1:]][1], value.size) + value.tobytes()
    if isinstance(value, str):
        text = value.encode("utf-16-le")
        return b"%%%%" + struct.pack(">4Q", 3, 20, 4, len(value)) + text
    code, kind = _CODES[type(value)]
    return b"%%%%" + struct.pack(">2Q", 1, kind) + struct.pack(code, value)
