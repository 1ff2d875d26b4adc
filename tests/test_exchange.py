"""What is written for another program means there what it means here, and comes back the same."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from command import run
from scipy.io import loadmat
from test_result import make

import ptycho
from ptycho.errors import DataError, OutputError
from ptycho.exchange import export, formats, import_run
from ptycho.exchange.patterns import patterns_of
from ptycho.geometry import voltage_kV_of, wavelength_A
from ptycho.io.result_file import load_result, save_result
from ptycho.result import Result

SUFFIX = {form.name: form.suffixes[0] for form in formats()}
INDEX = np.arange(0, 20, 3)


@pytest.fixture(scope="module")
def result() -> Result:
    """Three equal slices, two modes, a tilt, and positions between pixels whose windows stay on the canvas of 30 x 34."""
    positions = np.random.default_rng(3).uniform((8.6, 8.6), (21.4, 25.4), (20, 2)) * 0.21
    return replace(make(states=1), positions_A=positions, tilt_mrad=np.array([[3.0, -5.0]]), slice_thickness_A=np.full(3, 20.0))


def written(result: Result, folder: Path, name: str) -> Path:
    return export(result, folder / f"there{SUFFIX[name]}", name)


# Round trips


@pytest.mark.parametrize(("name", "tilt"), [("ptyrad", True), ("phaser", True), ("py4dstem", True), ("fold_slice", False)])
def test_a_result_comes_back(result: Result, tmp_path: Path, name: str, tilt: bool):
    back = import_run(written(result, tmp_path, name)).result
    assert back is not None
    for array in ("object", "probe", "slice_thickness_A", "positions_A"):
        # Amplitude and phase are stored apart by one, positions in single precision by another.
        np.testing.assert_allclose(getattr(back, array), getattr(result, array), rtol=1e-6, atol=3e-7, err_msg=array)
    np.testing.assert_allclose(back.tilt_mrad, result.tilt_mrad if tilt else np.zeros((1, 2)), atol=1e-6)
    assert back.pixel_A == pytest.approx(result.pixel_A) and back.voltage_kV == pytest.approx(result.voltage_kV)
    assert [record.loss for record in back.history] == pytest.approx([record.loss for record in result.history])


def test_states_and_tilts_go_through_ptyrad(result: Result, tmp_path: Path):
    several = replace(result, object=make(states=2).object, occupancy=np.array([0.7, 0.3]), tilt_mrad=np.random.default_rng(1).normal(size=(20, 2)))
    back = import_run(written(several, tmp_path, "ptyrad")).result
    np.testing.assert_allclose(back.object, several.object, atol=3e-7)
    np.testing.assert_allclose(back.occupancy, several.occupancy, atol=1e-6)
    np.testing.assert_allclose(back.tilt_mrad, several.tilt_mrad, atol=1e-6)
    np.testing.assert_allclose(patterns_of(back, INDEX), patterns_of(several, INDEX), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("name", ["ptyrad", "phaser", "py4dstem", "fold_slice"])
def test_odd_windows_and_single_slices(result: Result, tmp_path: Path, name: str, size: int, slices: int):
    thin = replace(
        result,
        object=result.object[:, :slices],
        slice_thickness_A=result.slice_thickness_A[:slices],
        probe=result.probe[:, :size, :size],
        tilt_mrad=np.zeros((1, 2)),
    )
    back = import_run(written(thin, tmp_path, name)).result
    np.testing.assert_allclose(patterns_of(back, INDEX), patterns_of(thin, INDEX), rtol=1e-3, atol=1e-4)


def test_a_wavelength_is_a_voltage():
    for voltage in (30.0, 80.0, 300.0):
        assert voltage_kV_of(wavelength_A(voltage)) == pytest.approx(voltage, rel=1e-12)


# The same physics: patterns computed from the file as the other program does, in NumPy, from its conventions (docs/conventions.md)


def theirs(wave: np.ndarray, patches: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Pattern of modes (m, y, x) through patches (slices, y, x), zero frequency in the corner, for a transform without a factor."""
    for index, patch in enumerate(patches):
        wave = wave * patch
        if index < len(patches) - 1:
            wave = np.fft.ifft2(np.fft.fft2(wave) * kernel)
    return (np.abs(np.fft.fft2(wave)) ** 2).sum(0)


def shifted(wave: np.ndarray, by: np.ndarray) -> np.ndarray:
    f = np.fft.fftfreq(wave.shape[-1])
    return np.fft.ifft2(np.fft.fft2(wave) * np.exp(-2j * np.pi * (f[:, None] * by[0] + f * by[1])))


def grid(size: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    k = np.fft.fftfreq(size, pixel)
    return k[:, None], k[None, :]


def close(ours: np.ndarray, other: np.ndarray) -> None:
    other = np.fft.fftshift(other, axes=(-2, -1))
    assert abs(ours - other).max() < 1e-3 * other.max()


def test_ptyrad_sees_the_same_patterns(result: Result, tmp_path: Path):
    with h5py.File(written(result, tmp_path, "ptyrad")) as file:
        tensors, model = file["optimizable_tensors"], file["model_attributes"]
        object_ = (tensors["obja"][()] * np.exp(1j * tensors["objp"][()]))[0]
        probe, pixel, size = tensors["probe"][()], model["dx"][()], tensors["probe"].shape[-1]
        corner, shift = model["crop_pos"][()], tensors["probe_pos_shifts"][()]
        ky, kx = (2 * np.pi * k for k in grid(size, pixel))
        tilt = np.tan(tensors["obj_tilts"][0] * 1e-3)
        kz = np.sqrt((2 * np.pi / model["lambd"][()]) ** 2 - ky**2 - kx**2)
        kernel = np.exp(1j * tensors["slice_thickness"][()] * (kz + ky * tilt[0] + kx * tilt[1]))
    assert np.abs(shift).max() <= 0.5
    found = [theirs(shifted(probe, shift[i]), object_[:, y : y + size, x : x + size], kernel) / size**2 for i in INDEX for y, x in [corner[i]]]
    close(patterns_of(result, INDEX), np.array(found))


def test_phaser_sees_the_same_patterns(result: Result, tmp_path: Path):
    with h5py.File(written(result, tmp_path, "phaser")) as file:
        object_, probe, scan = file["object/data"][()], file["probe/data"][()], file["scan"][()]
        pixel, size = file["object/sampling"][0], file["probe/data"].shape[-1]
        place = (scan - file["object/corner"][()]) / pixel - (size - 1) / 2
        ky, kx = grid(size, pixel)
        tilt = np.tan(file["tilt"][0] * 1e-3)
        kernel = np.exp(-1j * np.pi * file["object/thicknesses"][0] * (file["wavelength"][()] * (ky**2 + kx**2) - 2 * (ky * tilt[0] + kx * tilt[1])))
    start = np.round(place).astype(int)
    waves = [shifted(probe, place[i] - start[i]) for i in INDEX]
    found = [theirs(wave, object_[:, y : y + size, x : x + size], kernel) for wave, (y, x) in zip(waves, start[INDEX], strict=True)]
    close(patterns_of(result, INDEX), np.array(found) / size**2)


def test_py4dstem_sees_the_same_patterns(result: Result, tmp_path: Path):
    with h5py.File(written(result, tmp_path, "py4dstem")) as file:
        group = file["MixedstateMultislicePtychography_root/MixedstateMultislicePtychography"]
        object_, probe = group["_object_emd/data"][()], group["_probe_emd/data"][()]
        known, prepared = group["metadatabundle/instantiation_metadata"], group["metadatabundle/preprocess_metadata"]
        positions, size = prepared["positions_px"][()], probe.shape[-1]
        ky, kx = grid(size, prepared["sampling"][0])
        wavelength = wavelength_A(known["energy"][()] * 1e-3)
        tilt = np.tan(np.array([known["theta_x"][()], known["theta_y"][()]]) * 1e-3)
        kernel = np.exp(-1j * np.pi * known["slice_thicknesses"][0] * (wavelength * (ky**2 + kx**2) + 2 * (ky * tilt[0] + kx * tilt[1])))
    around = np.fft.fftfreq(size, 1 / size).astype(int)
    found = []
    for position in positions[INDEX].astype(float):
        row, column = np.round(position).astype(int)
        patches = object_[:, (row + around)[:, None], (column + around)[None, :]]
        found.append(theirs(shifted(probe, position - np.round(position)), patches, kernel))
    close(patterns_of(result, INDEX), np.array(found))


def test_fold_slice_sees_the_same_patterns(result: Result, tmp_path: Path):
    flat = replace(result, tilt_mrad=np.zeros((1, 2)))
    file = loadmat(written(flat, tmp_path, "fold_slice"), simplify_cells=True)
    object_, probe = np.moveaxis(file["object"], -1, 0), np.moveaxis(file["probe"], -1, 0)
    size, pixel = probe.shape[-1], file["p"]["dx_spec"][0] * 1e10
    # MATLAB's first index of a window, from 1; positions are (x, y).
    place = file["outputs"]["probe_positions"][:, ::-1] + np.ceil(np.array(object_.shape[1:]) / 2 - size / 2)
    start = np.round(place).astype(int)
    ky, kx = (2 * np.pi * k for k in grid(size, pixel))
    kernel = np.exp(1j * file["p"]["z_distance"][0] * 1e10 * np.sqrt((2 * np.pi / (file["p"]["lambda"] * 1e10)) ** 2 - ky**2 - kx**2))
    waves = [shifted(probe, place[i] - start[i]) for i in INDEX]
    found = [theirs(wave, object_[:, y - 1 : y - 1 + size, x - 1 : x - 1 + size], kernel) for wave, (y, x) in zip(waves, start[INDEX], strict=True)]
    close(patterns_of(flat, INDEX), np.array(found) / size**2)


# Scale and axes for programs that look


def test_imagej_and_ome_have_the_scale(result: Result, tmp_path: Path):
    with tifffile.TiffFile(written(result, tmp_path, "imagej")) as tiff:
        assert tiff.imagej_metadata["unit"] in ("Å", "\\u00C5") and tiff.imagej_metadata["spacing"] == 20
        numerator, denominator = tiff.pages[0].tags["XResolution"].value
        assert denominator / numerator == pytest.approx(0.21, rel=1e-6)
        np.testing.assert_array_equal(tiff.asarray(), result.phase)
    with tifffile.TiffFile(written(result, tmp_path, "ome")) as tiff:
        assert tiff.series[0].axes == "CZYX" and tiff.series[0].dtype == np.float32
        for said in ('PhysicalSizeX="0.21"', 'PhysicalSizeY="0.21"', 'PhysicalSizeZ="20.0"', 'PhysicalSizeXUnit="Å"', 'Name="phase (rad)"'):
            assert said in tiff.ome_metadata, said
        np.testing.assert_array_equal(tiff.asarray()[0], result.phase)
        np.testing.assert_array_equal(tiff.asarray()[1], result.amplitude)


def test_emdfile_opens_it_with_the_scale(result: Result, tmp_path: Path):
    emdfile = pytest.importorskip("emdfile", reason="emdfile (py4DSTEM's reader) is not installed")
    root = emdfile.read(str(written(result, tmp_path, "emd")), tree=True)
    phase = root.tree("object_phase")
    assert list(phase.dim_names) == ["z", "y", "x"] and list(phase.dim_units) == ["A", "A", "A"] and phase.units == "rad"
    assert [dim[1] - dim[0] for dim in phase.dims] == pytest.approx([20, 0.21, 0.21])
    np.testing.assert_array_equal(phase.data, result.phase)
    np.testing.assert_array_equal(root.tree("object_complex").data, result.object)


@pytest.mark.parametrize("name", ["hspy", "emd"])
def test_rosettasciio_opens_it_with_the_scale(result: Result, tmp_path: Path, name: str):
    reader = pytest.importorskip(f"rsciio.{'hspy' if name == 'hspy' else 'emd'}", reason="RosettaSciIO is not installed")
    signals = reader.file_reader(str(written(result, tmp_path, name)))
    (phase,) = (s for s in signals if s["data"].shape == result.phase.shape and s["data"].dtype.kind == "f" and np.allclose(s["data"], result.phase))
    pixel, distance, unit = (0.021, 2.0, "nm") if name == "hspy" else (0.21, 20.0, "Å")
    found = {axis["name"]: (axis["scale"], axis["units"]) for axis in phase["axes"]}
    assert found == {"z": (pytest.approx(distance), unit), "y": (pytest.approx(pixel), unit), "x": (pytest.approx(pixel), unit)}


def test_cxi_has_metres_and_joules(result: Result, tmp_path: Path):
    path = written(result, tmp_path, "cxi")
    with h5py.File(path) as file:
        entry = file["entry_1"]
        np.testing.assert_array_equal(entry["data_1/data"][()], result.object[0])
        np.testing.assert_array_equal(entry["instrument_1/source_1/illumination"][()], result.probe)
        assert entry["instrument_1/source_1/energy"][()] / 1.602176634e-19 == pytest.approx(80e3)
        x, y, _ = entry["data_1/translation"][3] * 1e10
        assert (y, x) == pytest.approx(tuple(result.positions_A[3]))
        assert entry["image_1/image_size"][()] * 1e10 == pytest.approx([34 * 0.21, 30 * 0.21, 60])


def test_numpy_and_matlab_have_all_arrays(result: Result, tmp_path: Path):
    with np.load(written(result, tmp_path, "npz")) as file:
        for name in ("object", "probe", "phase", "amplitude", "positions_A", "slice_thickness_A", "tilt_mrad", "pixel_A"):
            np.testing.assert_array_equal(file[name], getattr(result, name))
    np.testing.assert_array_equal(np.load(written(result, tmp_path, "npy")), result.phase)
    file = loadmat(written(result, tmp_path, "fold_slice"), simplify_cells=True)
    np.testing.assert_array_equal(file["phase"], np.moveaxis(result.phase, 0, -1))
    assert file["object"].shape == (30, 34, 3) and file["probe"].shape == (16, 16, 2) and file["pixel_A"] == 0.21


def test_matlab_7_3_is_read_too(result: Result, tmp_path: Path):
    flat = replace(result, tilt_mrad=np.zeros((1, 2)))
    five = loadmat(written(flat, tmp_path, "fold_slice"), simplify_cells=True)
    path = tmp_path / "v73.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name in ("object", "probe"):
            pairs = np.zeros(five[name].T.shape, [("real", "f4"), ("imag", "f4")])
            pairs["real"], pairs["imag"] = five[name].T.real, five[name].T.imag
            file[name] = pairs
        file["outputs/probe_positions"] = five["outputs"]["probe_positions"].T
        for name in ("dx_spec", "lambda", "z_distance", "alpha_max"):
            file[f"p/{name}"] = np.atleast_2d(five["p"][name]).T
    back = import_run(path).result
    np.testing.assert_array_equal(back.object, flat.object)
    np.testing.assert_allclose(back.positions_A, flat.positions_A, rtol=1e-12)
    np.testing.assert_allclose(back.slice_thickness_A, flat.slice_thickness_A)


# What is lost is told


def test_what_a_format_cannot_hold_is_told(result: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    several = replace(make(states=2), slice_thickness_A=np.array([5.0, 6.0, 7.5]))
    with caplog.at_level(logging.WARNING, "ptycho"):
        expected = {"ptyrad": ["one distance"], "phaser": ["2 states"], "fold_slice": ["2 states", "one tilt"], "npz": [], "ome": []}
        for name, said in expected.items():
            caplog.clear()
            written(several, tmp_path, name)
            assert len(caplog.messages) == len(said) and all(any(part in m for m in caplog.messages) for part in said), (name, caplog.messages)


# The command line


def test_export_and_import_on_the_command_line(result: Result, tmp_path: Path):
    save_result(result, tmp_path / "run")
    out = run("export", tmp_path / "run", tmp_path / "model.hdf5", "--to", "ptyrad")
    assert out.code == 0, out.err
    assert run("export", tmp_path / "run", tmp_path / "model.hdf5", "--to", "ptyrad").code == 5
    made = run("import", tmp_path / "model.hdf5", "-o", tmp_path / "back")
    assert made.code == 0, made.err
    back = load_result(tmp_path / "back")
    np.testing.assert_allclose(back.object, result.object, atol=3e-7)
    recipe = (tmp_path / "back" / "recipe.toml").read_text()
    assert "probe_file = 'result.h5'" in recipe and "slices = 3" in recipe
    np.testing.assert_allclose(np.loadtxt(tmp_path / "back" / "positions.csv", delimiter=",", skiprows=1), result.positions_A, atol=1e-6)
    assert run("import", tmp_path / "model.hdf5", "-o", tmp_path / "back").code == 5


@pytest.mark.parametrize(("name", "to", "says"), [("a.h5", None, "--to"), ("a.xyz", None, ".ome.tif"), ("a.h5", "ptyrda", "phaser")])
def test_an_unknown_format_is_one_sentence(result: Result, tmp_path: Path, name: str, to: str | None, says: str):
    with pytest.raises(OutputError, match=says):
        ptycho.export(result, tmp_path / name, to)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other", "no probe", "bomb", "shapes", "nan"])
@pytest.mark.parametrize("name", ["ptyrad", "phaser", "py4dstem", "fold_slice"])
def test_damaged_files_are_one_sentence(result: Result, tmp_path: Path, name: str, damage: str):
    broken = replace(result, positions_A=np.full_like(result.positions_A, math.nan)) if damage == "nan" and name != "ptyrad" else result
    path = written(broken, tmp_path, name)
    content = path.read_bytes()
    probes = {"ptyrad": "optimizable_tensors/probe", "phaser": "probe/data", "py4dstem": "MixedstateMultislicePtychography_root"}
    if damage in ("no probe", "bomb", "shapes") and name != "fold_slice":
        with h5py.File(path, "a") as file:
            del file[probes[name]]
            if damage == "bomb":
                file.create_dataset(probes[name], (10_000, 10_000, 10_000), "c8", chunks=(1, 64, 64))
            elif damage == "shapes":
                file[probes[name]] = np.zeros((3, 4, 5), "c8")
    elif damage == "nan" and name == "ptyrad":
        with h5py.File(path, "a") as file:
            file["optimizable_tensors/objp"][0, 0, 0, 0] = math.nan
    elif damage != "nan":
        path.write_bytes({"cut": content[: len(content) // 2], "text": b"hello", "empty": b"", "other": content[:100]}.get(damage, content[:2000]))
    with pytest.raises(DataError) as caught:
        import_run(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
