"""Thick specimens: T03 and T12 (Chen et al., Science 372 (2021) 826), T04 to T06 (Sha et al. 2022, 2023; Zhang et al. 2023), T10, T22."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from publication_rows import (
    Exposures,
    Image,
    Row,
    Rows,
    about_frequency,
    column_sums,
    fit_columns,
    lean_mrad,
    on_specimen,
    position_errors_A,
    reconstruct,
)  # fmt: skip
from scipy import optimize

from ptycho.aberrations import parse_aberrations
from ptycho.geometry import wavelength_A
from ptycho.optics import aberration_phase, frequency_grid
from ptycho.result import Result
from ptycho.simulation import Simulated, Simulation, expected_patterns, forward_model
from ptycho.solvers import Gradient, Updates
from ptycho.specimen import STRONTIUM_TITANATE_A, leaning, strontium_titanate, substitute

#: After the published set-up: 300 kV, 21.4 mrad, overfocus of 20 nm, a window of 24 Å.
PEROVSKITE = Simulation(
    specimen="SrTiO3", thickness_A=101.5, scan_shape=(16, 16), step_A=0.8, voltage_kV=300.0, semiangle_mrad=21.4, defocus_A=-200.0,
    pattern_px=96, pixel_invA=1 / 24.0, dose_e_per_A2=1e6, slice_thickness_A=STRONTIUM_TITANATE_A, read_noise_electrons=0.0,
)  # fmt: skip
ZEOLITE = Simulation(
    specimen="MFI", thickness_A=398.0, scan_shape=(16, 16), step_A=1.8, voltage_kV=300.0, semiangle_mrad=15.0, defocus_A=-150.0,
    pattern_px=96, pixel_invA=1 / 36.0, slice_thickness_A=5.0, rms_displacement_A=0.14, read_noise_electrons=0.0,
)  # fmt: skip
#: Slices of 10 Å stay below a phase of pi in a strontium column.
SLICE_A = 10.15


def slices(thickness_A: float, each_A: float = SLICE_A) -> dict[str, float]:
    """The [model] keys for equal slices."""
    count = max(1, round(thickness_A / each_A))
    return {"slices": count, "slice_thickness_A": thickness_A / count}


def strontium_A(reach_A: float) -> Image:
    """(y, x) of the strontium columns within ``reach_A`` of the centre along each axis."""
    axis = np.arange(-np.floor(reach_A / STRONTIUM_TITANATE_A), np.floor(reach_A / STRONTIUM_TITANATE_A) + 1) * STRONTIUM_TITANATE_A
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def t03() -> Iterator[Row]:
    """SrTiO3 of 5 to 21 nm: agreement, instrumental blur, column positions, phase proportional to thickness."""
    rows = Rows("T03")
    for thickness in (50.8, 101.5, 210.9):
        simulation = replace(PEROVSKITE, thickness_A=thickness, scan_shape=(20, 20) if thickness > 200 else (16, 16))
        simulated = Exposures.of(simulation).at(1e6)
        result, seconds = reconstruct(simulated, **slices(thickness))
        found, case = simulated.compare(result), f"{thickness / 10:.0f} nm, 1e6 e/Å²"
        yield rows.at_least(case, "corr", found.correlation, 0.995 if thickness < 200 else 0.99, seconds)
        yield rows.within(case, "slope", found.slope, 1.0, 0.05)
        yield rows.at_most(case, "FRC 0.5 / Å", found.resolution_A, 0.55)
    points = strontium_A(6.0)
    there = fit_columns(result.phase.sum(0), result.pixel_A, on_specimen(result, found, points))
    true_px = points / simulated.truth_pixel_A + np.array(simulated.truth_phase.shape) // 2
    true = fit_columns(simulated.truth_phase, simulated.truth_pixel_A, true_px)
    blur = 2.355 * np.sqrt(max(float(np.mean(there[:, 2] ** 2 - true[:, 2] ** 2)), 0.0))
    yield rows.at_most("21 nm, Sr columns", "instrumental blur (FWHM) / pm", 100 * blur, 20)
    error = there[:, :2] - true[:, :2]
    yield rows.at_most("21 nm, Sr columns", "position rms / pm", 100 * float(np.sqrt(np.mean((error - error.mean(0)) ** 2))), 3)
    result, seconds = reconstruct(simulated)
    yield rows.at_most("twin: 21 nm, one slice", "corr", simulated.compare(result).correlation, 0.8, seconds)


def t04() -> Iterator[Row]:
    """Columns that lean, by moved atoms; the tilt is learned from zero, judged with the lean that is left in the slices."""
    rows, refined = Rows("T04"), {"refine": ("tilt",)}
    straight = Exposures.of(PEROVSKITE).at(1e6)
    result, seconds = reconstruct(straight, **slices(101.5))
    control = straight.compare(result).correlation
    yield rows.at_least("10 nm, not tilted", "corr", control, 0.995, seconds)
    cases = ((101.5, (4.0, -3.0), 1e6, 0.5), (101.5, (4.0, -3.0), 1e4, 1.0), (101.5, (10.0, -8.0), 1e6, 0.5), (203.0, (8.0, -5.0), 1e6, 1.0))
    for thickness, tilt, dose, most in cases:
        simulation = replace(PEROVSKITE, thickness_A=thickness)
        simulated = Exposures.of(simulation, leaning(strontium_titanate(90.0, thickness), tilt)).at(dose)
        result, seconds = reconstruct(simulated, **refined, **slices(thickness))
        case = f"{thickness / 10:.0f} nm, tilt {tilt} mrad, {dose:g} e/Å²"
        left = result.tilt_mrad[0] + lean_mrad(result) - tilt
        yield rows.at_most(case, "tilt and lean, error / mrad", float(np.abs(left).max()), most, seconds)
        if dose == 1e6:
            corr = lean_compare(simulated, result, thickness)
            yield rows.at_most(case, "corr below that of no tilt", control - corr, 0.01 if thickness < 200 else 0.05)
    result, seconds = reconstruct(simulated, **slices(thickness))
    twin = lean_compare(simulated, result, thickness) - corr
    yield rows.at_most(f"twin: {case}, tilt kept at 0", "corr less that of the refined", twin, -0.005, seconds)

    field = replace(PEROVSKITE, thickness_A=101.5)
    model = forward_model(field)[0]
    tilts = np.column_stack([np.linspace(0, 6, len(field.raster_A)), np.zeros(len(field.raster_A))])
    model.propagator.tilt_rad = torch.nn.Parameter(torch.tensor(tilts * 1e-3, dtype=torch.float32))
    varied = replace(straight, patterns=poisson(expected_patterns(model), field))
    result, seconds = reconstruct(varied, refine=("tilt",), tilt_per_position=True, **slices(101.5))
    rms = float(np.sqrt(np.mean((result.tilt_mrad + lean_mrad(result) - tilts) ** 2)))
    yield rows.at_most("tilt 0 to 6 mrad across the scan, one for each position", "rms / mrad", rms, 1.0, seconds)


def poisson(expected: Image, simulation: Simulation) -> Image:
    """Counts in the shape of the scan."""
    counts = np.random.default_rng([simulation.seed, 1]).poisson(expected.astype(np.float64)).astype(np.float32)
    return counts.reshape(*simulation.scan_shape, *counts.shape[1:])


def lean_compare(simulated: Simulated, result: Result, thickness_A: float) -> float:
    """Correlation with the truth of straight columns: a tilted model holds its columns upright."""
    upright = replace(simulated, truth_phase=forward_model(replace(simulated.simulation, thickness_A=thickness_A))[1])
    return upright.compare(result).correlation


def t05() -> Iterator[Row]:
    """MFI of 60 nm at 1100 e/Å², tilted by (2, -1) mrad."""
    rows, tilt = Rows("T05"), (2.0, -1.0)
    simulation = replace(ZEOLITE, thickness_A=597.0, defocus_A=-200.0, step_A=2.0, pixel_invA=1 / 40.0, tilt_mrad=tilt)
    simulated = Exposures.of(simulation).at(1100.0)
    model = slices(597.0, 50.0)
    result, seconds = reconstruct(simulated, refine=("tilt",), **model)
    found = simulated.compare(result, 0.5)
    yield rows.at_least("60 nm, 1100 e/Å²", "corr to 2 Å", found.correlation, 0.85, seconds)
    left = result.tilt_mrad[0] + lean_mrad(result) - tilt
    yield rows.at_most("60 nm, 1100 e/Å²", "tilt and lean, error / mrad", float(np.abs(left).max()), 1.0)
    result, seconds = reconstruct(simulated)
    twin = simulated.compare(result, 0.5).correlation - found.correlation
    yield rows.at_most("twin: one slice, no tilt", "corr to 2 Å less that of slices", twin, -0.05, seconds)


def t06() -> Iterator[Row]:
    """MFI of 12 and 40 nm at 3500 and 1e5 e/Å²."""
    rows = Rows("T06")
    for thickness in (119.4, 398.0):
        exposures = Exposures.of(replace(ZEOLITE, thickness_A=thickness))
        for dose, finest in ((1e5, 0.9), (3500.0, 1.2)):
            simulated = exposures.at(dose)
            result, seconds = reconstruct(simulated, **slices(thickness, 40.0 if thickness > 200 else 24.0))
            case, found = f"{thickness / 10:.0f} nm, {dose:g} e/Å²", simulated.compare(result, 1 / 0.8)
            yield rows.at_least(case, "corr to 0.8 Å", found.correlation, 0.99 if thickness < 200 else 0.95, seconds)
            yield rows.at_most(case, "FRC 0.5 / Å", simulated.compare(result).resolution_A, finest)
        result, seconds = reconstruct(simulated)
        corr = simulated.compare(result, 1 / 0.8).correlation
        yield rows.at_most(f"twin: {case}, one slice", "corr to 0.8 Å less that of slices", corr - found.correlation, -0.01, seconds)


def t10() -> Iterator[Row]:
    """Positions: errors of 0.3 Å, a wrong step and rotation, drift; on 10 nm of SrTiO3."""
    rows, refined = Rows("T10"), {"refine": ("positions",)}
    model = slices(101.5)
    straight = Exposures.of(PEROVSKITE).at(1e6)
    result, _ = reconstruct(straight, **model)
    control = straight.compare(result).correlation
    for dose, most in ((1e6, 0.05), (1e4, 0.1)):
        simulated = Exposures.of(replace(PEROVSKITE, jitter_A=0.3)).at(dose)
        result, seconds = reconstruct(simulated, **refined, **model)
        case = f"0.3 Å rms, {dose:g} e/Å²"
        yield rows.at_most(case, "position rms after affine / Å", position_errors_A(result, simulated)[0], most, seconds)
        if dose == 1e6:
            yield rows.at_most(case, "corr below that of no errors", control - simulated.compare(result).correlation, 0.01)
            result, seconds = reconstruct(simulated, **model)
            lost = control - simulated.compare(result).correlation
            yield rows.at_least(f"twin: {case}, kept", "corr below that of no errors", lost, 0.01, seconds)
    result, seconds = reconstruct(straight, None, {"step_A": 0.8 * 1.02, "rotation_deg": 1.0}, refine=("scan", "positions"), **model)
    left = position_errors_A(result, straight)[1]
    yield rows.at_most("step 2 %, rotation 1° wrong", "step, error / %", 100 * float(abs(np.trace(left)) / 2), 0.1, seconds)
    yield rows.at_most("step 2 %, rotation 1° wrong", "rotation, error / °", float(np.rad2deg(abs(left[0, 1] - left[1, 0]) / 2)), 0.1)
    simulated = Exposures.of(replace(PEROVSKITE, jitter_A=0.1, drift_A=(2.0, -1.0))).at(1e6)
    result, seconds = reconstruct(simulated, **refined, **model)
    yield rows.at_most("drift of (2, -1) Å", "position rms after affine / Å", position_errors_A(result, simulated)[0], 0.05, seconds)


def t12() -> Iterator[Row]:
    """Tungsten in three strontium columns, 3, 7 and 10 nm deep in 15 nm; and vacuum above and below, which must stay empty."""
    rows = Rows("T12")
    columns = np.array([(0.0, 0.0), (STRONTIUM_TITANATE_A, -STRONTIUM_TITANATE_A), (-STRONTIUM_TITANATE_A, STRONTIUM_TITANATE_A)])
    doped, depths = strontium_titanate(90.0, 152.3), []
    for (y, x), depth in zip(columns, (30.0, 70.0, 100.0), strict=True):
        before = doped
        doped = substitute(doped, (depth, y, x), 74)
        depths.append(float(doped[(doped != before).any(1), 1][0]))
    exposures = Exposures.of(replace(PEROVSKITE, thickness_A=152.3), doped)
    for dose in (1e6, 1e5):
        simulated = exposures.at(dose)
        result, seconds = reconstruct(simulated, **slices(152.3))
        found = simulated.compare(result)
        others = np.array([p for p in strontium_A(4.0) if np.hypot(*(columns - p).T).min() > 1])
        points = on_specimen(result, found, np.concatenate([columns, others]))
        # Tungsten differs from strontium in the middle: far from it both hold about as much.
        sums = column_sums(about_frequency(result.phase, result.pixel_A, 1.0), result.pixel_A, points, 0.12)
        profiles = sums[:, :3] - sums[:, 3:].mean(1, keepdims=True)
        fits = [depth_of(profile, result.slice_thickness_A) for profile in profiles.T]
        error = max(abs(fit[0] - depth) for fit, depth in zip(fits, depths, strict=True))
        yield rows.at_most(f"{dose:g} e/Å², three W atoms", "depth, largest error / Å", error, 10.0, seconds)
        widest = 2.355 * max(fit[1] for fit in fits)
        yield rows.at_most(f"{dose:g} e/Å², three W atoms", "FWHM in depth, widest / Å", widest, 1.3 / (2 * 21.4e-3))

    buried = strontium_titanate(90.0, 101.5) + np.array([0.0, 20.0, 0.0, 0.0])
    # A last atom far outside of the scan makes the simulated box as thick as the vacuum below.
    far = np.array([[8, 140.0, 44.0, 44.0]])
    simulated = Exposures.of(PEROVSKITE, np.concatenate([buried, far])).at(1e6)
    result, seconds = reconstruct(simulated, **slices(141.5))
    phase = result.phase[:, result.scanned[0], result.scanned[1]].std((1, 2))
    count = len(phase)
    outside = phase[[0, count - 1]].max() / phase[count // 3 : 2 * count // 3].mean()
    yield rows.at_most("2 nm of vacuum above and below", "its contrast / that of the crystal", float(outside), 0.03, seconds)
    single, seconds = reconstruct(simulated)
    twin = simulated.compare(single).correlation - simulated.compare(result).correlation
    yield rows.at_most("twin: one slice", "corr less that of slices", twin, -0.05, seconds)


def depth_of(profile: Image, thickness_A: Image) -> tuple[float, float]:
    """Depth and standard deviation in Å of a Gaussian peak over the slices' middles."""
    middle = np.cumsum(thickness_A) - thickness_A / 2

    def misfit(p: Image) -> Image:
        return np.asarray(p[0] * np.exp(-((middle - p[1]) ** 2) / (2 * p[2] ** 2)) + p[3] - profile)

    start = [np.ptp(profile), middle[profile.argmax()], 10.0, float(np.median(profile))]
    p = optimize.least_squares(misfit, start).x
    return float(p[1]), float(abs(p[2]))


def t22() -> Iterator[Row]:
    """Probe retrieval: started 5 nm out of focus, without 20 Å of astigmatism and 1 µm of C30."""
    rows = Rows("T22")
    simulation = replace(PEROVSKITE, aberrations={"C12": 20.0, "phi12_deg": 30.0, "C30": 1e4})
    simulated = Exposures.of(simulation).at(1e6)
    wrong = {"defocus_A": simulation.defocus_A + 50.0, "aberrations": {}}
    result, seconds = reconstruct(simulated, None, wrong, refine=("aberrations",), **slices(101.5))
    yield rows.at_most("10 nm SrTiO3, C10 50 Å, C12 20 Å, C30 1 µm wrong", "chi rms / rad", chi_rms(result, simulation), 0.1, seconds)
    yield rows.at_least("10 nm SrTiO3, C10 50 Å, C12 20 Å, C30 1 µm wrong", "corr", simulated.compare(result).correlation, 0.99)
    result, seconds = reconstruct(simulated, Gradient(epochs=80, batch=8, update=Updates(probe=0)), wrong, **slices(101.5))
    yield rows.at_least("twin: probe kept", "chi rms / rad", chi_rms(result, simulation), 0.3, seconds)


def chi_rms(result: Result, simulation: Simulation) -> float:
    """rms over the aperture of the recovered less the true aberration phase, without piston, tilt and defocus (its origin is a gauge)."""
    ky, kx = frequency_grid(result.probe.shape[-1], result.pixel_A)
    wavelength = wavelength_A(simulation.voltage_kV)
    terms = parse_aberrations({**simulation.aberrations, "defocus_A": simulation.defocus_A})
    chi = aberration_phase(terms, ky, kx, wavelength).numpy()
    inside = (torch.hypot(ky, kx) <= 0.95 * simulation.semiangle_mrad * 1e-3 / wavelength).numpy()
    wave = inside * np.fft.fft2(np.fft.ifftshift(result.probe[0])) * np.exp(1j * chi)
    # The shift of the probe to the nearest pixel first, so that what is left needs no unwrapping.
    shift = np.unravel_index(np.abs(np.fft.ifft2(wave)).argmax(), wave.shape)
    ramps = np.exp(2j * np.pi * np.add.outer(*(np.fft.fftfreq(n) * s for n, s in zip(wave.shape, shift, strict=True))))
    left = (wave * ramps)[inside]
    y, x = (np.broadcast_to(k.numpy(), inside.shape)[inside] for k in (ky, kx))
    basis = np.column_stack([np.ones_like(y), y, x, y**2 + x**2])
    for _ in range(20):
        left = left * np.exp(-1j * basis @ np.linalg.lstsq(basis, np.angle(left), rcond=None)[0])
    return float(np.sqrt(np.mean(np.angle(left) ** 2)))
