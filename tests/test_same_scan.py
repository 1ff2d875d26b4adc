"""One scan, as each detector and package would have written it, gives one reconstruction, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from writers_blockfile import write_blockfile
from writers_dectris import write_dectris
from writers_events import write_events_npz, write_stempy
from writers_matlab import write_mat, write_mat73
from writers_mib import write_mib
from writers_mrc import write_mrc
from writers_raw import write_folder, write_raw
from writers_tiff import write_tiff

import ptycho
from ptycho.io import read
from ptycho.io.convert import convert
from ptycho.simulation import Simulation, simulate

SCAN = (10, 12)
GIVEN = {
    "voltage_kV": 80.0, "semiangle_mrad": 24.9, "defocus_A": 350.0, "step_A": 0.8, "pixel_invA": 1 / 30, "scan_shape": SCAN, "adu_per_electron": 1.0,
    "rotation_deg": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Electrons (10, 12, 128, 128) of a simulated monolayer, whole numbers."""
    simulation = Simulation(scan_shape=SCAN, step_A=0.8, read_noise_electrons=0.0, dose_e_per_A2=2e4)
    return simulate(simulation).patterns.astype(np.uint16)


@pytest.fixture(scope="module")
def wanted(counts: np.ndarray) -> ptycho.Result:
    return reconstructed(counts.astype(np.float32))


def reconstructed(path: Any, **options: Any) -> ptycho.Result:
    data = read(path, **(GIVEN | options))
    return ptycho.reconstruct(data, epochs=2, device="cpu")


def empad(folder: Path, counts: np.ndarray) -> tuple[Path, dict[str, Any]]:
    path = ptycho.write_empad(folder / "scan_x12_y10.raw", counts.astype(np.float32), adu_per_electron=148.0, voltage_kV=80.0, step_A=0.8)
    return path, {"adu_per_electron": 148.0}


def converted(folder: Path, counts: np.ndarray) -> tuple[Path, dict[str, Any]]:
    return convert(read(empad(folder, counts)[0], **(GIVEN | {"adu_per_electron": 148.0})), folder / "scan.emd"), {}


def made(write: Callable[..., Any], name: str, **read_with: Any) -> Callable[[Path, np.ndarray], tuple[Path, dict[str, Any]]]:
    def make(folder: Path, counts: np.ndarray) -> tuple[Path, dict[str, Any]]:
        write(folder / name, counts)
        return folder / name, read_with

    return make


FORMATS = {
    "EMPAD": empad,
    "HDF5": made(ptycho.write_hdf5, "scan.h5"),
    "Merlin": made(write_mib, "scan.mib"),
    "DECTRIS": made(lambda path, counts: write_dectris(path, counts, frames_per_file=50, voltage_kV=80.0), "scan_master.h5"),
    "converted to EMD": converted,
    "MATLAB 5": made(write_mat, "scan.mat"),
    "MATLAB 7.3": made(write_mat73, "scan73.mat"),
    "TIFF": made(lambda path, counts: write_tiff(path, counts.reshape(-1, 128, 128)), "scan.tif"),
    "MRC": made(write_mrc, "scan.mrc"),
    "raw binary": made(lambda path, counts: write_raw(path, counts, ">u2", 100, 4, 8), "scan.bin", layout={
        "dtype": ">u2", "frame_shape": (128, 128), "offset_bytes": 100, "before_bytes": 4, "after_bytes": 8}),
    "one file per pattern": made(lambda path, counts: write_folder(path, counts, ".npy"), "patterns"),
    "blockfile": made(write_blockfile, "scan.blo"),
    "stempy": made(write_stempy, "counted.h5"),
    "events": made(write_events_npz, "events.npz"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_does_not_change_the_result(name: str, counts: np.ndarray, wanted: ptycho.Result, tmp_path: Path) -> None:
    path, read_with = FORMATS[name](tmp_path, counts)
    result = reconstructed(path, **read_with)
    np.testing.assert_array_equal(result.object, wanted.object)
    np.testing.assert_array_equal(result.probe, wanted.probe)
    assert [record.loss for record in result.history] == [record.loss for record in wanted.history]


@pytest.mark.parametrize("memory_GB", [0.0, 1.0])
def test_out_of_memory_or_in_it_is_the_same(memory_GB: float, counts: np.ndarray, wanted: ptycho.Result, tmp_path: Path) -> None:
    path = ptycho.write_hdf5(tmp_path / "scan.h5", counts)
    np.testing.assert_array_equal(reconstructed(path, memory_GB=memory_GB).object, wanted.object)
