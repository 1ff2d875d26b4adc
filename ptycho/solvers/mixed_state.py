"""Mixed-state engine: ePIE that seeds the probe's modes, keeps them orthogonal and sorts them by power."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ptycho.constraint import OrthogonalModes
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.probe import seed_modes
from ptycho.solvers.base import Bookmark, Epoch
from ptycho.solvers.epie import EPIE


@dataclass(frozen=True, kw_only=True)
class MixedState(EPIE):
    """ePIE on incoherent probe modes (Thibault & Menzel, Nature 494 (2013) 68).

    ``modes`` (0: as many as the model has): one becomes those of a source, to several more are added with ``seed_share`` of the power each.
    """

    kind: Literal["mixed_state"] = "mixed_state"  # type: ignore[assignment]
    modes: int = 4
    seed_share: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modes < 0 or not 0 < self.seed_share < 1:
            raise RecipeError(f"modes = {self.modes}, seed_share = {self.seed_share}: at least 0 modes and a share between 0 and 1 are needed")

    def run(
        self, model: Ptychography, patterns: Patterns, workers: int = 1, split: Split | None = None, bookmark: Bookmark | None = None
    ) -> Iterator[Epoch]:
        """Yield after each epoch, with the modes orthogonal and the strongest first; ``model`` is changed in place."""
        if self.modes > len(model.probe.wave):
            model.probe.wave = torch.nn.Parameter(seed_modes(model.probe.wave.detach(), self.modes, self.seed_share))
        for epoch in super().run(model, patterns, workers, split, bookmark):
            OrthogonalModes().apply(model)
            yield epoch
