"""Raw files: what [data.layout] can express, and what it refuses."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from writers_raw import write_raw

from ptycho.errors import DataError, RecipeError
from ptycho.io.options import Options, RawLayout
from ptycho.io.raw import open_raw, set_scan_shape, shape_in_name, whole_frames

FRAMES = np.random.default_rng(0).integers(0, 200, (3, 4, 6, 5))


def _open(path: Path, **layout):
    return open_raw(path, Options(layout=RawLayout(**{"dtype": "<u2", "frame_shape": (6, 5), **layout})))


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "uint8", "<f4", ">f4", ">f8", "<i4", ">i2", "float16", ">u8"])
@pytest.mark.parametrize("gaps", [{}, {"offset": 7}, {"before": 3, "after": 11, "offset": 512}])
@pytest.mark.parametrize("column_major", [False, True])
def test_what_is_written_is_read(tmp_path: Path, dtype, gaps, column_major):
    path = write_raw(tmp_path / "a.bin", FRAMES, dtype, column_major=column_major, **gaps)
    source = _open(path, dtype=dtype, column_major=column_major, **{f"{name}_bytes": n for name, n in gaps.items()})
    header = source.header
    assert (header.n_frames, header.frame_shape, header.scan_shape, header.warnings) == (12, (6, 5), None, [])
    frames = source.read(np.array([11, 0, 3, 4, 3]))
    assert frames.dtype == header.dtype == np.dtype(dtype).newbyteorder("=") and frames.dtype.isnative
    np.testing.assert_array_equal(frames, FRAMES.reshape(-1, 6, 5)[[11, 0, 3, 4, 3]])
    assert source.read(np.array([], np.int64)).shape == (0, 6, 5)


def test_without_a_layout_the_keys_are_named(tmp_path: Path):
    path = write_raw(tmp_path / "a.raw", FRAMES)
    with pytest.raises(DataError, match=r"a.raw: .*\[data.layout\] dtype = .*frame_shape = ") as error:
        open_raw(path, Options())
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="no datasets"):
        open_raw(path, Options(dataset="x", layout=RawLayout(dtype="u2", frame_shape=(6, 5))))


def test_the_size_gives_the_number_of_frames(tmp_path: Path):
    path = write_raw(tmp_path / "a.bin", FRAMES, before=4, after=8)
    content, frame, stride = path.read_bytes(), 60, 72
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        n = (size - 4 - frame) // stride + 1 if size >= 4 + frame else 0
        if not n:
            with pytest.raises(DataError):
                _open(path, before_bytes=4, after_bytes=8)
            continue
        source = _open(path, before_bytes=4, after_bytes=8)
        assert source.header.n_frames == n
        assert bool(source.header.warnings) == (size % stride not in (0, 64))
        np.testing.assert_array_equal(source.read(np.array([n - 1]))[0], FRAMES.reshape(-1, 6, 5)[n - 1])


def test_frames_that_have_gone_are_an_error(tmp_path: Path):
    path = write_raw(tmp_path / "a.bin", FRAMES)
    source = _open(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="ends at byte 100, in frame 1"):
        source.read(np.arange(12))
    for frames in ([12], [-1], [1 << 60]):
        with pytest.raises(DataError):
            source.read(np.array(frames))
    path.unlink()
    with pytest.raises(DataError):
        source.read(np.arange(12))


@pytest.mark.parametrize(
    ("name", "shape", "warned"),
    [("s_x4_y3.raw", (3, 4), 0), ("x4_y5.bin", (3, 4), 1), ("x5_y5.bin", (2, 5), 1), ("x2_y2.bin", None, 1), ("x20_y1.bin", None, 1),
     ("a.bin", None, 0), ("x0_y3.bin", None, 0), ("x123456_y3.bin", None, 0)],
)  # fmt: skip
def test_scan_shape_in_the_name(tmp_path: Path, name, shape, warned):
    header = _open(write_raw(tmp_path / name, FRAMES)).header
    assert header.scan_shape == shape and len(header.warnings) == warned
    assert ("scan_shape" in header.metadata) == (shape is not None)


def test_helpers():
    assert shape_in_name(Path("scan_x64_y48.raw")) == (48, 64)
    assert [whole_frames(size, 10, 7, 5) for size in (0, 10, 14, 15, 21, 22, 10**30)] == [0, 0, 0, 1, 1, 2, (10**30 - 15) // 7 + 1]
    set_scan_shape(None, None, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layout",
    [{"dtype": "object"}, {"dtype": "u2,u2"}, {"dtype": "(2,3)u2"}, {"dtype": "complex64"}, {"dtype": "longdouble"}, {"dtype": "16 bit"},
     {"dtype": ""}, {"dtype": "S4"}, {"frame_shape": (0, 5)}, {"frame_shape": (6, 65537)}, {"frame_shape": (6,)}, {"frame_shape": (1, 2, 3)},
     {"frame_shape": (6.0, 5)}, {"frame_shape": (True, 5)}, {"offset_bytes": -1}, {"before_bytes": 1.5}, {"after_bytes": -8}],
)  # fmt: skip
def test_impossible_layouts(layout):
    with pytest.raises(RecipeError, match=r"data\.layout"):
        RawLayout(**{"dtype": "<u2", "frame_shape": (6, 5), **layout})


@pytest.mark.parametrize("layout", [{"offset_bytes": 10**30}, {"before_bytes": 1 << 63}, {"frame_shape": (65536, 65536), "dtype": "f8"}])
def test_a_layout_larger_than_the_file(tmp_path: Path, layout):
    with pytest.raises(DataError, match=r"less than .*mend the layout") as error:
        _open(write_raw(tmp_path / "a.bin", FRAMES), **layout)
    assert "\n" not in str(error.value)


# Formats that are frames with gaps


def test_empad(tmp_path: Path):
    frames = np.random.default_rng(1).normal(size=(2, 3, 128, 128)).astype("<f4")
    path = write_raw(tmp_path / "scan_x3_y2.raw", frames, "<f4", after=1024)
    source = _open(path, dtype="<f4", frame_shape=(128, 128), after_bytes=1024)
    assert source.header.scan_shape == (2, 3)
    np.testing.assert_array_equal(source.read(np.arange(6)), frames.reshape(6, 128, 128))


@pytest.mark.parametrize("name", ["test1.blo", "test2.blo"])
def test_blo(test_data: Path, name):
    path = test_data / "formats" / "blo_tvips" / name
    content = path.read_bytes()
    offset, _, side, _, fast, slow = struct.unpack_from("<II4H", content, 12)
    source = _open(path, dtype="u1", frame_shape=(side, side), offset_bytes=offset, before_bytes=6)
    assert source.header.n_frames == slow * fast and source.header.warnings == []
    record = np.dtype([("mark", "<u2"), ("index", "<u4"), ("image", "u1", (side, side))])
    records = np.frombuffer(content, record, offset=offset)
    assert (records["mark"] == 0x55AA).all()
    np.testing.assert_array_equal(source.read(np.arange(slow * fast)), records["image"])


@pytest.mark.parametrize(("name", "shape", "total"), [("test_tvips_2233_000.tvips", (4, 3, 3), 630), ("test_tvips_2345_000.tvips", (6, 4, 5), 7140)])
def test_tvips(test_data: Path, name, shape, total):
    # Sums of the images as RosettaSciIO 0.15 gives them; a frame's header has 60 bytes.
    source = _open(test_data / "formats" / "blo_tvips" / name, frame_shape=shape[1:], offset_bytes=256, before_bytes=60)
    frames = source.read(np.arange(shape[0]))
    assert frames.shape == shape and frames.sum() == total and source.header.warnings == []


def test_seq(tmp_path: Path):
    # Norpix version 5: 8192 bytes, then images at a distance of "true image size".
    stride = 512
    path = write_raw(tmp_path / "a.seq", FRAMES, offset=8192, after=stride - 60)
    source = _open(path, offset_bytes=8192, after_bytes=stride - 60)
    np.testing.assert_array_equal(source.read(np.arange(12)), FRAMES.reshape(12, 6, 5))
