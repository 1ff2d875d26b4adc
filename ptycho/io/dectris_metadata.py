"""What a DECTRIS master file says of the detector, and NOVENA's file beside it of the microscope and the scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptycho.frames import Header, Quantity
from ptycho.io import hdf5

if TYPE_CHECKING:
    import h5py

DETECTOR = "/entry/instrument/detector"

#: More missing frames than this for each that is there, and the number in the master is not believed.
_MAX_MISSING = 64


def detector_number(master: h5py.File, name: str) -> float | None:
    """A finite number of the detector's group; None when it is not there or stands in another file."""
    import h5py

    item = hdf5.find(master, f"{DETECTOR}/{name}")
    return None if not isinstance(item, h5py.Dataset) or item.is_virtual else hdf5.number(item)


def add_detector(header: Header, master: h5py.File) -> None:
    """Add what the detector was told: the beam energy, the exposure and, where it is set, the distance."""
    file, metadata = header.path.name, header.metadata
    energy_eV = detector_number(master, "detectorSpecific/photon_energy")
    if energy_eV is not None and energy_eV > 0:
        metadata["voltage_kV"] = Quantity(energy_eV / 1e3, "kV", f"{file}: photon_energy")
    count_time_s = detector_number(master, "count_time")
    if count_time_s is not None and count_time_s > 0:
        metadata["exposure_ms"] = Quantity(count_time_s * 1e3, "ms", f"{file}: count_time")
    distance_m, pixel_m = detector_number(master, "detector_distance"), detector_number(master, "x_pixel_size")
    if distance_m is not None and pixel_m is not None and distance_m > 0 and pixel_m > 0:
        # As the camera length it is nominal: lenses stand between specimen and detector.
        metadata["pixel_mrad"] = Quantity(pixel_m / distance_m * 1e3, "mrad", f"{file}: x_pixel_size / detector_distance", trusted=False)


def add_microscope(header: Header, scan: h5py.Group, file: str) -> None:
    """Add what the group "STEM Metadata" of the sidecar ``file`` says of the microscope; the master's voltage wins."""
    metadata = header.metadata
    voltage_V = hdf5.number(scan, "High Tension")
    if voltage_V is not None and voltage_V > 0 and "voltage_kV" not in metadata:
        metadata["voltage_kV"] = Quantity(voltage_V / 1e3, "kV", f"{file}: High Tension")
    camera_length_m = hdf5.number(scan, "Camera Length")
    if camera_length_m is not None and camera_length_m > 0:
        metadata["camera_length_m"] = Quantity(camera_length_m, "m", f"{file}: Camera Length", trusted=False)
    # In nm: with it, pixels x magnification is the same 92 mm in files of 68 000 and of 165 000 000 times.
    step_nm = hdf5.number(scan, "Pixel Size")
    if step_nm is not None and step_nm > 0:
        calibrated = hdf5.number(scan, "IsPixelSizeCalibrated") == 1
        metadata["step_A"] = Quantity((step_nm * 10, step_nm * 10), "Å", f"{file}: Pixel Size", trusted=calibrated)
    rotation_deg = hdf5.number(scan, "Rotation")
    if rotation_deg:
        metadata["rotation_deg"] = Quantity(rotation_deg, "°", f"{file}: Rotation", trusted=False)


def add_scan_shape(header: Header, master: h5py.File | None, scan: h5py.Group | None, file: str) -> None:
    """Add scan shape and flyback: the detector's triggers x images, else what the sidecar ``file`` says if it fits the number of frames."""
    warnings, name = header.warnings, header.path.name
    n_images = header.n_frames if header.acquired is None else int(header.acquired[-1]) + 1
    triggers, images = _asked(header, master, n_images)
    slow, fast, prescan = (_whole(None if scan is None else hdf5.number(scan, f"NumPixels{key}")) for key in ("Y", "X", "Prescan"))
    if triggers > 1 and images > 1 and (triggers, images) != (slow, fast + prescan):
        if slow * fast > 1:
            warnings.append(f"{name}: the detector took {triggers} x {images} images, the scan's file says {slow} x {fast}; the detector is believed")
        _set_shape(header, (triggers, images), f"{name}: ntrigger x nimages")
        return
    if slow * fast <= 1:
        return
    possible = {n for n in (n_images, triggers * images) if n <= _MAX_MISSING * header.n_frames}
    if slow * (fast + prescan) in possible:
        header.flyback = (prescan, 0)
        _set_shape(header, (slow, fast), f"{file}: NumPixelsY x NumPixelsX")
    elif slow * fast in possible:
        warnings.append(f"{name}: the {prescan} prescan pixels of each line are not in the data, or are the first of its {fast}")
        _set_shape(header, (slow, fast), f"{file}: NumPixelsY x NumPixelsX")
    else:
        warnings.append(f"{name}: the scan's file says {slow} x {fast} points, which does not fit {n_images} images; not used")


def _asked(header: Header, master: h5py.File | None, n_images: int) -> tuple[int, int]:
    """(triggers, images of each) that the detector was asked for; (0, 0) when it does not say or the data files do not fit."""
    if master is None:
        return 0, 0
    triggers, images = (_whole(detector_number(master, f"detectorSpecific/{key}")) for key in ("ntrigger", "nimages"))
    asked = triggers * images
    if not asked or n_images <= asked <= _MAX_MISSING * header.n_frames:
        if asked > n_images:
            header.warnings.append(f"{header.path.name}: {asked} images were asked of the detector, the data files end after {n_images}")
        return triggers, images
    header.warnings.append(f"{header.path.name}: it says {triggers} x {images} images, the data files have {n_images}; the former is not used")
    return 0, 0


def _set_shape(header: Header, shape: tuple[int, int], source: str) -> None:
    header.scan_shape = shape
    header.metadata["scan_shape"] = Quantity(shape, "", source)


def _whole(value: float | None) -> int:
    """A whole number from 0 to 2^31, else 0."""
    return int(value) if value is not None and 0 <= value < 1 << 31 and value == int(value) else 0
