"""The text of a first recipe: what a file says with its source, what it does not say as a line to fill in, and what people change."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from ptycho.data import Dataset4D
from ptycho.errors import DataError
from ptycho.frames import Quantity


@dataclass(frozen=True)
class _Line:
    """A key that the file may know: what it is, and an example for who has to write it. ``needed``: no reconstruction without it."""

    section: str
    name: str
    meaning: str
    example: str
    needed: bool = False


_LINES = (
    _Line("data", "flip_rows", "patterns upside down", "true"),
    _Line("data", "flip_columns", "patterns left to right", "true"),
    _Line("data", "transpose", "rows and columns swapped, before the flips", "true"),
    _Line("data", "adu_per_electron", "counts that one electron makes", "148.0"),
    _Line("microscope", "voltage_kV", "kV", "300.0", needed=True),
    _Line("microscope", "semiangle_mrad", "mrad, the probe's convergence semi-angle", "21.4", needed=True),
    _Line("microscope", "defocus_A", "Å, positive is underfocus; ptycho calibrate finds it", "200.0"),
    _Line("microscope", "aberrations", "Å and °; ptycho calibrate finds the first order", "{ C12 = 20.0, phi12_deg = 30.0, C30 = 1e4 }"),
    _Line("scan", "shape", "scan points, [slow, fast]", "[128, 128]", needed=True),
    _Line("scan", "step_A", "Å from point to point, or [slow, fast]", "0.5", needed=True),
    _Line("scan", "rotation_deg", "° of the scan relative to the detector; ptycho calibrate finds it", "0.0"),
    _Line("detector", "pixel_invA", "1/Å; when absent, from the bright-field disk and the semi-angle", "0.0333"),
)

_MODEL = """
[model]
# probe_modes = 2             # incoherent modes of the probe: 2 to 6 for a real source
# slices = 10                 # for specimens thicker than about 100 Å; 1 (the default) for thin ones
# slice_thickness_A = 10.0    # Å from slice to slice; slices x this = the specimen's thickness
# refine = ["scan", "positions", "aberrations"]   # what is learned besides object and probe; also "tilt", "thickness", "source"

# Without a [[solve]] the stages are chosen for you, and the run ends when it gains nothing more. Your own stages run in order:
# [[solve]]
# kind = "gradient"           # gradient, lsqml, epie, mixed_state, polish
# epochs = 40
# update = { positions = 10 } # learned from this epoch on (in place of refine above)

[output]
directory = 'run'             # relative to this file
# halves = true               # two reconstructions from half of the data each: resolution and error (3 x the time)
"""


@dataclass(frozen=True)
class NewRecipe:
    """``text`` (TOML) of a recipe, and the keys that have to be filled in before it can be run."""

    text: str
    missing: tuple[str, ...]


def new_recipe(data: Dataset4D, path: str, given: Mapping[str, Any], shape_known: bool = True) -> NewRecipe:
    """A commented recipe for ``data``, which stand in ``path`` (as the recipe is to say it).

    ``given`` are sections of a recipe with what the user said already. Without ``shape_known`` the data were read as one line. Values of
    the file that are sure are written with their source; guesses stand as comments, so that what is found in the data goes before them.
    """
    found = _found(data, shape_known)
    lines: dict[str, list[str]] = {"data": [f"path = {literal(path)}"], "microscope": [], "scan": [], "detector": []}
    missing = []
    for line in _LINES:
        said = given.get(line.section, {}).get(line.name)
        if said is not None:
            lines[line.section].append(entry(line.name, said, f"{line.meaning}; given"))
        elif line.name == "step_A" and data.positions_A is not None:
            continue
        else:
            known = found.get(line.name)
            lines[line.section].append(_known_line(line, known, data))
            if known is None and line.needed:
                missing.append(f"{line.section}.{line.name}")
    for section, entries in given.items():
        for name, value in entries.items() if isinstance(entries, Mapping) else ():
            if section in lines and name not in {"path", *(key.name for key in _LINES)}:
                lines[section].append(entry(name, value, "given"))
    text = "\n\n".join("\n".join([f"[{section}]", *entries]) for section, entries in lines.items())
    rest = {section: value for section, value in given.items() if section not in lines}
    head = [f"# {_headline(data, shape_known)}", *(f"# {warning}" for warning in data.warnings)]
    return NewRecipe(_with_rest("\n".join([*head, "", text, _MODEL]), rest), tuple(missing))


def literal(text: str) -> str:
    r"""A TOML string in 'literal' quotes, in which ``C:\data`` is what it looks like; in others where that is not possible."""
    return json.dumps(text, ensure_ascii=False) if "'" in text or not text.isprintable() else f"'{text}'"


def path_from(folder: Path, source: str) -> str:
    """The data's path relative to the recipe's ``folder``, with / on every system; absolute where there is no way (another drive)."""
    file, colons, dataset = source.partition("::")
    there = Path(file).expanduser().absolute()
    try:
        path = Path(os.path.relpath(there, folder.absolute()))
    except ValueError:  # Windows: another drive
        path = there
    return path.as_posix() + colons + dataset


def _found(data: Dataset4D, shape_known: bool) -> dict[str, Quantity]:
    """What is known without the user, by the recipe's names."""
    found = {name: q for name, q in data.calibration.items() if not q.source.startswith("default: 0")}
    header = data.source.header
    listed = data.positions_A is not None
    if shape_known or listed:
        shape = header.metadata.get("scan_shape")
        found["shape"] = Quantity(data.scan_shape, "", "positions in the file" if listed else shape.source if shape else "the file")
    if "pixel_invA" not in found:
        with suppress(DataError):
            found["pixel_invA"] = data.pixel_invA
    return found


def _known_line(line: _Line, known: Quantity | None, data: Dataset4D) -> str:
    if known is None:
        comment = f"{line.meaning}, not in the file" if line.needed else line.meaning
        return f"# {entry(line.name, None, comment, line.example)}"
    listed = line.name == "shape" and data.positions_A is not None
    pixel = known.value / data.preparation.bin if line.name == "pixel_invA" else known.value
    guess = "" if known.trusted else "; a guess"
    written = entry(line.name, pixel, f"{line.meaning}; {known.source}{guess}")
    # What is fitted or guessed is found again by whoever reads the file: written down, it would count as measured.
    keep = known.trusted and not listed and not known.source.startswith("default")
    return written if keep else f"# {written}"


def entry(name: str, value: Any, comment: str, text: str | None = None) -> str:
    """``name = value   # comment``, comments below each other."""
    shown = text if text is not None else _toml(value)
    return f"{f'{name} = {shown}':<29} # {' '.join(comment.split())}"


def _toml(value: Any) -> str:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return literal(value)
    return tomlkit.item(float(f"{value:.7g}") if isinstance(value, float) else value).as_string()


def _headline(data: Dataset4D, shape_known: bool) -> str:
    scan, pattern = (" x ".join(map(str, shape)) for shape in (data.scan_shape, data.pattern_shape))
    said = f"{scan} (slow x fast)" if shape_known else f"{data.n_positions} patterns, scan shape unknown,"
    return f"{data.name}: {data.source.header.format}, {said} patterns of {pattern} px"


def _with_rest(text: str, rest: Mapping[str, Any]) -> str:
    """What was given of the sections [model], [output] and [[solve]], in its place."""
    document: Any = tomlkit.parse(text)
    for section, value in rest.items():
        if isinstance(value, Mapping) and section in document:
            document[section].update(value)
        else:
            document[section] = value
    return tomlkit.dumps(document)
