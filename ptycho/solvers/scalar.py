"""A number of the model that all patterns share, as the Gauss-Newton step sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: Finite differences turn the phase of the illumination by this much (rad, rms), or change patterns by as much; a step by at most four times that.
TURN_RAD = 0.05


@dataclass
class Scalar:
    """A parameter of all patterns, or one of each: a view into the model, its gradient, the change that turns the phase by ``TURN_RAD``."""

    value: Tensor
    gradient: Tensor
    change: Tensor
