"""A perfect model has a reduced deviance of one, at any dose and for any noise of Poisson's kind."""

import numpy as np
import pytest
import torch
from small import Counts, counts_of, make, raster_px

from ptycho.deviance import Deviance, expected_deviance, noise_scale

CPU = torch.device("cpu")


def reduced(intensity, counts, floor, scale=1.0):
    deviance = Deviance(floor, scale, CPU)
    return float(deviance.measured(intensity, counts).double().sum() / deviance.expected(intensity).double().sum())


@pytest.mark.parametrize("floor", [0.0, 0.01])
@pytest.mark.parametrize("mean", [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
def test_a_perfect_model_has_one(mean, floor):
    random = np.random.default_rng(0)
    intensity = mean * random.gamma(2, 0.5, 200_000)  # bright and dark pixels
    counts = random.poisson(intensity)
    intensity, counts = (torch.from_numpy(a).float() for a in (intensity, counts))
    assert reduced(intensity, counts, floor) == pytest.approx(1, abs=0.02)
    assert reduced(intensity.roll(1), counts, floor) > 1.05  # bright and dark in wrong places


@pytest.mark.parametrize("n", [1, 4.5, 20])
def test_an_electron_that_makes_several_counts_is_no_better_fit(n):
    random = np.random.default_rng(1)
    intensity = 0.2 * random.gamma(2, 0.5, 200_000)
    counts = torch.from_numpy(random.poisson(intensity * n) / n).float()
    assert reduced(torch.from_numpy(intensity).float(), counts, 0.01, 1 / n) == pytest.approx(1, abs=0.02)


def test_the_series_has_its_known_ends():
    # Few counts: 2 I ln(1 / I) + ..., many: 1 + 1 / (6 I).
    np.testing.assert_allclose(expected_deviance(np.array([1e-4]), 0.0), 2e-4 * np.log(1e4), rtol=2e-3)
    np.testing.assert_allclose(expected_deviance(np.array([150.0]), 0.0), 1 + 1 / 900, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 4.5])
def test_the_noise_scale_comes_from_neighbouring_patterns(n):
    truth = make(scan=(12, 12), step_px=1.0, electrons=500.0, strength=0.2)
    counts = torch.poisson(counts_of(truth) * n, generator=torch.Generator().manual_seed(0)) / n
    counts[3, 2, 1] = float("nan")
    scale = noise_scale(Counts(counts), raster_px((12, 12), 1.0), np.arange(144))
    assert scale == pytest.approx(1 / n, rel=0.1)
    assert noise_scale(Counts(counts_of(truth)), raster_px((12, 12), 1.0), np.arange(1)) == 1
