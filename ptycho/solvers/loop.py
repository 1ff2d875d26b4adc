"""The loop over epochs and batches that all solvers share, and what it remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho.adjoint import Likelihood
from ptycho.batches import hilbert_order, stratified_batches
from ptycho.holdout import Split
from ptycho.patterns import Patterns
from ptycho.solvers.judge import Judge, deviances, seen
from ptycho.solvers.recorded import Recorded
from ptycho.solvers.state import State, placed, state_of
from ptycho.solvers.step import Bookmark, Epoch, Step
from ptycho.solvers.stop import Rescue, Snapshot, Verdict, Watch
from ptycho.threads import single_threaded

if TYPE_CHECKING:
    from ptycho.solvers.base import Settings

#: The loss is measured on every so many-th batch, random and spread over the field: its logarithm costs a tenth of a pass.
_MEASURED_EVERY = 4
#: Patterns that are looked at after each epoch to see whether the run diverges.
_SAMPLE = 8


def run(settings: Settings, engine: Likelihood, patterns: Patterns, split: Split, bookmark: Bookmark) -> Iterator[Epoch]:
    """The loop: yields after every epoch, when the model holds its result; ends when the held-out patterns say so.

    Raises DivergedError when halving the steps does not keep the loss in bounds.
    """
    try:
        yield from _Run(settings, engine, patterns, split, bookmark).epochs()
    finally:
        engine.close()


class _Run:
    """One stage's loop and what it remembers from epoch to epoch."""

    def __init__(self, settings: Settings, engine: Likelihood, patterns: Patterns, split: Split, bookmark: Bookmark) -> None:
        self.engine, self.patterns, self.split, self.model = engine, patterns, split, engine.model
        begin = bookmark.begin
        # What suits the model suits it all along.
        self.electrons = settings.electrons_for(engine.loss, self.model) if begin is None else begin["electrons"]
        self.settings = settings = replace(settings, constraints=settings.constraints_with(engine.loss, self.model, self.electrons))
        self.watch = Watch(settings.stop, settings.last_start(engine.loss, self.model))
        self.passes = _Passes(settings, engine, patterns, split, None if begin is None else begin["order"])
        known = None if begin is None else begin["judge"]
        self.judge = Judge(engine, patterns, split, settings.floor_e, known) if len(split.held) > 1 else None
        electrons = patterns.mean_electrons / (patterns.shape[0] * patterns.shape[1])
        self.rescue = Rescue(self.model, self.passes.state() if begin is None else begin["start"], electrons)
        self.best, self.epoch, self.notes = self.rescue.good, 1, list[str]()
        self._after_batch = bookmark.after_batch
        if begin is not None:
            self._load(begin)
        else:
            self.step = settings.step(engine, split, 1.0)

    def epochs(self) -> Iterator[Epoch]:
        """All that are left."""
        settings = self.settings
        for epoch in range(self.epoch, settings.epochs + 1):
            self.epoch = epoch
            loss = self._pass()
            while self.rescue.diverged(state := self.passes.state()):
                self.notes.append(self.rescue.back(epoch, state))
                self.step = settings.step(self.engine, self.split, 0.5**self.rescue.returns)
                loss = self._pass()
            held_out, verdict = self._judged()
            self.rescue.keep(state)
            if self.watch.best == epoch:
                self.best = self.rescue.good
            if epoch == settings.epochs:
                verdict = Verdict.OVER_FITTING if self.watch.over_fitting else Verdict.GO_ON
            elif verdict is not Verdict.GO_ON and self.step.anneal():
                self.watch.restart()
                verdict = Verdict.GO_ON
            if verdict is Verdict.OVER_FITTING:
                self.best.restore(self.model)
                self.notes.append(f"over-fitting: back to epoch {self.watch.best}, the best for the held-out patterns")
            elif verdict is Verdict.AT_REST:
                self.notes.append("plateau of the held-out likelihood")
            elif epoch == settings.epochs:
                self.notes.append("all epochs done")
            notes, self.notes = self.notes, []
            yield Epoch(epoch, loss, held_out, "; ".join(notes))
            if verdict is not Verdict.GO_ON:
                return

    def _pass(self) -> float:
        return self.passes(self.step, self.epoch, lambda: self._after_batch(self.state_dict))

    def _judged(self) -> tuple[float | None, Verdict]:
        if self.judge is None:
            return None, Verdict.GO_ON
        deviances, held_out = self.patterns.shard.ranks.told(self.judge(self.settings.update.due(self.epoch)))
        return held_out, self.watch.told(deviances)

    def state_dict(self) -> State:
        """Where the loop is, between two batches, without the model."""
        return {
            **state_of(self, "electrons", "epoch", "notes"),
            "order": self.passes.order,
            "cursor": self.passes.cursor,
            "watch": self.watch.state_dict(),
            "judge": None if self.judge is None else self.judge.state_dict(),
            "start": self.rescue.start,
            "rescue": self.rescue.state_dict(),
            "best": None if self.best is self.rescue.good else self.best.tensors,
            "step": self.step.state_dict(),
        }

    def _load(self, state: State) -> None:
        self.epoch, self.notes = state["epoch"], state["notes"]
        self.watch.load_state_dict(state["watch"])
        self.rescue.load_state_dict(state["rescue"])
        self.best = self.rescue.good if state["best"] is None else Snapshot(self.model, placed(state["best"], self.engine.device))
        self.passes.cursor = state["cursor"]
        self.step = self.settings.step(self.engine, self.split, 0.5**self.rescue.returns)
        self.step.load_state_dict(state["step"], self.settings.update.due(self.epoch))


class _Passes:
    """One pass over the patterns that are solved for after another."""

    def __init__(self, settings: Settings, engine: Likelihood, patterns: Patterns, split: Split, order: NDArray[np.int64] | None) -> None:
        self.settings, self.engine, self.patterns, self.ranks = settings, engine, patterns, patterns.shard.ranks
        self.constraints = settings.constraints_for(engine.loss, engine.model)
        if order is None:
            order = split.train[hilbert_order(engine.model.positions.value_px.detach().cpu().numpy()[split.train])]
        self.order = order
        self.batch = min(settings.batch, len(self.order)) or len(self.order)
        self.least = patterns.least(engine.loss, engine.model.detector.mask)
        # A few patterns, spread over the field, show after each epoch whether all is well.
        few = np.linspace(0, len(self.order) - 1, min(_SAMPLE, len(self.order))).astype(np.int64)
        self.sample = [self.order[few]]
        #: Where the next pass begins, if it is not at the beginning.
        self.cursor: State | None = None
        self.recorded: Recorded | None = None

    def __call__(self, step: Step, epoch: int, after_batch: Callable[[], None]) -> float:
        """All batches, then the constraints; the deviance per pixel, on the way."""
        mask = self.engine.model.detector.mask
        self.ranks.copy_(self.engine.model.parameters())  # what processes have computed alike on unlike machines may differ by rounding
        with single_threaded():
            plan = stratified_batches(self.order, self.batch, self.settings.seed, epoch)
            if self.cursor is None:
                step.start_epoch(epoch, self.settings.update.due(epoch))
                self.cursor = {"batches": 0, "total": torch.zeros((), dtype=torch.float64), "measured": 0}
            if self.recorded is None or not self.recorded.fits(step):
                self.recorded = Recorded(step, self.engine, [len(part) for part in plan] if self.patterns.resident else [])
            first = self.cursor["batches"]
            total, measured = self.cursor["total"].to(mask.device), self.cursor["measured"]
            for number, (index, counts) in enumerate(self.patterns.shares(plan[first:]) if plan[first:] else (), first):
                self.engine.measures = number % _MEASURED_EVERY == 0
                loss = self.recorded(index, counts)
                if self.engine.measures:
                    total = total + (loss - self.least[index].sum())
                    measured += len(index)
                self.cursor = {"batches": number + 1, "total": total, "measured": measured}
                after_batch()
            self.cursor = None
            step.end_epoch()
            if self._finite():
                self.constraints.apply(self.engine.model, epoch, self.settings.update.due(epoch).held)
        return 2 * float(total) / (measured * float(mask.sum()))

    @torch.no_grad()
    def state(self) -> float:
        """The deviance per pixel of the model as it is; NaN if any number of it is not finite."""
        if not self.ranks.told(self._finite()):
            return math.nan
        (index, counts), *_ = self.patterns.batches(self.sample)
        image, counts, weight = seen(self.engine.model, index, counts)
        return self.ranks.told(float(deviances(self.engine.loss, image, counts, weight).sum() / weight.sum()))

    def _finite(self) -> bool:
        numbers = (torch.view_as_real(p) if p.is_complex() else p for p in self.engine.model.parameters())
        return all(bool(torch.isfinite(p).all()) for p in numbers)
