"""Halves of a data set: they add up to it, their noise is independent, and the draw is a function of the seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ptycho
import ptycho.patterns
from ptycho.data import Dataset4D
from ptycho.halves import HalfOfElectrons, thinned, two_halves
from ptycho.io.gain import charge_spread
from ptycho.patterns import Patterns

KNOWN: dict[str, Any] = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5, "adu_per_electron": 1.0}


def halves_of(counts: NDArray[Any], seed: int = 0, **options: Any) -> tuple[Dataset4D, Dataset4D, Dataset4D]:
    data = ptycho.read(counts, **(KNOWN | options))
    by, (one, two) = two_halves(data, seed)
    assert by == "electrons" and one.electrons == two.electrons == 0.5
    assert one.positions.tolist() == two.positions.tolist() == list(range(data.n_positions))
    return data, one.data, two.data


def thin(patterns: NDArray[np.float32], seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    first = np.stack([thinned(pattern, random) for pattern in patterns])
    return first, patterns - first


def covariance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.cov(a.ravel(), b.ravel())[0, 1])


def test_halves_add_up_exactly_and_are_whole(disk_patterns):
    disk_patterns[1, 2, 16, 16] = np.nan
    data, one, two = halves_of(disk_patterns, transpose=True)
    first, second, whole = one.patterns(), two.patterns(), data.patterns()
    np.testing.assert_array_equal(first + second, whole)
    known = np.isfinite(whole)
    assert (~known).sum() == 1 and np.array_equal(np.isfinite(first), known)
    assert (first[known] == np.rint(first[known])).all() and (first[known] >= 0).all() and (second[known] >= 0).all()
    assert np.array_equal(one.mask, data.mask) and one.survey().mean_electrons == data.survey().mean_electrons / 2


def test_the_draw_depends_on_seed_and_frame_alone(disk_patterns):
    _, one, _ = halves_of(disk_patterns)
    whole = one.patterns()
    np.testing.assert_array_equal(one.patterns([40, 3, 17]), whole[[40, 3, 17]])
    np.testing.assert_array_equal(one.without(np.arange(10)).patterns([0]), whole[[10]])
    assert not np.array_equal(halves_of(disk_patterns, seed=1)[1].patterns(), whole)


@pytest.mark.parametrize("resident", [True, False])
def test_solvers_see_the_same_half_from_memory_and_from_the_file(disk_patterns, resident, monkeypatch):
    _, one, _ = halves_of(disk_patterns)
    monkeypatch.setattr(ptycho.patterns, "free_bytes", lambda device: 2**40 if resident else 0)
    patterns = Patterns(one, torch.device("cpu"))
    assert isinstance(one, HalfOfElectrons) and patterns.resident == resident
    np.testing.assert_array_equal(patterns.batch(torch.tensor([7, 30])).numpy(), np.fft.ifftshift(one.patterns([7, 30]), axes=(1, 2)))


@pytest.mark.parametrize("mean", [0.3, 1.0, 7.0, 90.0])
def test_halves_of_poisson_counts_are_independent_and_poisson(mean):
    first, second = thin(np.random.default_rng(0).poisson(mean, (1, 100, 200)).astype(np.float32))
    assert first.mean() == pytest.approx(mean / 2, rel=0.05) and first.var() == pytest.approx(mean / 2, rel=0.05)
    assert abs(covariance(first, second)) < 4 * mean / 2 / np.sqrt(20000)


def test_electrons_of_unequal_charge_are_shared_out_as_electrons():
    """An integrating detector: charges scatter by 15 % and there is readout noise; equal shares of the rest would tie the halves together."""
    random = np.random.default_rng(1)
    number = random.poisson(0.5, (1, 200, 200))
    charge = (number + 0.15 * np.sqrt(number) * random.normal(size=number.shape) + 0.05 * random.normal(size=number.shape)).astype(np.float32)
    first, second = thin(charge)
    np.testing.assert_allclose(first + second, charge, atol=1e-6)
    assert first.mean() == pytest.approx(0.25, abs=0.01)
    assert abs(covariance(first, second)) < 0.02 * first.var()


def test_nothing_is_drawn_from_nothing():
    pattern = np.array([[0, np.nan], [-0.3, 0.2]], np.float32)
    first, second = thin(pattern[None])
    assert first[0, 0, 0] == 0 and np.isnan(first[0, 0, 1]) and np.isnan(second[0, 0, 1])
    assert {first[0, 1, 0], second[0, 1, 0]} == {0, pattern[1, 0]} and {first[0, 1, 1], second[0, 1, 1]} == {0, pattern[1, 1]}


def spread_counts(counts_per_electron: int) -> NDArray[np.uint16]:
    """Counts (200, 64, 64) of a disk and a dark field, the counts of an electron on pixels about the one that it hits."""
    random = np.random.default_rng(2)
    y, x = np.indices((64, 64)) - 32
    electrons = random.poisson(np.where(np.hypot(y, x) < 8, 20.0, 0.12), (200, 64, 64))
    counts = np.zeros(electrons.shape, np.uint16)
    places = np.repeat(np.argwhere(electrons), electrons[electrons > 0], axis=0)
    for _ in range(counts_per_electron):
        step = random.integers(-1, 2, (len(places), 2)) if counts_per_electron > 1 else 0
        np.add.at(counts, (places[:, 0], *((places[:, 1:] + step) % 64).T), 1)
    return counts


def test_electrons_that_spread_over_counts_are_not_halved_but_positions_are():
    one_each, five_each = spread_counts(1), spread_counts(5)
    assert charge_spread(one_each) == pytest.approx(1, abs=0.15)
    assert charge_spread(five_each) > 2 and charge_spread(five_each, 2) > 1.3
    data = ptycho.read(five_each.reshape(10, 20, 64, 64), **(KNOWN | {"adu_per_electron": 5.0}))
    by, (one, two) = two_halves(data)
    assert by == "positions" and one.electrons == two.electrons == 1
    assert sorted([*one.positions, *two.positions]) == list(range(200)) and (one.positions // 2 == np.arange(100)).all()
    np.testing.assert_array_equal(one.data.patterns([5]), data.patterns(one.positions[[5]]))
    assert two_halves(ptycho.read(one_each.reshape(10, 20, 64, 64), **KNOWN))[0] == "electrons"
    assert two_halves(data)[1][0].positions.tolist() == one.positions.tolist() != two_halves(data, 1)[1][0].positions.tolist()
