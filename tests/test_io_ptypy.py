"""PtyPy's prepared data: chunks in one file and in several, their order, weights, and what is missing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_packages import write_ptyd

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.options import Options
from ptycho.io.ptypy import open_ptypy, recognise_ptypy


@pytest.fixture
def scan():
    rng = np.random.default_rng(1)
    return rng.poisson(50.0, (3, 4, 6, 8)).astype("i4"), rng.uniform(-1e4, 1e4, (12, 2))


def open_it(path: Path):
    file = hdf5.open_file(path)
    assert recognise_ptypy(file)
    try:
        return open_ptypy(path, file, Options())
    except BaseException:
        file.close()
        raise


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_written_is_read(linked: bool, scan, tmp_path: Path):
    patterns, positions = scan
    source = open_it(write_ptyd(tmp_path / "a.ptyd", patterns, positions, linked=linked))
    header = source.header
    assert (header.format, header.n_frames, header.frame_shape, header.dtype) == ("ptyd", 12, (6, 8), np.int32)
    frames = patterns.reshape(12, 6, 8)
    some = np.array([11, 0, 4, 5, 5, 9])
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(source.read, [some] * 8):
            np.testing.assert_array_equal(got, frames[some])
    source.close()
    np.testing.assert_array_equal(source.read(np.arange(12)), frames)
    source.close()
    np.testing.assert_allclose(header.positions_A, positions, rtol=1e-12)
    assert header.metadata["pixel_mrad"].value == pytest.approx(1.72e-4 / 7 * 1e3) and header.metadata["camera_length_m"].value == 7
    assert header.acquired is None and header.bad_pixels is None and any("6.2 keV" in w for w in header.warnings)


def test_frames_come_in_the_order_of_their_indices(scan, tmp_path: Path):
    patterns, positions = scan
    path = write_ptyd(tmp_path / "a.ptyd", patterns, positions)
    order = np.random.default_rng(2).permutation(15)[:12]  # some of 15 were never taken
    with h5py.File(path, "r+") as file:
        for k, part in enumerate((order[:5], order[5:10], order[10:])):
            file[f"chunks/{k}/indices"][:] = part
    source = open_it(path)
    np.testing.assert_array_equal(source.header.acquired, np.sort(order))
    np.testing.assert_array_equal(source.read(np.arange(12)), patterns.reshape(12, 6, 8)[np.argsort(order)])
    np.testing.assert_allclose(source.header.positions_A, positions[np.argsort(order)])
    source.close()
    with h5py.File(path, "r+") as file:
        file["chunks/1/indices"][:] = order[0]
    header = open_it(path).header
    assert header.acquired is None and any("not distinct" in w for w in header.warnings)


def test_chunks_come_in_the_order_of_their_numbers(scan, tmp_path: Path):
    patterns, positions = scan
    path = write_ptyd(tmp_path / "a.ptyd", patterns, positions, per_chunk=1)  # "10" must come after "9"
    with h5py.File(path, "r+") as file:
        for k in range(12):
            del file[f"chunks/{k}/indices"]
    np.testing.assert_array_equal(open_it(path).read(np.arange(12)), patterns.reshape(12, 6, 8))


def test_weights_are_bad_pixels_when_they_do_not_change(scan, tmp_path: Path):
    patterns, positions = scan
    weights = np.ones((6, 8))
    weights[2, 3] = 0
    path = write_ptyd(tmp_path / "a.ptyd", patterns, positions, weights=weights)
    np.testing.assert_array_equal(open_it(path).header.bad_pixels, weights == 0)
    with h5py.File(path, "r+") as file:
        file["chunks/2/weights"][-1, 0, 0] = 0
    header = open_it(path).header
    assert header.bad_pixels is None and any("different weights" in w for w in header.warnings)
    with h5py.File(path, "r+") as file:
        file["meta/weight2d"] = weights[::-1]
    np.testing.assert_array_equal(open_it(path).header.bad_pixels, weights[::-1] == 0)


def test_a_part_that_is_missing_is_told(scan, tmp_path: Path):
    patterns, positions = scan
    path = write_ptyd(tmp_path / "a.ptyd", patterns, positions, linked=True)
    (tmp_path / "a.ptyd.part001").unlink()
    source = open_it(path)
    assert source.header.n_frames == 7 and any("chunk 1 is left out" in w for w in source.header.warnings)
    np.testing.assert_array_equal(source.header.acquired, [0, 1, 2, 3, 4, 10, 11])
    np.testing.assert_array_equal(source.read(np.array([5])), patterns.reshape(12, 6, 8)[[10]])
    source.close()
    (tmp_path / "a.ptyd.part001").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="leads out of its folder"):
        open_it(path)


def test_what_is_no_data_is_refused(scan, tmp_path: Path):
    patterns, positions = scan
    with h5py.File(tmp_path / "a.ptyr", "w") as file:
        file["content/obj/S00/data"] = file["content/probe/S00/data"] = np.ones((1, 4, 4))
    with pytest.raises(DataError, match="result of PtyPy"):
        open_it(tmp_path / "a.ptyr")
    with h5py.File(tmp_path / "b.ptyd", "w") as file:
        file.create_group("chunks"), file.create_group("meta")
    with pytest.raises(DataError, match="no chunks"):
        open_it(tmp_path / "b.ptyd")
    path = write_ptyd(tmp_path / "c.ptyd", patterns, positions)
    with h5py.File(path, "r+") as file:
        del file["chunks/1/data"]
        file["chunks/1/data"] = np.ones((5, 6, 7))
    with pytest.raises(DataError, match="one shape and type"):
        open_it(path)


def test_meta_may_be_missing_or_none(scan, tmp_path: Path):
    patterns, positions = scan
    path = write_ptyd(tmp_path / "a.ptyd", patterns, positions)
    with h5py.File(path, "r+") as file:
        for key in ("energy", "distance", "psize"):
            del file[f"meta/{key}"]
            file[f"meta/{key}"] = "None"
        for k in range(3):
            del file[f"chunks/{k}/positions"]
            file[f"chunks/{k}/positions"] = np.zeros(0)
    header = open_it(path).header
    assert not header.metadata and header.positions_A is None and not header.warnings
    with h5py.File(path, "r+") as file:
        file["meta/propagation"] = "nearfield"
    assert any("near field" in w for w in open_it(path).header.warnings)
