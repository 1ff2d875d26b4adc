"""HDF5, NumPy files, arrays, and files that are nothing of the kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho.errors import DataError, OutputError
from ptycho.frames import Quantity
from ptycho.io import read, write_hdf5

SUFFIXES = (".raw", ".xml", ".h5", ".emd", ".nxs", ".cxi", ".mat", ".npy", ".npz", ".unknown")


def test_import_is_light():
    code = "import sys, ptycho.io; assert not {'torch', 'h5py', 'pydantic', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "content", [None, b"", np.random.default_rng(0).bytes(100), b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(60), b"\x89HDF\r\n\x1a\n"], ids=range(6)
)
def test_broken_files_are_one_sentence(tmp_path: Path, suffix, content):
    path = tmp_path / f"a{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(path)
    assert "\n" not in str(error.value) and path.name in str(error.value) and error.value.exit_code == 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_is_not_a_file(tmp_path: Path, suffix):
    (tmp_path / f"a{suffix}").mkdir()
    with pytest.raises(DataError, match="folder"):
        read(tmp_path / f"a{suffix}")


def test_first_bytes_decide_for_an_unknown_suffix(disk_patterns, tmp_path: Path):
    np.save(tmp_path / "a.npy", disk_patterns)
    path = (tmp_path / "a.npy").rename(tmp_path / "a.bin")
    assert read(path).source.header.format == "npy"
    (tmp_path / "b.bin").write_bytes(b"BZh91AY" + bytes(500))
    with pytest.raises(DataError, match="compressed; unpack it first"):
        read(tmp_path / "b.bin")


# HDF5


def test_hdf5_round_trip(disk_patterns, tmp_path: Path):
    known = {"voltage_kV": Quantity(80.0, "kV", "user"), "step_A": (0.5, 0.6), "semiangle_mrad": 20.0, "rotation_deg": 12.0, "defocus_A": 300}
    known["pixel_mrad"] = Quantity(2.7, "mrad", "a guess", trusted=False)
    path = write_hdf5(tmp_path / "a.h5", disk_patterns, known)
    with h5py.File(path) as file:
        stored = file["datacube_root/datacube/data"]
        assert stored.dtype == "u2" and stored.attrs["units"] == "electrons"
    data = read(path)
    np.testing.assert_array_equal(data.patterns().reshape(disk_patterns.shape), disk_patterns)
    values = {name: data.calibration[name].value for name in known}
    assert values == {"voltage_kV": 80, "step_A": (0.5, 0.6), "semiangle_mrad": 20, "rotation_deg": 12, "defocus_A": 300, "pixel_mrad": 2.7}
    assert [name for name in known if not data.calibration[name].trusted] == ["pixel_mrad"]
    assert data.calibration["voltage_kV"].source == "a.h5: /datacube_root/datacube/data @voltage_kV"
    assert data.geometry.defocus_A == 300 and [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    order = [47, 3, 8, 9, 3]
    np.testing.assert_array_equal(data.patterns(order), disk_patterns.reshape(-1, 32, 32)[order])


def test_hdf5_keeps_fractions_and_says_when_it_cannot_write(disk_patterns, tmp_path: Path):
    disk_patterns[0, 0, 0, 0] = 0.5
    assert read(write_hdf5(tmp_path / "a.h5", disk_patterns)).source.header.dtype == np.float32
    with pytest.raises(OutputError, match="cannot be written"):
        write_hdf5(tmp_path / "none" / "a.h5", disk_patterns)
    with pytest.raises(OutputError, match="slow, fast, ky, kx"):
        write_hdf5(tmp_path / "b.h5", disk_patterns[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_sto(test_data: Path):
    data = read(test_data / "sto_20nm" / "sto_28x28x192x192.h5", voltage_kV=300, semiangle_mrad=21.4, step_A=0.45)
    assert data.scan_shape == (28, 28) and data.pattern_shape == (192, 192) and data.calibration["adu_per_electron"].value == 1
    assert data.survey().mean_electrons == pytest.approx(0.45**2 * 2e5, rel=0.03)
    assert data.geometry.pixel_invA == pytest.approx(0.03201024, rel=0.003)


def test_rotavirus(test_data: Path):
    data = read(test_data / "rotavirus" / "rotavirus_64x64x128x128.h5::data", scan_region=(0, 64, 0, 16))
    assert data.scan_shape == (64, 16) and data.pattern_shape == (128, 128)


def test_a_dataset_is_chosen_or_asked_for(tmp_path: Path):
    stack = np.ones((4, 6, 16, 16), "u2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.ones((16, 16))
        file["group/one"], file["group/two"] = stack, stack + 1
        file["words"] = "text"
    with pytest.raises(DataError, match=r"which dataset.*group/one \(4, 6, 16, 16\) uint16, group/two.*a.h5::NAME"):
        read(tmp_path / "a.h5")
    assert read(f"{tmp_path}/a.h5::/group/two").patterns([0])[0, 0, 0] == 2
    with pytest.raises(DataError, match=r"no dataset 'group/three'.*group/one"):
        read(f"{tmp_path}/a.h5::group/three")
    with pytest.raises(DataError, match="group is a group; name a dataset in it: group/one"):
        read(f"{tmp_path}/a.h5::group")
    with pytest.raises(DataError, match=r"shape \(16, 16\)"):
        read(f"{tmp_path}/a.h5::image")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["group/data"] = stack + 2
    assert read(tmp_path / "a.h5").patterns([0])[0, 0, 0] == 3


def test_no_stack_lists_what_is_there(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.ones((16, 16))
    with pytest.raises(DataError, match=r"no dataset of 3 or 4 axes; the file has image \(16, 16\) float64"):
        read(tmp_path / "a.h5")


def test_links_out_of_the_file_are_refused(tmp_path: Path):
    stack = np.ones((4, 6, 16, 16), "u2")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = stack
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["out"] = h5py.ExternalLink("other.h5", "/data")
        file["soft"] = h5py.SoftLink("/inner/data")
        file["loop"] = h5py.SoftLink("/loop")
        file["inner/data"] = stack
        file["to_out"] = h5py.SoftLink("/out")
        layout = h5py.VirtualLayout(stack.shape, stack.dtype)
        layout[:] = h5py.VirtualSource("other.h5", "data", stack.shape)
        file.create_virtual_dataset("virtual", layout)
    for name, message in [("out", "link into other.h5"), ("to_out", "link into other.h5"), ("loop", "circles"), ("virtual", "other files")]:
        with pytest.raises(DataError, match=message):
            read(f"{tmp_path}/a.h5::{name}")
    assert read(f"{tmp_path}/a.h5::soft").scan_shape == (4, 6)


def test_an_acquisition_that_never_wrote_a_pattern_is_told(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (4, 6, 16, 16), "u2", chunks=(1, 1, 16, 16))
    data = read(tmp_path / "a.h5")
    assert any("no pattern was ever written" in w for w in data.warnings)
    with pytest.raises(DataError, match="all pixels are 0"):
        data.survey()


def test_contiguous_data_that_the_file_is_too_short_for(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.ones((4, 6, 64, 64), "u2")
        offset = file["data"].id.get_offset()
    raw = (tmp_path / "a.h5").read_bytes()
    assert offset > 0
    (tmp_path / "a.h5").write_bytes(raw[:-1000])
    with pytest.raises(DataError, match=r"not an HDF5 file|has it been cut"):
        read(tmp_path / "a.h5")


def test_a_damaged_chunk_is_an_error_when_read(disk_patterns, tmp_path: Path):
    path = write_hdf5(tmp_path / "a.h5", disk_patterns)
    with h5py.File(path) as file:
        chunk = file["datacube_root/datacube/data"].id.get_chunk_info(2)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    with pytest.raises(DataError, match="patterns of datacube_root/datacube/data cannot be read"):
        read(path).patterns()


# NumPy


@pytest.mark.parametrize("dtype", ["<f4", ">u2", "u1", "<f8", "<i4"])
def test_npy(disk_patterns, tmp_path: Path, dtype):
    array = disk_patterns.astype(dtype)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    np.savez(tmp_path / "a.npz", patterns=array, other=np.arange(3))
    np.savez_compressed(tmp_path / "c.npz", patterns=array)
    for name in ("a.npy", "f.npy", "a.npz", "c.npz", "a.npz::patterns"):
        data = read(tmp_path / name)
        assert data.scan_shape == (6, 8)
        np.testing.assert_array_equal(data.patterns().reshape(array.shape), disk_patterns)
        np.testing.assert_array_equal(data.patterns([9, 2]), disk_patterns.reshape(-1, 32, 32)[[9, 2]])


def test_three_axes_need_a_scan_shape(disk_patterns, tmp_path: Path):
    np.save(tmp_path / "a.npy", disk_patterns.reshape(48, 32, 32))
    with pytest.raises(DataError, match="6 x 8"):
        read(tmp_path / "a.npy")
    assert read(tmp_path / "a.npy", scan_shape=(6, 8)).scan_shape == (6, 8)


@pytest.mark.parametrize(
    "array", [np.array([{"a": 1}] * 3, dtype=object), np.ones((3, 4)), np.ones((2, 2, 4, 4), complex), np.ones((0, 2, 4, 4)), np.array(["a"])]
)
def test_arrays_that_are_no_patterns(tmp_path: Path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", array)
    for path in (tmp_path / "a.npy", tmp_path / "a.npz", f"{tmp_path}/a.npz::arr_0", array):
        with pytest.raises(DataError):
            read(path)


def test_a_cut_npy_is_an_error(disk_patterns, tmp_path: Path):
    np.save(tmp_path / "a.npy", disk_patterns)
    path = tmp_path / "a.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"the header promises|the file is damaged"):
        read(path)


@pytest.mark.parametrize("shape", ["(4294967296, 4294967296, 1, 1)", "(-1, -1, 8, 8)", "(4, 5, 8", "(2, 2, 8, 8.5)", "'abc'"])
def test_impossible_headers(tmp_path: Path, shape):
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n" + bytes(512))
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.npy")
    assert "\n" not in str(error.value)


def test_a_header_that_lies_does_not_fill_the_memory(tmp_path: Path):
    header = "{'descr': '<f4', 'fortran_order': True, 'shape': (100000, 100000, 1000, 1000)}"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n")
    with pytest.raises(DataError, match=r"the header promises|the file is damaged"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n3", "1 2 3\n4 5 6\n", "1,nan\n2,3\n", "\x00\x01"])
def test_bad_positions(disk_patterns, tmp_path: Path, content):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(DataError) as error:
        read(disk_patterns, positions_file=tmp_path / "p.csv")
    assert "p.csv" in str(error.value)


def test_positions_in_hdf5(disk_patterns, tmp_path: Path):
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["xy"] = np.arange(96.0).reshape(48, 2)
    stack = disk_patterns.reshape(48, 32, 32)
    data = read(stack, positions_file=tmp_path / "p.h5", voltage_kV=80, semiangle_mrad=20, pixel_invA=0.06)
    assert data.scan_shape == (1, 48)
    np.testing.assert_allclose(data.geometry.positions_A, np.arange(96.0).reshape(48, 2))
    with pytest.raises(DataError, match="48 positions are given for 40 frames"):
        read(stack[:40], positions_file=tmp_path / "p.h5")
