"""What decides a simulated data set: specimen, beam, scan and detector, in physical units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ptycho.aberrations import parse_aberrations
from ptycho.camera import check_mtf
from ptycho.errors import RecipeError
from ptycho.geometry import raster_positions_A, wavelength_A
from ptycho.sample import SPECIMENS, known

#: Samples per detector pixel and axis.
OVERSAMPLE = 2
#: Highest simulated over highest detected frequency: two thirds of it, which pass the propagator, reach beyond the detector's edge.
BAND = 1.75


@dataclass(frozen=True)
class Simulation:
    """Everything that decides a simulated data set; the defaults are a WS2 monolayer with vacancies, seen in about ten seconds.

    ``specimen`` is one of ``SPECIMENS`` or a structure file (CIF, XYZ, PDB, VASP; needs ASE), which the beam passes along ``zone_axis``
    [u, v, w]; ``vacancy_fraction`` holds for the monolayers, ``thickness_A`` for all that repeats along the beam. ``defocus_A`` is counted from
    the entrance surface, positive for underfocus; the beam's width on the specimen, 2 defocus tan(semiangle), should be about 0.6 of
    1 / ``pixel_invA``. ``aberrations`` are the others, named as in a recipe. ``source_A`` is the rms radius along one axis of a
    Gaussian source, as seen on the specimen. The probe misses the raster by ``jitter_A`` (rms along one axis) at random and by
    ``drift_A`` (y, x) from the first position to the last. ``slice_thickness_A`` None: one slice for each atomic plane. ``tilt_mrad``
    (y, x) leans the atomic columns.

    ``rms_displacement_A`` is the thermal displacement along one axis, of all atoms or by symbol; the mean potential has it as a
    Debye-Waller factor. With ``frozen_phonons`` = n the patterns are the mean over n specimens of displaced atoms instead, which
    has the diffuse scattering too. ``descan_mrad`` (y, x) is how far the pattern moves on the detector from the first row or column of
    the scan to the last. ``detector_blur_px``: electrons counted in a wrong pixel, at a normal distance of this rms along one axis;
    ``detector_mtf``: the signal of each electron spread over pixels, see :func:`ptycho.camera.spread`. ``read_noise_electrons`` is the rms of
    a pixel, 0.007 for the EMPAD. Raises RecipeError for values that do not fit.
    """

    specimen: str = "WS2"
    scan_shape: tuple[int, int] = (32, 32)
    step_A: float = 0.8
    rotation_deg: float = 0.0
    voltage_kV: float = 80.0
    semiangle_mrad: float = 24.9
    defocus_A: float = 350.0
    aberrations: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    source_A: float = 0.0
    jitter_A: float = 0.0
    drift_A: tuple[float, float] = (0.0, 0.0)
    descan_mrad: tuple[float, float] = (0.0, 0.0)
    pattern_px: int = 128
    pixel_invA: float = 1 / 30
    dose_e_per_A2: float = 2e4
    read_noise_electrons: float = 0.007
    detector_blur_px: float = 0.0
    detector_mtf: tuple[tuple[float, float], ...] = ()
    vacancy_fraction: float = 0.05
    thickness_A: float = 100.0
    zone_axis: tuple[int, int, int] = (0, 0, 1)
    slice_thickness_A: float | None = None
    rms_displacement_A: float | Mapping[str, float] = 0.06
    frozen_phonons: int = 0
    tilt_mrad: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if not known(self.specimen):
            raise RecipeError(f"specimen = {self.specimen!r}: unknown; known are {', '.join(SPECIMENS)}, and structure files such as name.cif")
        positive = ("step_A", "voltage_kV", "semiangle_mrad", "pixel_invA", "dose_e_per_A2", "thickness_A")
        self._check(positive, lambda value: value > 0, "a number of more than 0 is needed")
        not_negative = ("read_noise_electrons", "source_A", "jitter_A", "frozen_phonons", "detector_blur_px")
        self._check(not_negative, lambda value: value >= 0, "0 or more is needed")
        given = self.rms_displacement_A
        for rms in given.values() if isinstance(given, Mapping) else (given,):
            if not 0 <= rms < math.inf:
                raise RecipeError(f"rms_displacement_A = {given!r}: lengths in Å of 0 or more are needed")
        if self.detector_mtf:
            check_mtf(self.detector_mtf)
        self._check(("defocus_A", "rotation_deg"), lambda value: True, "a finite number is needed")
        self._check(("vacancy_fraction",), lambda value: 0 <= value < 1, "a number from 0 to less than 1 is needed")
        if self.slice_thickness_A is not None:
            self._check(("slice_thickness_A",), lambda value: value > 0, "a length in Å of more than 0, or none, is needed")
        if self.pattern_px < 2 or self.pattern_px % 2:
            raise RecipeError(f"pattern_px = {self.pattern_px!r}: an even number of pixels is needed")
        for name, pair in (("tilt_mrad", self.tilt_mrad), ("drift_A", self.drift_A), ("descan_mrad", self.descan_mrad)):
            if not np.isfinite(pair).all() or len(pair) != 2:
                raise RecipeError(f"{name} = {pair!r}: two numbers in {name.rpartition('_')[2].replace('A', 'Å')}, (y, x), are needed")
        parse_aberrations({**self.aberrations, "defocus_A": self.defocus_A})
        if len(self.scan_shape) != 2 or min(self.scan_shape) < 1:
            raise RecipeError(f"scan_shape = {self.scan_shape!r}: two whole numbers of at least 1, (slow, fast), are needed")
        self._check_window()

    def _check(self, names: tuple[str, ...], valid: Callable[[float], bool], needed: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (math.isfinite(value) and valid(value)):
                raise RecipeError(f"{name} = {value!r}: {needed}")

    def _check_window(self) -> None:
        """The bright-field disk must fit the detector, and the beam the simulated window."""
        disk, edge = self.semiangle_mrad * 1e-3 / wavelength_A(self.voltage_kV), self.pattern_px / 2 * self.pixel_invA
        if disk > edge:
            raise RecipeError(f"pixel_invA = {self.pixel_invA:g}: the detector ends at {edge:.3g} 1/Å, inside the disk of {disk:.3g} 1/Å; enlarge it")
        beam, window = 2 * abs(self.defocus_A) * math.tan(self.semiangle_mrad * 1e-3), OVERSAMPLE / self.pixel_invA
        if beam > 0.8 * window:
            raise RecipeError(
                f"defocus_A = {self.defocus_A:g}: the beam is {beam:.3g} Å wide and does not fit the simulated window of {window:.3g} Å; "
                f"stay below {0.8 * window / beam * abs(self.defocus_A):.3g} or lower pixel_invA = {self.pixel_invA:.3g}"
            )

    @property
    def electrons_per_pattern(self) -> float:
        """Mean electrons that each position receives: dose times the area of a scan step."""
        return self.dose_e_per_A2 * self.step_A**2

    @property
    def raster_A(self) -> NDArray[np.float64]:
        """Where the probe should be, (N, 2) = (y, x) in Å from the centre of the scan."""
        return raster_positions_A(self.scan_shape, (self.step_A, self.step_A), self.rotation_deg)

    @property
    def positions_A(self) -> NDArray[np.float64]:
        """Where the probe is, (N, 2) = (y, x) in Å from the centre of the scan: the raster and its errors, which have no mean."""
        raster = self.raster_A
        errors = np.random.default_rng([self.seed, 2]).standard_normal(raster.shape) * self.jitter_A
        errors += np.linspace(-0.5, 0.5, len(raster))[:, None] * self.drift_A
        return raster + errors - errors.mean(0)

    @property
    def descan_px(self) -> NDArray[np.float64]:
        """How far the pattern of each position has moved on the detector, (N, 2) = (y, x) in its pixels, without their mean."""
        pixel_mrad = self.pixel_invA * wavelength_A(self.voltage_kV) * 1e3
        # Places from -1/2 to 1/2 on each axis of the scan.
        along = np.stack(np.meshgrid(*((np.arange(n) - (n - 1) / 2) / max(n - 1, 1) for n in self.scan_shape), indexing="ij"), -1)
        return along.reshape(-1, 2) * self.descan_mrad / pixel_mrad

    @property
    def fine_size(self) -> int:
        """Side of the simulated window in pixels, even."""
        return 2 * round(self.pattern_px * OVERSAMPLE * BAND / 2)

    @property
    def fine_pixel_A(self) -> float:
        """Pixel of the simulated wave and of the truth in Å."""
        return OVERSAMPLE / (self.pixel_invA * self.fine_size)
