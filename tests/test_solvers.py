"""The engines are the published ones to rounding; every solver lowers the loss, repeats itself, and ignores what is masked."""

import copy

import numpy as np
import pytest
import torch
from small import Counts, correlation, counts_of, empty, make, solve, summed_phase

from ptycho.batches import hilbert_order, stratified_batches
from ptycho.constraint import Constraints
from ptycho.errors import DivergedError, RecipeError
from ptycho.solvers import EPIE, LSQML, Gradient, MixedState, Updates

FREE = Constraints()
#: What the textbook does: one pattern at a time, object and probe together, constant steps, no constraints.
PLAIN = {"object_step": (1.0, 1.0), "probe_step": 1.0, "batch": 1, "loss": "amplitude", "update": Updates(object=1, probe=1), "constraints": FREE}


def exact(**options):
    """A model in float64 whose positions are whole pixels and whose detector has no pixel area."""
    return make(scan=(4, 4), step_px=3.0, size=24, defocus_A=60.0, dtype=torch.float64, pixel_area=False, **options)


def textbook(model, counts, order, r_object=1.0, r_probe=1.0, probe_step=1.0, eta=0.0, every=0):
    """ePIE (Maiden & Rodenburg 2009), rPIE and mPIE (Maiden, Johnson & Li 2017), for modes (Thibault & Menzel 2013); arrays of NumPy."""
    o, p = model.object.transmission.detach().numpy()[0, 0].copy(), model.probe.wave.detach().numpy().copy()
    places = model.positions.value_px.detach().numpy().astype(int) - p.shape[-1] // 2
    memory, velocity = [o.copy(), p.copy()], [0 * o, 0 * p]
    for number, j in enumerate(order, start=1):
        window = (slice(places[j, 0], places[j, 0] + p.shape[-1]), slice(places[j, 1], places[j, 1] + p.shape[-1]))
        old = o[window].copy()
        far = np.fft.fft2(old * p)
        intensity = (np.abs(far) ** 2).sum(0) / old.size
        change = np.fft.ifft2(far * (np.sqrt(counts[j] / intensity) - 1))
        light, power = (np.abs(p) ** 2).sum(0), np.abs(old) ** 2
        o[window] += (p.conj() * change).sum(0) / ((1 - r_object) * light + r_object * light.max())
        p += probe_step * old.conj() * change / ((1 - r_probe) * power + r_probe * power.max())
        if every and number % every == 0:
            for leaf, before, v in zip((o, p), memory, velocity, strict=True):
                v[:] = eta * v + leaf - before
                leaf += eta * v
                before[:] = leaf
    return o, p


TEXTBOOK = {
    "ePIE": ({}, {}),
    "ePIE with a shorter probe step": ({"probe_step": 0.4}, {"probe_step": 0.4}),
    "rPIE": ({"object_damping": 0.15, "probe_damping": 0.3}, {"r_object": 0.15, "r_probe": 0.3}),
    "mPIE": (
        {"object_damping": 0.5, "probe_damping": 0.5, "momentum": 0.7, "momentum_every": 3},
        {"r_object": 0.5, "r_probe": 0.5, "eta": 0.7, "every": 3},
    ),
}


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize("case", TEXTBOOK)
def test_the_engines_are_the_published_ones(case, modes):
    ours, theirs = TEXTBOOK[case]
    truth = exact(modes=modes)
    counts = counts_of(truth) * 1.1
    model = exact(modes=modes, seed=1)  # not empty: where the model is dark the direction of the step is not defined
    model.object.transmission.data *= 0.9
    start = copy.deepcopy(model)
    solve(EPIE(**{**PLAIN, "epochs": 2, **ours}), model, counts)
    order = hilbert_order(model.positions.value_px.detach().numpy())
    plan = np.concatenate([np.concatenate(stratified_batches(order, 1, 0, epoch)) for epoch in (1, 2)])
    o, p = textbook(start, counts.numpy(), plan, **theirs)
    np.testing.assert_allclose(model.object.transmission.detach().numpy()[0, 0], o, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.probe.wave.detach().numpy(), p, rtol=0, atol=1e-10 * np.abs(p).max())
    assert np.abs(o - start.object.transmission.detach().numpy()[0, 0]).max() > 0.01  # something has happened


def test_mixed_state_is_mixed_epie_with_orthogonal_sorted_modes():
    truth = exact(modes=3)
    counts = counts_of(truth)[:1]
    model = exact(modes=3, seed=1)
    model.positions = type(model.positions)(model.positions.value_px.detach()[:1])
    start = copy.deepcopy(model)
    solve(MixedState(modes=3, epochs=1, **PLAIN), model, counts)
    o, p = textbook(start, counts.numpy(), [0])
    np.testing.assert_allclose(model.object.transmission.detach().numpy()[0, 0], o, rtol=0, atol=1e-10)
    # The modes are turned among themselves: what they have in common is their density matrix.
    found = model.probe.wave.detach().numpy().reshape(3, -1)
    p = p.reshape(3, -1)
    np.testing.assert_allclose(found.T @ found.conj(), p.T @ p.conj(), rtol=0, atol=1e-8)
    gram = found @ found.conj().T
    assert np.abs(gram - np.diag(gram.diagonal())).max() < 1e-9 * gram[0, 0].real
    assert (np.diff(gram.diagonal().real) < 0).all()


def test_mixed_state_seeds_modes_and_keeps_the_power():
    truth = make(scan=(6, 6), modes=3)
    model = empty(make(scan=(6, 6), modes=1))
    losses = solve(MixedState(modes=3, epochs=6), model, counts_of(truth))
    assert model.probe.wave.shape[0] == 3
    assert model.probe.power().sum().item() == pytest.approx(1e5, rel=1e-3)
    assert losses[-1] < 0.2 * losses[0]


def test_momentum_speeds_epie_up():
    truth = make()
    counts = counts_of(truth)
    options = ({}, {"momentum": 0.7, "momentum_every": 4})
    plain, fast = (solve(EPIE(epochs=4, update=Updates(probe=0), **o), empty(truth), counts)[-1] for o in options)
    assert fast < plain


SOLVERS = {
    "nesterov": Gradient(epochs=6, batch=8),
    "Adam": Gradient(epochs=6, batch=8, optimizer="Adam", lr=0.02),
    "SGD": Gradient(epochs=6, batch=8, optimizer="SGD", lr=2.0),
    "RMSprop": Gradient(epochs=6, batch=8, optimizer="RMSprop", lr=0.005, lr_probe=1e-3),
    "LBFGS": Gradient(epochs=2, batch=0, optimizer="LBFGS"),
    "ePIE": EPIE(epochs=6),
    "rPIE": EPIE(epochs=6, object_damping=0.2, probe_damping=0.5),
    "mixed_state": MixedState(epochs=6, modes=2),
    "LSQ-ML": LSQML(epochs=6),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_lowers_the_loss_and_finds_the_object(name):
    truth = make()
    model = empty(truth)
    losses = solve(SOLVERS[name], model, counts_of(truth))
    assert losses[-1] < 0.3 * losses[0]
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.95


@pytest.mark.parametrize("loss", ["amplitude", "anscombe", "poisson", "power"])
def test_every_loss_can_be_lowered(loss):
    truth = make(scan=(6, 6))
    model = empty(truth)
    losses = solve(Gradient(epochs=6, batch=8, loss=loss), model, counts_of(truth))
    assert losses[-1] < 0.1 * losses[0]
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.97


def test_a_perfect_model_has_no_loss_and_stays():
    truth = make(scan=(5, 5))
    for solver in (Gradient(epochs=2, constraints=Constraints()), EPIE(epochs=2), LSQML(epochs=2)):
        model = copy.deepcopy(truth)
        assert max(solve(solver, model, counts_of(truth))) < 1e-4
        assert (model.object.transmission - truth.object.transmission).abs().max() < 1e-2


def leaves(model):
    return [model.object.transmission.detach(), model.probe.wave.detach(), model.positions.value_px.detach()]


@pytest.mark.parametrize("name", ["nesterov", "Adam", "ePIE", "LSQ-ML"])
def test_the_same_seed_gives_the_same_bits(name):
    truth = make(scan=(6, 6), slices=2)
    counts = counts_of(truth)
    models = [empty(truth) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        solver = SOLVERS[name]
        solve(type(solver)(**{**vars(solver), "seed": seed, "batch": 8, "update": Updates(positions=2)}), model, counts, workers=2)
    assert all(torch.equal(a, b) for a, b in zip(leaves(models[0]), leaves(models[1]), strict=True))
    assert not torch.equal(leaves(models[0])[0], leaves(models[2])[0])


@pytest.mark.parametrize("name", ["nesterov", "ePIE", "LSQ-ML"])
def test_chunks_and_workers_do_not_change_the_result(name):
    truth = make(scan=(6, 6), slices=2, modes=2, dtype=torch.float64)
    counts = counts_of(truth)
    models = [empty(truth) for _ in range(3)]
    for model, chunk, workers in zip(models, (0, 1, 3), (1, 1, 2), strict=True):
        solver = SOLVERS[name]
        solve(type(solver)(**{**vars(solver), "epochs": 2, "chunk": chunk, "update": Updates(positions=2, tilt=2)}), model, counts, workers)
    for other in models[1:]:
        for a, b in zip(leaves(models[0]), leaves(other), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * a.abs().max().item())


@pytest.mark.parametrize("value", [0.0, 1e9, float("nan"), -3.0])
@pytest.mark.parametrize("name", ["nesterov", "ePIE", "LSQ-ML"])
def test_masked_pixels_have_no_influence(name, value):
    mask = torch.ones(32, 32)
    mask[3:6, 28:31] = 0
    truth = make(scan=(5, 5), mask=mask)
    counts = counts_of(truth)
    clean, dirty = empty(truth), empty(truth)
    first = solve(SOLVERS[name], clean, counts)
    counts[:, mask == 0] = value
    # The auto loss looks at the mean electrons; here the pixels alone are of interest.
    second = solve(type(SOLVERS[name])(**{**vars(SOLVERS[name]), "loss": "amplitude"}), dirty, counts)
    np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-7)
    for a, b in zip(leaves(clean), leaves(dirty), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * a.abs().max().item())


def test_masked_pixels_taken_for_dark_ones_spoil_the_object():
    hole = torch.ones(32, 32)
    hole[2:5, 0:3] = 0  # inside the bright-field disk
    truth = make(mask=hole)
    masked, twin = empty(truth), empty(make())
    counts = counts_of(truth) * hole
    for model in (masked, twin):
        solve(Gradient(epochs=8, batch=8), model, counts)
    right, wrong = (1 - correlation(summed_phase(model), summed_phase(truth)) for model in (masked, twin))
    assert right < 0.005 and wrong > 3 * right


def test_single_missing_pixels_are_left_out():
    truth = make(scan=(6, 6))
    counts = counts_of(truth)
    counts[torch.rand(counts.shape, generator=torch.Generator().manual_seed(0)) < 0.02] = float("nan")
    model = empty(truth)
    losses = solve(Gradient(epochs=6, batch=8), model, counts)
    assert np.isfinite(losses).all()
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.95


@pytest.mark.parametrize("optimizer", ["nesterov", "Adam"])
def test_what_is_not_due_stays(optimizer):
    truth = make(scan=(4, 4), slices=2)
    counts = counts_of(truth)
    model = empty(truth)
    before = leaves(copy.deepcopy(model))
    solver = Gradient(optimizer=optimizer, epochs=3, update=Updates(object=1, probe=2, positions=3))
    states = [copy.deepcopy(leaves(model)) for _ in solver.run(model, Counts(counts))]
    for number, first in enumerate((1, 2, 3)):
        for epoch, state in enumerate(states, start=1):
            assert torch.equal(state[number], before[number]) == (epoch < first), (number, epoch)
    assert torch.equal(model.propagator.tilt_rad, truth.propagator.tilt_rad)


@pytest.mark.parametrize("optimizer", ["nesterov", "Adam"])
def test_an_epoch_with_nothing_due_is_allowed(optimizer):
    truth = make(scan=(4, 4))
    model = empty(truth)
    losses = solve(Gradient(optimizer=optimizer, epochs=2, update=Updates(object=2, probe=0)), model, counts_of(truth))
    assert len(losses) == 2
    assert (model.object.transmission != 1).any()


def test_divergence_is_told():
    truth = make(scan=(4, 4))
    with pytest.raises(DivergedError, match="epoch"):
        solve(Gradient(optimizer="SGD", lr=float("1e30"), epochs=5, loss="poisson", constraints=FREE), empty(truth), counts_of(truth))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Gradient, {"optimizer": "Adamm"}, "Adamm"),
        (Gradient, {"optimizer": "Optimizer"}, "Optimizer"),
        (Gradient, {"momentum": 1.0}, "momentum = 1.0"),
        (Gradient, {"epochs": 0}, "epochs = 0"),
        (EPIE, {"object_damping": 0.0}, "damping"),
        (EPIE, {"momentum": 1.0}, "momentum = 1.0"),
        (MixedState, {"seed_share": 1.0}, "seed_share = 1.0"),
        (Updates, {"probe": -1}, "update.probe = -1"),
    ],
)
def test_impossible_numbers_are_refused(kind, options, words):
    with pytest.raises(RecipeError, match=words):
        kind(**options)
