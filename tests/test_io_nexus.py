"""NeXus: the default data of a file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_nexus import write_nexus

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.nexus import open_nexus, recognise_nexus
from ptycho.io.options import Options


@pytest.fixture
def patterns():
    return np.random.default_rng(0).integers(0, 60000, (4, 5, 6, 7), np.uint16)


def opened(path: Path, dataset=None):
    file = hdf5.open_file(path)
    try:
        assert recognise_nexus(file)
        return open_nexus(path, file, Options(dataset=dataset))
    except BaseException:
        file.close()
        raise


def recognised(path: Path) -> bool:
    with h5py.File(path) as file:
        return recognise_nexus(file)


def values(source):
    return {key: quantity.value for key, quantity in source.header.metadata.items()}


@pytest.mark.parametrize("named", [True, False])
def test_default_data(patterns, tmp_path: Path, named):
    source = opened(write_nexus(tmp_path / "a.nxs", patterns, named=named))
    assert (source.header.format, source.header.scan_shape, source.header.frame_shape) == ("nexus", (4, 5), (6, 7))
    assert values(source)["step_A"] == pytest.approx((2, 3)) and values(source)["pixel_invA"] == pytest.approx(0.05)
    assert source.header.metadata["step_A"].source == "a.nxs: /scan_1/detector/y"
    np.testing.assert_array_equal(source.read(np.array([19, 3, 4, 5])), patterns.reshape(-1, 6, 7)[[19, 3, 4, 5]])


def test_axes_without_units_and_a_list(patterns, tmp_path: Path):
    assert values(opened(write_nexus(tmp_path / "a.nxs", patterns, units=("", "pixel", "", "")))) == {}
    source = opened(write_nexus(tmp_path / "b.nxs", patterns[0]))
    assert source.header.n_frames == 5 and values(source) == {"pixel_invA": pytest.approx(0.05)}


@pytest.mark.parametrize("axes", [[".", ".", "ky", "kx"], ["y"], [], ["none", "../..", "", "/"], "y", 3, ["y"] * 50])
def test_odd_axes(patterns, tmp_path: Path, axes):
    path = write_nexus(tmp_path / "a.nxs", patterns)
    with h5py.File(path, "a") as file:
        file["scan_1/detector"].attrs["axes"] = axes
    assert "step_A" not in values(opened(path))


def test_a_linked_signal_is_not_taken(patterns, tmp_path: Path):
    path = write_nexus(tmp_path / "a.nxs", patterns)
    with h5py.File(path, "a") as file:
        file["scan_1/detector"].attrs["signal"] = "data_000001"
        assert not recognise_nexus(file)
        file["scan_1/detector/data_000001"] = h5py.ExternalLink("b.h5", "/entry/data/data")
        assert not recognise_nexus(file)
        file["scan_1/detector"].attrs["signal"] = "soft"
        file["scan_1/detector/soft"] = h5py.SoftLink("/scan_1/detector/counts")
        assert recognise_nexus(file)
    assert opened(path).header.n_frames == 20


def test_dectris_masters_are_left_alone(test_data: Path):
    masters = [*test_data.glob("formats/arina/*.h5")]
    assert masters and not any(recognised(path) for path in masters)


@pytest.mark.parametrize("name", ["rotavirus/rotavirus_64x64x128x128.h5", "sto_20nm/sto_28x28x192x192.h5"])
def test_plain_hdf5_is_left_alone(test_data: Path, name):
    assert not recognised(test_data / name)


@pytest.mark.parametrize("key", ["default", "none"])
def test_defaults_that_lead_nowhere(tmp_path: Path, patterns, key):
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        group = file
        for _ in range(20):
            group.attrs["default"] = "a" if key == "default" else "b"
            group = group.create_group("a")
    assert not recognised(tmp_path / "a.nxs")
    with h5py.File(tmp_path / "b.nxs", "w") as file:
        file.attrs["default"] = "loop"
        file["loop"] = h5py.SoftLink("/")
    assert not recognised(tmp_path / "b.nxs")


def test_another_dataset(patterns, tmp_path: Path):
    path = write_nexus(tmp_path / "a.nxs", patterns)
    with h5py.File(path, "a") as file:
        file["other"] = patterns[0]
    source = opened(path, "other")
    assert source.header.n_frames == 5 and values(source) == {}
    with pytest.raises(DataError, match="there is no dataset"):
        opened(path, "none")
