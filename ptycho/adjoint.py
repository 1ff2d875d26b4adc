"""The likelihood of a batch and its exact gradient, in one pass and in chunks that fit the cache.

The same function as :meth:`Ptychography.forward` followed by a loss. The gradient travels back through transposes: the Fourier
transform, the propagator and the product with the object are symmetric operators, so that the way back uses the very operators of the
way forward, and no complex conjugate is ever formed but once at the detector. Derivation and check against autograd:
d loss / d z with z taken as independent of its conjugate (Wirtinger); torch's ``.grad`` is twice its conjugate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor

from ptycho.adjoint_shared import Whole
from ptycho.adjoint_terms import (
    Batch,
    Gradients,
    Partial,
    Varying,
    Wants,
    blur_gradient,
    descan_gradient,
    entrance_gradient,
    propagation_gradient,
)
from ptycho.elementwise import Elementwise
from ptycho.kept import Kept
from ptycho.loss import Loss
from ptycho.memory import with_less
from ptycho.model import Ptychography
from ptycho.optics import propagation_phase
from ptycho.shards import Shard
from ptycho.windows import Workspace, touched_box

T = TypeVar("T")

__all__ = ["Gradients", "Likelihood", "Varying", "Wants"]


class Likelihood:
    """Loss and gradients of batches, for one model and one loss.

    On the CPU ``workers`` threads each take chunks of ``chunk`` patterns (torch itself then has to run single-threaded, see
    :func:`ptycho.threads.single_threaded`); elsewhere the chunks run one after the other. The result does not depend on ``chunk``.
    ``shard`` says which patterns are this process's, where several share them.
    """

    def __init__(
        self, model: Ptychography, loss: Loss, chunk: int | None = None, workers: int = 1, missing: bool = False, shard: Shard | None = None
    ) -> None:
        self.model, self.loss, self.missing, self.shard = model, loss, missing, shard or Shard()
        self.device = model.object.transmission.device
        self._chunk_wanted = chunk
        self.workers = workers if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.workers, initializer=torch.set_flush_denormal, initargs=(True,)) if self.workers > 1 else None
        self._spaces = [Workspace() for _ in range(self.workers)]
        #: Whether the loss itself is formed; the gradients do not need it.
        self.measures = True
        self.elementwise = _elementwise_for(self.device, model)(model.detector, loss, missing)
        self._occupancy: list[float] = model.object.occupancy.tolist()
        self._kernels_kept = Kept()
        self._shared = Workspace()

    def places(self) -> list[int]:
        """Where in memory the buffers lie that serve all batches."""
        return [place for space in (self._shared, *self._spaces) for place in space.places()]

    @property
    def chunk(self) -> int:
        """Patterns a call: on the CPU 16 fields of 128 x 128, on a GPU 192, both measured.

        With fewer the calls cost more than the caches gain; with more on a GPU (H200) a pass of 6 modes and 6 slices takes 15 to 30 % longer.
        """
        if self._chunk_wanted:
            return self._chunk_wanted
        on_cpu = self.device.type == "cpu"
        fields = 16 / self.model.object.transmission.shape[0] if on_cpu else 192
        return max(1, round(fields * 128 * 128 / (self.model.probe.modes * self.model.size**2)))

    @torch.no_grad()
    def of(self, index: Tensor, counts: Tensor, spectrum: Tensor, wants: Wants) -> tuple[Gradients, Tensor]:
        """Gradients of the patterns ``index`` (B,) with the model as it is, and the windows' corners (B, 2).

        ``spectrum`` is that of the probe. Of ``counts`` (B, ky, kx) each process needs its own rows; the gradients are those of all.
        """
        model, rows = self.model, self.shard.rows(index)
        corners, offsets = model.positions.split(index, model.size)
        tilt, varying = model.propagator.tilt_of(index), Varying.of(model, index)
        if rows is None:
            return self(corners, offsets, counts, spectrum, tilt, wants, varying), corners
        whole = Whole.of(model, corners, spectrum, tilt, wants, varying)
        if len(rows):
            own_tilt = tilt[rows] if len(tilt) > 1 else tilt
            whole.add(self(corners[rows], offsets[rows], counts[rows], spectrum, own_tilt, wants, varying.rows(rows)), rows)
        whole.gradients.bounds = self.elementwise.bounds(corners, model.size) if wants.object else None
        return whole.over(self.shard.ranks, self.measures), corners

    @torch.no_grad()
    def __call__(
        self, corners: Tensor, offsets: Tensor, counts: Tensor, spectrum: Tensor, tilt: Tensor, wants: Wants, varying: Varying | None = None
    ) -> Gradients:
        """Gradients of the summed loss of a batch.

        ``corners`` (B, 2) and ``offsets`` (B, 2) as from :meth:`Positions.split`, ``counts`` (B, ky, kx) electrons with zero frequency
        in the corner (NaN where not measured, if ``missing`` was set), ``spectrum`` (modes, y, x) as from :meth:`Probe.spectrum`, ``tilt``
        (1, 2) or (B, 2) in rad; ``varying`` is needed where the model has a varying probe or a descan. The other parameters are read
        from the model.
        """
        if varying is None:
            if self.model.probe.varies or self.model.detector.descans:
                raise ValueError("the model's probe or descan varies with the position: pass Varying.of(model, index)")
            varying = Varying()
        model, size = self.model, self.model.size
        transmission = model.object.transmission
        states, slices = transmission.shape[:2]
        shape = (len(corners), states, slices, size, size)
        patches = self._shared.take("object", shape, transmission) if wants.object else None
        # The transforms below are not normalised; the factors that make them unitary are in the ramps (1 / size), the kernels and the
        # detector's slope (1 / size^2 each): no pass over a wave is spent on scaling.
        ramps, descan = self.elementwise.ramps(offsets, size), varying.descan_px
        descan_ramps = None if descan is None else model.detector.descan_ramps(descan)
        batch = Batch(corners, counts, spectrum, ramps, self._kernels(tilt), tilt, patches, wants, varying, descan_ramps)
        return self.within_memory(lambda: self._collect(batch, self._partials(batch)), len(corners))

    def within_memory(self, work: Callable[[], T], patterns: int) -> T:
        """What ``work`` gives; where memory runs out it is done again with half the chunk, and so is everything after it.

        ``work`` takes at most ``chunk`` of the ``patterns`` at a time and changes nothing before it has its result. Raises what it raised when
        there is no room for a single pattern.
        """
        first = self.chunk

        def attempt(chunk: int) -> T:
            if chunk != first:
                self._chunk_wanted, self._spaces = chunk, [Workspace() for _ in range(self.workers)]
            return work()

        return with_less(attempt, first, patterns, self.device)[0]

    def _partials(self, batch: Batch) -> list[Partial]:
        """The work of each worker."""
        corners, step = batch.corners, self.chunk
        chunks = [slice(start, min(start + step, len(corners))) for start in range(0, len(corners), step)]
        if self._pool is None:
            return [self._work(self._spaces[0], batch, chunks)]
        jobs = [self._pool.submit(self._work, space, batch, chunks[w :: self.workers]) for w, space in enumerate(self._spaces)]
        wait(jobs)
        return [job.result() for job in jobs]

    def close(self) -> None:
        """End the worker threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _kernels(self, tilt: Tensor) -> Tensor:
        """exp(i kappa dz) / size^2 of each gap, (slices - 1, 1 or B, y, x); kept while tilt and thicknesses stay."""
        p = self.model.propagator
        if len(p.thickness_A) == 1:
            return self.model.probe.wave.new_empty(0)
        if len(tilt) > 1:
            return self._form_kernels(tilt)
        return self._kernels_kept(lambda: self._form_kernels(tilt), p.thickness_A, tilt)

    def _form_kernels(self, tilt: Tensor) -> Tensor:
        p = self.model.propagator
        kappa = propagation_phase(p.ky, p.kx, p.wavelength_A, tilt)
        angle = p.thickness_A[:-1, None, None, None] * kappa
        return torch.complex(torch.cos(angle), torch.sin(angle)).mul_(p.pass_band / self.model.size**2)

    def _work(self, space: Workspace, batch: Batch, chunks: list[slice]) -> Partial:
        with torch.inference_mode():
            real = self.model.detector.mask
            partial = Partial(torch.zeros((), dtype=torch.float64, device=self.device))
            if batch.wants.probe:
                partial.spectrum = space.take("spectrum", tuple(batch.spectrum.shape), batch.spectrum).zero_()
            if batch.wants.propagation:
                partial.thickness = torch.zeros_like(self.model.propagator.thickness_A)
            if batch.wants.background:
                partial.background = torch.zeros_like(real)
            if batch.wants.blur:
                partial.blur = torch.zeros_like(self.model.detector.blur_px2)
            if batch.wants.opr and batch.varying.variations is not None:
                partial.variations = torch.zeros_like(batch.varying.variations)
            for chunk in chunks:
                self._chunk(space, batch, chunk, partial)
            return partial

    def _chunk(self, space: Workspace, batch: Batch, chunk: slice, partial: Partial) -> None:
        """Forward through the slices, detector, and back; adds to ``partial`` and to its rows of ``batch.object_patches``."""
        transmission = self.model.object.transmission
        patches = self._gather(space, batch, chunk)
        ramp, entrance = self._entrance(space, batch, chunk)
        waves, spectra = self._forward(space, batch, chunk, patches, entrance)
        # A transform into fresh memory is faster than one with out=, which copies.
        back = torch.fft.fft2(self._detect(space, batch, chunk, spectra[-1], partial))
        for s in range(transmission.shape[1] - 1, -1, -1):
            onward = s > 0 or batch.wants.probe or batch.wants.offsets or batch.wants.opr
            descans = s == transmission.shape[1] - 1 and batch.descan_ramps is not None
            total = batch.object_patches[chunk, :, s] if batch.object_patches is not None else None
            if total is None and descans and batch.wants.descan:
                total = torch.empty_like(patches[:, :, s])
            self.elementwise.object_side(waves[s], back, patches[:, :, s], total, onward)
            if total is not None and descans:
                self._descan_gradient(batch, chunk, total, patches[:, :, s], partial)
            if not onward:
                return
            back = torch.fft.ifft2(back, norm="forward")
            if s > 0:
                if batch.wants.propagation:
                    propagation_gradient(self.model, batch, chunk, s - 1, spectra[s - 1], back, partial)
                back = torch.fft.fft2(back.mul_(self._kernel(batch, chunk, s - 1)))
        entrance_gradient(batch, chunk, ramp, entrance, back, partial, self.elementwise)

    def _entrance(self, space: Workspace, batch: Batch, chunk: slice) -> tuple[Tensor, Tensor]:
        """Ramp (b, y, x) and spectrum of the wave before the first slice, (b, 1, modes, y, x); the strongest mode may differ between patterns."""
        ramp, entrance = self._take(space, "ramp", batch, chunk), self._take(space, "entrance", batch, chunk, modes=True)
        self.elementwise.entrance(batch.spectrum, (batch.ramps[0][chunk], batch.ramps[1][chunk]), ramp, entrance)
        variations, coefficients = batch.varying.variations, batch.varying.coefficients
        if variations is not None and coefficients is not None:
            change = (coefficients[chunk].to(variations.dtype) @ variations.flatten(1)).unflatten(1, variations.shape[1:])
            entrance[:, : variations.shape[1]].addcmul_(change, ramp[:, None])
        return ramp, entrance[:, None]

    def _descan_gradient(self, batch: Batch, chunk: slice, total: Tensor, patches: Tensor, partial: Partial) -> None:
        """The ramp of the descan is part of the last slice: its derivative, from ``total`` with it, and the object's, ``total`` without it."""
        assert batch.descan_ramps is not None
        if batch.wants.descan:
            descan_gradient(self.model, chunk, total, patches, partial)
        total.mul_(batch.descan_ramps[0][chunk, None]).mul_(batch.descan_ramps[1][chunk, None])

    def _forward(self, space: Workspace, batch: Batch, chunk: slice, patches: Tensor, entrance: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The wave before each slice in real space, and behind each slice in reciprocal space (already propagated but for the last).

        The spectra of inner slices are kept only when the derivatives of the propagator need them.
        """
        slices = patches.shape[2]
        waves, spectra = [torch.fft.ifft2(entrance, norm="forward")], []
        product = self._take(space, "product", batch, chunk, states=True)
        for s in range(slices):
            spectrum = torch.fft.fft2(torch.mul(waves[s], patches[:, :, s, None], out=product))
            if s == slices - 1 or batch.wants.propagation:
                spectra.append(spectrum)
            if s < slices - 1:
                waves.append(torch.fft.ifft2(spectrum.mul_(self._kernel(batch, chunk, s)), norm="forward"))
        return waves, spectra

    def _detect(self, space: Workspace, batch: Batch, chunk: slice, exit_wave: Tensor, partial: Partial) -> Tensor:
        """Loss of the chunk; the exit wave is overwritten by d loss / d (exit wave) = slope * conj(exit wave) and returned."""
        weights = [weight / self.model.size**2 for weight in self._occupancy]
        intensity = self.elementwise.intensity(exit_wave, weights, self._take(space, "intensity", batch, chunk, real=True))
        slope, value = self.elementwise.slope(intensity, batch.counts[chunk], self.measures)
        if value is not None:
            partial.loss += value
        if partial.background is not None:
            partial.background += slope.sum(0)
        if partial.blur is not None:
            partial.blur += blur_gradient(self.model, intensity, self.model.detector.adjoint(slope))
        return self.elementwise.turn_back(exit_wave, slope, weights)

    def _collect(self, batch: Batch, partials: list[Partial]) -> Gradients:
        """Add up the workers, in their order, and turn d/dz into torch's 2 d/dz*."""
        gradients = Gradients(loss=torch.stack([p.loss for p in partials]).sum())
        if batch.object_patches is not None:
            gradients.box = touched_box(batch.corners, self.model.size, self.model.object.transmission.shape)
            gradients.object = self._scatter(batch, gradients.box)
            gradients.bounds = self.elementwise.bounds(batch.corners, self.model.size)
        if partials[0].spectrum is not None:
            total = partials[0].spectrum.clone()
            for p in partials[1:]:
                assert p.spectrum is not None
                total += p.spectrum
            gradients.spectrum = total.conj_physical_().mul_(2)
        if batch.wants.offsets:
            gradients.offsets = _in_order(o for p in partials for o in p.offsets)
        if batch.wants.propagation:
            gradients.thickness = torch.stack([p.thickness for p in partials if p.thickness is not None]).sum(0)
            gradients.tilt = self._tilt_gradient(batch, partials)
        if batch.wants.background:
            total = torch.stack([p.background for p in partials if p.background is not None]).sum(0)
            shape = self.model.detector.background.shape
            gradients.background = total if total.shape == shape else total.sum().reshape(shape)
        if batch.wants.blur:
            gradients.blur = torch.stack([p.blur for p in partials if p.blur is not None]).sum(0)
        if batch.wants.descan and batch.descan_ramps is not None:
            gradients.descan = _in_order(d for p in partials for d in p.descans)
        if partials[0].variations is not None:
            gradients.coefficients = _in_order(c for p in partials for c in p.coefficients)
            gradients.variations = torch.stack([p.variations for p in partials if p.variations is not None]).sum(0).conj_physical_().mul_(2)
        return gradients

    def _tilt_gradient(self, batch: Batch, partials: list[Partial]) -> Tensor:
        """(B, 2), or (1, 2) where one tilt serves all; several entries of one position are the gaps between slices."""
        total = torch.zeros(len(batch.corners), 2, dtype=batch.tilt.dtype, device=self.device)
        for start, part in sorted((entry for p in partials for entry in p.tilts), key=lambda entry: entry[0]):
            total[start : start + len(part)] += part
        return total if len(batch.tilt) > 1 else total.sum(0, keepdim=True)

    def _scatter(self, batch: Batch, box: tuple[slice, slice]) -> Tensor:
        """Sum of the windows' gradients on the touched part of the canvas, in torch's convention."""
        assert batch.object_patches is not None
        transmission = self.model.object.transmission
        rows, columns = (part.indices(side)[:2] for part, side in zip(box, transmission.shape[2:], strict=True))
        shape = (*transmission.shape[:2], rows[1] - rows[0], columns[1] - columns[0])
        canvas = self._shared.take("canvas", shape, transmission)
        corners = batch.corners
        if rows[0] or columns[0]:
            corners = corners - torch.tensor([rows[0], columns[0]], device=self.device)
        self.elementwise.gather_back(canvas, batch.object_patches, corners, self._pool, self.workers)
        return canvas

    def _gather(self, space: Workspace, batch: Batch, chunk: slice) -> Tensor:
        """Object windows of the chunk, (b, states, slices, y, x), the last slice with the ramp of the descan."""
        transmission, size, corners = self.model.object.transmission, self.model.size, batch.corners[chunk]
        out = space.take("patches", (len(corners), *transmission.shape[:2], size, size), transmission)
        patches = self.elementwise.windows(transmission, corners, out)
        if batch.descan_ramps is not None:
            patches[:, :, -1].mul_(batch.descan_ramps[0][chunk, None]).mul_(batch.descan_ramps[1][chunk, None])
        return patches

    def _kernel(self, batch: Batch, chunk: slice, gap: int) -> Tensor:
        """Kernel of one gap for the chunk, (1 or b, 1, 1, y, x)."""
        kernel = batch.kernels[gap]
        return (kernel if len(kernel) == 1 else kernel[chunk])[:, None, None]

    def _take(self, space: Workspace, name: str, batch: Batch, chunk: slice, modes: bool = False, states: bool = False, real: bool = False) -> Tensor:
        """A buffer for the chunk: (b, y, x), (b, modes, y, x) or (b, states, modes, y, x)."""
        n, size = min(chunk.stop, len(batch.corners)) - chunk.start, self.model.size
        count = batch.spectrum.shape[0]
        shape = (n, self.model.object.transmission.shape[0], count) if states else (n, count) if modes else (n,)
        return space.take(name, (*shape, size, size), self.model.detector.mask if real else batch.spectrum)


def _elementwise_for(device: torch.device, model: Ptychography) -> type[Elementwise]:
    """Fused kernels on an NVIDIA GPU, if torch came with Triton; plain torch elsewhere."""
    if device.type != "cuda" or model.object.transmission.dtype != torch.complex64 or not find_spec("triton"):
        return Elementwise
    from ptycho.elementwise_triton import FusedElementwise

    return FusedElementwise


def _in_order(parts: Iterator[tuple[int, Tensor]]) -> Tensor:
    """Concatenate (start, rows) entries by their start."""
    return torch.cat([part for _, part in sorted(parts, key=lambda entry: entry[0])])
