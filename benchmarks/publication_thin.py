"""Thin specimens: T01 and T07 (Jiang et al., Nature 559 (2018) 343), T02 (Chen et al., Nat. Commun. 11 (2020) 2994), T08, T17."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from publication_rows import NOISE_FREE, Exposures, Image, Row, Rows, column_sums, on_specimen, reconstruct, relative_rms

from ptycho.geometry import wavelength_A
from ptycho.result import Result
from ptycho.simulation import Simulated, Simulation, forward_model
from ptycho.solvers import Gradient, Updates
from ptycho.specimen import mfi, monolayer, twisted_bilayer

#: In focus, 128 pixels out to four times the aperture.
MONOLAYER = Simulation(
    specimen="MoS2", scan_shape=(32, 32), step_A=0.5, semiangle_mrad=21.4, defocus_A=0.0, pattern_px=128, pixel_invA=1 / 29.1,
    vacancy_fraction=0.0, read_noise_electrons=0.0,
)  # fmt: skip
GRID_A = 2 * 29.1 / 128
POISSON = Gradient(epochs=30, batch=32, loss="poisson")
KNOWN = replace(POISSON, update=Updates(probe=0))


def sulphur_columns(sheet: Image) -> Image:
    """(y, x) of the sulphur columns, nearest to the centre first."""
    places = np.unique(np.round(sheet[sheet[:, 0] == 16, 2:], 6), axis=0)
    return np.asarray(places[np.argsort(np.hypot(*places.T))])


def with_vacancy() -> Image:
    """A MoS2 sheet without the upper sulphur atom of the column nearest to the centre of the scan."""
    sheet = monolayer("MoS2", 60.0)
    at_column = (sheet[:, 0] == 16) & (np.abs(sheet[:, 2:] - sulphur_columns(sheet)[0]) < 1e-3).all(1)
    return np.delete(sheet, np.flatnonzero(at_column)[0], axis=0)


def deficit(image: Image, pixel_A: float, points_px: Image) -> float:
    """Share of its phase that the first of the columns lacks, against the mean of the others."""
    sums = column_sums(image[None], pixel_A, points_px, 0.5)[0]
    return float(1 - sums[0] / sums[1:].mean())


def beyond_aperture(simulation: Simulation, share: float = 1.0) -> Image:
    """True at pixels of the pattern farther out than ``share`` of the aperture."""
    n = simulation.pattern_px
    k = np.hypot(*(np.indices((n, n)) - n // 2)) * simulation.pixel_invA
    return np.asarray(k > share * simulation.semiangle_mrad * 1e-3 / wavelength_A(simulation.voltage_kV))


def t01() -> Iterator[Row]:
    """MoS2 with a vacancy, in focus, single slice; and a twisted bilayer."""
    rows, sheet = Rows("T01"), monolayer("MoS2", 60.0)
    exposures = Exposures.of(MONOLAYER, with_vacancy())
    perfect, counted = exposures.at(NOISE_FREE), exposures.at(1e5)

    result, seconds = reconstruct(perfect, replace(KNOWN, epochs=40, loss="amplitude"))
    found = perfect.compare(result)
    yield rows.at_least("no noise, known probe", "corr", found.correlation, 0.999, seconds)
    yield rows.at_most("no noise, known probe", "rms / rad", found.rms_rad, 0.015)
    yield rows.at_most("no noise, known probe", "relative rms", relative_rms(found), 0.05)
    yield rows.at_most("no noise, known probe", "FRC 0.5 / Å", found.resolution_A, 1.01 * GRID_A)

    result, seconds = reconstruct(counted, POISSON, {"defocus_A": 20.0})
    found = counted.compare(result)
    yield rows.at_least("1e5 e/Å², C10 20 Å wrong", "corr", found.correlation, 0.99, seconds)
    yield rows.within("1e5 e/Å², C10 20 Å wrong", "slope", found.slope, 1.0, 0.03)
    yield rows.at_most("1e5 e/Å², C10 20 Å wrong", "FRC 0.5 / Å", found.resolution_A, 0.55)
    columns = sulphur_columns(sheet)
    columns = columns[np.hypot(*columns.T) < 6]
    lacking = deficit(result.phase.sum(0), result.pixel_A, on_specimen(result, found, columns))
    true_px = columns / counted.truth_pixel_A + np.array(counted.truth_phase.shape) // 2
    true = deficit(counted.truth_phase, counted.truth_pixel_A, true_px)
    yield rows.within("1e5 e/Å², one S of two missing", "deficit less the true one", lacking - true, 0.0, 0.1)

    finest = found.resolution_A
    result, seconds = reconstruct(counted, KNOWN, {"mask": ~beyond_aperture(MONOLAYER)})
    # Not as bad as lambda / 2 alpha = 0.98 Å: what atoms scatter twice, and positivity, carry finer detail into the bright field.
    yield rows.at_least("twin: bright field alone", "FRC 0.5 / that of the whole", counted.compare(result).resolution_A / finest, 1.5, seconds)

    pair = Exposures.of(replace(MONOLAYER, scan_shape=(24, 24)), twisted_bilayer("MoS2", 60.0, 7.0)).at(NOISE_FREE)
    result, seconds = reconstruct(pair, replace(KNOWN, loss="amplitude"), slices=2, slice_thickness_A=6.2)
    double = pair.compare(result)
    yield rows.at_least("7° bilayer, two slices", "corr", double.correlation, 0.995, seconds)
    result, seconds = reconstruct(pair, replace(KNOWN, loss="amplitude"))
    yield rows.at_most("twin: 7° bilayer, one slice", "corr less that of two", pair.compare(result).correlation - double.correlation, 0.0, seconds)


def t02() -> Iterator[Row]:
    """WS2 with a source of 0.4 Å: modes against one coherent wave, by dose."""
    rows = Rows("T02")
    simulation = Simulation(
        scan_shape=(24, 24), step_A=0.85, semiangle_mrad=21.4, defocus_A=-500.0, pattern_px=128, pixel_invA=1 / 42.7, source_A=0.4,
        read_noise_electrons=0.0,
    )  # fmt: skip
    exposures = Exposures.of(simulation)
    for dose in (1e5, 1500.0, 790.0, 375.0):
        simulated = exposures.at(dose)
        stage = replace(POISSON, epochs=12 if dose < 1e4 else 30)

        def corr(simulated: Simulated = simulated, stage: Gradient = stage, **model: float) -> tuple[float, float, Result]:
            result, seconds = reconstruct(simulated, stage, **model)
            return simulated.compare(result, 1 / 1.2).correlation, seconds, result

        one, seconds, _ = corr()
        yield rows.at_least(f"twin: {dose:g} e/Å², 1 mode", "corr to 1.2 Å (for comparison)", one, 0.0, seconds)
        for name, model in (("4 modes", {"probe_modes": 4}), ("6 modes", {"probe_modes": 6}), ("source_A = 0.4", {"source_A": 0.4})):
            several, seconds, result = corr(**model)
            yield rows.at_least(f"{dose:g} e/Å², {name}", "corr to 1.2 Å less that of 1 mode", several - one, 0.0, seconds)
            if dose == 1e5 and name == "4 modes":
                power = np.square(np.abs(result.probe)).sum((1, 2))
                true = forward_model(simulation)[0].probe.power().numpy()
                yield rows.within("1e5 e/Å², 4 modes", "share of the first mode", power[0] / power.sum(), float(true[0] / true.sum()), 0.05)


def t07() -> Iterator[Row]:
    """Dose series on the object of T01: shot-noise law sigma(d) = sqrt(pi / (4 D DQE)) / d with DQE = 0.2."""
    rows, d = Rows("T07"), 1.0
    exposures = Exposures.of(MONOLAYER, with_vacancy())
    doses = (250.0, 400.0, 500.0, 1000.0, 2000.0, 1e4, 1e5)
    rms, before = [], 0.0
    for dose in doses:
        simulated = exposures.at(dose)
        result, seconds = reconstruct(simulated, replace(KNOWN, epochs=20))
        found = simulated.compare(result, 1 / d)
        rms.append(found.rms_rad)
        law = np.sqrt(np.pi / (4 * dose * 0.2)) / d
        yield rows.at_most(f"{dose:g} e/Å²", "rms to 1 Å / shot-noise law", found.rms_rad / law, 1.5 if dose >= 1e4 else 2.0, seconds)
        yield rows.at_least(f"{dose:g} e/Å²", "corr to 1 Å (not below that of less dose)", found.correlation, before)
        before = found.correlation
        if dose == 400.0:
            # Between the reflections of a crystal there is nothing to agree on: {11-20} of MoS2 is at 1.58 Å.
            yield rows.at_least("400 e/Å²", "FRC of the ring at 1.58 Å", simulated.compare(result).ring_at(1.58), 0.5)
    slope = np.polyfit(np.log(doses[-3:]), np.log(rms[-3:]), 1)[0]
    yield rows.within("2e3 to 1e5 e/Å²", "d log rms / d log dose", slope, -0.5, 0.05)
    wrong = exposures.at(1e5)
    result, seconds = reconstruct(wrong, replace(KNOWN, epochs=20), {"defocus_A": 40.0})
    law = np.sqrt(np.pi / (4 * 1e5 * 0.2)) / d
    yield rows.at_least("twin: 1e5 e/Å², C10 40 Å wrong and kept", "rms / shot-noise law", wrong.compare(result, 1 / d).rms_rad / law, 1.5, seconds)


def t08() -> Iterator[Row]:
    """MFI 4 nm in focus at 200 e/Å², counts and single bits; the part of T08 without direct methods."""
    rows = Rows("T08")
    simulation = Simulation(
        specimen="MFI", scan_shape=(40, 40), step_A=0.35, voltage_kV=300.0, semiangle_mrad=14.0, defocus_A=0.0, pattern_px=64, pixel_invA=1 / 26.6,
        thickness_A=39.8, slice_thickness_A=4.0, rms_displacement_A=0.14, read_noise_electrons=0.0,
    )  # fmt: skip
    exposures = Exposures.of(simulation, mfi(80.0, 39.8))
    found = {}
    for dose, bits in ((200.0, False), (200.0, True), (5e4, False), (5e4, True)):
        simulated = exposures.at(dose)
        if bits:
            simulated = replace(simulated, patterns=np.minimum(simulated.patterns, 1))
        result, seconds = reconstruct(simulated, replace(KNOWN, epochs=15))
        found[dose, bits] = simulated.compare(result, 0.5), seconds, result
    lattice, seconds, _ = found[200.0, False]
    yield rows.at_least("200 e/Å², counts", "corr to 2 Å", lattice.correlation, 0.8, seconds)
    a, b = (found[200.0, bits][2].phase.sum(0)[found[200.0, bits][2].scanned] for bits in (False, True))
    yield rows.at_least("200 e/Å², single bits against counts", "corr", float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), 0.98, found[200.0, True][1])
    counts, bits = found[5e4, False], found[5e4, True]
    yield rows.within("5e4 e/Å², counts", "slope to 2 Å", counts[0].slope, 1.0, 0.05, counts[1])
    biased = abs(bits[0].slope / counts[0].slope - 1)
    yield rows.at_least("twin: 5e4 e/Å², bits taken for counts", "slope / that of counts, off 1 by", biased, 0.05, bits[1])


def t17() -> Iterator[Row]:
    """Masks: a hollow detector, a dead cross, hot pixels; zeros instead of a mask must be worse."""
    rows = Rows("T17")
    simulated = Exposures.of(MONOLAYER, with_vacancy()).at(1e5)
    n = MONOLAYER.pattern_px
    cross = np.ones((n, n), bool)
    cross[n // 2 + 5 : n // 2 + 8] = cross[:, n // 2 - 9 : n // 2 - 6] = False
    hot = np.random.default_rng(0).random((n, n)) < 0.01
    whole, seconds = reconstruct(simulated, POISSON)
    whole_corr = simulated.compare(whole).correlation
    yield rows.at_least("whole detector", "corr", whole_corr, 0.99, seconds)
    hollow = beyond_aperture(MONOLAYER, 0.5)
    cases = (("hollow, central 0.5 alpha", hollow, 0.0, 0.03), ("dead cross, 3 px", cross, 0.0, 0.01), ("1 % hot pixels", ~hot, 3e3, 0.01))
    for name, good, instead, most in cases:
        damaged = replace(simulated, patterns=np.where(good, simulated.patterns, np.float32(instead)))
        result, seconds = reconstruct(damaged, POISSON, {"mask": good})
        drop = whole_corr - damaged.compare(result).correlation
        yield rows.at_most(name, "drop of corr", drop, most, seconds)
        if instead == 0:
            result, seconds = reconstruct(damaged, POISSON)
            twin = whole_corr - damaged.compare(result).correlation
            yield rows.at_least(f"twin: {name}, zeros as data", "drop of corr less that of the mask", twin - drop, 0.003, seconds)
