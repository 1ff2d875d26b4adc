"""Each detector pixel's image over the scan, and its Fourier transform, a few pixels at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from ptycho.data import Dataset4D
from ptycho.errors import DataError
from ptycho.memory import free_bytes

#: Patterns are read, and images transformed, in blocks of about this many bytes.
_BLOCK_BYTES = 16 << 20
#: Share of the free memory that the images may take.
_SHARE = 0.25
#: Fewer scan points than this along an axis are no image.
_LEAST = 4


@dataclass(frozen=True, eq=False)
class Raster:
    """The scan as a regular grid of points R[i, j] = ``origin_A`` + i ``axes_A[0]`` + j ``axes_A[1]``, all (y, x) in Å.

    ``shape`` (slow, fast) are its points, ``points`` (N,) those that have a pattern, row by row. ``padded`` (slow, fast) is the grid of the
    transforms: what lies beyond the border is not known, and must not be what lies at the opposite one.
    """

    shape: tuple[int, int]
    padded: tuple[int, int]
    axes_A: NDArray[np.float64]
    origin_A: NDArray[np.float64]
    points: NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, data: Dataset4D, pad_A: float) -> Raster:
        """The raster of a data set with ``pad_A`` of room. Raises DataError when its positions are not one."""
        shape = data.scan_shape
        if data.positions_A is not None or min(shape) < _LEAST:
            found = "its positions are a list" if data.positions_A is not None else f"its scan is {shape[0]} x {shape[1]}"
            raise DataError(f"{data.name}: {found}; direct methods need a raster of {_LEAST} x {_LEAST} points or more: give [scan] shape and step_A")
        points = np.arange(data.n_positions) if data.points is None else data.points
        rows, columns = np.divmod(points, shape[1])
        known = np.column_stack([rows, columns, np.ones(len(points))])
        slow, fast, origin = np.linalg.lstsq(known, data.geometry.positions_A, rcond=None)[0]
        steps = (float(np.hypot(*slow)), float(np.hypot(*fast)))
        padded = [next_fast_len(n + math.ceil(pad_A / step), real=True) if pad_A > 0 else n for n, step in zip(shape, steps, strict=True)]
        return cls(shape, (padded[0], padded[1]), np.stack([slow, fast]), origin, points)

    @property
    def steps_A(self) -> tuple[float, float]:
        """Lengths of the scan's steps (slow, fast) in Å."""
        return float(np.hypot(*self.axes_A[0])), float(np.hypot(*self.axes_A[1]))

    def frequencies_invA(self) -> Tensor:
        """Q of each term of the transform, float64 (rows, columns, 2) = (y, x) in the detector's frame, half of the plane as rfft2 has it."""
        rows, columns = self.padded
        cycles = torch.meshgrid(torch.fft.fftfreq(rows, dtype=torch.float64), torch.fft.rfftfreq(columns, dtype=torch.float64), indexing="ij")
        # Q.axes[0] and Q.axes[1] are cycles per step.
        return torch.stack(cycles, -1) @ torch.from_numpy(np.linalg.inv(self.axes_A).T.copy())

    def within(self, radius_invA: float) -> Tensor:
        """Terms of the transform with 0 < \\|Q\\| < radius, bool (rows, columns); not those at the Nyquist frequency, whose sign is open."""
        length = torch.linalg.vector_norm(self.frequencies_invA(), dim=-1)
        inside = (length > 0) & (length < radius_invA)
        if self.padded[0] % 2 == 0:
            inside[self.padded[0] // 2] = False
        if self.padded[1] % 2 == 0:
            inside[:, -1] = False
        return inside

    def spectra(self, data: Dataset4D, pixels: NDArray[np.int64], wanted: Tensor) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """(numbers of some ``pixels`` (n,), their spectra complex64 (n, M), their means (n,)) until all have had their turn.

        ``pixels`` count in the flattened pattern, ``wanted`` (rows, columns) are the M terms that are kept. Spectra are rfft2 of the images in
        parts of the beam, without their means. The file is read once for as many pixels as fit into ``data.memory_GB`` or a
        quarter of the free memory.
        """
        limit = _SHARE * free_bytes(torch.device("cpu")) if data.memory_GB is None else data.memory_GB * 1e9
        each = 4 * math.prod(self.shape) + 8 * int(wanted.sum())
        for part in np.array_split(pixels, math.ceil(len(pixels) * each / max(limit, each))):
            images, means = self._images(data, part)
            yield part, self._transformed(images, wanted), means

    def _images(self, data: Dataset4D, pixels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(images (n, slow, fast), means (n,)) in parts of the beam; without their means, so that a point without a pattern says nothing."""
        images = np.full((len(pixels), math.prod(self.shape)), np.nan, np.float32)
        block = max(1, _BLOCK_BYTES // (4 * math.prod(data.pattern_shape)))
        for start in range(0, data.n_positions, block):
            numbers = np.arange(start, min(start + block, data.n_positions))
            patterns = data.patterns(numbers).reshape(len(numbers), -1)
            images[:, self.points[numbers]] = patterns[:, pixels].T
        seen = np.isfinite(images)
        counts = np.maximum(seen.sum(1), 1)
        means = np.where(seen, images, 0).sum(1, dtype=np.float64) / counts
        images -= means[:, None].astype(np.float32)
        # Points that are missing at random take their share of every frequency: the others stand in for them.
        images *= np.float32(1 / data.beam_electrons) * (math.prod(self.shape) / counts).astype(np.float32)[:, None]
        images[~seen] = 0
        return torch.from_numpy(images).reshape(-1, *self.shape), torch.from_numpy(means / data.beam_electrons)

    def _transformed(self, images: Tensor, wanted: Tensor) -> Tensor:
        """Zeros beyond the border stand for the mean: measured no worse than borders that fade out."""
        step = max(1, _BLOCK_BYTES // (4 * math.prod(self.padded)))
        return torch.cat([torch.fft.rfft2(part, s=self.padded)[:, wanted] for part in images.split(step)])

    def cropped(self, spectrum: Tensor, wanted: Tensor) -> NDArray[np.float32]:
        """The real image (slow, fast) whose transform has these terms (M,), zero elsewhere."""
        whole = torch.zeros(wanted.shape, dtype=torch.complex128)
        whole[wanted] = spectrum.to(torch.complex128)
        image = torch.fft.irfft2(whole, s=self.padded)[: self.shape[0], : self.shape[1]]
        return image.numpy().astype(np.float32)
