"""The grid of the scan goes, everything else stays; scans without a grid are told."""

import math

import pytest
import torch
from small import make

from ptycho.constraint import GridFilter
from ptycho.errors import RecipeError

STEP = 4.0


def scanned_object(rotation_deg=0.0, seed=0):
    """A random phase under a raster of 16 x 14 positions, and the field's coordinates along its axes in pixels."""
    model = make(scan=(16, 14), step_px=STEP, size=16, dtype=torch.float64)
    phase = 0.05 * torch.randn(model.object.transmission.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    model.object.transmission.data = torch.polar(torch.ones_like(phase), phase)
    position = model.positions.value_px.data
    centre, angle = position.mean(0), math.radians(rotation_deg)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    y, x = (torch.arange(n, dtype=torch.float64) for n in phase.shape[-2:])
    axes = (torch.stack(torch.meshgrid(y, x, indexing="ij"), -1) - centre) @ turn
    model.illumination = lambda: torch.sigmoid(34 - (axes / torch.tensor([34.0, 30.0])).abs().amax(-1) * 34).double()
    model.positions.value_px.data = (position - centre) @ turn.T + centre
    return model, axes


@pytest.mark.parametrize("rotation_deg", [0.0, 17.0])
def test_an_injected_grid_goes_and_the_rest_stays(rotation_deg):
    model, axes = scanned_object(rotation_deg)
    clean = model.object.transmission.detach().angle()[0, 0]
    grid = 0.05 * torch.cos(2 * math.pi * axes[..., 0] / STEP) + 0.04 * torch.cos(2 * math.pi * (axes[..., 0] + axes[..., 1]) / STEP)
    model.object.transmission.data *= torch.exp(1j * grid)
    GridFilter().apply(model)
    left = model.object.transmission.detach().angle()[0, 0] - clean
    inside = model.illumination() > 0.95
    assert left[inside].std() < 0.25 * grid[inside].std()
    # What went was the grid and not the object: the object's own share of it is that of a few frequencies.
    assert torch.corrcoef(torch.stack([left[inside], clean[inside]]))[0, 1].abs() < 0.1


def test_a_random_object_stays():
    for seed in range(3):
        model, _ = scanned_object(seed=seed)
        before = model.object.transmission.detach().clone()
        GridFilter(contrast=12.0).apply(model)
        assert (model.object.transmission.detach() - before).norm() < 0.03 * (before - 1).norm()


def test_a_lattice_of_another_period_stays():
    model, axes = scanned_object()
    model.object.transmission.data *= torch.exp(0.3j * torch.cos(2 * math.pi * axes[..., 1] / 5.3))
    before = model.object.transmission.detach().clone()
    GridFilter().apply(model)
    assert (model.object.transmission.detach() - before).norm() < 0.02 * (before - 1).norm()


@pytest.mark.parametrize("positions", ["few", "spiral", "random"])
def test_other_scans_are_told(positions):
    model, _ = scanned_object()
    n = torch.arange(224, dtype=torch.float64)
    angle = 2.4 * n
    there = {
        "few": torch.tensor([[20.0, 20.0], [20.0, 24.0]]).double(),
        "spiral": 30 + 2 * n.sqrt()[:, None] * torch.stack([angle.sin(), angle.cos()], -1),
        "random": 20 + 40 * torch.rand(224, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    }[positions]
    model.positions.value_px.data = there
    with pytest.raises(RecipeError, match="leave grid_filter out"):
        GridFilter().apply(model)
