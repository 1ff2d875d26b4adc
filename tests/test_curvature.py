"""Slopes and curvatures along directions are those of autograd, to rounding; the steps made of them are minima."""

import pytest
import torch
from test_adjoint import CASES, small_model

from ptycho.adjoint import Likelihood
from ptycho.curvature import Curvature, Direction, Quadratic
from ptycho.loss import Loss

INDEX = torch.tensor([5, 0, 3, 6, 2])


def directions(model):
    """Three directions that move everything, the object alone, and the probe alone."""
    random = torch.Generator().manual_seed(11)

    def like(tensor):
        return torch.randn(tensor.shape, generator=random, dtype=tensor.dtype)

    object_, wave = model.object.transmission, model.probe.wave
    offsets = torch.randn(len(INDEX), 2, generator=random, dtype=torch.float64)
    return [
        Direction(0.1 * like(object_), 0.1 * like(wave), 0.2 * offsets, 3 * like(model.probe.correction_A)),
        Direction(object=0.1 * like(object_)),
        Direction(probe=0.1 * like(wave)),
    ]


def moved(model, counts, loss, lines):
    """The loss as a function of the steps along the lines, through the readable model."""
    leaves = {name: p.detach() for name, p in model.named_parameters()}

    def value(steps):
        changed = dict(leaves)
        for step, line in zip(steps, lines, strict=True):
            position = None if line.offsets_px is None else torch.zeros_like(leaves["positions.value_px"]).index_add(0, INDEX, line.offsets_px)
            names = ("object.transmission", "probe.wave", "positions.value_px", "probe.correction_A")
            for name, part in zip(names, (line.object, line.probe, position, line.aberrations_A), strict=True):
                if part is not None:
                    changed[name] = changed[name] + step * part
        image = torch.func.functional_call(model, changed, (INDEX,))
        weight = model.detector.mask * torch.isfinite(counts)
        return (loss.value(image, torch.nan_to_num(counts)) * weight).sum()

    return value


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", [Loss("amplitude"), Loss("anscombe"), Loss("poisson", floor=0.1), Loss("power", power=0.3)], ids=lambda x: x.name)
def test_slope_and_curvature_are_those_of_autograd(case, loss):
    model = small_model(**CASES[case])
    counts = torch.poisson(model(INDEX).detach() * 1.3, generator=torch.Generator().manual_seed(3))
    counts[1, 2, 3] = torch.nan
    lines = directions(model)
    value, at = moved(model, counts, loss, lines), torch.zeros(3, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(value, at)
    matrix = torch.autograd.functional.hessian(value, at)
    found = Curvature(Likelihood(model, loss, chunk=14, missing=True))(INDEX, counts, lines)
    torch.testing.assert_close(found.slope, slope, rtol=1e-8, atol=1e-8 * slope.abs().max().item())
    torch.testing.assert_close(found.matrix, matrix, rtol=1e-8, atol=1e-8 * matrix.abs().max().item())


def test_gauss_newton_is_exact_where_the_model_agrees_with_the_data():
    model = small_model(slices=2, modes=2)
    counts, lines = model(INDEX).detach(), directions(model)
    exact, approximate = (Curvature(Likelihood(model, Loss("poisson", 0.1)), exact)(INDEX, counts, lines) for exact in (True, False))
    torch.testing.assert_close(approximate.matrix, exact.matrix, rtol=1e-9, atol=0)
    assert approximate.slope.abs().max() < 1e-9


def test_a_box_of_the_canvas_is_enough():
    model = small_model(slices=2)
    counts = model(INDEX).detach() * 1.2
    line = directions(model)[1]
    corners, _ = model.positions.split(INDEX, model.size)
    box = tuple(slice(int(low), int(high) + model.size) for low, high in zip(corners.amin(0), corners.amax(0), strict=True))
    measure = Curvature(Likelihood(model, Loss("amplitude")))
    whole, part = measure(INDEX, counts, [line]), measure(INDEX, counts, [Direction(line.object[..., box[0], box[1]])], box)
    assert torch.equal(whole.matrix, part.matrix) and torch.equal(whole.slope, part.slope)


def test_the_minimiser_is_one():
    matrix, slope = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).double(), torch.tensor([1.0, -2.0]).double()
    step = Quadratic(slope, matrix).minimiser()
    torch.testing.assert_close(matrix @ step, -slope, rtol=1e-5, atol=0)
    assert Quadratic(slope, matrix).minimiser(damping=1.0).norm() < step.norm()


def test_the_minimiser_goes_downhill_and_leaves_dead_directions_alone():
    slope = torch.tensor([1.0, 0.0, 1.0]).double()
    step = Quadratic(slope, torch.diag(torch.tensor([-2.0, 0.0, 2.0])).double()).minimiser()
    torch.testing.assert_close(step, torch.tensor([-0.5, 0.0, -0.5]).double(), rtol=1e-5, atol=0)
