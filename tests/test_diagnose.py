"""Each finding fires on a model that is made wrong in its way, and a sound model has none."""

import copy

import pytest
import torch
from small import MARGIN, counts_of, empty, make, solve

from ptycho.diagnose import Before, diagnose, diagnose_counts
from ptycho.solvers import Gradient

SCAN = {"scan": (12, 12), "step_px": 3.0}


def names(model, before):
    return [finding.name for finding in diagnose(model, before)]


def sound(**options):
    model = make(**{**SCAN, **options})
    return model, Before.of(model)


@pytest.mark.parametrize("options", [{}, {"slices": 6}, {"modes": 2}, {"states": 2}, {"tilt_mrad": (8.0, -5.0), "slices": 4}, {"scan": (3, 3)}])
def test_a_sound_model_has_no_finding(options):
    model, before = sound(**options)
    assert names(model, before) == []
    assert names(empty(model), before) == []
    with torch.no_grad():  # what a good run does to positions
        model.positions.value_px.add_(0.3 * torch.randn(model.positions.value_px.shape, generator=torch.Generator().manual_seed(0)))
        model.positions.value_px.mul_(1.03)
    assert names(model, before) == []


def test_a_run_at_low_dose_has_no_finding():
    truth = make(**SCAN, electrons=2000.0)
    counts = torch.poisson(counts_of(truth), generator=torch.Generator().manual_seed(0))
    model = empty(truth)
    before = Before.of(model)
    solve(Gradient(epochs=6, batch=16), model, counts)
    assert names(model, before) == []


def wrong(name, model):
    """Make it wrong, in place."""
    transmission, wave, positions = model.object.transmission.data, model.probe.wave.data, model.positions.value_px.data
    y = torch.arange(transmission.shape[-2])[:, None]
    if name == "probe":
        wave.mul_(0.2)
    elif name == "window":
        wave.copy_(torch.roll(wave, wave.shape[-1] // 2, -1))
    elif name == "mixing":
        beams = 1 + 0.9 * torch.cos(2 * torch.pi * torch.arange(wave.shape[-1]) / 10)
        wave.mul_(beams * wave.abs().square().sum().sqrt() / (wave * beams).abs().square().sum().sqrt())
    elif name == "contrast":
        transmission.copy_(transmission.conj())
    elif name == "grid":
        transmission.mul_(torch.exp(0.1j * torch.cos(2 * torch.pi * (y - 16 - MARGIN) / 3)))
    elif name == "depth":
        transmission[:, 1:] = 1
    elif name == "positions":
        positions.sub_(positions.mean(0)).mul_(0.8).add_(40)
    elif name == "gain":
        wave.mul_(1.5)
        transmission.div_(1.5 ** (1 / transmission.shape[1]))


@pytest.mark.parametrize("name", ["probe", "window", "mixing", "contrast", "grid", "depth", "positions", "gain"])
def test_each_finding_fires_alone(name):
    model, before = sound(slices=6 if name == "depth" else 1)
    wrong(name, model)
    found = diagnose(model, before)
    assert [finding.name for finding in found] == [name]
    assert any(character.isdigit() for character in found[0].sentence) and ";" in found[0].sentence


def test_a_crystal_with_a_beam_at_an_order_of_the_raster_has_no_grid():
    model, before = sound()
    y, x = (torch.arange(n, dtype=torch.float32) for n in model.object.transmission.shape[-2:])
    # Three beams of a hexagonal lattice, one of which is the raster's.
    angles = [
        2 * torch.pi * (torch.cos(torch.tensor(a)) * (y[:, None] - 16 - MARGIN) + torch.sin(torch.tensor(a)) * x) / 3 for a in (0.0, 1.0472, 2.0944)
    ]
    model.object.transmission.data.mul_(torch.exp(0.1j * sum(torch.cos(angle) for angle in angles)))
    assert names(model, before) == []


def test_positions_on_top_of_each_other():
    model, before = sound()
    merged = copy.deepcopy(model)
    merged.positions.value_px.data[::4] = merged.positions.value_px.data[1::4]
    assert names(merged, before) == ["positions"]


def test_counts_of_several_per_electron():
    assert diagnose_counts(1.0) == () == diagnose_counts(0.8)
    (finding,) = diagnose_counts(0.22)
    assert finding.name == "gain" and "4.5 counts" in finding.sentence
