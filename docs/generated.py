"""The parts of the documentation that are made from the code, as Markdown: recipe keys, commands, exit codes, layers."""

from __future__ import annotations

import inspect
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import typer

from ptycho import errors
from ptycho.cli import app
from ptycho.constraint import Constraints
from ptycho.io import FORMATS, RawLayout
from ptycho.recipe import _KINDS, Recipe
from ptycho.sample import SPECIMENS
from ptycho.simulation_settings import Simulation
from ptycho.solvers.base import Settings, Updates
from ptycho.solvers.stop import Stop
from ptycho.start import REFINABLE, STARTS, ModelOptions

_HERE = Path(__file__).parent
#: Unit by the end of a key's name.
_UNITS = {
    "_rad_per_A2": "rad/Å²", "_rad_per_A": "rad/Å", "_invA": "1/Å", "_A": "Å", "_kV": "kV", "_mrad": "mrad", "_deg": "°", "_px": "pixels",
    "_e": "electrons", "_GB": "GB", "_rad": "rad", "_bytes": "bytes", "_per_electron": "ADU", "epochs": "epochs", "electrons": "electrons",
}  # fmt: skip
#: What the type does not say of a key's values.
_ALLOWED = {"data.format": tuple(FORMATS), "model.start": STARTS, "model.refine": REFINABLE, "simulation.specimen": (*SPECIMENS, "or a file")}


class Key(NamedTuple):
    """One key of a recipe."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str


@cache
def meanings() -> dict[str, str]:
    """Section and key -> meaning, from keys.toml."""
    tree = tomllib.loads((_HERE / "keys.toml").read_text(encoding="utf-8"))
    return {f"{section}.{key}": text for section, table in tree.items() for key, text in table.items()}


def sections() -> dict[str, list[Key]]:
    """Every section of a recipe with its keys: the sections themselves, layout, solvers (common keys first), update, stop, constraints."""
    tables: dict[str, list[Key]] = {}
    for name in ("data", "microscope", "scan", "detector", "output"):
        model = typing.cast(Any, Recipe.model_fields[name].annotation)
        tables[name] = [_key(name, key, f.annotation, _shown(... if f.is_required() else f.default)) for key, f in model.model_fields.items()]
    tables["data.layout"] = _record("data.layout", RawLayout)
    tables["model"] = _record("model", ModelOptions)
    tables["solve"] = _record("solve", Settings)
    common = {f.name: f.default for f in fields(Settings)}
    for kind, solver in _KINDS.items():
        own = [key for key in _record(f"solve.{kind}", solver) if _differs(solver, key.name, common)]
        tables[f"solve.{kind}"] = own
    tables["solve.update"] = _record("solve.update", Updates)
    tables["solve.stop"] = _record("solve.stop", Stop)
    for entry in fields(Constraints):
        record = _constraint(entry.name)
        tables[f"solve.constraints.{entry.name}"] = _record(f"solve.constraints.{entry.name}", record)
    return tables


def simulation_keys() -> list[Key]:
    """The keys of a file for ``ptycho simulate``."""
    return _record("simulation", Simulation)


def simulation_page() -> str:
    """Their table."""
    return _table(simulation_keys())


def recipe_page() -> str:
    """The tables of all sections."""
    titles = {"solve": "solve: what every kind has"} | {f"solve.{kind}": f'solve with kind = "{kind}"' for kind in _KINDS}
    constraints = "solve.constraints."
    parts: list[str] = []
    for name, keys in sections().items():
        if name.startswith(constraints):
            continue
        parts.append(f"## {titles.get(name, name)}\n")
        if name.startswith("solve.") and name.split(".")[1] in _KINDS:
            parts.append(_prose(_KINDS[name.split(".")[1]]) + "\n")
        parts.append(_table(keys))
    parts.append("## solve.constraints\n\nEach entry is a table of numbers, as `constraints = { pure_phase = {}, amplitude = { max = 1.0 } }`;")
    parts.append("what is not named does not act. All have `start`, `stop` (0: to the end) and `every` (epochs). They act in this order.\n")
    for name, keys in sections().items():
        if name.startswith(constraints):
            entry = name.removeprefix(constraints)
            own = [key for key in keys if key.name not in ("start", "stop", "every")]
            parts.append(f"### {entry}\n\n{_prose(_constraint(entry))}\n\n" + (_table(own) if own else ""))
    return "\n".join(parts)


def commands_page() -> str:
    """Every verb with its arguments and options, and the exit codes."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        arguments = [p for p in command.params if type(p).__name__.endswith("Argument")]
        usage = " ".join(["ptycho", name, *(p.metavar or p.name.upper() for p in arguments), "[OPTIONS]"])
        rows = [(f"`{p.metavar or p.name.upper()}`", p.help or "", "") for p in arguments]
        rows += [_option(p) for p in command.params if p not in arguments]
        parts += [f"## {name}\n", f"{_escaped(command.help)}\n", f"```text\n{usage}\n```\n", _rows(("", "meaning", "default"), rows)]
    parts += ["## Exit codes\n", _rows(("code", "meaning"), exit_codes())]
    return "\n".join(parts)


def exit_codes() -> list[tuple[str, str]]:
    """(code, meaning), from the classes of errors; those that are no error of ours besides."""
    bug = "a bug: please report it, with the traceback that `--debug` shows"
    found = {0: "done", 1: bug, 2: "the command line is wrong", 130: "interrupted (Ctrl-C)"}
    for _, error in inspect.getmembers(errors, inspect.isclass):
        if "exit_code" in vars(error) and error is not errors.PtychoError:
            found[error.exit_code] = re.sub(r" \(exit code \d+\)", "", (error.__doc__ or "").splitlines()[0])
    return [(str(code), found[code]) for code in sorted(found)]


def layers() -> list[list[str]]:
    """The layers of modules, highest first, from the contract that is checked in pyproject.toml."""
    tree = tomllib.loads((_HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in tree["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [re.findall(r"\w+", layer) for layer in contract["layers"]]


def layers_page() -> str:
    """The drawing: one row of boxes for each layer."""
    width, row, size, gap = 760, 24, 7.0, 6
    boxes, y = [], 4
    for layer in layers():
        top, x = y, 8.0
        for module in layer:
            wide = size * len(module) + 14
            if x + wide > width - 8:
                x, y = 8.0, y + row
            box = f'x="{x:.0f}" y="{y + 2}" width="{wide:.0f}" height="{row - 5}" rx="3"'
            boxes.append(f'<rect {box} fill="currentColor" fill-opacity="0.1"/>')
            boxes.append(f'<text x="{x + 7:.0f}" y="{y + 15}">{module}</text>')
            x += wide + gap
        y += row + 2
        frame = f'x="2" y="{top - 1}" width="{width - 4}" height="{y - top - 1}"'
        boxes.append(f'<rect {frame} fill="none" stroke="currentColor" stroke-opacity="0.25"/>')
    style = "font: 11px ui-monospace, monospace; fill: currentColor"
    head = f'<svg viewBox="0 0 {width} {y + 4}" role="img" aria-label="layers of modules" style="{style}; max-width: 100%">'
    drawing = f"{head}{''.join(boxes)}</svg>"
    return f"```{{raw}} html\n{drawing}\n```\n"


def _record(section: str, record: Any) -> list[Key]:
    hints = typing.get_type_hints(record)
    return [_key(section, f.name, hints[f.name], _default(f)) for f in fields(record)]


def _key(section: str, name: str, annotation: Any, default: str) -> Key:
    known = meanings()
    owner = section if f"{section}.{name}" in known or not section.startswith("solve.") else "solve"
    allowed = _ALLOWED.get(f"{section}.{name}")
    kind = _type(annotation) + (f": {', '.join(map(str, allowed))}" if allowed else "")
    return Key(name, kind, default, _unit(name), known.get(f"{owner}.{name}", ""))


def _constraint(name: str) -> Any:
    return next(part for part in typing.get_args(typing.get_type_hints(Constraints)[name]) if part is not NoneType)


def _differs(solver: Any, name: str, common: dict[str, Any]) -> bool:
    """Whether a solver's key is its own, or has another default than all have."""
    default = next(f.default for f in fields(solver) if f.name == name)
    return name not in common or default != common[name]


def _type(annotation: Any) -> str:
    """As a person says it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}" if arguments[-1] is ... else f"[{', '.join(_type(a) for a in arguments)}]"
    if origin in (dict, Mapping):
        return "table of numbers"
    if arguments:
        return " or ".join(_type(part) for part in arguments if part is not NoneType)
    if is_dataclass(annotation):
        return "table"
    return {str: "text", float: "number", int: "whole number", bool: "true or false"}.get(annotation, str(annotation))


def _default(entry: Any) -> str:
    if entry.default_factory is not MISSING:
        return "see its table"
    return _shown(... if entry.default is MISSING else entry.default)


def _shown(value: Any) -> str:
    if value is ...:
        return "must be given"
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).replace("'", '"').replace("(", "[").replace(")", "]")


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")


def _prose(record: Any) -> str:
    """A class's docstring as Markdown."""
    text = inspect.getdoc(record) or ""
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text).replace("``", "`")
    return _escaped(text)


def _escaped(text: str) -> str:
    """Markdown's marks as themselves, outside of backticks."""
    parts = re.split(r"(`[^`]*`)", text or "")
    return "".join(part if part.startswith("`") else re.sub(r"([|*<>_\[\]$])", r"\\\1", part) for part in parts)


def _table(keys: list[Key]) -> str:
    words = ("must be given", "not given", "see its table")
    rows = [(f"`{k.name}`", _escaped(k.meaning), _escaped(k.type), k.unit, k.default if k.default in words else f"`{k.default}`") for k in keys]
    return _rows(("key", "meaning", "type", "unit", "default"), rows) if rows else "No keys of its own.\n"


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *cells)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _option(p: Any) -> tuple[str, str, str]:
    names = ", ".join([*p.opts, *p.secondary_opts]) + ("" if p.is_flag or not p.metavar else f" {p.metavar}")
    default = getattr(p.default, "value", p.default)
    given = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
    return f"`{names}`", _escaped(p.help or ""), given
