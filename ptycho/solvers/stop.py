"""When a run has done what it can, and what brings it back when it does the wrong thing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.errors import DivergedError, RecipeError
from ptycho.model import Ptychography
from ptycho.solvers.state import State, placed, set_state, state_of

#: A loss of this many times the lowest so far is no noise of the batches.
_FAR_ABOVE = 3.0
#: Deviances per pixel below this share of one electron's are rounding, whatever their ratio.
_NOTHING = 0.3
#: So often the steps are halved.
_MOST_RETURNS = 3


@dataclass(frozen=True)
class Stop:
    """When the held-out patterns say that there is nothing left to gain; ``epochs`` is then the most there will be.

    A run is at rest when over the last ``patience`` epochs (0: never stop) the held-out deviance has fallen, on the straight line that fits best,
    by less than ``tolerance`` of itself and by less than ``significance`` standard errors of the mean over the patterns. Each pattern
    is compared with itself: its noise is the same in all epochs and drops out. What still falls beyond doubt, however slowly, goes
    on. No run stops before ``min_epochs``, or before all that it updates has had its time.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    patience: int = 6
    min_epochs: int = 10
    tolerance: float = 1e-3
    significance: float = 2.0

    def __post_init__(self) -> None:
        for name in ("patience", "min_epochs", "tolerance", "significance"):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"stop.{name} = {getattr(self, name)}: it cannot be negative")


class Verdict(Enum):
    """What the held-out patterns say."""

    GO_ON = auto()
    AT_REST = auto()
    OVER_FITTING = auto()


class Watch:
    """The rule of :class:`Stop`, told of every epoch: ``deviances`` (m,) of the same held-out patterns in the same order."""

    def __init__(self, stop: Stop, first: int) -> None:
        self.stop = stop
        #: No verdict before this epoch.
        self.first = max(stop.min_epochs, first + stop.patience)
        #: Number of the best epoch.
        self.best = 0
        self._seen: list[NDArray[np.float64]] = []
        self._since = 0

    def state_dict(self) -> State:
        """All it was told."""
        return state_of(self, "first", "best", "_seen", "_since")

    def load_state_dict(self, state: State) -> None:
        """As it was."""
        set_state(self, state, torch.device("cpu"))

    def told(self, deviances: NDArray[np.float64]) -> Verdict:
        """The verdict after one more epoch."""
        self._seen.append(deviances)
        self.best = int(np.argmin([d.mean() for d in self._seen])) + 1
        patience, epoch = self.stop.patience, len(self._seen)
        if patience == 0 or epoch < self.first or epoch - self._since <= patience:
            return Verdict.GO_ON
        place = np.arange(patience + 1) - patience / 2
        # The fall of each pattern over the window, by least squares.
        gain = -patience * (place @ np.stack(self._seen[-patience - 1 :])) / (place @ place)
        if gain.mean() > self.stop.tolerance * deviances.mean() or self._sure(gain):
            return Verdict.GO_ON
        return Verdict.OVER_FITTING if self.over_fitting else Verdict.AT_REST

    @property
    def over_fitting(self) -> bool:
        """Whether the last epoch is worse than the best beyond doubt."""
        return self.stop.patience > 0 and bool(self._seen) and self._sure(self._seen[-1] - self._seen[self.best - 1])

    def restart(self) -> None:
        """The solver has changed its steps: patience begins anew."""
        self._since = len(self._seen)

    def _sure(self, difference: NDArray[np.float64]) -> bool:
        """Whether the mean of paired differences is positive beyond doubt."""
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        return bool(difference.mean() > self.stop.significance * error)


class Snapshot:
    """A copy of all of a model's numbers, on its device."""

    def __init__(self, model: Ptychography, tensors: list[Tensor] | None = None) -> None:
        self.tensors = [tensor.clone() for tensor in _tensors(model)] if tensors is None else tensors

    def restore(self, model: Ptychography) -> None:
        """Put them back, in place; what the model did not have then, it has no more."""
        for parameter, kept in zip(model.parameters(), self.tensors, strict=True):
            if parameter.shape == kept.shape:
                parameter.data.copy_(kept)
            else:
                parameter.data = kept.clone()


def _tensors(model: Ptychography) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


class Rescue:
    """Takes a run that diverges back to its last good epoch; ``start`` is the deviance per pixel before the first."""

    def __init__(self, model: Ptychography, start: float, electrons_per_pixel: float) -> None:
        self.model, self.start = model, start
        #: The model after the last good epoch.
        self.good = Snapshot(model)
        self.returns = 0
        self._nothing = _NOTHING * min(1.0, electrons_per_pixel)
        self._lowest = start

    def state_dict(self) -> State:
        """The good model, and how often it was needed."""
        return {"good": self.good.tensors, "returns": self.returns, "lowest": self._lowest}

    def load_state_dict(self, state: State) -> None:
        """As it was."""
        self.good = Snapshot(self.model, placed(state["good"], self.model.probe.wave.device))
        self.returns, self._lowest = state["returns"], state["lowest"]

    def diverged(self, deviance: float) -> bool:
        """Whether the deviance after an epoch says so."""
        far = deviance > max(_FAR_ABOVE * self._lowest, self._nothing)
        # What halving the steps does not change is the constraints' doing, unless it is worse than nothing.
        hopeless = deviance > max(_FAR_ABOVE * self.start, self._nothing)
        return not math.isfinite(deviance) or hopeless or (far and self.returns < _MOST_RETURNS)

    def back(self, epoch: int, deviance: float) -> str:
        """Restore the model; says what happened. Raises DivergedError when that has not helped before."""
        if self.returns == _MOST_RETURNS:
            raise DivergedError(
                f"epoch {epoch}: the deviance per pixel is {deviance:.3g}, with steps an eighth as long as asked for; "
                "use smaller ones, check defocus, step and flips with ptycho info"
            )
        self.returns += 1
        self.good.restore(self.model)
        return f"diverged to {deviance:.3g}: back to the epoch before, with half the step"

    def keep(self, deviance: float) -> None:
        """The epoch was good."""
        self.good = Snapshot(self.model)
        self._lowest = min(self._lowest, deviance)
