"""The ptychographic iterative engines: ePIE, rPIE and mPIE as numbers of one record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.model import Ptychography
from ptycho.solvers.base import Due, Settings, Step
from ptycho.solvers.refine import Refinement
from ptycho.solvers.state import State, placed
from ptycho.solvers.three_pie import Rates, three_pie


@dataclass(frozen=True, kw_only=True)
class EPIE(Settings):
    """O <- O - a G_O / [(1 - r) |P|^2 + r max|P|^2] and the probe likewise, batch by batch.

    G is the gradient of the loss, so that with ``loss`` amplitude, ``batch`` 1, one slice and one mode this is the textbook: r = 1 is ePIE (Maiden
    & Rodenburg, Ultramicroscopy 109 (2009) 1256), r < 1 rPIE, ``momentum`` > 0 mPIE, which adds the momentum every ``momentum_every``
    batches (Maiden, Johnson & Li, Optica 4 (2017) 736). The step a runs from ``object_step[0]`` to ``object_step[1]`` over the epochs:
    a constant one keeps the noise of the last patterns. All slices move at once by a / slices; the batch's overlapping probes share the
    denominator. Modes and states are summed (Thibault & Menzel, Nature 494 (2013) 68). ``slice_by_slice`` is 3PIE instead (Maiden,
    Humphry & Rodenburg, JOSA A 29 (2012) 1606): each slice takes the whole step a, from the last to the first, and the wave before it
    is corrected before the next; with one slice it is the same.
    """

    kind: Literal["epie"] = "epie"
    batch: int = 8
    object_step: tuple[float, float] = (1.0, 0.05)
    probe_step: float = 0.3
    object_damping: float = 1.0
    probe_damping: float = 1.0
    momentum: float = 0.0
    momentum_every: int = 50
    slice_by_slice: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("object_damping", "probe_damping"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: 0 < damping <= 1 is needed (1 is ePIE, less is rPIE)")
        if min(self.object_step) <= 0 or self.probe_step < 0:
            raise RecipeError(f"object_step = {list(self.object_step)}, probe_step = {self.probe_step}: positive steps are needed")
        if not 0 <= self.momentum < 1 or self.momentum_every < 1:
            raise RecipeError(f"momentum = {self.momentum}, momentum_every = {self.momentum_every}: 0 <= momentum < 1 and at least 1 are needed")

    def check_shared(self, processes: int) -> None:
        """3PIE updates slice after slice, from waves that one process has."""
        super().check_shared(processes)
        if self.slice_by_slice:
            raise RecipeError(f"slice_by_slice = true: not by {processes} processes together; use one process, or slice_by_slice = false")

    def step(self, engine: Likelihood, split: Split, factor: float) -> Step:
        """The engine without a memory yet."""
        return PIE(self, engine, factor)


class PIE(Step):
    """State of the engine: the momentum's memory, if there is one."""

    def __init__(self, settings: EPIE, engine: Likelihood, factor: float) -> None:
        self.settings, self.engine, self.model, self.factor = settings, engine, engine.model, factor
        self.refinement = Refinement(self.model, engine.loss.natural_step * factor)
        leaves = (self.model.object.transmission.data, self.model.probe.wave.data)
        self.momenta = [Momentum(leaf, settings.momentum) for leaf in leaves] if settings.momentum else []
        self.batches = 0

    def state_dict(self) -> State:
        """The step length of the epoch, the momenta."""
        momenta = [(momentum.velocity, momentum.before) for momentum in self.momenta]
        return {"step": self.step, "batches": self.batches, "momenta": momenta, "refinement": self.refinement.state_dict()}

    def load_state_dict(self, state: State, due: Due) -> None:
        """As it was."""
        self.due, self.step, self.batches = due, state["step"], state["batches"]
        for momentum, kept in zip(self.momenta, state["momenta"], strict=True):
            momentum.velocity, momentum.before = placed(kept, self.engine.device)
        self.refinement.load_state_dict(state["refinement"])

    def start_epoch(self, epoch: int, due: Due) -> None:
        """The step length of the epoch."""
        self.due = due
        first, last = self.settings.object_step
        self.step = first * (last / first) ** ((epoch - 1) / max(1, self.settings.epochs - 1))

    @torch.no_grad()
    def batch(self, index: Tensor, counts: Tensor) -> Tensor:
        """Update object and probe from the same exit waves, as the textbook does."""
        s, model, due = self.settings, self.model, self.due
        if s.slice_by_slice:
            return self._slice_by_slice(index, counts)
        found, corners, spectrum = self.refinement.gradients(self.engine, index, counts, due)
        natural = self.engine.loss.natural_step * self.factor
        transmission = model.object.transmission.data
        # Both denominators before either has taken its step.
        share = self._object_power(corners, found.box) if due.probe else None
        if found.object is not None:
            light = batch_light(model, corners, found.box)
            light = (1 - s.object_damping) * light + s.object_damping * light.max()
            step = 0.5 * natural * self.step / transmission.shape[1]
            transmission[..., found.box[0], found.box[1]].sub_(found.object.mul_(step / light.clamp_min(1e-12 * light.max())))
        if share is not None and found.spectrum is not None:
            model.probe.wave.data -= model.probe.pull_back(found.spectrum) * (0.5 * natural * s.probe_step / (len(index) * share))
        self.refinement.step(index, found, spectrum, due)
        self._add_momentum()
        return found.loss

    def _slice_by_slice(self, index: Tensor, counts: Tensor) -> Tensor:
        """3PIE; what else is due moves by gradients of its own."""
        s, due = self.settings, self.due
        if due.refines:
            others = replace(due, object=False, probe=False)
            found, _, spectrum = self.refinement.gradients(self.engine, index, counts, others)
            self.refinement.step(index, found, spectrum, others)
        steps = (self.factor * self.step * due.object, self.factor * s.probe_step * due.probe)
        loss = three_pie(self.engine, index, counts, Rates(*steps, s.object_damping, s.probe_damping))
        self._add_momentum()
        return loss

    def _add_momentum(self) -> None:
        self.batches += 1
        if self.batches % self.settings.momentum_every == 0:
            for momentum in self.momenta:
                momentum.apply()

    def _object_power(self, corners: Tensor, box: tuple[slice, slice]) -> Tensor:
        """(1 - r) |O|^2 + r max|O|^2, of the windows of the batch on average; (y, x), or a number for r = 1."""
        transmission, r = self.model.object.transmission.data, self.settings.probe_damping
        most = r * transmission[..., box[0], box[1]].abs().square().amax()
        if r == 1:
            return most
        weight = self.model.object.occupancy[:, None, None]
        mean = sum((weight * transmission[:, 0, y : y + self.model.size, x : x + self.model.size].abs().square()).sum(0) for y, x in corners.tolist())
        return most + mean * ((1 - r) / len(corners))


class Momentum:
    """v <- eta v + (x - x before), x <- x + eta v (mPIE; Maiden, Johnson & Li 2017, eq. 19-20)."""

    def __init__(self, leaf: Tensor, friction: float) -> None:
        self.leaf, self.friction = leaf, friction
        self.velocity, self.before = torch.zeros_like(leaf), leaf.clone()

    def apply(self) -> None:
        """Add the momentum of all updates since the last call."""
        self.velocity.mul_(self.friction).add_(self.leaf - self.before)
        self.leaf.add_(self.velocity, alpha=self.friction)
        self.before.copy_(self.leaf)


def batch_light(model: Ptychography, corners: Tensor, box: tuple[slice, slice]) -> Tensor:
    """Sum of |P|^2 over the modes and the windows of a batch on its box, (h, w)."""
    size, intensity = model.size, model.probe.wave.detach().abs().square().sum(0)
    light = torch.zeros(box[0].stop - box[0].start, box[1].stop - box[1].start, dtype=intensity.dtype, device=intensity.device)
    for y, x in corners.tolist():
        light[y - box[0].start :, x - box[1].start :][:size, :size] += intensity
    return light
