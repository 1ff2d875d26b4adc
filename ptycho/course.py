"""The course of a run: its stages one after the other, what is told of each epoch, and what a look at the model finds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ptycho.data import Dataset4D
from ptycho.deviance import noise_scale
from ptycho.diagnose import Before, Finding, diagnose, diagnose_counts
from ptycho.errors import DivergedError
from ptycho.holdout import Split, hold_out, illuminated_diameter
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.recipe import Recipe
from ptycho.result import EpochRecord
from ptycho.solvers import Solver
from ptycho.stages import carry_over, options_of, seen_through, view_of
from ptycho.start import Known, start
from ptycho.views import View

logger = logging.getLogger("ptycho")

#: Told of every epoch: what happened, and how many epochs there will be at most.
Progress = Callable[[EpochRecord, int], None]

#: The model is looked at every so many epochs, and at the end of each stage.
_DIAGNOSED_EVERY = 10


@dataclass(frozen=True)
class Prepared:
    """What a run begins with: the patterns that are used, the recipe with nothing left open, what is known of probe and object; and ``warnings``."""

    data: Dataset4D
    recipe: Recipe
    known: Known
    warnings: tuple[str, ...] = ()


def solve_stages(prepared: Prepared, device: torch.device, tell: Progress) -> tuple[Ptychography, Patterns, tuple[EpochRecord, ...]]:
    """All stages, one after the other; the model and the patterns of the last one, and what happened.

    ``tell`` hears of every epoch. Raises DivergedError when the object does not end as numbers.
    """
    recipe = prepared.recipe
    total = sum(solver.epochs for solver in recipe.solve)
    history: list[EpochRecord] = []
    workers, began = torch.get_num_threads(), time.perf_counter()
    stages, split, doctor = _Stages(prepared, device), None, _Doctor()
    for stage, solver in enumerate(recipe.solve):
        model, patterns = stages.enter(solver)
        split, done, before = split or _split(recipe, model), len(history), Before.of(model)
        if stage == 0:
            doctor.counts(patterns, before, split)
        for epoch in solver.run(model, patterns, workers, split):
            seconds, began = time.perf_counter() - began, time.perf_counter()
            # A note of the solver's tells of the end, or of trouble.
            note = doctor.model(model, before, epoch.note) if epoch.note or epoch.number % _DIAGNOSED_EVERY == 0 else ""
            record = EpochRecord(stage, solver.kind, len(history) + 1, epoch.loss, seconds, epoch.held_out, note)
            history.append(record)
            logger.info(_line(record, total))
            tell(record, total)
        total -= solver.epochs - (len(history) - done)
    if not bool(torch.isfinite(torch.view_as_real(model.object.transmission.detach())).all()):
        raise DivergedError("the object holds numbers that are not finite; use smaller steps, check defocus, step and flips")
    return model, patterns, tuple(history)


class _Stages:
    """The model and the patterns as each stage sees them; both stay as long as nothing about them changes."""

    def __init__(self, prepared: Prepared, device: torch.device) -> None:
        self.data, self.options, self.known, self.device = prepared.data, prepared.recipe.model, prepared.known, device
        self._view: View | None = None
        self._patterns: Patterns | None = None
        self._model: Ptychography | None = None
        self._options = self.options

    def enter(self, solver: Solver) -> tuple[Ptychography, Patterns]:
        """What ``solver`` works on: the state of the stage before, on the grid, in the slices and modes that it asks for."""
        view = view_of(self.data.pattern_shape, solver.bin, solver.detector_px)
        before = self._model
        if self._patterns is None or view != self._view:
            self._patterns = Patterns(self.data, self.device, view)
            self._view, self._model = view, None
        have = 0 if before is None else len(before.probe.wave)
        options = options_of(self.options, view, solver.slices, solver.probe_modes or max(have, self.options.probe_modes))
        if self._model is None or options != self._options:
            geometry = seen_through(self.data.geometry, view)
            fresh = start(geometry, options, self._patterns.mean_electrons, self._patterns.mask, self.known).to(self.device)
            self._model = fresh if before is None else carry_over(before, fresh, self.data.geometry)
            self._options = options
            logger.info(_grid(self._model))
        return self._model, self._patterns


class _Doctor:
    """Looks at the run now and then; each kind of finding is told once, as a warning and in the history."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def counts(self, patterns: Patterns, before: Before, split: Split) -> None:
        """What the noise of the data says, before the first epoch."""
        self._new(diagnose_counts(noise_scale(patterns, before.positions, split.train)))

    def model(self, model: Ptychography, before: Before, note: str) -> str:
        """The note with what is new about the model."""
        return "; ".join(part for part in (note, *self._new(diagnose(model, before))) if part)

    def _new(self, findings: tuple[Finding, ...]) -> list[str]:
        new = [finding for finding in findings if finding.name not in self._told]
        for finding in new:
            self._told.add(finding.name)
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
