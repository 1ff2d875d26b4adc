"""Files of parameters: YAML, JSON and TOML as plain values, nothing in them executed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from ptycho.errors import DataError
from ptycho.io.files import file_size, unreadable

SUFFIXES = (".yaml", ".yml", ".json", ".toml")
#: Parameters are pages of text; anything larger is another kind of file.
_MOST_BYTES = 4 << 20


def read_parameters(path: Path) -> Any:
    """The tree of values. Raises DataError for what is no such file, and for YAML where PyYAML is not installed."""
    if file_size(path) > _MOST_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes is too long for parameters; is it a data file?")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, "not a text file") from None
    try:
        if path.suffix == ".json":
            return json.loads(text)
        return tomllib.loads(text) if path.suffix == ".toml" else _yaml(path, text)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error, f"not a {path.suffix[1:].upper()} file") from None


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise DataError(f"{path}: PyYAML is needed to read it: pip install 'ptycho[exchange]'") from None
    try:
        # Aliases can make a small file a tree of any size; neither PtyRAD nor phaser needs them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise DataError(f"{path}: it has YAML aliases (*name); write the values in their place")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())[:120]})") from None
