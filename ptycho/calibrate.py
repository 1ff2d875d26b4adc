"""Calibration of a data set by itself: centre, pixel, flips, rotation, defocus and astigmatism, with what it cannot tell.

Three witnesses look at different sides of the data: the displacements of the bright-field images (:mod:`ptycho.shifts`), the curl of the
centre of mass (:mod:`ptycho.curl`), and the likelihood of a weak phase object (:mod:`ptycho.weak_phase`), which has the sharpest maximum and makes
the estimate. The best guesses of either handedness and of either sign are then judged by short reconstructions (:mod:`ptycho.trial`).

What no diffraction data of a thin object can tell: the scan turned by 180 degrees, with all aberrations reversed, gives the same patterns for the
object turned and its phase negated (take the complex conjugate of the exit wave: I(k) of psi is I(-k) of psi*). Only that atoms
have positive phases decides: sparse, positive peaks have a positive skewness. An object as often above its mean as below leaves this open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import skew

from ptycho.aberrations import name_aberrations
from ptycho.bright_field import BrightField, bright_field
from ptycho.calibration import Answer, Calibration, Candidate
from ptycho.curl import Curl, fit_curl
from ptycho.data import Dataset4D
from ptycho.errors import DataError
from ptycho.frames import Quantity
from ptycho.geometry import wavelength_A
from ptycho.orientation import Orientation, angle_between_deg, turn, written
from ptycho.shifts import Shifts, fit_shifts
from ptycho.start import ModelOptions
from ptycho.survey import Disk, measure_disk
from ptycho.trial import Trial, Trials
from ptycho.weak_phase import Optics, WeakPhase, scan_optics

#: What calibrate asks the data for, and forgets of what it was told.
_ASKED = ("rotation_deg", "affine", "defocus_A", "aberrations")
#: Standard errors by which a better candidate has to be better to be believed.
_BELIEVED = 4.0
#: Lead of a handedness in the contrast of the shifts, and ratio of the explained signal, that are believed.
_CONTRAST, _RATIO = 4.0, 1.5
#: A centre of mass with less curl than this is a witness.
_CURL = 0.3
#: Witnesses agree within this.
_AGREE_DEG = 10.0
#: A phase less skewed than this has no clear sign.
_SKEW = 0.35
#: Less astigmatism than this at the edge of the disk is not told.
_LEAST_ASTIGMATISM_RAD = 0.5
#: A disk with a smaller ratio of its axes counts as round.
_ROUND = 1.02


@dataclass(frozen=True)
class _Guess:
    """Optics with what is known of them."""

    optics: Optics
    explained: float
    skewness: float
    trial: Trial | None = None


@dataclass(frozen=True)
class _Witnesses:
    shifts: tuple[Shifts, Shifts]
    curls: tuple[Curl, Curl]


def calibrate(data: Dataset4D, options: ModelOptions | None = None, workers: int = 1) -> Calibration:
    """Find what the data say of their own geometry; voltage, semiangle (or the detector pixel) and step have to be known.

    ``options`` are the recipe's [model]: with slices, short reconstructions have them too and the defocus refers to the entrance surface.
    What ``data`` were told of rotation, affine map, defocus and aberrations is not used. Raises DataError when something needed is
    missing, there is no raster or no bright-field disk.
    """
    options = options or ModelOptions()
    plain = _forgetful(data)
    disk = measure_disk(np.where(plain.mask, plain.survey().mean_pattern, np.nan))
    if disk is None:
        raise DataError(f"{data.name}: no bright-field disk in the mean pattern; check the crop and the mask")
    bright = bright_field(plain)
    witnesses = _Witnesses(fit_shifts(bright, 1 / plain.pixel_invA.value), fit_curl(bright))
    weak = WeakPhase(bright)
    best, other = _best_of_each_handedness(bright, weak, witnesses)
    guesses = _tried(plain, options, _with_signs(weak, bright, best, other), workers)
    return _report(data, plain, disk, guesses, witnesses, weak, options)


def _forgetful(data: Dataset4D) -> Dataset4D:
    """The data without what is asked of them, and with a semiangle from the disk when only the pixel is known."""
    known = {name: value for name, value in data.calibration.items() if name not in _ASKED}
    plain = replace(data, calibration=known, warnings=[])
    if "semiangle_mrad" not in known and "voltage_kV" in known and ("pixel_invA" in known or "pixel_mrad" in known):
        semiangle = plain.disk_radius_px * plain.pixel_invA.value * wavelength_A(known["voltage_kV"].value) * 1e3
        source = f"estimate: bright-field disk of {plain.disk_radius_px:.2f} px radius"
        plain = replace(plain, calibration=known | {"semiangle_mrad": Quantity(semiangle, "mrad", source, trusted=False)})
    return plain


def _best_of_each_handedness(bright: BrightField, weak: WeakPhase, witnesses: _Witnesses) -> tuple[Optics, Optics]:
    """The optics that explain most, and the best ones of the other handedness."""
    starts = [Optics.of(s.orientation, -s.underfocus_A2 / bright.wavelength_A) for s in witnesses.shifts]
    starts += [Optics.of(curl.orientation, 0.0) for curl in witnesses.curls]
    starts += scan_optics(bright)
    fits = [weak.fit(start, astigmatic=False) for start in starts]
    found = []
    for mirrored in (False, True):
        _, optics = max((fit for fit in fits if fit[1].mirrored == mirrored), key=lambda fit: fit[0])
        found.append(weak.fit(optics))
    found.sort(key=lambda fit: -fit[0])
    return found[0][1], found[1][1]


def _with_signs(weak: WeakPhase, bright: BrightField, best: Optics, other: Optics) -> list[_Guess]:
    """The guesses to try: each handedness with either sign, and the best one with the aberrations alone reversed."""
    guesses = []
    for optics in (best, other):
        explained, skewness = weak.explained(optics), _skewness(weak, optics)
        guesses += [_Guess(optics, explained, skewness), _Guess(optics.twin, explained, -skewness)]
        guesses[-2:] = sorted(guesses[-2:], key=lambda guess: -guess.skewness)
    leader = guesses[0].optics
    reversed_ = replace(leader, C10_A=-leader.C10_A, C12a_A=-leader.C12a_A, C12b_A=-leader.C12b_A)
    if abs(leader.C10_A) > 0.5 * weak.radian_A:
        guesses.append(_Guess(reversed_, weak.explained(reversed_), _skewness(weak, reversed_)))
    return guesses


def _skewness(weak: WeakPhase, optics: Optics) -> float:
    """Of the phase in the middle of the field: positive for sparse positive peaks."""
    image = weak.phase(optics)
    y, x = (n // 4 for n in image.shape)
    return float(skew(image[y : image.shape[0] - y, x : image.shape[1] - x], axis=None))


def _tried(data: Dataset4D, options: ModelOptions, guesses: list[_Guess], workers: int) -> list[_Guess]:
    """The guesses with short reconstructions, the best first: the handedness by likelihood, the sign by what is significant."""
    widest = max((guess.optics for guess in guesses), key=lambda optics: abs(optics.C10_A))
    entrance = _entrance_A(options)
    trials = Trials(data, options, replace(widest, C10_A=-abs(widest.C10_A) - entrance).aberrations, workers)
    tried = []
    for guess in guesses:
        optics = replace(guess.optics, C10_A=guess.optics.C10_A - entrance)
        tried.append(replace(guess, trial=trials.run(optics.orientation, optics.aberrations)))
    tried.sort(key=lambda guess: guess.trial.deviance if guess.trial else math.inf)
    first = tried[0]
    twin = next((g for g in tried[1:] if _is_twin(first, g)), None)
    if twin is not None and twin.skewness > 0 and first.trial and twin.trial and first.trial.z_against(twin.trial) < _BELIEVED:
        tried.remove(twin)
        tried.insert(0, twin)
    return tried


def _entrance_A(options: ModelOptions) -> float:
    """Half of the specimen's thickness: linear theory sees the defocus of its middle."""
    return sum(options.thicknesses_A) / 2 if options.slices > 1 else 0.0


def _is_twin(a: _Guess, b: _Guess) -> bool:
    return angle_between_deg(a.optics.orientation, -b.optics.orientation) < 1 and a.optics.C10_A * b.optics.C10_A <= 0


def _report(
    data: Dataset4D, plain: Dataset4D, disk: Disk, guesses: list[_Guess], witnesses: _Witnesses, weak: WeakPhase, options: ModelOptions
) -> Calibration:
    reading = data.preparation
    given = float(data.calibration["rotation_deg"].value) if "rotation_deg" in data.calibration else 0.0
    like = Orientation(reading.transpose, reading.flip_rows, reading.flip_columns, given)
    chosen, entrance = guesses[0].optics, _entrance_A(options)
    orientation = written(like.flips.T @ chosen.orientation, like)
    seen = _in_frame(chosen, orientation.flips @ like.flips.T)
    defocus = -chosen.C10_A + entrance
    first = guesses[0].trial
    candidates = tuple(
        Candidate(
            written(like.flips.T @ g.optics.orientation, like), -g.optics.C10_A + entrance, g.explained, g.skewness,
            g.trial.deviance if g.trial else None, first.z_against(g.trial) if first and g.trial and g is not guesses[0] else None,
        )
        for g in guesses
    )  # fmt: skip
    mirror, sign, focus = _doubts(guesses, witnesses, weak)
    how = _how(guesses, witnesses)
    step = np.atleast_1d(np.asarray(data.calibration["step_A"].value, float))
    dose = plain.survey().mean_electrons / float(step[0] * step[-1])
    pixel = plain.pixel_invA
    semiangle = plain.calibration["semiangle_mrad"]
    gain = data.calibration.get("adu_per_electron", Quantity(reading.adu_per_electron, "ADU", "default: 1"))
    astigmatism = {k: v for k, v in name_aberrations(seen.aberrations).items() if k != "C10"}
    shown = astigmatism if astigmatism["C12"] > _LEAST_ASTIGMATISM_RAD * weak.radian_A else {}
    turned = "; ".join(part for part in (mirror, sign) if part)
    answers = [
        *(Answer(name, getattr(orientation, name), "", how, turned) for name in ("transpose", "flip_rows", "flip_columns")),
        Answer("centre_px", disk.centre, "px", f"bright-field disk of the mean pattern, axes' ratio {disk.ellipticity:.3f}"),
        Answer("adu_per_electron", gain.value, "ADU", gain.source),
        Answer("semiangle_mrad", semiangle.value, "mrad", semiangle.source),
        Answer("defocus_A", round(defocus, 1), "Å", _focus_source(entrance), "; ".join(part for part in (sign, focus) if part)),
        *([Answer("aberrations", shown, "Å, °", "weak-phase likelihood of the bright field", focus)] if shown else []),
        Answer("rotation_deg", round(orientation.rotation_deg, 2), "°", how, turned),
        Answer("pixel_invA", pixel.value / reading.bin, "1/Å", pixel.source),
    ]
    return Calibration(
        tuple(answers), candidates, disk, pixel.value / reading.bin, semiangle.value, orientation, defocus, shown,
        plain.survey().mean_electrons, dose, _notes(disk, witnesses, chosen),
    )  # fmt: skip


def _in_frame(optics: Optics, change: np.ndarray) -> Optics:
    """The same optics in a turned or mirrored frame of the detector: A -> P A, C -> P C P^T."""
    c = np.array([[optics.C10_A - optics.C12a_A, optics.C12b_A], [optics.C12b_A, optics.C10_A + optics.C12a_A]])
    c = change @ c @ change.T
    return Optics.of(change @ optics.orientation, float(np.trace(c)) / 2, float(c[1, 1] - c[0, 0]) / 2, float(c[0, 1]))


def _focus_source(entrance: float) -> str:
    return "weak-phase likelihood of the bright field, " + (f"half of the thickness ({entrance:.0f} Å) added" if entrance else "at the middle of the specimen")


def _doubts(guesses: list[_Guess], witnesses: _Witnesses, weak: WeakPhase) -> tuple[str, str, str]:
    """What is not sure of handedness, sign and defocus; "" for what is."""
    return _handedness(guesses, witnesses), _sign(guesses), _focus(guesses, witnesses, weak)


def _handedness(guesses: list[_Guess], witnesses: _Witnesses) -> str:
    first = guesses[0]
    other = next(g for g in guesses if g.optics.mirrored != first.optics.mirrored)
    z = first.trial.z_against(other.trial) if first.trial and other.trial else 0.0
    agrees = first.explained > _RATIO * max(other.explained, 0.0)
    best, second = witnesses.shifts
    displaced = best.mirrored == first.optics.mirrored and best.contrast - second.contrast > _CONTRAST
    if agrees and (z > _BELIEVED or displaced):
        return ""
    return (
        f"the handedness (transposition): the two explain {first.explained:.3f} and {other.explained:.3f} of the signal, "
        f"and the better one is better by {z:.1f} standard errors in short reconstructions"
    )


def _sign(guesses: list[_Guess]) -> str:
    first = guesses[0]
    twin = next((g for g in guesses[1:] if _is_twin(first, g)), None)
    z = first.trial.z_against(twin.trial) if twin and first.trial and twin.trial else 0.0
    if z > _BELIEVED and first.skewness > -_SKEW or z > -_BELIEVED and first.skewness > _SKEW:
        return ""
    return (
        "half a turn of the scan with the sign of the defocus: both are the same but for the sign of the phase; its positive peaks decide "
        f"with a skewness of {first.skewness:+.2f} and {z:.1f} standard errors in short reconstructions"
    )


def _focus(guesses: list[_Guess], witnesses: _Witnesses, weak: WeakPhase) -> str:
    first = guesses[0]
    if first.explained < weak.chance:
        return f"the defocus: no object explains more than {first.explained:.3f} of the bright-field signal, chance explains {weak.chance:.3f}"
    reversed_ = next((g for g in guesses[1:] if g.optics.mirrored == first.optics.mirrored and not _is_twin(first, g) and _same_turn(first, g)), None)
    if reversed_ is not None and first.trial and reversed_.trial:
        z = first.trial.z_against(reversed_.trial)
        if z < _BELIEVED and first.explained < _RATIO * reversed_.explained:
            return f"the sign of the defocus: the other one explains {reversed_.explained:.3f} of {first.explained:.3f}, {z:.1f} standard errors less well"
    shifts = witnesses.shifts[0]
    displaced = shifts.underfocus_A2 / weak.bright.wavelength_A
    if shifts.contrast > 2 * _CONTRAST and abs(displaced - abs(first.optics.C10_A)) > max(0.15 * displaced, 3 * weak.radian_A):
        return f"the defocus: the displacements of the images say {displaced:.0f} Å"
    return ""


def _same_turn(a: _Guess, b: _Guess) -> bool:
    return angle_between_deg(a.optics.orientation, b.optics.orientation) < 1


def _how(guesses: list[_Guess], witnesses: _Witnesses) -> str:
    """Who says so."""
    chosen = guesses[0].optics.orientation
    says = ["weak-phase likelihood of the bright field"]
    for witness, name, worth in (
        (witnesses.shifts[0], "displacements of its images", witnesses.shifts[0].contrast - witnesses.shifts[1].contrast > _CONTRAST),
        (witnesses.curls[0], "curl of the centre of mass", witnesses.curls[0].share < _CURL),
    ):
        away = min(angle_between_deg(chosen, sign * witness.orientation) for sign in (1, -1))
        if worth and away < _AGREE_DEG:
            says.append(f"{name} ({away:.1f}° off)")
    return ", ".join(says)


def _notes(disk: Disk, witnesses: _Witnesses, chosen: Optics) -> tuple[str, ...]:
    notes = []
    if disk.ellipticity > _ROUND:
        notes.append(f"the bright-field disk is elliptic: axes' ratio {disk.ellipticity:.3f}, the long one at {disk.angle_deg:.0f}°")
    curl = witnesses.curls[0]
    away = min(angle_between_deg(chosen.orientation, sign * curl.orientation) for sign in (1, -1))
    if curl.share < _CURL and away > _AGREE_DEG:
        said = f"{away:.0f}° away" if math.isfinite(away) else "with the other handedness"
        notes.append(f"the curl of the centre of mass is least {said}")
    return tuple(notes)
