"""How the scan lies on the detector: eight flips and a rotation are four ways to write each orientation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ptycho.geometry import raster_positions_A
from ptycho.pose import Pose, angle_between_deg, turn, written
from ptycho.preparation import Preparation

POSES = [Pose(*flips, rotation) for flips in itertools.product((False, True), repeat=3) for rotation in (0.0, 17.0, 90.0, -126.0)]


def test_a_turn_is_the_one_of_the_scan() -> None:
    positions = raster_positions_A((3, 4), (1.0, 1.0), 33.0)
    np.testing.assert_allclose(positions, raster_positions_A((3, 4), (1.0, 1.0)) @ turn(33.0).T, atol=1e-12)


@pytest.mark.parametrize("pose", POSES[::4])
def test_flips_move_a_pixel_as_reading_does(pose: Pose) -> None:
    frame = np.zeros((1, 7, 7))
    frame[0, 3 + 1, 3 + 2] = 1
    turned = Preparation(transpose=pose.transpose, flip_rows=pose.flip_rows, flip_columns=pose.flip_columns).turn(frame)
    np.testing.assert_array_equal(np.argwhere(turned[0])[0] - 3, pose.flips @ [1, 2])


@pytest.mark.parametrize("pose", POSES)
def test_every_pose_is_written_in_the_way_nearest_to_what_was_told(pose: Pose) -> None:
    near = written(pose.matrix, Pose())
    assert near.difference_deg(pose) < 1e-9 and abs(near.rotation_deg) <= 45 + 1
    same = written(pose.matrix, pose)
    assert same.difference_deg(pose) < 1e-9 and (same.transpose, same.flip_rows, same.flip_columns) == pose_flips(pose)
    assert same.rotation_deg == pytest.approx(pose.rotation_deg)


def pose_flips(pose: Pose) -> tuple[bool, bool, bool]:
    return pose.transpose, pose.flip_rows, pose.flip_columns


def test_equivalent_poses_are_told_from_mirrored_ones() -> None:
    assert Pose(rotation_deg=126).difference_deg(Pose(True, True, False, 36)) == pytest.approx(0, abs=1e-9)
    assert Pose(rotation_deg=126).difference_deg(Pose(rotation_deg=-126)) == pytest.approx(108)
    assert Pose().difference_deg(Pose(transpose=True)) == np.inf
    assert angle_between_deg(turn(10), -turn(10)) == pytest.approx(180)
    assert "transpose + flip_rows" in str(Pose(True, True))
