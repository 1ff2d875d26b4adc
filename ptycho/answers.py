"""What a calibration says: answers with their sources, how sure they are, and the candidates that were compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ptycho.pose import Pose
from ptycho.survey import Disk


@dataclass(frozen=True)
class Answer:
    """One question's answer: the recipe's ``name``, its value and unit, how it was found, and why it is not sure ("" when it is)."""

    name: str
    value: Any
    unit: str
    source: str
    unsure: str = ""

    @property
    def sure(self) -> bool:
        """Whether the data can tell."""
        return not self.unsure


@dataclass(frozen=True)
class Candidate:
    """One guess of orientation and defocus and how well it does.

    ``explained`` is the share of the bright-field signal that it explains as a weak phase object; ``skewness`` that of the phase then, positive for
    atoms; ``deviance`` per pixel of held-out patterns after a short reconstruction, and ``z`` by how many standard errors the first
    candidate is better (None: not tried).
    """

    pose: Pose
    defocus_A: float
    explained: float
    skewness: float
    deviance: float | None = None
    z: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The answers, the ranked candidates (the chosen one first), and what they were taken from.

    ``answers`` are in the recipe's order; ``disk`` is that of the prepared pattern, in its pixels; ``aberrations`` are named as in a recipe, in
    the frame of ``pose``, without the defocus. ``notes`` are what else should be known.
    """

    answers: tuple[Answer, ...]
    candidates: tuple[Candidate, ...]
    disk: Disk
    pixel_invA: float
    semiangle_mrad: float
    pose: Pose
    defocus_A: float
    aberrations: dict[str, float]
    electrons_per_pattern: float
    dose_e_per_A2: float
    notes: tuple[str, ...] = field(default=())

    @property
    def sure(self) -> bool:
        """Whether every question is settled."""
        return all(answer.sure for answer in self.answers)

    @property
    def open_questions(self) -> tuple[str, ...]:
        """What the data cannot tell, and why."""
        return tuple(dict.fromkeys(part for answer in self.answers if answer.unsure for part in answer.unsure.split("; ")))

    @property
    def verdict(self) -> str:
        """ "sure", or "unsure: " and why."""
        return "sure" if self.sure else "unsure: " + "; ".join(self.open_questions)

    def __str__(self) -> str:
        rows = [(a.name, _text(a), a.source + ("" if a.sure else "  (unsure)")) for a in self.answers]
        name, value = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"  {row[0]:<{name}}  {row[1]:<{value}}  {row[2]}" for row in rows]
        lines += ["", "Candidates, ranked", f"  {'defocus':>10}  {'explained':>9}  {'skewness':>8}  {'held out':>9}  {'z':>6}  orientation"]
        lines += [_row(candidate) for candidate in self.candidates]
        return "\n".join(["Found", *lines, *(["", "Notes", *(f"  {n}" for n in self.notes)] if self.notes else []), "", f"Verdict: {self.verdict}"])


def _text(answer: Answer) -> str:
    value = answer.value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {number:.4g}" for key, number in value.items())
    if isinstance(value, tuple):
        return ", ".join(f"{number:.2f}" for number in value) + f" {answer.unit}"
    return f"{value:.6g} {answer.unit}".strip()


def _row(c: Candidate) -> str:
    deviance = "-" if c.deviance is None else f"{c.deviance:.4f}"
    z = "-" if c.z is None else f"{c.z:.1f}"
    return f"  {c.defocus_A:>8.0f} Å  {c.explained:>9.3f}  {c.skewness:>+8.2f}  {deviance:>9}  {z:>6}  {c.pose}"
