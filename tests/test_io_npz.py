"""NumPy files that lie: headers, archives whose lists are wrong, and bombs."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ptycho.errors import DataError
from ptycho.io.numpy_file import open_npy, open_npy_frames, open_npz
from ptycho.io.options import Options

FRAMES = np.random.default_rng(0).integers(0, 9, (3, 4, 6, 5)).astype("u2")
DIRECTORY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def _npy(array=FRAMES) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _header(text: str, version=1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text.encode()


def _zip(path: Path, members, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _poke(path: Path, mark: bytes, at: int, content: bytes) -> Path:
    """Write ``content`` at ``at`` bytes after the last ``mark``."""
    whole = bytearray(path.read_bytes())
    start = whole.rindex(mark) + at
    whole[start : start + len(content)] = content
    path.write_bytes(whole)
    return path


def _refused(path: Path, opener=open_npz, match=None, limit=32 << 20):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=match) as error:
            opener(path, Options()).read(np.array([0, 11]))
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path)) and len(str(error.value)) < 250 + len(str(path))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_native(tmp_path: Path, order, save):
    array = np.asarray(FRAMES.astype(">u2"), order=order)
    np.save(tmp_path / "a.npy", array)
    save(tmp_path / "a.npz", array)
    for source in (open_npy(tmp_path / "a.npy", Options()), open_npz(tmp_path / "a.npz", Options())):
        frames = source.read(np.array([7, 0]))
        assert frames.dtype.isnative and source.header.dtype.isnative
        np.testing.assert_array_equal(frames, FRAMES.reshape(-1, 6, 5)[[7, 0]])


@pytest.mark.parametrize("order", ["C", "F"])
def test_one_image_is_a_frame_for_folders_only(tmp_path: Path, order):
    np.save(tmp_path / "a.npy", np.asarray(FRAMES[0, 0], order=order))
    np.testing.assert_array_equal(open_npy_frames(tmp_path / "a.npy", Options()).read(np.array([0]))[0], FRAMES[0, 0])
    _refused(tmp_path / "a.npy", open_npy, r"shape \(6, 5\)")


def test_a_header_of_4_gb(tmp_path: Path):
    text = b"\x93NUMPY\x02\x00" + struct.pack("<I", (1 << 32) - 1) + b"{"
    (tmp_path / "a.npy").write_bytes(text + b" " * 1000)
    _refused(tmp_path / "a.npy", open_npy, "4294967295")
    _refused(_zip(tmp_path / "a.npz", {"a.npy": text + b" " * 50_000_000}, zipfile.ZIP_DEFLATED), limit=16 << 20)


HEADERS = {
    "digits": "{'descr': '<u2', 'fortran_order': False, 'shape': (" + "9" * 400 + ", 1, 1)}",
    "axes": "{'descr': '<u2', 'fortran_order': False, 'shape': (" + "1, " * 900 + ")}",
    "record": "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (3, 4, 6, 5)}",
    "brackets": "(" * 5000,
    "minus": "-" * 9000 + "1",
    "more": "{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4, 6, 5), 'more': 1}",
    "type": "{'descr': '|V99999999999', 'fortran_order': False, 'shape': (3, 4, 6, 5)}",
    "code": "__import__('os').abort()",
    "zeros": "\0" * 100,
    "large": "{'descr': '<u2', 'fortran_order': True, 'shape': (60000, 60000, 500, 500)}",
}


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers(tmp_path: Path, text, version):
    content = _header(text, version) + bytes(1000)
    (tmp_path / "a.npy").write_bytes(content)
    _refused(tmp_path / "a.npy", open_npy)
    _refused(_zip(tmp_path / "a.npz", {"a.npy": content}))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("at", [20, 24])
@pytest.mark.parametrize("size", [0, 10, 500, 1 << 30, (1 << 32) - 2])
def test_sizes_in_the_directory(tmp_path: Path, compression, at, size):
    path = _poke(_zip(tmp_path / "a.npz", {"a.npy": _npy()}, compression), DIRECTORY, at, struct.pack("<I", size))
    if compression == zipfile.ZIP_DEFLATED and at == 20 and size >= 500:
        # More compressed bytes than there are: deflate ends by itself, and all of the array is there.
        np.testing.assert_array_equal(open_npz(path, Options()).read(np.array([0, 11])), FRAMES.reshape(-1, 6, 5)[[0, 11]])
    else:
        _refused(path)


@pytest.mark.parametrize("offset", [1, 5000, (1 << 32) - 2])
def test_a_member_elsewhere(tmp_path: Path, offset):
    _refused(_poke(_zip(tmp_path / "a.npz", {"a.npy": _npy()}), DIRECTORY, 42, struct.pack("<I", offset)))


def test_members_that_lie_on_each_other(tmp_path: Path):
    # Both members are the first one's bytes: nothing more than the file has is ever read.
    path = _poke(_zip(tmp_path / "a.npz", {"a.npy": _npy(), "b.npy": _npy()}), DIRECTORY, 42, bytes(4))
    _refused(path)


def test_encrypted_and_other_compressions(tmp_path: Path):
    path = _zip(tmp_path / "a.npz", {"a.npy": _npy()})
    _poke(_poke(path, DIRECTORY, 8, b"\1"), LOCAL, 6, b"\1")
    _refused(path, match="encrypted")
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        _refused(_zip(tmp_path / "b.npz", {"a.npy": _npy()}, compression), match="savez")


def test_too_many_members(tmp_path: Path):
    _refused(_zip(tmp_path / "a.npz", {f"{i}.npy": b"" for i in range(2001)}), match="2001 members")
    path = _zip(tmp_path / "b.npz", {f"{i}.npy": _npy() for i in range(30)})
    _refused(path, match="which array")


def test_a_table_beside_the_patterns(tmp_path: Path):
    table = np.zeros(3, [(f"a_long_name_of_column_{i}", "f8") for i in range(40)])
    path = _zip(tmp_path / "a.npz", {"patterns.npy": _npy(), "table.npy": _npy(table), "notes.txt": "text"}, zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(open_npz(path, Options()).read(np.array([5]))[0], FRAMES[1, 1])
    with pytest.raises(DataError, match="real numbers") as error:
        open_npz(path, Options(dataset="table"))
    assert len(str(error.value)) < 250 + len(str(path))


def test_a_directory_larger_than_any(tmp_path: Path):
    path = _zip(tmp_path / "a.npz", {"a.npy": _npy()})
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(DIRECTORY)] + bytes(20_000_000) + content[content.rindex(DIRECTORY) :])
    _poke(path, b"PK\x05\x06", 12, struct.pack("<I", 20_000_000))
    _refused(path, match="list of members", limit=8 << 20)


def test_bombs(tmp_path: Path):
    zeros = _header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 50000, 100)}") + bytes(20_000_000)
    path = _zip(tmp_path / "a.npz", {"a.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert open_npz(path, Options()).header.n_frames == 4  # honest, though a thousand times smaller
    promised = _header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 60, 50)}") + bytes(20_000_000)
    _refused(_zip(tmp_path / "b.npz", {"a.npy": promised}, zipfile.ZIP_DEFLATED), match="promises", limit=16 << 20)
    # The directory and the header agree on 4 GB that 2 kB of deflate cannot be.
    text = _header("{'descr': '|u1', 'fortran_order': False, 'shape': (40000, 1000, 100)}")
    path = _zip(tmp_path / "c.npz", {"a.npy": text + bytes(1000)}, zipfile.ZIP_DEFLATED)
    _refused(_poke(path, DIRECTORY, 24, struct.pack("<I", len(text) + 4_000_000_000)), match="promises", limit=16 << 20)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_that_changes_after_opening(tmp_path: Path, compression):
    path = _zip(tmp_path / "a.npz", {"a.npy": _npy(np.asfortranarray(FRAMES))}, compression)
    source = open_npz(path, Options())
    _zip(path, {"a.npy": _npy(FRAMES[:1, :1])}, compression)
    with pytest.raises(DataError):
        source.read(np.array([0]))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_random_damage(tmp_path: Path, compression):
    content = _zip(tmp_path / "a.npz", {"a.npy": _npy(), "b.npy": _npy(np.arange(3))}, compression).read_bytes()
    rng, path = np.random.default_rng(5), tmp_path / "b.npz"
    for _ in range(200):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 30)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(DataError):
            open_npz(path, Options()).read(np.array([0, 11]))
