"""4D-STEM data with a known truth: model specimen, the package's own forward model on a finer grid, an ideal counting detector.

So that a reconstruction is not tested against its own approximations, the wave is simulated up to 1.75 times the detector's highest frequency
(the propagator passes two thirds of that), in a window twice as wide as the inverse detector pixel (each pixel adds up finer samples) and in
slices of one atomic plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.aberrations import parse_aberrations
from ptycho.data import Dataset4D
from ptycho.detector import Detector
from ptycho.errors import RecipeError
from ptycho.geometry import raster_positions_A, wavelength_A
from ptycho.io import read
from ptycho.metrics import Agreement, compare_with_truth
from ptycho.model import Positions, Ptychography
from ptycho.multislice import Object
from ptycho.optics import probe_wave, shift_ramps
from ptycho.probe import Probe, orthogonalise
from ptycho.propagator import Propagator
from ptycho.result import Result
from ptycho.specimen import MFI_CELL_A, MONOLAYERS, STRONTIUM_TITANATE_A, mfi, monolayer, phase_slices, strontium_titanate

#: What ``Simulation.specimen`` may be.
SPECIMENS = (*MONOLAYERS, "SrTiO3", "MFI", "vacuum")

#: Called with (patterns done, patterns in all).
Progress = Callable[[int, int], None]

#: Positions at a time; with more the waves no longer fit the processor's cache.
_BATCH = 4
#: Samples per detector pixel and axis.
_OVERSAMPLE = 2
#: Highest simulated over highest detected frequency: two thirds of it, which pass the propagator, reach beyond the detector's edge.
_BAND = 1.75
#: Points per axis at which the source is sampled, and the share of the electrons that its weakest modes may lose.
_SOURCE_POINTS, _SOURCE_LOSS = 7, 1e-4


@dataclass(frozen=True)
class Simulation:
    """Everything that decides a simulated data set; the defaults are a WS2 monolayer with vacancies, seen in about ten seconds.

    ``specimen`` is one of ``SPECIMENS``; ``vacancy_fraction`` holds for the monolayers, ``thickness_A`` for the crystals. ``defocus_A`` is
    counted from the entrance surface, positive for underfocus; the beam's width on the specimen, 2 defocus tan(semiangle), should be
    about 0.6 of 1 / ``pixel_invA``. ``aberrations`` are the others, named as in a recipe. ``source_A`` is the rms radius along one axis
    of a Gaussian source, as seen on the specimen. The probe misses the raster by ``jitter_A`` (rms along one axis) at random and by
    ``drift_A`` (y, x) from the first position to the last. ``slice_thickness_A`` None: one slice for each atomic plane. ``tilt_mrad``
    (y, x) leans the atomic columns. ``read_noise_electrons`` is the rms of a pixel, 0.007 for the EMPAD. Raises RecipeError for values
    that do not fit.
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
    pattern_px: int = 128
    pixel_invA: float = 1 / 30
    dose_e_per_A2: float = 2e4
    read_noise_electrons: float = 0.007
    vacancy_fraction: float = 0.05
    thickness_A: float = 100.0
    slice_thickness_A: float | None = None
    rms_displacement_A: float = 0.06
    tilt_mrad: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.specimen not in SPECIMENS:
            raise RecipeError(f"specimen = {self.specimen!r}: unknown; known are {', '.join(SPECIMENS)}")
        positive = ("step_A", "voltage_kV", "semiangle_mrad", "pixel_invA", "dose_e_per_A2", "thickness_A")
        self._check(positive, lambda value: value > 0, "a number of more than 0 is needed")
        self._check(("read_noise_electrons", "rms_displacement_A", "source_A", "jitter_A"), lambda value: value >= 0, "0 or more is needed")
        self._check(("defocus_A", "rotation_deg"), lambda value: True, "a finite number is needed")
        self._check(("vacancy_fraction",), lambda value: 0 <= value < 1, "a number from 0 to less than 1 is needed")
        if self.slice_thickness_A is not None:
            self._check(("slice_thickness_A",), lambda value: value > 0, "a length in Å of more than 0, or none, is needed")
        if self.pattern_px < 2 or self.pattern_px % 2:
            raise RecipeError(f"pattern_px = {self.pattern_px!r}: an even number of pixels is needed")
        for name, pair in (("tilt_mrad", self.tilt_mrad), ("drift_A", self.drift_A)):
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
        beam, window = 2 * abs(self.defocus_A) * math.tan(self.semiangle_mrad * 1e-3), _OVERSAMPLE / self.pixel_invA
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
    def fine_size(self) -> int:
        """Side of the simulated window in pixels, even."""
        return 2 * round(self.pattern_px * _OVERSAMPLE * _BAND / 2)

    @property
    def fine_pixel_A(self) -> float:
        """Pixel of the simulated wave and of the truth in Å."""
        return _OVERSAMPLE / (self.pixel_invA * self.fine_size)


@dataclass(frozen=True)
class Simulated:
    """``patterns`` float32 (slow, fast, ky, kx), electrons as read out, zero frequency in the centre; and the truth behind them.

    ``truth_phase`` float32 (y, x) is the projected phase in rad, its middle (pixel ``shape // 2``) the centre of the scan;
    ``positions_A`` (N, 2) are the true probe centres (y, x) in Å from there; ``thickness_A`` is the specimen's.
    """

    simulation: Simulation
    patterns: NDArray[np.float32] = field(repr=False)
    truth_phase: NDArray[np.float32] = field(repr=False)
    truth_pixel_A: float
    positions_A: NDArray[np.float64] = field(repr=False)
    thickness_A: float

    def dataset(self, **changes: Any) -> Dataset4D:
        """As :func:`ptycho.read` would give it, without a file: patterns in electrons, nominal values. ``changes`` are its arguments."""
        s = self.simulation
        names = ("voltage_kV", "semiangle_mrad", "defocus_A", "aberrations", "step_A", "rotation_deg", "pixel_invA")
        known = {name: getattr(s, name) for name in names} | {"adu_per_electron": 1.0, "centre": "none"}
        return read(self.patterns, **{**known, **changes})

    def compare(self, result: Result, cutoff_invA: float | None = None, margin_A: float | None = None) -> Agreement:
        """The summed phase of a reconstruction against the truth, see :func:`ptycho.metrics.compare_with_truth`.

        ``cutoff_invA`` is the limit of the detector by default: a grid that is simulated beyond its edge holds what nothing has measured.
        """
        simulation = self.simulation
        cutoff_invA = cutoff_invA or simulation.pattern_px / 2 * simulation.pixel_invA
        low, high = result.positions_A.min(0), result.positions_A.max(0)
        (y, x), (height, width) = (low + high) / 2, high - low
        phase = result.phase.sum(0)
        return compare_with_truth(phase, result.pixel_A, self.truth_phase, self.truth_pixel_A, (y, x), (height, width), cutoff_invA, margin_A)


def simulate(simulation: Simulation, progress: Progress | None = None, atoms: NDArray[np.float64] | None = None) -> Simulated:
    """Simulate the data set: Poisson noise and read noise on the expected patterns, the same bits for the same seed.

    ``atoms`` (N, 4) = (Z, z, y, x) in Å, about the centre of the scan, z from 0 at the entrance, replace the named specimen.
    """
    model, phase, edges = forward_model(simulation, atoms)
    expected = expected_patterns(model, progress)
    noise = np.random.default_rng([simulation.seed, 1])
    patterns = noise.poisson(expected).astype(np.float32)
    if simulation.read_noise_electrons:
        patterns += noise.standard_normal(patterns.shape, np.float32) * np.float32(simulation.read_noise_electrons)
    patterns = patterns.reshape(*simulation.scan_shape, *patterns.shape[1:])
    return Simulated(simulation, patterns, phase, simulation.fine_pixel_A, simulation.positions_A, float(edges[-1] - edges[0]))


def forward_model(simulation: Simulation, atoms: NDArray[np.float64] | None = None) -> tuple[Ptychography, NDArray[np.float32], NDArray[np.float64]]:
    """The noise-free model, the projected phase (y, x) in rad that it holds and the edges of its slices in Å (slices + 1,)."""
    size, pixel_A, positions = simulation.fine_size, simulation.fine_pixel_A, simulation.positions_A
    height, width = (2 * math.ceil(np.abs(positions[:, axis]).max() / pixel_A) + size + 4 for axis in (0, 1))
    atoms, edges = _specimen(simulation, max(height, width) * pixel_A, atoms)
    # The grid is periodic: atoms right at its rim would overlap with those at the opposite one.
    atoms = atoms[(np.abs(atoms[:, 2:]) < np.array([height, width]) * pixel_A / 2 - 1).all(axis=1)]
    phases = phase_slices(atoms, (height, width), pixel_A, simulation.voltage_kV, edges, simulation.rms_displacement_A)
    transmission = torch.polar(torch.ones(phases.shape), torch.from_numpy(phases))[None]

    thickness = np.diff(edges)
    wavelength = wavelength_A(simulation.voltage_kV)
    # A slice acts in its middle, half a slice below the entrance surface: there the underfocus is that much smaller.
    terms = parse_aberrations({**simulation.aberrations, "defocus_A": simulation.defocus_A - thickness[0] / 2})
    # The aperture's edge is one detector pixel wide: a sharper one falls between the samples of a pixel and the electrons do not add up.
    wave = probe_wave(size, pixel_A, wavelength, simulation.semiangle_mrad, terms, _OVERSAMPLE) * math.sqrt(simulation.electrons_per_pattern)
    tilt = torch.tensor([simulation.tilt_mrad], dtype=torch.float32) * 1e-3
    model = Ptychography(
        Object(transmission),
        Probe(_source_modes(wave, simulation.source_A / pixel_A).to(torch.complex64), pixel_A, wavelength),
        Propagator(size, pixel_A, wavelength, torch.tensor(thickness, dtype=torch.float32), tilt),
        Positions(torch.tensor(positions / pixel_A + [height // 2, width // 2], dtype=torch.float32)),
        Detector(size, torch.ones(simulation.pattern_px, simulation.pattern_px), oversample=_OVERSAMPLE),
        pixel_A,
    )
    return model, phases.sum(axis=0), edges


def expected_patterns(model: Ptychography, progress: Progress | None = None) -> NDArray[np.float32]:
    """Noise-free patterns (N, ky, kx) in electrons at all positions, zero frequency in the centre."""
    n = len(model.positions.value_px)
    patterns = np.empty((n, *model.detector.mask.shape), np.float32)
    with torch.inference_mode():
        for index in torch.arange(n).split(_BATCH):
            patterns[index.numpy()] = torch.fft.fftshift(model(index), dim=(-2, -1)).numpy()
            if progress is not None:
                progress(int(index[-1]) + 1, n)
    return patterns


def _source_modes(wave: Tensor, sigma_px: float) -> Tensor:
    """The probe (y, x) of a Gaussian source as orthogonal modes (modes, y, x), the strongest first, of the same power.

    The intensity is the integral over probes shifted by r with the weight exp(-r^2 / 2 sigma^2): Gauss-Hermite quadrature on each axis.
    """
    if sigma_px == 0:
        return wave[None]
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(_SOURCE_POINTS))
    shifts = torch.cartesian_prod(nodes, nodes) * sigma_px
    ramp_y, ramp_x = shift_ramps(shifts, wave.shape[-1])
    share = torch.cartesian_prod(weights, weights).prod(-1) / weights.sum() ** 2
    modes = orthogonalise(torch.fft.ifft2(torch.fft.fft2(wave) * ramp_y * ramp_x) * share.sqrt()[:, None, None])
    power = torch.linalg.vector_norm(modes, dim=(-2, -1)) ** 2
    kept = int((power.cumsum(0) < (1 - _SOURCE_LOSS) * power.sum()).sum()) + 1
    return modes[:kept] * torch.sqrt(power.sum() / power[:kept].sum())


def _specimen(simulation: Simulation, field_A: float, atoms: NDArray[np.float64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Atoms (N, 4) over the field and the edges of equal slices, (slices + 1,), about as thick as wanted."""
    if atoms is not None:
        spacing, thickness = 2.0, float(atoms[:, 1].max(initial=0.0)) + 1.0
    elif simulation.specimen == "vacuum":
        return np.empty((0, 4)), np.zeros(2)
    elif simulation.specimen == "MFI":
        # Planes that are not alike: slices a tenth of the cell thick, and whole cells.
        atoms, spacing = mfi(field_A, simulation.thickness_A), MFI_CELL_A[1] / 10
        thickness = MFI_CELL_A[1] * max(1, round(simulation.thickness_A / MFI_CELL_A[1]))
    else:
        if simulation.specimen == "SrTiO3":
            atoms, spacing = strontium_titanate(field_A, simulation.thickness_A), STRONTIUM_TITANATE_A / 2
        else:
            atoms = monolayer(simulation.specimen, field_A, simulation.vacancy_fraction, simulation.seed)
            spacing = MONOLAYERS[simulation.specimen][3] / 2
        # Every plane is in the middle of its slice.
        thickness = float(atoms[:, 1].max()) + spacing / 2
    slices = max(1, round(thickness / (simulation.slice_thickness_A or spacing)))
    return atoms, np.linspace(0, thickness, slices + 1)
