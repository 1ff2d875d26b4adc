"""From the geometry of an experiment to the model that a solver begins with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from ptycho.aberrations import Aberration, Aberrations
from ptycho.detector import Detector
from ptycho.errors import RecipeError
from ptycho.explain import suggestion
from ptycho.geometry import Geometry
from ptycho.model import Positions, Ptychography
from ptycho.multislice import Object
from ptycho.optics import aberration_phase, aperture, frequency_grid, probe_wave
from ptycho.probe import Probe, seed_modes
from ptycho.propagator import Propagator

#: Room around the outermost windows, in pixels, for positions that are refined.
_MARGIN = 8
#: Of modes, states, slices and the like; a recipe with more of them has a slip of the hand in it.
_MOST = 10_000
#: The probe is refined inside this many times the aperture's radius: room for an edge, a semiangle that is a little off, a mode's detail.
_APERTURE_ROOM = 1.25
#: Aberrations that can be refined even if the recipe does not name them.
_REFINABLE: Aberrations = (Aberration(1, 0, 0.0), Aberration(1, 2, 0.0), Aberration(2, 1, 0.0), Aberration(2, 3, 0.0), Aberration(3, 0, 0.0))


#: What ``ModelOptions.refine`` may name.
REFINABLE = ("scan", "positions", "tilt", "thickness", "aberrations", "source", "opr", "descan", "background", "blur")
#: What ``ModelOptions.start`` may be.
STARTS = ("flat", "ssb", "obf", "wdd")


@dataclass(frozen=True)
class ModelOptions:
    """What is modelled: the recipe's [model] section.

    ``probe_modes`` and ``object_states`` add incoherently; ``slice_thickness_A`` is one number or one per slice; ``tilt_mrad`` (y, x) is
    the specimen's; ``probe_file`` (a run folder or result.h5), ``vacuum_file`` (a measured pattern without specimen) and
    ``object_file`` replace what would be computed; ``start`` is what the object begins as, empty space ("flat") or the phase image of a direct
    method ("ssb", "obf", "wdd"); ``pad`` pixels are simulated beyond each edge of the pattern (not given: an eighth of its size where
    there are several slices, 0 for one) and ``oversample`` finer
    pixels in each detector pixel; ``detector_blur_px`` is the standard deviation of the point spread on top of the pixel's area;
    ``background_e`` electrons per pixel come from elsewhere; ``source_A`` is the standard deviation of a Gaussian source on the specimen;
    ``opr_modes`` are the ways in which the strongest probe mode may vary over the scan, once ``update`` names ``opr``; ``band_limit`` is the
    fraction of the highest frequency that is propagated. Several slices need all that the detector sees to pass, or the last one alone
    can explain it (a column's phase 10 % too high, a dopant at the exit surface), and ``pad``, or what is scattered past the detector
    wraps (SrTiO3 of 10 nm: correlation 0.997 without, 0.999 with an eighth).

    ``refine`` names what a run without [[solve]] learns besides object and probe, as ``update`` does in [[solve]]: any of ``REFINABLE``.
    "scan" is the step, rotation and shear of the raster: repaired before the run, together with the defocus, and learned further in it;
    "tilt" of a thick specimen is searched for before the run as well.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    probe_modes: int = 1
    object_states: int = 1
    slices: int = 1
    slice_thickness_A: float | tuple[float, ...] = 10.0
    tilt_mrad: tuple[float, float] = (0.0, 0.0)
    tilt_per_position: bool = False
    probe_file: str | None = None
    vacuum_file: str | None = None
    object_file: str | None = None
    start: str = "flat"
    pad: int | None = None
    oversample: int = 1
    pixel_area: bool = True
    detector_blur_px: float = 0.0
    background_e: float = 0.0
    source_A: float = 0.0
    opr_modes: int = 0
    band_limit: float = 1.0
    aperture_edge_px: float = 1.0
    seed: int = 0
    refine: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise RecipeError(f'start = "{self.start}": unknown{suggestion(self.start, STARTS)}')
        if self.start != "flat" and self.object_file is not None:
            raise RecipeError(f'start = "{self.start}" and object_file: the object can begin as one of them only; remove the other')
        for name in self.refine:
            if name not in REFINABLE:
                raise RecipeError(f'refine = "{name}": unknown{suggestion(name, REFINABLE)}')
        for name in ("probe_modes", "object_states", "slices", "oversample"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise RecipeError(f"{name} = {str(getattr(self, name))[:20]}: at least 1 is needed, and at most {_MOST}")
        for name in ("detector_blur_px", "background_e", "source_A", "opr_modes", "aperture_edge_px", "seed"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} = {str(getattr(self, name))[:20]}: it cannot be negative")
        if self.pad is not None and self.pad < 0:
            raise RecipeError(f"pad = {self.pad}: it cannot be negative; leave it out for what suits the number of slices")
        if not 0 < self.band_limit <= 1:
            raise RecipeError(f"band_limit = {self.band_limit}: a fraction between 0 and 1 is needed")
        if max(map(abs, self.tilt_mrad)) > 500:
            raise RecipeError(f"tilt_mrad = {list(self.tilt_mrad)}: a tilt beyond 500 mrad is not a tilt; the unit is mrad")
        if min(self.thicknesses_A) <= 0:
            raise RecipeError(f"slice_thickness_A = {self.slice_thickness_A}: positive lengths in Å are needed")

    def pad_for(self, size_px: int) -> int:
        """Pixels beyond each edge of a pattern of this size."""
        if self.pad is not None:
            return self.pad
        return math.ceil(size_px / 8) if self.slices > 1 else 0

    @property
    def thicknesses_A(self) -> tuple[float, ...]:
        """One thickness for each slice."""
        given = self.slice_thickness_A
        if isinstance(given, (int, float)):
            return (float(given),) * self.slices
        if len(given) != self.slices:
            raise RecipeError(f"slice_thickness_A has {len(given)} numbers for slices = {self.slices}; give one number or {self.slices}")
        return given

    @property
    def entrance_A(self) -> float:
        """Depth of the first slice's middle below the entrance surface, to which the defocus refers; 0 for a single slice."""
        return self.thicknesses_A[0] / 2 if self.slices > 1 else 0.0


@dataclass(frozen=True)
class Known:
    """Arrays from earlier measurements or runs that replace computed starts; None where there is none.

    ``probe`` complex (modes, y, x) on the run's own pixel ``probe_pixel_A``; ``vacuum`` (ky, kx) a pattern without specimen, zero
    frequency in the centre; ``object`` complex (states, slices, y, x) whose pixel 0 lies at ``object_origin_A`` in the scan's frame.
    """

    probe: NDArray[np.complex64] | None = None
    probe_pixel_A: float = 0.0
    vacuum: NDArray[np.float32] | None = None
    object: NDArray[np.complex64] | None = None
    object_pixel_A: float = 0.0
    object_origin_A: tuple[float, float] = (0.0, 0.0)


def start(geometry: Geometry, options: ModelOptions, electrons: float, mask: NDArray[np.bool_], known: Known | None = None) -> Ptychography:
    """The model at the start of a run: probe from the optics, object empty, positions from the scan.

    ``electrons`` is the mean number per pattern, which the probe carries; ``mask`` (ky, kx), zero frequency in the centre, is true where
    a pixel counts. Raises RecipeError when the simulated window cannot hold the probe.
    """
    known = known or Known()
    window = window_px(geometry, options)
    size = window * options.oversample
    pixel_A = object_pixel_A(geometry, options)
    wave = _probe(geometry, options, size, pixel_A, electrons, known)
    passed = aperture(*frequency_grid(size, pixel_A), _APERTURE_ROOM * geometry.aperture_invA, 2 / (size * pixel_A))
    probe = Probe(wave, pixel_A, geometry.wavelength_A, _REFINABLE, passed, options.source_A, options.opr_modes)
    positions, canvas = place_positions(geometry.positions_A / pixel_A, size)
    thickness = torch.tensor(options.thicknesses_A)
    tilts = len(positions) if options.tilt_per_position else 1
    tilt = torch.tensor(options.tilt_mrad).mul(1e-3).expand(tilts, 2)
    weights = torch.from_numpy(np.fft.ifftshift(mask).astype(np.float32))
    return Ptychography(
        Object(_object(geometry, options, canvas, pixel_A, size, known)),
        probe,
        Propagator(size, pixel_A, geometry.wavelength_A, thickness, tilt, options.band_limit),
        Positions(positions),
        Detector(
            size,
            weights,
            torch.full((1, 1), float(options.background_e)),
            options.detector_blur_px,
            options.oversample,
            options.pixel_area,
        ),
        pixel_A,
    )


def window_px(geometry: Geometry, options: ModelOptions) -> int:
    """Side of the simulated pattern in detector pixels, a size that transforms fast."""
    return int(next_fast_len(max(geometry.pattern_shape) + 2 * options.pad_for(max(geometry.pattern_shape))))


def object_pixel_A(geometry: Geometry, options: ModelOptions) -> float:
    """Pixel of the object and of the probe in Å, without ``oversample``, which makes the window larger and not the pixel finer."""
    return 1 / (window_px(geometry, options) * geometry.pixel_invA)


def canvas_origin_A(geometry: Geometry, size: int, pixel_A: float) -> NDArray[np.float64]:
    """Where the object's pixel [0, 0] lies in the scan's frame, (y, x) in Å: a window's half and the margin before the first position."""
    return np.asarray(geometry.positions_A.min(0) - (size // 2 + _MARGIN) * pixel_A, np.float64)


def place_positions(positions_px: NDArray[np.float64], size: int) -> tuple[Tensor, tuple[int, int]]:
    """Positions (N, 2) on a canvas that holds every window with a margin, and the canvas's shape (y, x)."""
    placed = positions_px - positions_px.min(0) + size // 2 + _MARGIN
    height, width = (int(n) for n in np.ceil(placed.max(0)) + (size - size // 2) + _MARGIN)
    return torch.from_numpy(placed).float(), (height, width)


def probe_diameter_A(geometry: Geometry, depth_A: float = 0.0) -> float:
    """Diameter of the illumination: geometric blur of the defocus, the greater at entrance or exit, plus the diffraction limit.

    2 max|C10 - z| alpha + 1.2 lambda / alpha (knowledge of the probe's extent; what a window has to hold).
    """
    return defocus_blur_A(geometry, depth_A) + 1.2 * geometry.wavelength_A / (geometry.semiangle_mrad * 1e-3)


def defocus_blur_A(geometry: Geometry, depth_A: float = 0.0) -> float:
    """Diameter of the geometric blur of the defocus, 2 max|C10 - z| alpha, the greater at entrance or exit of ``depth_A``."""
    return 2 * max(abs(geometry.defocus_A), abs(geometry.defocus_A - depth_A)) * geometry.semiangle_mrad * 1e-3


def check_probe_fits(geometry: Geometry, options: ModelOptions, known: Known) -> None:
    """Raise RecipeError when the simulated window cannot hold the probe, the pattern its disk, or a vacuum pattern is of another shape."""
    shape = geometry.pattern_shape
    if known.vacuum is not None and known.vacuum.shape != shape:
        raise RecipeError(
            f"{options.vacuum_file}: the vacuum pattern is {known.vacuum.shape}, the patterns are {shape}; prepare both in the same way"
        )
    if 2 * geometry.disk_radius_px > min(shape):
        disk = f"the bright-field disk is {2 * geometry.disk_radius_px:.1f} px wide"
        raise RecipeError(f"{disk} and the pattern {shape[0]} x {shape[1]} px: bin less, or use more of it (detector_px)")
    diameter, window_A = probe_diameter_A(geometry, sum(options.thicknesses_A[:-1])), options.oversample / geometry.pixel_invA
    if diameter > window_A and known.probe is None:
        wider = math.ceil(1.2 * diameter / window_A * options.oversample)
        remedy = f", or simulate a wider one with oversample = {wider} in [model]" if wider <= 4 else ""
        raise RecipeError(f"the probe is {diameter:.0f} Å wide and the window {window_A:.0f} Å: check defocus_A, bin less{remedy}")


def _probe(geometry: Geometry, options: ModelOptions, size: int, pixel_A: float, electrons: float, known: Known) -> Tensor:
    """Probe modes, complex64 (modes, y, x), with ``electrons`` in all."""
    check_probe_fits(geometry, options, known)
    if known.probe is not None:
        wave = fit_window(torch.from_numpy(known.probe), size, known.probe_pixel_A, pixel_A)
    elif known.vacuum is not None:
        wave = _probe_from_vacuum(geometry, known.vacuum, size, pixel_A, options.oversample)[None]
    else:
        edge = options.aperture_edge_px * options.oversample
        # A slice acts in its middle, where the underfocus is smaller than at the entrance surface.
        terms = (*geometry.aberrations, Aberration(1, 0, options.entrance_A)) if options.entrance_A else geometry.aberrations
        wave = probe_wave(size, pixel_A, geometry.wavelength_A, geometry.semiangle_mrad, terms, edge)[None]
    wave = wave * math.sqrt(electrons) / torch.linalg.vector_norm(wave)
    return seed_modes(wave, options.probe_modes).to(torch.complex64)


def _probe_from_vacuum(geometry: Geometry, vacuum: NDArray[np.float32], size: int, pixel_A: float, oversample: int) -> Tensor:
    """The measured aperture amplitude, sqrt of the counts, with the nominal aberrations; complex128 (y, x)."""
    from scipy.ndimage import map_coordinates  # late: it takes longer to import than to use

    known = np.nan_to_num(vacuum)
    # Below a hundredth of the maximum there is noise, not aperture.
    counts = np.where(known > 0.01 * np.percentile(known, 99.5), known, 0)
    # The pattern's pixel of each simulated frequency, in corner order; nothing beyond the pattern's edge.
    axes = [n // 2 + np.rint(np.fft.fftfreq(size) * size) / oversample for n in vacuum.shape]
    amplitude = np.sqrt(map_coordinates(counts.astype(np.float64), np.meshgrid(*axes, indexing="ij"), order=1))
    ky, kx = frequency_grid(size, pixel_A)
    spectrum = torch.polar(torch.from_numpy(amplitude), -aberration_phase(geometry.aberrations, ky, kx, geometry.wavelength_A))
    return torch.fft.fftshift(torch.fft.ifft2(spectrum, norm="ortho"))


def fit_window(wave: Tensor, size: int, pixel_A: float, wanted_A: float) -> Tensor:
    """Waves (modes, n, n) of pixel ``pixel_A`` in a window of ``size`` pixels of ``wanted_A``: cropped or padded in both spaces."""
    # In reciprocal space the window's extent is 1 / pixel: crop or pad there to the wanted pixel, then in real space to the size.
    count = round(wave.shape[-1] * pixel_A / wanted_A)
    spectrum = _fit(torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(wave, dim=(-2, -1))), dim=(-2, -1)), count)
    return _fit(torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))), dim=(-2, -1)), size)


def _fit(array: Tensor, size: int) -> Tensor:
    """Crop or zero-pad the last two axes about their centres, pixel n // 2."""
    have = array.shape[-1]
    if size <= have:
        first = have // 2 - size // 2
        return array[..., first : first + size, first : first + size]
    wide = array.new_zeros(*array.shape[:-2], size, size)
    first = size // 2 - have // 2
    wide[..., first : first + have, first : first + have] = array
    return wide


def _object(geometry: Geometry, options: ModelOptions, canvas: tuple[int, int], pixel_A: float, size: int, known: Known) -> Tensor:
    """Empty space, or an earlier object; complex64 (states, slices, y, x). Several states start with a little noise, or they stay alike."""
    shape = (options.object_states, options.slices, *canvas)
    if known.object is None:
        logarithm = torch.zeros(shape, dtype=torch.complex64)
    else:
        logarithm = _earlier_logarithm(geometry, options, canvas, pixel_A, size, known).expand(shape)
    if options.object_states > 1:
        logarithm = logarithm + 1e-2j * torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
    return torch.exp(logarithm)


def _earlier_logarithm(geometry: Geometry, options: ModelOptions, canvas: tuple[int, int], pixel_A: float, size: int, known: Known) -> Tensor:
    """ln of an earlier object on this run's canvas, complex64 (1, slices, y, x), zero outside of it; the mean of its states.

    With as many slices as before each stays, otherwise their sum is shared out by thickness.
    """
    from scipy.ndimage import map_coordinates  # late: it takes longer to import than to use

    assert known.object is not None
    earlier = (np.log(np.maximum(np.abs(known.object), 1e-6)) + 1j * np.angle(known.object)).mean(0)
    if len(earlier) != options.slices:
        share = np.array(options.thicknesses_A) / sum(options.thicknesses_A)
        earlier = earlier.sum(0) * share[:, None, None]
    origin = canvas_origin_A(geometry, size, pixel_A)
    axes = [(origin[i] + np.arange(canvas[i]) * pixel_A - known.object_origin_A[i]) / known.object_pixel_A for i in (0, 1)]
    places = np.meshgrid(*axes, indexing="ij")
    sampled = np.stack([map_coordinates(part, places, order=1) for part in earlier])
    return torch.from_numpy(sampled.astype(np.complex64))[None]
