"""Patterns are the same from memory and from the file: electrons, corner order, NaN where not measured."""

import numpy as np
import pytest
import torch

import ptycho.patterns
from ptycho.io import read
from ptycho.loss import Loss
from ptycho.patterns import Patterns

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5, "adu_per_electron": 1.0}
CPU = torch.device("cpu")


def patterns_of(counts, resident, monkeypatch, **options):
    monkeypatch.setattr(ptycho.patterns, "_free_bytes", lambda device: 2**40 if resident else 0)
    return Patterns(read(counts, **KNOWN, **options), CPU)


@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_in_corner_order(resident, disk_patterns, monkeypatch):
    patterns = patterns_of(disk_patterns, resident, monkeypatch)
    index = torch.tensor([40, 3, 17])
    wanted = np.fft.ifftshift(disk_patterns.reshape(48, 32, 32)[index], axes=(1, 2))
    np.testing.assert_array_equal(patterns.batch(index).numpy(), wanted)
    assert len(patterns) == 48 and patterns.shape == (32, 32) and not patterns.missing


def test_odd_and_rectangular_patterns_have_zero_frequency_first(monkeypatch):
    counts = np.ones((2, 2, 9, 12), np.float32)
    counts[:, :, 4, 6] = 100
    batch = patterns_of(counts, True, monkeypatch, pixel_invA=0.2).batch(torch.arange(4))
    assert batch.shape == (4, 9, 12) and (batch[:, 0, 0] == 100).all() and batch.sum() == 4 * (107 + 100)


def test_memory_and_file_are_the_same(disk_patterns, monkeypatch):
    disk_patterns[0, 3, 20, 4] = np.nan
    disk_patterns[2, 3, 1, 1] = -0.3
    options = {"bin": 2, "flip_rows": True}
    from_memory, from_file = (patterns_of(disk_patterns, resident, monkeypatch, **options) for resident in (True, False))
    for index in torch.randperm(48, generator=torch.Generator().manual_seed(0)).split(7):
        np.testing.assert_array_equal(from_memory.batch(index).clone().numpy(), from_file.batch(index).numpy())
    assert from_memory.missing and from_file.missing
    loss, mask = Loss("poisson", 0.01), torch.ones(16, 16)
    assert torch.equal(from_memory.least(loss, mask), from_file.least(loss, mask))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -7.0])
def test_what_was_not_measured_is_nan_and_known_to_be_missing(resident, bad, disk_patterns, monkeypatch):
    disk_patterns[1, 2, 16, 16] = bad
    patterns = patterns_of(disk_patterns, resident, monkeypatch)
    batch = patterns.batch(torch.arange(48))
    assert patterns.missing
    assert torch.isnan(batch).nonzero().tolist() == [[10, 0, 0]]


def test_a_file_that_was_surveyed_in_part_may_miss_pixels(disk_patterns, monkeypatch):
    monkeypatch.setattr("ptycho.data._SURVEY_ALL_BYTES", 0)
    monkeypatch.setattr("ptycho.data._SURVEY_FRAMES", 5)
    disk_patterns[1, 2, 16, 16] = np.nan
    assert patterns_of(disk_patterns, False, monkeypatch).missing
    disk_patterns[1, 2, 16, 16] = 20
    assert not patterns_of(disk_patterns, True, monkeypatch).missing  # all have been seen on the way into memory


@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_least_is_the_loss_of_a_perfect_model(name, disk_patterns, monkeypatch):
    disk_patterns[0, 0, 3, 3] = np.nan
    disk_patterns[:, :, 8, 8] = 1e6
    patterns = patterns_of(disk_patterns, True, monkeypatch)
    loss, mask = Loss(name, 0.01), torch.ones(32, 32)
    mask[24, 24] = 0  # that pixel, in corner order
    counts = patterns.batch(torch.arange(48))
    used = torch.isfinite(counts) * mask > 0
    wanted = loss.value(counts.double(), counts.double())[used].sum().item()
    assert patterns.least(loss, mask).sum().item() == pytest.approx(wanted, rel=1e-5, abs=1e-3)
    assert patterns.least(loss, mask).sum().item() == pytest.approx(wanted * (name == "poisson"), rel=1e-5, abs=1e-3)
