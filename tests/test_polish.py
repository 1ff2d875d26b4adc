"""The polish goes down with every step, and further than solvers that move with every batch."""

import copy
import itertools

import pytest
import torch
from small import correlation, counts_of, empty, make, solve, summed_phase

from ptycho.adjoint import Likelihood
from ptycho.constraint import Constraints, PurePhase
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.loss import Loss
from ptycho.solvers import LSQML, Gradient, Polish, Updates

CONSTRAINTS = {"none": Constraints(), "those by default": None, "pure phase": Constraints(pure_phase=PurePhase())}


def begun(truth, counts, constraints):
    """A model after a few passes in batches, that have come to rest."""
    model = empty(truth)
    solve(LSQML(epochs=4, batch=16, constraints=constraints), model, counts)
    return model


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_step_goes_down_and_below_what_batches_reach(name, exact):
    truth, constraints = make(scan=(9, 9)), CONSTRAINTS[name]
    counts = counts_of(truth)
    model = begun(truth, counts, constraints)
    batches, start = copy.deepcopy(model), correlation(summed_phase(model), summed_phase(truth))
    losses = solve(Polish(epochs=8, constraints=constraints, exact_curvature=exact), model, counts)
    assert all(after < before for before, after in itertools.pairwise(losses))
    floor = min(solve(Gradient(epochs=8, batch=16, memory=(1.0, 1.0), constraints=constraints, update=Updates(probe=1)), batches, counts))
    assert losses[-1] < 0.5 * floor
    assert correlation(summed_phase(model), summed_phase(truth)) > start


def test_batches_chunks_and_workers_have_no_influence():
    truth = make(scan=(6, 6), slices=2, modes=2, dtype=torch.float64)
    counts = counts_of(truth)
    models = [begun(truth, counts, None)]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    for model, batch, chunk, workers in zip(models, (0, 7, 10), (0, 1, 3), (1, 1, 2), strict=True):
        solve(Polish(epochs=3, batch=batch, chunk=chunk), model, counts, workers)
    for other in models[1:]:
        for a, b in ((models[0].object.transmission, other.object.transmission), (models[0].probe.wave, other.probe.wave)):
            torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-7 * a.detach().abs().max().item())


def test_a_step_that_was_too_long_is_halved():
    truth = make(scan=(6, 6))
    counts, index = counts_of(truth), torch.arange(36)
    model = begun(truth, counts, None)
    settings = Polish(update=Updates(object=1, probe=0), constraints=Constraints())
    step, states, losses = settings.step(Likelihood(model, Loss("amplitude")), Split.whole(36), 1.0), [], []
    for epoch in (1, 2):
        states.append(model.object.transmission.detach().clone())
        step.start_epoch(epoch, settings.update.due(epoch))
        losses.append(step.batch(index, counts))
        step.end_epoch()
        if epoch == 1:
            model.object.transmission.data += 20 * (model.object.transmission.data - states[0])
    assert losses[1] > losses[0]
    torch.testing.assert_close(model.object.transmission.detach(), (states[0] + states[1]) / 2)


def test_modes_and_slices():
    truth = make(scan=(8, 8), slices=2, modes=2, thickness_A=40.0)
    counts = counts_of(truth)
    model = begun(truth, counts, None)
    losses = solve(Polish(epochs=6), model, counts)
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_not_due_stays():
    truth = make(scan=(4, 4))
    model = empty(truth)
    probe = model.probe.wave.detach().clone()
    solve(Polish(epochs=2, update=Updates(object=1, probe=0), constraints=Constraints()), model, counts_of(truth))
    assert torch.equal(model.probe.wave, probe)
    assert (model.object.transmission != 1).any()


@pytest.mark.parametrize("options", [{"illumination_floor": 0.0}, {"measured_patterns": 0}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        Polish(**options)
