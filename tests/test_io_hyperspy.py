"""HyperSpy's .hspy."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_hyperspy import write_hyperspy

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.hyperspy import open_hyperspy, recognise_hyperspy
from ptycho.io.options import Options


@pytest.fixture
def patterns():
    return np.random.default_rng(0).integers(0, 60000, (4, 5, 6, 7), np.uint16)


def opened(path: Path, dataset=None):
    file = hdf5.open_file(path)
    try:
        assert recognise_hyperspy(file)
        return open_hyperspy(path, file, Options(dataset=dataset))
    except BaseException:
        file.close()
        raise


def values(source):
    return {key: quantity.value for key, quantity in source.header.metadata.items()}


def test_frames_and_axes(patterns, tmp_path: Path):
    source = opened(write_hyperspy(tmp_path / "a.hspy", patterns))
    header = source.header
    assert (header.format, header.scan_shape, header.frame_shape, header.dtype) == ("hyperspy", (4, 5), (6, 7), np.uint16)
    assert values(source) == {"step_A": (2.0, 3.0), "pixel_invA": 0.05}
    assert header.metadata["step_A"].source == "a.hspy: /Experiments/a scan/axis-0 scale"
    np.testing.assert_array_equal(source.read(np.array([19, 3, 4, 5])), patterns.reshape(-1, 6, 7)[[19, 3, 4, 5]])


def test_instrument(patterns, tmp_path: Path):
    instrument = {"beam_energy": 200.0, "convergence_angle": 21.4, "camera_length": 120.0, "beam_current": 0.02, "scan_rotation": 5.0}
    source = opened(write_hyperspy(tmp_path / "a.hspy", patterns, units=("nm", "nm", "mrad", "mrad"), instrument=instrument))
    expected = {"voltage_kV": 200, "semiangle_mrad": 21.4, "camera_length_m": 0.12, "beam_current_pA": 20, "rotation_deg": 5, "pixel_mrad": 0.05}
    found = values(source)
    assert found.pop("step_A") == (2, 3) and found == pytest.approx(expected)
    assert {key for key, quantity in source.header.metadata.items() if not quantity.trusted} == {"camera_length_m", "rotation_deg"}


@pytest.mark.parametrize("units", [("", "", "", ""), ("<undefined>",) * 4, ("nm", "px", "mrad", "1/nm")])
def test_unknown_units(patterns, tmp_path: Path, units):
    assert values(opened(write_hyperspy(tmp_path / "a.hspy", patterns, units=units, instrument={"beam_energy": 0.0}))) == {}


def test_navigated_axes_elsewhere(patterns, tmp_path: Path):
    path = write_hyperspy(tmp_path / "a.hspy", patterns, units=("1/nm", "1/nm", "nm", "nm"))
    with h5py.File(path, "a") as file:
        for index in range(4):
            file[f"Experiments/a scan/axis-{index}"].attrs["navigate"] = index >= 2
    source = opened(path)
    assert source.header.scan_shape == (6, 7) and source.header.frame_shape == (4, 5)
    np.testing.assert_array_equal(source.read(np.arange(42)), patterns.transpose(2, 3, 0, 1).reshape(42, 4, 5))
    source.close()
    with h5py.File(path, "a") as file:
        for index in range(4):
            file[f"Experiments/a scan/axis-{index}"].attrs["navigate"] = False
    assert opened(path).header.scan_shape == (4, 5)


def test_a_list_of_patterns(patterns, tmp_path: Path):
    source = opened(write_hyperspy(tmp_path / "a.hspy", patterns[0]))
    assert source.header.scan_shape is None and source.header.n_frames == 5 and values(source) == {"pixel_invA": 0.05}


def test_what_is_no_stack(patterns, tmp_path: Path):
    with pytest.raises(DataError, match="no signal of 3 or 4 axes"):
        opened(write_hyperspy(tmp_path / "a.hspy", patterns[0, 0]))
    path = write_hyperspy(tmp_path / "b.hspy", patterns)
    with h5py.File(path, "a") as file:
        file.copy("Experiments/a scan", "Experiments/other")
        file["Experiments/text/data"] = np.array(["a"], object)
    with pytest.raises(DataError, match=r"which signal.*b\.hspy::NAME"):
        opened(path)
    assert values(opened(path, "Experiments/other/data")) == {"step_A": (2, 3), "pixel_invA": 0.05}
    with pytest.raises(DataError):
        opened(path, "Experiments/text/data")


def test_rosettasciio_writes_this(patterns, tmp_path: Path):
    hspy = pytest.importorskip("rsciio.hspy")
    axes = [("y", 0.2, "nm", True), ("x", 0.3, "nm", True), ("ky", 0.5, "1 / nm", False), ("kx", 0.5, "1 / nm", False)]
    described = [{"name": n, "scale": s, "offset": 0.0, "units": u, "navigate": nav, "size": size, "index_in_array": i, "_type": "UniformDataAxis"}
                 for i, ((n, s, u, nav), size) in enumerate(zip(axes, patterns.shape, strict=True))]  # fmt: skip
    metadata = {"General": {"title": "a/b"}, "Signal": {}, "Acquisition_instrument": {"TEM": {"beam_energy": 80.0}}}
    signal = {"data": patterns, "axes": described, "metadata": metadata, "original_metadata": {}, "attributes": {"_lazy": False}, "models": {},
              "package_info": {"package": "hyperspy", "package_version": "2"}, "learning_results": {}, "tmp_parameters": {}}  # fmt: skip
    hspy.file_writer(tmp_path / "a.hspy", signal)
    source = opened(tmp_path / "a.hspy")
    assert values(source) == {"step_A": (2, 3), "pixel_invA": 0.05, "voltage_kV": 80}
    np.testing.assert_array_equal(source.read(np.arange(20)), patterns.reshape(-1, 6, 7))


def test_rosettasciio_reads_the_same(patterns, tmp_path: Path):
    hspy = pytest.importorskip("rsciio.hspy")
    path = write_hyperspy(tmp_path / "a.hspy", patterns)
    (signal,) = hspy.file_reader(path)
    np.testing.assert_array_equal(signal["data"].reshape(-1, 6, 7), opened(path).read(np.arange(20)))
