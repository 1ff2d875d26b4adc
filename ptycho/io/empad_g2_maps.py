"""Calibration of an EMPAD of the second generation: from the words of its pixels to values that are linear in the charge.

The calibration file is HDF5 with one map of 128 x 128 pixels for each of the two stores that a pixel alternates between, A for the
even frames and B for the odd ones: ``NAME`` of the shape (2, 128, 128) or (128, 128, 2), or ``NAMEA`` and ``NAMEB`` of (128, 128).

    linear model     G1, G2, B2              value = analog, or G1 (analog - B2) in low gain, + G2 digital
    quadratic model  Ml, alpha, Md, Oh, Ot   value = analog, or Ml analog + alpha analog^2 + Oh in low gain, + Md digital - Ot
    for both         mean_background         subtracted: the mean of a beam-off scan after the same steps
                     FF                      multiplied: the flat field
    attribute        debounce                0: the offset of each frame is not sought

When both models are complete, the quadratic one is used. NaN in a map marks a pixel that is not to be used.
``empad_g2.write_calibration`` writes such a file, with the background from a beam-off scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.files import unreadable

MODELS = {"quadratic": ("Ml", "alpha", "Md", "Oh", "Ot"), "linear": ("G1", "G2", "B2")}
NAMES = (*MODELS["quadratic"], *MODELS["linear"], "FF", "mean_background")
_PIXELS = (128, 128)
_BLOCK = 8  # frames at a time: their arrays stay in the cache

# The histogram in which the offset of a frame is sought: 42 bins of 10 from -205, their centres at -200, -190, ... 210.
_BIN, _LOW, _BINS, _REACH = 10.0, -205.0, 42, 3
_LEAST_COUNT, _LARGEST_OFFSET = 40, 200.0

Map = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Both models as one: value = analog + high_offset, or low_offset + low_gain analog + low_square analog^2 in low gain, + digital_gain digital.

    Then debounced, then times ``flat``. Every map is (2, 128, 128); the background is in both offsets.
    """

    digital_gain: Map
    high_offset: Map
    low_offset: Map
    low_gain: Map
    low_square: Map
    flat: Map
    has_background: bool
    debounce: bool = True

    @property
    def bad_pixels(self) -> NDArray[np.bool_] | None:
        """(128, 128), True where a map of either store is not finite; None when all are good."""
        maps = (self.digital_gain, self.high_offset, self.low_offset, self.low_gain, self.low_square, self.flat)
        bad = ~np.all([np.isfinite(m).all(0) for m in maps], axis=0)
        return bad if bad.any() else None

    def combine(self, words: NDArray[np.uint32], stores: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values (n, 128, 128) of frames of words, each from store 0 or 1."""
        values = np.empty(words.shape, np.float32)
        with np.errstate(all="ignore"):  # maps with NaN, or of a file that is no calibration at all
            for store in (0, 1):
                frames = np.flatnonzero(stores == store)
                for start in range(0, len(frames), _BLOCK):
                    block = frames[start : start + _BLOCK]
                    values[block] = self._combine(words[block], store)
        return values

    def _combine(self, words: NDArray[np.uint32], store: int) -> NDArray[np.float32]:
        analog = (words & 0x3FFF).astype(np.float32)
        digital = ((words >> 14) & 0xFFFF).astype(np.float32)
        values: NDArray[np.float32] = analog + self.high_offset[store]
        low = words >= 0x80000000
        if low.any():
            in_low = self.low_offset[store] + analog * (self.low_gain[store] + analog * self.low_square[store])
            np.copyto(values, in_low, where=low)
        values += self.digital_gain[store] * digital
        if self.debounce:
            values -= debounce_offsets(values)[:, None, None]
        values *= self.flat[store]
        return values


def debounce_offsets(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The offset (n,) of the dark pixels of each frame (n, ky, kx): the vertex of a parabola through the peak of its histogram.

    It is 0 when no peak of more than 40 pixels stands clear of the ends of the histogram.
    """
    n = len(values)
    # Bin 0 takes all that is below the histogram, the last all that is above, and NaN.
    bins = np.clip((values.reshape(n, -1) - np.float32(_LOW)) / np.float32(_BIN), -1, _BINS) + 1
    bins[np.isnan(bins)] = _BINS + 1
    histogram = np.stack([np.bincount(frame, minlength=_BINS + 2)[1:-1] for frame in bins.astype(np.intp)])
    peak = histogram.argmax(1)
    clear = (peak >= _REACH) & (peak < _BINS - _REACH) & (histogram.max(1) > _LEAST_COUNT)
    x = np.arange(-_REACH, _REACH + 1)
    around = histogram[np.arange(n)[:, None], np.clip(peak, _REACH, _BINS - 1 - _REACH)[:, None] + x].astype(float)
    # Least squares of a parabola on equidistant points.
    slope = around @ x / (x @ x)
    curvature = around @ (x**2 - np.mean(x**2)) / np.sum((x**2 - np.mean(x**2)) ** 2)
    vertex = np.where(curvature < 0, -slope / (2 * np.where(curvature < 0, curvature, -1)), np.inf)
    offset = _LOW + _BIN * (peak + 0.5 + vertex)
    good = clear & (np.abs(vertex) <= _REACH) & (np.abs(offset) <= _LARGEST_OFFSET)
    return np.where(good, offset, 0).astype(np.float32)


def read_calibration(path: Path) -> Calibration:
    """The calibration in an HDF5 file. Raises DataError naming what is missing or of the wrong shape."""
    return make_calibration(*read_maps(path), str(path))


def read_maps(path: Path) -> tuple[dict[str, Map], bool]:
    """(maps (2, 128, 128) by their names, whether to debounce) of an HDF5 file. Raises DataError for maps of the wrong shape."""
    file = hdf5.open_file(path)
    try:
        maps: dict[str, Map] = {}
        for name in NAMES:
            parts = [name] if name in file else [name + store for store in "AB"]
            found = [_dataset(path, file, part) for part in parts if part in file]
            if len(found) == len(parts):
                maps[name] = both_stores(found[0] if len(found) == 1 else np.stack(found), f"{path}: {name}")
            elif found:
                raise DataError(f"{path}: it has {name} of one store only; {name}A and {name}B are needed")
        return maps, hdf5.number(file, "debounce") != 0
    except hdf5.ERRORS as error:
        raise unreadable(path, error, "not a calibration of an EMPAD-G2") from None
    finally:
        file.close()


def _dataset(path: Path, file: Any, name: str) -> NDArray[Any]:
    found = file[hdf5.resolve(path, file, name)]
    if found.shape is None or found.size > 2 * 128 * 128:
        raise DataError(f"{path}: {name} of the shape {str(found.shape)[:60]} is no map of 128 x 128 pixels")
    return hdf5.small_array(path, file, name)


def both_stores(values: Any, name: str) -> Map:
    """A map as float32 (2, 128, 128) with NaN for what is not finite. Raises DataError for another shape or type."""
    array = np.asarray(values)
    if array.shape == (*_PIXELS, 2):
        array = np.moveaxis(array, 2, 0)
    if array.shape != (2, *_PIXELS) or array.dtype.kind not in "iuf":
        raise DataError(f"{name}: {array.dtype} of the shape {array.shape}; numbers (2, 128, 128) or (128, 128, 2), or A and B apart, are needed")
    with np.errstate(all="ignore"):
        single = np.ascontiguousarray(array, np.float32)
    return np.where(np.isfinite(single), single, np.float32(np.nan))


def make_calibration(maps: Mapping[str, Map], debounce: bool = True, where: str = "calibration") -> Calibration:
    """The calibration of maps (2, 128, 128) by their names. Raises DataError, beginning with ``where``, when no model is complete."""
    model = next((name for name, needed in MODELS.items() if all(key in maps for key in needed)), None)
    if model is None:
        raise DataError(f"{where}: the maps are not complete ({', '.join(maps) or 'none'}); G1, G2, B2 or Ml, alpha, Md, Oh, Ot are needed")
    zero = np.zeros((2, *_PIXELS), np.float32)
    background = maps.get("mean_background", zero)
    with np.errstate(all="ignore"):
        if model == "quadratic":
            high = -maps["Ot"] - background
            low, gain, square, digital = maps["Oh"] + high, maps["Ml"], maps["alpha"], maps["Md"]
        else:
            high = -background
            low, gain, square, digital = high - maps["G1"] * maps["B2"], maps["G1"], zero, maps["G2"]
    return Calibration(digital, high, low, gain, square, maps.get("FF", zero + 1), "mean_background" in maps, debounce)
