"""Folders with one file per pattern."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from writers_raw import write_folder

from ptycho.errors import DataError
from ptycho.io.folder import open_folder
from ptycho.io.options import Options, RawLayout

FRAMES = np.random.default_rng(0).integers(0, 9, (3, 4, 6, 5)).astype("u2")
STACK = FRAMES.reshape(-1, 6, 5)
LAYOUT = Options(layout=RawLayout(dtype="u2", frame_shape=(6, 5)))


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".tiff", ".dat", ".raw", ".bin", ".NPY"])
def test_natural_order(tmp_path: Path, suffix):
    path = write_folder(tmp_path / "f", FRAMES, suffix.lower())
    for file in list(path.iterdir()):
        file.rename(file.with_suffix(suffix))
    source = open_folder(path, LAYOUT)
    header = source.header
    assert (header.n_frames, header.frame_shape, header.dtype, header.warnings, header.acquired) == (12, (6, 5), np.dtype("u2"), [], None)
    np.testing.assert_array_equal(source.read(np.arange(12)), STACK)
    np.testing.assert_array_equal(source.read(np.array([11, 2, 2, 0])), STACK[[11, 2, 2, 0]])
    assert source.read(np.array([], np.int64)).shape == (0, 6, 5)


def test_matlab(tmp_path: Path):
    savemat = pytest.importorskip("scipy.io").savemat
    (tmp_path / "f").mkdir()
    for i, frame in enumerate(STACK, 1):
        savemat(tmp_path / "f" / f"dp_{i}.mat", {"dp": frame})
    np.testing.assert_array_equal(open_folder(tmp_path / "f", Options()).read(np.arange(12)), STACK)


def test_several_patterns_per_file(tmp_path: Path):
    path = tmp_path / "scan_x4_y3"
    path.mkdir()
    for i, line in enumerate(FRAMES):
        np.save(path / f"line{i}.npy", line.astype(">u2"))
    source = open_folder(path, Options())
    assert source.header.n_frames == 12 and source.header.scan_shape == (3, 4) and source.header.metadata["scan_shape"].source == "name of the folder"
    frames = source.read(np.array([7, 4, 0, 11]))
    assert frames.dtype.isnative
    np.testing.assert_array_equal(frames, STACK[[7, 4, 0, 11]])


def test_a_layout_is_needed_for_numbers_only(tmp_path: Path):
    with pytest.raises(DataError, match=r"\[data.layout\]"):
        open_folder(write_folder(tmp_path / "f", FRAMES, ".dat"), Options())


def test_the_commonest_suffix(tmp_path: Path):
    path = write_folder(tmp_path / "f", FRAMES, ".npy")
    for name in ("notes.txt", "dark.tif", ".hidden.npy", "._p_1.npy"):
        (path / name).write_bytes(b"no pattern")
    (path / "inner.npy").mkdir()
    header = open_folder(path, Options()).header
    assert header.n_frames == 12 and header.warnings == ["f: 12 .npy files are read; 2 others are left out (dark.tif)"]


def test_folders_without_patterns(tmp_path: Path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.txt").write_text("a")
    for path in (tmp_path / "f", tmp_path / "none", tmp_path / "f" / "a.txt"):
        with pytest.raises(DataError) as error:
            open_folder(path, Options())
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("array", [STACK[0, :5], STACK[0].astype("u4"), STACK[:2], np.ones((2, 2), complex)])
@pytest.mark.parametrize(("number", "when"), [(12, "open"), (7, "open"), (3, "read")])
def test_files_unlike_the_first_are_named(tmp_path: Path, array, number, when):
    path = write_folder(tmp_path / "f", FRAMES)
    np.save(path / f"p_{number}.npy", array)
    if when == "open":
        with pytest.raises(DataError, match=f"p_{number}.npy: "):
            open_folder(path, Options())
    else:
        source = open_folder(path, Options())
        with pytest.raises(DataError, match=f"p_{number}.npy: "):
            source.read(np.arange(12))
        np.testing.assert_array_equal(source.read(np.array([0, 5])), STACK[[0, 5]])


def test_a_file_that_has_gone(tmp_path: Path):
    source = open_folder(write_folder(tmp_path / "f", FRAMES), Options())
    (tmp_path / "f" / "p_4.npy").unlink()
    with pytest.raises(DataError, match=r"p_4.npy: no such file"):
        source.read(np.arange(12))
    for frames in ([12], [-1]):
        with pytest.raises(DataError, match="12 frames"):
            source.read(np.array(frames))


def test_numbers_that_are_missing(tmp_path: Path):
    patterns = np.arange(30 * 4, dtype="u2").reshape(5, 6, 2, 2)
    path = write_folder(tmp_path / "scan_x6_y5", patterns, name="p_{:03d}")
    (path / "p_008.npy").unlink()
    (path / "p_030.npy").unlink()
    source = open_folder(path, Options())
    header = source.header
    np.testing.assert_array_equal(header.acquired, np.delete(np.arange(29), 7))
    assert header.scan_shape == (5, 6) and header.n_frames == 28 and "leave out 1 files" in header.warnings[0]
    np.testing.assert_array_equal(source.read(np.arange(28)), patterns.reshape(30, 2, 2)[header.acquired])
    for number in (3, 4, 5, 12, 20):
        (path / f"p_{number:03d}.npy").unlink()
    assert open_folder(path, Options()).header.acquired is None  # too many: the numbers may mean something else


def test_names_with_places(tmp_path: Path):
    # x is the fast axis, though the names sort with x first.
    path = tmp_path / "f"
    path.mkdir()
    for y, x in np.ndindex(3, 4):
        tifffile.imwrite(path / f"dp_x{x}_y{y}.tif", FRAMES[y, x])
    source = open_folder(path, Options())
    assert source.header.scan_shape == (3, 4) and source.header.acquired is None
    np.testing.assert_array_equal(source.read(np.arange(12)), STACK)
    (path / "dp_x1_y2.tif").unlink()
    source = open_folder(path, Options())
    np.testing.assert_array_equal(source.header.acquired, np.delete(np.arange(12), 9))
    assert source.header.scan_shape == (3, 4) and len(source.header.warnings) == 1


def test_threads(tmp_path: Path):
    source = open_folder(write_folder(tmp_path / "f", FRAMES, ".tif"), Options())
    with ThreadPoolExecutor(8) as pool:
        for frames in pool.map(lambda _: source.read(np.arange(12)), range(16)):
            np.testing.assert_array_equal(frames, STACK)


def test_many_files_open_quickly(tmp_path: Path):
    for i in range(2000):
        (tmp_path / f"p{i}.dat").write_bytes(bytes(60))
    start = time.process_time()
    header = open_folder(tmp_path, LAYOUT).header
    assert time.process_time() - start < 2 and header.n_frames == 2000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_passed_over(tmp_path: Path):
    path = write_folder(tmp_path / "f", FRAMES)
    os.mkfifo(path / "p_0.npy")
    assert open_folder(path, Options()).header.n_frames == 12
