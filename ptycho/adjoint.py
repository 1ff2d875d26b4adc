"""The likelihood of a batch and its exact gradient, in one pass and in chunks that fit the cache.

The same function as :meth:`Ptychography.forward` followed by a loss. The gradient travels back through transposes: the Fourier
transform, the propagator and the product with the object are symmetric operators, so that the way back uses the very operators of the
way forward, and no complex conjugate is ever formed but once at the detector. Derivation and check against autograd:
d loss / d z with z taken as independent of its conjugate (Wirtinger); torch's ``.grad`` is twice its conjugate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ptycho.kept import Kept
from ptycho.loss import Loss
from ptycho.model import Ptychography
from ptycho.optics import propagation_phase, shift_ramps
from ptycho.windows import Workspace, add_windows, cut_windows, touched_box


@dataclass(frozen=True)
class Wants:
    """Which derivatives are needed; the object's and the probe's come together with the waves, the others cost a little."""

    object: bool = True
    probe: bool = True
    offsets: bool = False
    propagation: bool = False
    background: bool = False


@dataclass
class Gradients:
    """Loss of a batch and its derivatives, torch's convention (2 dL/dz* for complex leaves); None where not wanted.

    ``object`` (states, slices, h, w) covers the part ``box`` (rows, columns) of the canvas that the batch touches and lies in a buffer
    which the next batch overwrites; ``spectrum`` (modes, y, x) of the probe, ``offsets`` (B, 2) per pixel, ``tilt`` (B or 1, 2) per rad,
    ``thickness`` (slices,) per Å, ``background`` shaped as the detector's.
    """

    loss: Tensor
    box: tuple[slice, slice] = (slice(None), slice(None))
    object: Tensor | None = None
    spectrum: Tensor | None = None
    offsets: Tensor | None = None
    tilt: Tensor | None = None
    thickness: Tensor | None = None
    background: Tensor | None = None


@dataclass
class _Batch:
    """What all chunks of a batch share: where the windows are, the probe's spectrum, ramps and kernels."""

    corners: Tensor
    counts: Tensor
    spectrum: Tensor
    ramps: tuple[Tensor, Tensor]
    kernels: Tensor
    tilt: Tensor
    object_patches: Tensor | None
    wants: Wants


@dataclass
class _Partial:
    """Sums of one worker."""

    loss: Tensor
    spectrum: Tensor | None = None
    thickness: Tensor | None = None
    background: Tensor | None = None
    tilts: list[tuple[int, Tensor]] = field(default_factory=list)
    offsets: list[tuple[int, Tensor]] = field(default_factory=list)


class Likelihood:
    """Loss and gradients of batches, for one model and one loss.

    On the CPU ``workers`` threads each take chunks of ``chunk`` patterns (torch itself then has to run single-threaded, see
    :func:`ptycho.threads.single_threaded`); elsewhere the chunks run one after the other. The result does not depend on ``chunk``.
    """

    def __init__(self, model: Ptychography, loss: Loss, chunk: int | None = None, workers: int = 1, missing: bool = False) -> None:
        self.model, self.loss, self.missing = model, loss, missing
        self.device = model.object.transmission.device
        self._chunk_wanted = chunk
        self.workers = workers if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.workers, initializer=torch.set_flush_denormal, initargs=(True,)) if self.workers > 1 else None
        self._spaces = [Workspace() for _ in range(self.workers)]
        #: Whether the loss itself is formed; the gradients do not need it.
        self.measures = True
        self._masked = bool((model.detector.mask != 1).any())
        self._kernels_kept = Kept()
        self._shared = Workspace()

    @property
    def chunk(self) -> int:
        """Patterns a call. Measured on the CPU: 16 fields of 128 x 128; with fewer the calls cost more than the cache gains."""
        if self._chunk_wanted or self.device.type != "cpu":
            return self._chunk_wanted or 64
        waves = self.model.probe.modes * self.model.size**2 * self.model.object.transmission.shape[0]
        return max(1, round(16 * 128 * 128 / waves))

    @torch.no_grad()
    def __call__(self, corners: Tensor, offsets: Tensor, counts: Tensor, spectrum: Tensor, tilt: Tensor, wants: Wants) -> Gradients:
        """Gradients of the summed loss of a batch.

        ``corners`` (B, 2) and ``offsets`` (B, 2) as from :meth:`Positions.split`, ``counts`` (B, ky, kx) electrons with zero frequency
        in the corner (NaN where not measured, if ``missing`` was set), ``spectrum`` (modes, y, x) as from :meth:`Probe.spectrum`, ``tilt``
        (1, 2) or (B, 2) in rad. The other parameters are read from the model.
        """
        model, size = self.model, self.model.size
        transmission = model.object.transmission
        states, slices = transmission.shape[:2]
        shape = (len(corners), states, slices, size, size)
        patches = self._shared.take("object", shape, transmission) if wants.object else None
        # The transforms below are not normalised; the factors that make them unitary are in the ramps (1 / size), the kernels and the
        # detector's slope (1 / size^2 each): no pass over a wave is spent on scaling.
        ramp_y, ramp_x = shift_ramps(offsets, size)
        batch = _Batch(corners, counts, spectrum, (ramp_y / size, ramp_x), self._kernels(tilt), tilt, patches, wants)
        step = self.chunk
        chunks = [slice(start, min(start + step, len(corners))) for start in range(0, len(corners), step)]
        if self._pool is None:
            partials = [self._work(self._spaces[0], batch, chunks)]
        else:
            jobs = [self._pool.submit(self._work, space, batch, chunks[w :: self.workers]) for w, space in enumerate(self._spaces)]
            partials = [job.result() for job in jobs]
        return self._collect(batch, partials)

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

    def _work(self, space: Workspace, batch: _Batch, chunks: list[slice]) -> _Partial:
        with torch.inference_mode():
            real = self.model.detector.mask
            partial = _Partial(torch.zeros((), dtype=torch.float64, device=self.device))
            if batch.wants.probe:
                partial.spectrum = space.take("spectrum", tuple(batch.spectrum.shape), batch.spectrum).zero_()
            if batch.wants.propagation:
                partial.thickness = torch.zeros_like(self.model.propagator.thickness_A)
            if batch.wants.background:
                partial.background = torch.zeros_like(real)
            for chunk in chunks:
                self._chunk(space, batch, chunk, partial)
            return partial

    def _chunk(self, space: Workspace, batch: _Batch, chunk: slice, partial: _Partial) -> None:
        """Forward through the slices, detector, and back; adds to ``partial`` and to its rows of ``batch.object_patches``."""
        transmission = self.model.object.transmission
        ramp = torch.mul(batch.ramps[0][chunk], batch.ramps[1][chunk], out=self._take(space, "ramp", batch, chunk))
        patches = self._gather(space, batch, chunk)
        entrance = torch.mul(batch.spectrum, ramp[:, None], out=self._take(space, "entrance", batch, chunk, modes=True))[:, None]
        waves, spectra = self._forward(space, batch, chunk, patches, entrance)
        # A transform into fresh memory is faster than one with out=, which copies.
        back = torch.fft.fft2(self._detect(space, batch, chunk, spectra[-1], partial))
        for s in range(transmission.shape[1] - 1, -1, -1):
            if batch.object_patches is not None:
                _sum_modes(waves[s], back, batch.object_patches[chunk, :, s])
            if s == 0 and not (batch.wants.probe or batch.wants.offsets):
                return
            back = torch.fft.ifft2(back.mul_(patches[:, :, s, None]), norm="forward")
            if s > 0:
                if batch.wants.propagation:
                    self._propagation_gradient(batch, chunk, s - 1, spectra[s - 1], back, partial)
                back = torch.fft.fft2(back.mul_(self._kernel(batch, chunk, s - 1)))
        self._entrance_gradient(batch, chunk, ramp, entrance, back, partial)

    def _forward(self, space: Workspace, batch: _Batch, chunk: slice, patches: Tensor, entrance: Tensor) -> tuple[list[Tensor], list[Tensor]]:
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

    def _detect(self, space: Workspace, batch: _Batch, chunk: slice, exit_wave: Tensor, partial: _Partial) -> Tensor:
        """Loss of the chunk; the exit wave is overwritten by d loss / d (exit wave) = slope * conj(exit wave) and returned."""
        model = self.model
        unit = 1 / model.size**2
        intensity = self._take(space, "intensity", batch, chunk, real=True).zero_()
        for state, weight in enumerate(model.object.occupancy.tolist()):
            for mode in range(exit_wave.shape[2]):
                real, imaginary = torch.view_as_real(exit_wave[:, state, mode]).unbind(-1)
                intensity.addcmul_(real, real, value=weight * unit).addcmul_(imaginary, imaginary, value=weight * unit)
        image = model.detector(intensity)
        counts = batch.counts[chunk]
        weight = model.detector.mask if self._masked else None
        if self.missing:
            measured = torch.isfinite(counts)
            counts = torch.nan_to_num(counts, nan=0.0)
            weight = measured * model.detector.mask
        if self.measures:
            value = self.loss.value(image, counts)
            partial.loss += (value if weight is None else value * weight).sum()
        slope = self.loss.slope(image, counts)
        if weight is not None:
            slope.mul_(weight)
        if partial.background is not None:
            partial.background += slope.sum(0)
        slope = model.detector.adjoint(slope)
        for state, weight in enumerate(model.object.occupancy.tolist()):
            exit_wave[:, state].mul_((slope * (weight * unit))[:, None])
        return exit_wave.conj_physical_()

    def _propagation_gradient(
        self, batch: _Batch, chunk: slice, gap: int, spectrum: Tensor, back: Tensor, partial: _Partial
    ) -> None:
        """Thickness and tilt: dL/dz = -2 sum kappa Im(back * spectrum), and likewise with k for the tangents of the tilt."""
        p = self.model.propagator
        product = (back * spectrum).sum((1, 2)).imag
        tilt = batch.tilt if len(batch.tilt) == 1 else batch.tilt[chunk]
        kappa = propagation_phase(p.ky, p.kx, p.wavelength_A, tilt)
        assert partial.thickness is not None
        partial.thickness[gap] -= 2 * (kappa * product).sum()
        slope = -4 * math.pi * p.thickness_A[gap] / torch.cos(tilt) ** 2
        moment = torch.stack([(product * p.ky).sum((1, 2)), (product * p.kx).sum((1, 2))], -1)
        partial.tilts.append((chunk.start, slope * moment))

    def _entrance_gradient(self, batch: _Batch, chunk: slice, ramp: Tensor, entrance: Tensor, back: Tensor, partial: _Partial) -> None:
        """Probe spectrum: sum of ramp * back; offsets: dL/dd_y = 4 pi sum f_y Im(back * entrance)."""
        if batch.wants.offsets:
            product = (back * entrance).sum((1, 2))
            f = torch.fft.fftfreq(ramp.shape[-1], dtype=product.real.dtype, device=product.device)
            gradient = torch.stack([product.sum(2).imag @ f, product.sum(1).imag @ f], -1)
            partial.offsets.append((chunk.start, 4 * math.pi * gradient))
        if partial.spectrum is not None:
            partial.spectrum += back.mul_(ramp[:, None, None]).sum((0, 1))

    def _collect(self, batch: _Batch, partials: list[_Partial]) -> Gradients:
        """Add up the workers, in their order, and turn d/dz into torch's 2 d/dz*."""
        gradients = Gradients(loss=torch.stack([p.loss for p in partials]).sum())
        if batch.object_patches is not None:
            gradients.box = touched_box(batch.corners, self.model.size, self.model.object.transmission.shape)
            gradients.object = self._scatter(batch, gradients.box).conj_physical_().mul_(2)
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
        return gradients

    def _tilt_gradient(self, batch: _Batch, partials: list[_Partial]) -> Tensor:
        """(B, 2), or (1, 2) where one tilt serves all; several entries of one position are the gaps between slices."""
        total = torch.zeros(len(batch.corners), 2, dtype=batch.tilt.dtype, device=self.device)
        for start, part in sorted((entry for p in partials for entry in p.tilts), key=lambda entry: entry[0]):
            total[start : start + len(part)] += part
        return total if len(batch.tilt) > 1 else total.sum(0, keepdim=True)

    def _scatter(self, batch: _Batch, box: tuple[slice, slice]) -> Tensor:
        """Sum of the windows' gradients on the touched part of the canvas."""
        assert batch.object_patches is not None
        transmission = self.model.object.transmission
        shape = (*transmission.shape[:2], box[0].stop - box[0].start, box[1].stop - box[1].start)
        canvas = self._shared.take("canvas", shape, transmission).zero_()
        corners = batch.corners - torch.tensor([box[0].start, box[1].start], device=self.device)
        add_windows(canvas, batch.object_patches, corners, self._pool, self.workers)
        return canvas

    def _gather(self, space: Workspace, batch: _Batch, chunk: slice) -> Tensor:
        """Object windows of the chunk, (b, states, slices, y, x)."""
        transmission, size, corners = self.model.object.transmission, self.model.size, batch.corners[chunk]
        out = space.take("patches", (len(corners), *transmission.shape[:2], size, size), transmission)
        return cut_windows(transmission, corners, out)

    def _kernel(self, batch: _Batch, chunk: slice, gap: int) -> Tensor:
        """Kernel of one gap for the chunk, (1 or b, 1, 1, y, x)."""
        kernel = batch.kernels[gap]
        return (kernel if len(kernel) == 1 else kernel[chunk])[:, None, None]

    def _take(
        self, space: Workspace, name: str, batch: _Batch, chunk: slice, modes: bool = False, states: bool = False, real: bool = False
    ) -> Tensor:
        """A buffer for the chunk: (b, y, x), (b, modes, y, x) or (b, states, modes, y, x)."""
        n, size = min(chunk.stop, len(batch.corners)) - chunk.start, self.model.size
        count = batch.spectrum.shape[0]
        shape = (n, self.model.object.transmission.shape[0], count) if states else (n, count) if modes else (n,)
        return space.take(name, (*shape, size, size), self.model.detector.mask if real else batch.spectrum)


def _sum_modes(wave: Tensor, back: Tensor, out: Tensor) -> None:
    """out = sum over modes of wave * back; wave (b, 1 or states, modes, y, x), back (b, states, modes, y, x), out (b, states, y, x)."""
    torch.mul(wave[:, :, 0], back[:, :, 0], out=out)
    for mode in range(1, back.shape[2]):
        out.addcmul_(wave[:, :, mode], back[:, :, mode])


def _in_order(parts: Iterator[tuple[int, Tensor]]) -> Tensor:
    """Concatenate (start, rows) entries by their start."""
    return torch.cat([part for _, part in sorted(parts, key=lambda entry: entry[0])])


class _Function(torch.autograd.Function):
    """The likelihood as one differentiable operation; the gradients come with the value."""

    @staticmethod
    def forward(ctx: Any, engine: Likelihood, corners: Tensor, counts: Tensor, *leaves: Tensor) -> Tensor:
        _, spectrum, offsets, tilt, _, _ = leaves
        need = ctx.needs_input_grad[3:]
        wants = Wants(object=need[0], probe=need[1], offsets=need[2], propagation=need[3] or need[4], background=need[5])
        g = engine(corners, offsets, counts, spectrum, tilt, wants)
        whole = None
        if g.object is not None:
            whole = torch.zeros_like(leaves[0])
            whole[..., g.box[0], g.box[1]] = g.object
        ctx.gradients = (whole, g.spectrum, g.offsets, g.tilt, g.thickness, g.background)
        return g.loss.to(spectrum.real.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None or not n else g * outputs[0] for g, n in zip(ctx.gradients, ctx.needs_input_grad[3:], strict=True)]
        return (None, None, None, *scaled)


def likelihood(engine: Likelihood, index: Tensor, counts: Tensor) -> Tensor:
    """Summed loss of the patterns ``counts`` (B, ky, kx) at the positions ``index`` (B,), differentiable in every parameter of the model.

    Any torch optimiser can use it: object, probe (and through it the aberrations), positions, tilts, thicknesses, background.
    """
    model = engine.model
    corners, offsets = model.positions.split(index, model.size)
    leaves = (
        model.object.transmission,
        model.probe.spectrum(),
        offsets,
        model.propagator.tilt_of(index),
        model.propagator.thickness_A,
        model.detector.background,
    )
    return torch.as_tensor(_Function.apply(engine, corners, counts, *leaves))  # type: ignore[no-untyped-call]
