"""One small, sound data set of every format of our own, as the bytes of its files: what the fuzzer starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import writers_emd
import writers_packages
from numpy.typing import NDArray
from writers_blockfile import write_blockfile
from writers_dectris import write_dectris
from writers_empad_g2 import typical_maps, write_empad_combined, write_empad_g2, write_maps
from writers_events import event_rows, write_events_hdf5, write_events_npz, write_stempy
from writers_hyperspy import write_hyperspy
from writers_matlab import write_mat, write_mat73
from writers_mib import write_mib
from writers_mrc import write_mrc
from writers_nexus import write_nexus
from writers_nion import properties, write_ndata, write_nhdf, write_nion_h5
from writers_raw import write_folder, write_raw
from writers_seq import write_seq
from writers_tiff import write_pages, write_tiff

import ptycho.io
from ptycho.io.emd_write import write_emd

VALUES = {"voltage_kV": 80.0, "step_A": 0.5, "rotation_deg": 3.0, "camera_length_m": 0.1}
SCAN = {"NumPixelsX": 4, "NumPixelsY": 3, "Pixel Size": 0.05, "IsPixelSizeCalibrated": 1, "Camera Length": 0.115, "High Tension": 200e3}
SHAPE = {"scan_shape": (3, 4)}
RECIPE = """# A run
[data]
path = "scan.h5"
flip_rows = true
scan_region = [0, 4, 0, 6]
adu_per_electron = 148.0
[microscope]
voltage_kV = 80
semiangle_mrad = 24.9
aberrations = { C12 = 20.0, phi12 = 30.0 }
[scan]
shape = [48, 48]
step_A = [0.4, 0.4]
[detector]
pixel_invA = 0.05
[model]
probe_modes = 4
slices = 2
slice_thickness_A = 10.0
[[solve]]
kind = "gradient"
epochs = 20
batch = 32
[[solve]]
kind = "epie"
epochs = 5
[output]
directory = "run"
"""


@dataclass(frozen=True)
class Seed:
    """A sound data set: the file that is opened, the bytes of all files by name, what the user gives, and which reader it is meant for."""

    opened: str
    files: Mapping[str, bytes]
    given: Mapping[str, Any] = field(default_factory=dict)
    reader: str = "read"


def seed_of(write: Callable[[Path], Any], folder: Path) -> Seed:
    """What an entry of ``SEEDS`` writes, in an empty folder."""
    made = write(folder)
    opened, given, reader = made if isinstance(made, tuple) else (made, {}, "read")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return Seed(str(opened.relative_to(folder)), files, given, reader)


def counts(scan: tuple[int, int] = (3, 4), side: int = 16, radius: float | None = None) -> NDArray[np.uint16]:
    """Counts (slow, fast, side, side) of a disk of a third of the pattern."""
    y, x = np.indices((side, side)) - side // 2
    mean = 20.0 * (np.hypot(y, x) < (radius or side / 3)) + 0.05
    return np.random.default_rng(1).poisson(mean, (*scan, side, side)).astype(np.uint16)


def places(scan: tuple[int, int] = (3, 4)) -> NDArray[np.float64]:
    return np.stack(np.meshgrid(*(np.arange(n) * 0.5 for n in scan), indexing="ij"), -1).reshape(-1, 2)


def empad(folder: Path) -> Path:
    return ptycho.io.write_empad(folder / "scan_x2_y2.raw", counts((2, 2), 128), adu_per_electron=148.0, **VALUES)


def empad_json(folder: Path) -> Path:
    raw = empad(folder)
    said = {
        "raw_filename": raw.name, "scan_shape": [2, 2], "scan_step": [5e-11, 5e-11], "voltage": 80000.0, "adu": 148.0, "conv_angle": 20.0,
        "defocus": 1e-8, "camera_length": 0.45, "diff_step": 0.67, "det_flips": [True, False, False], "exposure_time": 0.001, "scan_rotation": 0.0,
        "file_type": "empad_metadata", "version": "2.0", "scan_positions": (places((2, 2)) * 1e-10).tolist(), "beam_current": 3e-11,
    }  # fmt: skip
    (folder / "scan.json").write_text(json.dumps(said))
    return raw


def empad_g2(folder: Path) -> Any:
    maps = typical_maps()
    raw = write_empad_g2(folder / "scan_x2_y2.raw", counts((2, 2), 128).astype(float), maps)
    return raw, {"calibration_file": write_maps(folder / "maps.h5", maps).name, "format": "empad_g2"}, "read"


def empad_combined(folder: Path) -> Path:
    return write_empad_combined(folder / "scan_x2_y2.raw", counts((2, 2), 128))


def mib(folder: Path, **options: Any) -> Path:
    return write_mib(folder / "scan.mib", counts((2, 3), 32), **options)


def mib_raw(folder: Path) -> Path:
    return write_mib(folder / "scan.mib", counts((1, 2), 256) % 2, bits=1, raw=True)


def hdf5(folder: Path) -> Path:
    """Any HDF5 file: compressed, with the recipe's names as attributes."""
    with h5py.File(folder / "scan.h5", "w") as file:
        data = file.create_dataset("entry/data", data=counts(), chunks=(1, 4, 16, 16), compression="gzip", shuffle=True)
        data.attrs.update(VALUES)
        file["entry/notes"] = "text of any length"
    return folder / "scan.h5"


def hdf5_new(folder: Path) -> Path:
    """The newest layouts of the library, without compression, in chunks."""
    with h5py.File(folder / "scan.h5", "w", libver="latest") as file:
        file.create_dataset("entry/data", data=counts(), chunks=(1, 4, 16, 16))
        file["entry"].attrs["note"] = "text of any length"
    return folder / "scan.h5"


def dectris(folder: Path) -> Path:
    patterns = counts()
    write_dectris(folder / "scan_master.h5", patterns, frames_per_file=5, mask=np.eye(16), scan=SCAN)
    return folder / "scan_master.h5"


def emd(folder: Path) -> Path:
    stack = counts()
    blocks = [stack.reshape(-1, 16, 16)]
    mask = np.ones((16, 16))
    mask[3, 4] = 0
    return write_emd(folder / "scan.emd", blocks, shape=(3, 4), pattern_shape=(16, 16), dtype="u2", calibration=VALUES, mask=mask)


def npz(folder: Path, compressed: bool) -> Path:
    (np.savez_compressed if compressed else np.savez)(folder / "scan.npz", data=counts(), voltage_kV=80.0, step_A=[0.5, 0.6])
    return folder / "scan.npz"


def npy(folder: Path, fortran: bool = False) -> Path:
    np.save(folder / "scan.npy", np.asfortranarray(counts()) if fortran else counts())
    return folder / "scan.npy"


def raw(folder: Path) -> Any:
    path = write_raw(folder / "scan.bin", counts(), offset=32, before=8, after=8)
    return path, {"layout": {"dtype": "<u2", "frame_shape": (16, 16), "offset_bytes": 32, "before_bytes": 8, "after_bytes": 8}, **SHAPE}, "read"


def events_hdf5(folder: Path) -> Path:
    write_events_hdf5(folder / "scan.h5", counts())
    return folder / "scan.h5"


def events_npz(folder: Path, rows: bool = False) -> Path:
    patterns = counts()
    write_events_npz(folder / "scan.npz", patterns, event_rows(patterns) if rows else None)
    return folder / "scan.npz"


def stempy(folder: Path, chunked: bool = False) -> Path:
    write_stempy(folder / "scan.h5", counts(), chunked=chunked)
    return folder / "scan.h5"


def blockfile(folder: Path) -> Path:
    write_blockfile(folder / "scan.blo", np.minimum(counts(), 255))
    return folder / "scan.blo"


def tiff_pages(folder: Path) -> Any:
    return write_pages(folder / "scan.tif", counts()), SHAPE, "read"


def tiff_imagej(folder: Path) -> Any:
    return write_tiff(folder / "scan.tif", counts().reshape(-1, 16, 16), imagej=True), SHAPE, "read"


def tiff_compressed(folder: Path) -> Path:
    return write_tiff(folder / "scan.tif", counts(), compression="zlib")


def bigtiff(folder: Path) -> Path:
    return write_tiff(folder / "scan.tif", counts(), bigtiff=True)


def folder_mat(folder: Path) -> Any:
    (folder / "scan").mkdir()
    for number, pattern in enumerate(counts((2, 3)).reshape(-1, 16, 16)):
        write_mat(folder / "scan" / f"p{number}.mat", pattern)
    return folder / "scan", {"scan_shape": (2, 3)}, "read"


def ndata(folder: Path) -> Path:
    write_ndata(folder / "scan.ndata", counts(), properties(metadata=None))
    return folder / "scan.ndata"


def nion_hdf5(folder: Path) -> Path:
    write_nion_h5(folder / "scan.h5", counts(), properties(metadata=None))
    return folder / "scan.h5"


def nhdf(folder: Path) -> Any:
    write_nhdf(folder / "scan.nhdf", counts(side=64))
    return folder / "scan.nhdf", {"semiangle_mrad": 12.0}, "read"


def ptyd(folder: Path, linked: bool) -> Path:
    return writers_packages.write_ptyd(folder / "scan.ptyd", counts(), places(), linked=linked, weights=np.ones((16, 16)))


def positions_csv(folder: Path) -> Any:
    (folder / "positions.csv").write_text("y, x\n" + "\n".join(f"{y:.3f}, {x:.3f}" for y, x in places()))
    return folder / "positions.csv", {}, "positions"


def positions_hdf5(folder: Path) -> Any:
    with h5py.File(folder / "positions.h5", "w") as file:
        file.create_dataset("entry/positions", data=places(), compression="gzip")
    return folder / "positions.h5", {}, "positions"


def positions_npy(folder: Path) -> Any:
    np.save(folder / "positions.npy", places())
    return folder / "positions.npy", {}, "positions"


def image_npy(folder: Path) -> Any:
    np.save(folder / "mask.npy", np.ones((16, 16), bool))
    return folder / "mask.npy", {}, "image"


def image_tiff(folder: Path) -> Any:
    return write_tiff(folder / "mask.tif", counts()[0, 0]), {}, "image"


def result(folder: Path) -> Any:
    """What a run writes."""
    from ptycho.io.result_file import save_result  # late, as the next one: it takes seconds to import what draws
    from ptycho.result import EpochRecord, Result

    found = Result(
        object=np.ones((1, 2, 12, 10), np.complex64), occupancy=np.ones(1, np.float32), pixel_A=0.2, slice_thickness_A=np.array([5.0, 6.0]),
        probe=np.ones((1, 16, 16), np.complex64), positions_A=places(), tilt_mrad=np.zeros((1, 2)), history=(EpochRecord(0, "epie", 1, 1.5, 0.2),),
        recipe=RECIPE, versions={"ptycho": "0.1"}, voltage_kV=80.0, semiangle_mrad=20.0, aberrations={"C10": -350.0},
    )  # fmt: skip
    path = save_result(found, folder)
    for picture in folder.glob("phase.*"):
        picture.unlink()
    return path, {}, "result"


def recipe(folder: Path) -> Any:
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml", {}, "recipe"


#: Format -> what writes small data sets of its kinds: each gives a path, or (path, what the user gives, reader).
SEEDS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "empad": (empad, empad_json),
    "empad_g2": (empad_g2, empad_combined),
    "mib": (mib, lambda folder: mib(folder, stream=True), mib, mib_raw),
    "hdf5": (hdf5, hdf5_new),
    "dectris": (dectris,),
    "emd": (
        emd,
        lambda folder: writers_emd.write_emd1(folder / "scan.emd", counts(), calibration={"Q_pixel_size": 0.1, "Q_pixel_units": "A^-1"}),
        lambda folder: writers_emd.write_py4dstem(folder / "scan.h5", counts(), {"beam_energy": 80e3}, {"R_pix_size": 0.5}),
        lambda folder: writers_emd.write_prismatic(folder / "scan.h5", counts(side=32)),
        lambda folder: writers_emd.write_berkeley(folder / "scan.emd", counts()),
    ),
    "velox": (lambda folder: (writers_emd.write_velox(folder / "scan.emd", counts()), SHAPE, "read"),),
    "hyperspy": (lambda folder: write_hyperspy(folder / "scan.hspy", counts(), instrument={"beam_energy": 80.0, "convergence_angle": 5.0}),),
    "nion": (ndata, nion_hdf5, nhdf),
    "nexus": (lambda folder: write_nexus(folder / "scan.nxs", counts()),),
    "mat": (lambda folder: write_mat(folder / "scan.mat", counts()), lambda folder: write_mat(folder / "scan.mat", counts(), compress=True)),
    "mat73": (lambda folder: write_mat73(folder / "scan.mat", counts()),),
    "fold_slice": (
        lambda folder: writers_packages.write_foldslice(folder, counts(), places()),
        lambda folder: writers_packages.write_ptychi(folder, counts(), places()),
    ),
    "cxi": (lambda folder: writers_packages.write_cxi(folder / "scan.cxi", counts(), places(), mask=np.eye(16)),),
    "ptypy": (lambda folder: ptyd(folder, linked=False), lambda folder: ptyd(folder, linked=True)),
    "ptylab": (lambda folder: writers_packages.write_ptylab(folder / "scan.hdf5", counts(), places()),),
    "npy": (npy, lambda folder: npy(folder, fortran=True)),
    "npz": (lambda folder: npz(folder, compressed=False), lambda folder: npz(folder, compressed=True)),
    "events": (events_npz, lambda folder: events_npz(folder, rows=True), events_hdf5),
    "stempy": (stempy, lambda folder: stempy(folder, chunked=True)),
    "tiff": (tiff_pages, tiff_imagej, tiff_compressed, bigtiff),
    "mrc": (lambda folder: write_mrc(folder / "scan.mrc", counts(), volumes=True),),
    "blo": (blockfile,),
    "seq": (lambda folder: (write_seq(folder / "scan.seq", counts().astype("u2")), SHAPE, "read"),),
    "raw": (raw,),
    "folder": (
        lambda folder: (write_folder(folder / "scan", counts((2, 3))), {"scan_shape": (2, 3)}, "read"),
        lambda folder: (write_folder(folder / "scan", counts((2, 3)), suffix=".tif"), {"scan_shape": (2, 3)}, "read"),
        folder_mat,
    ),
    "positions": (positions_csv, positions_npy, positions_hdf5),
    "images": (image_npy, image_tiff),
    "result": (result,),
    "recipe": (recipe,),
}
