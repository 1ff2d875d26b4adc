"""Direct methods: the SSB half of T08 (O'Leary et al., Appl. Phys. Lett. 116 (2020) 124101), T15 (where iDPC breaks), T16."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from publication_rows import NOISE_FREE, Exposures, Image, Row, Rows

from ptycho.centre_of_mass import idpc
from ptycho.direct import DirectPhase, ssb, wdd
from ptycho.geometry import wavelength_A
from ptycho.metrics import Agreement, compare_with_truth
from ptycho.simulation import Simulated, Simulation
from ptycho.specimen import mfi
from ptycho.tilt_corrected import Parallax, parallax

#: In focus, 300 kV, 14 mrad, a step of lambda / 4 alpha: two pixels of the simulation's grid.
THIN = Simulation(
    specimen="vacuum", scan_shape=(64, 64), step_A=0.35, voltage_kV=300.0, semiangle_mrad=14.0, defocus_A=0.0, pattern_px=64, pixel_invA=1 / 19.6,
    slice_thickness_A=4.0, read_noise_electrons=0.0,
)  # fmt: skip
#: The same on finer pixels, over which the phase of an aberrated probe turns less: what a pixel adds up no method takes apart.
FINE = replace(THIN, pattern_px=96, pixel_invA=1 / 29.4)
ABERRATED = replace(FINE, defocus_A=-500.0, aberrations={"C12": 30.0, "phi12_deg": 25.0, "C21": 300.0, "C30": 2e5})
#: Overfocused and with a step that undersamples what the aperture passes; the pixels are fine for the same reason.
TILTED = replace(
    THIN, scan_shape=(40, 40), step_A=1.4, semiangle_mrad=20.0, defocus_A=-500.0, aberrations={"C12": 30.0, "phi12_deg": 25.0},
    pattern_px=96, pixel_invA=1 / 38.0,
)  # fmt: skip
#: The probe of 15 mrad of the zeolite works, focused on the middle of the specimen.
ZEOLITE = replace(
    THIN, specimen="MFI", scan_shape=(56, 56), step_A=0.35, semiangle_mrad=15.0, slice_thickness_A=5.0, rms_displacement_A=0.14,
)  # fmt: skip
APERTURE_INVA = 14e-3 / wavelength_A(300.0)
#: Rings in radii of the aperture, from where there is double overlap to where there is little of it.
RINGS = ((0.2, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 1.8))


def carbon(simulation: Simulation, count: int = 120) -> Image:
    """Carbon atoms at random places in one layer, periodic with the field of the scan: a weak phase with every frequency in it."""
    period = simulation.scan_shape[0] * simulation.step_A
    cell = np.random.default_rng(0).uniform(-period / 2, period / 2, (count, 2))
    tiles = np.stack(np.meshgrid(*[np.arange(-3, 4) * period] * 2, indexing="ij"), -1).reshape(-1, 1, 2)
    places = (cell + tiles).reshape(-1, 2)
    return np.column_stack([np.full(len(places), 6.0), np.full(len(places), 1.0), places])


def radii(points: int, step_A: float) -> Image:
    """|Q| in radii of the aperture."""
    axis = np.fft.fftfreq(points, step_A)
    return np.asarray(np.hypot(*np.meshgrid(axis, axis, indexing="ij")) / APERTURE_INVA)


def gains(found: DirectPhase, simulated: Simulated) -> Image:
    """Of each ring: recovered over true spectrum, the truth from one period of the finer grid."""
    s, n = simulated.simulation, simulated.simulation.scan_shape[0]
    height, width = (size // 2 - n + 1 for size in simulated.truth_phase.shape)
    true = np.fft.fft2(simulated.truth_phase[height : height + 2 * n, width : width + 2 * n]) / 4
    low = np.r_[: n // 2, 2 * n - n // 2 : 2 * n]
    true, recovered, q = true[np.ix_(low, low)], np.fft.fft2(found.phase), radii(n, s.step_A)
    rings = [(q > inner) & (q < outer) for inner, outer in RINGS]
    return np.array([(recovered[ring] * true[ring].conj()).sum().real / (np.abs(true[ring]) ** 2).sum() for ring in rings])


def lens(x: Image) -> Image:
    """Share of a disk that another one, x radii away, overlaps."""
    x = np.clip(x, 0, 2)
    return np.asarray(2 / np.pi * (np.arccos(x / 2) - x / 2 * np.sqrt(1 - x**2 / 4)))


def efficiency(simulation: Simulation, draws: int = 4) -> Image:
    """Of each ring: DQE over the law, a quarter of the double overlap.

    The unitary transform of vacuum's image has the variance 1 / (4 electrons DQE).
    """
    electrons, s = 400.0, replace(simulation, scan_shape=(48, 48), dose_e_per_A2=1.0)
    one = Exposures.of(replace(s, scan_shape=(1, 1))).expected[0] / s.electrons_per_pattern
    power, q = np.zeros(s.scan_shape), radii(48, s.step_A)
    for seed in range(draws):
        counts = np.random.default_rng(seed).poisson(np.broadcast_to(one.astype(float) * electrons, (*s.scan_shape, *one.shape)))
        image = ssb(Simulated(s, counts.astype(np.float32), np.zeros((1, 1), np.float32), 1.0, s.positions_A, 0.0).dataset(), pad_A=0.0)
        power += np.abs(np.fft.fft2(image.phase, norm="ortho")) ** 2 / draws
    law = (lens(q) - lens(2 * q)) / 2
    rings = [(q > inner) & (q < outer) for inner, outer in RINGS]
    return np.array([1 / (4 * electrons * np.mean(power[ring] * law[ring])) for ring in rings])


def timed(method: Any, simulated: Simulated, pad_A: float | None = None, **reading: Any) -> tuple[DirectPhase, float]:
    """The image and the seconds it took."""
    data = simulated.dataset(**reading)
    began = time.perf_counter()
    return method(data, pad_A=pad_A), time.perf_counter() - began


def against(simulated: Simulated, found: DirectPhase, cutoff_invA: float) -> Agreement:
    """With the truth, in the inner part of the field."""
    image, origin = found.upright()
    field = tuple((n - 1) * simulated.simulation.step_A for n in simulated.simulation.scan_shape)
    return compare_with_truth(image, min(found.pixel_A), simulated.truth_phase, simulated.truth_pixel_A, tuple(-origin), field, cutoff_invA, 1.0)


def t08() -> Iterator[Row]:
    """SSB: gain and noise on a weak object, single bits, the lattice of MFI at 200 e/Å²."""
    rows = Rows("T08")
    weak = Exposures.of(THIN, carbon(THIN)).at(NOISE_FREE)
    found, seconds = timed(ssb, weak, 0.0)
    for (inner, outer), gain in zip(RINGS, gains(found, weak), strict=True):
        yield rows.within("SSB, weak object, no noise", f"gain, {inner:g} to {outer:g} radii", gain, 1.0, 0.03, seconds)
    for (inner, outer), share in zip(RINGS[1:], efficiency(THIN)[1:], strict=True):
        yield rows.within("SSB, vacuum, 400 e a pattern", f"DQE / law, {inner:g} to {outer:g} radii", share, 1.0, 0.15)
    zeolite = Simulation(
        specimen="MFI", scan_shape=(56, 56), step_A=0.35, voltage_kV=300.0, semiangle_mrad=14.0, defocus_A=0.0, pattern_px=32, pixel_invA=1 / 19.6,
        thickness_A=39.8, slice_thickness_A=10.0, rms_displacement_A=0.14, read_noise_electrons=0.0,
    )  # fmt: skip
    exposures = Exposures.of(zeolite, mfi(80.0, 39.8))
    disk_px = np.pi * (APERTURE_INVA * 19.6) ** 2
    simulated = exposures.at(200.0)
    counts, seconds = timed(ssb, simulated)
    bits, _ = timed(ssb, replace(simulated, patterns=np.minimum(simulated.patterns, 1)))
    per_pixel = simulated.simulation.electrons_per_pattern / disk_px
    yield rows.at_most("SSB, 200 e/Å²", "electrons per pixel of the disk", per_pixel, 0.05)
    yield rows.at_least("SSB, 200 e/Å², single bits against counts", "corr", float(np.corrcoef(counts.phase.ravel(), bits.phase.ravel())[0, 1]), 0.98)
    yield rows.at_least("SSB, 200 e/Å²", "corr to 2 Å", against(simulated, counts, 0.5).correlation, 0.8, seconds)
    many = exposures.at(NOISE_FREE)
    yield rows.at_least("SSB, no noise", "corr to 1 Å", against(many, timed(ssb, many)[0], 1.0).correlation, 0.95)


def t15() -> Iterator[Row]:
    """iDPC of MFI, in focus at mid-plane, against the truth with the transfer of the aperture: right when thin, broken at 40 nm."""
    rows = Rows("T15")
    for thickness, least in ((59.7, 0.98), (119.4, 0.97), (398.0, 0.0)):
        simulation = replace(ZEOLITE, thickness_A=thickness, defocus_A=thickness / 2)
        exposures = Exposures.of(simulation)
        for dose in (3500.0, 400.0) if least else (3500.0,):
            simulated = exposures.at(dose)
            found = idpc_against(simulated, 1.0)
            case = f"MFI {thickness / 10:.0f} nm, iDPC, {dose:g} e/Å²"
            if not least:
                yield rows.at_most(f"twin: {case}", "corr to 1 Å", found.correlation, 0.85)
                continue
            yield rows.at_least(case, "corr to 1 Å", found.correlation, least if dose > 1e3 else least - 0.02)
            yield rows.within(case, "slope", found.slope, 1.0, 0.1)


def idpc_against(simulated: Simulated, cutoff_invA: float) -> Agreement:
    """The iDPC image with the truth as a focused probe transfers it."""
    s, true = simulated.simulation, simulated.truth_phase
    q = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, simulated.truth_pixel_A) for n in true.shape), indexing="ij"))
    seen = np.fft.ifft2(np.fft.fft2(true) * lens(q * wavelength_A(s.voltage_kV) / (s.semiangle_mrad * 1e-3))).real
    field = tuple((n - 1) * s.step_A for n in s.scan_shape)
    centre = (field[0] / 2, field[1] / 2)
    return compare_with_truth(idpc(simulated.dataset()), s.step_A, seen, simulated.truth_pixel_A, centre, (field[0], field[1]), cutoff_invA, 1.0)


def t16() -> Iterator[Row]:
    """SSB and WDD with C10 = +500, C12 = 30, C21 = 300 Å, C30 = 20 µm against the same without."""
    rows = Rows("T16")
    plain, aberrated = (Exposures.of(s, carbon(s)).at(NOISE_FREE) for s in (FINE, ABERRATED))
    for method in (ssb, wdd):
        sharp, _ = timed(method, plain, 0.0)
        corrected, seconds = timed(method, aberrated, 0.0)
        ratios = gains(corrected, aberrated) / gains(sharp, plain)
        for (inner, outer), ratio in zip(RINGS, ratios, strict=True):
            metric = f"transfer / that without aberrations, {inner:g} to {outer:g} radii"
            yield rows.within(method.__name__.upper(), metric, ratio, 1.0, 0.05, seconds)
    believed, _ = timed(ssb, aberrated, 0.0, aberrations={}, defocus_A=0.0)
    yield rows.at_most("twin: SSB, aberrations not told", "transfer, 0.5 to 1 radii", gains(believed, aberrated)[1], 0.5)
    for (inner, outer), share in zip(RINGS[1:], efficiency(replace(ABERRATED, pixel_invA=1 / 58.8), 2)[1:], strict=True):
        yield rows.within("SSB, vacuum, 400 e a pattern", f"DQE / law, {inner:g} to {outer:g} radii", share, 1.0, 0.15)
    yield from tilt_corrected(rows)


def tilt_corrected(rows: Rows) -> Iterator[Row]:
    """Parallax: defocus, astigmatism, and detail finer than the scan's own limit."""
    exposures = Exposures.of(TILTED, carbon(TILTED, 300))
    for dose, most_A in ((1e4, 10.0), (200.0, 50.0)):
        simulated = exposures.at(dose)
        began = time.perf_counter()
        found = parallax(simulated.dataset(defocus_A=0.0, aberrations={}), upsample=4)
        case, seconds = f"parallax, {dose:g} e/Å²", time.perf_counter() - began
        # Which of the twins (the scan turned by half a turn, the defocus reversed) it is, positive peaks decide; 200 e/Å² show none.
        signed = found.defocus_A if dose > 1e3 else -abs(found.defocus_A)
        yield rows.at_most(case, "defocus, error / Å", abs(signed - TILTED.defocus_A), most_A, seconds)
        if dose > 1e3:
            off = np.hypot(found.optics.C12a_A - 30 * np.cos(np.deg2rad(50)), found.optics.C12b_A - 30 * np.sin(np.deg2rad(50)))
            yield rows.at_most(case, "astigmatism, error / Å", float(off), 5.0)
            # Low frequencies have next to no transfer: single rings, beyond the 2.8 Å that end the scan's own band.
            for ring_A in (2.4, 2.0):
                yield rows.at_least(case, f"FRC of the ring at {ring_A:g} Å", parallax_against(simulated, found).ring_at(ring_A), 0.5)


def parallax_against(simulated: Simulated, found: Parallax) -> Agreement:
    """The phase of the tilt-corrected bright field with the truth."""
    s = simulated.simulation
    field = tuple((n - 1) * s.step_A for n in s.scan_shape)
    # The first fine pixel lies on the first scan point.
    centre = (field[0] / 2, field[1] / 2)
    return compare_with_truth(found.phase, found.pixel_A[0], simulated.truth_phase, simulated.truth_pixel_A, centre, (field[0], field[1]), None, 4.0)
