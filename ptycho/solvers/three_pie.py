"""3PIE: back through the specimen slice by slice, each update on what the ones behind it have left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.optics import shift_ramps
from ptycho.windows import add_windows, touched_box


@dataclass(frozen=True)
class Rates:
    """Step lengths and dampings of :class:`EPIE`; a step of 0 leaves object or probe as it is."""

    object_step: float
    probe_step: float
    object_damping: float
    probe_damping: float


@torch.no_grad()
def three_pie(engine: Likelihood, index: Tensor, counts: Tensor, rates: Rates) -> Tensor:
    """Update object and probe by the patterns ``counts`` (B, ky, kx) at the positions ``index`` (B,); their summed loss before, float64.

    Maiden, Humphry & Rodenburg, JOSA A 29 (2012) 1606, eq. 7-12, from the last slice to the first, with psi the wave before slice s and
    d the change that the wave behind it asks for (at the detector: minus the slope of the loss times the wave):

        O_s <- O_s + a sum conj(psi) d / [(1 - r) sum |psi|^2 + r max],    d <- P^-1 { conj(O_s) d / [(1 - q) |O_s|^2 + q max |O_s|^2] }

    with O_s as it was, the sums over modes and the windows of the batch. What is left at the entrance moves the probe.
    """
    model = engine.model
    corners, offsets = model.positions.split(index, model.size)
    ramp_y, ramp_x = shift_ramps(offsets, model.size)
    ramp, kernels = (ramp_y * ramp_x)[:, None], model.propagator.kernels(index)
    patches = model.object.patches(corners, model.size)
    waves = [torch.fft.ifft2(model.probe.spectra(index) * ramp, norm="ortho")[:, None]]
    for s, kernel in enumerate(kernels):
        waves.append(_filtered(waves[s] * patches[:, :, s, None], kernel[:, None, None]))
    descan = model.detector.descan_ramp(index)[:, None, None] if model.detector.descans else None
    if descan is not None:
        # The descan's ramp on the exit wave is the same before the last slice.
        waves[-1] = waves[-1] * descan
    change, loss = _demanded(engine, torch.fft.fft2(waves[-1] * patches[:, :, -1, None], norm="ortho"), counts)
    change = torch.fft.ifft2(change, norm="ortho")
    for s in range(len(waves) - 1, -1, -1):
        before = patches[:, :, s, None]
        if rates.object_step > 0:
            _step_slice(engine, s, corners, waves[s], change, rates)
        power = before.real.square() + before.imag.square()
        if descan is not None and s == len(waves) - 1:
            change = change * descan.conj()
        change = change * before.conj() / ((1 - rates.probe_damping) * power + rates.probe_damping * power.amax())
        if s > 0:
            change = _filtered(change, kernels[s - 1][:, None, None].conj())
    if rates.probe_step > 0:
        spectrum = (torch.fft.fft2(change.sum(1), norm="ortho") * ramp.conj()).sum(0)
        model.probe.wave.data += model.probe.pull_back(spectrum) * (rates.probe_step / len(index))
    return loss


def _filtered(wave: Tensor, kernel: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(wave, norm="ortho") * kernel, norm="ortho")


def _demanded(engine: Likelihood, exit_wave: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """What the patterns ask the exit wave (b, states, modes, y, x) in reciprocal space to change by, and their loss.

    The amplitude loss asks for the measured amplitude with the phase as it is.
    """
    detector, occupancy = engine.model.detector, engine.model.object.occupancy
    image = detector(torch.einsum("o,bomyx->byx", occupancy, exit_wave.real.square() + exit_wave.imag.square()))
    weight = detector.mask * torch.isfinite(counts)
    counts = torch.nan_to_num(counts, nan=0.0)
    slope = detector.adjoint(engine.loss.slope(image, counts) * weight) * -engine.loss.natural_step
    loss = (engine.loss.value(image, counts) * weight).sum(dtype=torch.float64)
    return exit_wave * slope[:, None, None] * occupancy[:, None, None, None], loss


def _step_slice(engine: Likelihood, s: int, corners: Tensor, wave: Tensor, change: Tensor, rates: Rates) -> None:
    """Update slice ``s`` by the waves before and the changes behind it, (b, states, modes, y, x)."""
    transmission = engine.model.object.transmission.data
    wanted = (wave.conj() * change).sum(2)
    light = (wave.real.square() + wave.imag.square()).sum(2).expand(wanted.shape)
    rows, columns = touched_box(corners, engine.model.size, transmission.shape)
    part = transmission[:, s, rows, columns]
    sums = part.new_zeros(len(part), 2, *part.shape[1:])
    add_windows(sums, torch.stack([wanted, light.to(wanted.dtype)], 2), corners - corners.new_tensor([rows.start, columns.start]))
    total = sums[:, 1].real
    damped = (1 - rates.object_damping) * total + rates.object_damping * total.amax()
    part += sums[:, 0] * (rates.object_step / damped.clamp_min(1e-12 * total.amax()))
