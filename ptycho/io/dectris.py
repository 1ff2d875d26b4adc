"""DECTRIS detectors (ARINA, QUADRO, ELA, SINGLA; EIGER): ``X_master.h5``, the ``X_data_000001.h5`` ... that it links to, and NOVENA's ``X.h5``.

HDF5 must never follow a link by itself: a file could make the program open any other. The master's links are read here, and only plain
names in its own folder are opened.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io import hdf5
from ptycho.io.dectris_frames import DataFile, DataFilesSource, look_at
from ptycho.io.dectris_metadata import DETECTOR, add_detector, add_microscope, add_scan_shape, detector_number
from ptycho.io.files import beside, natural_order
from ptycho.io.options import Options

if TYPE_CHECKING:
    import h5py

_MAX_FILES = 10_000
_MAX_FRAMES = 1 << 26


def recognise_dectris(file: h5py.File) -> bool:
    """Is it a master file, one of its data files, or the metadata that NOVENA writes beside them?"""
    return _is_master(file) or _is_data_file(file) or _is_sidecar(file)


def _is_master(file: h5py.File) -> bool:
    import h5py

    links = _links(file)
    outside = bool(links) and all(name != "data" and isinstance(file[place].get(name, getlink=True), h5py.ExternalLink) for place, name in links)
    return outside or (bool(links) and _is_group(file, f"{DETECTOR}/detectorSpecific"))


def _is_data_file(file: h5py.File) -> bool:
    import h5py

    data = hdf5.find(file, "/entry/data/data")
    return isinstance(data, h5py.Dataset) and data.ndim in (3, 4) and "image_nr_low" in data.attrs


def _is_sidecar(file: h5py.File) -> bool:
    return _is_group(file, "/STEM Metadata") and hdf5.number(file["STEM Metadata"], "NumPixelsX") is not None


def _is_group(file: h5py.File, name: str) -> bool:
    import h5py

    return isinstance(hdf5.find(file, name), h5py.Group)


def open_dectris(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of all data files of a master, or of the one data file that is named. Raises DataError naming the file that is wanted.

    ``file`` is closed when all is well. A data file that is missing leaves a gap in the frames, with a warning.
    """
    if options.dataset is not None:
        return hdf5.open_generic(path, file, options)
    warnings: list[str] = []
    master = file if _is_master(file) else None
    if master is not None:
        files, missing = _data_files(path, file, warnings)
    elif _is_data_file(file):
        files, missing = [look_at(path, "/entry/data/data")], []
        _say_of_others(path, files[0], warnings)
    else:
        raise DataError(f"{path}: this is the metadata of a scan without its patterns; open {path.stem}_master.h5")
    header = _header(path, [f for f in files if f.n_frames], warnings)
    header.acquired = None if master is None else _acquired(path, files, missing, warnings)
    header.saturation = _saturation(header, master)
    if master is not None:
        add_detector(header, master)
        header.bad_pixels = _bad_pixels(header, master)
        _say_of_flatfield(header, master)
    sidecar = _open_sidecar(path, warnings)
    try:
        scan, name = None if sidecar is None else sidecar["STEM Metadata"], f"{_stem(path)}.h5"
        if scan is not None:
            add_microscope(header, scan, name)
        add_scan_shape(header, master, scan, name)
    finally:
        if sidecar is not None:
            sidecar.close()
    file.close()
    return DataFilesSource(header, [f for f in files if f.n_frames])


# Which files


def _links(file: h5py.File) -> list[tuple[str, str]]:
    """(group, name) of the datasets or links that a master has for its data files; the old layout has them directly in /entry."""
    import h5py

    for place, pattern in (("/entry/data", r"data_\d{1,9}"), ("/entry", r"data_\d{1,9}"), ("/entry/data", "data")):
        group = hdf5.find(file, place)
        names = itertools.islice(group if isinstance(group, h5py.Group) else (), 2 * _MAX_FILES)
        found = [(place, name) for name in names if isinstance(name, str) and re.fullmatch(pattern, name)]
        if found:
            return sorted(found, key=lambda item: natural_order(Path(item[1])))
    return []


def _data_files(path: Path, file: h5py.File, warnings: list[str]) -> tuple[list[DataFile], list[Path]]:
    """(the data files in their order, the paths of those that are missing). Raises DataError when there are none."""
    import h5py

    wanted: list[tuple[Path, str]] = []
    for place, name in _links(file):
        link = file[place].get(name, getlink=True)
        wanted.append(_followed(path, link) if isinstance(link, h5py.ExternalLink) else (path, f"{place}/{name}"))
    if len(wanted) > _MAX_FILES:
        raise DataError(f"{path}: it names more than {_MAX_FILES} data files; is it damaged?")
    missing = [found for found, _ in wanted if not found.exists()]
    if len(missing) == len(wanted):
        renamed = [beside(path, name) for name in _siblings(path)]
        if not renamed:
            more = f" (and {len(wanted) - 1} more)" if len(wanted) > 1 else ""
            raise DataError(f"{path}: the patterns are in {missing[0].name}{more}, which is not beside it; put the files together")
        warnings.append(f"{path.name}: {missing[0].name}, which it names, is not there; {renamed[0].name} and what follows it are read instead")
        wanted, missing = [(found, "/entry/data/data") for found in renamed], []
    elif missing:
        names = ", ".join(found.name for found in missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.append(f"{path.name}: {len(missing)} of {len(wanted)} data files are missing ({names}); their frames are left out")
    return [look_at(found, dataset) for found, dataset in wanted if found not in missing], missing


def _followed(path: Path, link: h5py.ExternalLink) -> tuple[Path, str]:
    """(data file, name of the dataset in it) of a link. Raises DataError unless it is a plain name, in the master's own folder."""
    name, dataset = str(link.filename), str(link.path)
    if not (name.isprintable() and dataset.isprintable() and len(dataset) <= 100):
        raise DataError(f"{path}: it links to {dataset[:40]!r} in {name[:40]!r}, which is no name of a data file; is it damaged?")
    return beside(path, name), dataset


def _stem(path: Path) -> str:
    """ "X" of X_master.h5 and of X_data_000001.h5."""
    return re.sub(r"_(master|data_\d+)$", "", path.stem, flags=re.IGNORECASE)


def _siblings(path: Path) -> list[str]:
    """Names of the data files in the folder that belong to the master or data file ``path``, in the order of their numbers."""
    pattern = re.compile(re.escape(_stem(path)) + r"_data_\d{6,9}\.h5", re.IGNORECASE)
    found = sorted((other for other in path.parent.iterdir() if pattern.fullmatch(other.name)), key=natural_order)
    return [other.name for other in found[:_MAX_FILES]]


def _say_of_others(path: Path, data: DataFile, warnings: list[str]) -> None:
    """Say that a data file which was opened by itself is one of several, and has no mask."""
    images = "" if data.first is None else f" (images {data.first} to {data.first + data.n_frames - 1})"
    master = f"{_stem(path)}_master.h5"
    others = [name for name in _siblings(path) if name != path.name]
    if path.with_name(master).exists():
        advice = f"open {master} for all of it, with the detector's mask"
    else:
        advice = f"{len(others)} more beside it ({others[0]}, ...) are not read" if others else "there is no master file with the detector's mask"
    warnings.append(f"{path.name}: this is one data file{images} of an acquisition; {advice}")


def _open_sidecar(path: Path, warnings: list[str]) -> h5py.File | None:
    """The file X.h5 of the scan software beside X_master.h5, open; None when there is none that can be read."""
    name = f"{_stem(path)}.h5"
    if name == path.name or not path.with_name(name).exists():
        return None
    try:
        sidecar = hdf5.open_file(beside(path, name))
    except DataError as error:
        warnings.append(f"{name} is not used: {str(error).removeprefix(str(path.with_name(name)) + ': ')[:120]}")
        return None
    if _is_sidecar(sidecar):
        return sidecar
    sidecar.close()
    return None


# What the frames are


def _header(path: Path, files: Sequence[DataFile], warnings: list[str]) -> Header:
    """The header of data files that fit together. Raises DataError when they do not."""
    if not files:
        raise DataError(f"{path}: its data files hold no frames; was the acquisition stopped before it began?")
    one, n_frames = files[0], sum(f.n_frames for f in files)
    for other in files:
        if (other.frame_shape, other.dtype) != (one.frame_shape, one.dtype):
            differ = f"{other.frame_shape} {other.dtype}, {one.path.name} has {one.frame_shape} {one.dtype}"
            raise DataError(f"{path}: {other.path.name} has frames {differ}; they are not of one acquisition")
    if n_frames > _MAX_FRAMES:
        raise DataError(f"{path}: {n_frames} frames are more than can be handled; is it damaged?")
    if max(f.n_channels for f in files) > 1:
        warnings.append(f"{path.name}: each frame has {one.n_channels} energy channels; the first is used")
    return Header(path, "dectris", n_frames, one.frame_shape, one.dtype, warnings=warnings)


def _acquired(path: Path, files: Sequence[DataFile], missing: Sequence[Path], warnings: list[str]) -> NDArray[np.int64] | None:
    """The number of each frame in the acquisition, counted from 0; None when they are all there, one after another."""
    files = [f for f in files if f.n_frames]
    firsts = [f.first - 1 for f in files if f.first is not None]
    ends = [first + f.n_frames for first, f in zip(firsts, files, strict=False)]
    if len(firsts) < len(files) or any(end > first for end, first in zip(ends, firsts[1:], strict=False)):
        if missing:
            raise DataError(f"{path}: {missing[0].name} is missing and the other data files do not say which images they hold; put it beside them")
        if firsts:
            warnings.append(f"{path.name}: the image numbers in its data files repeat or are missing; frames are counted one after another")
        return None
    for f in files:
        if f.first is not None and f.last is not None and f.last - f.first + 1 != f.n_frames:
            warnings.append(f"{f.path.name}: images {f.first} to {f.last} should be in it, {f.n_frames} are")
    gaps = sum(first - end for first, end in zip(firsts, [0, *ends], strict=False))
    if not gaps:
        return None
    warnings.append(f"{path.name}: {gaps} images before the last one are missing")
    return np.concatenate([np.arange(first, end) for first, end in zip(firsts, ends, strict=True)])


def _saturation(header: Header, master: h5py.File | None) -> float | None:
    """The largest stored value that is a count: above are counts that the dead time falsified, and the dtype's maximum marks masked pixels."""
    if header.dtype.kind not in "iu":
        return None
    most = float(np.iinfo(header.dtype).max - 1)
    said = None if master is None else detector_number(master, "saturation_value")
    return most if said is None or said < 1 else min(most, said)


def _bad_pixels(header: Header, file: h5py.File) -> NDArray[np.bool_] | None:
    """True where any bit of the detector's pixel mask is set: gap, dead, cold, hot, noisy."""
    for name in ("detectorSpecific/pixel_mask", "pixel_mask", "threshold_1_channel/pixel_mask"):
        mask = _map(header, file, name)
        if mask is not None:
            return np.asarray(mask != 0)
    return None


def _say_of_flatfield(header: Header, file: h5py.File) -> None:
    applied = detector_number(file, "flatfield_correction_applied")
    flatfield = _map(header, file, "detectorSpecific/flatfield") if applied == 0 else None
    if flatfield is not None and not np.all(flatfield == 1):
        header.warnings.append(f"{header.path.name}: its flat field is not 1 everywhere; neither the detector nor this program has applied it")


def _map(header: Header, file: h5py.File, name: str) -> NDArray[Any] | None:
    """An image of the detector's size in the master; None, with a warning when it is there and cannot be used."""
    import h5py

    data = hdf5.find(file, f"{DETECTOR}/{name}")
    if not isinstance(data, h5py.Dataset):
        return None
    if data.shape != header.frame_shape or data.dtype.kind not in "biuf" or data.is_virtual:
        header.warnings.append(f"{header.path.name}: {name} of the shape {data.shape} does not fit the frames {header.frame_shape}; not used")
        return None
    try:
        return hdf5.small_array(header.path, file, data.name)
    except (DataError, *hdf5.ERRORS):
        header.warnings.append(f"{header.path.name}: {name} is damaged and not used")
        return None
