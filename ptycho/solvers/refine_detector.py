"""Steps of what lies before and behind the specimen: source size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from ptycho.adjoint import Gradients
from ptycho.model import Ptychography
from ptycho.probe import Probe
from ptycho.solvers.scalar import TURN_RAD, Scalar

if TYPE_CHECKING:
    from ptycho.solvers.base import Due


def switch_on(model: Ptychography, due: Due) -> None:
    """Give the model the parameters that are due and that it does not have yet."""
    if due.source and len(model.probe.source_A2) == 0:
        probe = model.probe
        probe.source_A2.data = probe.source_A2.new_full((1,), _source_change(probe))


def _source_change(probe: Probe) -> float:
    """The variance in Å^2 that lowers the visibility of two waves of the probe by ``TURN_RAD``."""
    # Two waves of the probe differ by twice its rms frequency.
    return TURN_RAD / (2 * math.pi**2 * 4 * probe.width_invA**2)


def keep_bounds(model: Ptychography) -> None:
    """A variance stays positive, in place."""
    model.probe.source_A2.data.clamp_(min=0.01 * _source_change(model.probe))


class DetectorSide:
    """Steps on the parameters of source and detector that are due."""

    def __init__(self, model: Ptychography) -> None:
        self.model = model
        self._seen = 0

    def scalars(self, found: Gradients, due: Due) -> list[Scalar]:
        """The parameters that all patterns share, for the common Gauss-Newton step.

        The source enters by its variance: patterns are linear in it where it is small, so that its slope does not vanish there.
        """
        probe, scalars = self.model.probe, []
        if due.source and found.spectrum is not None:
            scalars.append(Scalar(probe.source_A2.data, probe.source_slope(found.spectrum), probe.source_A2.new_tensor(_source_change(probe))))
        return scalars

    def step(self, index: Tensor, due: Due) -> None:
        """Behind the common step: bounds, and after each pass as many modes as the source needs by now."""
        keep_bounds(self.model)
        self._seen += len(index)
        if self._seen >= len(self.model.positions.value_px):
            self._seen = 0
            if due.source:
                self.model.probe.refit_source()
