"""Which frame belongs to which scan point: flyback, frames before the scan, frames that are missing, regions, lists of positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.errors import DataError, RecipeError, ScanShapeError
from ptycho.frames import Header, Quantity
from ptycho.io import read
from ptycho.io.scan import ScanRequest, place_frames

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5}


def header(n_frames: int, **fields) -> Header:
    return Header(Path("scan.mib"), "mib", n_frames, (8, 8), np.dtype("u2"), **fields)


def place(head: Header, **request):
    warnings: list[str] = []
    return place_frames(head, ScanRequest(**request), warnings), warnings


def test_a_complete_raster():
    placed, warnings = place(header(12, scan_shape=(3, 4)))
    assert placed.shape == (3, 4) and placed.points is None and placed.positions is None and warnings == []
    np.testing.assert_array_equal(placed.frames, np.arange(12))


@pytest.mark.parametrize("last_line_is_short", [False, True])
def test_flyback_frames_are_no_part_of_the_scan(last_line_is_short):
    """Lines of 1 + 4 + 2 frames; the flyback after the last line may not have been recorded."""
    placed, warnings = place(header(3 * 7 - 2 * last_line_is_short), shape=(3, 4), flyback=(1, 2))
    np.testing.assert_array_equal(placed.frames, [1, 2, 3, 4, 8, 9, 10, 11, 15, 16, 17, 18])
    assert placed.points is None and warnings == []


def test_the_flyback_that_a_file_knows_is_used_unless_the_user_says_otherwise():
    head = header(15, scan_shape=(3, 4), flyback=(0, 1))
    np.testing.assert_array_equal(place(head)[0].frames, [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13])
    np.testing.assert_array_equal(place(head, shape=(3, 4))[0].frames, place(head)[0].frames)
    np.testing.assert_array_equal(place(head, shape=(3, 5))[0].frames, np.arange(15))
    np.testing.assert_array_equal(place(head, flyback=(1, 0))[0].frames, [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14])


def test_frames_before_the_scan_are_skipped():
    placed, _ = place(header(14), shape=(3, 4), skip=2)
    np.testing.assert_array_equal(placed.frames, np.arange(2, 14))


def test_frames_left_over_hint_at_a_flyback():
    _, warnings = place(header(15), shape=(3, 4))
    assert warnings == [
        "scan.mib: the scan of 3 x 4 uses the first 12 of 15 frames; if each line has 1 more for the flyback give [scan] flyback = [0, 1]"
    ]


def test_missing_frames_leave_points_out():
    acquired = np.delete(np.arange(12), [2, 7])
    placed, warnings = place(header(10, scan_shape=(3, 4), acquired=acquired))
    assert placed.shape == (3, 4)
    np.testing.assert_array_equal(placed.points, acquired)
    np.testing.assert_array_equal(placed.frames, np.arange(10))
    assert "2 of 12 scan points have no frame" in warnings[0]


def test_frames_in_another_order_are_put_in_place_and_the_first_of_two_counts():
    placed, _ = place(header(5, scan_shape=(2, 2), acquired=np.array([3, 1, 0, 2, 1])))
    np.testing.assert_array_equal(placed.frames, [2, 1, 3, 0])
    assert placed.points is None


def test_a_region_of_a_scan_with_gaps():
    placed, _ = place(header(10, scan_shape=(3, 4), acquired=np.delete(np.arange(12), [2, 7])), region=(0, 2, 1, 4))
    assert placed.shape == (2, 3)
    np.testing.assert_array_equal(placed.points, [0, 2, 3, 4])  # 1, 3, 5, 6 of the whole scan
    np.testing.assert_array_equal(placed.frames, [1, 2, 4, 5])
    with pytest.raises(RecipeError, match="not within the scan of 3 x 4"):
        place(header(12, scan_shape=(3, 4)), region=(0, 4, 0, 2))


def test_positions_of_a_file_need_no_shape():
    where = np.random.default_rng(0).uniform(size=(7, 2))
    placed, _ = place(header(7, positions_A=where))
    assert placed.shape == (1, 7) and placed.positions is where
    with pytest.raises(DataError, match="5 positions are given for 7 frames"):
        place(header(7), positions=where[:5])
    placed, _ = place(header(7, positions_A=where), shape=(1, 7))
    assert placed.positions is None  # the user's raster wins


def test_positions_follow_frames_that_are_missing():
    where = np.arange(24.0).reshape(12, 2)
    acquired = np.delete(np.arange(12), 5)
    placed, _ = place(header(11, scan_shape=(3, 4), acquired=acquired), positions=where)
    np.testing.assert_array_equal(placed.positions, where[acquired])
    assert placed.shape == (1, 11) and placed.points is None


def test_an_unknown_shape_is_asked_for_with_what_would_fit():
    with pytest.raises(ScanShapeError, match=r"shape of 12 frames is not known; give \[scan\] shape = \[slow, fast\], for example 3 x 4") as error:
        place(header(12))
    assert error.value.n_frames == 12 and error.value.exit_code == 4


def test_a_guess_is_told():
    guess = {"scan_shape": Quantity((3, 4), "", "a guess", trusted=False)}
    assert "is a guess; give scan_shape" in place(header(12, scan_shape=(3, 4), metadata=guess))[1][0]


def test_points_without_a_pattern_have_no_position(disk_patterns, tmp_path: Path):
    """A folder in which two numbers are missing: what is reconstructed stands at the right places."""
    frames = disk_patterns.reshape(48, 32, 32)
    for number in set(range(48)) - {11, 30}:
        np.save(tmp_path / f"p_{number}.npy", frames[number])
    data = read(tmp_path, scan_shape=(6, 8), **KNOWN)
    assert data.scan_shape == (6, 8) and data.n_positions == 46
    whole = read(disk_patterns, **KNOWN)
    np.testing.assert_allclose(data.geometry.positions_A, np.delete(whole.geometry.positions_A, [11, 30], axis=0))
    np.testing.assert_array_equal(data.patterns([11])[0], frames[12])
    fewer = data.without(np.array([0]))
    np.testing.assert_allclose(fewer.geometry.positions_A, np.delete(whole.geometry.positions_A, [0, 11, 30], axis=0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flyback": (1,)}, "scan.flyback"),
        ({"flyback": (-1, 0)}, "scan.flyback"),
        ({"skip_frames": -1}, "scan.skip_frames = -1"),
        ({"centre": "left"}, "centre"),
        ({"centre": (1.0, float("nan"))}, "centre"),
        ({"window": 0}, "window"),
        ({"descan": "cubic"}, "descan"),
        ({"memory_GB": -1}, "memory_GB"),
    ],
)
def test_wrong_values_are_recipe_errors(disk_patterns, values, message):
    with pytest.raises(RecipeError, match=message):
        read(disk_patterns, **KNOWN, **values)
