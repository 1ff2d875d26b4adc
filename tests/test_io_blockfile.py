"""NanoMEGAS block files."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from writers_blockfile import HEADER_BYTES, write_blockfile

from ptycho.errors import DataError
from ptycho.io.blockfile import open_blockfile
from ptycho.io.options import Options


def patterns_of(slow=3, fast=4, side=6):
    return np.random.default_rng(0).integers(0, 256, (slow, fast, side, side))


def test_what_is_written_is_read(tmp_path: Path):
    patterns = patterns_of()
    write_blockfile(tmp_path / "a.blo", patterns)
    source = open_blockfile(tmp_path / "a.blo", Options())
    header = source.header
    assert (header.scan_shape, header.frame_shape, header.n_frames, header.dtype) == ((3, 4), (6, 6), 12, np.uint8)
    frames = np.array([11, 0, 5, 0])
    assert np.array_equal(source.read(frames), patterns.reshape(12, 6, 6)[frames])
    said = {name: quantity.value for name, quantity in header.metadata.items()}
    assert said["step_A"] == pytest.approx((12, 15))
    assert said["voltage_kV"] == 200
    assert said["rotation_deg"] == 25 and not header.metadata["rotation_deg"].trusted
    assert said["camera_length_m"] == pytest.approx(0.4)
    assert said["pixel_mrad"] == pytest.approx(1e3 / 5000 / 0.4, rel=1e-6)  # 50 pixels in a centimetre
    assert "not counts" in header.warnings[0]


def test_a_cut_file_has_the_whole_patterns_before_the_cut(tmp_path: Path):
    patterns = patterns_of()
    write_blockfile(tmp_path / "a.blo", patterns)
    data = (tmp_path / "a.blo").read_bytes()
    (tmp_path / "b.blo").write_bytes(data[:-50])
    source = open_blockfile(tmp_path / "b.blo", Options())
    assert source.header.n_frames == 10 and "10 of 12" in source.header.warnings[0]
    assert np.array_equal(source.read(np.arange(10)), patterns.reshape(12, 6, 6)[:10])
    for cut in [*range(80), HEADER_BYTES - 1, HEADER_BYTES + 12, HEADER_BYTES + 12 + 41]:
        (tmp_path / "b.blo").write_bytes(data[:cut])
        with pytest.raises(DataError):
            open_blockfile(tmp_path / "b.blo", Options())


def test_any_header_gives_frames_or_one_line(tmp_path: Path):
    path = tmp_path / "a.blo"
    write_blockfile(path, patterns_of(2, 2, 3))
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(70)] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            source = open_blockfile(path, Options())
            assert source.read(np.arange(source.header.n_frames)).shape[1:] == source.header.frame_shape


@pytest.mark.parametrize(("name", "shape"), [("test1.blo", (3, 2, 144, 144)), ("test2.blo", (2, 3, 5, 5))])
def test_real_files_against_rosettasciio(test_data: Path, name: str, shape: tuple[int, ...]):
    path = test_data / "formats" / "blo_tvips" / name
    source = open_blockfile(path, Options())
    header = source.header
    assert (*header.scan_shape, *header.frame_shape) == shape
    assert header.metadata["voltage_kV"].value == 200
    pytest.importorskip("skimage")
    blockfile = pytest.importorskip("rsciio.blockfile")
    signal = blockfile.file_reader(str(path))[0]
    assert np.array_equal(source.read(np.arange(header.n_frames)).reshape(shape), signal["data"])
    assert header.metadata["step_A"].value == pytest.approx([signal["axes"][i]["scale"] * 10 for i in (0, 1)])
