"""PtyRAD's results are refused in one line; PtyLab's data are read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_packages import write_ptylab

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.options import Options
from ptycho.io.ptyrad import open_ptylab, open_ptyrad, recognise_ptylab, recognise_ptyrad


def test_a_result_of_ptyrad_is_no_data(tmp_path: Path):
    path = tmp_path / "model_iter0100.hdf5"
    with h5py.File(path, "w") as file:
        file["optimizable_tensors/objp"] = np.ones((1, 6, 20, 20))
        file["model_attributes/dx"] = 0.1
    with h5py.File(path) as file:
        assert recognise_ptyrad(file) and not recognise_ptylab(file)
        with pytest.raises(DataError, match="result of PtyRAD, not patterns"):
            open_ptyrad(path, file, Options())


def test_ptylab(tmp_path: Path):
    rng = np.random.default_rng(1)
    patterns, positions = rng.poisson(20.0, (3, 4, 6, 8)), rng.uniform(-50, 50, (12, 2))
    path = write_ptylab(tmp_path / "a.hdf5", patterns, positions)
    file = hdf5.open_file(path)
    assert recognise_ptylab(file) and not recognise_ptyrad(file)
    source = open_ptylab(path, file, Options())
    np.testing.assert_array_equal(source.read(np.arange(12)).reshape(patterns.shape), patterns)
    np.testing.assert_allclose(source.header.positions_A, positions)
    assert source.header.format == "ptylab" and source.header.metadata["pixel_mrad"].value == pytest.approx(0.5)
    assert source.header.metadata["camera_length_m"].value == pytest.approx(0.1) and source.header.warnings == []
    source.close()
    with h5py.File(path, "r+") as changed:
        del changed["encoder"], changed["wavelength"]
        changed["encoder"], changed["wavelength"] = positions.T * 1e-10, 5.32e-7
    file = hdf5.open_file(path)
    header = open_ptylab(path, file, Options()).header
    np.testing.assert_allclose(header.positions_A, positions)
    assert any("532 nm" in w for w in header.warnings)
    file.close()
    with h5py.File(path, "r+") as changed:
        changed["zled"] = 0.1
        with pytest.raises(DataError, match="Fourier ptychography"):
            open_ptylab(path, changed, Options())
