"""Gradient solver: preconditioned Nesterov momentum in natural steps by default, any torch optimiser by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.differentiable import likelihood
from ptycho.elementwise import Momentum
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.solvers.base import Due, Settings, Step
from ptycho.solvers.refine import Refinement
from ptycho.solvers.refine_detector import keep_bounds, switch_on
from ptycho.solvers.state import State, placed, set_state, state_of


@dataclass(frozen=True, kw_only=True)
class Gradient(Settings):
    """Minimises the loss by its gradient.

    ``optimizer`` ``nesterov`` needs no learning rate: the gradient is divided by the illumination, so that a step of one solves the
    local problem of the batch (the majoriser of the amplitude loss), and the step is chosen such that ``memory`` (begin, end) passes
    over the data are averaged: few at first, for speed, and more from ``anneal_epochs`` on (0: from the last epoch), against noise; earlier
    when the held-out patterns have come to rest. Any optimiser of ``torch.optim`` can
    be named instead (``Adam``, ``LBFGS``, ...), with ``lr`` (object, in rad), ``lr_probe`` (relative to the probe's rms amplitude) and
    ``lr_positions`` (pixels).
    """

    kind: Literal["gradient"] = "gradient"
    optimizer: str = "nesterov"
    momentum: float = 0.9
    memory: tuple[float, float] = (0.1, 1.0)
    anneal_epochs: int = 0
    probe_step: float = 0.3
    illumination_floor: float = 0.05
    lr: float = 5e-3
    lr_probe: float = 0.02
    lr_positions: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"momentum = {self.momentum}: 0 <= momentum < 1 is needed")
        if min(self.memory) <= 0:
            raise RecipeError(f"memory = {list(self.memory)}: two positive numbers of passes are needed, as [0.1, 1.0]")
        if self.anneal_epochs < 0:
            raise RecipeError(f"anneal_epochs = {self.anneal_epochs}: a number of epochs, or 0 for all, is needed")
        if not self.illumination_floor > 0:
            raise RecipeError(f"illumination_floor = {self.illumination_floor}: a positive share of the brightest pixel's is needed")
        for name in ("probe_step", "lr", "lr_probe", "lr_positions"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} = {getattr(self, name)}: it cannot be negative")
        if self.optimizer != "nesterov" and not _is_optimizer(self.optimizer):
            raise RecipeError(f'optimizer = "{self.optimizer}": use "nesterov" or a name from torch.optim, such as "Adam" or "LBFGS"')

    def check_shared(self, processes: int) -> None:
        """A line search that differs in the last bit would take another number of steps in another process."""
        super().check_shared(processes)
        if self.optimizer == "LBFGS":
            raise RecipeError(f'optimizer = "LBFGS": not by {processes} processes together; use one process, or "nesterov"')

    def step(self, engine: Likelihood, split: Split, factor: float) -> Step:
        """Velocities at rest, or a fresh optimiser."""
        return Nesterov(self, engine, split, factor) if self.optimizer == "nesterov" else TorchOptimizer(self, engine, factor)


class Nesterov(Step):
    """State of the preconditioned momentum: velocities of object and probe."""

    def __init__(self, settings: Gradient, engine: Likelihood, split: Split, factor: float) -> None:
        self.settings, self.engine, self.model, self.factor = settings, engine, engine.model, factor
        self.train = torch.from_numpy(split.train).to(engine.device)
        self.velocity = torch.zeros_like(self.model.object.transmission.data)
        self.probe_velocity = torch.zeros_like(self.model.probe.wave.data)
        self.refinement = Refinement(self.model, engine.loss.natural_step * factor)
        constraints = settings.constraints_for(engine.loss, self.model)
        self.pure_phase = constraints.pure_phase is not None
        self.mean_phase = constraints.positive_phase.mean_phase_rad if constraints.positive_phase is not None else 0.0
        self.annealed = False
        # At the same place in all epochs, for what is recorded.
        self.scale = torch.zeros_like(self.velocity[0, 0].real)
        self.pace = torch.zeros((), dtype=self.scale.dtype, device=engine.device)

    @property
    def recordable(self) -> bool:
        """Object and probe take the same steps in every batch."""
        return not self.due.refines

    def state_dict(self) -> State:
        """Velocities, and what holds for the epoch."""
        own = state_of(self, "velocity", "probe_velocity", "annealed", "memory", "scale", "pace")
        return {"own": own, "refinement": self.refinement.state_dict()}

    def load_state_dict(self, state: State, due: Due) -> None:
        """As it was."""
        self.due = due
        set_state(self, state["own"], self.engine.device)
        self.refinement.load_state_dict(state["refinement"])

    def anneal(self) -> bool:
        """What is at rest with short steps averages as much as it ever will."""
        longer = self.memory < self.settings.memory[1] * 0.999
        self.annealed = True
        return longer

    def start_epoch(self, epoch: int, due: Due) -> None:
        """The illumination changes slowly: one map, and one step length, serve an epoch."""
        s, self.due = self.settings, due
        progress = 1.0 if self.annealed else min(1.0, (epoch - 1) / max(1, (s.anneal_epochs or s.epochs) - 1))
        self.memory = s.memory[0] ** (1 - progress) * s.memory[1] ** progress
        light = self.model.illumination(self.train)
        # Patterns per pass over the patterns in a batch, times the batch's share of the light, is one pass: the batch size cancels.
        slices = self.model.object.transmission.shape[1]
        self.scale.copy_(self.engine.loss.natural_step / (light + s.illumination_floor * light.max()) / slices)
        # The natural step of a batch is 1 / (its share of the light); a step that averages `memory` passes is that times share / memory.
        # Slices that move together take S steps at once, those that move against each other one: the latter are to keep up.
        self.pace.fill_(slices / self.memory)

    @torch.no_grad()
    def batch(self, index: Tensor, counts: Tensor) -> Tensor:
        """One step on the object, the probe, and whatever else is due."""
        s, model, due = self.settings, self.model, self.due
        share = len(index) / len(self.train)
        length = (self.pace * share).clamp_(max=1.0).mul_((1 - s.momentum) * self.factor)
        found, _, spectrum = self.refinement.gradients(self.engine, index, counts, due)
        step = self.engine.elementwise.momentum_step
        if found.object is not None:
            prior = 1 / self.mean_phase if self.mean_phase > 0 else 0.0
            leaf, velocity = (each[..., found.box[0], found.box[1]] for each in (model.object.transmission.data, self.velocity))
            numbers = Momentum(length, 0.5 / share, s.momentum, prior, self.pure_phase, found.bounds)
            step(leaf, velocity, found.object, self.scale[found.box], numbers)
        if due.probe and found.spectrum is not None:
            gradient = model.probe.pull_back(found.spectrum)
            natural = 0.5 * self.engine.loss.natural_step / len(index)
            step(model.probe.wave.data, self.probe_velocity, gradient, 1.0, Momentum(length * s.probe_step, natural, s.momentum))
        self.refinement.step(index, found, spectrum, due)
        return found.loss


class TorchOptimizer(Step):
    """Any optimiser of torch.optim on the differentiable likelihood; L-BFGS calls the closure as often as it likes."""

    def __init__(self, settings: Gradient, engine: Likelihood, factor: float) -> None:
        self.settings, self.engine, self.model, self.factor = settings, engine, engine.model, factor
        self.optimizer: torch.optim.Optimizer | None = None

    def state_dict(self) -> State:
        """The optimiser's own."""
        return {"optimizer": None if self.optimizer is None else self.optimizer.state_dict()}

    def load_state_dict(self, state: State, due: Due) -> None:
        """A new optimiser for the same parameters, with what the old one knew."""
        self.start_epoch(0, due)
        if self.optimizer is not None:
            self.optimizer.load_state_dict(placed(state["optimizer"], self.engine.device))

    def start_epoch(self, epoch: int, due: Due) -> None:
        """Parameters that become due join; the optimiser is made anew only then."""
        model, before = self.model, getattr(self, "due", None)
        self.due = due
        if due == before:
            return
        switch_on(model, due)
        rms = float(model.probe.wave.detach().abs().square().mean().sqrt())
        rates: list[tuple[torch.nn.Parameter, bool, float]] = [
            (model.object.transmission, due.object, self.settings.lr),
            (model.probe.wave, due.probe, self.settings.lr_probe * rms),
            (model.positions.value_px, due.positions, self.settings.lr_positions),
            (model.propagator.tilt_rad, due.tilt, 1e-4),
            (model.propagator.thickness_A, due.thickness, 0.05),
            (model.probe.correction_A, due.aberrations and len(model.probe.correction_A) > 0, 1.0),
            (model.probe.source_A2, due.source, 5e-3),
            (model.probe.variations, due.opr, self.settings.lr_probe * rms),
            (model.probe.coefficients, due.opr, 0.02),
            (model.detector.descan_px, due.descan, 0.02),
            (model.detector.background, due.background, 1e-3 * float(model.initial_power) / model.detector.mask.numel()),
            (model.detector.blur_px2, due.blur, 0.01),
        ]
        for parameter, learned, _ in rates:
            parameter.requires_grad_(learned)
        groups: list[dict[str, Any]] = [{"params": [p], "lr": lr * self.factor} for p, learned, lr in rates if learned]
        if not groups:
            self.optimizer = None
            return
        kind = getattr(torch.optim, self.settings.optimizer)
        if self.settings.optimizer == "LBFGS":
            # It takes one group and one step length; the line search makes up for the different scales.
            self.optimizer = kind([p for g in groups for p in g["params"]], line_search_fn="strong_wolfe")
        else:
            self.optimizer = kind(groups)

    def batch(self, index: Tensor, counts: Tensor) -> Tensor:
        """One optimiser step; the loss is scaled to one electron per pixel so that every optimiser's epsilon makes sense."""
        self.engine.measures = True  # line searches need the loss of every batch
        if self.optimizer is None:
            return likelihood(self.engine, index, counts).detach().double()
        losses: list[Tensor] = []
        scale = 1 / counts.numel()

        def closure() -> Tensor:
            assert self.optimizer is not None
            self.optimizer.zero_grad()
            value = likelihood(self.engine, index, counts)
            losses.append(value.detach())
            (value * scale).backward()
            return value.detach() * scale

        # torch.optim's type for a closure returns float; tensors are what it is given everywhere.
        self.optimizer.step(closure)  # type: ignore[arg-type]
        keep_bounds(self.model)
        return losses[0].double()


def _is_optimizer(name: str) -> bool:
    """Whether torch has it, and it takes complex numbers of any shape, as the object's are."""
    found = getattr(torch.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        return False
    number = torch.zeros(1, 1, 1, 1, dtype=torch.complex64, requires_grad=True)
    number.grad = torch.zeros_like(number)
    try:
        kind: Any = found
        kind([number]).step(lambda: torch.zeros(()))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False
    return True
