"""``--set a.b=c``: a value of a recipe from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from ptycho.errors import RecipeError


def given_tree(settings: Sequence[str]) -> dict[str, Any]:
    """What ``a.b=c`` settings say, as a tree of a recipe. Raises RecipeError."""
    tree: dict[str, Any] = {}
    for setting in settings:
        apply(tree, setting)
    return tree


def setting_of(text: str) -> tuple[str, Any]:
    """Key and value of ``a.b.0.c=value``; the value is TOML, or text when it is no TOML value. Raises RecipeError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f'--set "{text}": write it as section.key=value, for example model.slices=4')
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def apply(tree: dict[str, Any], setting: str) -> None:
    """Put what a setting says into its place of a recipe's tree. Raises RecipeError."""
    key, value = setting_of(setting)
    *parents, last = key.split(".")
    node: Any = tree
    for name, following in zip(parents, [*parents, last][1:], strict=True):
        node = _child(node, name, [] if following.isdigit() else {}, setting)
    if isinstance(node, list):
        _child(node, last, value, setting)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f'--set "{setting}": {".".join(parents)} is a value, not a section')


def _child(node: Any, name: str, new: Any, setting: str) -> Any:
    """The entry ``name`` of a table or list, made when absent (a list grows by one at most)."""
    if isinstance(node, dict):
        return node.setdefault(name, new)
    if isinstance(node, list) and name.isdigit() and int(name) <= len(node):
        if int(name) == len(node):
            # A stage that the recipe does not name is the default one with this key changed.
            node.append({"kind": "gradient"} if new == {} else new)
        return node[int(name)]
    raise RecipeError(f'--set "{setting}": there is no entry {name}; stages count from 0')
