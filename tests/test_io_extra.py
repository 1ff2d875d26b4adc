"""Files that the optional rosettasciio reads: the same patterns and values, quietly, or one line."""

import contextlib
import json
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from writers_extra import write_dm4, write_tvips, write_zspy

from ptycho.errors import DataError
from ptycho.io.extra import SUFFIXES, open_extra
from ptycho.io.extra_check import refuse_unsafe
from ptycho.io.extra_stack import choose_stack
from ptycho.io.options import Options

SHAPE = (3, 4, 5, 6)


@pytest.fixture
def patterns():
    return np.random.default_rng(0).poisson(3, SHAPE).astype(np.uint16)


@pytest.fixture
def rsciio():
    return pytest.importorskip("rsciio")


def values(source):
    return {name: quantity.value for name, quantity in source.header.metadata.items()}


def all_patterns(source):
    return source.read(np.arange(source.header.n_frames)).reshape(SHAPE)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_rosettasciio_the_remedy_is_told(tmp_path: Path, monkeypatch, suffix):
    for name in [name for name in sys.modules if name.split(".")[0] == "rsciio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rsciio", None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"something")
    with pytest.raises(DataError, match=r"pip install 'ptycho\[formats\]'") as error:
        open_extra(path, Options())
    assert str(error.value).startswith(str(path))


def test_importing_the_readers_does_not_import_rosettasciio():
    import subprocess

    code = "import ptycho.io.extra, sys; sys.exit(any(name.split('.')[0] in ('rsciio', 'dask', 'h5py') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("swapped", [True, False, None])
def test_dm4_is_read_whichever_axes_come_first(tmp_path: Path, rsciio, patterns, swapped, capfd):
    write_dm4(tmp_path / "a.dm4", patterns, swapped=swapped)
    source = open_extra(tmp_path / "a.dm4", Options())
    assert (source.header.scan_shape, source.header.frame_shape, source.header.warnings) == ((3, 4), (5, 6), [])
    assert np.array_equal(all_patterns(source), patterns)
    said = values(source)
    assert said["step_A"] == pytest.approx((5, 5))
    assert said["pixel_invA"] == pytest.approx(0.02)
    assert said["voltage_kV"] == 300
    assert said["camera_length_m"] == pytest.approx(0.115) and not source.header.metadata["camera_length_m"].trusted
    assert capfd.readouterr() == ("", "")


def test_dm4_without_units_is_taken_as_digitalmicrograph_writes_it(tmp_path: Path, rsciio, patterns):
    write_dm4(tmp_path / "a.dm4", patterns, swapped=False, units=("", ""))
    source = open_extra(tmp_path / "a.dm4", Options())
    assert np.array_equal(all_patterns(source), patterns)
    assert "assumed" in source.header.warnings[0]


@pytest.mark.parametrize("part_frames", [None, 5])
def test_tvips_is_a_list_of_frames(tmp_path: Path, rsciio, patterns, part_frames):
    write_tvips(tmp_path / "a_000.tvips", patterns, part_frames=part_frames)
    source = open_extra(tmp_path / "a_000.tvips", Options())
    header = source.header
    assert (header.scan_shape, header.n_frames, header.frame_shape, header.dtype) == (None, 12, (5, 6), np.uint16)
    assert np.array_equal(all_patterns(source), patterns)
    assert values(source) == {"voltage_kV": 200}  # the pixel of the camera is not one in reciprocal space
    source.close()
    assert np.array_equal(source.read(np.array([11, 2, 11])), patterns.reshape(12, 5, 6)[[11, 2, 11]])


def test_real_tvips_files(test_data: Path, rsciio):
    from rsciio.tvips import file_reader

    for name, shape in (("2233_000", (4, 3, 3)), ("2345_000", (6, 4, 5)), ("2345_split_000", (6, 4, 5))):
        path = test_data / "formats" / "blo_tvips" / f"test_tvips_{name}.tvips"
        source = open_extra(path, Options())
        assert np.array_equal(source.read(np.arange(source.header.n_frames)), file_reader(str(path))[0]["data"])
        assert (source.header.n_frames, *source.header.frame_shape) == shape


def test_tia_line_of_patterns(test_data: Path, rsciio):
    folder = test_data / "formats" / "tia_ser"
    emi, ser = (open_extra(next(folder.glob(f"*.{suffix}")), Options()) for suffix in ("emi", "ser"))
    assert (emi.header.scan_shape, emi.header.frame_shape, emi.header.dtype) == ((1, 5), (128, 128), np.int32)
    assert np.array_equal(emi.read(np.arange(5)), ser.read(np.arange(5)))
    said = values(emi)
    assert said["voltage_kV"] == 200
    assert said["step_A"] == pytest.approx((36.886, 36.886), rel=1e-4)
    assert said["pixel_invA"] == pytest.approx(0.017435, rel=1e-4)
    assert "pixel_invA" not in values(ser)  # only the .emi knows that these are diffraction patterns


def write_prz(path: Path, data, types, *, compressed=False, **metadata):
    calibration = {"ScanX": (0.7e-9, "m"), "ScanY": (0.7e-9, "m"), "CameraX": (1e-3, "rad"), "CameraY": (1e-3, "rad"), "Energy": (1.0, "eV")}
    axes = [{"value": calibration[name][0], "unit": calibration[name][1], "offset": 0.0} for name in types]
    # "content.types" and "device.calib" are listed fastest first
    text = json.dumps([{"type": "4D", "content.types": types[::-1], "device.calib": axes[::-1], **metadata}])
    with open(path, "wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, data=data, meta_data_json=np.array(text))


_PRZ = ["ScanY", "ScanX", "CameraY", "CameraX"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_panta_rhei(tmp_path: Path, rsciio, patterns, compressed, order):
    metadata = {"electron_gun.voltage": 60_000.0, "condenser.convergence_semi_angle": 0.03}
    write_prz(tmp_path / "a.prz", np.asarray(patterns, order=order), _PRZ, compressed=compressed, **metadata)
    source = open_extra(tmp_path / "a.prz", Options())
    assert np.array_equal(all_patterns(source), patterns)
    said = values(source)
    assert said["voltage_kV"] == pytest.approx(60)
    assert said["semiangle_mrad"] == pytest.approx(30)
    assert said["step_A"] == pytest.approx((7, 7))
    assert said["pixel_mrad"] == pytest.approx(1)


def test_a_pickle_in_panta_rheis_metadata_is_left_alone(tmp_path: Path, rsciio, patterns):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    with open(tmp_path / "a.prz", "wb") as file:
        np.savez(file, data=patterns, meta_data=np.array([Bomb()], object))
    source = open_extra(tmp_path / "a.prz", Options())
    assert np.array_equal(all_patterns(source), patterns)
    assert "pickle" in source.header.warnings[0]
    assert not (tmp_path / "run").exists()


def test_spectra_are_refused_in_one_line(tmp_path: Path, rsciio, patterns):
    write_prz(tmp_path / "a.prz", patterns[0], ["ScanY", "ScanX", "Energy"])
    with pytest.raises(DataError, match="no diffraction patterns of a scan in this Panta Rhei file; it has 4 x 5 signals of 6 uint16") as error:
        open_extra(tmp_path / "a.prz", Options())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("signal_type", ["EELS", "EDS_TEM", "CL"])
def test_a_spectrum_image_with_three_axes_is_no_stack(signal_type):
    axes = [{"name": name, "size": 4, "scale": 1.0, "units": "nm", "navigate": name == "z"} for name in "zyx"]
    signal = {"data": np.zeros((4, 4, 4)), "axes": axes, "metadata": {"Signal": {"signal_type": signal_type}}}
    with pytest.raises(DataError, match="no diffraction patterns"):
        choose_stack(Path("a.dm4"), "Gatan", [signal])


def test_a_cut_file_is_refused_when_it_is_opened(tmp_path: Path, rsciio, patterns):
    for write, path in ((write_dm4, tmp_path / "a.dm4"), (write_tvips, tmp_path / "a_000.tvips")):
        write(path, patterns)
        data = path.read_bytes()
        for cut in np.linspace(1, len(data) - 20, 60).astype(int):
            path.write_bytes(data[:cut])
            with contextlib.suppress(DataError):
                source = open_extra(path, Options())
                assert path.suffix == ".tvips" and not (cut - 256) % 120  # whole frames of a list
                assert np.array_equal(source.read(np.arange(source.header.n_frames)), patterns.reshape(12, 5, 6)[: source.header.n_frames])


@pytest.mark.parametrize("packed", [False, True])
def test_zspy_folder_and_zip(tmp_path: Path, rsciio, patterns, packed, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("zarr")
    path = tmp_path / "a.zspy"
    write_zspy(path, patterns)
    if packed:
        with zipfile.ZipFile(tmp_path / "b.zspy", "w") as archive:
            for file in path.rglob("*"):
                archive.write(file, file.relative_to(path))
        path = tmp_path / "b.zspy"
    source = open_extra(path, Options())
    assert np.array_equal(all_patterns(source), patterns)
    assert values(source) == {
        "scan_shape": (3, 4), "step_A": pytest.approx((5, 5)), "pixel_invA": pytest.approx(0.01),
        "voltage_kV": 200, "camera_length_m": pytest.approx(0.1), "semiangle_mrad": 21.4,
    }  # fmt: skip
    source.close()
    assert np.array_equal(source.read(np.array([5]))[0], patterns[1, 1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["data/.zarray", "zarr.json", ".zmetadata"])
def test_zarr_with_a_pickle_codec_is_refused(tmp_path: Path, name):
    text = json.dumps({"metadata": {"x": {"filters": [{"id": "p\u0069ckle"}]}}}).replace("pickle", "\\u0070ickle")
    folder = tmp_path / "a.zspy"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(text)
    with zipfile.ZipFile(tmp_path / "b.zspy", "w") as archive:
        archive.writestr(name, text)
    for path in (folder, tmp_path / "b.zspy"):
        with pytest.raises(DataError, match="names a pickle codec"):
            refuse_unsafe(path)


def test_zarr_with_links_is_refused(tmp_path: Path):
    folder = tmp_path / "a.zspy"
    folder.mkdir()
    (folder / "data").symlink_to(tmp_path)
    with pytest.raises(DataError, match="is a link"):
        refuse_unsafe(folder)


def test_harmless_zarr_is_not_refused(tmp_path: Path):
    folder = tmp_path / "a.zspy"
    folder.mkdir()
    (folder / "zarr.json").write_text(json.dumps({"attributes": {"name": "pickle"}, "codecs": [{"name": "bytes"}]}))
    assert refuse_unsafe(folder)


def test_unknown_suffixes_and_datasets_are_told(tmp_path: Path):
    (tmp_path / "a.xyz").write_bytes(b"1")
    (tmp_path / "a.dm4").write_bytes(b"1")
    with pytest.raises(DataError, match=r"do not know '\.xyz'"):
        open_extra(tmp_path / "a.xyz", Options())
    with pytest.raises(DataError, match="remove ::data"):
        open_extra(tmp_path / "a.dm4", Options(dataset="data"))
