"""Short reconstructions that judge a guess of the geometry by patterns that they have not seen.

An object that begins empty follows the right geometry quickly and a wrong one hardly. A few passes over the middle of the field on a coarse grid
are enough to tell them apart by the likelihood of held-out patterns, atom by atom and with all of the physics, where linear theory is only a
guide.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho.aberrations import Aberrations
from ptycho.data import Dataset4D
from ptycho.defaults import default_stages
from ptycho.holdout import Split
from ptycho.patterns import Patterns
from ptycho.pose import Matrix
from ptycho.scan_fit import middle
from ptycho.solvers import Updates
from ptycho.solvers.judge import deviances, seen
from ptycho.solvers.stop import Stop
from ptycho.stages import options_of, seen_through, view_of
from ptycho.start import ModelOptions, start

#: As many patterns from the middle of the field are looked at, in so many passes.
_PATTERNS, _EPOCHS = 576, 4
#: Share of the patterns that judge. All guesses lose the same ones, so that blocks and guards as for a long run are not needed.
_HELD, _FEWEST = 0.1, 64
_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Trial:
    """``deviance`` per pixel of the patterns that judge, and of each of them (n,)."""

    deviance: float
    each: NDArray[np.float64] = field(repr=False)

    def z_against(self, other: Trial) -> float:
        """How sure it is that this one is better (positive): mean over standard error of the pairwise difference."""
        difference = other.each - self.each
        return float(difference.mean() / max(difference.std(ddof=1) / np.sqrt(len(difference)), 1e-30))


class Trials:
    """Runs on the same patterns with the same held-out ones; ``data`` has the raster without rotation or affine map.

    ``widest`` are the aberrations of the widest probe that will be tried. Raises what :func:`ptycho.start.start` raises.
    """

    def __init__(self, data: Dataset4D, options: ModelOptions, widest: Aberrations, workers: int = 1) -> None:
        self.part, self.options, self.workers = middle(data, _PATTERNS), options, workers
        geometry = replace(self.part.geometry, aberrations=widest)
        first = default_stages(geometry, options, self.part.beam_electrons, few_counts=True)[0]
        self.stage = replace(first, epochs=_EPOCHS, update=Updates(probe=0), stop=Stop(patience=0), constraints=None)
        view = view_of(self.part.pattern_shape, self.stage.bin, self.stage.detector_px)
        self.options = options_of(options, view, 0, 0)
        self.patterns = Patterns(self.part, torch.device("cpu"), view)
        self.geometry = seen_through(geometry, view)
        self.split: Split | None = None

    def run(self, orientation: Matrix, aberrations: Aberrations) -> Trial:
        """Reconstruct with this orientation (slow, fast) -> (y, x) and these aberrations."""
        geometry = replace(self.geometry, positions_A=self.geometry.positions_A @ orientation.T, aberrations=aberrations)
        model = start(geometry, self.options, self.patterns.mean_electrons, self.patterns.mask)
        if self.split is None:
            self.split = _split(len(self.patterns), self.options.seed)
        for _ in self.stage.run(model, self.patterns, self.workers, self.split):
            pass
        # A scan too small to spare a pattern is judged by all of them.
        judges = self.split.held if len(self.split.held) else self.split.train
        loss = self.stage.loss_for(self.patterns)
        with torch.no_grad():
            parts = [judges[first : first + _CHUNK] for first in range(0, len(judges), _CHUNK)]
            each = [(deviances(loss, image, counts, weight)) for image, counts, weight in (seen(model, *b) for b in self.patterns.batches(parts))]
        values = torch.cat(each).numpy()
        return Trial(float(values.mean() / self.patterns.mask.sum()), values)


def _split(count: int, seed: int) -> Split:
    """Patterns drawn by chance to judge; none of too few."""
    if count < _FEWEST:
        return Split.whole(count, "too few")
    held = np.sort(np.random.default_rng([seed, 3]).choice(count, max(8, round(_HELD * count)), replace=False))
    return Split(np.setdiff1d(np.arange(count), held), held)
