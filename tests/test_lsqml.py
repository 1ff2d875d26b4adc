"""LSQ-ML finds the truth, its steps are minima of the batch's loss, and they do not depend on the units of the probe."""

import copy

import pytest
import torch
from small import correlation, counts_of, empty, make, solve, summed_phase

from ptycho.adjoint import Likelihood, Wants
from ptycho.constraint import Constraints, PositivePhase, PurePhase
from ptycho.curvature import Curvature, Direction
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.loss import Loss
from ptycho.solvers import LSQML, Updates
from ptycho.solvers.tangent import Tangent

WANTED = Wants(probe=False)
CASES = {
    "one slice, one mode": {},
    "three slices": {"slices": 3, "strength": 0.8, "thickness_A": 15.0},
    "two modes": {"modes": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_without_noise_the_truth_comes_back(case):
    truth = make(scan=(10, 10), **CASES[case])
    model = empty(truth)
    losses = solve(LSQML(epochs=8, batch=16, constraints=Constraints(pure_phase=PurePhase())), model, counts_of(truth))
    assert losses[-1] < 0.05 * losses[0]
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.99


def test_few_electrons():
    truth = make(scan=(12, 12), step_px=2.0, electrons=3000.0, strength=1.0)
    counts = torch.poisson(counts_of(truth), generator=torch.Generator().manual_seed(0))
    model = empty(truth)
    solve(LSQML(epochs=12), model, counts)
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.9


@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_the_step_is_the_minimum_of_the_batch(name):
    truth = make(scan=(6, 6), slices=2, dtype=torch.float64)
    index, loss = torch.arange(0, 36, 3), Loss(name, floor=0.01 if name == "poisson" else 0.0)
    counts = counts_of(truth)[index]
    model = copy.deepcopy(truth)
    noise = 2e-3 * torch.randn(model.object.transmission.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.object.transmission.data *= torch.polar(torch.ones_like(noise), noise)
    engine = Likelihood(model, loss)
    corners, offsets = model.positions.split(index, model.size)

    def measured():
        return engine(corners, offsets, counts, model.probe.spectrum(), model.propagator.tilt_rad, WANTED)

    found = measured()
    line = torch.zeros_like(model.object.transmission.data)
    line[..., found.box[0], found.box[1]] = -found.object / model.illumination()[found.box].clamp_min(1.0)
    length = Curvature(engine, exact=False)(index, counts, [Direction(object=line)]).minimiser().item()
    start, values = model.object.transmission.data.clone(), []
    for factor in (0.0, 0.8, 1.0, 1.2):
        model.object.transmission.data = start + factor * length * line
        values.append(measured().loss.item())
    assert values[2] < min(values[0], values[1], values[3])


def test_the_object_does_not_depend_on_the_dose_without_noise():
    """More electrons in probe and patterns, the same steps: nothing has a unit."""
    models = []
    for electrons in (1e4, 64e4):
        truth = make(scan=(6, 6), electrons=electrons, dtype=torch.float64)
        # Not empty: where the model is dark the direction of the step is rounding.
        models.append(make(scan=(6, 6), electrons=electrons, dtype=torch.float64, seed=1))
        solve(LSQML(epochs=3, batch=8, loss="amplitude", constraints=Constraints()), models[-1], counts_of(truth))
    one, other = models
    torch.testing.assert_close(other.object.transmission.data, one.object.transmission.data, rtol=0, atol=1e-9)
    torch.testing.assert_close(other.probe.wave.data, 8 * one.probe.wave.data, rtol=0, atol=1e-6)


def test_momentum_takes_it_further():
    truth = make()
    counts = counts_of(truth)
    plain, fast = (solve(LSQML(epochs=4, memory=(0.4, 0.4), momentum=m, update=Updates(probe=0)), empty(truth), counts)[-1] for m in (0, 0.5))
    assert fast < plain


def test_annealing_lengthens_the_memory_until_there_is_nothing_to_lengthen():
    model = empty(make(scan=(4, 4)))
    settings = LSQML(epochs=100, memory=(0.1, 10.0))
    step, steps = settings.step(Likelihood(model, Loss("amplitude")), Split.whole(16), 1.0), []
    for epoch in range(1, 10):
        step.start_epoch(epoch, Updates().due(epoch))
        steps.append(step.memory)
        if not step.anneal():
            break
    assert len(steps) == 5
    assert steps == sorted(steps) and steps[-1] == pytest.approx(10.0)


def test_a_pure_phase_object_stays_one_through_the_batches():
    truth = make(scan=(6, 6))
    model = empty(truth)
    solve(LSQML(epochs=2, batch=8, constraints=Constraints(pure_phase=PurePhase(start=99))), model, counts_of(truth))
    torch.testing.assert_close(model.object.transmission.abs(), torch.ones_like(model.object.transmission.abs()), rtol=0, atol=1e-5)
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.9


def test_the_tangent_of_a_pure_phase_object_turns_it_only():
    random = torch.Generator().manual_seed(0)
    phase, step = torch.randn(2, 50, generator=random, dtype=torch.float64)
    transmission = torch.polar(torch.ones_like(phase), phase)
    along = 1e-3j * step * transmission
    across = step * transmission
    tangent = Tangent.of(Constraints(pure_phase=PurePhase()))
    torch.testing.assert_close(tangent.project(along + across, transmission), along)


def test_inwards_keeps_what_is_positive_and_what_no_detector_sees():
    phase = torch.tensor([[[[0.0, 0.0, 0.3, 3.5]]]], dtype=torch.float64)
    turns = torch.tensor([[[[-1.0, 2.0, -1.0, -3.0]]]], dtype=torch.float64)
    transmission, light = torch.polar(torch.ones_like(phase), phase), torch.ones(1, 4, dtype=torch.float64)
    tangent = Tangent.of(Constraints(pure_phase=PurePhase(), positive_phase=PositivePhase()))
    found = tangent.inwards(1j * turns * transmission, transmission, light)
    mean = turns.mean()
    expected = torch.where((phase == 0) & (turns < mean), 0, turns - mean)
    torch.testing.assert_close((found / (1j * transmission)).real, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": (0.0, 0.1)}, "memory"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"illumination_floor": 0.0}, "illumination_floor = 0.0"),
        ({"measured_every": 0}, "measured_every = 0"),
    ],
)
def test_impossible_numbers_are_refused(options, words):
    with pytest.raises(RecipeError, match=words):
        LSQML(**options)
