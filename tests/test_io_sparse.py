"""Sparse data: what is made dense again is exactly what was counted."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_events import event_list, event_rows, write_events_hdf5, write_events_npz, write_stempy

from ptycho.errors import DataError
from ptycho.io.counted import open_stempy, recognise_stempy
from ptycho.io.event_files import is_event_npz, open_event_npz, open_events, recognise_events
from ptycho.io.hdf5 import open_file
from ptycho.io.options import Options

SLOW, FAST, KY, KX = 3, 4, 9, 11


@pytest.fixture
def patterns():
    counts = np.random.default_rng(5).poisson(0.7, (SLOW, FAST, KY, KX)).astype(np.uint16)
    counts[1, 2, 4, 5] = 300  # many electrons in one pixel
    return counts


def open_counted(path, options=None):
    return open_stempy(path, open_file(path), options or Options())


def open_table(path, options=None):
    return open_event_npz(path, options or Options()) if path.suffix == ".npz" else open_events(path, open_file(path), options or Options())


def scan_of(source):
    """All patterns (slow, fast, ky, kx) without flyback, by the header's word."""
    header = source.header
    slow, fast = header.scan_shape
    line = sum(header.flyback) + fast
    acquired = np.arange(header.n_frames) if header.acquired is None else header.acquired
    everything = np.zeros((slow * line, *header.frame_shape), header.dtype)
    everything[acquired] = source.read(np.arange(header.n_frames))
    return everything.reshape(slow, line, *header.frame_shape)[:, header.flyback[0] : header.flyback[0] + fast]


@pytest.mark.parametrize("options", [{"version": 1}, {"version": 2}, {"version": 3}, {"per_position": 3}, {"chunked": True}])
def test_a_counted_scan_is_what_was_counted(tmp_path: Path, patterns, options):
    write_stempy(tmp_path / "a.h5", patterns, **options)
    source = open_counted(tmp_path / "a.h5")
    header = source.header
    assert (header.n_frames, header.frame_shape, header.dtype) == (SLOW * (FAST + 1), (KY, KX), np.uint16)
    assert (header.scan_shape, header.flyback, header.acquired) == ((SLOW, FAST), (0, 1), None)
    assert header.metadata["adu_per_electron"].value == 1
    assert np.array_equal(scan_of(source), patterns)
    source.close()
    assert np.array_equal(source.read(np.array([6, 0, 6]))[0], patterns[1, 1])


def test_stempy_is_recognised_and_other_files_are_not(tmp_path: Path, patterns):
    write_stempy(tmp_path / "a.h5", patterns)
    write_events_hdf5(tmp_path / "b.h5", patterns)
    with h5py.File(tmp_path / "a.h5") as counted, h5py.File(tmp_path / "b.h5") as table:
        assert recognise_stempy(counted) and not recognise_stempy(table)
        assert recognise_events(table) and not recognise_events(counted)


def test_rows_of_one_position_anywhere_in_the_file_are_one_frame(tmp_path: Path, patterns):
    path = tmp_path / "a.h5"
    write_stempy(path, patterns, version=1)
    with h5py.File(path, "a") as file:
        rows = list(file["electron_events/frames"][()])
        extra, rows[6] = rows[6][::2], rows[6][1::2]
        order = np.random.default_rng(2).permutation(len(rows) + 1)
        del file["electron_events/frames"], file["electron_events/scan_positions"]
        frames = file.create_dataset("electron_events/frames", (len(order),), h5py.vlen_dtype(np.uint32))
        for k, row in enumerate(order):
            frames[k] = [*rows, extra][row]
        frames.attrs.update({"Nx": KY, "Ny": KX})
        positions = file.create_dataset("electron_events/scan_positions", data=np.append(np.arange(len(rows)), 6)[order])
        positions.attrs.update({"Nx": FAST + 1, "Ny": SLOW})
    assert np.array_equal(scan_of(open_counted(path)), patterns)


def test_frames_that_the_camera_lost_are_not_there(tmp_path: Path, patterns):
    patterns[0, 1] = 0
    patterns[2, 3] = 0
    write_stempy(tmp_path / "a.h5", patterns)
    header = open_counted(tmp_path / "a.h5").header
    assert header.acquired is not None and header.n_frames == SLOW * (FAST + 1) - 2
    assert set(range(15)) - set(header.acquired.tolist()) == {1, 13}
    assert np.array_equal(scan_of(open_counted(tmp_path / "a.h5")), patterns)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f["electron_events/frames"].__setitem__(3, [KY * KX]), "is at pixel 99; the detector has 9 x 11"),
        (lambda f: f["electron_events/scan_positions"].__setitem__(3, 99), "scan_positions goes from 0 to 99"),
        (lambda f: f["electron_events/scan_positions"].__setitem__(3, -1), "scan_positions goes from -1"),
        (lambda f: f["electron_events/frames"].__setitem__(3, np.zeros(70_000)), "has 70000 counts"),
        (lambda f: f["electron_events/frames"].attrs.__setitem__("Nx", 10**6), "1000000 x 11 pixels is not possible"),
    ],
)
def test_a_damaged_counted_file_is_refused_in_one_line(tmp_path: Path, patterns, damage, message):
    path = tmp_path / "a.h5"
    write_stempy(path, patterns)
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(DataError, match=message) as error:
        open_counted(path).read(np.arange(SLOW * (FAST + 1)))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_rows_that_share_one_list_cannot_fill_the_memory(tmp_path: Path):
    path = tmp_path / "a.h5"
    write_stempy(path, np.ones((1, 60, 40, 40), np.uint16))
    with h5py.File(path) as file:
        offset = file["electron_events/frames"].id.get_offset()
    data = bytearray(path.read_bytes())
    for row in range(61):
        data[offset + 16 * row : offset + 16 * row + 4] = (10**6).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="promises 61000000 events"):
        open_counted(path)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize("columns", [event_list, event_rows])
def test_an_event_table_is_the_dense_scan(tmp_path: Path, patterns, suffix, columns):
    path = tmp_path / f"a{suffix}"
    write = write_events_npz if suffix == ".npz" else write_events_hdf5
    write(path, patterns, columns(patterns))
    source = open_table(path)
    header = source.header
    assert (header.scan_shape, header.frame_shape, header.dtype, header.flyback) == ((SLOW, FAST), (KY, KX), np.uint16, (0, 0))
    assert np.array_equal(scan_of(source), patterns)
    picked = np.array([7, 2, 7])
    assert np.array_equal(source.read(picked), patterns.reshape(-1, KY, KX)[picked])
    source.close()
    assert np.array_equal(source.read(picked), patterns.reshape(-1, KY, KX)[picked])
    if suffix == ".h5":
        assert header.metadata["voltage_kV"].value == 300


def test_an_npz_of_events_is_told_from_an_npz_of_patterns(tmp_path: Path, patterns):
    write_events_npz(tmp_path / "a.npz", patterns)
    np.savez(tmp_path / "b.npz", data=patterns)
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 no zip")
    assert [is_event_npz(tmp_path / name) for name in ("a.npz", "b.npz", "c.npz", "none.npz")] == [True, False, False, False]


def test_a_table_in_a_group_and_floating_weights(tmp_path: Path, patterns):
    columns = {**event_list(patterns)}
    columns["weight"] = np.random.default_rng(0).integers(1, 9, len(columns["pos"])) * 0.5
    write_events_hdf5(tmp_path / "a.h5", patterns, columns, group="events")
    dense = np.zeros(patterns.shape)
    np.add.at(dense.reshape(-1, KY, KX), (columns["pos"], columns["y"], columns["x"]), columns["weight"])
    source = open_table(tmp_path / "a.h5")
    assert source.header.dtype == np.float64
    assert np.array_equal(scan_of(source), dense)


def test_scipy_sparse_file_with_a_frame_shape(tmp_path: Path, patterns):
    from scipy.sparse import csc_array, csr_array, save_npz

    flat = patterns.reshape(SLOW * FAST, -1)
    for array, name in ((csr_array(flat), "a.npz"), (csc_array(flat), "b.npz")):
        save_npz(tmp_path / name, array)
        with np.load(tmp_path / name) as members:
            np.savez(tmp_path / name, **members, frame_shape=[KY, KX])
    source = open_table(tmp_path / "a.npz")
    assert source.header.scan_shape is None
    assert np.array_equal(source.read(np.arange(SLOW * FAST)), patterns.reshape(-1, KY, KX))
    with pytest.raises(DataError, match="of the format 'csc'"):
        open_table(tmp_path / "b.npz")


def test_the_users_scan_shape_is_enough_for_a_list(tmp_path: Path, patterns):
    np.savez(tmp_path / "a.npz", **event_list(patterns), frame_shape=[KY, KX])
    with pytest.raises(DataError, match="needs scan_shape"):
        open_table(tmp_path / "a.npz")
    assert np.array_equal(scan_of(open_table(tmp_path / "a.npz", Options(scan_shape=(SLOW, FAST)))), patterns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_shape": None}, "needs frame_shape"),
        ({"frame_shape": np.array([KY, 0])}, "two whole numbers"),
        ({"scan_shape": np.array([1, 2])}, "pos of event .* must be from 0 to 1"),
        ({"y": None}, "needs the columns pos, y, x"),
        ({"y": np.zeros(3, int)}, "different lengths"),
        ({"x": np.array([KX], np.uint16)}, "x of event .* is 11"),
        ({"pos": np.zeros(5)}, "of whole numbers; pos is not one"),
        ({"scan_shape": np.array([2**30, 2**30])}, "too many"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, patterns, changes, message):
    members = {**event_list(patterns), "frame_shape": np.array([KY, KX]), "scan_shape": np.array([SLOW, FAST])}
    for name, value in changes.items():
        if name == "x":
            value = np.resize(np.append(members["x"][:5], value), len(members["x"]))
        members[name] = value
    np.savez(tmp_path / "a.npz", **{name: value for name, value in members.items() if value is not None})
    with pytest.raises(DataError, match=message) as error:
        open_table(tmp_path / "a.npz").read(np.arange(2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("indptr", [5, 3], "damaged"),
        ("indptr", [0, 10**9], "there are .* events"),
        ("indices", [KY * KX], "is at pixel 99"),
        ("indices", [-1], "pixel -1"),
    ],
)
def test_rows_that_lead_out_of_the_table_are_refused(tmp_path: Path, patterns, column, value, message):
    columns = event_rows(patterns)
    columns[column][3 : 3 + len(value)] = value
    if message.startswith("there"):
        columns[column][-1] = 10**9
    write_events_npz(tmp_path / "a.npz", patterns, columns)
    with pytest.raises(DataError, match=message):
        open_table(tmp_path / "a.npz").read(np.arange(12))


def test_counts_that_the_type_cannot_hold_are_refused(tmp_path: Path, patterns):
    columns = {"indptr": np.append(np.zeros(12, int), 3), "indices": np.zeros(3, int), "counts": np.array([30_000, 30_000, 30_000], np.uint16)}
    write_events_npz(tmp_path / "a.npz", patterns, columns)
    with pytest.raises(DataError, match="a pixel of frame 11 has 90000 counts; uint16"):
        open_table(tmp_path / "a.npz").read(np.array([11]))


def test_an_npz_that_promises_more_than_it_has_is_refused(tmp_path: Path, patterns):
    write_events_npz(tmp_path / "a.npz", patterns)
    columns = event_list(patterns)
    columns["pos"] = np.zeros(3 * 10**7, np.uint8)  # packs to 1/1000
    np.savez_compressed(tmp_path / "b.npz", **columns, frame_shape=[KY, KX], scan_shape=[SLOW, FAST])
    with pytest.raises(DataError, match="promises"):
        open_table(tmp_path / "b.npz")
    data = (tmp_path / "a.npz").read_bytes()
    for cut in range(0, len(data), 97):
        (tmp_path / "c.npz").write_bytes(data[:cut])
        with pytest.raises(DataError):
            open_table(tmp_path / "c.npz")


def test_many_frames_are_read_in_blocks(tmp_path: Path):
    """5000 frames of about 50 events: only the blocks that are asked for are in memory."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 100, 5000)
    indices = rng.integers(0, 64 * 64, lengths.sum()).astype(np.uint32)
    indptr = np.append(0, np.cumsum(lengths))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("indptr", data=indptr)
        file.create_dataset("indices", data=indices, compression="gzip")
        file.attrs["frame_shape"] = [64, 64]
    source = open_table(tmp_path / "a.h5")
    frames = np.array([4999, 17, 1024, 1023])
    expected = [np.bincount(indices[indptr[k] : indptr[k + 1]], minlength=64 * 64).reshape(64, 64) for k in frames]
    assert np.array_equal(source.read(frames), expected)
    assert sorted(source._blocks) == [0, 1, 4]
