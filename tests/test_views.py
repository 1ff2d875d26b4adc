"""Coarser views of the patterns: nothing is lost, the zero frequency stays where it is, what was not measured stays unmeasured."""

import numpy as np
import pytest

from ptycho.views import View


def peak(size, ky, kx):
    pattern = np.zeros((1, size, size), np.float32)
    pattern[0, size // 2 + ky, size // 2 + kx] = 1
    return pattern


@pytest.mark.parametrize("bin", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [48, 49])
def test_the_zero_frequency_stays_in_the_middle(bin, size):
    kept = 2 * (size // bin // 2) - 2
    seen = View(bin, (kept, kept)).apply(peak(size, 0, 0))[0]
    assert seen[kept // 2, kept // 2] == 1 and np.nansum(seen) == 1


@pytest.mark.parametrize("bin", [2, 3, 4])
def test_electrons_and_their_centre_of_mass_are_kept(bin):
    blob = np.random.default_rng(0).random((3, 10, 10), np.float32)
    pattern = np.zeros((3, 60, 60), np.float32)
    pattern[:, 26:36, 24:34] = blob
    seen = View(bin, (12, 12)).apply(pattern)
    assert seen.sum() == pytest.approx(blob.sum(), rel=1e-6)
    axis, fine = (np.arange(12) - 6) * bin, np.arange(60) - 30
    for a, b in ((seen.sum((0, 1)) @ axis, pattern.sum((0, 1)) @ fine), (seen.sum((0, 2)) @ axis, pattern.sum((0, 2)) @ fine)):
        # Electrons shared between two pixels weigh on average where they are.
        assert a / blob.sum() == pytest.approx(b / blob.sum(), abs=1e-5 if bin == 2 else 0.5)


def test_what_was_not_measured_spreads_to_every_sum_it_takes_part_in():
    mask = np.ones((32, 32), bool)
    mask[16, 17] = False  # the border between two pixels of a view with bin = 2
    seen = View(2, (12, 12)).mask(mask)
    assert np.argwhere(~seen).tolist() == [[6, 6], [6, 7]]
    # Beyond the edge of the detector nothing was measured.
    assert not View(2, (16, 16)).mask(np.ones((32, 32), bool))[0].any()


@pytest.mark.parametrize("bin", [1, 3, 5])
def test_odd_sums_need_no_blur(bin):
    assert View(bin, (8, 8)).blur_px == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bin", [2, 4])
def test_shared_pixels_are_as_wide_as_the_model_makes_them(bin):
    """A tent over pixels, each with its own area, has the variance that the wide pixel and the blur have together."""
    view = View(bin, (8, 8))
    taps = np.arange(-(bin // 2), bin // 2 + 1)
    weights = view.apply(np.concatenate([peak(64, int(t), 0) for t in taps]))[:, 4, 4]
    variance = (weights * taps**2).sum() / weights.sum() + 1 / 12
    assert variance / bin**2 == pytest.approx(1 / 12 + view.blur_px**2)
