"""A run ends when the held-out patterns say so, and comes back from a step too far."""

import copy

import numpy as np
import pytest
import torch
from small import Counts, correlation, counts_of, empty, make, solve, summed_phase

from ptycho.constraint import Constraints, PositivePhase, PurePhase
from ptycho.errors import DivergedError, RecipeError
from ptycho.holdout import Split, hold_out
from ptycho.solvers import EPIE, Gradient, Updates
from ptycho.solvers.stop import Rescue, Snapshot, Stop, Verdict, Watch

PATTERNS = 20


def verdicts(curve, noise=0.0, shared=5.0, stop=None, first=1, seed=0):
    """What the rule says after each epoch of a curve of mean deviances; each pattern has its own level and its own noise in each epoch."""
    random = np.random.default_rng(seed)
    level = random.normal(0, shared, PATTERNS)
    watch = Watch(stop or Stop(), first)
    return [watch.told(value + level + random.normal(0, noise, PATTERNS)) for value in curve], watch


def ending(curve, **options):
    """The epoch of the first verdict to stop and the verdict."""
    found, _ = verdicts(curve, **options)
    return next(((epoch, v) for epoch, v in enumerate(found, 1) if v is not Verdict.GO_ON), (None, Verdict.GO_ON))


@pytest.mark.parametrize("seed", range(5))
def test_a_curve_that_has_come_to_rest_is_stopped(seed):
    curve = 100 + 20 * 0.5 ** np.arange(60)
    epoch, verdict = ending(curve, noise=0.3, seed=seed)
    assert verdict is Verdict.AT_REST and 10 <= epoch <= 30


@pytest.mark.parametrize("seed", range(5))
def test_a_plateau_that_still_falls_is_not_the_end(seed):
    # Forty epochs that fall by a ten-thousandth each, less than the tolerance over the patience, and then the way down.
    curve = np.concatenate([100 + 20 * 0.4 ** np.arange(10), 100 * (1 - 1e-4 * np.arange(40)), 99.6 - 3 * np.arange(10)])
    assert ending(curve, noise=0.02, seed=seed) == (None, Verdict.GO_ON)
    # The same fall in noise in which nobody can see it is the end.
    assert ending(100 * (1 - 1e-4 * np.arange(60)), noise=1.0, seed=seed)[1] is not Verdict.GO_ON


@pytest.mark.parametrize("seed", range(5))
def test_a_rising_curve_is_over_fitting_and_the_best_epoch_is_known(seed):
    curve = 100 + 20 * 0.3 ** np.arange(40) + 0.5 * np.maximum(0, np.arange(40) - 12)
    found, watch = verdicts(curve, noise=0.2, seed=seed)
    epoch = next(e for e, v in enumerate(found, 1) if v is not Verdict.GO_ON)
    kept = watch.best if found[epoch - 1] is Verdict.OVER_FITTING else epoch
    assert epoch <= 22 and curve[kept - 1] < curve.min() + 1.6
    found, watch = verdicts(100 + 2.0 * np.abs(np.arange(10) - 4), noise=0.2, seed=seed)
    assert found[-1] is Verdict.OVER_FITTING and watch.best == 5


def test_no_verdict_before_its_time():
    flat = np.full(40, 100.0)
    assert ending(flat)[0] == Stop().min_epochs
    assert ending(flat, first=15)[0] == 15 + Stop().patience
    assert ending(flat, stop=Stop(patience=3, min_epochs=1))[0] == 4
    assert ending(flat, stop=Stop(patience=0)) == (None, Verdict.GO_ON)
    watch = Watch(Stop(patience=3, min_epochs=1), 1)
    told = []
    for _ in range(12):
        told.append(watch.told(np.full(PATTERNS, 100.0)))
        if told[-1] is not Verdict.GO_ON:
            watch.restart()
    assert [epoch for epoch, verdict in enumerate(told, 1) if verdict is not Verdict.GO_ON] == [4, 8, 12]
    with pytest.raises(RecipeError, match="patience = -1"):
        Stop(patience=-1)


def low_dose(electrons=800.0, scan=16, seed=0):
    truth = make(scan=(scan, scan), step_px=2.0, electrons=electrons)
    counts = torch.poisson(counts_of(truth), generator=torch.Generator().manual_seed(seed))
    split = hold_out(truth.positions.value_px.detach().numpy(), 19.0)
    assert len(split.held) >= 8
    return truth, Counts(counts), split


def test_an_over_fitting_run_is_stopped_at_its_best():
    truth, counts, split = low_dose()
    weak = Constraints(pure_phase=PurePhase(), positive_phase=PositivePhase(mean_phase_rad=0.2))
    solver = Gradient(epochs=16, memory=(0.3, 0.02), update=Updates(probe=0), constraints=weak)
    scores, model = [], empty(truth)
    for _ in type(solver)(**{**vars(solver), "stop": Stop(patience=0)}).run(model, counts, split=split):
        scores.append(correlation(summed_phase(model), summed_phase(truth)))
    assert scores[-1] < 0.93 * max(scores)  # it does over-fit
    model = empty(truth)
    history = list(solver.run(model, counts, split=split))
    assert len(history) < 16 and "over-fitting: back to epoch" in history[-1].note
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.97 * max(scores)


def test_patterns_that_judge_have_no_influence():
    truth, counts, split = low_dose(1e4, 12)
    solver, models = Gradient(epochs=3, update=Updates(probe=1), stop=Stop(patience=0)), []
    for factor in (1, 3):
        counts.counts[split.held] *= factor
        models.append(empty(truth))
        epochs = list(solver.run(models[-1], counts, split=split))
    assert torch.equal(models[0].object.transmission, models[1].object.transmission) and epochs[-1].held_out > 5


def test_held_out_positions_follow_and_the_truth_scores_one():
    truth, counts, split = low_dose(1e6, 12)
    model = copy.deepcopy(truth)
    moved = torch.zeros(144, 2)
    moved[split.held] = 0.5
    model.positions.value_px.data += moved
    held = [epoch.held_out for epoch in Gradient(epochs=15, update=Updates(object=0, probe=0, positions=1)).run(model, counts, split=split)]
    assert held[0] > 1.1 and held[-1] == pytest.approx(1, abs=0.06)
    error = (model.positions.value_px - truth.positions.value_px).detach()[split.held]
    assert float(error.square().mean().sqrt()) < 0.15


def test_without_held_out_patterns_all_epochs_are_done():
    truth = make(scan=(4, 4))
    history = list(Gradient(epochs=12).run(empty(truth), Counts(counts_of(truth)), split=Split.whole(16)))
    assert len(history) == 12 and {epoch.held_out for epoch in history} == {None}
    assert [epoch.note for epoch in history] == [""] * 11 + ["all epochs done"]


def test_a_snapshot_brings_everything_back():
    model = make(scan=(3, 3), slices=2)
    kept, before = Snapshot(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    kept.restore(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


FAST = {"epochs": 5, "loss": "amplitude"}


@pytest.mark.parametrize("solver", [Gradient(memory=(0.02, 0.02), **FAST), EPIE(object_step=(1.0, 1.0), **FAST)])
def test_a_step_too_far_is_taken_back_and_halved(solver):
    class Wild(type(solver)):
        def step(self, engine, split, factor):
            return super().step(engine, split, 16 * factor)

    truth = make(scan=(6, 6), electrons=1e6)
    model = empty(truth)
    history = list(Wild(**vars(solver)).run(model, Counts(counts_of(truth))))
    assert len(history) == 5 and any("back to the epoch before, with half the step" in epoch.note for epoch in history)
    assert history[-1].loss < 0.2 * history[0].loss


def test_what_does_not_come_back_is_told():
    truth = make(scan=(4, 4))
    model = empty(truth)
    with pytest.raises(DivergedError, match=r"epoch \d: .* an eighth"):
        solve(Gradient(optimizer="SGD", lr=1e30, epochs=3), model, counts_of(truth))
    rescue = Rescue(model, 2.0, 1.0)
    assert rescue.diverged(float("nan")) and rescue.diverged(7.0) and not rescue.diverged(5.0)
    rescue.keep(1.1)
    assert rescue.diverged(3.5) and not rescue.diverged(3.0)
    assert not Rescue(model, 1e-6, 1.0).diverged(0.2)  # rounding of a perfect model
