"""Where the bright-field disk stands on the detector: its centre, and how that moves over the scan (descan)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError, RecipeError
from ptycho.frames import FrameSource, Quantity
from ptycho.preparation import Box, Preparation, measured
from ptycho.survey import find_disk

Descan: TypeAlias = Literal["plane", "parabola"]

_SAMPLE = 1000
_SAMPLE_BYTES = 64 << 20


@dataclass(frozen=True)
class View:
    """What the user says of the part of the detector that is used; centre "auto" is the disk's, if there is a disk."""

    centre: tuple[float, float] | Literal["auto", "none"] = "auto"
    window: tuple[int, int] | None = None
    crop: Box | None = None
    descan: Descan | None = None


@dataclass(frozen=True, eq=False)
class Aim:
    """What came of it: the box on the turned frame, the shift of each pattern, and what is to be told (recipe's name -> value)."""

    box: Box | None
    shifts_px: NDArray[np.int64] | None
    found: dict[str, Quantity]


def aim(
    view: View, source: FrameSource, preparation: Preparation, sample: NDArray[Any], frames: NDArray[np.int64], places: NDArray[np.float64]
) -> Aim:
    """Choose the part of the detector. ``sample`` are stored frames; ``frames`` (N,) and their scan coordinates ``places`` (N, 2) serve the descan.

    Raises RecipeError for a crop that leaves the frame, DataError when a disk is needed and there is none.
    """
    shape = preparation.turned_shape(source.header.frame_shape)
    found: dict[str, Quantity] = {}
    shifts = None
    if view.descan is not None:
        shifts, said = fit_descan(source, preparation, frames, places, view.descan)
        found["descan"] = Quantity(view.descan, "", f"estimate: {said}", trusted=False)
    if view.crop is not None:
        return Aim(_checked(view.crop, shape), shifts, found)
    centre: tuple[float, float] | None = None
    if view.centre == "auto":
        centre = find_centre(sample, preparation)
        said = "estimate: bright-field disk in the mean of a few patterns"
    elif view.centre != "none":
        centre, said = view.centre, "user"
    if centre is not None:
        found["centre_px"] = Quantity((round(centre[0], 2), round(centre[1], 2)), "px", said, trusted=said == "user")
    size = view.window or shape
    box = box_around(centre or (shape[0] // 2, shape[1] // 2), shape, size, preparation.bin)
    if centre is None and view.window is None:
        box = (0, shape[0], 0, shape[1])
    return Aim(None if box == (0, shape[0], 0, shape[1]) else box, shifts, found)


def _checked(crop: Box, shape: tuple[int, int]) -> Box:
    if crop[1] > shape[0] or crop[3] > shape[1]:
        raise RecipeError(f"data.detector_crop = {list(crop)}: y0, y1, x0, x1 within {shape[0]} x {shape[1]} pixels are needed")
    return crop


def find_centre(frames: NDArray[Any], preparation: Preparation) -> tuple[float, float] | None:
    """Centre (y, x) in pixels of the disk in the mean of stored frames (n, ky, kx), on the turned frame; None without a disk."""
    disk = _disk(preparation.electrons(frames))
    return None if disk is None else disk[:2]


def _disk(patterns: NDArray[np.float32]) -> tuple[float, float, float] | None:
    good = measured(patterns)
    total, number = np.where(good, patterns, 0).sum(0, dtype=np.float64), good.sum(0)
    return find_disk(np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0))


def box_around(centre: tuple[float, float], frame_shape: tuple[int, int], shape: tuple[int, int], factor: int) -> Box:
    """Box (y0, y1, x0, x1) of ``shape`` whose zero frequency, pixel n // 2 after binning by ``factor``, is nearest to the centre.

    Less than three quarters of a final pixel from the middle of the frame is the middle: noise must not decide whether a row is lost.
    """
    low = []
    for c, full, n in zip(centre, frame_shape, shape, strict=True):
        off = c - (factor - 1) / 2 - full // 2
        low.append(full // 2 - factor * (n // factor // 2) + (0 if abs(off) < 0.75 * factor else round(off)))
    return low[0], low[0] + shape[0], low[1], low[1] + shape[1]


def fit_descan(
    source: FrameSource, preparation: Preparation, frames: NDArray[np.int64], places: NDArray[np.float64], kind: Descan
) -> tuple[NDArray[np.int64], str]:
    """Whole-pixel shifts (N, 2) of the disk at each position against its mean place, and what was found in words.

    ``places`` (N, 2) are scan coordinates in any unit. The centre of mass within 1.5 disk radii of up to 1000 spread patterns is fitted
    by a plane or a parabola; patterns that lie far from it are left out once. Raises DataError when there is no disk.
    """
    number = max(16, min(_SAMPLE, len(frames), _SAMPLE_BYTES // max(source.header.frame_bytes, 1)))
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(number, len(frames))).astype(np.int64))
    patterns = preparation.electrons(source.read(frames[chosen]))
    disk = _disk(patterns)
    if disk is None:
        raise DataError(f'{source.header.path}: no bright-field disk, so that its descan cannot be fitted; leave data.descan = "{kind}" out')
    scale = np.abs(places - places.mean(0)).max(0)
    terms = _terms((places - places.mean(0)) / np.where(scale > 0, scale, 1), kind)
    centres = _centres(np.where(measured(patterns), patterns, 0), disk)
    use = np.isfinite(centres).all(1)
    for _ in range(2):
        if use.sum() < 2 * terms.shape[1]:
            raise DataError(f'{source.header.path}: too few patterns to fit the descan; leave data.descan = "{kind}" out')
        coefficients = np.linalg.lstsq(terms[chosen][use], centres[use], rcond=None)[0]
        off = np.hypot(*np.nan_to_num(centres - terms[chosen] @ coefficients, nan=np.inf).T)
        use = off <= max(4 * float(np.median(off[use])), 0.1)
    fitted = terms @ coefficients
    shifts = fitted - fitted.mean(0)
    return np.round(shifts).astype(np.int64), f"{kind} through the disk in {use.sum()} patterns: {np.abs(shifts).max():.2f} px at most"


def _terms(places: NDArray[np.float64], kind: Descan) -> NDArray[np.float64]:
    y, x = places.T
    flat = [np.ones_like(y), y, x]
    return np.stack(flat if kind == "plane" else [*flat, y * y, y * x, x * x], axis=1)


def _centres(patterns: NDArray[np.float32], disk: tuple[float, float, float]) -> NDArray[np.float64]:
    """Centre of mass (n, 2) within 1.5 disk radii, about the disk's mean place and then twice about what was found; NaN without counts."""
    y, x = np.indices(patterns.shape[1:])
    centres = np.tile(np.asarray(disk[:2], float), (len(patterns), 1))
    for i, pattern in enumerate(patterns):
        for _ in range(3):
            weight = pattern * (np.hypot(y - centres[i, 0], x - centres[i, 1]) < 1.5 * disk[2])
            total = float(weight.sum())
            centres[i] = ((weight * y).sum() / total, (weight * x).sum() / total) if total > 0 else np.nan
            if total <= 0:
                break
    return centres
