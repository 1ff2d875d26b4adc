"""What a run was told, what it warned of and what it took, as texts and numbers that belong to its result."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from ptycho.data import Dataset4D
    from ptycho.result import Result

#: Positions that moved by less than this part of a pixel did so by rounding.
_ROUNDING_PX = 1e-3


@dataclass(frozen=True, eq=False)
class Account:
    """How a run came about.

    ``calibration`` has a row (name, value with its unit, source) for all that was known before the first epoch; ``warnings`` are the sentences
    that were told, each with its remedy. ``moved_A`` (N, 2) = (y, x) is where each position ended relative to where it was given, (0, 2) when
    none was learned. ``seconds`` is the time from the first epoch to the end, halves included; ``peak_memory_GB`` the most that the process
    held of the machine's memory, ``gpu_memory_GB`` of the GPU's; NaN where nobody knows.
    """

    calibration: tuple[tuple[str, str, str], ...] = field(repr=False)
    warnings: tuple[str, ...]
    moved_A: NDArray[np.float64] = field(repr=False)
    device: str
    seconds: float
    peak_memory_GB: float
    gpu_memory_GB: float

    @classmethod
    def of(cls, result: Result, data: Dataset4D, device: torch.device, warnings: Sequence[str], seconds: float) -> Account:
        """Of a reconstruction of ``data`` that has just ended."""
        from ptycho.memory import device_name, peak_bytes

        peak = peak_bytes(device)
        return cls(
            calibration=calibration_rows(data),
            warnings=tuple(dict.fromkeys(warnings)),
            moved_A=_moved_A(result, data),
            device=device_name(device),
            seconds=seconds,
            peak_memory_GB=peak[0] / 1e9,
            gpu_memory_GB=peak[1] / 1e9,
        )

    def later(self, device: torch.device, seconds: float) -> Account:
        """The same after ``seconds`` more."""
        from ptycho.memory import peak_bytes

        peak = peak_bytes(device)
        return replace(self, seconds=self.seconds + seconds, peak_memory_GB=peak[0] / 1e9, gpu_memory_GB=peak[1] / 1e9)


@contextmanager
def warnings_kept(logger: logging.Logger) -> Iterator[list[str]]:
    """The sentences that are told as warnings meanwhile."""
    told: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    keeper = Keeper(logging.WARNING)
    logger.addHandler(keeper)
    try:
        yield told
    finally:
        logger.removeHandler(keeper)


def calibration_rows(data: Dataset4D) -> tuple[tuple[str, str, str], ...]:
    """(name, value with its unit, source) of all that is known of the microscope and the scan, by the recipe's names."""
    # The pixel in use, which may be another than the file's, stands for what was said of it.
    known = {name: quantity for name, quantity in data.calibration.items() if name not in ("pixel_invA", "pixel_mrad")}
    known["pixel_invA"] = data.pixel_invA
    return tuple((name, " ".join((_text(q.value), q.unit)).strip(), q.source) for name, q in known.items())


def _text(value: Any) -> str:
    """A number, a list of them or a table, as a person writes it."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_text(item)}" for name, item in value.items())
    if isinstance(value, (np.ndarray, list, tuple)):
        nested = any(isinstance(item, (np.ndarray, list, tuple)) for item in value)
        return ("; " if nested else ", ").join(_text(item) for item in value)
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) and math.isfinite(value) else str(value)


def _moved_A(result: Result, data: Dataset4D) -> NDArray[np.float64]:
    """Positions of the result (N, 2) relative to those of the data; (0, 2) where they are the same."""
    from ptycho.start import canvas_origin_A

    origin = canvas_origin_A(data.geometry, result.probe.shape[-1], result.pixel_A)
    moved = np.asarray(result.positions_A + origin - data.geometry.positions_A, np.float64)
    return moved if np.abs(moved).max() > _ROUNDING_PX * result.pixel_A else np.zeros((0, 2))
