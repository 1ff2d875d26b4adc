"""TIFF stacks as tifffile, ImageJ and cameras write them, and damaged ones."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from writers_tiff import write_pages, write_tiff

from ptycho.errors import DataError
from ptycho.io.options import Options
from ptycho.io.source import BinarySource
from ptycho.io.tiff import TiffSource, open_tiff

FRAMES = np.random.default_rng(0).poisson(3, (3, 4, 16, 24)).astype("u2")
STACK = FRAMES.reshape(-1, 16, 24)
OME = {"axes": "TZYX"}
PLAIN = {"metadata": None}


def _check(path: Path, frames=STACK, shape=(3, 4), kind=BinarySource):
    source = open_tiff(path, Options())
    header = source.header
    assert isinstance(source, kind) and header.warnings == [] and header.scan_shape == shape and header.frame_shape == (16, 24)
    assert header.n_frames == 12 and header.dtype.isnative and header.dtype == frames.dtype.newbyteorder("=")
    np.testing.assert_array_equal(source.read(np.arange(12)), frames)
    some = source.read(np.array([11, 3, 4, 3]))
    assert some.dtype == header.dtype
    np.testing.assert_array_equal(some, frames[[11, 3, 4, 3]])


@pytest.mark.parametrize(
    "options", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}, {"imagej": True}, {"metadata": OME, "ome": True}]
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_contiguous(tmp_path: Path, options, dtype):
    _check(write_tiff(tmp_path / "a.tif", FRAMES.astype(dtype), **options), STACK.astype(dtype))


@pytest.mark.parametrize("dtype", ["i1", "i2", "u4", "i4", "f8"])
def test_types(tmp_path: Path, dtype):
    _check(write_tiff(tmp_path / "a.tif", FRAMES.astype(dtype)), STACK.astype(dtype))


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"compression": "zlib", "predictor": 2, "byteorder": ">"}, {"tile": (16, 16)},
                                     {"tile": (16, 16), "compression": "zlib"}, {"compression": "zlib", "rowsperstrip": 5}])  # fmt: skip
def test_pages_of_several_parts(tmp_path: Path, options):
    _check(write_tiff(tmp_path / "a.tif", FRAMES, **options), kind=TiffSource)
    _check(write_tiff(tmp_path / "o.tif", FRAMES, metadata=OME, ome=True, **options), kind=TiffSource)
    _check(write_tiff(tmp_path / "p.tif", STACK, **PLAIN, **options), shape=None, kind=TiffSource)


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}])
def test_plain_pages(tmp_path: Path, options):
    _check(write_tiff(tmp_path / "a.tif", STACK, **PLAIN, **options), shape=None)
    _check(write_tiff(tmp_path / "scan_x4_y3.tif", STACK, **PLAIN, **options))
    _check(write_tiff(tmp_path / "i.tif", STACK), shape=None)


def test_pages_with_their_tags_between_them(tmp_path: Path):
    _check(write_pages(tmp_path / "a.tif", FRAMES), shape=None)
    _check(write_pages(tmp_path / "c.tif", FRAMES, compression="zlib"), shape=None, kind=TiffSource)


def test_one_image(tmp_path: Path):
    header = open_tiff(write_tiff(tmp_path / "a.tif", STACK[0]), Options()).header
    assert header.n_frames == 1 and header.frame_shape == (16, 24) and header.scan_shape is None


def test_many_pages(tmp_path: Path):
    stack = np.arange(5000 * 4, dtype="u2").reshape(5000, 2, 2)
    source = open_tiff(write_tiff(tmp_path / "a.tif", stack, **PLAIN), Options())
    assert source.header.n_frames == 5000
    np.testing.assert_array_equal(source.read(np.array([4999, 0])), stack[[4999, 0]])


def test_other_images_are_left_out(tmp_path: Path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.ones((8, 8), "u1"), metadata=None)
        for frame in STACK:
            file.write(frame, metadata=None, contiguous=False)
    source = open_tiff(tmp_path / "a.tif", Options())
    assert source.header.n_frames == 12 and "(8, 8)" in source.header.warnings[0]
    np.testing.assert_array_equal(source.read(np.arange(12)), STACK)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [(np.zeros((5, 16, 24, 3), "u1"), {"photometric": "rgb"}, "no colour"), (STACK.astype("c8"), {}, "real numbers"),
     (np.zeros((4, 16, 16), "u1"), {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [0]}, "no colour")],
)  # fmt: skip
def test_no_patterns(tmp_path: Path, array, options, message):
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(DataError, match=message):
        open_tiff(tmp_path / "a.tif", Options())
    with pytest.raises(DataError, match="no datasets"):
        open_tiff(tmp_path / "a.tif", Options(dataset="x"))


def _frames_or_error(path: Path) -> int:
    """Frames that can be read and are right; 0 for a DataError."""
    try:
        source = open_tiff(path, Options())
        frames = source.read(np.arange(source.header.n_frames))
    except DataError as error:
        return 0 if "\n" not in str(error) else -1
    np.testing.assert_array_equal(frames, STACK[: len(frames)])
    assert len(frames) == 12 or source.header.warnings
    return len(frames)


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"metadata": OME, "ome": True}, {"compression": "zlib"}])
def test_cut_files(tmp_path: Path, options):
    content = write_tiff(tmp_path / "a.tif", FRAMES, **options).read_bytes()
    path = tmp_path / "cut.tif"
    for size in [*range(0, 300, 7), *range(300, len(content), 211)]:
        path.write_bytes(content[:size])
        assert _frames_or_error(path) >= 0
    pages = write_pages(tmp_path / "p.tif", FRAMES).read_bytes()
    path.write_bytes(pages[: len(pages) // 2])
    assert _frames_or_error(path) in (5, 6)


def test_frames_that_have_gone_are_an_error(tmp_path: Path):
    for name, options in (("a.tif", {}), ("c.tif", {"compression": "zlib"})):
        path = write_tiff(tmp_path / name, FRAMES, **options)
        source = open_tiff(path, Options())
        path.write_bytes(path.read_bytes()[:400])
        with pytest.raises(DataError):
            source.read(np.arange(12))


# Damage and bombs


def _classic(entries, pixels=b"", following=0) -> bytes:
    """A little-endian TIFF of one list of tags (code, type, count, value) at byte 8, and ``pixels`` after it."""
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + tags + struct.pack("<I", following) + pixels


def _image(width, height, data, n_bytes, compression=1):
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, compression), (262, 3, 1, 1), (273, 4, 1, data), (277, 3, 1, 1),
            (278, 4, 1, height), (279, 4, 1, n_bytes)]  # fmt: skip


@pytest.mark.parametrize("cycle", [1, 3, 150])
def test_pages_in_circles(tmp_path: Path, cycle):
    offsets = [8 + i * 122 for i in range(cycle)]
    pages = [_classic(_image(4, 4, 8, 32), following=offsets[(i + 1) % cycle])[8:] for i in range(cycle)]
    assert len(pages[0]) <= 122
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + b"".join(page.ljust(122, b"\0") for page in pages))
    with pytest.raises(DataError, match="in circles"):
        open_tiff(tmp_path / "a.tif", Options())


@pytest.mark.parametrize(
    "entries",
    [_image(65535, 65535, 300, 1 << 31), _image(4, 4, 1 << 31, 32), _image(1 << 31, 1 << 31, 300, 32),
     [*_image(4, 4, 200, 32), (270, 2, 1 << 31, 8)], [*_image(4, 4, 200, 32), (330, 4, 1 << 20, 8)], [(256, 4, 1, 4)], [(256, 99, 1, 4)],
     _image(0, 0, 200, 32), _image(65535, 65535, 200, 100, 8), _image(4, 4, 200, 60000, 8)],
)  # fmt: skip
def test_tags_that_cannot_be(tmp_path: Path, entries):
    path = tmp_path / "a.tif"
    path.write_bytes(_classic(entries, bytes(100_000)))
    tracemalloc.start()
    with pytest.raises(DataError):
        open_tiff(path, Options()).read(np.array([0]))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_part_that_unpacks_to_too_much(tmp_path: Path):
    bomb = zlib.compress(bytes(20_000_000), 9)
    (tmp_path / "a.tif").write_bytes(_classic(_image(256, 256, 8 + 2 + 9 * 12 + 4, len(bomb), 8), bomb))
    source = open_tiff(tmp_path / "a.tif", Options())
    with pytest.raises(DataError, match="unpacks to more"):
        source.read(np.array([0]))


def test_ome_names_no_other_files(tmp_path: Path):
    other = write_tiff(tmp_path / "other.ome.tif", FRAMES, metadata=OME)
    text = tifffile.tiffcomment(other).replace("<TiffData", '<TiffData FirstZ="0"')
    named = text.replace('PlaneCount="12"/>', 'PlaneCount="12"><UUID FileName="other.ome.tif">urn:uuid:1</UUID></TiffData>')
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK[0], description=named, metadata=None)
    with suppress(DataError):
        assert open_tiff(path, Options()).header.n_frames == 1


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"metadata": OME, "ome": True}, {"compression": "zlib", **PLAIN}, {"bigtiff": True}])
def test_random_damage(tmp_path: Path, options):
    content = write_tiff(tmp_path / "a.tif", FRAMES, **options).read_bytes()
    places = np.flatnonzero(np.frombuffer(content, np.uint8)[:2000])
    rng, path = np.random.default_rng(5), tmp_path / "b.tif"
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.choice(places, rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(DataError):
            source = open_tiff(path, Options())
            source.read(np.array([0, source.header.n_frames - 1]))


def test_tags_that_many_pages_share(tmp_path: Path):
    # 500 pages with one text of 1 MB each, which is the same text in the file.
    text, first = bytes(1 << 20), 8 + 500 * 134
    pages = []
    for i in range(500):
        following = 8 + (i + 1) * 134 if i < 499 else 0
        pages.append(_classic([*_image(4, 4, 8, 32), (270, 2, len(text), first)], following=following)[8:].ljust(134, b"\0"))
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + b"".join(pages) + text)
    with pytest.raises(DataError, match="tags that no stack has"):
        open_tiff(tmp_path / "a.tif", Options())
