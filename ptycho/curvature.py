"""Slope and curvature of the loss along directions in the parameters: the optimal step, without a line search.

Tangents and second-order waves travel forward with the wave. With Psi the exit wave in reciprocal space, Psi_i its derivative along
direction i, and l the loss of a pixel (sums over modes and states with their weights, as the detector sees them):

    I_i  = 2 Re sum conj(Psi) Psi_i,     I_ij = 2 Re sum [conj(Psi_i) Psi_j + conj(Psi) Psi_ij]
    L_i  = sum l' I_i,                   L_ij = sum [l'' I_i I_j + l' I_ij]

Exact, in contrast to differences of the loss. The Gauss-Newton matrix leaves the second term of L_ij out and takes l'' where data and
model agree: it is never negative, and what both tend to as the model comes to agree with the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.multislice import gather
from ptycho.optics import shift_ramps

#: The whole canvas.
WHOLE = (slice(None), slice(None))


@dataclass(frozen=True)
class Direction:
    """A straight line through the parameters; None where it does not move.

    ``object`` (states, slices, h, w) on a box of the canvas, ``probe`` (modes, y, x) as :attr:`Probe.wave`, ``offsets_px`` (B, 2) for
    the patterns of the batch, ``aberrations_A`` as :attr:`Probe.correction_A`.
    """

    object: Tensor | None = None
    probe: Tensor | None = None
    offsets_px: Tensor | None = None
    aberrations_A: Tensor | None = None

    def rows(self, rows: Tensor) -> Direction:
        """For the ``rows`` (n,) of the batch."""
        return self if self.offsets_px is None else replace(self, offsets_px=self.offsets_px[rows])


@dataclass(frozen=True)
class Quadratic:
    """The loss near the present model, L + slope . t + t . matrix . t / 2 for steps t along n directions; float64 (n,) and (n, n)."""

    slope: Tensor
    matrix: Tensor

    def minimiser(self, damping: float = 0.0) -> Tensor:
        """Steps t (n,) to the least value; ``damping`` times its diagonal is added to the matrix (Marquardt, J. SIAM 11 (1963) 431).

        Where the loss curves downwards the size of the curvature is taken: still a step downhill. A direction that changes nothing gets
        no step.
        """
        scale = torch.rsqrt(self.matrix.diagonal().abs().clamp_min(1e-200))
        values, vectors = torch.linalg.eigh(self.matrix * scale[:, None] * scale)
        # Directions that are nearly the same leave their difference to rounding.
        size = values.abs() + damping + 1e-6
        return -scale * (vectors @ ((vectors.mT @ (self.slope * scale)) / size))


class Curvature:
    """Quadratic models of the loss of an engine along given directions.

    ``exact``: the second derivative itself, which takes n (n + 1) / 2 waves more for n directions; otherwise Gauss-Newton, which takes
    (1 + n) / 2 of the time of a gradient.
    """

    def __init__(self, engine: Likelihood, exact: bool = True) -> None:
        self.engine, self.model, self.exact = engine, engine.model, exact

    @torch.no_grad()
    def __call__(self, index: Tensor, counts: Tensor, directions: Sequence[Direction], box: tuple[slice, slice] = WHOLE) -> Quadratic:
        """Of the summed loss of the patterns ``counts`` (B, ky, kx), as :class:`Likelihood` takes them, at the positions ``index`` (B,).

        ``box`` (rows, columns) is the part of the canvas on which the directions' objects are given; it has to hold all windows.
        """
        shard = self.engine.shard
        if (rows := shard.rows(index)) is not None:
            index, counts, directions = index[rows], counts[rows], [direction.rows(rows) for direction in directions]
        found = self.engine.within_memory(lambda: self._summed(index, counts, directions, box), len(index))
        return Quadratic(shard.ranks.sum_(found.slope), shard.ranks.sum_(found.matrix))

    def _summed(self, index: Tensor, counts: Tensor, directions: Sequence[Direction], box: tuple[slice, slice]) -> Quadratic:
        """A few patterns after another, with as many waves of each as there are derivatives."""
        corners, offsets = self.model.positions.split(index, self.model.size)
        kernels, varies = self.model.propagator.kernels(index), self.model.probe.varies
        spectra = None if varies else self._spectra(directions, index)
        moves = [d.offsets_px for d in directions]
        origin = corners.new_tensor([box[0].start or 0, box[1].start or 0])
        n = len(directions)
        slope = torch.zeros(n, dtype=torch.float64, device=self.engine.device)
        matrix = torch.zeros(n, n, dtype=torch.float64, device=self.engine.device)
        step = max(1, self.engine.chunk // (1 + n + len(self._pairs(n))))
        for start in range(0, len(index), step):
            part = slice(start, start + step)
            entering = self._spectra(directions, index[part]) if spectra is None else spectra
            waves = self._entrance(entering, offsets[part], [None if m is None else m[part] for m in moves])
            patches = [self._patches(d, corners[part], origin) for d in directions]
            waves = self._exit(waves, corners[part], patches, kernels if kernels.shape[1:2] == (1,) else kernels[:, part])
            if self.model.detector.descans:
                waves = self.model.detector.descanned(waves, index[part])
            self._add(waves, counts[part], slope, matrix)
        return Quadratic(slope, matrix)

    def _pairs(self, n: int) -> list[tuple[int, int]]:
        """Which second-order waves there are, in their order behind the wave and its n tangents."""
        return [(i, j) for i in range(n) for j in range(i, n)] if self.exact else []

    def _spectra(self, directions: Sequence[Direction], index: Tensor) -> Tensor:
        """The probe's spectrum and its derivatives, (1 + n + pairs, b or 1, modes x source modes, y, x)."""
        probe, n = self.model.probe, len(directions)
        start = probe.waves(index)
        moves = [torch.zeros_like(start) if d.probe is None else d.probe.expand_as(start) for d in directions]
        waves = [torch.fft.fft2(wave, norm="ortho") for wave in (start, *moves)]
        # The factor exp(-i sum C chi) turns by the phase -chi_i along direction i.
        turns = [0.0 if d.aberrations_A is None else -1j * torch.einsum("c,cyx->yx", d.aberrations_A, probe.chi) for d in directions]
        first = [waves[1 + i] + waves[0] * turns[i] for i in range(n)]
        second = [waves[1 + i] * turns[j] + waves[1 + j] * turns[i] + waves[0] * turns[i] * turns[j] for i, j in self._pairs(n)]
        phase = torch.einsum("c,cyx->yx", probe.correction_A, probe.chi)
        return probe.from_source(torch.stack([waves[0], *first, *second]) * torch.polar(torch.ones_like(phase), -phase))

    def _entrance(self, spectra: Tensor, offsets: Tensor, moves: list[Tensor | None]) -> Tensor:
        """The wave before the first slice and its derivatives, (1 + n + pairs, b, 1, modes, y, x)."""
        size, n = self.model.size, len(moves)
        ramp_y, ramp_x = shift_ramps(offsets, size)
        f = torch.fft.fftfreq(size, dtype=offsets.dtype, device=offsets.device)
        waves = spectra.expand(-1, len(offsets), -1, -1, -1).clone()
        turns = [None if m is None else -2j * math.pi * (m[:, 0, None, None] * f[:, None] + m[:, 1, None, None] * f)[:, None] for m in moves]
        for number, (i, j) in enumerate(self._pairs(n), start=1 + n):
            one, other = turns[i], turns[j]
            if one is not None:
                waves[number] += spectra[1 + j] * one
            if other is not None:
                waves[number] += spectra[1 + i] * other
            if one is not None and other is not None:
                waves[number] += spectra[0] * one * other
        for i, turn in enumerate(turns, start=1):
            if turn is not None:
                waves[i] += spectra[0] * turn
        return torch.fft.ifft2(waves.mul_((ramp_y * ramp_x)[:, None]), norm="ortho")[:, :, None]

    def _patches(self, direction: Direction, corners: Tensor, origin: Tensor) -> Tensor | None:
        if direction.object is None:
            return None
        return gather(direction.object.flatten(0, 1), corners - origin, self.model.size).unflatten(1, direction.object.shape[:2])

    def _exit(self, waves: Tensor, corners: Tensor, moves: list[Tensor | None], kernels: Tensor) -> Tensor:
        """Through the slices: by the product rule at each of them; (1 + n + pairs, b, states, modes, y, x) in reciprocal space."""
        patches = self.model.object.patches(corners, self.model.size)
        n, slices = len(moves), patches.shape[2]
        for s in range(slices):
            after = waves * patches[:, :, s, None]
            changes = [None if m is None else m[:, :, s, None] for m in moves]
            for i, change in enumerate(changes):
                if change is not None:
                    after[1 + i] += change * waves[0]
            for number, (i, j) in enumerate(self._pairs(n), start=1 + n):
                for change, other in ((changes[i], j), (changes[j], i)):
                    if change is not None:
                        after[number] += change * waves[1 + other]
            waves = torch.fft.fft2(after, norm="ortho")
            if s < slices - 1:
                waves = torch.fft.ifft2(waves.mul_(kernels[s][:, None, None]), norm="ortho")
        return waves

    def _add(self, waves: Tensor, counts: Tensor, slope: Tensor, matrix: Tensor) -> None:
        """The detector's part; adds to ``slope`` and ``matrix``."""
        detector, loss, n = self.model.detector, self.engine.loss, len(slope)

        def seen(a: Tensor, b: Tensor) -> Tensor:
            """Re sum conj(a) b over states and modes, (b, ky, kx) on the detector without the background."""
            product = a.real * b.real + a.imag * b.imag
            return detector(torch.einsum("o,bomyx->byx", self.model.object.occupancy, product)) - detector.background

        image = seen(waves[0], waves[0]) + detector.background
        weight = detector.mask.expand_as(counts)
        if self.engine.missing:
            weight = weight * torch.isfinite(counts)
        counts = torch.nan_to_num(counts, nan=0.0)
        first = weight * loss.slope(image, counts)
        second = weight * loss.curvature(image, counts if self.exact else image)
        tangents = [2 * seen(waves[0], waves[1 + i]) for i in range(n)]
        for i in range(n):
            slope[i] += (first * tangents[i]).sum(dtype=torch.float64)
            for j in range(i, n):
                value = (second * tangents[i] * tangents[j]).sum(dtype=torch.float64)
                matrix[i, j] += value
                if i != j:
                    matrix[j, i] += value
        for number, (i, j) in enumerate(self._pairs(n), start=1 + n):
            bend = 2 * (seen(waves[1 + i], waves[1 + j]) + seen(waves[0], waves[number]))
            value = (first * bend).sum(dtype=torch.float64)
            matrix[i, j] += value
            if i != j:
                matrix[j, i] += value
