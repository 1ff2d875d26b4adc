"""MATLAB files: both versions, axes, what else may be in them, and broken ones."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from writers_matlab import write_mat, write_mat73

from ptycho.errors import DataError, PtychoError
from ptycho.io import hdf5, hdf5_dialects
from ptycho.io.mat5 import variables
from ptycho.io.matlab import matlab_axes, open_mat, open_mat_frame, open_matlab, recognise_matlab
from ptycho.io.options import Options

SHAPE = (3, 4, 6, 8)  # slow, fast, ky, kx


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(300.0, SHAPE).astype(np.uint16)


def open_any(path: Path, **options):
    """The reader that the first bytes ask for."""
    if path.read_bytes()[:10] == b"MATLAB 5.0":
        return open_mat(path, Options(**options))
    file = hdf5.open_file(path)
    assert recognise_matlab(file)
    return open_matlab(path, file, Options(**options))


WRITERS = {
    "5": write_mat,
    "7": lambda *args: write_mat(*args, compress=True),
    "7.3": write_mat73,
}


@pytest.mark.parametrize("version", WRITERS)
def test_what_is_written_is_read(version: str, counts, tmp_path: Path):
    source = open_any(WRITERS[version](tmp_path / "a.mat", counts))
    header = source.header
    assert (header.format, header.scan_shape, header.frame_shape, header.n_frames) == ("mat", (3, 4), (6, 8), 12)
    assert header.dtype == np.uint16 and header.metadata["scan_shape"].source == "a.mat: shape of cbed"
    np.testing.assert_array_equal(source.read(np.arange(12)).reshape(SHAPE), counts)
    some = np.array([11, 0, 5, 5, 2])
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(source.read, [some] * 8):
            np.testing.assert_array_equal(got, counts.reshape(12, 6, 8)[some])
    source.close()
    np.testing.assert_array_equal(source.read(some[:1])[0], counts[2, 3])
    assert source.read(some).flags["C_CONTIGUOUS"] and source.read(some[:0]).shape == (0, 6, 8)
    source.close()


@pytest.mark.parametrize("version", WRITERS)
def test_a_list_of_patterns_stays_a_list(version: str, counts, tmp_path: Path):
    stack = counts.reshape(12, 6, 8)
    source = open_any(WRITERS[version](tmp_path / "a.mat", stack, "dp"))
    assert source.header.scan_shape is None and source.header.n_frames == 12
    np.testing.assert_array_equal(source.read(np.arange(12)), stack)
    source.close()


@pytest.mark.parametrize("version", WRITERS)
def test_one_pattern_in_a_file(version: str, counts, tmp_path: Path):
    path = WRITERS[version](tmp_path / "dp_7.mat", counts[1, 2].astype("u1"), "dp")
    source = open_mat_frame(path, Options())
    assert (source.header.n_frames, source.header.frame_shape, source.header.scan_shape, source.header.dtype) == (1, (6, 8), None, np.uint8)
    np.testing.assert_array_equal(source.read(np.array([0]))[0], counts[1, 2].astype("u1"))
    assert open_mat_frame(path, Options(dataset="dp")).header.n_frames == 1
    with pytest.raises(DataError, match=r"x\.mat"):
        open_mat_frame(WRITERS[version](tmp_path / "x.mat", counts), Options())


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i4", "f4", "f8", "i8", "u8"])
def test_all_types(dtype: str, compress: bool, counts, tmp_path: Path):
    values = (counts % 100).astype(dtype) / (3 if dtype[0] == "f" else 1)
    path = write_mat(tmp_path / "a.mat", values.astype(dtype), compress=compress)
    source = open_mat(path, Options())
    assert source.header.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(source.read(np.arange(12)).reshape(SHAPE), values.astype(dtype))
    np.testing.assert_array_equal(scipy.io.loadmat(path)["cbed"][..., 1, 2], source.read(np.array([6]))[0])


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def by_hand(values, mx_class: int, stored: str, order: str = "<", flags: int = 0) -> bytes:
    """A version 5 file with one variable "dp" (MATLAB's order of axes), its values written as another type than its class."""
    code = {"u1": 2, "u2": 4, "f8": 9}[stored]
    body = element(6, struct.pack(f"{order}II", mx_class | flags, 0), order)
    body += element(5, struct.pack(f"{order}{values.ndim}i", *values.shape), order) + struct.pack(f"{order}I", 2 << 16 | 1) + b"dp\0\0"
    body += element(code, values.astype(order + stored).tobytes("F"), order)
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}HH", 0x0100, 0x4D49) + element(14, body, order)


@pytest.mark.parametrize("order", ["<", ">"])
def test_small_whole_numbers_of_a_double_are_doubles(order: str, tmp_path: Path):
    """MATLAB writes a double array of whole numbers as uint8 or uint16, from either kind of machine."""
    values = np.arange(5 * 4 * 3 * 2).reshape(5, 4, 3, 2)
    path = tmp_path / "a.mat"
    path.write_bytes(by_hand(values, 6, "u1", order))
    source = open_mat(path, Options())
    assert source.header.dtype == np.dtype(order + "f8") and source.header.scan_shape == (3, 2)
    np.testing.assert_array_equal(source.read(np.arange(6)).reshape(3, 2, 5, 4), values.transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(scipy.io.loadmat(path)["dp"], values)


def test_other_than_numbers_are_refused(tmp_path: Path):
    path = tmp_path / "a.mat"
    cube = np.ones((4, 4, 2, 2))
    scipy.io.savemat(path, {"c": cube * 1j, "s": {"dp": cube}, "l": np.array([cube, "x"], object), "t": "text", "e": np.ones((4, 0, 2))})
    for name in "cslte":
        with pytest.raises(DataError, match="cannot be patterns"):
            open_mat(path, Options(dataset=name))
    with pytest.raises(DataError, match=r"no array of 4 or 3 axes; the file has c complex, s struct, l cell, t char"):
        open_mat(path, Options())
    with pytest.raises(DataError, match="no variable 'dp'"):
        open_mat(path, Options(dataset="dp"))
    sparse = tmp_path / "b.mat"
    scipy.io.savemat(sparse, {"s": scipy.sparse.csc_array(np.eye(4))})
    with pytest.raises(DataError, match="s sparse"):
        open_mat_frame(sparse, Options())


def test_the_variable_that_is_meant(counts, tmp_path: Path):
    path = tmp_path / "a.mat"
    cube = counts.transpose(2, 3, 0, 1)
    scipy.io.savemat(path, {"cbed": cube, "mask": np.ones((6, 8, 2))})
    assert open_mat(path, Options()).header.n_frames == 12
    assert open_mat(path, Options(dataset="mask")).header.n_frames == 2
    scipy.io.savemat(path, {"a": cube, "b": cube + 1})
    with pytest.raises(DataError, match=r"which variable.*write a.mat::NAME"):
        open_mat(path, Options())
    np.testing.assert_array_equal(open_mat(path, Options(dataset="b")).read(np.array([6]))[0], counts[1, 2] + 1)


def test_the_scan_shape_tells_an_array_from_python(counts, tmp_path: Path):
    assert matlab_axes((6, 8, 3, 4), (3, 4)) == matlab_axes((6, 8, 3, 4), None) == matlab_axes((3, 4, 3, 4), (3, 4)) == ("ky", "kx", "y", "x")
    assert matlab_axes((3, 4, 6, 8), (3, 4)) == ("y", "x", "ky", "kx") and matlab_axes((3, 4, 6, 8), None) == ("ky", "kx", "y", "x")
    assert matlab_axes((12, 6, 8), (3, 4)) == ("n", "ky", "kx") and matlab_axes((6, 8, 12), (3, 4)) == ("ky", "kx", "n")
    five, seven = tmp_path / "a.mat", tmp_path / "b.mat"
    for stack in (counts, counts.reshape(12, 6, 8)):
        for compress in (False, True):
            scipy.io.savemat(five, {"x": stack}, do_compression=compress)
            source = open_mat(five, Options(scan_shape=(3, 4)))
            np.testing.assert_array_equal(source.read(np.arange(12)), counts.reshape(12, 6, 8))
    with h5py.File(seven, "w", userblock_size=512) as file:
        file.create_dataset("x", data=counts.T).attrs["MATLAB_class"] = np.bytes_("uint16")
    source = open_any(seven, scan_shape=(3, 4))
    np.testing.assert_array_equal(source.read(np.arange(12)), counts.reshape(12, 6, 8))
    source.close()


def test_only_matlabs_hdf5_is_reversed(counts, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hdf5_dialects, "DIALECTS", ((recognise_matlab, open_matlab),))
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["cbed"] = counts
    source = open_mat(tmp_path / "a.mat", Options())
    assert source.header.format == "hdf5" and source.header.frame_shape == (6, 8)
    source.close()
    source = open_mat(write_mat73(tmp_path / "b.mat", counts), Options())
    assert source.header.format == "mat" and source.header.scan_shape == (3, 4)
    source.close()


def test_every_cut_is_told(counts, tmp_path: Path):
    for compress in (False, True):
        whole = write_mat(tmp_path / "w.mat", counts[:2, :1], compress=compress).read_bytes()
        path = tmp_path / "a.mat"
        end = 128 + 8 + struct.unpack("<I", whole[132:136])[0]
        for n in [*range(1, 300), *range(300, end, 37), end - 1]:
            path.write_bytes(whole[:n])
            with pytest.raises(DataError):
                open_mat(path, Options())
        path.write_bytes(whole[: end + 12])  # cut in what comes after the patterns
        np.testing.assert_array_equal(open_mat(path, Options()).read(np.arange(2)), counts[:2, 0])


def test_a_file_that_shrinks_is_told(counts, tmp_path: Path):
    for compress in (False, True):
        path = write_mat(tmp_path / "a.mat", counts, compress=compress)
        source = open_mat(path, Options())
        with open(path, "r+b") as file:
            file.truncate(700)
        with pytest.raises(DataError, match="cut"):
            source.read(np.arange(12))


def packed_file(body: bytes) -> bytes:
    packed = zlib.compress(body)
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49) + struct.pack("<II", 15, len(packed)) + packed


def test_claims_of_a_header_are_not_believed(tmp_path: Path, monkeypatch):
    head = element(6, struct.pack("<II", 9, 0)) + element(5, struct.pack("<4i", 256, 256, 256, 200)) + struct.pack("<I", 2 << 16 | 1) + b"dp\0\0"
    body = struct.pack("<II", 14, 256**3 * 200 + 72) + head + struct.pack("<II", 2, 256**3 * 200)
    path = tmp_path / "a.mat"
    monkeypatch.setattr("ptycho.io.mat5.np.empty", None)  # nothing may be made
    path.write_bytes(packed_file(body + bytes(1000)))
    with pytest.raises(DataError, match="too few"):
        open_mat(path, Options())
    path.write_bytes(by_hand(np.zeros((2, 2, 2)), 9, "u1")[:128] + body)
    with pytest.raises(DataError, match="has it been cut"):
        open_mat(path, Options())
    monkeypatch.undo()
    monkeypatch.setattr("ptycho.io.source.MAX_IN_MEMORY", 100)
    path.write_bytes(packed_file(by_hand(np.zeros((4, 4, 20)), 9, "u1")[128:]))
    with pytest.raises(DataError, match="read at once"):
        open_mat(path, Options())


def test_other_files_are_told(tmp_path: Path):
    path = tmp_path / "a.mat"
    for content in (
        b"x",
        bytes(200),
        b"MATLAB 5.0".ljust(124) + b"\x00\x01XX",
        bytes(126) + b"IM",
        b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + bytes(64),
    ):
        path.write_bytes(content)
        for opener in (open_mat, open_mat_frame):
            with pytest.raises(DataError) as caught:
                opener(path, Options())
            assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_damaged_bytes_give_one_line(counts, tmp_path: Path):
    rng, lines = np.random.default_rng(3), set()
    path = tmp_path / "a.mat"
    for compress in (False, True):
        whole = np.frombuffer(write_mat(path, counts[:1, :2], compress=compress).read_bytes(), "u1")
        for _ in range(150):
            damaged = whole.copy()
            at = rng.integers(0, min(len(whole), 400), 3)
            damaged[at] = rng.choice([0, 1, 15, 127, 128, 255, rng.integers(256)], 3)
            path.write_bytes(damaged.tobytes())
            for opener in (open_mat, open_mat_frame):
                try:
                    variables(path)
                    source = opener(path, Options())
                    source.read(np.arange(min(source.header.n_frames, 4)))
                except PtychoError as error:
                    lines.add(str(error))
    assert lines and all(line.startswith(str(path)) and "\n" not in line and len(line) < 250 + len(str(path)) for line in lines)
