"""A 4D-STEM data set: lazy patterns in electrons, their mask and what is known about the microscope.

Patterns are (n, ky, kx) with zero frequency at pixel (ky // 2, kx // 2). A pixel that was not measured is NaN. Positions are in
scan order, fast axis innermost. Nothing here knows of file formats: those are in ``ptycho.io``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.aberrations import parse_aberrations
from ptycho.errors import DataError
from ptycho.frames import FrameSource, Quantity
from ptycho.geometry import Geometry, raster_positions_A, wavelength_A
from ptycho.preparation import Preparation
from ptycho.survey import Survey, find_disk, survey_patterns

Index: TypeAlias = NDArray[Any] | slice | list[int] | None
Affine: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

_IDENTITY: Affine = ((1.0, 0.0), (0.0, 1.0))
#: Patterns that are looked at together, as float32: they stay in a core's cache.
_BLOCK_BYTES = 1 << 20
_SURVEY_ALL_BYTES = 2 << 30
_SURVEY_FRAMES = 400
#: Share of the bright-field disk from which the rest of it is known.
_LEAST_SEEN = 0.1
_NEEDED = {"voltage_kV": "[microscope]", "semiangle_mrad": "[microscope]", "step_A": "[scan]"}


@dataclass(frozen=True, eq=False)
class Dataset4D:
    """Lazy patterns and what is known about them.

    ``frames`` int64 (N,) are the source's frame numbers, one for each position. ``scan_shape`` is (slow, fast), (1, N) when the positions
    are no raster; ``points`` (N,) are the points of the raster, row by row, that have a pattern, None when all have. ``positions_A``
    (N, 2) = (y, x) before rotation and affine, or None for the raster of ``step_A``. ``shifts_px`` (N, 2) moves the window of each
    pattern (descan). ``calibration`` is keyed by the recipe's names; ``memory_GB`` limits what of the patterns is kept in memory.
    ``survey_all``: a file of more than 2 GB is surveyed as a whole too, as a reconstruction needs it, not only in 400 patterns.
    ``warnings`` grows as the data are looked at. ``given`` are the arguments of :func:`ptycho.io.read`, from which a recipe can be written.
    """

    source: FrameSource
    preparation: Preparation
    calibration: dict[str, Quantity]
    scan_shape: tuple[int, int]
    frames: NDArray[np.int64] = field(repr=False)
    points: NDArray[np.int64] | None = field(default=None, repr=False)
    positions_A: NDArray[np.float64] | None = field(default=None, repr=False)
    shifts_px: NDArray[np.int64] | None = field(default=None, repr=False)
    memory_GB: float | None = None
    survey_all: bool = False
    warnings: list[str] = field(default_factory=list)
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n_positions(self) -> int:
        """Number of probe positions, N."""
        return len(self.frames)

    @property
    def name(self) -> str:
        """File name for messages."""
        return self.source.header.path.name

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """(ky, kx) after crop and binning."""
        return self.preparation.pattern_shape(self.source.header.frame_shape)

    def patterns(self, index: Index = None) -> NDArray[np.float32]:
        """Prepared patterns (n, ky, kx) in electrons at these positions (all by default); NaN where not measured."""
        numbers = np.atleast_1d(np.arange(self.n_positions)[slice(None) if index is None else index])
        return self.preparation.apply(self.source.read(self.frames[numbers]), self.shifts_of(numbers))

    def shifts_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Window shifts (n, 2) of these positions; None when all windows are in the same place."""
        return None if self.shifts_px is None else self.shifts_px[numbers]

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels to use, bool (ky, kx): the user's mask without hot, dead and never measured pixels."""
        return self._good(self.survey())

    def _good(self, survey: Survey) -> NDArray[np.bool_]:
        good = ~(survey.hot | survey.dead | survey.static_bad)
        return good if self.preparation.mask is None else good & self.preparation.mask

    def survey(self) -> Survey:
        """Statistics of the patterns, made once. Raises DataError when there is nothing to reconstruct from."""
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        shape = self.preparation.cropped_shape(self.source.header.frame_shape)
        survey = survey_patterns(self._survey_blocks(), shape, self.preparation.bin, self.name)
        self._note_survey(survey)
        return survey

    def _survey_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(position numbers, electrons) in small blocks: all of them, or 400 spread ones of more than 2 GB."""
        pixels = int(np.prod(self.source.header.frame_shape))
        positions = np.arange(self.n_positions)
        if not self.survey_all and pixels * self.source.header.dtype.itemsize * self.n_positions > _SURVEY_ALL_BYTES:
            positions = np.unique(np.linspace(0, self.n_positions - 1, _SURVEY_FRAMES).astype(np.int64))
        size = max(1, _BLOCK_BYTES // max(4 * pixels, 1))  # they become float32
        for start in range(0, len(positions), size):
            chunk = positions[start : start + size]
            yield chunk, self.preparation.electrons(self.source.read(self.frames[chunk]), self.shifts_of(chunk))

    @cached_property
    def beam_electrons(self) -> float:
        """Electrons per pattern that the beam carries: those on the pixels to use, over the share of the bright-field disk that falls on them.

        A hollow detector misses most of the beam, a hot pixel adds what never was in it. Where next to nothing of the disk is seen, what
        is counted is all that is known.
        """
        survey, good = self.survey(), self.mask
        if good.all():
            return survey.mean_electrons
        counted = survey.mean_electrons - float(np.nansum(survey.mean_pattern[~good]))
        ky, kx = (np.arange(n) - n // 2 for n in self.pattern_shape)
        seen = good[np.hypot(ky[:, None], kx) <= self.geometry.disk_radius_px].mean()
        return counted / float(seen) if seen > _LEAST_SEEN else counted

    def centre(self) -> tuple[float, float]:
        """Sub-pixel centre (y, x) of the bright-field disk in the mean pattern; it should be (ky // 2, kx // 2)."""
        return self._disk[:2]

    @property
    def disk_radius_px(self) -> float:
        """Radius of the bright-field disk in the mean pattern, in pixels after binning."""
        return self._disk[2]

    @cached_property
    def _disk(self) -> tuple[float, float, float]:
        found = find_disk(np.where(self.mask, self.survey().mean_pattern, np.nan))
        if found is None:
            raise DataError(f"{self.name}: no bright-field disk in the mean pattern; give [detector] pixel_invA and check the crop and the mask")
        return found

    @cached_property
    def pixel_invA(self) -> Quantity:
        """Detector pixel in Å⁻¹ after binning: as given, else from the bright-field disk, which is worth more than a nominal camera length."""
        known = self._known_pixel()
        if known is not None and (known.trusted or not {"voltage_kV", "semiangle_mrad"} <= self.calibration.keys()):
            return known
        self._need("voltage_kV", "semiangle_mrad")
        aperture = self.calibration["semiangle_mrad"].value * 1e-3 / wavelength_A(self.calibration["voltage_kV"].value)
        try:
            radius = self.disk_radius_px
        except DataError:
            if known is None:
                raise
            return known
        return Quantity(aperture / radius, "1/Å", f"estimate: bright-field disk of {radius:.2f} px radius = semiangle_mrad", trusted=False)

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

    @property
    def rotation_deg(self) -> float:
        """Of the scan relative to the detector; 0 when nothing is known of it."""
        return float(self._value("rotation_deg", 0.0))

    @property
    def scan_axes(self) -> NDArray[np.float64]:
        """(2, 2): rows are where one step along the slow and the fast axis of the nominal scan goes, (y, x) in the detector's axes.

        Positions are r = s @ scan_axes, so a gradient in scan axes is scan_axes @ (the gradient in the detector's axes).
        """
        # A raster of two unit vectors gives the linear map, so that the convention stays in one place.
        corners = raster_positions_A((2, 2), (1.0, 1.0), self.rotation_deg, self._value("affine", _IDENTITY))
        return np.stack([corners[2] - corners[0], corners[1] - corners[0]])

    def check_raster(self) -> None:
        """Raise DataError when the positions are a list, of which no image can be made."""
        if self.positions_A is not None:
            raise DataError(f"{self.name}: the positions are a list, not a raster; for images give [scan] shape and step_A, and no positions_file")

    def on_raster(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values (..., N) of the positions as images (..., slow, fast); NaN at points of the raster that have no pattern."""
        images = np.full((*values.shape[:-1], self.scan_shape[0] * self.scan_shape[1]), np.nan)
        images[..., slice(None) if self.points is None else self.points] = values
        return images.reshape(*values.shape[:-1], *self.scan_shape)

    @property
    def scan_step_A(self) -> tuple[float, float]:
        """Nominal (slow, fast) step in Å. Raises DataError when it is not known, or when the positions are a list."""
        self.check_raster()
        self._need("step_A")
        slow, fast = np.broadcast_to(self.calibration["step_A"].value, 2)
        return float(slow), float(fast)

    def _turned_positions(self) -> NDArray[np.float64]:
        if self.positions_A is None:
            axes = (self.rotation_deg, self._value("affine", _IDENTITY))
            raster = raster_positions_A(self.scan_shape, self.calibration["step_A"].value, *axes)
            return raster if self.points is None else raster[self.points]
        turned: NDArray[np.float64] = self.positions_A @ self.scan_axes
        return turned

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

    def check_known_disk(self) -> None:
        """``check_disk_fits`` with what is known without reading a pattern."""
        known = self._known_pixel()
        if known is not None and known.trusted and {"voltage_kV", "semiangle_mrad"} <= self.calibration.keys():
            self.check_disk_fits(known.value)

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
        """The same data without these positions (numbers or bool); the raster stays, with points that have no pattern."""
        keep = np.delete(np.arange(self.n_positions), positions)
        points = keep if self.points is None else self.points[keep]
        return replace(
            self,
            frames=self.frames[keep],
            points=points if self.positions_A is None else None,
            scan_shape=self.scan_shape if self.positions_A is None else (1, len(keep)),
            positions_A=None if self.positions_A is None else self.positions_A[keep],
            shifts_px=self.shifts_of(keep),
        )

    def part(self, mine: NDArray[np.bool_]) -> Dataset4D:
        """The positions where ``mine`` (N,) is true, with the statistics and the mask of all."""
        part = self.without(~mine)
        vars(part)["_survey"] = self.survey()
        return part

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
        for number, what in ((survey.n_hot, "hot"), (survey.n_dead, "dead"), (survey.n_static_bad, "never measured")):
            if number:
                self._warn(f"{number} {what} pixel{'s' if number > 1 else ''} masked")
        for number, what in ((survey.n_nonfinite, "NaN, infinite or saturated"), (survey.n_negative, "below -1 electron")):
            if number:
                verb = "values are" if number > 1 else "value is"
                self._warn(f"{number} {verb} {what} in {survey.n_surveyed} patterns and left out")
        if len(survey.bad_frames):
            self._warn(f"{len(survey.bad_frames)} of {survey.n_surveyed} patterns are damaged (more than 10 % bad pixels or empty)")
        disk = find_disk(np.where(self._good(survey), survey.mean_pattern, np.nan))
        if disk is None:
            return
        middle = tuple(n // 2 for n in self.pattern_shape)
        if max(abs(disk[0] - middle[0]), abs(disk[1] - middle[1])) > 1:
            self._warn(f'the bright-field disk is centred at ({disk[0]:.2f}, {disk[1]:.2f}), not at {middle}; give [data] centre = "auto", or [y, x]')
        known = self._known_pixel()
        if known is None or not {"voltage_kV", "semiangle_mrad"} <= self.calibration.keys():
            return
        expected = self.calibration["semiangle_mrad"].value * 1e-3 / wavelength_A(self.calibration["voltage_kV"].value) / known.value
        if abs(disk[2] / expected - 1) > 0.1:
            self._warn(
                f"the bright-field disk has a radius of {disk[2]:.1f} px; semiangle_mrad and the pixel ({known.source}) make it {expected:.1f} px"
            )

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
