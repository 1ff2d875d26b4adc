"""What all solvers share: a frozen record of numbers and one loop over epochs and batches. A solver adds the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ptycho.adjoint import Likelihood
from ptycho.constraint import Constraints, OrthogonalModes, PositivePhase, ProbePower, PurePhase, SliceSmoothing
from ptycho.constraint.base import scanned
from ptycho.constraint.object import expected_phase_rad
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.loss import Loss, LossName, choose_loss
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.solvers.loop import run
from ptycho.solvers.step import Bookmark, Due, Epoch, Step, Updates
from ptycho.solvers.stop import Stop

__all__ = ["Bookmark", "Due", "Epoch", "Settings", "Step", "Updates", "default_constraints", "depth_of_field_A"]

#: Slices are smoothed along the beam with a Gaussian of this share of the depth of field, finer than what the data tell apart.
_SMOOTHING = 0.1
#: The least value of each whole number of the settings.
_LEAST = {"epochs": 1, "batch": 0, "chunk": 0, "seed": 0, "bin": 1, "detector_px": 0, "slices": 0, "probe_modes": 0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every solver has.

    ``epochs`` passes over the data in batches of ``batch`` patterns (0: all at once); ``loss`` auto is Poisson below about 5 electrons
    per pixel and amplitude above; ``floor_e`` electrons per pixel are added to model and data (Poisson: keeps dark pixels in bounds);
    ``power`` is the exponent of the power loss; ``chunk`` patterns are computed at a time (0: what suits the cache).

    What a stage computes with: ``bin`` x ``bin`` detector pixels as one (a smaller window), the central ``detector_px`` of them (0: all; fewer
    make a coarser object), the specimen in ``slices`` equal slices and ``probe_modes`` modes (0: as the model says). The next stage takes over.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    epochs: int = 12
    batch: int = 32
    loss: LossName = "auto"
    floor_e: float = 0.01
    power: float = 0.5
    chunk: int = 0
    seed: int = 0
    bin: int = 1
    detector_px: int = 0
    slices: int = 0
    probe_modes: int = 0
    update: Updates = field(default_factory=Updates)
    constraints: Constraints | None = None
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise RecipeError(f"{name} = {getattr(self, name)}: at least {least} is needed")
        if not self.floor_e >= 0 or not 0 < self.power <= 1:
            raise RecipeError(f"floor_e = {self.floor_e}, power = {self.power}: floor_e >= 0 and 0 < power <= 1 are needed")

    def loss_for(self, patterns: Patterns) -> Loss:
        """The loss that ``auto`` stands for with these data."""
        name = choose_loss(self.loss, patterns.electrons_per_pixel)
        return Loss(name, self.floor_e if name == "poisson" else 0.0, self.power)

    def constraints_for(self, loss: Loss, model: Ptychography) -> Constraints:
        """The constraints that act: the given ones, or those that suit the loss and the model."""
        return self.constraints if self.constraints is not None else self.constraints_with(loss, model, self.electrons_for(loss, model))

    def electrons_for(self, loss: Loss, model: Ptychography) -> float:
        """Electrons per pixel of the object, for the constraints. Many counts need no dose, and to know it is a transform of the whole canvas."""
        return _electrons_per_pixel(model) if self.constraints is None and loss.name == "poisson" else math.inf

    def constraints_with(self, loss: Loss, model: Ptychography, electrons_per_pixel: float) -> Constraints:
        """:meth:`constraints_for`, with what :meth:`electrons_for` gave when the stage began."""
        if self.constraints is not None:
            return self.constraints
        constraints = default_constraints(loss.name == "poisson", electrons_per_pixel)
        if model.object.transmission.shape[1] == 1:
            return constraints
        return replace(constraints, slice_smoothing=SliceSmoothing(sigma_A=_SMOOTHING * depth_of_field_A(model)))

    def last_start(self, loss: Loss, model: Ptychography) -> int:
        """The epoch from which on all that will be updated or imposed is."""
        acting = (constraint for constraint in vars(self.constraints_for(loss, model)).values() if constraint is not None)
        return max(*vars(self.update).values(), *(constraint.start for constraint in acting), 1)

    def check_shared(self, processes: int) -> None:
        """Raise RecipeError when this cannot be computed by several processes together."""
        if 0 < self.batch < processes:
            raise RecipeError(f"batch = {self.batch}: {processes} processes share a batch; use batch = {32 * processes} or more, or one process")

    def run(
        self, model: Ptychography, patterns: Patterns, workers: int = 1, split: Split | None = None, bookmark: Bookmark | None = None
    ) -> Iterator[Epoch]:
        """Yield after each epoch; ``model`` is changed in place. ``split`` names the patterns to solve for and those that judge."""
        engine = Likelihood(model, self.loss_for(patterns), self.chunk or None, workers, patterns.missing, patterns.shard)
        return run(self, engine, patterns, split or Split.whole(len(patterns)), bookmark or Bookmark())

    def step(self, engine: Likelihood, split: Split, factor: float) -> Step:
        """The changing side of the solver, at its beginning, with all steps ``factor`` times as long as the settings say."""
        raise NotImplementedError


def default_constraints(few_counts: bool, electrons_per_pixel: float) -> Constraints:
    """What acts on a thin object when the recipe says nothing of constraints; ``electrons_per_pixel`` of the object, in the scanned field.

    Few counts: a positive pure phase, half the unknowns for the same information, with a prior by the dose. Many: positive phase, free amplitude.
    """
    # Three digits: a recipe shows it.
    expected_rad = float(f"{expected_phase_rad(electrons_per_pixel):.3g}")
    return Constraints(
        pure_phase=PurePhase() if few_counts else None,
        positive_phase=PositivePhase(mean_phase_rad=expected_rad) if few_counts else PositivePhase(),
        probe_power=None if few_counts else ProbePower(),
        orthogonal_modes=OrthogonalModes(),
    )


def _electrons_per_pixel(model: Ptychography) -> float:
    light = model.illumination()
    return float(light[scanned(light)].mean())


def depth_of_field_A(model: Ptychography) -> float:
    """lambda / alpha^2 in Å, from the extent of the probe's spectrum."""
    return 1 / (model.propagator.wavelength_A * (2 * model.probe.width_invA) ** 2)
