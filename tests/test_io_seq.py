"""StreamPix files."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from writers_seq import write_seq

from ptycho.errors import DataError
from ptycho.io import read
from ptycho.io.options import Options
from ptycho.io.seq import open_seq

PATTERNS = np.random.default_rng(0).integers(0, 250, (3, 4, 6, 8))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("version", [4, 5])
def test_what_is_written_is_read(dtype, version, tmp_path: Path):
    source = open_seq(write_seq(tmp_path / "a.seq", PATTERNS.astype(dtype), version=version), Options())
    assert (source.header.n_frames, source.header.frame_shape, source.header.dtype) == (12, (6, 8), dtype)
    order = np.array([11, 0, 5, 0])
    np.testing.assert_array_equal(source.read(order), PATTERNS.reshape(12, 6, 8)[order])


def test_it_opens_by_its_name(tmp_path: Path):
    data = read(write_seq(tmp_path / "a.seq", PATTERNS.astype("u2")), scan_shape=(3, 4), centre="none")
    np.testing.assert_array_equal(data.patterns().reshape(PATTERNS.shape), PATTERNS)


def test_a_cut_file_has_the_whole_images_before_the_cut(tmp_path: Path):
    raw = write_seq(tmp_path / "a.seq", PATTERNS.astype("u2")).read_bytes()
    (tmp_path / "b.seq").write_bytes(raw[:-200])
    source = open_seq(tmp_path / "b.seq", Options())
    assert source.header.n_frames == 10 and "10 of 12" in source.header.warnings[0]
    (tmp_path / "b.seq").write_bytes(raw[:-24])  # the last time stamp
    assert open_seq(tmp_path / "b.seq", Options()).header.n_frames == 12
    for cut in [*range(584), 1024, 8192, 8200]:
        (tmp_path / "b.seq").write_bytes(raw[:cut])
        with pytest.raises(DataError):
            open_seq(tmp_path / "b.seq", Options())


def test_any_header_gives_frames_or_one_line(tmp_path: Path):
    raw = write_seq(tmp_path / "a.seq", PATTERNS.astype("u2")).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(500):
        damaged = bytearray(raw)
        damaged[rng.choice([*range(32), *range(548, 584)])] = rng.integers(256)
        (tmp_path / "b.seq").write_bytes(damaged)
        with contextlib.suppress(DataError):
            source = open_seq(tmp_path / "b.seq", Options())
            source.read(np.array([0, source.header.n_frames - 1]))
