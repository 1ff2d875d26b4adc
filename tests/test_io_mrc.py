"""MRC stacks of every mode and byte order, and damaged ones."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from writers_mrc import MODES, write_mrc

from ptycho.errors import DataError
from ptycho.io.mrc import open_mrc
from ptycho.io.options import Options

FRAMES = np.random.default_rng(0).integers(0, 120, (3, 4, 6, 5))


def _poke(path: Path, at: int, content: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("dtype", MODES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extended", [b"", bytes(768)])
def test_what_is_written_is_read(tmp_path: Path, dtype, order, extended):
    source = open_mrc(write_mrc(tmp_path / "a.mrc", FRAMES, dtype, order, extended), Options())
    header = source.header
    assert (header.n_frames, header.frame_shape, header.scan_shape, header.warnings, header.metadata) == (12, (6, 5), None, [], {})
    frames = source.read(np.array([11, 0, 3, 4, 3]))
    assert frames.dtype == header.dtype == np.dtype(dtype) and frames.dtype.isnative
    np.testing.assert_array_equal(frames, FRAMES.reshape(-1, 6, 5)[[11, 0, 3, 4, 3]])


@pytest.mark.parametrize("dtype", MODES)
def test_as_mrcfile_reads_and_writes(tmp_path: Path, dtype):
    mrcfile = pytest.importorskip("mrcfile")
    np.testing.assert_array_equal(mrcfile.read(write_mrc(tmp_path / "a.mrc", FRAMES, dtype)), FRAMES.reshape(-1, 6, 5))
    with mrcfile.new(tmp_path / "b.mrc") as file:
        file.set_data(FRAMES.astype(dtype))
    source = open_mrc(tmp_path / "b.mrc", Options())
    assert source.header.scan_shape == (3, 4) and source.header.warnings == []
    np.testing.assert_array_equal(source.read(np.arange(12)), FRAMES.reshape(-1, 6, 5))


def test_scan_shape(tmp_path: Path):
    header = open_mrc(write_mrc(tmp_path / "a.mrc", FRAMES, volumes=True), Options()).header
    assert header.scan_shape == (3, 4) and header.metadata["scan_shape"].source == "a.mrc: header mz"
    assert open_mrc(write_mrc(tmp_path / "b_x6_y2.mrc", FRAMES), Options()).header.scan_shape == (2, 6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_high_tension_of_fei(tmp_path: Path, order):
    extended = bytearray(768 * 12)
    struct.pack_into(f"{order}d", extended, 84, 300e3)
    path = write_mrc(tmp_path / "a.mrc", FRAMES, order=order, extended=bytes(extended), kind=b"FEI1")
    quantity = open_mrc(path, Options()).header.metadata["voltage_kV"]
    assert (quantity.value, quantity.unit) == (300, "kV") and "a.mrc" in quantity.source
    for volts in (0.0, np.nan, 5e9):
        struct.pack_into(f"{order}d", extended, 84, volts)
        path = write_mrc(tmp_path / "a.mrc", FRAMES, order=order, extended=bytes(extended), kind=b"FEI2")
        assert open_mrc(path, Options()).header.metadata == {}


def test_bytes_are_unsigned_with_the_stamp_of_imod(tmp_path: Path):
    path = write_mrc(tmp_path / "a.mrc", FRAMES, "int8")
    assert open_mrc(_poke(path, 152, struct.pack("<2i", 1146047817, 0)), Options()).header.dtype == np.uint8
    assert open_mrc(_poke(path, 156, struct.pack("<i", 1)), Options()).header.dtype == np.int8


def test_lenient(tmp_path: Path):
    path = write_mrc(tmp_path / "a.mrc", FRAMES, order=">")
    header = open_mrc(_poke(path, 208, bytes(8)), Options()).header
    assert header.n_frames == 12 and header.frame_shape == (6, 5) and any("MAP" in text for text in header.warnings)
    header = open_mrc(_poke(write_mrc(tmp_path / "a.mrc", FRAMES), 8, bytes(4)), Options()).header
    assert header.n_frames == 12 and "0 frames" in header.warnings[0]


def test_every_cut(tmp_path: Path):
    path = write_mrc(tmp_path / "a.mrc", FRAMES, extended=bytes(64))
    content, first, frame = path.read_bytes(), 1024 + 64, 60
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        n = (size - first) // frame
        if n < 1:
            with pytest.raises(DataError):
                open_mrc(path, Options())
            continue
        source = open_mrc(path, Options())
        assert source.header.n_frames == n and "cut" in source.header.warnings[0]
        np.testing.assert_array_equal(source.read(np.arange(n)), FRAMES.reshape(-1, 6, 5)[:n])
    path.write_bytes(content + b"end")
    assert "3 bytes after" in open_mrc(path, Options()).header.warnings[0]


@pytest.mark.parametrize(("at", "value"), [(0, -1), (4, 0), (4, 70000), (8, -5), (12, 4), (12, 101), (12, 77), (92, -1), (92, 1 << 30), (0, 65536)])
def test_headers_that_cannot_be(tmp_path: Path, at, value):
    path = _poke(write_mrc(tmp_path / "a.mrc", FRAMES), at, struct.pack("<i", value))
    with pytest.raises(DataError) as error:
        open_mrc(path, Options())
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_random_damage(tmp_path: Path):
    content = write_mrc(tmp_path / "a.mrc", FRAMES, extended=bytes(128), kind=b"FEI1").read_bytes()
    rng, path = np.random.default_rng(5), tmp_path / "b.mrc"
    for _ in range(500):
        damaged = bytearray(content)
        for at in rng.integers(0, 240, rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(content)) if rng.random() < 0.3 else None])
        with suppress(DataError):
            source = open_mrc(path, Options())
            source.read(np.array([0, source.header.n_frames - 1]))
