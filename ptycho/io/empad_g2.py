"""EMPAD, second generation: frames of 128 x 128 of 4 bytes, with no header and no trailer.

As the detector writes them they are uint32 words: bits 0 to 13 the analog signal, 14 to 29 the number of charge packets taken off,
bit 31 set in low gain. They become float32 with the detector's own calibration (``empad_g2_maps``). Combined frames are float32.
A pixel alternates between two stores. By the readers in use a scan line begins with store A, so that the column tells the store;
for an even number of columns this is the same as counting all frames.

How the rows lie relative to the scan is not documented for this generation: they are left as stored unless a ``.json`` says otherwise.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.atomic import write_file
from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io.empad_g2_maps import NAMES, Calibration, both_stores, make_calibration, read_calibration
from ptycho.io.empad_sidecars import EmpadFiles, describe, find_files
from ptycho.io.options import Options
from ptycho.io.source import BinarySource

G2_FRAME_BYTES = 128 * 128 * 4
_BLOCK = 256


class EmpadG2Source:
    """Frames combined from the detector's words as they are read. Implements FrameSource."""

    def __init__(self, header: Header, calibration: Calibration, columns: int | None) -> None:
        """``columns`` of the scan tell the store of each frame; without them frames are counted from the first."""
        self.header = header
        self._words = BinarySource(replace(header, dtype=np.dtype("<u4")))
        self._calibration = calibration
        self._columns = columns or 2

    def read(self, frames: NDArray[np.int64]) -> NDArray[np.float32]:
        """Combined frames float32 (n, 128, 128). Raises DataError with the byte where the file ends too early."""
        stores = np.asarray(frames, np.int64) % self._columns % 2
        return self._calibration.combine(self._words.read(frames), stores)

    def close(self) -> None:
        """Nothing to release: the file is open only while it is read."""


def open_empad_g2(path: Path, options: Options) -> FrameSource:
    """Frames of a raw file as the detector writes it, combined by ``options.calibration_file``. Raises DataError without one."""
    return open_words(find_files(path, options), options)


def open_empad_combined(path: Path, options: Options) -> FrameSource:
    """Frames of a raw file that has been combined already. Raises DataError for anything that is not one."""
    return open_combined(find_files(path, options))


def open_words(files: EmpadFiles, options: Options) -> FrameSource:
    """As ``open_empad_g2``, when the files are known."""
    header = _header(files, "empad_g2")
    if options.calibration_file is None:
        scan = "" if header.scan_shape is None else f" (scan {header.scan_shape[0]} x {header.scan_shape[1]})"
        raise DataError(
            f"{files.raw}: {header.n_frames} uncombined EMPAD-G2 frames{scan}; give the detector's maps, "
            '[data] calibration_file = "maps.h5", or [data.layout] for another detector'
        )
    calibration = read_calibration(options.calibration_file)
    header.bad_pixels = calibration.bad_pixels
    if not calibration.has_background:
        header.warnings.append(f"{options.calibration_file.name} has no mean_background: the dark level stays in the patterns")
    shape = options.scan_shape or header.scan_shape
    if shape is not None and shape[1] % 2:
        header.warnings.append(f"{files.raw.name}: {shape[1]} columns: every line is taken to begin with store A; look for stripes")
    return EmpadG2Source(header, calibration, None if shape is None else shape[1])


def open_combined(files: EmpadFiles) -> FrameSource:
    """As ``open_empad_combined``, when the files are known."""
    return BinarySource(_header(files, "empad_combined"))


def _header(files: EmpadFiles, format: str) -> Header:
    n_frames, rest = divmod(files.size, G2_FRAME_BYTES)
    if not n_frames:
        raise DataError(f"{files.raw}: {files.size} bytes are less than one EMPAD-G2 frame of {G2_FRAME_BYTES} bytes; is it complete?")
    header = Header(files.raw, format, n_frames, (128, 128), np.dtype("<f4"))
    if rest:
        header.warnings.append(f"{files.raw.name}: {rest} bytes after the last whole frame are left out; the file may have been cut")
    describe(header, files)
    return header


def write_calibration(
    path: str | os.PathLike[str],
    maps: Mapping[str, Any],
    beam_off: str | os.PathLike[str] | None = None,
    scan_shape: tuple[int, int] | None = None,
) -> Path:
    """Write ``maps`` by the names of ``empad_g2_maps`` as a calibration file, with the background of the ``beam_off`` scan if given.

    ``maps`` are (2, 128, 128) or (128, 128, 2), store A first; ``scan_shape`` is that of the beam-off scan, when its name does not say
    it. All of that scan is read once. Raises DataError for maps or a scan that cannot be used, OutputError when it cannot be written.
    """
    path = Path(path)
    unknown = maps.keys() - set(NAMES)
    if unknown:
        raise DataError(f"{path}: {min(unknown)!r} is not the name of a map; known are {', '.join(NAMES)}")
    stored = {name: both_stores(values, f"{path}: {name}") for name, values in maps.items()}
    if beam_off is not None:
        stored.pop("mean_background", None)
        stored["mean_background"] = _mean_background(Path(beam_off), make_calibration(stored, False, str(path)), scan_shape)
    make_calibration(stored, where=str(path))
    _write(path, stored)
    return path


def _mean_background(beam_off: Path, calibration: Calibration, scan_shape: tuple[int, int] | None) -> NDArray[np.float32]:
    """The mean (2, 128, 128) of the frames of each store, combined but without flat field and offsets."""
    header = _header(find_files(beam_off, Options()), "empad_g2")
    shape = scan_shape or header.scan_shape
    columns = 2 if shape is None else shape[1]
    plain = replace(calibration, flat=np.ones_like(calibration.flat))
    source = EmpadG2Source(header, plain, columns)
    sums, numbers = np.zeros((2, 128, 128)), np.zeros(2)
    for start in range(0, header.n_frames, _BLOCK):
        frames = np.arange(start, min(start + _BLOCK, header.n_frames))
        values = source.read(frames)
        for store in (0, 1):
            chosen = frames % columns % 2 == store
            sums[store] += values[chosen].sum(0, dtype=float)
            numbers[store] += chosen.sum()
    if not numbers.all():
        raise DataError(f"{beam_off}: {header.n_frames} frames do not show both stores; a beam-off scan of two columns or more is needed")
    return (sums / numbers[:, None, None]).astype(np.float32)


def _write(path: Path, maps: Mapping[str, NDArray[np.float32]]) -> None:
    import h5py  # late: it is not needed to read

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, values in maps.items():
            file[name] = values
    write_file(path, content.getvalue())
