"""fold_slice and pty-chi: pairs of files, the order of frames, units of positions."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_packages import write_foldslice, write_ptychi

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.foldslice import open_foldslice, recognise_foldslice
from ptycho.io.options import Options


@pytest.fixture
def patterns():
    return np.random.default_rng(1).poisson(50.0, (3, 4, 6, 8)).astype("f4")


@pytest.fixture
def positions():
    """(12, 2) = (y, x) in Å of a raster of 3 x 4 points, 2 Å apart, a little off."""
    y, x = np.mgrid[:3, :4] * 2.0 - 3
    return np.stack([y.ravel(), x.ravel()], 1) + np.random.default_rng(2).normal(0, 0.1, (12, 2))


def open_it(path: Path, **options):
    file = hdf5.open_file(path)
    assert recognise_foldslice(file)
    try:
        return open_foldslice(path, file, Options(**options))
    except BaseException:
        file.close()
        raise


@pytest.mark.parametrize("unit_A", [1.0, 1e10])
def test_positions_in_either_unit(unit_A: float, patterns, positions, tmp_path: Path):
    source = open_it(write_foldslice(tmp_path, patterns, positions, unit_A))
    header = source.header
    assert (header.format, header.n_frames, header.frame_shape, header.scan_shape) == ("fold_slice", 12, (6, 8), None)
    fast_y = np.arange(12).reshape(3, 4).T.ravel()  # the frames, y fast
    np.testing.assert_array_equal(source.read(np.arange(12)), patterns.reshape(12, 6, 8)[fast_y])
    np.testing.assert_allclose(header.positions_A, positions[fast_y], rtol=1e-12)
    assert header.warnings == [
        f"{source.header.path.name}: ppX and ppY of data_roi0_Ndp32_para.hdf5 are taken to be in {'Å' if unit_A == 1 else 'metres'}, by their size"
    ]
    source.close()


def test_the_raster_is_y_fast_when_the_shape_is_given(patterns, positions, tmp_path: Path):
    for given in (None, positions):
        source = open_it(write_foldslice(tmp_path, patterns, given), scan_shape=(3, 4))
        again = np.empty_like(patterns).reshape(12, 6, 8)
        again[source.header.acquired] = source.read(np.arange(12))
        np.testing.assert_array_equal(again.reshape(patterns.shape), patterns)
        assert any("scan y is fast" in w for w in source.header.warnings) == (given is None)
        source.close()
    (tmp_path / "data_roi0_Ndp32_para.hdf5").unlink()
    assert open_it(tmp_path / "data_roi0_Ndp32_dp.hdf5").header.acquired is None
    assert open_it(tmp_path / "data_roi0_Ndp32_dp.hdf5", scan_shape=(3, 5)).header.acquired is None


def test_positions_that_say_x_is_fast_are_believed(patterns, positions, tmp_path: Path):
    path = write_foldslice(tmp_path, patterns.transpose(1, 0, 2, 3), positions)  # 4 x 3 points, then y and x of the list exchanged
    with h5py.File(tmp_path / "data_roi0_Ndp32_para.hdf5", "w") as file:
        file["ppY"], file["ppX"] = positions.T
    header = open_it(path, scan_shape=(3, 4)).header
    assert header.acquired is None
    np.testing.assert_allclose(header.positions_A, positions)


def test_positions_that_cannot_be_used_are_told(patterns, positions, tmp_path: Path):
    path = write_foldslice(tmp_path, patterns, positions, unit_A=1000.0)
    header = open_it(path).header
    assert header.positions_A is None and any("neither metres nor Å" in w for w in header.warnings)
    para = tmp_path / "data_roi0_Ndp32_para.hdf5"
    for x, y in (
        (np.arange(5.0), np.arange(5.0)),
        (np.arange(12.0), np.arange(11.0)),
        (np.full(12, np.nan), np.arange(12.0)),
        (["a"] * 12, ["b"] * 12),
    ):
        with h5py.File(para, "w") as file:
            file["ppX"], file["ppY"] = x, y
        header = open_it(path).header
        assert header.positions_A is None and len(header.warnings) >= 1 and header.frame_shape == (6, 8)
    para.write_bytes(b"no HDF5")
    assert any("its positions are not used" in w for w in open_it(path).header.warnings)
    with h5py.File(para, "w") as file:
        file["other"] = 1
    assert any("it has neither" in w for w in open_it(path).header.warnings)


def test_ptychi(patterns, positions, tmp_path: Path):
    source = open_it(write_ptychi(tmp_path, patterns, positions))
    header = source.header
    assert (header.format, header.frame_shape, header.acquired) == ("pty-chi", (6, 8), None)
    np.testing.assert_array_equal(source.read(np.arange(12)).reshape(patterns.shape), patterns)
    np.testing.assert_allclose(header.positions_A, positions)
    assert header.metadata["pixel_invA"].value == pytest.approx(1 / (6 * 0.5)) and header.warnings == []
    source.close()
    with pytest.raises(DataError, match=r"no patterns; open scan_ptychodus_dp.hdf5"):
        open_it(tmp_path / "scan_ptychodus_para.hdf5")


def test_a_dp_alone_is_any_hdf5_file(patterns, tmp_path: Path):
    with h5py.File(tmp_path / "mine_dp.h5", "w") as file:
        file["dp"] = patterns
        assert not recognise_foldslice(file)
