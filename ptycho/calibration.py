"""Calibration of a data set by itself: centre, pixel, flips, rotation, defocus and astigmatism, with what it cannot tell.

Three witnesses look at different sides of the data: the displacements of the bright-field images (:mod:`ptycho.shifts`), the curl of the
centre of mass (:mod:`ptycho.curl`), and the likelihood of a weak phase object (:mod:`ptycho.weak_phase`), which has the sharpest maximum and makes
the estimate. The best guesses of either handedness and of either sign are then judged by short reconstructions (:mod:`ptycho.trial`).

What no diffraction data of a thin object can tell: the scan turned by 180 degrees, with all aberrations reversed, gives the same patterns for the
object turned and its phase negated (take the complex conjugate of the exit wave: I(k) of psi is I(-k) of psi*). Only that atoms
have positive phases decides: sparse, positive peaks have a positive skewness. An object as often above its mean as below leaves this open.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import numpy as np

from ptycho.answers import Calibration
from ptycho.bright_field import BrightField, bright_field
from ptycho.curl import fit_curl
from ptycho.data import Dataset4D
from ptycho.errors import RecipeError
from ptycho.frames import Quantity
from ptycho.geometry import wavelength_A
from ptycho.shifts import fit_shifts
from ptycho.start import ModelOptions
from ptycho.survey import measure_disk
from ptycho.trial import Trials
from ptycho.verdict import BELIEVED, Guess, Witnesses, entrance_A, is_twin, report
from ptycho.weak_phase import Optics, WeakPhase, coarse_likelihood, scan_optics

#: What calibrate asks the data for, and forgets of what it was told.
_ASKED = ("rotation_deg", "affine", "defocus_A", "aberrations")


def calibrate(data: Dataset4D, options: ModelOptions | None = None, workers: int = 1) -> Calibration:
    """Find what the data say of their own geometry; voltage, semiangle (or the detector pixel) and step have to be known.

    ``options`` are the recipe's [model]: with slices, short reconstructions have them too and the defocus refers to the entrance surface.
    What ``data`` were told of rotation, affine map, defocus and aberrations is not used. Raises DataError when something needed is
    missing, there is no raster or no bright-field disk.
    """
    options = options or ModelOptions()
    plain = _forgetful(data)
    bright = bright_field(plain)
    disk = measure_disk(np.where(plain.mask, plain.survey().mean_pattern, np.nan))
    assert disk is not None  # the images were made of it
    witnesses = Witnesses(fit_shifts(bright, 1 / plain.pixel_invA.value), fit_curl(bright))
    weak = WeakPhase(bright)
    best, other = _best_of_each_handedness(bright, weak, witnesses)
    guesses = _tried(plain, options, _with_signs(weak, bright, best, other), workers)
    return report(data, plain, disk, guesses, witnesses, weak, options)


def _forgetful(data: Dataset4D) -> Dataset4D:
    """The data without what is asked of them, and with a semiangle from the disk when only the pixel is known."""
    known = {name: value for name, value in data.calibration.items() if name not in _ASKED}
    plain = replace(data, calibration=known, warnings=[])
    if "semiangle_mrad" not in known and "voltage_kV" in known and ("pixel_invA" in known or "pixel_mrad" in known):
        semiangle = plain.disk_radius_px * plain.pixel_invA.value * wavelength_A(known["voltage_kV"].value) * 1e3
        source = f"estimate: bright-field disk of {plain.disk_radius_px:.2f} px radius"
        plain = replace(plain, calibration=known | {"semiangle_mrad": Quantity(semiangle, "mrad", source, trusted=False)})
    return plain


def _best_of_each_handedness(bright: BrightField, weak: WeakPhase, witnesses: Witnesses) -> tuple[Optics, Optics]:
    """The optics that explain most, and the best ones of the other handedness."""
    starts = [Optics.of(s.orientation, -s.underfocus_A2 / bright.wavelength_A) for s in witnesses.shifts]
    starts += [Optics.of(curl.orientation, 0.0) for curl in witnesses.curls]
    coarse = coarse_likelihood(bright)
    starts += scan_optics(coarse)
    fits = [coarse.fit(start, astigmatic=False) for start in starts]
    found = []
    for mirrored in (False, True):
        _, optics = max((fit for fit in fits if fit[1].mirrored == mirrored), key=lambda fit: fit[0])
        found.append(weak.fit(optics))
    found.sort(key=lambda fit: -fit[0])
    return found[0][1], found[1][1]


def _with_signs(weak: WeakPhase, bright: BrightField, best: Optics, other: Optics) -> list[Guess]:
    """The guesses to try: each handedness with either sign, and the best one with the aberrations alone reversed."""
    guesses = []
    for optics in (best, other):
        explained, skewness = weak.explained(optics), weak.skewness(optics)
        guesses += [Guess(optics, explained, skewness), Guess(optics.twin, explained, -skewness)]
        guesses[-2:] = sorted(guesses[-2:], key=lambda guess: -guess.skewness)
    leader = guesses[0].optics
    reversed_ = replace(leader, C10_A=-leader.C10_A, C12a_A=-leader.C12a_A, C12b_A=-leader.C12b_A)
    if abs(leader.C10_A) > 0.5 * weak.radian_A:
        guesses.append(Guess(reversed_, weak.explained(reversed_), weak.skewness(reversed_)))
    return guesses


def _tried(data: Dataset4D, options: ModelOptions, guesses: list[Guess], workers: int) -> list[Guess]:
    """The guesses with short reconstructions, the best first: the handedness by likelihood, the sign by what is significant."""
    widest = max((guess.optics for guess in guesses), key=lambda optics: abs(optics.C10_A))
    entrance = entrance_A(options)
    trials = Trials(data, options, replace(widest, C10_A=-abs(widest.C10_A) - entrance).aberrations, workers)
    tried = []
    for guess in guesses:
        optics = replace(guess.optics, C10_A=guess.optics.C10_A - entrance)
        # A probe that does not fit the window cannot be tried; its guess stays behind those that can.
        with contextlib.suppress(RecipeError):
            guess = replace(guess, trial=trials.run(optics.orientation, optics.aberrations))
        tried.append(guess)
    tried.sort(key=lambda guess: guess.trial.deviance if guess.trial else math.inf)
    first = tried[0]
    twin = next((g for g in tried[1:] if is_twin(first, g)), None)
    if twin is not None and twin.skewness > 0 and first.trial and twin.trial and first.trial.z_against(twin.trial) < BELIEVED:
        tried.remove(twin)
        tried.insert(0, twin)
    return tried
