"""What a search varies: a key of the recipe and the values it may take."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ptycho.errors import RecipeError

if TYPE_CHECKING:
    from ptycho.geometry import Geometry
    from ptycho.start import ModelOptions

Value: TypeAlias = float | int | bool | str

#: The defocus may be wrong by this share of itself or a depth of field, the rotation by so many degrees, a slice's thickness by this factor.
_DEFOCUS_SHARE, _ROTATION_DEG, _THICKNESS = 0.2, 5.0, 1.4
#: Keys, or beginnings of keys, whose change would make the likelihoods incomparable, and why.
_NOT_VARIED = {
    "data": "other patterns, or patterns that are cut or binned in another way, have another likelihood; candidates are compared on the same ones",
    "output": "it does not change the result",
    "scan.shape": "it changes which patterns there are",
    "scan.flyback": "it changes which patterns there are",
    "scan.skip_frames": "it changes which patterns there are",
    "scan.positions_file": "it changes which patterns there are",
    "model.seed": "the best of several draws says nothing of the others",
    "model.refine": "what is refined is not searched for",
}
_NOT_IN_STAGES = {
    "bin": "patterns that are binned have another likelihood",
    "detector_px": "patterns that are cut have another likelihood",
    "epochs": "all candidates get the same number; give it with --epochs",
    "stop": "all candidates get the same number of epochs",
    "seed": "the best of several draws says nothing of the others",
}


@dataclass(frozen=True)
class Range:
    """The ``choices`` of a key, or all numbers (``whole`` ones) from ``low`` to ``high``, evenly or evenly in their logarithm (``log``)."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def extremes(self) -> tuple[Value, ...]:
        """The values that tell whether all are allowed."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether the value is one of those."""
        if self.choices:
            return value in self.choices
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.choices:
            return ",".join(str(value).lower() if isinstance(value, bool) else f"{value}" for value in self.choices)
        return f"{self.low:.6g}:{self.high:.6g}" + (":log" if self.log else "")


def parse_range(text: str) -> Range:
    """A range from ``key=low:high``, ``key=low:high:log`` or ``key=a,b,c``. Raises RecipeError."""
    key, _, said = (part.strip() for part in text.partition("="))
    if not key or not said:
        raise RecipeError(f'--vary "{text}": write it as key=low:high, key=low:high:log or key=a,b,c, for example model.slices=1,2,4')
    if ":" not in said:
        choices = tuple(dict.fromkeys(_value(part.strip()) for part in said.split(",")))
        if len(choices) < 2:
            raise RecipeError(f'--vary "{text}": there is one value only; to set it use --set')
        return Range(key, choices=choices)
    low, high, *how = said.split(":")
    if how not in ([], ["log"]):
        raise RecipeError(f'--vary "{text}": behind low:high only :log may stand')
    try:
        found = Range(key, float(low), float(high), bool(how))
    except ValueError:
        raise RecipeError(f'--vary "{text}": two numbers low:high are needed') from None
    if not found.low < found.high < float("inf") or found.low == -float("inf"):
        raise RecipeError(f'--vary "{text}": the first number must be below the second, and both finite')
    if found.log and found.low <= 0:
        raise RecipeError(f'--vary "{text}": a logarithmic range has to begin above 0')
    return found


def _value(text: str) -> Value:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, (bool, int, float, str)) else text


def check_comparable(key: str) -> None:
    """Raise RecipeError when candidates that differ in this key cannot be compared, saying why."""
    parts = key.split(".")
    for name, why in _NOT_VARIED.items():
        if parts[: name.count(".") + 1] == name.split("."):
            raise RecipeError(f"{key}: it cannot be varied: {why}")
    if parts[0] == "solve" and len(parts) > 2:
        if parts[1] != "0":
            raise RecipeError(f"{key}: it cannot be varied: short runs have the first stage only, solve.0")
        if parts[2] in _NOT_IN_STAGES:
            raise RecipeError(f"{key}: it cannot be varied: {_NOT_IN_STAGES[parts[2]]}")


def setting(key: str, value: Value) -> str:
    """As ``--set`` has it."""
    return f"{key}={json.dumps(value)}"


def own_value(tree: Mapping[str, Any], key: str) -> Value | None:
    """What the recipe has for the key; None when it leaves it open."""
    node: Any = tree
    for part in key.split("."):
        try:
            node = node[int(part) if isinstance(node, Sequence) else part]
        except (KeyError, IndexError, ValueError, TypeError):
            return 0.0 if key == "scan.rotation_deg" else None
    return node if isinstance(node, (bool, int, float, str)) else None


def default_ranges(geometry: Geometry, options: ModelOptions, defocus_key: str, rotation_deg: float) -> tuple[Range, ...]:
    """What a search varies when nobody says.

    Defocus: 20 % or a depth of field lambda / alpha^2 up and down, whichever is more; rotation of the scan: 5 degrees up and down; probe modes:
    half as many to twice as many and one more. Where there are several slices, also half as many and twice as many, and their thickness times or
    by 1.4.
    """
    own = geometry.defocus_A * (-1 if defocus_key.endswith("C10") else 1)
    depth_A = 1 / (geometry.wavelength_A * geometry.aperture_invA**2)
    reach = max(_DEFOCUS_SHARE * abs(own), depth_A)
    found = [
        Range(defocus_key, _round(own - reach), _round(own + reach)),
        Range("scan.rotation_deg", _round(rotation_deg - _ROTATION_DEG), _round(rotation_deg + _ROTATION_DEG)),
    ]
    found.append(_doubled("model.probe_modes", options.probe_modes))
    if options.slices > 1:
        found.append(_doubled("model.slices", options.slices))
        if isinstance(options.slice_thickness_A, (int, float)):
            thickness = options.slice_thickness_A
            found.append(Range("model.slice_thickness_A", _round(thickness / _THICKNESS), _round(thickness * _THICKNESS), log=True))
    return tuple(found)


def _doubled(key: str, own: int) -> Range:
    near = sorted({max(1, own // 2), own, own + 1, 2 * own} if key.endswith("modes") else {max(1, own // 2), own, 2 * own})
    return Range(key, choices=tuple(near))


def _round(value: float) -> float:
    return float(f"{value:.4g}")
