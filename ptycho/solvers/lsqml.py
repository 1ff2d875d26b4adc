"""LSQ-ML: along the gradient of object and probe, the steps that fit a batch best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ptycho.adjoint import Gradients, Likelihood
from ptycho.curvature import Curvature, Direction, Quadratic
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.solvers.base import Due, Settings, Step
from ptycho.solvers.refine import Refinement
from ptycho.solvers.state import State, set_state, state_of
from ptycho.solvers.tangent import Tangent

#: So much of its diagonal is added to the least-squares matrix (Odstrcil et al. 2018, eq. 24).
_DAMPING = 0.1
#: A measurement of the step lengths replaces this share of what was known of them.
_NEWS = 0.3
#: Each time that the run is at rest the memory grows by this part of its way.
_AHEAD = 0.25


@dataclass(frozen=True, kw_only=True)
class LSQML(Settings):
    """Least-squares maximum likelihood (Odstrcil, Menzel & Guizar-Sicairos, Opt. Express 26 (2018) 3108), in random batches ("MLs").

    The object moves along its gradient over sqrt(w^2 + (f max w)^2), w the illumination and f ``illumination_floor``, the probe along
    the mean of its gradient, and both by the lengths that together minimise the loss of the batch. Of these lengths such a share is taken
    (the paper's beta), all of it at most, that ``memory`` (begin, end) passes over the data are averaged, as in :class:`Gradient`: full
    steps would keep the noise of the last batches. The probe takes ``probe_step`` of that. ``momentum`` mu adds mu times the object's
    last step. Slices share one length (Tsai et al., Opt. Express 24 (2016) 29089; Chen et al., Science 372 (2021) 826), modes and
    states are summed.

    The paper solves a system of two unknowns for each pattern, with the residual of its exit wave, and averages. Here it is one system
    for the batch, with the Gauss-Newton curvature of the loss itself (:mod:`ptycho.curvature`): it knows how the patterns of a batch
    overlap, and how slices and detector act, and its steps are up to twice as long, since it does not hold the phases at the
    detector. It is measured on ``measured_patterns`` patterns of every ``measured_every``-th batch and averaged over time.
    """

    kind: Literal["lsqml"] = "lsqml"
    memory: tuple[float, float] = (0.1, 1.0)
    probe_step: float = 0.3
    momentum: float = 0.0
    illumination_floor: float = 0.1
    measured_every: int = 8
    measured_patterns: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(*self.memory, self.probe_step) <= 0:
            raise RecipeError(f"memory = {list(self.memory)}, probe_step = {self.probe_step}: positive numbers are needed, as [0.1, 1.0] and 0.3")
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"momentum = {self.momentum}: 0 <= momentum < 1 is needed")
        if not self.illumination_floor > 0:
            raise RecipeError(f"illumination_floor = {self.illumination_floor}: a positive share of the brightest pixel's is needed")
        if min(self.measured_every, self.measured_patterns) < 1:
            raise RecipeError(f"measured_every = {self.measured_every}, measured_patterns = {self.measured_patterns}: at least 1 is needed")

    def step(self, engine: Likelihood, split: Split, factor: float) -> Step:
        """Nothing measured yet."""
        return LeastSquares(self, engine, split, factor)


class LeastSquares(Step):
    """State of the solver: the step lengths and the velocity of the momentum, if there is one."""

    def __init__(self, settings: LSQML, engine: Likelihood, split: Split, factor: float) -> None:
        self.settings, self.engine, self.model, self.factor = settings, engine, engine.model, factor
        self.train = torch.from_numpy(split.train).to(engine.device)
        self.refinement = Refinement(self.model, engine.loss.natural_step * factor)
        self.tangent = Tangent.of(settings.constraints_for(engine.loss, engine.model))
        self.curvature = Curvature(engine, exact=False)
        self.velocity = torch.zeros_like(self.model.object.transmission.data) if settings.momentum else None
        #: Of the object, the probe, or both, as they are due.
        self.lengths = torch.empty(0)
        self.batches = 0
        #: How far the memory has grown, from 0 to 1, and by how much that is ahead of the epochs.
        self.progress = self.ahead = 0.0

    def state_dict(self) -> State:
        """Lengths, velocity, and what holds for the epoch."""
        own = state_of(self, "velocity", "lengths", "batches", "progress", "ahead", "memory", "scale")
        return {"own": own, "refinement": self.refinement.state_dict()}

    def load_state_dict(self, state: State, due: Due) -> None:
        """As it was."""
        self.due = due
        set_state(self, state["own"], self.engine.device)
        self.refinement.load_state_dict(state["refinement"])

    def start_epoch(self, epoch: int, due: Due) -> None:
        """How much is averaged, and the illumination, which changes slowly."""
        s, self.due = self.settings, due
        self.progress = min(1.0, (epoch - 1) / max(1, s.epochs - 1) + self.ahead)
        self.memory = s.memory[0] ** (1 - self.progress) * s.memory[1] ** self.progress
        light = self.model.illumination(self.train)
        self.scale = torch.rsqrt(light.square() + (s.illumination_floor * light.max()).square())

    def anneal(self) -> bool:
        """A quarter of the way to the longest memory."""
        self.ahead += _AHEAD
        return self.progress < 1

    @torch.no_grad()
    def batch(self, index: Tensor, counts: Tensor) -> Tensor:
        """Directions, now and then their lengths, one step."""
        found, _, spectrum = self.refinement.gradients(self.engine, index, counts, self.due)
        directions, slopes = self._directions(found, len(index))
        if directions:
            if len(self.lengths) != len(directions) or self.batches % self.settings.measured_every == 0:
                self._measure(index, counts, directions, torch.stack(slopes), found.box)
            # Slices that move together take the least-squares step, those that move against each other may take one each.
            average = len(index) / len(self.train) * self.model.object.transmission.shape[1] / self.memory
            self._move(directions, found.box, self.factor * min(1.0, average))
        self.batches += 1
        self.refinement.step(index, found, spectrum, self.due)
        return found.loss

    def _directions(self, found: Gradients, patterns: int) -> tuple[list[Direction], list[Tensor]]:
        """What moves, each in steps that are about one for a single slice, and the slope of the batch's loss along it."""
        directions, slopes = [], []
        share = patterns / len(self.train)
        if found.object is not None:
            transmission = self.model.object.transmission.data[..., found.box[0], found.box[1]]
            change = self.tangent.add_prior(found.object.clone(), transmission, share)
            change = self.tangent.project(change.mul_(self.scale[found.box] * (-0.5 / share)), transmission)
            directions.append(Direction(object=change))
            # Of the data alone: along a constant phase, which they do not see, the prior would go on for ever.
            slopes.append(inner(found.object, change))
        if self.due.probe and found.spectrum is not None:
            gradient = self.model.probe.pull_back(found.spectrum)
            change = gradient * (-0.5 / patterns)
            directions.append(Direction(probe=change))
            slopes.append(inner(gradient, change))
        return directions, slopes

    def _measure(self, index: Tensor, counts: Tensor, directions: list[Direction], slope: Tensor, box: tuple[slice, slice]) -> None:
        """Least squares: the slope is that of the whole batch, the curvature that of some of its patterns."""
        sample = slice(None, None, max(1, len(index) // self.settings.measured_patterns))
        matrix = self.curvature(index[sample], counts[sample], directions, box).matrix
        best = Quadratic(slope, matrix * (len(index) / len(index[sample]))).minimiser(_DAMPING).clamp_min_(0)
        known = len(self.lengths) == len(best)
        self.lengths = self.lengths.lerp(best, _NEWS) if known else best

    def _move(self, directions: list[Direction], box: tuple[slice, slice], share: float) -> None:
        for direction, length in zip(directions, self.lengths * share, strict=True):
            if direction.probe is not None:
                self.model.probe.wave.data.add_(direction.probe.mul_(length * self.settings.probe_step))
            if direction.object is not None:
                transmission = self.model.object.transmission.data[..., box[0], box[1]]
                change = direction.object.mul_(length)
                if self.velocity is not None:
                    change = self.velocity[..., box[0], box[1]].mul_(self.settings.momentum).add_(change)
                self.tangent.retract(transmission.add_(change))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Re sum conj(a) b in float64: the slope along b where a is a gradient in torch's convention."""
    return (a.real * b.real + a.imag * b.imag).sum(dtype=torch.float64)
