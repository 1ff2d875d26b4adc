"""What a search found: the best candidate and by how much, a table, the recipe with its values."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit

from ptycho.errors import RecipeError
from ptycho.recipe_update import with_values
from ptycho.tune_ranges import Range, Value
from ptycho.tune_study import Row

#: A difference of so many standard errors is beyond doubt.
_SURE = 2.0
#: Candidates in the table.
_SHOWN = 10
#: Keys of a recipe whose values are paths.
_PATHS = {
    "data": ("path", "mask", "dark", "gain", "calibration_file"),
    "scan": ("positions_file",),
    "model": ("probe_file", "vacuum_file", "object_file"),
}


@dataclass(frozen=True, eq=False)
class Tuned:
    """The trials of a search, number 0 being the recipe as it was, over the ``ranges``; ``folder`` holds the files.

    ``importances`` are the shares of the keys in what sets the best quarter of the trials apart, empty when there are too few.
    """

    folder: Path
    ranges: tuple[Range, ...]
    rows: tuple[Row, ...]
    importances: dict[str, float]

    @property
    def complete(self) -> bool:
        """Whether all trials have been carried out; else the same command goes on."""
        return all(row.state not in ("waiting", "running") for row in self.rows)

    @cached_property
    def ranked(self) -> tuple[Row, ...]:
        """Trials that were carried to the end, the lowest held-out deviance first."""
        return tuple(sorted((row for row in self.rows if row.state == "done"), key=deviance_of))

    @property
    def best(self) -> Row:
        """The first of ``ranked``. Raises RecipeError when there is none."""
        if not self.ranked:
            reason = next((row.reason for row in self.rows if row.state == "failed"), "no trial was carried out")
            raise RecipeError(f"{self.folder}: no candidate could be judged: {reason}")
        return self.ranked[0]

    @property
    def own(self) -> Row | None:
        """The recipe's own values; None when they could not be judged."""
        return next((row for row in self.ranked if row.slot == 0), None)

    def as_good(self, key: str) -> tuple[Value, ...]:
        """Values of the key in the trials that are not worse than the best beyond doubt, in their order."""
        alike = [row for row in self.ranked if margin(self.best, row).sigmas < _SURE and key in row.values]
        return tuple(sorted({row.values[key] for row in alike}, key=lambda value: (isinstance(value, str), value)))

    def __str__(self) -> str:
        return f"{table(self)}\n\n{verdict(self)}"


@dataclass(frozen=True)
class Margin:
    """By how much the deviance per pixel of one candidate is below another's, with its standard error over the held-out blocks."""

    gain: float
    error: float

    @property
    def sigmas(self) -> float:
        """The gain in standard errors."""
        return 0.0 if self.gain == 0 else self.gain / max(self.error, 1e-30)

    def __str__(self) -> str:
        return f"{self.gain:.2g} ± {self.error:.1g}"


def deviance_of(row: Row) -> float:
    """Held-out deviance per pixel; infinite without one."""
    return math.inf if row.score is None else row.score.deviance


def margin(better: Row, other: Row) -> Margin:
    """Compared block by block: what is hard to fit in a block is so for both, and drops out."""
    assert better.score is not None and other.score is not None
    difference = np.array(other.score.blocks) - np.array(better.score.blocks)
    if len(difference) < 2:
        return Margin(deviance_of(other) - deviance_of(better), math.nan)
    return Margin(float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference))))


def table(found: Tuned) -> str:
    """The best trials first, and the recipe's own; "above" is how much worse than the best, with its standard error."""
    shown = list(found.ranked[:_SHOWN])
    if found.own is not None and found.own not in shown:
        shown.append(found.own)
    names = [r.key.partition(".")[2] for r in found.ranges]
    lines = [["", "trial", "held out", "above the best", *names]]
    for row in shown:
        above = "" if row is found.best else str(margin(found.best, row))
        values = [_shown(row.values.get(r.key, "-")) for r in found.ranges]
        place = str(found.ranked.index(row) + 1)
        lines.append([place, f"{row.slot}{' (recipe)' if row.slot == 0 else ''}", f"{deviance_of(row):.6f}", above, *values])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def verdict(found: Tuned) -> str:
    """In words: how many trials, how sure the best is, what is as good."""
    states = [row.state for row in found.rows]
    counted = [f"{states.count('done')} trials carried to the end", f"{states.count('cut')} cut short", f"{states.count('failed')} failed"]
    sentences = [", ".join(part for part in counted if not part.startswith("0 ")) + "."]
    best, own = found.best, found.own
    if len(found.ranked) > 1:
        sentences.append(f"Trial {best.slot} is the best, {_by(margin(best, found.ranked[1]))} the next (trial {found.ranked[1].slot}).")
    if own is None:
        sentences.append("The recipe's own values could not be judged.")
    elif own is best:
        sentences.append("These are the recipe's own values: nothing better was found.")
    else:
        gain = margin(best, own)
        sentences.append(f"It is {_by(gain)} the recipe's own values" + ("." if gain.sigmas >= _SURE else ", which is no proof: keep those."))
    for r in found.ranges:
        alike = found.as_good(r.key)
        if len(alike) > 1:
            span = ", ".join(map(_shown, alike)) if r.choices else f"{_shown(alike[0])} to {_shown(alike[-1])}"
            sentences.append(f"{r.key}: {span} are as good within {_SURE:g} standard errors.")
        if not r.choices and best.values.get(r.key) is not None and _at_edge(r, best.values[r.key]):
            sentences.append(f"{r.key} = {_shown(best.values[r.key])} is at the edge of {r}: search further there.")
    return "\n".join(sentences)


def trials_csv(found: Tuned) -> str:
    """All trials, one a line."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "state", "held_out", "epochs", "seconds", *(r.key for r in found.ranges), "reason"])
    for row in found.rows:
        deviance = "" if row.score is None else f"{row.score.deviance:.8g}"
        writer.writerow(
            [row.slot, row.state, deviance, row.epochs, f"{row.seconds:.1f}", *(row.values.get(r.key, "") for r in found.ranges), row.reason]
        )
    return file.getvalue()


def best_recipe(found: Tuned, text: str, folder: Path, settings: Mapping[str, Any]) -> str:
    """The recipe ``text`` that lies in ``folder`` as it shall lie in the search's: with ``settings`` and the best values, comments kept."""
    document = tomlkit.parse(text)
    moved: dict[str, Any] = {}
    for section, keys in _PATHS.items():
        for key in keys:
            path = document.get(section, {}).get(key)
            if isinstance(path, str):
                moved[f"{section}.{key}"] = os.path.relpath(folder / Path(path).expanduser(), found.folder)
    best = found.best
    said = f"tuned: held-out deviance {deviance_of(best):.6g}"
    text = with_values(text, {**moved, **settings}, "")
    return with_values(text, best.values, said)


def _by(gain: Margin) -> str:
    return f"{gain} per pixel ({gain.sigmas:.1f} standard errors) below"


def _at_edge(r: Range, value: Value) -> bool:
    low, high, at = (math.log(float(v)) if r.log else float(v) for v in (r.low, r.high, value))
    return not 0.03 < (at - low) / (high - low) < 0.97


def _shown(value: Value) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def progress_line(row: Row, rows: Sequence[Row]) -> str:
    """One line on a trial that has just been closed."""
    over = [r for r in rows if r.state not in ("waiting", "running")]
    best = min(rows, key=lambda r: deviance_of(r) if r.state == "done" else math.inf)
    values = ", ".join(f"{key.rpartition('.')[2]} = {_shown(value)}" for key, value in row.values.items()) or "the recipe as it is"
    outcome = row.reason if row.state == "failed" else f"held out {deviance_of(row):.6f}" + (" (cut short)" if row.state == "cut" else "")
    return f"{len(over)} of {len(rows)}: trial {row.slot}: {values}: {outcome}, {row.seconds:.1f} s; best is trial {best.slot}"
