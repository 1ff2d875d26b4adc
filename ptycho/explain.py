"""What is wrong with a recipe in one sentence: path, what was found, what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

#: One problem as pydantic tells it: type, loc, msg, input, ctx.
Problem = Mapping[str, Any]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_BRANCHES = ("float", "int", "str", "bool")
_WANTED = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": 'a text in quotes, "...",',
    "tuple_type": "a list [...]",
    "dict_type": "a table { name = value }",
    "model_type": "a section with keys",
    "model_attributes_type": "a table with keys",
    "dataclass_type": "a table { name = value }",
}


def sentence(problems: Sequence[Problem], tree: Any, record: Any, kinds: Mapping[str, Any]) -> str:
    """The most telling problem of a ``tree`` that should be a ``record``, and how many more there are.

    ``kinds`` are the records of [[solve]] entries by their name.
    """
    paths = [_path(problem, tree, kinds) for problem in problems]
    # A value that may be one of several types has a problem for each: only the ones deepest in it are about what was written.
    told = [(path, p) for path, p in zip(paths, problems, strict=True) if not any(len(o) > len(path) and o[: len(path)] == path for o in paths)]
    # An unknown key says more than the missing one beside it.
    first, problem = min(told, key=lambda item: item[1]["type"] not in _UNKNOWN)
    alike = [p for path, p in told if path == first]
    others = len({path for path, _ in told} - {first})
    return _sentence(first, problem, alike, tree, record, kinds) + (f" (and {others} more)" if others else "")


def _path(problem: Problem, tree: Any, kinds: Mapping[str, Any]) -> tuple[str, ...]:
    """Where it is in the recipe: without the branches that are pydantic's and not the user's."""
    path: list[str] = []
    for part in problem["loc"]:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            if part in kinds or part in _BRANCHES or "[" in str(part):
                continue
            tree = None
        path.append(str(part))
    return tuple(path)


def _sentence(path: tuple[str, ...], problem: Problem, alike: Sequence[Problem], tree: Any, record: Any, kinds: Mapping[str, Any]) -> str:
    name, kind, found = ".".join(path) or "recipe", problem["type"], problem.get("input")
    if kind in _UNKNOWN:
        return f"{name}: unknown key{suggestion(path[-1], _known_keys(path[:-1], tree, record, kinds))}"
    if kind == "missing":
        return f"{name}: missing; it has to be given"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = found.get("kind") if isinstance(found, dict) else found
        said = "missing" if given is None else f"found {_shown(given)}"
        return f"{name}.kind: {said}; allowed are {', '.join(map(_shown, kinds))}"
    if kind == "value_error":
        text = problem["msg"].removeprefix("Value error, ")
        return f"{name}: {text}" if path else text
    if path == ("solve",) and isinstance(found, dict):
        return "solve: a stage has two brackets: write [[solve]] and not [solve]"
    wanted = dict.fromkeys(_wanted(p) for p in alike)
    return f"{name} = {_shown(found)}: {', or '.join(wanted)} is needed"


def _wanted(problem: Problem) -> str:
    """What should stand there."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind in ("too_long", "too_short"):
        return f"a list of {context.get('max_length', context.get('min_length'))} values"
    # pydantic's own words for the rest: "Input should be ..."
    return _WANTED.get(kind) or problem["msg"].removeprefix("Input should be ")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def suggestion(key: str, names: Sequence[str]) -> str:
    """What may stand there instead of ``key``, nearest first; follows "unknown key"."""
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    listed = ", ".join(names)
    listed = listed if len(listed) <= 150 else listed[:150].rpartition(",")[0] + " ..."
    return f'; did you mean "{near[0]}"? Allowed are {listed}' if near else f"; allowed are {listed}"


def _known_keys(parents: Sequence[str], tree: Any, record: Any, kinds: Mapping[str, Any]) -> list[str]:
    """Names that the record at this place of the recipe has."""
    if record in kinds.values():
        record = _of_kind(tree, record, kinds)
    for name in parents:
        if isinstance(tree, list):
            tree = tree[int(name)]
            record = _of_kind(tree, record, kinds)
            continue
        tree = tree[name]
        if name != "solve":
            hint = get_type_hints(record)[name]
            record = next((option for option in get_args(hint) if option is not type(None)), hint)
    return [f.name for f in fields(record)] if is_dataclass(record) else list(getattr(record, "model_fields", ()))


def _of_kind(stage: Any, record: Any, kinds: Mapping[str, Any]) -> Any:
    """The record that a [[solve]] entry names."""
    kind = stage.get("kind") if isinstance(stage, dict) else None
    return kinds.get(kind, record) if isinstance(kind, str) else record
