"""Answers of a calibration, or values that a search found, written into a recipe's text, with comments; what stands there stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tomlkit
from tomlkit.items import InlineTable, Item, Table

from ptycho.answers import Answer, Calibration
from ptycho.errors import RecipeError

#: Where each answer belongs. The centre is found by the reader whenever it opens the file.
_SECTION = {
    "transpose": "data", "flip_rows": "data", "flip_columns": "data", "adu_per_electron": "data",
    "semiangle_mrad": "microscope", "defocus_A": "microscope", "aberrations": "microscope", "rotation_deg": "scan", "pixel_invA": "detector",
}  # fmt: skip
#: What is asked of the data; the others are only written where the recipe leaves them open.
_ASKED = ("transpose", "flip_rows", "flip_columns", "defocus_A", "aberrations", "rotation_deg")
_FLIPS = ("transpose", "flip_rows", "flip_columns")
#: What was drawn for the patterns as they are turned now.
_TURNED = ("centre", "detector_crop", "mask")
#: What else says the same as a key.
_OTHER_NAMES = {"pixel_invA": ("pixel_mrad",)}
_FIRST_ORDER = ("C10", "C1", "C12", "phi12_deg", "A1", "A1_deg")


def with_answers(text: str, calibration: Calibration, flips: dict[str, bool]) -> str:
    """The recipe ``text`` (TOML) with the answers in it; comments and everything else are kept.

    ``flips`` are those with which the data were read. What is not sure is written too, and its comment says so. Raises RecipeError when the
    flips change and the recipe has a centre, crop or mask for the patterns as they were.
    """
    document = tomlkit.parse(text)
    data: Any = document.get("data", {})
    changed = [name for name in _FLIPS if getattr(calibration.pose, name) != flips[name]]
    for name in _TURNED:
        if changed and name in data and data[name] not in ("auto", "none"):
            raise RecipeError(
                f"data.{name} is for the patterns as they are turned now, and {', '.join(changed)} must change; turn it, or leave it out"
            )
    for answer in calibration.answers:
        if answer.name in _SECTION:
            _put(document, _SECTION[answer.name], answer)
    _remove_first_order(document, calibration)
    return _into_place(tomlkit.dumps(document), _SECTION)


def with_given(text: str, given: Mapping[str, Any]) -> str:
    """The recipe ``text`` with the sections of ``given`` in it: what the command line said while it was calibrated holds for what was found."""
    document: Any = tomlkit.parse(text)
    names = []
    for section, values in given.items():
        if not isinstance(values, Mapping):
            continue
        if section not in document:
            document.add(section, tomlkit.table())
        for name, value in values.items():
            item = tomlkit.item(value)
            if not isinstance(document[section], InlineTable) and not isinstance(value, Mapping):
                item.comment("given to ptycho calibrate")
                names.append(name)
            document[section][name] = item
    return _into_place(tomlkit.dumps(document), names)


def _into_place(text: str, names: Iterable[str]) -> str:
    """New entries moved to the line ``# name = ...`` that was kept for them in their section."""
    lines = text.split("\n")
    for name in names:
        start = 0
        for at, line in enumerate(lines):
            if re.match(r"\s*\[", line):
                start = at
            if re.match(rf"{name}\s*=.*# .*(calibrated|given to)", line):
                kept = next((k for k in range(start, _section_end(lines, at)) if re.match(rf"#\s*{name}\s*=", lines[k])), None)
                if kept is not None:
                    lines[kept] = line
                    del lines[at]
                break
    return "\n".join(lines)


def _section_end(lines: list[str], at: int) -> int:
    return next((k for k in range(at, len(lines)) if re.match(r"\s*\[", lines[k])), len(lines))


def with_values(text: str, values: Mapping[str, Any], said: str) -> str:
    """The recipe ``text`` with ``values`` at keys such as model.slices or solve.0.update.probe; comments and everything else are kept.

    ``said`` and the value that was there go into the comment of each value that changes, when there is something said.
    """
    document = tomlkit.parse(text)
    for key, value in values.items():
        *parents, name = key.split(".")
        node = _node(document, parents, name)
        if isinstance(node, list):
            node[int(name)] = value
        elif name not in node or node[name] != value:
            _replace(node, name, value, said)
    return tomlkit.dumps(document)


def _node(document: tomlkit.TOMLDocument, parents: Sequence[str], name: str) -> Any:
    """The table or list that ``name`` belongs in; tables and stages that are missing on the way are made."""
    node: Any = document
    for parent, following in zip(parents, [*parents[1:], name], strict=True):
        if isinstance(node, dict) and parent not in node:
            node[parent] = tomlkit.aot() if parent == "solve" else tomlkit.array() if following.isdigit() else tomlkit.table()
        if parent.isdigit() and int(parent) == len(node):
            node.append(tomlkit.item({"kind": "gradient"}))
        node = node[int(parent) if parent.isdigit() else parent]
    return node


def _replace(table: Any, name: str, value: Any, said: str) -> None:
    """One value; its comment stays, followed by what is ``said`` and the value that was there. Inline tables have no comments."""
    item = tomlkit.item(value)
    if isinstance(table, Table):
        old = _item_of(table, name)
        comment = "" if old is None else old.trivia.comment.lstrip("# ")
        news = f"{said}, was {old.as_string().strip()}" if said and old is not None else said
        if comment or news:
            item.comment(" | ".join(part for part in (comment, news) if part))
    table[name] = item


def _put(document: tomlkit.TOMLDocument, section: str, answer: Answer) -> None:
    if section not in document:
        document.add(section, tomlkit.table())
    table: Any = document[section]
    have = any(name in table for name in (answer.name, *_OTHER_NAMES.get(answer.name, ())))
    if have and answer.name not in _ASKED:
        return
    if answer.name in ("transpose", "flip_columns") and not answer.value and not have:
        return  # that is their default; flip_rows has one for each detector
    value, said = answer.value, _said(answer)
    if have and answer.name == "aberrations":
        value = {**{k: v for k, v in table[answer.name].items() if k not in _FIRST_ORDER}, **value}
    item = _item(value)
    old = _item_of(table, answer.name)
    if old is not None and not isinstance(old, InlineTable):
        said += f", was {old.as_string().strip()}"
    if not isinstance(table, InlineTable):
        kept = "" if old is None else old.trivia.comment.lstrip("# ")
        item.comment(" | ".join(part for part in (kept, said) if part))
    table[answer.name] = item


def _item(value: Any) -> Item:
    rounded = _rounded(value)
    if not isinstance(value, dict):
        return tomlkit.item(rounded)
    item = tomlkit.inline_table()
    item.update(rounded)
    return item


def _item_of(table: Any, name: str) -> Item | None:
    """The entry as tomlkit has it, with its comment: a table gives plain values for true and false."""
    return table.value.item(name) if name in table else None


def _remove_first_order(document: tomlkit.TOMLDocument, calibration: Calibration) -> None:
    """Defocus and twofold astigmatism that the recipe had among the aberrations: the answers stand for them."""
    microscope: Any = document.get("microscope", {})
    aberrations = microscope.get("aberrations")
    if aberrations is None:
        return
    for name in _FIRST_ORDER:
        if name in aberrations and name not in calibration.aberrations:
            del aberrations[name]
    if not len(aberrations):
        del microscope["aberrations"]


def _said(answer: Answer) -> str:
    return f"calibrated: {answer.source}" if answer.sure else f"calibrated, UNSURE of {answer.unsure}; {answer.source}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value if isinstance(value, bool) else float(f"{value:.7g}")
