"""What an import gives: a result, a recipe as text, and what was not taken over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.geometry import wavelength_A
from ptycho.result import Result


@dataclass(frozen=True)
class Imported:
    """``result`` is None for parameters alone, ``recipe`` (TOML, commented) for a file without any; ``warnings`` are sentences."""

    result: Result | None
    recipe: str | None = field(repr=False)
    warnings: tuple[str, ...] = ()


def checked(result: Result, path: Path) -> Result:
    """The result, if its numbers can be one. Raises DataError."""
    if not (result.object.size and result.probe.size and len(result.positions_A)):
        raise DataError(f"{path}: an empty object {result.object.shape}, probe {result.probe.shape} or list of {len(result.positions_A)} positions")
    numbers = (result.object, result.probe, result.positions_A, result.tilt_mrad, result.slice_thickness_A)
    scalars = (result.pixel_A, result.voltage_kV, result.semiangle_mrad)
    if not all(np.isfinite(array).all() for array in numbers) or not all(np.isfinite(value) and value > 0 for value in scalars):
        raise DataError(f"{path}: not all numbers of object, probe and geometry are finite; is the file complete?")
    return result


def aperture_mrad(probe: NDArray[np.complexfloating[Any, Any]], pixel_A: float, voltage_kV: float) -> float:
    """Semi-angle of the disk that the probe (modes, y, x) fills in reciprocal space: that of the area above half of its bright part."""
    power = (np.abs(np.fft.fft2(probe)) ** 2).sum(0)
    inside = int((power > power[power > 0.1 * power.max()].mean() / 2).sum())
    step_invA = 1 / (probe.shape[-1] * pixel_A)
    return float(np.sqrt(inside / np.pi) * step_invA * wavelength_A(voltage_kV) * 1e3)


class Taken:
    """A tree of parameters of another program that remembers what was asked for.

    What was not is told, so that nothing gets lost silently.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree, self._asked = tree, set[str]()

    def get(self, name: str, default: Any = None) -> Any:
        """The value at "a.b.c"; the default when there is none, or null."""
        self._asked.add(name)
        value: Any = self.tree
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return default if value is None else value

    def number(self, name: str) -> float | None:
        """A finite number, or None for anything else."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            return None
        return value

    def numbers(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
        """An array of numbers of this shape, -1 for any length; None for anything else."""
        value = self.get(name)
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            return None
        fits = array.ndim == len(shape) and all(want in (-1, have) for want, have in zip(shape, array.shape, strict=True))
        return array if value is not None and fits and np.isfinite(array).all() else None

    def left(self) -> list[str]:
        """Names of what nobody asked for and is not null: the shortest that say it."""
        return list(self._left(self.tree, ""))

    def _left(self, tree: Mapping[str, Any], prefix: str) -> list[str]:
        found: list[str] = []
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if value is None or name in self._asked:
                continue
            below = [asked for asked in self._asked if asked.startswith(f"{name}.")]
            found += self._left(value, f"{name}.") if below and isinstance(value, Mapping) else [name]
        return found
