"""A recipe made of another program's parameters: each value with its source, and what had no place told in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho.aberrations import ORDERS
from ptycho.exchange.imported import Taken

_SECTIONS = ("data", "microscope", "scan", "detector", "model", "output")
#: So many names of what was not taken over are listed.
_MOST_NAMES = 40


@dataclass(frozen=True)
class RecipeText:
    """``text`` is TOML, ``warnings`` are sentences."""

    text: str
    warnings: tuple[str, ...]


@dataclass
class Draft:
    """A recipe that is being written: ``program`` and ``path`` are where its values come from."""

    program: str
    path: Path
    lines: dict[str, list[str]] = field(default_factory=lambda: {section: [] for section in _SECTIONS})
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, section: str, key: str, value: Any, source: str) -> None:
        """A key with its value and where it was found; nothing for None."""
        from ptycho.recipe_new import entry  # late: a result alone needs no recipe

        if value is not None:
            self.lines[section].append(entry(key, _tidy(value), f"{self.program}: {source}"))

    def comment(self, section: str, key: str, value: Any, why: str) -> None:
        """The same as a line that has no effect until its # is taken away."""
        from ptycho.recipe_new import entry

        self.lines[section].append(f"# {entry(key, _tidy(value), why)}")

    def aberrations(self, terms: Mapping[str, float], source: str) -> None:
        """By our names; a defocus alone has its own key."""
        named = {name: value for name, value in terms.items() if value or name == "C10"}
        if set(named) <= {"C10"}:
            if "C10" in named:
                self.add("microscope", "defocus_A", -named["C10"] or 0.0, f"{source}, positive is underfocus")
        else:
            self.add("microscope", "aberrations", named, source)

    def start(self, result_file: str | None) -> None:
        """Probe and object of the imported result as the start."""
        if result_file is not None:
            self.add("model", "probe_file", result_file, "the probe of this result as the start; remove it to begin with the optics")
            self.add("model", "object_file", result_file, "and its object; remove it to begin with empty space")
            why = "y, x of each probe in Å as it was refined: in place of shape, step_A, rotation_deg and affine"
            self.comment("scan", "positions_file", "positions.csv", why)

    def done(self, taken: Taken) -> RecipeText:
        """The text, and a warning with what of ``taken`` was not used."""
        left = taken.left()
        warnings = list(self.warnings)
        if left:
            more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
            warnings.append(f"{self.path.name}: not taken over: {', '.join(left[:_MOST_NAMES])}{more}")
        head = [f"# Made from {self.path.name} of {self.program}", *(f"# {note}" for note in [*self.notes, *warnings])]
        if not any(line.startswith("path =") for line in self.lines["data"]):
            self.comment("data", "path", "scan.raw", f"{self.program} does not say which file it was; fill it in")
        sections = [f"[{name}]\n" + "\n".join(lines) for name, lines in self.lines.items() if lines]
        return RecipeText("\n\n".join(["\n".join(head), *sections]) + "\n", tuple(warnings))


def krivanek(name: str) -> tuple[int, int] | None:
    """(n, m) of a name such as C12; None for any other."""
    digits = name[1:3]
    order = (int(digits[0]), int(digits[1])) if name[:1] == "C" and len(digits) == 2 and digits.isdigit() else None
    return order if order in ORDERS else None


def _tidy(value: Any) -> Any:
    """Arrays and tuples as lists, floats without the dust of a calculation."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _tidy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tidy(item) for item in value]
    return value + 0.0 if isinstance(value, float) and math.isfinite(value) else value
