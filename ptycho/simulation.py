"""4D-STEM data with a known truth: model specimen, the package's own forward model on a finer grid, an ideal counting detector.

So that a reconstruction is not tested against its own approximations, the wave is simulated up to 1.75 times the detector's highest frequency
(the propagator passes two thirds of that), in a window twice as wide as the inverse detector pixel (each pixel adds up finer samples) and in
slices of one atomic plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.aberrations import parse_aberrations
from ptycho.camera import spread
from ptycho.data import Dataset4D
from ptycho.detector import Detector
from ptycho.geometry import wavelength_A
from ptycho.io import read
from ptycho.metrics import Agreement, compare_with_truth
from ptycho.model import Positions, Ptychography
from ptycho.multislice import Object
from ptycho.optics import probe_wave, shift_ramps
from ptycho.probe import Probe, orthogonalise
from ptycho.propagator import Propagator
from ptycho.result import Result
from ptycho.sample import Sample
from ptycho.simulation_settings import OVERSAMPLE, Simulation
from ptycho.specimen import displaced, displacements_A, phase_slices

#: Called with (patterns done, patterns in all).
Progress = Callable[[int, int], None]

#: Positions at a time; with more the waves no longer fit the processor's cache.
_BATCH = 4
#: Points per axis at which the source is sampled, and the share of the electrons that its weakest modes may lose.
_SOURCE_POINTS, _SOURCE_LOSS = 7, 1e-4


@dataclass(frozen=True)
class Simulated:
    """``patterns`` float32 (slow, fast, ky, kx), electrons as read out, zero frequency in the centre; and the truth behind them.

    ``truth_phase`` float32 (y, x) is the projected phase in rad, its middle (pixel ``shape // 2``) the centre of the scan;
    ``positions_A`` (N, 2) are the true probe centres (y, x) in Å from there; ``thickness_A`` is the specimen's. With frozen phonons the
    phase is that of the mean potential.
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


def simulate(simulation: Simulation, progress: Progress | None = None, atoms: Any = None) -> Simulated:
    """Simulate the data set: Poisson noise, the signal's spread and read noise on the expected patterns, the same bits for the same seed.

    ``atoms`` replace the named specimen: an ``ase.Atoms``, a crystal along ``zone_axis`` or a molecule; or an array (N, 4) = (Z, z, y, x)
    in Å, about the centre of the scan, z from 0 at the entrance.
    """
    model, phase, edges = forward_model(simulation, atoms)
    expected = thermal_patterns(simulation, atoms, progress) if simulation.frozen_phonons else expected_patterns(model, progress)
    noise = np.random.default_rng([simulation.seed, 1])
    patterns = noise.poisson(expected).astype(np.float32)
    if simulation.detector_mtf:
        patterns = spread(patterns, simulation.detector_mtf)
    if simulation.read_noise_electrons:
        patterns += noise.standard_normal(patterns.shape, np.float32) * np.float32(simulation.read_noise_electrons)
    patterns = patterns.reshape(*simulation.scan_shape, *patterns.shape[1:])
    return Simulated(simulation, patterns, phase, simulation.fine_pixel_A, simulation.positions_A, float(edges[-1] - edges[0]))


def forward_model(simulation: Simulation, atoms: Any = None) -> tuple[Ptychography, NDArray[np.float32], NDArray[np.float64]]:
    """The noise-free model of the mean potential, the projected phase (y, x) in rad that it holds and the edges of its slices in Å (slices + 1,)."""
    size, pixel_A, positions = simulation.fine_size, simulation.fine_pixel_A, simulation.positions_A
    placed, edges, (height, width) = _placed(simulation, atoms)
    phases = phase_slices(placed, (height, width), pixel_A, simulation.voltage_kV, edges, simulation.rms_displacement_A)
    thickness = np.diff(edges)
    wavelength = wavelength_A(simulation.voltage_kV)
    # A slice acts in its middle, half a slice below the entrance surface: there the underfocus is that much smaller.
    terms = parse_aberrations({**simulation.aberrations, "defocus_A": simulation.defocus_A - thickness[0] / 2})
    # The aperture's edge is one detector pixel wide: a sharper one falls between the samples of a pixel and the electrons do not add up.
    wave = probe_wave(size, pixel_A, wavelength, simulation.semiangle_mrad, terms, OVERSAMPLE) * math.sqrt(simulation.electrons_per_pattern)
    tilt = torch.tensor([simulation.tilt_mrad], dtype=torch.float32) * 1e-3
    model = Ptychography(
        Object(_transmission(phases)),
        Probe(_source_modes(wave, simulation.source_A / pixel_A).to(torch.complex64), pixel_A, wavelength),
        Propagator(size, pixel_A, wavelength, torch.tensor(thickness, dtype=torch.float32), tilt),
        Positions(torch.tensor(positions / pixel_A + [height // 2, width // 2], dtype=torch.float32)),
        Detector(size, torch.ones(simulation.pattern_px, simulation.pattern_px), blur_px=simulation.detector_blur_px, oversample=OVERSAMPLE),
        pixel_A,
    )
    if any(simulation.descan_mrad):
        model.detector.descan_px.data = torch.tensor(simulation.descan_px, dtype=torch.float32)
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


def thermal_patterns(simulation: Simulation, atoms: Any = None, progress: Progress | None = None) -> NDArray[np.float32]:
    """Noise-free patterns (N, ky, kx), the mean over ``frozen_phonons`` specimens whose atoms are displaced at random, each by its rms.

    Loane, Xu & Silcox, Acta Cryst. A 47 (1991) 267. Configuration c depends on (seed, c) alone.
    """
    model, _, edges = forward_model(simulation, atoms)
    placed, _, shape = _placed(simulation, atoms)
    rms_A = displacements_A(placed, simulation.rms_displacement_A)
    count = simulation.frozen_phonons
    total = np.zeros((len(model.positions.value_px), *model.detector.mask.shape), np.float32)
    for c in range(count):
        moved = displaced(placed, rms_A, np.random.default_rng([simulation.seed, 3, c]))
        phases = phase_slices(moved, shape, simulation.fine_pixel_A, simulation.voltage_kV, edges)
        model.object.transmission.data = _transmission(phases)
        total += expected_patterns(model, progress and _part_of(progress, c, count))
    total /= count
    return total


def _part_of(progress: Progress, part: int, parts: int) -> Progress:
    return lambda done, total: progress(part * total + done, parts * total)


def _placed(simulation: Simulation, atoms: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int]]:
    """Atoms (N, 4) within the simulated field, the edges of the slices and the field's size (y, x) in pixels."""
    s, pixel_A = simulation, simulation.fine_pixel_A
    height, width = (2 * math.ceil(np.abs(s.positions_A[:, axis]).max() / pixel_A) + s.fine_size + 4 for axis in (0, 1))
    field_A = max(height, width) * pixel_A
    if atoms is None:
        found = Sample.named(s.specimen, field_A, s.thickness_A, s.zone_axis, s.vacancy_fraction, s.seed)
    else:
        found = Sample.given(atoms, field_A, s.thickness_A, s.zone_axis)
    # The grid is periodic: atoms right at its rim would overlap with those at the opposite one.
    inside = (np.abs(found.atoms[:, 2:]) < np.array([height, width]) * pixel_A / 2 - 1).all(axis=1)
    return found.atoms[inside], found.edges_A(s.slice_thickness_A), (height, width)


def _transmission(phases: NDArray[np.float32]) -> Tensor:
    """Complex (1, slices, y, x): the slices change the wave's phase alone."""
    return torch.polar(torch.ones(phases.shape), torch.from_numpy(phases))[None]


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
