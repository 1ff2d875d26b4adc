"""Short reconstructions that judge the candidates of a search, all by the same held-out patterns and the same likelihood."""

from __future__ import annotations

import tomllib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ptycho.data import Dataset4D
from ptycho.defaults import default_stages
from ptycho.errors import DataError, OutOfMemoryError
from ptycho.frames import Quantity
from ptycho.geometry import Geometry
from ptycho.holdout import Split, hold_out, illuminated_diameter
from ptycho.known import known_start
from ptycho.loss import Loss, choose_loss
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.recipe import Recipe
from ptycho.scan_fit import middle
from ptycho.solvers import Solver
from ptycho.solvers.judge import deviances, seen
from ptycho.solvers.stop import Stop
from ptycho.stages import coarse_view, options_of, seen_through, view_of
from ptycho.start import Known, ModelOptions, check_probe_fits, probe_diameter_A, start
from ptycho.tune_ranges import Range, Value, setting
from ptycho.tune_study import Score
from ptycho.views import View

#: Share of the patterns that goes for judging, guards included: every candidate loses the same ones, and many blocks tell them apart.
_SHARE = 0.2
#: With fewer patterns there is no search.
_FEWEST = 64
#: The judges' noise model, whatever loss a candidate is solved with.
_JUDGE = Loss("poisson", 0.01)
_CHUNK = 16
#: Passes of a short run: an object of one slice follows at once, a thick one sits on a plateau for some.
_EPOCHS, _EPOCHS_THICK = 4, 20
#: What of a recipe says how the same patterns are understood.
_OPTICS = {
    "microscope": ("voltage_kV", "semiangle_mrad", "defocus_A", "aberrations"),
    "scan": ("step_A", "rotation_deg", "affine"),
    "detector": ("pixel_invA", "pixel_mrad"),
}


@dataclass(frozen=True)
class Effort:
    """How short the runs are: passes (0: what suits the slices), and patterns in the middle of the field (0: all)."""

    epochs: int = 0
    patterns: int = 1024


class Short:
    """Runs on the patterns of a complete ``recipe`` with values changed; what is the same for all candidates is made once.

    Raises DataError when there are too few patterns to spare some, RecipeError when a recipe cannot be run at all.
    """

    def __init__(self, recipe: Recipe, ranges: Sequence[Range], effort: Effort, device: torch.device, workers: int = 1) -> None:
        self.tree, self.device, self.workers = tomllib.loads(recipe.text()), device, workers
        data = replace(recipe.read(), survey_all=True).without_bad_frames()
        self.part = middle(data, effort.patterns) if effort.patterns else data
        candidates = [self.recipe({}), *(self.recipe({r.key: value}) for r in ranges for value in r.extremes)]
        self.view = self._view(candidates)
        thick = any(candidate.model.slices > 1 for candidate in candidates)
        self.epochs = effort.epochs or (_EPOCHS_THICK if thick else _EPOCHS)
        self.patterns = Patterns(self.part, device, self.view)
        self.split = self._split(candidates[0])
        self.blocks = _blocks(self.part.geometry.positions_A, self.split.held)

    def recipe(self, values: Mapping[str, Value]) -> Recipe:
        """The recipe of a candidate. Raises RecipeError."""
        return Recipe.parse(self.tree, [setting(key, value) for key, value in values.items()])

    def __call__(self, values: Mapping[str, Value]) -> Generator[Score, None, None]:
        """The score after each of the ``epochs`` passes. Raises RecipeError, DivergedError or OutOfMemoryError of a candidate that is no good."""
        try:
            yield from self._passes(values)
        except (MemoryError, torch.OutOfMemoryError):
            raise OutOfMemoryError("out of memory") from None

    def _passes(self, values: Mapping[str, Value]) -> Iterator[Score]:
        recipe = self.recipe(values)
        geometry, options = self._seen(recipe), _options(recipe)
        known = known_start(options, replace(self.part, calibration=_calibration(self.part, recipe)))
        check_probe_fits(geometry, options, known)
        stage = self._stage(recipe, options)
        options = options_of(options, self.view, stage.slices, stage.probe_modes)
        model = start(geometry, options, self.patterns.mean_electrons, self.patterns.mask, known).to(self.device)
        for _ in stage.run(model, self.patterns, self.workers, self.split):
            yield self._judged(model)

    def _stage(self, recipe: Recipe, options: ModelOptions) -> Solver:
        """The first stage, the recipe's or what suits the slices, as long as all others and on the same grid."""
        data = self.part
        stage: Solver = recipe.solve[0] if recipe.solve else default_stages(data.geometry, options, data.beam_electrons, self._few)[0]
        bins, size = (1, 0) if self.view is None else (self.view.bin, max(self.view.shape))
        return replace(stage, epochs=self.epochs, bin=bins, detector_px=size, stop=Stop(patience=0))

    @property
    def _few(self) -> bool:
        return choose_loss("auto", self.part.survey().mean_electrons / np.prod(self.part.pattern_shape)) == "poisson"

    def _view(self, candidates: Sequence[Recipe]) -> View | None:
        """How the patterns are looked at: as the recipe's first stage does, or as coarsely as the widest probe of all allows."""
        shapes = [(_geometry(self.part, c), sum(c.model.thicknesses_A) if c.model.slices > 1 else 0.0) for c in candidates]
        first = candidates[0]
        if first.solve:
            return view_of(self.part.pattern_shape, first.solve[0].bin, first.solve[0].detector_px)
        return coarse_view(*max(shapes, key=lambda shape: probe_diameter_A(*shape)))

    def _seen(self, recipe: Recipe) -> Geometry:
        return seen_through(_geometry(self.part, recipe), self.view)

    def _split(self, recipe: Recipe) -> Split:
        """The patterns that judge: blocks with guards, or single ones drawn by chance where there is no room for blocks."""
        count = self.part.n_positions
        if count < _FEWEST:
            raise DataError(f"{self.part.name}: {count} patterns are too few to hold some out; a search needs {_FEWEST}")
        model = start(self._seen(recipe), options_of(_options(recipe), self.view, 0, 0), 1.0, self.patterns.mask, Known())
        intensity = model.probe.wave.detach().abs().square().sum(0).numpy()
        split = hold_out(model.positions.value_px.detach().numpy(), illuminated_diameter(intensity), recipe.model.seed, _SHARE)
        if len(split.held):
            return split
        held = np.sort(np.random.default_rng([recipe.model.seed, 4]).choice(count, max(8, count // 10), replace=False))
        return Split(np.setdiff1d(np.arange(count), held), held)

    @torch.no_grad()
    def _judged(self, model: Ptychography) -> Score:
        """Poisson deviance per pixel of each block of held-out patterns."""
        parts = [self.split.held[first : first + _CHUNK] for first in range(0, len(self.split.held), _CHUNK)]
        each, pixels = [], []
        for index, counts in self.patterns.batches(parts):
            image, measured, weight = seen(model, index, counts)
            each.append(deviances(_JUDGE, image, measured, weight))
            pixels.append(weight.sum((1, 2), dtype=torch.float64))
        total = np.bincount(self.blocks, torch.cat(each).cpu().numpy()) / np.bincount(self.blocks, torch.cat(pixels).cpu().numpy())
        return Score(float(total.mean()), tuple(total.tolist()))


def _options(recipe: Recipe) -> ModelOptions:
    """Without what is refined in a run without stages: a search finds it, or leaves it as it is."""
    return replace(recipe.model, refine=())


def _calibration(data: Dataset4D, recipe: Recipe) -> dict[str, Quantity]:
    """What is known of the microscope, as a candidate has it."""
    given: dict[str, Any] = {key: getattr(getattr(recipe, section), key) for section, keys in _OPTICS.items() for key in keys}
    return data.calibration | {key: Quantity(value, "", "user") for key, value in given.items() if value is not None}


def _geometry(data: Dataset4D, recipe: Recipe) -> Geometry:
    return replace(data, calibration=_calibration(data, recipe)).geometry


def _blocks(positions: NDArray[np.float64], held: NDArray[np.int64]) -> NDArray[np.int32]:
    """Number of the block of each of the ``held`` ones of the ``positions`` (N, 2): neighbours in the scan belong together."""
    step = float(np.median(np.asarray(cKDTree(positions).query(positions, 2)[0])[:, 1]))
    pairs = cKDTree(positions[held]).query_pairs(1.6 * step, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(held), len(held)))
    return np.asarray(connected_components(graph, directed=False)[1])
