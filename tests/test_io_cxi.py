"""CXI: a real file, the signs of positions, masks, lengths, and files that lack or damage them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_packages import write_cxi

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.cxi import open_cxi, recognise_cxi
from ptycho.io.options import Options

REAL = "formats/xray_nearfield_cdtools/PETRAIII_P25_Near_Field_Ptycho.cxi"


@pytest.fixture
def scan():
    rng = np.random.default_rng(1)
    return rng.poisson(50.0, (3, 4, 6, 8)).astype("i4"), rng.uniform(-1e4, 1e4, (12, 2))


def open_it(path: Path, **options):
    file = hdf5.open_file(path)
    assert recognise_cxi(file)
    try:
        return open_cxi(path, file, Options(**options))
    except BaseException:
        file.close()
        raise


def test_what_is_written_is_read(scan, tmp_path: Path):
    patterns, positions = scan
    mask = np.zeros((6, 8), "u4")
    mask[1, 2], mask[3, 4], mask[5, 6] = 1, 0x1000, 0x1004
    header = open_it(write_cxi(tmp_path / "a.cxi", patterns, positions, mask)).header
    source = open_it(tmp_path / "a.cxi")
    assert (header.format, header.n_frames, header.frame_shape, header.scan_shape) == ("cxi", 12, (6, 8), None)
    np.testing.assert_array_equal(source.read(np.arange(12)).reshape(patterns.shape), patterns)
    np.testing.assert_allclose(header.positions_A, positions, rtol=1e-12)
    np.testing.assert_array_equal(np.argwhere(header.bad_pixels), [[1, 2], [5, 6]])  # 0x1000 is a signal, no fault
    assert header.metadata["pixel_mrad"].value == pytest.approx(0.05) and header.metadata["camera_length_m"].value == 2
    assert "voltage_kV" not in header.metadata and any("photons of 8 keV" in w for w in header.warnings)


def test_positions_are_those_of_the_probe_in_the_frame_of_the_patterns(scan, tmp_path: Path):
    """Whichever way the detector's rows and columns run, the same steps over the specimen give the same positions."""
    patterns, positions = scan
    for basis in (((0, -1, 0), (-1, 0, 0)), ((0, -1, 0), (1, 0, 0)), ((1, 0, 0), (0, 1, 0)), ((0, -0.8, 0.6), (-1, 0, 0))):
        np.testing.assert_allclose(open_it(write_cxi(tmp_path / "a.cxi", patterns, positions, basis=basis)).header.positions_A, positions, rtol=1e-9)
    with h5py.File(tmp_path / "a.cxi", "r+") as file:
        del file["entry_1/sample_1/geometry_1/translation"], file["entry_1/instrument_1/detector_1/basis_vectors"]
        file["entry_1/sample_1/geometry_1/translation"] = np.arange(36.0).reshape(12, 3) * 1e-6
    header = open_it(tmp_path / "a.cxi").header
    np.testing.assert_allclose(header.positions_A[1], [4e4, 3e4])  # the sample goes up and to +x: its image goes along -row, -column
    assert any("no basis_vectors" in w for w in header.warnings)


def test_real_file(test_data: Path):
    source = open_it(test_data / REAL)
    header = source.header
    assert (header.n_frames, header.frame_shape, header.dtype) == (200, (100, 100), np.int32)
    with h5py.File(test_data / REAL) as file:
        np.testing.assert_array_equal(source.read(np.array([199, 3])), file["entry_1/data_1/data"][:][[199, 3]])
        t = file["entry_1/data_1/translation"][()]
    np.testing.assert_allclose(header.positions_A, t[:, 1::-1].astype(float) * 1e10, rtol=1e-6)
    assert header.metadata["pixel_mrad"].value == pytest.approx(55e-6 / 1.12 * 1e3)
    assert header.metadata["camera_length_m"].value == pytest.approx(1.12)
    assert header.bad_pixels.sum() > 0 and any("12.66 keV" in w for w in header.warnings)
    source.close()


def test_the_real_patterns_move_against_the_probe(test_data: Path):
    """Of the near field, patterns are images of the specimen: they move by minus the step of the probe."""
    source = open_it(test_data / REAL)
    images = source.read(np.arange(200)).astype(float)
    source.close()
    edge = np.hanning(100)[:, None] * np.hanning(100)
    spectra = np.fft.fft2((images / np.maximum(images.mean(0), 1) - 1) * edge)
    steps, shifts = [], []
    for i in range(0, 200, 4):
        near = np.hypot(*(source.header.positions_A - source.header.positions_A[i]).T) < 1.5e4
        for j in np.flatnonzero(near & (np.arange(200) > i)):
            peak = np.unravel_index(np.fft.ifft2(spectra[j] * spectra[i].conj()).real.argmax(), (100, 100))
            shifts.append([(p + 50) % 100 - 50 for p in peak])
            steps.append(source.header.positions_A[j] - source.header.positions_A[i])
    slope = np.linalg.lstsq(np.array(steps) / 1e4, np.array(shifts), rcond=None)[0]  # pixels for each µm
    np.testing.assert_allclose(slope, [[-5.5, 0], [0, -5.5]], atol=0.5)


def test_what_does_not_fit_is_told_and_left_out(scan, tmp_path: Path):
    patterns, positions = scan
    path = tmp_path / "a.cxi"
    detector, moved = "entry_1/instrument_1/detector_1", "entry_1/sample_1/geometry_1/translation"
    bad = {
        f"{detector}/mask": (np.zeros((3, 3), "u4"), "mask of the shape"),
        f"{detector}/basis_vectors": (np.zeros((3, 2)), "not two vectors"),
        moved: (np.full((12, 3), np.nan), "no finite numbers"),
    }
    for name, (value, message) in bad.items():
        write_cxi(path, patterns, positions, np.zeros((6, 8)))
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = value
        header = open_it(path).header
        assert any(message in w for w in header.warnings), header.warnings
    for value in (np.zeros((12, 3)), np.zeros((5, 3)), np.zeros(12), np.zeros((12, 3), "S3")):
        write_cxi(path, patterns, positions)
        with h5py.File(path, "r+") as file:
            del file[moved]
            file[moved] = value
        assert open_it(path).header.positions_A is None
    with h5py.File(write_cxi(path, patterns, positions), "r+") as file:
        file[f"{detector}/y_pixel_size"][()] = 2e-4
        file[f"{detector}/data_dark"] = np.zeros((6, 8))
        file["entry_1/instrument_1/source_1/energy"][()] = 8000.0
    header = open_it(path).header
    assert "pixel_mrad" not in header.metadata
    assert all(any(word in w for w in header.warnings) for word in ("not square", "data_dark", "8 keV"))


def test_data_wherever_it_is(scan, tmp_path: Path):
    patterns, positions = scan
    path = write_cxi(tmp_path / "a.cxi", patterns, positions)
    with h5py.File(path, "r+") as file:
        del file["entry_1/data_1"]
        file["entry_1/image_1/other"] = patterns[0, :2]
    assert open_it(path).header.n_frames == 12
    assert open_it(path, dataset="entry_1/image_1/other").header.n_frames == 2
    with h5py.File(path, "r+") as file:
        del file["entry_1/instrument_1/detector_1/data"]
        file["entry_1/instrument_1/detector_1/data"] = h5py.ExternalLink("b.h5", "/data")
    with pytest.raises(DataError):
        open_it(path, dataset="entry_1/instrument_1/detector_1/data")
    np.testing.assert_array_equal(open_it(path).read(np.arange(2)), patterns[0, :2])
