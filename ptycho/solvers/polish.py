"""Polish: all patterns at once, conjugate gradients with the exact curvature; for the end of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.curvature import Curvature, Direction, Quadratic
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.solvers.base import Due, Settings, Step, Updates
from ptycho.solvers.lsqml import inner
from ptycho.solvers.refine import Refinement
from ptycho.solvers.state import State, set_state, state_of
from ptycho.solvers.tangent import Tangent

#: So much of its diagonal is added to the matrix: directions that nearly coincide are not played off against each other.
_DAMPING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Polish(Settings):
    """One step an epoch, from the gradient of all patterns: no noise of batches is left, and there is no step length to choose.

    Solvers that move with every batch are fast, and come to rest where the last batches hold them, off the minimum. Here object and probe
    move in the space of their preconditioned gradients and their last steps, to the minimum there of the quadratic model of the loss:
    conjugate gradients by subspace minimisation (Yuan & Stoer, Z. Angew. Math. Mech. 75 (1995) 69), on a quadratic function the very
    same. The curvature is measured on ``measured_patterns`` patterns spread over the scan; it is Gauss-Newton's, or with
    ``exact_curvature`` the second derivative itself: three times the work for the same path wherever the model fits the data. A step after
    which the loss has risen is halved. The phase moves alone on a pure phase object. With few electrons the minimum fits the noise: a few
    epochs are enough.

    ``batch`` patterns are computed at a time, without influence on the result; ``illumination_floor`` is that of :class:`Gradient`.
    """

    kind: Literal["polish"] = "polish"
    epochs: int = 5
    batch: int = 64
    update: Updates = field(default_factory=lambda: Updates(object=1, probe=1))
    illumination_floor: float = 0.05
    measured_patterns: int = 128
    exact_curvature: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.illumination_floor > 0:
            raise RecipeError(f"illumination_floor = {self.illumination_floor}: a positive share of the brightest pixel's is needed")
        if self.measured_patterns < 1:
            raise RecipeError(f"measured_patterns = {self.measured_patterns}: at least 1 is needed")

    def step(self, engine: Likelihood, split: Split, factor: float) -> Step:
        """At rest."""
        return SubspaceGradients(self, engine, split, factor)


@dataclass(frozen=True)
class _Line:
    """A direction, and the slopes along it of the loss of all patterns, without and with the prior."""

    direction: Direction
    slope: Tensor
    whole_slope: Tensor


class SubspaceGradients(Step):
    """State of the solver: the sums of a pass, and where the last step began."""

    def __init__(self, settings: Polish, engine: Likelihood, split: Split, factor: float) -> None:
        self.settings, self.engine, self.model, self.factor = settings, engine, engine.model, factor
        self.train = torch.from_numpy(split.train).to(engine.device)
        self.refinement = Refinement(self.model, engine.loss.natural_step * factor)
        self.tangent = Tangent.of(settings.constraints_for(engine.loss, engine.model))
        self.curvature = Curvature(engine, settings.exact_curvature)
        self.gradient = torch.zeros_like(self.model.object.transmission.data)
        self.probe_gradient = torch.zeros_like(self.model.probe.wave.data)
        self.before: tuple[Tensor, Tensor] | None = None
        #: The loss at which the next pass may find the model at most.
        self.allowed = torch.full((), torch.inf, dtype=torch.float64, device=engine.device)

    def state_dict(self) -> State:
        """The sums of the pass so far, and where the last step began."""
        own = state_of(self, "gradient", "probe_gradient", "before", "allowed", "loss", "sample")
        return {"own": own, "refinement": self.refinement.state_dict()}

    def load_state_dict(self, state: State, due: Due) -> None:
        """As it was."""
        self.due = due
        set_state(self, state["own"], self.engine.device)
        self.refinement.load_state_dict(state["refinement"])

    def start_epoch(self, epoch: int, due: Due) -> None:
        """Nothing is summed yet."""
        self.due = due
        self.loss = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        self.gradient.zero_()
        self.probe_gradient.zero_()
        self.sample: list[tuple[Tensor, Tensor]] = []
        # What came before need not have kept to |O| = 1: that is not to count as a step.
        self.tangent.retract(self.model.object.transmission.data)

    @torch.no_grad()
    def batch(self, index: Tensor, counts: Tensor) -> Tensor:
        """Add the batch's loss and gradients; what else is due takes its step."""
        self.engine.measures = True
        found, _, spectrum = self.refinement.gradients(self.engine, index, counts, self.due)
        self.loss += found.loss
        if found.object is not None:
            self.gradient[..., found.box[0], found.box[1]] += found.object
        if self.due.probe and found.spectrum is not None:
            self.probe_gradient += self.model.probe.pull_back(found.spectrum)
        some = slice(None, None, max(1, len(self.train) // self.settings.measured_patterns))
        self.sample.append((index[some], counts[some].clone()))
        self.refinement.step(index, found, spectrum, self.due)
        return found.loss

    @torch.no_grad()
    def end_epoch(self) -> None:
        """One step; or half of the last one back, if it was too long."""
        object_, wave = self.model.object.transmission.data, self.model.probe.wave.data
        if self.before is not None and self.engine.shard.ranks.told(bool(self.loss > self.allowed)):
            object_.add_(self.before[0]).mul_(0.5)
            wave.add_(self.before[1]).mul_(0.5)
        elif lines := [*self._object_lines(object_), *self._probe_lines(wave)]:
            quadratic = self._quadratic(lines)
            lengths = quadratic.minimiser(_DAMPING) * self.factor
            # Where the prior outweighs the data the loss may rise by as much as it is expected to.
            expected = lengths @ torch.stack([line.slope for line in lines]) + lengths @ quadratic.matrix @ lengths / 2
            self.before, self.allowed = (object_.clone(), wave.clone()), self.loss + expected.clamp_min(0)
            for line, length in zip(lines, lengths, strict=True):
                for leaf, change in ((object_, line.direction.object), (wave, line.direction.probe)):
                    if change is not None:
                        leaf.add_(change.mul_(length))
        self.tangent.retract(object_)

    def _object_lines(self, object_: Tensor) -> list[_Line]:
        """The preconditioned gradient and the last step."""
        if not self.due.object:
            return []
        light = self.model.illumination(self.train)
        most = light.max()
        # The prior is for what is seen; elsewhere nothing holds against it.
        whole = self.gradient + self.tangent.add_prior(torch.zeros_like(object_), object_) * (light > 0.5 * most)
        changes = [whole * (-0.5 / (light + self.settings.illumination_floor * most))]
        if self.before is not None:
            changes.append(object_ - self.before[0])
        for change in changes:
            self.tangent.inwards(change, object_, light)
        return [_Line(Direction(object=change), inner(self.gradient, change), inner(whole, change)) for change in changes]

    def _probe_lines(self, wave: Tensor) -> list[_Line]:
        if not self.due.probe:
            return []
        changes = [self.probe_gradient * (-0.5 / len(self.train))]
        if self.before is not None:
            changes.append(wave - self.before[1])
        slopes = [inner(self.probe_gradient, change) for change in changes]
        return [_Line(Direction(probe=change), slope, slope) for change, slope in zip(changes, slopes, strict=True)]

    def _quadratic(self, lines: list[_Line]) -> Quadratic:
        """Slopes of all patterns, curvatures of some, scaled up."""
        directions = [line.direction for line in lines]
        index, counts = (torch.cat(parts) for parts in zip(*self.sample, strict=True))
        matrix = self.curvature(index, counts, directions).matrix * (len(self.train) / len(index))
        if self.tangent.pure_phase and self.settings.exact_curvature:
            # The way along |O| = 1 is bent: exp(i phi t) O has the second derivative -phi^2 O.
            back = self.model.object.transmission.data.conj().resolve_conj()
            for i, one in enumerate(directions):
                for j, other in enumerate(directions):
                    if one.object is not None and other.object is not None:
                        matrix[i, j] += inner(self.gradient, one.object * other.object * back)
        return Quadratic(torch.stack([line.whole_slope for line in lines]), matrix)
