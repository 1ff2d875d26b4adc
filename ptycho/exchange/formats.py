"""What a format of another program holds of a result, and what it cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptycho.result import Result

#: What a reconstruction may have, and a format may not hold. "pictures" stand for themselves: nobody expects a model in them.
STATES, THICKNESSES, TILT, TILTS, INSTRUMENT = "states", "thicknesses", "tilt", "tilts", "instrument"


@dataclass(frozen=True)
class Format:
    """A kind of file: what it is called, how its names end, who makes its bytes, and which of the above it ``holds``; None for pictures."""

    name: str
    suffixes: tuple[str, ...]
    meaning: str
    encode: Callable[[Result], bytes | memoryview]
    holds: frozenset[str] | None = None

    def losses(self, result: Result, path: Path) -> list[str]:
        """What of the result is not in the file, as sentences."""
        if self.holds is None:
            return []
        return [f"{path.name}: {said}" for name, said in _present(result) if name not in self.holds]


def _present(result: Result) -> Iterator[tuple[str, str]]:
    """What this result has beyond one state, equal slices and a plain detector, and what becomes of it where there is no place for it."""
    if len(result.object) > 1:
        yield STATES, f"there is one object in this format; it has the mean of the {len(result.object)} states"
    if len(set(result.slice_thickness_A[:-1].tolist())) > 1:
        yield THICKNESSES, "there is one distance between slices in this format; it has the mean of them"
    if len(result.tilt_mrad) > 1:
        yield TILTS, "there is one tilt in this format; it has the mean over the positions"
    elif result.tilt_mrad.any():
        yield TILT, "there is no tilt of the specimen in this format; it is left out"
    known = result.instrument
    if known is not None and (known.source_A or known.detector_blur_px or known.background_e.any() or len(known.descan_px) or len(known.opr_modes)):
        yield INSTRUMENT, f"this format has no place for {known.summary}; it is left out"


def mean_object(result: Result) -> np.ndarray:
    """Transmission (slices, y, x) of one object: the mean of the states by their occupancy."""
    return result.object[0] if len(result.object) == 1 else np.tensordot(result.occupancy, result.object, 1).astype(np.complex64)


def slice_distance_A(result: Result) -> float:
    """The mean distance between slices, the thickness itself for a single one."""
    return float(np.mean(result.slice_thickness_A[:-1] if len(result.slice_thickness_A) > 1 else result.slice_thickness_A))
