"""What the publication-grade tests share: rows of the table, exposures of one simulation, measures of columns and slices."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize

import ptycho
from ptycho.metrics import Agreement
from ptycho.result import Result
from ptycho.simulation import Simulated, Simulation, expected_patterns, forward_model

#: Enough electrons for their noise not to be seen.
NOISE_FREE = 1e9
Image = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, what is asked of it, whether it holds, and the seconds that the reconstruction took."""

    test: str
    case: str
    metric: str
    value: float
    threshold: str
    holds: bool
    seconds: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As text, in the order of the table's columns."""
        return (self.test, self.case, self.metric, f"{self.value:.4g}", self.threshold, "yes" if self.holds else "NO", f"{self.seconds:.0f}")


class Rows:
    """Makes the rows of one test: ``at_least``, ``at_most`` and ``within`` say what is asked."""

    def __init__(self, test: str) -> None:
        self.test = test

    def at_least(self, case: str, metric: str, value: float, threshold: float, seconds: float = 0.0) -> Row:
        return Row(self.test, case, metric, value, f">= {threshold:g}", bool(value >= threshold), seconds)

    def at_most(self, case: str, metric: str, value: float, threshold: float, seconds: float = 0.0) -> Row:
        return Row(self.test, case, metric, value, f"<= {threshold:g}", bool(value <= threshold), seconds)

    def within(self, case: str, metric: str, value: float, wanted: float, tolerance: float, seconds: float = 0.0) -> Row:
        return Row(self.test, case, metric, value, f"{wanted:g} ± {tolerance:g}", bool(abs(value - wanted) <= tolerance), seconds)


@dataclass(frozen=True)
class Exposures:
    """One simulated experiment, exposed for as many doses as are wanted: the expected patterns are computed once."""

    simulation: Simulation
    expected: NDArray[np.float32]
    truth: NDArray[np.float32]
    thickness_A: float

    @classmethod
    def of(cls, simulation: Simulation, atoms: Image | None = None) -> Exposures:
        model, phase, edges = forward_model(replace(simulation, dose_e_per_A2=1.0), atoms)
        return cls(simulation, expected_patterns(model), phase, float(edges[-1] - edges[0]))

    def at(self, dose_e_per_A2: float, seed: int = 1) -> Simulated:
        """Poisson counts at this dose."""
        s = replace(self.simulation, dose_e_per_A2=dose_e_per_A2)
        counts = np.random.default_rng([s.seed, seed]).poisson(self.expected.astype(np.float64) * dose_e_per_A2).astype(np.float32)
        patterns = counts.reshape(*s.scan_shape, *counts.shape[1:])
        return Simulated(s, patterns, self.truth, s.fine_pixel_A, s.positions_A, self.thickness_A)


def reconstruct(simulated: Simulated, stage: Any = None, reading: dict[str, Any] | None = None, **model: Any) -> tuple[Result, float]:
    """The result on the CPU, and its seconds; ``stage`` None: the package's default."""
    began = time.perf_counter()
    result = ptycho.reconstruct(simulated.dataset(**(reading or {})), solve=stage, device="cpu", **model)
    return result, time.perf_counter() - began


def relative_rms(found: Agreement) -> float:
    """rms of the difference in units of the truth's, from correlation c and slope s: sqrt(s^2 / c^2 + 1 - 2 s)."""
    return float(np.sqrt(max(found.slope**2 / found.correlation**2 + 1 - 2 * found.slope, 0.0)))


def on_specimen(result: Result, found: Agreement, points_A: Image) -> Image:
    """Pixels (n, 2) of the result where points of the specimen (n, 2), in Å from the centre of the scan, are."""
    centre = (result.positions_A.min(0) + result.positions_A.max(0)) / 2
    return np.asarray((centre + points_A) / result.pixel_A + found.shift_px)


def column_sums(images: NDArray[Any], pixel_A: float, points_px: Image, sigma_A: float) -> Image:
    """Mean of each image (slices, y, x) about each point under a Gaussian of ``sigma_A``, less its median, (slices, points).

    A Gaussian and not a disk: of the few pixels of a column a disk has different ones wherever it lies between them.
    """
    y, x = np.indices(images.shape[-2:])
    weights = [np.exp(-np.square((y - p[0], x - p[1])).sum(0) * (pixel_A / sigma_A) ** 2 / 2) for p in points_px]
    return np.array([[float((image * weight).sum() / weight.sum() - np.median(image)) for weight in weights] for image in images])


def about_frequency(images: NDArray[Any], pixel_A: float, frequency_invA: float) -> Image:
    """What each image (slices, y, x) holds within about 0.25 Å⁻¹ of a frequency: depth is known to 1 / (2 alpha q), lower ones blur it."""
    ky, kx = (fft.fftfreq(n, pixel_A) for n in images.shape[-2:])
    band = np.exp(-((np.hypot(ky[:, None], kx) - frequency_invA) ** 2) / (2 * 0.25**2))
    return np.asarray(fft.ifft2(fft.fft2(images) * band).real)


def fit_columns(image: NDArray[Any], pixel_A: float, points_px: Iterable[NDArray[Any]], reach_A: float = 0.7) -> Image:
    """Gaussian columns near ``points_px``: rows (y, x, sigma) in Å from pixel [0, 0]."""
    found = []
    for y0, x0 in points_px:
        reach = int(np.ceil(reach_A / pixel_A))
        top, left = round(float(y0)) - reach, round(float(x0)) - reach
        patch = np.asarray(image[top : top + 2 * reach + 1, left : left + 2 * reach + 1], float)
        y, x = np.indices(patch.shape)

        def misfit(p: Image, y: Image = y, x: Image = x, patch: Image = patch) -> Image:
            return np.asarray(p[0] + p[1] * np.exp(-((y - p[2]) ** 2 + (x - p[3]) ** 2) / (2 * p[4] ** 2)) - patch).ravel()

        start = [patch.min(), np.ptp(patch), y0 - top, x0 - left, 0.3 / pixel_A]
        p = optimize.least_squares(misfit, start).x
        found.append([(top + p[2]) * pixel_A, (left + p[3]) * pixel_A, abs(p[4]) * pixel_A])
    return np.array(found)


def lean_mrad(result: Result) -> Image:
    """How the recovered columns themselves lean, (y, x): to first order a slice moved against the mean is a (mean - slope times way) + b."""
    rows, columns = result.scanned
    slices = result.phase[:, rows, columns].astype(float)
    mean = slices.mean(0)
    basis = np.stack([mean.ravel(), np.ones(mean.size), *(-slope.ravel() for slope in np.gradient(mean))], 1)
    a, _, y, x = np.linalg.lstsq(basis, slices.reshape(len(slices), -1).T, rcond=None)[0]
    depth = np.cumsum(result.slice_thickness_A) - result.slice_thickness_A[0]
    return np.asarray(np.polyfit(depth, np.stack([y / a, x / a], 1) * result.pixel_A, 1)[0] * 1e3)


def position_errors_A(result: Result, simulated: Simulated) -> tuple[float, Image]:
    """rms per axis of what an affine map does not explain of the positions' errors, and that map less the identity, (2, 2)."""
    true = simulated.positions_A - simulated.positions_A.mean(0)
    error = result.positions_A - result.positions_A.mean(0) - true
    linear = np.linalg.lstsq(true, error, rcond=None)[0]
    return float(np.sqrt(np.mean((error - true @ linear) ** 2))), linear.T


def series(rows: Iterator[Row]) -> list[Row]:
    """All rows of a test, each printed as soon as it is there."""
    found = []
    for row in rows:
        print("| " + " | ".join(row.cells) + " |", flush=True)
        found.append(row)
    return found
