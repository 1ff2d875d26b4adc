"""What the held-out patterns say of a model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.deviance import Deviance, noise_scale
from ptycho.holdout import Split
from ptycho.loss import Loss
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.solvers.refine import Refinement
from ptycho.solvers.state import State

if TYPE_CHECKING:
    from ptycho.solvers.base import Due


class Judge:
    """Measures a model by patterns that it was not made from.

    A position or a tilt that belongs to a held-out pattern alone takes its own step in every epoch, as it would in a batch: left
    behind, it would spoil the pattern's fit the more, the sharper the object gets. These few numbers per pattern see its noise,
    which makes its deviance smaller by about one each, of as many as there are pixels.
    """

    def __init__(self, engine: Likelihood, patterns: Patterns, split: Split, floor_e: float, state: State | None = None) -> None:
        self.engine, self.patterns, self.model = engine, patterns, engine.model
        chunk = engine.chunk
        self.plan = [split.held[start : start + chunk] for start in range(0, len(split.held), chunk)]
        #: Variance of the noise over its mean, in electrons.
        positions = self.model.positions.value_px.detach().cpu().numpy()
        self.scale = noise_scale(patterns, positions, split.train) if state is None else state["scale"]
        self.deviance = Deviance(floor_e, self.scale, engine.device)
        self.refinement = Refinement(self.model, engine.loss.natural_step)
        self._least, self._expected = math.inf, math.nan
        if state is not None:
            self._least, self._expected = state["least"], state["expected"]
            self.refinement.load_state_dict(state["refinement"])

    def state_dict(self) -> State:
        """What is to be remembered: the noise is that at the beginning."""
        return {"scale": self.scale, "least": self._least, "expected": self._expected, "refinement": self.refinement.state_dict()}

    @torch.no_grad()
    def __call__(self, due: Due) -> tuple[NDArray[np.float64], float]:
        """Deviance of each held-out pattern (m,) by the solver's own loss, and the reduced Poisson deviance of all: 1 if only noise is left."""
        scores, measured, expected = [], 0.0, 0.0
        for index, counts in self.patterns.batches(self.plan):
            self._follow(index, counts, due)
            each, sums = self.engine.within_memory(lambda index=index, counts=counts: self._scored(index, counts), len(index))  # type: ignore[misc]
            scores.append(each)
            measured, expected = measured + sums[0], expected + sums[1]
        # A model that scatters noise into dark pixels expects more of them: the best model so far says what is to be expected.
        if measured < self._least:
            self._least, self._expected = measured, expected
        return torch.cat(scores).cpu().numpy(), measured / self._expected

    def _scored(self, index: Tensor, counts: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Deviance of each pattern by the solver's loss, and of all of them the Poisson deviance and what it should be."""
        scores, measured, expected = [], 0.0, 0.0
        for part, some in zip(index.split(self.engine.chunk), counts.split(self.engine.chunk), strict=True):
            image, data, weight = seen(self.model, part, some)
            scores.append(deviances(self.engine.loss, image, data, weight))
            measured += float((self.deviance.measured(image, data) * weight).sum(dtype=torch.float64))
            expected += float((self.deviance.expected(image) * weight).sum(dtype=torch.float64))
        return torch.cat(scores), (measured, expected)

    def _follow(self, index: Tensor, counts: Tensor, due: Due) -> None:
        each = due.tilt and len(self.model.propagator.tilt_rad) > 1
        own = replace(due, **{**dict.fromkeys(vars(due), False), "positions": due.positions, "tilt": each})
        if own.positions or own.tilt:
            found, _, spectrum = self.refinement.gradients(self.engine, index, counts, own)
            self.refinement.step(index, found, spectrum, own)


def seen(model: Ptychography, index: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Modelled and measured electrons of the patterns ``index`` and the weight of each pixel, 0 where nothing was measured; (B, ky, kx)."""
    return model(index), torch.nan_to_num(counts), torch.isfinite(counts) * model.detector.mask


def deviances(loss: Loss, image: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
    """2 (loss - loss of a perfect model) of each pattern, (B,) float64."""
    return (2 * (loss.value(image, counts) - loss.least(counts)) * weight).sum((1, 2), dtype=torch.float64)
