"""A 4D-STEM data set: lazy patterns in electrons, their mask and what is known about the microscope.

Patterns are (n, ky, kx) with zero frequency at pixel (ky // 2, kx // 2). A pixel that was not measured is NaN. Positions are in
scan order, fast axis innermost. Nothing here knows of file formats: those are in ``ptycho.io``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.aberrations import parse_aberrations
from ptycho.errors import DataError, RecipeError
from ptycho.geometry import Geometry, raster_positions_A, wavelength_A

Index: TypeAlias = NDArray[Any] | slice | list[int] | None
Affine: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

_IDENTITY: Affine = ((1.0, 0.0), (0.0, 1.0))
_BLOCK_BYTES = 64 << 20
_SURVEY_ALL_BYTES = 2 << 30
_SURVEY_FRAMES = 1000
_NEEDED = {"voltage_kV": "[microscope]", "semiangle_mrad": "[microscope]", "step_A": "[scan]"}


@dataclass(frozen=True)
class Quantity:
    """A value with its unit and where it is from: "user", "ws2.xml: iom_measurements/high_voltage", "estimate: ...", "default: ..."."""

    value: Any
    unit: str
    source: str
    trusted: bool = True


class FrameSource(Protocol):
    """Frames of one file, as stored. Opening reads headers only.

    ``scan_shape`` is what the file, its sidecar or its name says, (slow, fast), with a product of at most ``n_frames``;
    ``metadata`` is keyed by the recipe's names.
    """

    path: Path
    format: str
    n_frames: int
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    scan_shape: tuple[int, int] | None
    metadata: dict[str, Quantity]
    warnings: list[str]
    default_flip_rows: bool

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) in the stored type and in the order asked for. Raises DataError when the file ends too early."""

    def close(self) -> None:
        """Release the file."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is done to each pattern, in this order: dark, gain, transpose, flips, crop, mark what was not measured, bin.

    ``dark`` is in stored units and in the stored orientation; ``detector_crop`` (y0, y1, x0, x1) is in the flipped frame;
    ``mask`` (True = use) is on the final grid. Transpose and flips together make every quarter turn.
    """

    dark: NDArray[Any] | None = None
    adu_per_electron: float = 1.0
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    detector_crop: tuple[int, int, int, int] | None = None
    bin: int = 1
    mask: NDArray[np.bool_] | None = None

    def cropped_shape(self, frame_shape: tuple[int, int]) -> tuple[int, int]:
        """(ky, kx) before binning. Raises RecipeError when the crop leaves the frame or binning does not divide it."""
        height, width = frame_shape[::-1] if self.transpose else frame_shape
        y0, y1, x0, x1 = self.detector_crop or (0, height, 0, width)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise RecipeError(f"data.detector_crop = {list(self.detector_crop or ())}: y0, y1, x0, x1 within {height} x {width} pixels are needed")
        if self.bin < 1 or (y1 - y0) % self.bin or (x1 - x0) % self.bin:
            raise RecipeError(f"data.bin = {self.bin} does not divide the pattern of {y1 - y0} x {x1 - x0} pixels; choose a divisor or a detector_crop")
        return y1 - y0, x1 - x0

    def electrons(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Electrons float32 (n, ky, kx) of stored frames, turned and cropped, not yet marked or binned."""
        patterns = stored.astype(np.float32)
        if stored.dtype.kind == "u" and stored.dtype.itemsize > 1:
            # Counting detectors store the largest value for pixels that saturated or are switched off.
            patterns[stored == np.iinfo(stored.dtype).max] = np.nan
        if self.dark is not None:
            patterns -= self.dark.astype(np.float32)
        if self.adu_per_electron != 1:
            patterns /= np.float32(self.adu_per_electron)
        if self.transpose:
            patterns = patterns.swapaxes(1, 2)
        if self.flip_rows:
            patterns = patterns[:, ::-1]
        if self.flip_columns:
            patterns = patterns[:, :, ::-1]
        if self.detector_crop is not None:
            y0, y1, x0, x1 = self.detector_crop
            patterns = patterns[:, y0:y1, x0:x1]
        return patterns

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Prepared patterns float32 (n, ky, kx) of stored frames; what was not measured is NaN."""
        patterns = self.electrons(stored)
        patterns[~_measured(patterns)] = np.nan
        return np.ascontiguousarray(bin_sum(patterns, self.bin))


@dataclass(frozen=True, eq=False)
class Survey:
    """One pass over the patterns (over 1000 spread ones of more than 2 GB): statistics and what is wrong with them.

    ``mean_pattern`` float64 (ky, kx) in electrons, NaN where never measured; ``mean_electrons`` per pattern; ``max_electrons`` of a
    pixel; ``n_nonfinite`` and ``n_negative`` (below -1 electron) count pixels of all patterns; ``hot``, ``dead`` and ``static_bad``
    (never measured) are bool (ky, kx); ``bad_frames`` are positions to be dropped: more than 10 % bad pixels, or no electron at all.
    """

    n_surveyed: int
    mean_pattern: NDArray[np.float64]
    mean_electrons: float
    max_electrons: float
    n_nonfinite: int
    n_negative: int
    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    static_bad: NDArray[np.bool_]
    bad_frames: NDArray[np.int64]

    @property
    def n_hot(self) -> int:
        """Number of hot pixels."""
        return int(self.hot.sum())

    @property
    def n_dead(self) -> int:
        """Number of dead pixels."""
        return int(self.dead.sum())


@dataclass(frozen=True, eq=False)
class Dataset4D:
    """Lazy patterns and what is known about them.

    ``frames`` int64 (N,) are the source's frame numbers, one for each position; ``scan_shape`` is (slow, fast) with product N and
    (1, N) when the positions are no raster; ``positions_A`` (N, 2) = (y, x) before rotation and affine, or None for the raster of
    ``step_A``. ``calibration`` is keyed by the recipe's names. ``warnings`` grows as the data are looked at.
    """

    source: FrameSource
    preparation: Preparation
    calibration: dict[str, Quantity]
    scan_shape: tuple[int, int]
    frames: NDArray[np.int64] = field(repr=False)
    positions_A: NDArray[np.float64] | None = field(default=None, repr=False)
    warnings: list[str] = field(default_factory=list)

    @property
    def n_positions(self) -> int:
        """Number of probe positions, N."""
        return len(self.frames)

    @property
    def name(self) -> str:
        """File name for messages."""
        return self.source.path.name

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """(ky, kx) after crop and binning."""
        height, width = self.preparation.cropped_shape(self.source.frame_shape)
        return height // self.preparation.bin, width // self.preparation.bin

    def patterns(self, index: Index = None) -> NDArray[np.float32]:
        """Prepared patterns (n, ky, kx) in electrons at these positions (all by default); NaN where not measured."""
        frames = self.frames if index is None else np.atleast_1d(self.frames[index])
        return self.preparation.apply(self.source.read(frames))

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels to use, bool (ky, kx): the user's mask without hot, dead and never measured pixels."""
        survey = self.survey()
        good = ~(survey.hot | survey.dead | survey.static_bad)
        return good if self.preparation.mask is None else good & self.preparation.mask

    def survey(self) -> Survey:
        """Statistics of the patterns, made once. Raises DataError when there is nothing to reconstruct from."""
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        survey = _make_survey(self)
        self._note_survey(survey)
        return survey

    def centre(self) -> tuple[float, float]:
        """Sub-pixel centre (y, x) of the bright-field disk in the mean pattern; it should be (ky // 2, kx // 2)."""
        return self._disk[:2]

    @property
    def disk_radius_px(self) -> float:
        """Radius of the bright-field disk in the mean pattern, in pixels after binning."""
        return self._disk[2]

    @cached_property
    def _disk(self) -> tuple[float, float, float]:
        return self._find_disk(self.survey(), self.mask)

    def _find_disk(self, survey: Survey, mask: NDArray[np.bool_]) -> tuple[float, float, float]:
        found = find_disk(np.where(mask, survey.mean_pattern, np.nan))
        if found is None:
            raise DataError(f"{self.name}: no bright-field disk in the mean pattern; give [detector] pixel_invA and check the crop and the mask")
        return found

    @cached_property
    def pixel_invA(self) -> Quantity:
        """Detector pixel in Å⁻¹ after binning: as given, else from pixel_mrad, else from the bright-field disk."""
        known = self._known_pixel()
        if known is not None:
            return known
        self._need("voltage_kV", "semiangle_mrad")
        aperture = self.calibration["semiangle_mrad"].value * 1e-3 / wavelength_A(self.calibration["voltage_kV"].value)
        source = f"estimate: bright-field disk of {self.disk_radius_px:.2f} px radius = semiangle_mrad"
        return Quantity(aperture / self.disk_radius_px, "1/Å", source, trusted=False)

    def _known_pixel(self) -> Quantity | None:
        if "pixel_invA" in self.calibration:
            given = self.calibration["pixel_invA"]
            return replace(given, value=given.value * self.preparation.bin)
        if "pixel_mrad" in self.calibration and "voltage_kV" in self.calibration:
            given = self.calibration["pixel_mrad"]
            pixel = given.value * 1e-3 / wavelength_A(self.calibration["voltage_kV"].value)
            return Quantity(pixel * self.preparation.bin, "1/Å", given.source, given.trusted)
        return None

    @cached_property
    def geometry(self) -> Geometry:
        """What the physics needs. Raises DataError naming every missing key, or when the disk does not fit on the detector."""
        self._need("voltage_kV", "semiangle_mrad", *(["step_A"] if self.positions_A is None else []))
        pixel = self.pixel_invA.value
        self.check_disk_fits(pixel)
        return Geometry(
            voltage_kV=self.calibration["voltage_kV"].value,
            semiangle_mrad=self.calibration["semiangle_mrad"].value,
            pixel_invA=pixel,
            pattern_shape=self.pattern_shape,
            positions_A=self._turned_positions(),
            aberrations=parse_aberrations(self._coefficients()),
        )

    def _turned_positions(self) -> NDArray[np.float64]:
        rotation = float(self._value("rotation_deg", 0.0))
        affine = self._value("affine", _IDENTITY)
        if self.positions_A is None:
            return raster_positions_A(self.scan_shape, self.calibration["step_A"].value, rotation, affine)
        # A raster of two unit vectors gives the linear map, so that the convention stays in one place.
        corners = raster_positions_A((2, 2), (1.0, 1.0), rotation, affine)
        linear = np.stack([corners[2] - corners[0], corners[1] - corners[0]])
        return self.positions_A @ linear

    def _coefficients(self) -> dict[str, float]:
        coefficients = dict(self._value("aberrations", {}))
        if "defocus_A" in self.calibration:
            coefficients["defocus_A"] = self.calibration["defocus_A"].value
        return coefficients

    def _value(self, name: str, default: Any) -> Any:
        return self.calibration[name].value if name in self.calibration else default

    def _need(self, *names: str) -> None:
        missing = [name for name in names if name not in self.calibration]
        if not missing:
            return
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        in_recipe = "; ".join(f"{_NEEDED[name]} {name} = ..." for name in missing)
        flags = " ".join(f"--{name.replace('_', '-')} ..." for name in missing)
        raise DataError(f"{self.name}: {', '.join(missing)} {verb} not in the file; give {them} as {in_recipe} or {flags}")

    def check_disk_fits(self, pixel_invA: float) -> None:
        """Raise DataError when a disk of the given semiangle is larger than the pattern with this pixel (after binning)."""
        semiangle, voltage = (self.calibration[name].value for name in ("semiangle_mrad", "voltage_kV"))
        radius = semiangle * 1e-3 / wavelength_A(voltage) / pixel_invA
        if radius > min(self.pattern_shape) / 2:
            shape = f"{self.pattern_shape[0]} x {self.pattern_shape[1]}"
            raise DataError(
                f"{self.name}: semiangle_mrad = {semiangle:g} with pixel_invA = {pixel_invA:.5g} at {voltage:g} kV is a disk of {radius:.1f} px "
                f"radius, larger than the pattern of {shape} px; check semiangle_mrad, pixel_invA and the crop"
            )

    def without(self, positions: NDArray[Any]) -> Dataset4D:
        """The same data without these positions (numbers or bool); a raster becomes explicit positions, scan_shape (1, n)."""
        keep = np.delete(np.arange(self.n_positions), positions)
        where = self.positions_A
        if where is None:
            self._need("step_A")
            where = raster_positions_A(self.scan_shape, self.calibration["step_A"].value)
        return replace(self, frames=self.frames[keep], positions_A=where[keep], scan_shape=(1, len(keep)))

    def without_bad_frames(self) -> Dataset4D:
        """The same data without ``survey().bad_frames``; itself when there are none."""
        bad = self.survey().bad_frames
        return self.without(bad) if len(bad) else self

    def close(self) -> None:
        """Release the file."""
        self.source.close()

    def _note_survey(self, survey: Survey) -> None:
        """Put into ``warnings`` what the patterns show and the user should know."""
        if survey.mean_electrons < 2:
            self._warn(f"{survey.mean_electrons:.3g} electrons per pattern: if the data are normalised, give adu_per_electron = 1 / electrons")
        for number, what in ((survey.n_hot, "hot"), (survey.n_dead, "dead")):
            if number:
                self._warn(f"{number} {what} pixel{'s' if number > 1 else ''} masked")
        if len(survey.bad_frames):
            self._warn(f"{len(survey.bad_frames)} of {survey.n_surveyed} patterns are damaged (more than 10 % bad pixels or empty)")
        mask = ~(survey.hot | survey.dead | survey.static_bad)
        disk = find_disk(np.where(mask, survey.mean_pattern, np.nan))
        if disk is None:
            return
        middle = tuple(n // 2 for n in self.pattern_shape)
        if max(abs(disk[0] - middle[0]), abs(disk[1] - middle[1])) > 0.5 and self.preparation.detector_crop is None:
            self._warn(
                f"the bright-field disk is centred at ({disk[0]:.2f}, {disk[1]:.2f}), not at {middle}: the patterns are not shifted; "
                "give detector_crop = [y0, y1, x0, x1] around it"
            )
        known = self._known_pixel()
        if known is None or not {"voltage_kV", "semiangle_mrad"} <= self.calibration.keys():
            return
        expected = self.calibration["semiangle_mrad"].value * 1e-3 / wavelength_A(self.calibration["voltage_kV"].value) / known.value
        if abs(disk[2] / expected - 1) > 0.1:
            self._warn(f"the bright-field disk has a radius of {disk[2]:.1f} px; semiangle_mrad and the pixel ({known.source}) make it {expected:.1f} px")

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


def bin_sum(patterns: NDArray[Any], factor: int) -> NDArray[Any]:
    """Sum of factor x factor pixels over the last two axes, which factor divides."""
    if factor == 1:
        return patterns
    *lead, height, width = patterns.shape
    blocks: NDArray[Any] = patterns.reshape(*lead, height // factor, factor, width // factor, factor).sum((-3, -1))
    return blocks


def find_disk(mean_pattern: NDArray[Any]) -> tuple[float, float, float] | None:
    """Centre y, x and radius in pixels of the bright-field disk of a mean pattern (NaN = not measured); None without a disk.

    The radius is that of a circle with the disk's area, the edge being where the intensity is half of the plateau.
    """
    from scipy import ndimage  # late: it takes longer to import than to use

    valid = np.isfinite(mean_pattern)
    image = np.where(valid, mean_pattern, 0.0).clip(0)
    if not image.any():
        return None
    image = np.where(valid, image, ndimage.median_filter(image, 5))
    plateau = float((image**2).sum() / image.sum())
    for _ in range(10):
        plateau = float(np.median(image[image > plateau / 2]))
    labels, _ = ndimage.label(image > plateau / 4)
    sizes = np.bincount(labels.ravel(), weights=image.ravel())
    sizes[0] = 0
    disk = ndimage.binary_fill_holes(labels == sizes.argmax())
    # A pixel that the edge cuts holds a part of the plateau: a ramp about one half measures that part.
    inside = ndimage.binary_erosion(disk, iterations=2)
    weight = np.where(inside, 1.0, np.where(disk, ((image / plateau - 0.25) * 2).clip(0, 1), 0.0))
    area = float(weight.sum())
    if area < 3:
        return None
    y, x = np.indices(image.shape)
    return float((weight * y).sum() / area), float((weight * x).sum() / area), float(np.sqrt(area / np.pi))


def _measured(patterns: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Finite and not below -1 electron: small negative values are detector noise and stay."""
    good: NDArray[np.bool_] = np.isfinite(patterns) & (patterns >= -1)
    return good


def _blocks(data: Dataset4D) -> tuple[NDArray[np.int64], Iterator[tuple[NDArray[np.int64], NDArray[Any]]]]:
    """Positions to survey, and (positions, stored frames) in blocks of about 64 MB."""
    frame_bytes = int(np.prod(data.source.frame_shape)) * data.source.dtype.itemsize
    positions = np.arange(data.n_positions)
    if frame_bytes * data.n_positions > _SURVEY_ALL_BYTES:
        positions = np.unique(np.linspace(0, data.n_positions - 1, _SURVEY_FRAMES).astype(np.int64))
    size = max(1, _BLOCK_BYTES // max(frame_bytes, 1))
    chunks = (positions[i : i + size] for i in range(0, len(positions), size))
    return positions, ((chunk, data.source.read(data.frames[chunk])) for chunk in chunks)


def _make_survey(data: Dataset4D) -> Survey:
    shape = data.preparation.cropped_shape(data.source.frame_shape)
    total, measured = np.zeros(shape), np.zeros(shape, np.int64)
    bad_pixels, sums = [], []
    n_nonfinite = n_negative = 0
    lowest, highest = np.inf, -np.inf
    positions, blocks = _blocks(data)
    for _, stored in blocks:
        patterns = data.preparation.electrons(stored)
        good = _measured(patterns)
        finite = np.isfinite(patterns)
        n_nonfinite += int(finite.size - finite.sum())
        n_negative += int((finite & ~good).sum())
        patterns = np.where(good, patterns, np.float32(0))
        total += patterns.sum(0, dtype=np.float64)
        measured += good.sum(0)
        bad_pixels.append((~good).sum((1, 2)))
        sums.append(patterns.sum((1, 2), dtype=np.float64))
        if good.any():
            lowest = min(lowest, float(patterns.min(where=good, initial=np.inf)))
            highest = max(highest, float(patterns.max(where=good, initial=-np.inf)))
    if not measured.any():
        raise DataError(f"{data.name}: no pixel is usable, all are NaN or below -1 electron; check the file, dark and adu_per_electron")
    if lowest == highest:
        raise DataError(f"{data.name}: all pixels are {lowest:g}; this is not a diffraction data set, check the file and the dataset's name")
    static = measured == 0
    bad = np.concatenate(bad_pixels) - static.sum() > 0.1 * (~static).sum()
    per_pattern = np.concatenate(sums)
    typical = float(per_pattern[~bad].mean()) if not bad.all() else 0.0
    bad |= (per_pattern == 0) & (typical > 100)  # a beam that was on leaves no empty pattern
    if bad.mean() > 0.2:
        raise DataError(f"{data.name}: {bad.sum()} of {len(bad)} patterns are damaged (more than 10 % bad pixels or empty); check dark and adu_per_electron")
    mean = np.divide(total, measured, out=np.full(shape, np.nan), where=~static)
    hot, dead = _hot_and_dead(mean, measured)
    factor = data.preparation.bin
    return Survey(
        n_surveyed=len(positions),
        mean_pattern=bin_sum(mean, factor),
        mean_electrons=float(per_pattern[~bad].mean()),
        max_electrons=highest,
        n_nonfinite=n_nonfinite,
        n_negative=n_negative,
        hot=bin_sum(hot, factor) > 0,
        dead=bin_sum(dead, factor) > 0,
        static_bad=bin_sum(static, factor) > 0,
        bad_frames=positions[bad],
    )


def _hot_and_dead(mean: NDArray[np.float64], measured: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels that cannot be what the beam did, from the mean pattern and the number of measurements of each pixel.

    Hot: more than 3 times the second largest of its 8 neighbours, and by more than 10 electrons and 10 sigma of all patterns.
    Dead: exactly zero where the neighbours let expect more than 20 electrons.
    """
    height, width = mean.shape
    padded = np.pad(np.nan_to_num(mean), 1)
    shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    neighbours = np.sort(np.stack([padded[y : y + height, x : x + width] for y, x in shifts]), axis=0)
    total, expected = np.nan_to_num(mean) * measured, neighbours[-2].clip(0) * measured
    excess = total - expected
    hot = (total > 3 * expected) & (excess > 10) & (excess > 10 * np.sqrt(np.maximum(expected, 1)))
    dead = (total == 0) & (measured > 0) & (np.median(neighbours, axis=0) * measured > 20)
    return hot, dead
