"""The course of a run: its stages one after the other, what is told of each epoch, and what a look at the model finds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from ptycho.data import Dataset4D
from ptycho.deviance import noise_scale
from ptycho.diagnose import Before, Finding, diagnose, diagnose_counts
from ptycho.errors import DivergedError
from ptycho.holdout import Split, hold_out, illuminated_diameter
from ptycho.keeper import Keeper
from ptycho.model import Ptychography
from ptycho.model_state import finite, load_model_state, model_state
from ptycho.patterns import Patterns
from ptycho.ranks import Ranks
from ptycho.recipe import Recipe
from ptycho.result import EpochRecord
from ptycho.shared_patterns import patterns_of
from ptycho.solvers import Solver
from ptycho.solvers.state import State
from ptycho.solvers.step import Bookmark, Epoch
from ptycho.stages import carry_over, options_of, seen_through, view_of
from ptycho.start import Known, start
from ptycho.views import View

logger = logging.getLogger("ptycho")

#: Told of every epoch: the model as it is, what has happened so far, and how many epochs there will be at most.
Tell = Callable[[Ptychography, Sequence[EpochRecord], int], None]

#: The model is looked at every so many epochs, and at the end of each stage.
_DIAGNOSED_EVERY = 10


@dataclass(frozen=True)
class Prepared:
    """What a run begins with: the patterns that are used, the recipe with nothing left open, what is known of probe and object; and ``warnings``."""

    data: Dataset4D
    recipe: Recipe
    known: Known
    warnings: tuple[str, ...] = ()


def solve_stages(prepared: Prepared, device: torch.device, tell: Tell, keeper: Keeper) -> tuple[Ptychography, Patterns, tuple[EpochRecord, ...]]:
    """All stages, one after the other; the model and the patterns of the last one, and what happened.

    ``tell`` hears of every epoch; ``keeper`` says where to begin, keeps the state, and may raise Stopped. Raises DivergedError when the
    object does not end as numbers.
    """
    course = _Course(prepared, device, tell, keeper)
    begin = keeper.begin()
    model, patterns = course.run(begin)
    if not bool(torch.isfinite(torch.view_as_real(model.object.transmission.detach())).all()):
        raise DivergedError("the object holds numbers that are not finite; use smaller steps, check defocus, step and flips")
    return model, patterns, tuple(course.history)


class _Course:
    """The stages and what goes on through all of them."""

    def __init__(self, prepared: Prepared, device: torch.device, tell: Tell, keeper: Keeper) -> None:
        self.prepared, self.tell, self.keeper = prepared, tell, keeper
        self.recipe = prepared.recipe
        self.stages, self.doctor = _Stages(prepared, device, keeper.ranks), _Doctor()
        self.split: Split | None = None
        self.history: list[EpochRecord] = []
        #: Epochs at most, of all stages, and how many were done before the present one.
        self.total, self.done = sum(solver.epochs for solver in self.recipe.solve), 0
        self.stage = 0

    def run(self, begin: dict[str, Any] | None) -> tuple[Ptychography, Patterns]:
        """All stages, or what is left of them."""
        workers, began = torch.get_num_threads(), time.perf_counter()
        for stage in range(0 if begin is None else begin["stage"], len(self.recipe.solve)):
            self.stage, solver = stage, self.recipe.solve[stage]
            model, patterns = self._begin(solver) if begin is None else self._go_on(solver, begin)
            bookmark = Bookmark(None if begin is None else begin["solver"], self._after_batch)
            begin = None
            for epoch in solver.run(model, patterns, workers, self.split, bookmark):
                seconds, began = time.perf_counter() - began, time.perf_counter()
                self._record(solver, model, epoch, seconds)
            self.total -= solver.epochs - (len(self.history) - self.done)
        return model, patterns

    def _begin(self, solver: Solver) -> tuple[Ptychography, Patterns]:
        model, patterns = self.stages.enter(solver)
        self.split, self.done, self.before = self.split or _split(self.recipe, model), len(self.history), Before.of(model)
        if self.stage == 0:
            self.doctor.counts(patterns, self.before, self.split)
        return model, patterns

    def _go_on(self, solver: Solver, begin: dict[str, Any]) -> tuple[Ptychography, Patterns]:
        model, patterns = self.stages.enter(solver, begin["probe_modes"])
        load_model_state(model, begin["model"])
        self.split, self.before = Split(**begin["split"]), Before(begin["before"]["aperture"].to(self.stages.device), begin["before"]["positions"])
        self.history = [EpochRecord(*record) for record in begin["history"]]
        self.total, self.done, self.doctor.told = begin["total"], begin["done"], set(begin["told"])
        return model, patterns

    def _after_batch(self, solver_state: Callable[[], State]) -> None:
        self.keeper.after_batch(len(self.history), lambda: self._state(solver_state))

    def _state(self, solver_state: Callable[[], State]) -> dict[str, Any] | None:
        """All that the run needs to go on from here; None while the model holds numbers that are not finite."""
        model, split = self.stages.model, self.split
        if model is None or split is None or not finite(model):
            return None
        return {
            "stage": self.stage,
            "probe_modes": self.stages.probe_modes,
            "model": model_state(model),
            "split": {"train": split.train, "held": split.held, "reason": split.reason},
            "before": {"aperture": self.before.aperture, "positions": self.before.positions},
            "history": [astuple(record) for record in self.history],
            "total": self.total,
            "done": self.done,
            "told": sorted(self.doctor.told),
            "solver": solver_state(),
        }

    def _record(self, solver: Solver, model: Ptychography, epoch: Epoch, seconds: float) -> None:
        # A note of the solver's tells of the end, or of trouble.
        look = epoch.note or epoch.number % _DIAGNOSED_EVERY == 0
        note = self.doctor.model(model, self.before, epoch.note) if look else ""
        record = EpochRecord(self.stage, solver.kind, len(self.history) + 1, epoch.loss, seconds, epoch.held_out, note)
        self.history.append(record)
        logger.info(_line(record, self.total))
        self.tell(model, self.history, self.total)


class _Stages:
    """The model and the patterns as each stage sees them; both stay as long as nothing about them changes."""

    def __init__(self, prepared: Prepared, device: torch.device, ranks: Ranks) -> None:
        self.data, self.options, self.known, self.device, self.ranks = prepared.data, prepared.recipe.model, prepared.known, device, ranks
        self._view: View | None = None
        self._patterns: Patterns | None = None
        self.model: Ptychography | None = None
        self._options = self.options
        #: How many modes the model was made with.
        self.probe_modes = self.options.probe_modes

    def enter(self, solver: Solver, probe_modes: int = 0) -> tuple[Ptychography, Patterns]:
        """What ``solver`` works on: the state of the stage before, on the grid, in the slices and modes that it asks for.

        A run that goes on says how many modes the model was made with, and has its numbers.
        """
        view = view_of(self.data.pattern_shape, solver.bin, solver.detector_px)
        before = self.model
        if self._patterns is None or view != self._view:
            self._patterns = patterns_of(self.data, self.device, view, self.ranks)
            self._view, self.model = view, None
        have = 0 if before is None else len(before.probe.wave)
        self.probe_modes = probe_modes or solver.probe_modes or max(have, self.options.probe_modes)
        options = options_of(self.options, view, solver.slices, self.probe_modes)
        if self.model is None or options != self._options:
            geometry = seen_through(self.data.geometry, view)
            fresh = start(geometry, options, self._patterns.mean_electrons, self._patterns.mask, self.known)
            # What is resampled once a stage is resampled on the CPU, the same way for every device.
            self.model = (fresh if before is None else carry_over(before.cpu(), fresh, self.data.geometry)).to(self.device)
            self._options = options
            logger.info(_grid(self.model))
        return self.model, self._patterns


class _Doctor:
    """Looks at the run now and then; each kind of finding is told once, as a warning and in the history."""

    def __init__(self) -> None:
        #: Names of findings.
        self.told: set[str] = set()

    def counts(self, patterns: Patterns, before: Before, split: Split) -> None:
        """What the noise of the data says, before the first epoch."""
        self._new(diagnose_counts(noise_scale(patterns, before.positions, split.train)))

    def model(self, model: Ptychography, before: Before, note: str) -> str:
        """The note with what is new about the model."""
        return "; ".join(part for part in (note, *self._new(diagnose(model, before))) if part)

    def _new(self, findings: tuple[Finding, ...]) -> list[str]:
        new = [finding for finding in findings if finding.name not in self.told]
        for finding in new:
            self.told.add(finding.name)
            logger.warning(finding.sentence)
        return [finding.sentence for finding in new]


def _split(recipe: Recipe, model: Ptychography) -> Split:
    """Patterns that judge, the same in all stages, if one of them looks at them."""
    positions = model.positions.value_px.detach().cpu().numpy()
    if not any(solver.stop.patience for solver in recipe.solve):
        return Split.whole(len(positions))
    intensity = model.probe.wave.detach().abs().square().sum(0).cpu().numpy()
    split = hold_out(positions, illuminated_diameter(intensity), recipe.model.seed)
    away = len(positions) - len(split.train)
    logger.info(split.reason or f"{len(split.held)} patterns are held out to judge the others, {away} with their neighbours")
    return split


def _line(record: EpochRecord, total: int) -> str:
    """An epoch in the log."""
    held_out = "" if record.held_out is None else f", held out {record.held_out:.4f}"
    note = f"; {record.note}" if record.note else ""
    return f"epoch {record.epoch} of {total}: loss {record.loss:.5f} (deviance per pixel){held_out}, {record.seconds:.1f} s{note}"


def _grid(model: Ptychography) -> str:
    """One line that says what a stage computes with."""
    states, slices, height, width = model.object.transmission.shape
    shape, modes = model.detector.mask.shape, len(model.probe.wave)
    return f"patterns of {shape[0]} x {shape[1]}, pixel {model.pixel_A:.4f} Å, object {states} x {slices} x {height} x {width}, probe modes {modes}"
