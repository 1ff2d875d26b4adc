"""The verdict of a calibration: which guess is chosen, how sure each answer is and why not, and the table of the candidates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ptycho.aberrations import name_aberrations
from ptycho.answers import Answer, Calibration, Candidate
from ptycho.curl import Curl
from ptycho.data import Dataset4D
from ptycho.frames import Quantity
from ptycho.pose import Matrix, Pose, angle_between_deg, written
from ptycho.shifts import Shifts
from ptycho.start import ModelOptions
from ptycho.survey import Disk
from ptycho.trial import Trial
from ptycho.weak_phase import Optics, WeakPhase

_LIKELIHOOD = "weak-phase likelihood of the bright field"
#: Standard errors by which a better candidate has to be better to be believed.
BELIEVED = 4.0
#: Lead of a handedness in the contrast of the shifts, and ratio of the explained signal, that are believed.
_CONTRAST, _RATIO = 4.0, 1.5
#: A centre of mass with less curl than this is a witness.
_CURL = 0.3
#: Witnesses agree within this.
_AGREE_DEG = 10.0
#: A phase less skewed than this has no clear sign.
_SKEW = 0.4
#: Less astigmatism than this at the edge of the disk is not told.
_LEAST_ASTIGMATISM_RAD = 0.5
#: A disk with a smaller ratio of its axes counts as round.
_ROUND = 1.02


@dataclass(frozen=True)
class Guess:
    """Optics with what is known of them."""

    optics: Optics
    explained: float
    skewness: float
    trial: Trial | None = None


@dataclass(frozen=True)
class Witnesses:
    """What else looked at the data, the better handedness first."""

    shifts: tuple[Shifts, Shifts]
    curls: tuple[Curl, Curl]


def entrance_A(options: ModelOptions) -> float:
    """Half of the specimen's thickness: linear theory sees the defocus of its middle."""
    return sum(options.thicknesses_A) / 2 if options.slices > 1 else 0.0


def is_twin(a: Guess, b: Guess) -> bool:
    """Whether the one is the other with the scan turned by 180 degrees and the defocus reversed."""
    return angle_between_deg(a.optics.orientation, -b.optics.orientation) < 1 and a.optics.C10_A * b.optics.C10_A <= 0


def report(
    data: Dataset4D, plain: Dataset4D, disk: Disk, guesses: list[Guess], witnesses: Witnesses, weak: WeakPhase, options: ModelOptions
) -> Calibration:
    """The calibration that the guesses, the chosen one first, make; ``plain`` are the data without what is asked of them."""
    like, chosen, entrance = _pose_of(data), guesses[0].optics, entrance_A(options)
    pose = written(like.flips.T @ chosen.orientation, like)
    mirror, sign, focus = _handedness(guesses, witnesses), _sign(guesses, weak), _focus(guesses, witnesses, weak)
    how, turned = _how(guesses, witnesses), _joined(mirror, sign)
    astigmatism = {k: v for k, v in name_aberrations(_in_frame(chosen, pose.flips @ like.flips.T).aberrations).items() if k != "C10"}
    aberrations = astigmatism if astigmatism["C12"] > _LEAST_ASTIGMATISM_RAD * weak.radian_A else {}
    defocus = -chosen.C10_A + entrance
    where = f"half of the thickness ({entrance:.0f} Å) added" if entrance else "at the middle of the specimen"
    pixel, semiangle = plain.pixel_invA, plain.calibration["semiangle_mrad"]
    gain = data.calibration.get("adu_per_electron", Quantity(data.preparation.adu_per_electron, "ADU", "default: 1"))
    answers = [
        *(Answer(name, getattr(pose, name), "", how, turned) for name in ("transpose", "flip_rows", "flip_columns")),
        Answer("centre_px", disk.centre, "px", f"bright-field disk of the mean pattern, axes' ratio {disk.ellipticity:.3f}"),
        Answer("adu_per_electron", gain.value, "ADU", gain.source),
        Answer("semiangle_mrad", semiangle.value, "mrad", semiangle.source),
        Answer("defocus_A", round(defocus, 1), "Å", f"{_LIKELIHOOD}, {where}", _joined(sign, focus)),
        *([Answer("aberrations", aberrations, "Å, °", _LIKELIHOOD, focus)] if aberrations else []),
        Answer("rotation_deg", round(pose.rotation_deg, 2), "°", how, turned),
        Answer("pixel_invA", pixel.value / data.preparation.bin, "1/Å", pixel.source),
    ]
    electrons, area_A2 = plain.survey().mean_electrons, float(np.prod(weak.bright.step_A))
    return Calibration(
        tuple(answers), _candidates(guesses, like, entrance), disk, pixel.value / data.preparation.bin, semiangle.value, pose, defocus, aberrations,
        electrons, electrons / area_A2, _notes(disk, witnesses, chosen),
    )  # fmt: skip


def _pose_of(data: Dataset4D) -> Pose:
    """The flips with which the data are read, and the rotation that they were told."""
    reading = data.preparation
    return Pose(reading.transpose, reading.flip_rows, reading.flip_columns, data.rotation_deg)


def _candidates(guesses: list[Guess], like: Pose, entrance: float) -> tuple[Candidate, ...]:
    first = guesses[0].trial
    return tuple(
        Candidate(
            pose=written(like.flips.T @ guess.optics.orientation, like),
            defocus_A=-guess.optics.C10_A + entrance,
            explained=guess.explained,
            skewness=guess.skewness,
            deviance=guess.trial.deviance if guess.trial else None,
            z=first.z_against(guess.trial) if number and first and guess.trial else None,
        )
        for number, guess in enumerate(guesses)
    )


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _in_frame(optics: Optics, change: Matrix) -> Optics:
    """The same optics in a turned or mirrored frame of the detector: A -> P A, C -> P C P^T."""
    c = change @ optics.curvature_A @ change.T
    return Optics.of(change @ optics.orientation, float(np.trace(c)) / 2, float(c[1, 1] - c[0, 0]) / 2, float(c[0, 1]))


def _handedness(guesses: list[Guess], witnesses: Witnesses) -> str:
    first = guesses[0]
    other = next(g for g in guesses if g.optics.mirrored != first.optics.mirrored)
    z = first.trial.z_against(other.trial) if first.trial and other.trial else 0.0
    agrees = first.explained > _RATIO * max(other.explained, 0.0)
    best, second = witnesses.shifts
    displaced = best.mirrored == first.optics.mirrored and best.contrast - second.contrast > _CONTRAST
    if agrees and (z > BELIEVED or displaced):
        return ""
    return (
        f"the handedness (transposition): the two explain {first.explained:.3f} and {other.explained:.3f} of the signal, "
        f"and the better one is better by {z:.1f} standard errors in short reconstructions"
    )


def _sign(guesses: list[Guess], weak: WeakPhase) -> str:
    first = guesses[0]
    twin = next((g for g in guesses[1:] if is_twin(first, g)), None)
    z = first.trial.z_against(twin.trial) if twin and first.trial and twin.trial else 0.0
    positive = (z > BELIEVED and first.skewness > -_SKEW) or (z > -BELIEVED and first.skewness > _SKEW)
    if positive and first.explained > weak.chance:
        return ""
    return (
        "half a turn of the scan with the sign of the defocus: both are the same but for the sign of the phase, whose positive peaks decide "
        f"with a skewness of {first.skewness:+.2f} and {z:.1f} standard errors in short reconstructions"
    )


def _focus(guesses: list[Guess], witnesses: Witnesses, weak: WeakPhase) -> str:
    first = guesses[0]
    if first.explained < weak.chance:
        return f"the defocus: no object explains more than {first.explained:.3f} of the bright-field signal, chance explains {weak.chance:.3f}"
    reversed_ = next((g for g in guesses[1:] if g.optics.mirrored == first.optics.mirrored and not is_twin(first, g) and _same_turn(first, g)), None)
    if reversed_ is not None and first.trial and reversed_.trial:
        z = first.trial.z_against(reversed_.trial)
        if z < BELIEVED and first.explained < _RATIO * reversed_.explained:
            shares = f"{first.explained:.3f} and {reversed_.explained:.3f} of the signal"
            return f"the sign of the defocus: both explain as much, {shares}, and differ by {z:.1f} standard errors in short reconstructions"
    shifts = witnesses.shifts[0]
    displaced = shifts.underfocus_A2 / weak.bright.wavelength_A
    if shifts.contrast > 2 * _CONTRAST and abs(displaced - abs(first.optics.C10_A)) > max(0.15 * displaced, 3 * weak.radian_A):
        return f"the defocus: the displacements of the images say {displaced:.0f} Å"
    return ""


def _same_turn(a: Guess, b: Guess) -> bool:
    return angle_between_deg(a.optics.orientation, b.optics.orientation) < 1


def _how(guesses: list[Guess], witnesses: Witnesses) -> str:
    """Who says so."""
    chosen = guesses[0].optics.orientation
    says = [_LIKELIHOOD]
    for witness, name, worth in (
        (witnesses.shifts[0], "displacements of its images", witnesses.shifts[0].contrast - witnesses.shifts[1].contrast > _CONTRAST),
        (witnesses.curls[0], "curl of the centre of mass", witnesses.curls[0].share < _CURL),
    ):
        away = min(angle_between_deg(chosen, sign * witness.orientation) for sign in (1, -1))
        if worth and away < _AGREE_DEG:
            says.append(f"{name} ({away:.1f}° off)")
    return ", ".join(says)


def _notes(disk: Disk, witnesses: Witnesses, chosen: Optics) -> tuple[str, ...]:
    notes = []
    if disk.ellipticity > _ROUND:
        notes.append(f"the bright-field disk is elliptic: axes' ratio {disk.ellipticity:.3f}, the long one at {disk.angle_deg:.0f}°")
    curl = witnesses.curls[0]
    away = min(angle_between_deg(chosen.orientation, sign * curl.orientation) for sign in (1, -1))
    if curl.share < _CURL and away > _AGREE_DEG:
        said = f"{away:.0f}° away" if math.isfinite(away) else "with the other handedness"
        notes.append(f"the curl of the centre of mass is least {said}")
    return tuple(notes)
