"""Pictures of the report: what they show can be told, and odd results can be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from test_report import account, examples
from test_result import PNG, make, quality, residual

from ptycho.examples import Examples
from ptycho.plot_beam import mode_picture, positions_picture, tilt_pictures
from ptycho.plot_fit import electrons_picture, loss_picture, pattern_picture, residual_picture
from ptycho.plot_object import amplitude_picture, section_pictures, slice_pictures, strongest_column, summed_phase_picture, total_amplitude
from ptycho.plot_quality import correlation_picture, error_picture


@pytest.mark.parametrize("fsc", [True, False])
def test_odd_qualities_can_be_drawn(fsc):
    result, known = make(), quality(fsc)
    assert correlation_picture(known).startswith(PNG)
    known.frc.half_bit[:] = np.inf
    known.constrained[:] = False
    assert correlation_picture(known).startswith(PNG) and error_picture(result, known).startswith(b"RIFF")


def test_a_dark_detector_can_be_drawn():
    dark = residual()
    for name in ("measured_e", "modelled_e", "chi_squared", "deviance"):
        getattr(dark, name)[:] = 0
    assert electrons_picture(dark).startswith(PNG) and residual_picture(dark).startswith(PNG)
    nothing = Examples.of(np.full((2, 3, 8, 8), np.nan), np.zeros(2, int), np.zeros(2), 1.0)
    zero = Examples.of(np.zeros((2, 3, 8, 8)), np.zeros(2, int), np.zeros(2), 1.0)
    for seen in (nothing, zero, examples()):
        assert pattern_picture(seen, 0).startswith(b"RIFF")


def test_odd_scans_can_be_drawn():
    line = make(positions_A=np.stack([np.full(9, 3.0), np.linspace(1, 6, 9)], 1), tilt_mrad=np.zeros((9, 2)))
    point = make(positions_A=np.full((1, 2), 3.0), tilt_mrad=np.zeros((1, 2)))
    for result in (line, point):
        still = np.zeros_like(result.positions_A)
        for picture in (summed_phase_picture(result), amplitude_picture(result), *section_pictures(result), *slice_pictures(result, [0, 2])):
            assert picture.startswith(b"RIFF")
        assert positions_picture(result, still).startswith(b"RIFF") and positions_picture(result, still[:0]).startswith(b"RIFF")
        assert all(picture.startswith(b"RIFF") for picture in tilt_pictures(result))
        assert mode_picture(result, 1).startswith(b"RIFF") and loss_picture(result).startswith(PNG)


def test_shifts_make_a_difference_to_the_map_a_common_one_does_not():
    result, moved = make(), account().moved_A
    assert positions_picture(result, moved) != positions_picture(result, 2 * moved)
    assert positions_picture(result, moved) == positions_picture(result, moved + [4.0, -2.0])


def test_the_section_goes_through_the_strongest_column():
    waves = np.ones((1, 3, 30, 34), np.complex64)
    waves[0, :, 14:17, 11:14] = np.exp(0.4j)
    result = make(states=1, object=waves)
    rows, columns = result.scanned
    assert strongest_column(result) == (15 - rows.start, 12 - columns.start)


def test_the_amplitude_is_that_behind_all_slices():
    result = make(states=1, object=np.stack([np.full((30, 34), a, np.complex64) for a in (0.9, 0.8, 0.5)])[None])
    assert np.allclose(total_amplitude(result), 0.36)


def test_large_patterns_are_kept_more_coarsely():
    pairs = np.zeros((2, 3, 600, 520))
    pairs[:, :, 0, 0] = 9.0  # zero frequency, in the corner
    kept = Examples.of(pairs, np.zeros(2, int), np.ones(2), 0.5)
    assert kept.measured_e.shape == (3, 200, 173) and kept.measured_e.dtype == np.float32 and kept.pixel_mrad == 1.5
    assert np.unravel_index(kept.modelled_e[2].argmax(), (200, 173)) == (100, 86) and kept.modelled_e[2].max() == 1.0
