"""DECTRIS master and data files: what is written is read, real files, missing and hostile ones."""

from __future__ import annotations

import contextlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from writers_dectris import DETECTOR, write_data_file, write_dectris, write_scan

from ptycho.errors import DataError
from ptycho.frames import FrameSource
from ptycho.io import dectris, dectris_frames, hdf5_dialects
from ptycho.io.dectris import open_dectris, recognise_dectris
from ptycho.io.options import Options

DATA = "/entry/data/data"
SCAN = {
    "NumPixelsX": 4, "NumPixelsY": 3, "NumPixelsPrescan": 0, "Pixel Size": 0.05, "IsPixelSizeCalibrated": 1, "Camera Length": 0.115,
    "High Tension": 200e3, "Rotation": 12.5, "ScanDwellTime": 0.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _only_dectris(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hdf5_dialects, "DIALECTS", ((recognise_dectris, open_dectris),))


@pytest.fixture
def counts():
    return np.random.default_rng(3).poisson(4.0, (3, 4, 10, 14))


@pytest.fixture
def master(counts, tmp_path: Path) -> Path:
    """Twelve frames in files of 5, 5 and 2."""
    path = tmp_path / "scan_master.h5"
    write_dectris(path, counts, frames_per_file=5)
    return path


def opened(path: Path, dataset: str | None = None) -> FrameSource:
    return hdf5_dialects.open_hdf5(path, Options(dataset=dataset))


def refused(path: Path, *said: str) -> None:
    with pytest.raises(DataError) as raised:
        opened(path).read(np.arange(1))
    message = str(raised.value)
    assert message.startswith(str(path.parent)) and "\n" not in message and len(message) < 250 + len(str(path)), message
    for text in said:
        assert text in message, message


def data_file(master: Path, number: int) -> Path:
    return master.with_name(f"{master.name.removesuffix('_master.h5')}_data_{number:06d}.h5")


def relink(master: Path, target: object, name: str = "data_000001") -> None:
    with h5py.File(master, "r+") as file:
        del file[f"entry/data/{name}"]
        file[f"entry/data/{name}"] = target


# What is written is read


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_what_is_written_is_read(counts, tmp_path: Path, dtype: str):
    path = tmp_path / "scan_master.h5"
    mask = np.zeros((10, 14), "u4")
    mask[2, 3], mask[5, :2] = 1, 16
    write_dectris(path, counts, frames_per_file=5, voltage_kV=80, mask=mask, dtype=dtype, scan=SCAN)
    source = opened(path)
    header = source.header
    assert (header.format, header.n_frames, header.frame_shape, header.dtype) == ("dectris", 12, (10, 14), np.dtype(dtype))
    np.testing.assert_array_equal(header.bad_pixels, mask != 0)
    assert header.saturation == min(8352, np.iinfo(dtype).max - 1)
    frames = source.read(np.arange(12)).reshape(counts.shape)
    good = mask == 0
    np.testing.assert_array_equal(frames[..., good], counts[..., good])
    assert (frames[..., ~good] == np.iinfo(dtype).max).all() and np.iinfo(dtype).max > header.saturation
    assert (header.scan_shape, header.flyback, header.acquired, header.warnings) == ((3, 4), (0, 0), None, [])
    values = {name: (quantity.value, quantity.unit, quantity.trusted) for name, quantity in header.metadata.items()}
    assert values == {
        "voltage_kV": (80.0, "kV", True), "exposure_ms": (pytest.approx(0.1), "ms", True), "camera_length_m": (0.115, "m", False),
        "step_A": ((0.5, 0.5), "Å", True), "rotation_deg": (12.5, "°", False), "scan_shape": ((3, 4), "", True),
    }  # fmt: skip
    assert header.metadata["voltage_kV"].source == "scan_master.h5: photon_energy"
    assert header.metadata["step_A"].source == "scan.h5: Pixel Size"


def test_frames_come_in_any_order_from_any_file_and_thread(master: Path, counts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dectris_frames, "_MAX_OPEN", 2)
    source, frames = opened(master), counts.reshape(12, 10, 14)
    orders = [np.random.default_rng(seed).integers(0, 12, 9) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for order, read in zip(orders, pool.map(source.read, orders), strict=True):
            np.testing.assert_array_equal(read, frames[order])
    source.close()
    source.close()
    np.testing.assert_array_equal(source.read(np.array([11, 0])), frames[[11, 0]])
    assert source.read(np.empty(0, np.int64)).shape == (0, 10, 14)
    source.close()
    for outside in (-1, 12):
        with pytest.raises(DataError, match="were asked for"):
            source.read(np.array([outside]))


def test_the_angle_of_a_pixel_is_known_only_when_the_distance_is_set(master: Path):
    assert "pixel_mrad" not in opened(master).header.metadata
    with h5py.File(master, "r+") as file:
        file[f"{DETECTOR}/detector_distance"][()] = 0.5
    quantity = opened(master).header.metadata["pixel_mrad"]
    assert quantity.value == pytest.approx(0.2) and not quantity.trusted


@pytest.mark.parametrize(
    ("triggers", "scan", "shape", "flyback", "said"),
    [
        ((3, 4), None, (3, 4), (0, 0), ""),
        ((12, 1), None, None, (0, 0), ""),
        ((1, 12), None, None, (0, 0), ""),
        ((12, 1), (3, 4, 0), (3, 4), (0, 0), ""),
        ((1, 12), (4, 3, 0), (4, 3), (0, 0), ""),
        ((3, 4), (3, 3, 1), (3, 3), (1, 0), ""),
        ((12, 1), (3, 3, 1), (3, 3), (1, 0), ""),
        ((12, 1), (3, 4, 2), (3, 4), (0, 0), "prescan"),
        ((3, 4), (2, 6, 0), (3, 4), (0, 0), "the detector is believed"),
        ((12, 1), (5, 5, 0), None, (0, 0), "does not fit 12 images"),
        ((15, 1), (3, 5, 0), (3, 5), (0, 0), "15 images were asked"),
        ((3, 5), None, (3, 5), (0, 0), "15 images were asked"),
        ((11, 1), (3, 4, 0), (3, 4), (0, 0), "it says 11 x 1 images"),
        ((2**30, 2**30), (3, 4, 0), (3, 4), (0, 0), "the former is not used"),
        ((1, 12), (2**30, 2**30, 0), None, (0, 0), "does not fit"),
    ],
)
def test_scan_shape(counts, tmp_path: Path, triggers, scan, shape, flyback, said: str):
    path = tmp_path / "scan_master.h5"
    said_of_scan = None if scan is None else dict(zip(("NumPixelsY", "NumPixelsX", "NumPixelsPrescan"), scan, strict=True))
    write_dectris(path, counts, triggers=triggers, scan=said_of_scan)
    header = opened(path).header
    assert (header.scan_shape, header.flyback) == (shape, flyback)
    assert any(said in warning for warning in header.warnings) if said else not header.warnings


def test_the_scan_file_gives_the_voltage_the_master_lacks_and_only_if_it_can_be_read(master: Path):
    with h5py.File(master, "r+") as file:
        file[f"{DETECTOR}/detectorSpecific/photon_energy"][()] = 0
    assert "voltage_kV" not in opened(master).header.metadata
    sidecar = master.with_name("scan.h5")
    write_scan(sidecar, SCAN)
    assert opened(master).header.metadata["voltage_kV"].value == 200
    refused(sidecar, "open scan_master.h5")
    sidecar.write_bytes(sidecar.read_bytes()[:500])
    assert any("scan.h5 is not used" in warning for warning in opened(master).header.warnings)
    with h5py.File(sidecar, "w") as file:
        file["something"] = 1
    assert opened(master).header.warnings == []


# Where the frames are


def test_old_layout_and_data_within_the_master(master: Path, counts):
    with h5py.File(master, "r+") as file:
        for name in list(file["entry/data"]):
            file.move(f"entry/data/{name}", f"entry/{name}")
    np.testing.assert_array_equal(opened(master).read(np.arange(12)), counts.reshape(12, 10, 14))
    with h5py.File(master, "r+") as file:
        for number in (1, 2, 3):
            del file[f"entry/data_{number:06d}"]
        file[DATA] = counts.reshape(12, 10, 14)
    source = opened(master)
    np.testing.assert_array_equal(source.read(np.arange(12)), counts.reshape(12, 10, 14))
    assert source.header.warnings == []


def test_the_first_of_several_channels_is_used(master: Path, counts):
    frames = np.stack([counts.reshape(12, 10, 14) + channel for channel in range(3)], axis=1).astype("u2")
    for number, part in enumerate((frames[:5], frames[5:10], frames[10:])):
        write_data_file(data_file(master, number + 1), part, 5 * number + 1)
    source = opened(master)
    np.testing.assert_array_equal(source.read(np.array([3, 7, 11])), frames[[3, 7, 11], 0])
    assert any("3 energy channels; the first is used" in warning for warning in source.header.warnings)


@pytest.mark.parametrize(
    ("missing", "acquired", "said"),
    [
        ([2], [0, 1, 2, 3, 4, 10, 11], "5 images before"),
        ([1], [5, 6, 7, 8, 9, 10, 11], "5 images before"),
        ([3], None, "12 images were asked of the detector, the data files end after 10"),
        ([1, 3], [5, 6, 7, 8, 9], "10 before"),
    ],
)
def test_missing_data_files_leave_a_gap(master: Path, counts, missing, acquired, said: str):
    for number in missing:
        data_file(master, number).unlink()
    source = opened(master)
    header = source.header
    there = np.arange(10) if acquired is None else np.array(acquired)
    np.testing.assert_array_equal(source.read(np.arange(header.n_frames)), counts.reshape(12, 10, 14)[there])
    assert header.scan_shape == (3, 4)
    assert header.acquired is None if acquired is None else header.acquired.tolist() == acquired
    assert any(f"{len(missing)} of 3 data files are missing (scan_data_{missing[0]:06d}.h5" in warning for warning in header.warnings)
    assert any(part in warning for warning in header.warnings for part in (said, "images before"))


def test_when_all_are_missing_the_wanted_file_is_named(master: Path):
    for number in (1, 2, 3):
        data_file(master, number).unlink()
    refused(master, "scan_data_000001.h5 (and 2 more)", "put the files together")


def test_renamed_data_files_are_found_in_the_order_of_their_numbers(counts, tmp_path: Path):
    master = tmp_path / "first_master.h5"
    write_dectris(master, counts, frames_per_file=1)
    for file in sorted(tmp_path.iterdir()):
        file.rename(file.with_name(file.name.replace("first", "new [1]")))
    (tmp_path / "other_data_000001.h5").touch()
    source = opened(tmp_path / "new [1]_master.h5")
    np.testing.assert_array_equal(source.read(np.arange(12)), counts.reshape(12, 10, 14))
    assert any("first_data_000001.h5, which it names, is not there; new [1]_data_000001.h5" in warning for warning in source.header.warnings)


def test_without_image_numbers_frames_are_counted_unless_a_file_is_missing(master: Path, counts):
    for number in (1, 2, 3):
        with h5py.File(data_file(master, number), "r+") as file:
            file[DATA].attrs["image_nr_low"] = 1
    source = opened(master)
    np.testing.assert_array_equal(source.read(np.arange(12)), counts.reshape(12, 10, 14))
    assert source.header.acquired is None and any("one after another" in warning for warning in source.header.warnings)
    data_file(master, 2).unlink()
    refused(master, "scan_data_000002.h5 is missing", "put it beside them")


def test_a_data_file_alone_says_that_it_is_one_of_several(master: Path, counts):
    source = opened(data_file(master, 2))
    np.testing.assert_array_equal(source.read(np.arange(5)), counts.reshape(12, 10, 14)[5:10])
    assert source.header.scan_shape is None and source.header.saturation == 2**32 - 2 and source.header.acquired is None
    assert any("(images 6 to 10)" in w and "open scan_master.h5" in w for w in source.header.warnings)
    master.unlink()
    assert any("2 more beside it (scan_data_000001.h5, ...) are not read" in w for w in opened(data_file(master, 2)).header.warnings)
    data_file(master, 1).unlink(), data_file(master, 3).unlink()
    assert any("there is no master file" in w for w in opened(data_file(master, 2)).header.warnings)


def test_a_dataset_can_be_named(master: Path):
    assert opened(data_file(master, 3), DATA).header.n_frames == 2
    with pytest.raises(DataError, match="is a link into scan_data_000001"):
        opened(master, "/entry/data/data_000001")


def test_files_of_different_acquisitions_are_refused(master: Path, counts):
    write_data_file(data_file(master, 2), counts.reshape(12, 14, 10).astype("u4"), 6)
    refused(master, "scan_data_000002.h5", "(14, 10)", "not of one acquisition")
    write_data_file(data_file(master, 2), counts.reshape(12, 10, 14).astype("u2"), 6)
    refused(master, "uint16")


def test_frames_that_were_never_written_do_not_count(master: Path, counts):
    with h5py.File(data_file(master, 3), "w") as file:
        file.create_dataset(DATA, (0, 10, 14), "u4", maxshape=(None, 10, 14), chunks=(1, 10, 14))
    assert opened(master).header.n_frames == 10
    with h5py.File(data_file(master, 2), "w") as file:
        data = file.create_dataset(DATA, (10**7, 10, 14), "u4", chunks=(1, 10, 14), compression=hdf5plugin.Bitshuffle())
        data.attrs["image_nr_low"], data.attrs["image_nr_high"] = 6, 10
        data[:2] = counts.reshape(12, 10, 14)[5:7]
    header = opened(master).header
    assert header.n_frames == 7 and any("images 6 to 10 should be in it, 2 are" in warning for warning in header.warnings)
    for number in (1, 2):
        shutil.copy(data_file(master, 3), data_file(master, number))
    refused(master, "hold no frames")


# Masks


def test_a_flat_field_that_nobody_applied_is_said(master: Path):
    with h5py.File(master, "r+") as file:
        file[f"{DETECTOR}/detectorSpecific/flatfield"][3, 4] = 1.1
    assert any("flat field is not 1" in warning for warning in opened(master).header.warnings)
    with h5py.File(master, "r+") as file:
        file[f"{DETECTOR}/flatfield_correction_applied"][()] = 1
    assert opened(master).header.warnings == []


def test_a_mask_that_does_not_fit_is_not_used(master: Path):
    with h5py.File(master, "r+") as file:
        del file[f"{DETECTOR}/detectorSpecific/pixel_mask"]
        file[f"{DETECTOR}/detectorSpecific/pixel_mask"] = np.zeros((14, 10), "u4")
    header = opened(master).header
    assert header.bad_pixels is None and any("pixel_mask of the shape (14, 10) does not fit" in warning for warning in header.warnings)


# Hostile files


@pytest.mark.parametrize(
    "name",
    ["../outside.h5", "/etc/passwd", "{folder}/outside.h5", "sub/inside.h5", "..", ".", "sub", "out_link.h5", "C:\\x.h5", "\\\\h\\x.h5", "a\nb.h5"],
)
def test_links_out_of_the_folder_are_refused(tmp_path: Path, counts, name: str):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    write_dectris(folder / "scan_master.h5", counts)
    for outside in (tmp_path / "outside.h5", folder / "sub/inside.h5"):
        shutil.copy(folder / "scan_data_000001.h5", outside)
    (folder / "out_link.h5").symlink_to(tmp_path / "outside.h5")
    relink(folder / "scan_master.h5", h5py.ExternalLink(name.format(folder=tmp_path), DATA))
    refused(folder / "scan_master.h5", "folder" if name != "a\nb.h5" else "damaged")


def test_links_that_come_back_are_refused(master: Path, tmp_path: Path):
    relink(master, h5py.ExternalLink(master.name, "/entry/data/data_000001"))
    refused(master, "is a link into")
    relink(master, h5py.ExternalLink("b.h5", DATA))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file[DATA] = h5py.ExternalLink(master.name, "/entry/data/data_000001")
    refused(master, "b.h5", "is a link into")
    relink(master, h5py.SoftLink("/entry/data/data_000001"))
    refused(master, "run in circles")
    (tmp_path / "loop_1.h5").symlink_to("loop_2.h5")
    (tmp_path / "loop_2.h5").symlink_to("loop_1.h5")
    for number in (1, 2, 3):
        relink(master, h5py.ExternalLink("loop_1.h5", DATA), f"data_{number:06d}")
        data_file(master, number).unlink()
    refused(master, "loop_1.h5")


def test_a_link_to_a_pipe_or_a_folder_is_refused(master: Path):
    data_file(master, 1).unlink()
    os.mkfifo(data_file(master, 1))
    refused(master, "pipe")
    data_file(master, 1).unlink()
    data_file(master, 1).mkdir()
    refused(master, "folder")


def test_data_in_yet_other_files_are_refused(master: Path, tmp_path: Path, counts):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(12 * 10 * 14 * 4))
    with h5py.File(data_file(master, 1), "w") as file:
        file.create_dataset(DATA, (12, 10, 14), "u4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    refused(master, "put together from other places")
    for source in (".", "scan_data_000002.h5"):
        layout = h5py.VirtualLayout((5, 10, 14), "u4")
        layout[:] = h5py.VirtualSource(source, DATA, (5, 10, 14))
        with h5py.File(data_file(master, 1), "w") as file:
            file["entry/data/link"] = h5py.ExternalLink("scan_data_000002.h5", DATA)
            file.create_virtual_dataset(DATA, layout)
        refused(master, "put together from other places")


def test_mask_and_numbers_are_not_taken_from_other_files(master: Path, tmp_path: Path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["mask"], file["one"] = np.ones((10, 14), "u4"), [7.0]
    mask, energy = h5py.VirtualLayout((10, 14), "u4"), h5py.VirtualLayout((1,), "f8")
    mask[:] = h5py.VirtualSource("other.h5", "mask", (10, 14))
    energy[:] = h5py.VirtualSource("other.h5", "one", (1,))
    with h5py.File(master, "r+") as file:
        group = file[f"{DETECTOR}/detectorSpecific"]
        for name, layout in (("pixel_mask", mask), ("photon_energy", energy)):
            del group[name]
            group.create_virtual_dataset(name, layout)
        del file[f"{DETECTOR}/count_time"]
        file[f"{DETECTOR}/count_time"] = h5py.ExternalLink("other.h5", "one")
    header = opened(master).header
    assert header.bad_pixels is None and not {"voltage_kV", "exposure_ms"} & header.metadata.keys()


@pytest.mark.parametrize(
    "packed", [hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4(), hdf5plugin.Bitshuffle(cname="none"), {"compression": "gzip"}]
)
def test_damaged_chunks_are_refused_before_they_are_unpacked(tmp_path: Path, packed):
    frames = np.random.default_rng(0).poisson(5, (3, 90, 53)).astype("u4")
    path = tmp_path / "scan_data_000001.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(DATA, data=frames, chunks=(1, 90, 53), **packed)
        data.attrs["image_nr_low"] = 1
        place = data.id.get_chunk_info(1)
    sound = path.read_bytes()
    np.testing.assert_array_equal(opened(path).read(np.arange(3)), frames)
    rng = np.random.default_rng(1)
    for at in [*range(16), *rng.integers(0, place.size, 15).tolist()]:
        broken = bytearray(sound)
        broken[place.byte_offset + at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        source = opened(path)
        with contextlib.suppress(DataError):  # anything else, and a crash, fails; other counts are not known to be wrong
            source.read(np.arange(3))
        np.testing.assert_array_equal(source.read(np.array([0, 2])), frames[[0, 2]])
        source.close()


def test_cut_and_changed_files_give_one_line(master: Path):
    for path in (master, data_file(master, 2)):
        whole = path.read_bytes()
        for size in range(1, len(whole), 397):
            path.write_bytes(whole[:size])
            refused(master)
        rng, used = np.random.default_rng(4), np.flatnonzero(np.frombuffer(whole, np.uint8))
        for _ in range(50):
            broken = bytearray(whole)
            for at in rng.choice(used, 3):
                broken[at] = int(rng.integers(256))
            path.write_bytes(broken)
            with contextlib.suppress(DataError):
                source = opened(master)
                source.read(np.arange(source.header.n_frames))
                source.close()
        path.write_bytes(whole)


def test_a_file_that_changes_after_it_was_opened_is_refused(master: Path, counts):
    source = opened(master)
    write_data_file(data_file(master, 1), counts.reshape(12, 10, 14)[:2].astype("u4"))
    with pytest.raises(DataError, match="has changed"):
        source.read(np.arange(5))
    data_file(master, 1).unlink()
    with pytest.raises(DataError, match="no such file"):
        source.read(np.arange(5))


def test_names_without_end_are_refused(master: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dectris, "_MAX_FILES", 2)
    refused(master, "more than 2 data files")


# Real files


def test_arina(test_data: Path, tmp_path: Path):
    folder = test_data / "formats/arina"
    source = opened(folder / "test_00_master.h5")
    header = source.header
    assert (header.n_frames, header.frame_shape, header.dtype.name, header.scan_shape) == (16, (192, 192), "uint32", (4, 4))
    assert header.saturation == 8352 and header.bad_pixels is not None and not header.bad_pixels.any() and header.warnings == []
    values = {name: quantity.value for name, quantity in header.metadata.items()}
    assert values.pop("step_A") == pytest.approx((1.3915206, 1.3915206)) and not header.metadata["step_A"].trusted
    assert values == {"voltage_kV": 300, "exposure_ms": pytest.approx(0.0995), "camera_length_m": pytest.approx(0.115), "scan_shape": (4, 4)}
    with h5py.File(folder / "test_00_data_000001.h5") as file:
        np.testing.assert_array_equal(source.read(np.arange(16)), file[DATA][()])
    refused(folder / "au_145mm_68kx_microprobe_01_master.h5", "au_145mm_68kx_microprobe_01_data_000001.h5, which is not beside it")


def test_the_same_eiger_frames_are_read_from_both_compressions(test_data: Path):
    folder = test_data / "formats/dectris_h5_testfiles"
    # Two acquisitions of one test image: a few pixels differ by 1, the sum of a frame does not.
    for kind in ("datasets_eiger1/eiger1_testmode10", "datasets_eiger2/eiger2_simread7"):
        both = []
        for packed in ("bslz4", "lz4"):
            source = opened(folder / f"{kind}_2datafiles_4images_{packed}_data_000002.h5")
            assert any("1 more beside it" in warning for warning in source.header.warnings)
            both.append(source.read(np.arange(2)).astype(int))
            with h5py.File(source.header.path) as file:
                np.testing.assert_array_equal(both[-1], file[DATA][()])
        different = both[0] - both[1]
        assert np.abs(different).max() == 1 and np.count_nonzero(different) < 0.01 * different.size
        assert both[0].sum() > 0 and not different.sum((1, 2)).any()


@pytest.mark.parametrize("name", ["uint8", "uint32"])
def test_eiger_types(test_data: Path, name: str):
    source = opened(test_data / f"formats/dectris_h5_testfiles/datasets_eiger2/eiger2_simread7_2datafiles_4images_bslz4_{name}_data_000001.h5")
    assert source.header.dtype.name == name and source.header.frame_shape == (512, 1028)
    assert source.header.saturation == np.iinfo(name).max - 1
    assert source.read(np.array([1, 0])).sum(dtype=np.int64) == {"uint8": 7297080, "uint32": 43782480}[name]


def test_an_independent_reader_reads_what_the_writer_writes(tmp_path: Path):
    arina = pytest.importorskip("rsciio.arina")
    counts = np.random.default_rng(3).poisson(4.0, (4, 4, 192, 192))
    write_dectris(tmp_path / "scan_master.h5", counts, frames_per_file=7, dtype="u2")
    np.testing.assert_array_equal(arina.file_reader(tmp_path / "scan_master.h5")[0]["data"], counts)
