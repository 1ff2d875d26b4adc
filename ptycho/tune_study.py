"""The trials of a search in a file that processes on many machines share (optuna's journal), each carried out exactly once.

There are N slots from the beginning. Who claims one writes its name on it; when it dies, somebody else puts the same candidate back. All of this
happens under one lock, so that nothing is lost and nothing is done twice.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from ptycho.tune_ranges import Range, Value

#: A lock that is this old is that of a process that died with it in its hands: the journal's, held for a write, and ours, whose holder may
#: have to wait for the journal's.
_JOURNAL_GRACE_S, _GRACE_S = 5, 20
#: Trials that are drawn evenly before the search begins to prefer, and before anything is cut short; passes that no trial is cut before.
_EVENLY, _BEFORE_CUTS, _FIRST_PASSES = 10, 5, 2
#: A candidate whose process has died so often kills processes.
_LIVES = 3
#: A claim without a name on it is that of a process that died in the act.
_NAMELESS_S = 120.0
#: The importance of a key is what sets this best share of the trials apart from all (PED-ANOVA); fewer trials say nothing.
_BEST_SHARE, _FEWEST = 0.25, 8

#: The reason why most trials are not carried to the end.
CUT = "worse than the median at the same pass"

State = Literal["waiting", "running", "done", "cut", "failed"]


@dataclass(frozen=True)
class Score:
    """Held-out deviance per pixel, and that of each block of held-out patterns."""

    deviance: float
    blocks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A candidate that this process has taken on: the ``slot``, optuna's own ``number``, the values of what is varied."""

    slot: int
    number: int
    values: dict[str, Value]


@dataclass(frozen=True)
class Row:
    """How a slot stands. ``score`` is the last known one, also of a trial that was cut short; ``reason`` tells why one failed."""

    slot: int
    state: State
    values: dict[str, Value]
    score: Score | None
    epochs: int
    seconds: float
    worker: str
    reason: str


class LostError(Exception):
    """Somebody took this process for dead and gave its candidate to another."""


class Search:
    """The study in ``folder``: made by whoever comes first, joined by all others; ``ranges`` and ``seed`` are the same for all.

    With ``prune`` a trial whose held-out deviance is above the median of the others' at the same pass is cut short.
    """

    def __init__(self, folder: Path, ranges: Sequence[Range], seed: int = 0, prune: bool = True) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {r.key: _distribution(r) for r in ranges}
        journal = str(folder / "journal.log")
        self._lock = JournalFileOpenLock(str(folder / "claims"), grace_period=_GRACE_S)
        own_lock = JournalFileOpenLock(journal, grace_period=_JOURNAL_GRACE_S)
        backend = JournalFileBackend(journal, own_lock)
        pruner = optuna.pruners.MedianPruner(_BEFORE_CUTS, _FIRST_PASSES) if prune else optuna.pruners.NopPruner()
        with self._alone():
            _mend(Path(journal), own_lock)
            self._study = optuna.create_study(
                storage=JournalStorage(backend), study_name="tune", sampler=_Sampler(seed), pruner=pruner, load_if_exists=True
            )
        self._trials: dict[int, optuna.Trial] = {}

    def fill(self, count: int, own: Mapping[str, Value] | None) -> None:
        """Make the slots that are missing of ``count``. Slot 0 is the recipe with its ``own`` values, or None: none of its values changed."""
        with self._alone():
            there = {slot_of(trial) for trial in self._kept()}
            for slot in range(count):
                if slot not in there:
                    self._study.enqueue_trial(dict(own or {}) if slot == 0 else {}, user_attrs={"slot": slot, "as_it_is": slot == 0 and own is None})

    def claim(self, worker: str) -> Claim | None:
        """The next candidate that waits, None when there is none."""
        with self._alone():
            if not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return None
            trial = self._study.ask()
            attrs = trial.user_attrs
            if "slot" not in attrs:  # a lock that was taken by force let two in, and the other was first
                self._study.tell(trial, state=TrialState.FAIL)
                return None
            trial.set_user_attr("worker", worker)
            values = {} if attrs.get("as_it_is") else {key: _suggest(trial, key, d) for key, d in self._distributions.items()}
        self._trials[trial.number] = trial
        return Claim(int(attrs["slot"]), trial.number, values)

    def report(self, claim: Claim, epoch: int, score: Score) -> bool:
        """Say how a candidate does after a pass; True when it is not worth going on. Raises LostError."""
        with _lost():
            trial = self._trials[claim.number]
            trial.report(score.deviance, epoch)
            trial.set_user_attr("blocks", list(score.blocks))
            return trial.should_prune()

    def finish(self, claim: Claim, score: Score | None, reason: str = CUT) -> None:
        """Close a slot: with its score, or, without one, for a ``reason``. Raises LostError."""
        with _lost(), self._alone():
            trial = self._trials.pop(claim.number)
            if score is not None:
                self._study.tell(claim.number, score.deviance)
                return
            trial.set_user_attr("reason", reason)
            self._study.tell(claim.number, state=TrialState.PRUNED)

    def give_back(self, claim: Claim) -> None:
        """The same candidate will be taken on by another process."""
        with self._alone():
            trial = self._study.get_trials(deepcopy=False)[claim.number]
            if trial.state is TrialState.RUNNING:
                self._put_back(trial, int(trial.user_attrs.get("lives", _LIVES)))

    def rescue(self, alive: Callable[[str], bool]) -> int:
        """Put back what dead processes had claimed; how many. ``alive`` knows them by the name with which they claimed."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if all(_is_held(trial, alive) for trial in running):
            return 0
        count = 0
        with self._alone():
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if not _is_held(trial, alive):
                    count += 1
                    self._put_back(trial, int(trial.user_attrs.get("lives", _LIVES)) - 1)
        return count

    def _put_back(self, trial: FrozenTrial, lives: int) -> None:
        """Enqueue a copy before the trial is closed: a process that dies between leaves both, of which the next one keeps the copy."""
        if lives <= 0:
            self._study.tell(trial.number, state=TrialState.PRUNED)
            return
        attrs = {"slot": slot_of(trial), "as_it_is": trial.user_attrs.get("as_it_is", False), "lives": lives}
        if not any(slot_of(other) == slot_of(trial) and other.number > trial.number for other in self._kept()):
            self._study.enqueue_trial(_fixed(trial), user_attrs=attrs)
        self._study.tell(trial.number, state=TrialState.FAIL)

    def rows(self) -> tuple[Row, ...]:
        """All slots, in their order."""
        return tuple(sorted((_row(trial) for trial in self._kept()), key=lambda row: row.slot))

    def importances(self) -> dict[str, float]:
        """Share of each key in what sets the best quarter of the trials apart (PED-ANOVA, Watanabe et al., IJCAI 2023); none of too few trials."""
        done = [t for t in self._kept() if t.state is TrialState.COMPLETE and t.params.keys() == self._distributions.keys()]
        if len(done) < _FEWEST:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study()
            study.add_trials(done)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
            return optuna.importance.get_param_importances(study, evaluator=evaluator)

    def _kept(self) -> list[FrozenTrial]:
        """One trial for each slot: those that were lost are marked as failed."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state is not TrialState.FAIL]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what optuna calls experimental, and values outside of a range
                yield
        finally:
            # A process that was suspended for long has lost it to another, and what it did then is told by the trials' states.
            with suppress(RuntimeError):
                self._lock.release()


class _Sampler(BaseSampler):
    """Optuna's tree-structured Parzen estimator, with draws that depend on the seed and the trial alone, whoever makes them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._inner = TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A fresh start for each."""
        seed = 10007 * self.seed + int(trial.user_attrs.get("slot", trial.number))
        self._inner = TPESampler(n_startup_trials=_EVENLY, multivariate=True, constant_liar=True, seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the estimator says."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As the estimator says."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """As the estimator says."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)


def slot_of(trial: FrozenTrial) -> int:
    """The slot that a trial is for."""
    return int(trial.user_attrs["slot"])


def _fixed(trial: FrozenTrial) -> dict[str, Any]:
    """The values a trial has, or those it was to have: with these it will be the same candidate again."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _is_held(trial: FrozenTrial, alive: Callable[[str], bool]) -> bool:
    if "worker" in trial.user_attrs:
        return alive(trial.user_attrs["worker"])
    return trial.datetime_start is None or time.time() - trial.datetime_start.timestamp() < _NAMELESS_S


def _distribution(r: Range) -> BaseDistribution:
    if r.choices:
        return CategoricalDistribution(r.choices)
    return IntDistribution(int(r.low), int(r.high), log=r.log) if r.whole else FloatDistribution(r.low, r.high, log=r.log)


def _suggest(trial: optuna.Trial, key: str, d: BaseDistribution) -> Value:
    if isinstance(d, FloatDistribution):
        # Six digits are what a recipe shows; the candidate is what is shown.
        return float(f"{trial.suggest_float(key, d.low, d.high, log=d.log):.6g}")
    if isinstance(d, IntDistribution):
        return trial.suggest_int(key, d.low, d.high, log=d.log)
    assert isinstance(d, CategoricalDistribution)
    value: Any = trial.suggest_categorical(key, d.choices)
    return value


def _row(trial: FrozenTrial) -> Row:
    attrs, passes = trial.user_attrs, trial.intermediate_values
    states: dict[TrialState, State] = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running", TrialState.COMPLETE: "done"}
    reason = attrs.get("reason", f"{_LIVES} processes died of it") if trial.state is TrialState.PRUNED else ""
    last = trial.value if trial.state is TrialState.COMPLETE else passes.get(max(passes, default=0))
    return Row(
        slot=slot_of(trial),
        state=states.get(trial.state, "cut" if reason == CUT else "failed"),
        values={key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in trial.params.items()},
        score=None if last is None else Score(last, tuple(attrs.get("blocks", ()))),
        epochs=max(passes, default=0),
        seconds=trial.duration.total_seconds() if trial.duration is not None else 0.0,
        worker=str(attrs.get("worker", "")),
        reason=reason,
    )


@contextmanager
def _lost() -> Iterator[None]:
    """Optuna's word for a trial that was closed by another process as LostError."""
    try:
        yield
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
        if isinstance(error, ValueError) and "tell" not in str(error):
            raise
        raise LostError from None


def _mend(journal: Path, lock: JournalFileOpenLock) -> None:
    """Cut off half a line, that of a process that died while it wrote, before others write behind it."""
    lock.acquire()
    try:
        with open(journal, "rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
