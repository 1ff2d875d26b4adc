"""Merlin files: what is written is read, real files against other decodings, scan shapes, dropped frames, series, broken files."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from writers_mib import frame_header, write_mib

from ptycho.errors import DataError
from ptycho.io.mib import MibSource, open_mib
from ptycho.io.mib_header import parse_frame_header
from ptycho.io.mib_scan import lost_before
from ptycho.io.options import Options


def opened(path: Path) -> MibSource:
    source = open_mib(path, Options())
    assert isinstance(source, MibSource)
    return source


def frames_of(source: MibSource) -> NDArray[np.int64]:
    return source.read(np.arange(source.header.n_frames))


def counts(shape: tuple[int, ...], bits: int = 12) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, 2**bits, shape)


# What is written is read


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("bits", [1, 6, 12, 24])
@pytest.mark.parametrize("shape", [(256, 256), (100, 256), (512, 512), (128, 512)])
def test_what_is_written_is_read(tmp_path: Path, shape: tuple[int, int], bits: int, raw: bool) -> None:
    patterns = counts((2, 3, *shape), bits)
    path = write_mib(tmp_path / "a.mib", patterns, bits=bits, raw=raw, exposure_s=2.5e-3)
    for name in (path, path.with_suffix(".hdr")):
        source = opened(name)
        header = source.header
        assert (header.path, header.n_frames, header.frame_shape, header.scan_shape) == (path, 6, shape, (2, 3))
        assert header.dtype == np.dtype({1: "u1", 6: "u1", 12: "u2", 24: "u4"}[bits]).newbyteorder("=" if raw else ">")
        assert header.saturation == (None if bits == 1 else 2**bits - 2)
        assert header.metadata["exposure_ms"].value == pytest.approx(2.5) and header.metadata["exposure_ms"].unit == "ms"
        assert header.metadata["scan_shape"].source == "a.hdr: ScanX, ScanY" and header.metadata["scan_shape"].trusted
        assert not header.warnings and header.acquired is None and header.bad_pixels is None
        np.testing.assert_array_equal(frames_of(source), patterns.reshape(6, *shape))
        np.testing.assert_array_equal(source.read(np.array([4, 0, 4, 5])), patterns.reshape(6, *shape)[[4, 0, 4, 5]])


def test_processed_frames_may_have_any_shape(tmp_path: Path) -> None:
    patterns = counts((2, 2, 7, 13))
    np.testing.assert_array_equal(frames_of(opened(write_mib(tmp_path / "a.mib", patterns))), patterns.reshape(4, 7, 13))


def test_recorded_streams_have_a_prefix_and_their_own_hdr(tmp_path: Path) -> None:
    patterns = counts((2, 3, 16, 16))
    source = opened(write_mib(tmp_path / "a.mib", patterns, stream=True))
    np.testing.assert_array_equal(frames_of(source), patterns.reshape(6, 16, 16))
    assert source.header.scan_shape == (2, 3) and not source.header.warnings
    bare = tmp_path / "b.mib"
    bare.write_bytes((tmp_path / "a.mib").read_bytes()[15 - 1 + 2049 :])
    np.testing.assert_array_equal(frames_of(opened(bare)), patterns.reshape(6, 16, 16))


def test_frame_header_is_read_by_its_tokens() -> None:
    text = frame_header((512, 512), 12, False, 7, 3723.5, 1e-3)
    full = parse_frame_header(text)
    assert (full.sequence, full.header_bytes, full.chips, full.nx, full.depth, full.exposure_ms) == (7, 768, 4, 512, 12, pytest.approx(1.0))
    assert full.time_s == pytest.approx(3723.5)
    thresholds = text[text.index(b"1.200000E+1") : text.index(b",3RX")]
    assert parse_frame_header(text.replace(thresholds, b"")) == full
    old = parse_frame_header(text[: text.index(b"MQ1A")])
    assert (old.depth, old.exposure_ms, old.time_s) == (None, pytest.approx(1.0), pytest.approx(3723.5))


# Scan shape and flyback


def test_frames_per_trigger_are_a_line(tmp_path: Path) -> None:
    path = write_mib(tmp_path / "a.mib", counts((3, 4, 8, 8)), scan=False, hdr_lines=["Frames per Trigger (Number):\t4"])
    header = opened(path).header
    assert header.scan_shape == (3, 4) and header.metadata["scan_shape"].source == "a.hdr: Frames per Trigger"


@pytest.mark.parametrize(("declared", "shape", "warning"), [((5, 3), (4, 3), "4 whole scan lines"), ((3, 3), (3, 3), "last 3 belong to no point")])
def test_scan_that_does_not_fit_the_file(tmp_path: Path, declared: tuple[int, int], shape: tuple[int, int], warning: str) -> None:
    lines = [f"ScanX:\t{declared[1]}", f"ScanY:\t{declared[0]}"]
    header = opened(write_mib(tmp_path / "a.mib", counts((4, 3, 8, 8)), scan=False, hdr_lines=lines)).header
    assert header.scan_shape == shape and len(header.warnings) == 1 and warning in header.warnings[0]


def test_square_number_of_frames_is_a_guess(tmp_path: Path) -> None:
    header = opened(write_mib(tmp_path / "a.mib", counts((3, 3, 8, 8)), scan=False)).header
    assert header.scan_shape == (3, 3) and not header.metadata["scan_shape"].trusted
    header = opened(write_mib(tmp_path / "b.mib", counts((3, 4, 8, 8)), scan=False)).header
    assert header.scan_shape is None and "scan_shape" not in header.metadata


@pytest.mark.parametrize(("at", "flyback"), [(0, (1, 0)), (4, (0, 1))])
def test_long_exposures_are_the_flyback(tmp_path: Path, at: int, flyback: tuple[int, int]) -> None:
    exposures = np.where(np.arange(20) % 5 == at, 8e-3, 1e-3)
    header = opened(write_mib(tmp_path / "a.mib", counts((4, 5, 8, 8)), scan=False, exposure_s=exposures)).header
    assert header.scan_shape == (4, 4) and header.flyback == flyback
    assert not header.metadata["scan_shape"].trusted and header.metadata["exposure_ms"].value == pytest.approx(1.0)


def test_pauses_end_a_line(tmp_path: Path) -> None:
    times = np.arange(20) * 2e-3 + np.arange(20) // 5 * 0.05 + 86399.98 - 3600 * 23
    header = opened(write_mib(tmp_path / "a.mib", counts((4, 5, 8, 8)), scan=False, times_s=times)).header
    assert header.scan_shape == (4, 5) and header.flyback == (0, 0) and not header.metadata["scan_shape"].trusted
    header = opened(write_mib(tmp_path / "b.mib", counts((4, 5, 8, 8))[:, :3], scan=False, times_s=times[3:15])).header
    assert header.scan_shape is None


def test_lines_that_begin_in_the_middle_are_only_reported(tmp_path: Path) -> None:
    exposures = np.where(np.arange(20) % 5 == 2, 8e-3, 1e-3)
    header = opened(write_mib(tmp_path / "a.mib", counts((4, 5, 8, 8)), scan=False, exposure_s=exposures)).header
    assert header.scan_shape is None and header.flyback == (0, 0) and "every 5 frames, first in frame 2" in header.warnings[0]


# Dropped frames and series


def test_dropped_frames_are_found(tmp_path: Path) -> None:
    kept = [5, 6, 8, 9, 10, 14, 15]  # of 5 ... 16
    path = write_mib(tmp_path / "a.mib", counts((1, 7, 8, 8)), sequence=kept, scan=False, hdr_lines=["ScanX:\t3", "ScanY:\t3"])
    header = opened(path).header
    assert header.acquired is not None
    np.testing.assert_array_equal(header.acquired, np.array(kept) - 5)
    assert header.scan_shape == (3, 3) and "4 frames of the acquisition are missing, the first before frame 2" in header.warnings[0]


def test_numbers_wrap_after_six_digits(tmp_path: Path) -> None:
    path = write_mib(tmp_path / "a.mib", counts((1, 5, 8, 8)), sequence=[999998, 999999, 0, 1, 2])
    assert opened(path).header.acquired is None
    path = write_mib(tmp_path / "a.mib", counts((1, 5, 8, 8)), sequence=[999998, 999999, 1, 2, 3])
    np.testing.assert_array_equal(opened(path).header.acquired, [0, 1, 3, 4, 5])


def test_numbers_that_do_not_increase_are_not_used(tmp_path: Path) -> None:
    header = opened(write_mib(tmp_path / "a.mib", counts((1, 5, 8, 8)), sequence=[1, 2, 1, 2, 3])).header
    assert header.acquired is None and "do not increase" in header.warnings[0]


def test_few_numbers_are_read() -> None:
    numbers = np.delete(np.arange(65540), [17, 18, 4000, 65000])
    asked: list[int] = []

    def sequence(index: int) -> int:
        asked.append(index)
        return int(numbers[index]) % 10**6

    lost = lost_before(sequence, len(numbers))
    assert lost is not None
    np.testing.assert_array_equal(np.arange(len(numbers)) + np.cumsum(lost), numbers)
    assert len(asked) < 100


@pytest.mark.parametrize("names", [("a1", "a2", "a3"), ("a_0009", "a_0010", "a_0011"), ("a9", "a10", "a11")])
def test_series_is_one_acquisition(tmp_path: Path, names: tuple[str, str, str]) -> None:
    patterns = counts((3, 4, 8, 8))
    for index, name in enumerate(names):
        write_mib(tmp_path / f"{name}.mib", patterns[index : index + 1], sequence=range(index * 4 + 1, index * 4 + 5)).with_suffix(".hdr").unlink()
    write_mib(tmp_path / "a.mib", patterns)
    (tmp_path / "a.mib").unlink()
    for name in (tmp_path / "a.hdr", tmp_path / f"{names[0]}.mib", tmp_path / f"{names[1]}.mib"):
        source = opened(name)
        assert source.header.n_frames == 12 and source.header.scan_shape == (3, 4) and not source.header.warnings
        np.testing.assert_array_equal(frames_of(source), patterns.reshape(12, 8, 8))
        np.testing.assert_array_equal(source.read(np.array([11, 3, 4])), patterns.reshape(12, 8, 8)[[11, 3, 4]])


def test_dropped_frames_in_a_series(tmp_path: Path) -> None:
    patterns = counts((1, 4, 8, 8))
    write_mib(tmp_path / "a1.mib", patterns, sequence=[1, 2, 4, 5])
    (tmp_path / "a2.mib").touch()
    write_mib(tmp_path / "a3.mib", patterns, sequence=[6, 7, 8, 10])
    np.testing.assert_array_equal(opened(tmp_path / "a1.mib").header.acquired, [0, 1, 3, 4, 5, 6, 7, 9])


def test_numbered_files_that_do_not_continue_are_apart(tmp_path: Path) -> None:
    for name in ("a1", "a2"):
        write_mib(tmp_path / f"{name}.mib", counts((1, 4, 8, 8)))
    assert opened(tmp_path / "a1.mib").header.n_frames == 4
    write_mib(tmp_path / "a2.mib", counts((1, 4, 9, 9)), sequence=range(5, 9))  # another frame size
    assert opened(tmp_path / "a1.mib").header.n_frames == 4
    (tmp_path / "a2.mib").write_bytes(b"MQ1,000005,")
    assert opened(tmp_path / "a1.mib").header.n_frames == 4


# The image


@pytest.mark.parametrize("side", [514, 515])
def test_gap_filled_with_zeros_is_masked(tmp_path: Path, side: int) -> None:
    path = write_mib(tmp_path / "a.mib", counts((1, 2, side, side)), hdr_lines=["Gap Fill Mode:\tZero fill"])
    assert opened(path).header.bad_pixels is None
    path.write_bytes(path.read_bytes().replace(b"   1x1,01,", b"  2x2G,0F,"))
    bad = opened(path).header.bad_pixels
    assert bad is not None
    gap = np.r_[256 : side - 256]
    assert bad[gap].all() and bad[:, gap].all() and bad.sum() == 2 * len(gap) * side - len(gap) ** 2
    write_mib(path, counts((1, 2, side, side)), hdr_lines=["Gap Fill Mode:\tDistribute"])
    path.write_bytes(path.read_bytes().replace(b"   1x1,01,", b"  2x2G,0F,"))
    assert opened(path).header.bad_pixels is None


def test_corrected_counts_have_no_limit(tmp_path: Path) -> None:
    patterns = counts((1, 2, 256, 256))
    lines = ["Flat Field File:\tc:\\flat.csv"]
    assert opened(write_mib(tmp_path / "a.mib", patterns, hdr_lines=lines)).header.saturation is None
    assert opened(write_mib(tmp_path / "a.mib", patterns, raw=True, hdr_lines=lines)).header.saturation == 4094


OTHER_CHIPS = [(b"2x2,0F", b"2x2,07"), (b",04,1024,", b",03,0768,"), (b"2x2,", b"4x1,"), (b",1024,", b",2048,"), (b",12,\0", b",13,\0")]


@pytest.mark.parametrize(("old", "new"), OTHER_CHIPS)
def test_raw_frames_of_other_chips_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = write_mib(tmp_path / "a.mib", counts((1, 2, 512, 512)), raw=True)
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(DataError, match=r"a\.mib: RAW frames .* (save processed frames|are known)"):
        opened(path)


# Broken files


def test_cut_file_gives_whole_frames(tmp_path: Path) -> None:
    patterns = counts((2, 3, 16, 16))
    path = write_mib(tmp_path / "a.mib", patterns)
    path.write_bytes(path.read_bytes()[:-1])
    source = opened(path)
    assert source.header.n_frames == 5 and source.header.scan_shape == (1, 3)
    assert "a.mib: 895 bytes after the last whole frame are left out" in source.header.warnings[0]
    np.testing.assert_array_equal(frames_of(source), patterns.reshape(6, 16, 16)[:5])


def test_every_cut_of_the_first_frame_is_an_error(tmp_path: Path) -> None:
    content = write_mib(tmp_path / "a.mib", counts((1, 1, 4, 4))).read_bytes()
    path = tmp_path / "b.mib"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError) as error:
            opened(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = write_mib(tmp_path / "a.mib", counts((1, 3, 16, 16)))
    source = opened(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match="ends at byte 1500, in frame 1"):
        frames_of(source)
    with pytest.raises(DataError, match="frames 0 to 3 are asked for; there are 3"):
        source.read(np.array([0, 3]))
    path.unlink()
    with pytest.raises(DataError):
        frames_of(source)


def test_frames_that_are_not_where_they_must_be(tmp_path: Path) -> None:
    path = write_mib(tmp_path / "a.mib", counts((1, 3, 16, 16)))
    content = path.read_bytes()
    path.write_bytes(content[:900] + b"x" + content[900:])
    with pytest.raises(DataError, match="frame 2 of 3 does not begin with the header"):
        opened(path)


def test_wrong_files(tmp_path: Path) -> None:
    path = write_mib(tmp_path / "a.mib", counts((1, 3, 16, 16)))
    with pytest.raises(DataError, match="no datasets"):
        open_mib(path, Options(dataset="x"))
    (tmp_path / "a.hdr").write_text("ENVI\nsamples = 3\n")
    with pytest.raises(DataError, match="not the header of a Merlin"):
        opened(tmp_path / "a.hdr")
    assert "not the header of a Merlin" in opened(path).header.warnings[0]
    (tmp_path / "b.hdr").write_text("HDR,\t\n")
    with pytest.raises(DataError, match=r"there is no b\.mib beside it"):
        opened(tmp_path / "b.hdr")
    with pytest.raises(DataError, match="no such file"):
        opened(tmp_path / "c.mib")


def test_only_data_errors_escape(tmp_path: Path) -> None:
    path = tmp_path / "a.mib"
    random = np.random.default_rng(5)
    messages = []
    for raw in (False, True):
        original = write_mib(path, counts((2, 2, 8, 256)), raw=raw).read_bytes()[: 3 * 4480]
        for _ in range(300):
            content = bytearray(original)
            for at in random.integers(0, [420 if random.random() < 0.8 else len(content)] * random.integers(1, 4)):
                content[at] = random.choice(np.frombuffer(b"0192,.-A\0\xff", np.uint8))
            path.write_bytes(content[: random.integers(1, len(content) + 1)] if random.random() < 0.2 else content)
            try:
                source = opened(path)
                source.read(np.arange(min(source.header.n_frames, 5)))
            except DataError as error:
                messages.append(str(error))
    assert 50 < len(messages) < 550
    assert all(text.startswith(str(path)) and len(text) < 250 and "\n" not in text for text in messages)


def test_opening_reads_little(tmp_path: Path) -> None:
    """65536 frames, 17 GB, of which only the two headers that are looked at are written."""
    path = tmp_path / "a.mib"
    stride, n = 384 + 65536 * 4, 65536
    try:
        with open(path, "wb") as file:
            for index in (0, n - 1):
                file.seek(index * stride)
                file.write(frame_header((256, 256), 24, False, index + 1, 0.0, 1e-3))
            file.truncate(n * stride)
    except OSError:
        pytest.skip("no sparse files here")
    start = time.perf_counter()
    header = opened(path).header
    assert time.perf_counter() - start < 0.3
    assert header.n_frames == n and header.scan_shape == (256, 256) and header.acquired is None


# Real files


@pytest.fixture(scope="module")
def real(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of rosettasciio's tests, of a single chip and of a quad."""
    archives = sorted((test_data / "formats" / "mib_rsciio").glob("*.zip"))
    if not archives:
        pytest.skip("no Merlin files")
    folder = tmp_path_factory.mktemp("mib")
    for archive in archives:
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)
    return folder


def decoded(path: Path) -> NDArray[np.unsignedinteger]:
    """Processed frames at the places that the first header gives."""
    content = path.read_bytes()
    fields = content[:200].decode("latin-1").split(",")
    length, nx, ny, dtype = int(fields[2]), int(fields[4]), int(fields[5]), np.dtype(f">u{int(fields[6][1:]) // 8}")
    stride = length + nx * ny * dtype.itemsize
    assert len(content) % stride == 0
    return np.stack([np.frombuffer(content, dtype, nx * ny, at + length).reshape(ny, nx) for at in range(0, len(content), stride)])


def test_real_processed_files(real: Path) -> None:
    files = [path for path in sorted(real.glob("*.mib")) if "RAW" not in path.name]
    assert len(files) == 20
    for path in files:
        source, expected = opened(path), decoded(path)
        assert source.header.dtype.itemsize == expected.itemsize and source.header.frame_shape == expected.shape[1:]
        np.testing.assert_array_equal(frames_of(source), expected)
        assert source.header.metadata["exposure_ms"].value == pytest.approx(100.0 if "6bit" in path.name else 1.0)
        assert source.header.acquired is None and not source.header.warnings


@pytest.mark.parametrize(("name", "rows"), [("002", 128), ("003", 64)])
def test_real_rows_of_interest(real: Path, name: str, rows: int) -> None:
    path = next(real.glob(f"{name}_merlin*52x_39y.mib"))
    source = opened(path)
    assert source.header.frame_shape == (rows, 256) and source.header.scan_shape == (2, 4)
    mean = frames_of(source).mean(0)
    assert np.unravel_index(mean.argmax(), mean.shape) == (39, 52)


@pytest.mark.parametrize("chips", ["Single", "Quad"])
def test_real_raw_files_have_the_hot_pixels_of_the_processed_ones(real: Path, chips: str) -> None:
    """Two acquisitions of one detector a second apart: pixels that always count are the same ones, on each chip."""
    name = f"{chips}_9_Frame_CounterDepth_1_Rows_256"
    raw, processed = (frames_of(opened(real / f"{name}{kind}.mib")).all(0) for kind in ("RAW", ""))
    assert raw.shape == processed.shape
    for y in range(0, len(raw), 256):
        for x in range(0, len(raw), 256):
            ours, theirs = raw[y : y + 256, x : x + 256], processed[y : y + 256, x : x + 256]
            assert (ours & theirs).sum() > 0.97 * theirs.sum() > 2000


def test_rosettasciio_reads_the_same_upside_down(real: Path) -> None:
    reader = pytest.importorskip("rsciio.quantumdetector")
    for name in ("Single_9_Frame_CounterDepth_12_Rows_256", "Quad_9_Frame_CounterDepth_6_Rows_256", "001_4x2_6bit"):
        theirs = reader.file_reader(str(real / f"{name}.mib"))[0]["data"]
        ours = frames_of(opened(real / f"{name}.mib"))
        np.testing.assert_array_equal(ours[:, ::-1], theirs.reshape(ours.shape))
