"""Steps of everything but object and probe: positions, tilt, thickness, aberrations; no rate to tune.

The gradient is divided by a curvature. That of the phase factor exp(-i C kappa(q)) itself, 2 sum kappa^2 |wave|^2, will not do: it counts
phases of the unscattered beam that no detector sees, and for a weak object the parameters crawl. What is measured is interference with
what the object scatters: positions take the curvature 2 sum |P|^2 |dO/dr|^2 (a shift of the whole exit wave leaves the pattern as it is, so
that moving the probe is moving the object; Odstrcil, Menzel & Guizar-Sicairos, Opt. Express 26 (2018) 3108), the few parameters
common to all patterns the Gauss-Newton matrix from finite differences of the model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptycho.adjoint import Gradients, Likelihood, Wants
from ptycho.model import Ptychography
from ptycho.optics import propagation_phase
from ptycho.solvers.refine_affine import AffineSteps
from ptycho.solvers.refine_detector import DetectorSide, switch_on
from ptycho.solvers.refine_positions import PositionSteps
from ptycho.solvers.refine_tilt import straighten
from ptycho.solvers.scalar import TURN_RAD, Scalar
from ptycho.solvers.state import State, set_state, state_of

if TYPE_CHECKING:
    from ptycho.solvers.base import Due

#: At most this share of a Gauss-Newton step is taken: the other parameters have not settled yet.
_RELAXATION = 0.5
#: A common parameter takes this many times the batch's share of the data of it, so that batches are averaged.
_PASS = 3.0
#: Aberrations of one order more join after so many passes.
_PASSES_PER_ORDER = 2
#: Finite differences shift the positions by this many pixels.
_SHIFT_PX = 0.1
#: The curvature of the common parameters comes from this many patterns of a batch, anew every so many batches.
_SAMPLE, _EVERY = 8, 16


class Refinement:
    """Steps on the geometric parameters that are due."""

    def __init__(self, model: Ptychography, natural_step: float) -> None:
        self.model, self.natural_step = model, natural_step
        self.detector_side = DetectorSide(model, natural_step)
        self._batches, self._passes, self._tilted = 0, 0.0, 0.0
        self._inverses: dict[str, Tensor] = {}
        self._positions: PositionSteps | None = None
        self._affine: AffineSteps | None = None

    def state_dict(self) -> State:
        """What is to be remembered."""
        parts = {"_positions": self._positions, "_affine": self._affine, "detector_side": self.detector_side}
        held = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        return {"own": state_of(self, "_batches", "_passes", "_tilted", "_inverses"), **held}

    def load_state_dict(self, state: State) -> None:
        """As it was."""
        set_state(self, state["own"], self.model.probe.wave.device)
        self.detector_side.load_state_dict(state["detector_side"])
        if state["_positions"] is not None:
            self._positions, self._affine = PositionSteps(self.model, self.natural_step), AffineSteps(self.model)
            self._positions.load_state_dict(state["_positions"])
            self._affine.load_state_dict(state["_affine"])

    @torch.no_grad()
    def gradients(self, engine: Likelihood, index: Tensor, counts: Tensor, due: Due) -> tuple[Gradients, Tensor, Tensor]:
        """Loss and all derivatives that are due for a batch; with them the windows' corners (B, 2) and the probe's spectrum."""
        model = self.model
        switch_on(model, due)
        propagates = model.object.transmission.shape[1] > 1
        wants = Wants(
            object=due.object,
            probe=due.probe or due.aberrations or due.source,
            offsets=due.positions or due.affine,
            propagation=propagates and (due.tilt or due.thickness or due.total_thickness),
            background=due.background,
            blur=due.blur,
            descan=due.descan,
            opr=due.opr,
        )
        spectrum = model.probe.spectrum()
        found, corners = engine.of(index, counts, spectrum, wants)
        return found, corners, spectrum

    @torch.no_grad()
    def step(self, index: Tensor, found: Gradients, spectrum: Tensor, due: Due) -> None:
        """Move what is due along its gradient."""
        if not due.refines:
            return
        if self._batches % _EVERY == 0:
            self._inverses.clear()
        self._batches += 1
        if found.offsets is not None:
            self._scan(index, found.offsets, due)
        power = (spectrum.real.square() + spectrum.imag.square()).sum(0)
        power /= power.sum()
        common: list[Scalar] = []
        if found.tilt is not None and due.tilt:
            self._tilted += len(index) / len(self.model.positions.value_px)
            if due.object and self._tilted >= 1:
                self._tilted = 0.0
                straighten(self.model)
            tilts = self._tilt(found.tilt, power)
            if len(self.model.propagator.tilt_rad) == 1:
                common += tilts
            else:
                self._each("tilt", index, self.model.propagator.tilt_rad.data, tilts)
        if found.thickness is not None and (due.thickness or due.total_thickness):
            common += self._thickness(found.thickness, power, each=due.thickness)
        if found.spectrum is not None and due.aberrations and len(self.model.probe.chi):
            common += self._aberrations(index, found.spectrum, spectrum, power)
        common += self.detector_side.scalars(found, due)
        if common:
            self._common(index, common)
        if due.descan:
            self._each("descan", index, self.model.detector.descan_px.data, self.detector_side.descan(found))
        self.detector_side.step(index, found, due)

    def _scan(self, index: Tensor, gradient: Tensor, due: Due) -> None:
        """Single positions, and the affine map of all."""
        if self._positions is None:
            self._positions, self._affine = PositionSteps(self.model, self.natural_step), AffineSteps(self.model)
        curvature = self._object_slope(index)
        # Where there is next to nothing to hold on to, noise decides: steps there are shorter.
        curvature += 0.1 * curvature.mean() + 1e-30
        curvature *= self._noise_share(index, curvature)
        if due.positions:
            self._positions.step(index, gradient, curvature)
        if due.affine and self._affine is not None:
            self._positions.follow(self._affine.centre, self._affine.step(index, gradient, curvature))

    def _noise_share(self, index: Tensor, curvature: Tensor) -> Tensor:
        """What the patterns show of the object's slope: their Gauss-Newton curvature over 2 sum |P|^2 |dO/dr|^2, (2,).

        Half of it for a clean object; far less for one with noise, which makes slopes that no pattern has seen.
        """
        held = self._inverses.get("positions")
        if held is None:
            positions = self.model.positions.value_px.data
            axes = [Scalar(positions[:, i], positions, torch.tensor(_SHIFT_PX, device=positions.device)) for i in (0, 1)]
            matrix = self._gauss_newton(index, axes).diagonal() / _SHIFT_PX**2
            held = self._inverses["positions"] = matrix.clamp_min(1e-30) / curvature.mean(0)
        return held

    def _object_slope(self, index: Tensor) -> Tensor:
        """2 sum |P|^2 |dO/dy|^2 and likewise for x, (B, 2) per pixel^2, with the product of all slices for O."""
        model = self.model
        corners, _ = model.positions.split(index, model.size)
        total = model.object.patches(corners, model.size).prod(2)
        light = model.probe.wave.abs().square().sum(0)
        slopes = []
        for axis in (-2, -1):
            difference = torch.roll(total, -1, axis) - total
            squared = difference.real.square() + difference.imag.square()
            slopes.append(2 * torch.einsum("o,boyx,yx->b", model.object.occupancy, squared, light))
        return torch.stack(slopes, -1)

    def _tilt(self, gradient: Tensor, power: Tensor) -> list[Scalar]:
        p = self.model.propagator
        moments = ((power * p.ky**2).sum(), (power * p.kx**2).sum())
        depth = p.thickness_A.data[:-1].sum()
        return [Scalar(p.tilt_rad.data[:, i], gradient[:, i], TURN_RAD / (2 * math.pi * depth * moments[i].sqrt())) for i in (0, 1)]

    def _thickness(self, gradient: Tensor, power: Tensor, each: bool) -> list[Scalar]:
        """Every distance between slices, or one change for all of them."""
        p = self.model.propagator
        kappa = propagation_phase(p.ky, p.kx, p.wavelength_A, p.tilt_rad.mean(0, keepdim=True))[0]
        change = TURN_RAD / (kappa**2 * power).sum().sqrt()
        if not each:
            return [Scalar(p.thickness_A.data[:-1], gradient[:-1], change / (len(gradient) - 1))]
        return [Scalar(p.thickness_A.data[s : s + 1], gradient[s : s + 1], change) for s in range(len(gradient) - 1)]

    def _aberrations(self, index: Tensor, gradient: Tensor, spectrum: Tensor, power: Tensor) -> list[Scalar]:
        """dL/dC = sum chi Im(conj(Y) P), with Y the gradient with respect to the spectrum P (torch's convention)."""
        probe = self.model.probe
        # Wrong low orders look like wrong high ones to an object that is not there yet: one order more every few passes.
        self._passes += len(index) / len(self.model.positions.value_px)
        orders = [term.n for term in probe.terms for _ in range(2 if term.m else 1)]
        open_ = [n <= 1 + self._passes / _PASSES_PER_ORDER for n in orders]
        slope = torch.einsum("cyx,yx->c", probe.chi, (gradient.conj() * spectrum).imag.sum(0))
        changes = TURN_RAD / torch.einsum("cyx,yx->c", probe.chi.square(), power).sqrt()
        return [Scalar(probe.correction_A.data[c : c + 1], slope[c : c + 1], changes[c]) for c in range(len(changes)) if open_[c]]

    def _common(self, index: Tensor, scalars: list[Scalar]) -> None:
        """One damped Gauss-Newton step of all parameters that all patterns share."""
        share = min(_RELAXATION, _PASS * len(index) / len(self.model.positions.value_px))
        slope = torch.stack([s.gradient.sum() * s.change for s in scalars]) / len(index)
        turns = (share * (self._inverse("common", index, scalars) @ slope)).clamp(-4, 4)
        for scalar, turn in zip(scalars, turns, strict=True):
            scalar.value -= turn * scalar.change
        self.model.propagator.thickness_A.data.clamp_(min=0.1)

    def _each(self, name: str, index: Tensor, values: Tensor, scalars: list[Scalar]) -> None:
        """Parameters that each position has for itself, ``values`` (N, n), with the curvature of all."""
        changes = torch.stack([s.change for s in scalars])
        slope = torch.stack([s.gradient for s in scalars], -1) * changes
        turns = (_RELAXATION * slope @ self._inverse(name, index, scalars)).clamp(-4, 4)
        values[index] -= turns * changes

    def _inverse(self, name: str, index: Tensor, scalars: list[Scalar]) -> Tensor:
        """Inverse of the damped Gauss-Newton matrix of one pattern, (n, n), per ``change`` of each parameter.

        The damping holds back combinations that the patterns hardly show.
        """
        held = self._inverses.get(name)
        if held is None or len(held) != len(scalars):
            matrix = self._gauss_newton(index, scalars)
            damping = 1e-2 * matrix.trace() / len(scalars) + 1e-30
            held = torch.linalg.inv(matrix + damping * torch.eye(len(scalars), dtype=matrix.dtype, device=matrix.device))
            self._inverses[name] = held
        return held

    def _gauss_newton(self, index: Tensor, scalars: list[Scalar]) -> Tensor:
        """Gauss-Newton matrix of one pattern, the mean of a few, (n, n), per ``change`` of each parameter.

        The second derivative of the losses at I = D is 1 / (2 I), of Poisson's 1 / I: 1 / (2 I) over the natural step.
        """
        model, sample = self.model, index[:: max(1, len(index) // _SAMPLE)]
        image = model(sample)
        weight = model.detector.mask * 0.5 / self.natural_step / (image + 1e-3 * image.mean())
        changes = []
        for scalar in scalars:
            before = scalar.value.clone()
            scalar.value += scalar.change
            changes.append((model(sample) - image).flatten())
            scalar.value.copy_(before)
        jacobian = torch.stack(changes)
        return (jacobian * weight.flatten()) @ jacobian.mT / len(sample)
