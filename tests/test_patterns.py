"""Patterns are the same from memory and from the file: electrons, corner order, NaN where not measured."""

import numpy as np
import pytest
import torch

import ptycho
import ptycho.patterns
from ptycho.errors import DataError
from ptycho.io import read
from ptycho.loss import Loss
from ptycho.patterns import Patterns

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5, "adu_per_electron": 1.0}
CPU = torch.device("cpu")


def patterns_of(counts, resident, monkeypatch, **options):
    monkeypatch.setattr(ptycho.patterns, "free_bytes", lambda device: 2**40 if resident else 0)
    patterns = Patterns(read(counts, **(KNOWN | options)), CPU)
    assert patterns.resident == resident
    return patterns


@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_in_corner_order(resident, disk_patterns, monkeypatch):
    patterns = patterns_of(disk_patterns, resident, monkeypatch)
    index = torch.tensor([40, 3, 17])
    wanted = np.fft.ifftshift(disk_patterns.reshape(48, 32, 32)[index], axes=(1, 2))
    np.testing.assert_array_equal(patterns.batch(index).numpy(), wanted)
    assert len(patterns) == 48 and patterns.shape == (32, 32) and not patterns.missing


def test_odd_and_rectangular_patterns_have_zero_frequency_first(monkeypatch):
    counts = np.ones((2, 2, 9, 12), np.float32)
    counts[:, :, 4, 6] = 2  # more would be a hot pixel
    batch = patterns_of(counts, True, monkeypatch, pixel_invA=0.2).batch(torch.arange(4))
    assert batch.shape == (4, 9, 12) and (batch[:, 0, 0] == 2).all() and batch.sum() == 4 * (107 + 2)


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


@pytest.mark.parametrize(
    ("change", "options", "kept"),
    [
        (lambda c: c, {}, torch.uint8),
        (lambda c: c.astype(np.uint16), {}, torch.uint8),
        (lambda c: c * 200, {}, torch.int16),
        (lambda c: c * 4000, {}, torch.float32),
        (lambda c: c + 0.25, {}, torch.float32),
        (lambda c: (c * 5).astype(np.uint8), {"adu_per_electron": 4.86}, torch.uint8),
        (lambda c: c * 148, {"adu_per_electron": 148.0}, torch.uint8),
    ],
)
def test_whole_counts_stay_whole_numbers_in_memory(change, options, kept, disk_patterns, monkeypatch):
    counts = change(disk_patterns)
    if counts.dtype == np.float32:
        counts[5, 5, 3, 4] = np.nan  # in the last block as well as the first
        counts[0, 0, 3, 4] = np.nan
    monkeypatch.setattr("ptycho.patterns._BLOCK_BYTES", 4 * 32 * 32 * 5)
    from_memory, from_file = (patterns_of(counts, resident, monkeypatch, **options) for resident in (True, False))
    assert from_memory._resident.dtype == kept
    for index in torch.arange(48).split(7):
        np.testing.assert_array_equal(from_memory.batch(index).clone().numpy(), from_file.batch(index).numpy())
    assert from_memory.missing == from_file.missing == (counts.dtype == np.float32)


def test_counts_that_grow_late_change_the_type_of_all(disk_patterns, monkeypatch):
    disk_patterns[3, 3, 16, 16] = 300
    disk_patterns[5, 5, 16, 16] = 0.5
    disk_patterns[0, 1, 2, 2] = np.nan
    monkeypatch.setattr("ptycho.patterns._BLOCK_BYTES", 4 * 32 * 32 * 5)
    patterns = patterns_of(disk_patterns, True, monkeypatch)
    assert patterns._resident.dtype == torch.float32 and patterns.missing
    wanted = np.fft.ifftshift(disk_patterns.reshape(48, 32, 32), axes=(1, 2))
    np.testing.assert_array_equal(patterns.batch(torch.arange(48)).numpy(), wanted)


@pytest.mark.parametrize("resident", [True, False])
def test_batches_of_a_plan_come_in_its_order(resident, disk_patterns, monkeypatch):
    patterns = patterns_of(disk_patterns, resident, monkeypatch)
    plan = np.array_split(np.random.default_rng(0).permutation(48), 9)
    for part, (index, counts) in zip(plan, patterns.batches(plan), strict=True):
        np.testing.assert_array_equal(index.numpy(), part)
        np.testing.assert_array_equal(counts.numpy(), np.fft.ifftshift(disk_patterns.reshape(48, 32, 32)[part], axes=(1, 2)))


def test_a_file_that_is_cut_while_it_is_read_is_told(disk_patterns, tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", disk_patterns)
    patterns = patterns_of(tmp_path / "a.npy", False, monkeypatch)
    batches = patterns.batches([np.arange(i, i + 4) for i in range(0, 48, 4)])
    next(batches)
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(60_000)
    with pytest.raises(DataError, match=r"ends at byte .* has it been cut"):
        list(batches)


def test_masked_pixels_are_zero_and_not_missing(disk_patterns, monkeypatch):
    disk_patterns[:, :, 4, 5] = np.nan
    patterns = patterns_of(disk_patterns, True, monkeypatch)
    assert not patterns.missing and (patterns.batch(torch.arange(48))[:, 20, 21] == 0).all()


def test_memory_is_bounded_by_what_the_user_says(disk_patterns):
    for limit, resident in ((0, False), (1e-6, False), (1.0, True)):
        assert Patterns(read(disk_patterns, memory_GB=limit, **KNOWN), CPU).resident == resident


def test_a_reconstruction_looks_at_every_pattern(disk_patterns, monkeypatch):
    """An empty frame that a sample of a large file would miss is not fitted as zeros."""
    monkeypatch.setattr("ptycho.data._SURVEY_ALL_BYTES", 0)
    monkeypatch.setattr("ptycho.data._SURVEY_FRAMES", 5)
    disk_patterns[1, 2] = 0
    data = read(disk_patterns, **KNOWN, defocus_A=20)
    assert data.survey().n_surveyed == 5 and len(data.survey().bad_frames) == 0
    result = ptycho.reconstruct(data, epochs=1, device="cpu")
    assert len(result.positions_A) == 47
