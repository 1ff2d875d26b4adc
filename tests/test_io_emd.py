"""EMD: the datacubes of py4DSTEM, Prismatic, Berkeley and Velox, and our own, which others read too."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_emd import VELOX, write_berkeley, write_emd1, write_prismatic, write_py4dstem, write_velox

from ptycho.errors import DataError, OutputError
from ptycho.frames import Header, Quantity
from ptycho.geometry import wavelength_A
from ptycho.io import hdf5
from ptycho.io.emd import open_emd, recognise_emd
from ptycho.io.emd_write import write_emd
from ptycho.io.options import Options
from ptycho.io.units import parse_unit
from ptycho.io.velox import open_velox, recognise_velox


@pytest.fixture
def patterns():
    return np.random.default_rng(0).integers(0, 60000, (4, 5, 6, 7), np.uint16)


def opened(path: Path, dataset=None, recognise: Callable = recognise_emd, open_it: Callable = open_emd):
    file = hdf5.open_file(path)
    try:
        assert recognise(file)
        return open_it(path, file, Options(dataset=dataset))
    except BaseException:
        file.close()
        raise


def values(header: Header):
    return {key: quantity.value for key, quantity in header.metadata.items()}


def assert_close(header: Header, **expected):
    found = values(header)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


def assert_reads(source, patterns):
    header, frames = source.header, patterns.reshape(-1, *patterns.shape[-2:])
    assert header.n_frames == len(frames) and header.frame_shape == frames.shape[1:] and header.dtype == frames.dtype
    np.testing.assert_array_equal(source.read(np.arange(len(frames))), frames)
    order = np.array([7, 2, 3, 4, 19, 2])
    np.testing.assert_array_equal(source.read(order), frames[order])
    source.close()
    np.testing.assert_array_equal(source.read(order[:1]), frames[order[:1]])
    source.close()


# Units


@pytest.mark.parametrize(
    ("unit", "kind", "factor"),
    [("nm", "length", 10), ("[n_m]", "length", 10), ("Å", "length", 1), ("\u212b", "length", 1), ("A", "length", 1), ("Angstrom", "length", 1),
     ("A\u030a", "length", 1), ("µm", "length", 1e4), ("\u03bcm", "length", 1e4), ("um", "length", 1e4), ("pm", "length", 0.01),
     ("m", "length", 1e10),
     ("1/nm", "frequency", 0.1), ("1 / nm", "frequency", 0.1), ("nm^-1", "frequency", 0.1), ("nm⁻¹", "frequency", 0.1), ("A^-1", "frequency", 1),
     ("$A^{-1}$", "frequency", 1), ("Å⁻¹", "frequency", 1), ("[Å^-1]", "frequency", 1), ("1/m", "frequency", 1e-10), ("angstrom^-1", "frequency", 1),
     ("rad", "angle", 1e3), ("mrad", "angle", 1)],
)  # fmt: skip
def test_units(unit, kind, factor):
    found = parse_unit(unit)
    assert found is not None and found[0] == kind and found[1] == pytest.approx(factor)


@pytest.mark.parametrize("unit", [None, "", "pixels", "<undefined>", "px", "[pix]", "1/mrad", "-1", "^-1", "1/", "s", "nm^2", "x" * 100_000])
def test_unknown_units(unit):
    assert parse_unit(unit) is None


# EMD 1.0


def test_emd1(patterns, tmp_path: Path):
    source = opened(write_emd1(tmp_path / "a.h5", patterns, (0.2, 0.3), "nm", (0.25, 0.25), "1/nm"))
    header = source.header
    assert header.format == "emd" and header.scan_shape == (4, 5) and not header.warnings
    assert values(header) == {"step_A": (2.0, 3.0), "pixel_invA": 0.025}
    assert header.metadata["step_A"] == Quantity((2.0, 3.0), "Å", "a.h5: /datacube_root/datacube/dim0")
    assert header.metadata["pixel_invA"].unit == "1/Å"
    assert_reads(source, patterns)


def test_emd1_calibration(patterns, tmp_path: Path):
    calibration = {"R_pixel_size": 0.5, "R_pixel_units": "nm", "Q_pixel_size": 0.02, "Q_pixel_units": "A^-1", "QR_flip": True,
                   "QR_rotation": 0.5, "QR_rotation_degrees": math.degrees(0.5), "probe_semiangle": 10.0, "accelerating_voltage": 80e3}  # fmt: skip
    header = opened(write_emd1(tmp_path / "a.h5", patterns, (1, 1), "pixels", (1, 1), "pixels", calibration)).header
    angle = 10 * 0.02 * wavelength_A(80) * 1e3
    assert_close(header, step_A=(5.0, 5.0), pixel_invA=0.02, rotation_deg=math.degrees(0.5), voltage_kV=80, semiangle_mrad=angle)
    assert [key for key, quantity in header.metadata.items() if not quantity.trusted] == ["rotation_deg", "semiangle_mrad"]
    assert header.metadata["voltage_kV"].source == "a.h5: /datacube_root/metadatabundle/calibration accelerating_voltage"
    assert "QR_flip" in header.warnings[0]


@pytest.mark.parametrize("extra", [{"convergence_semiangle_mrad": 21.0}, {"Q_pixel_size": 2.1, "Q_pixel_units": "mrad", "probe_semiangle": 10.0}])
def test_emd1_semiangle(patterns, tmp_path: Path, extra):
    header = opened(write_emd1(tmp_path / "a.h5", patterns, unit="pixels", calibration={"QR_rotation": 0.1, **extra})).header
    assert values(header)["semiangle_mrad"] == pytest.approx(21) and values(header)["rotation_deg"] == pytest.approx(math.degrees(0.1))


def test_pixels_are_no_unit(patterns, tmp_path: Path):
    units = {"R_pixel_units": "pixels", "Q_pixel_units": "pixels"}
    calibration = {"R_pixel_size": 1, "Q_pixel_size": 1, "probe_semiangle": 9.0, "QR_flip": False, **units}
    header = opened(write_emd1(tmp_path / "a.h5", patterns, (1, 1), "pixels", (1, 1), "pixels", calibration)).header
    assert header.metadata == {} and header.warnings == []


def test_unequal_detector_pixels_are_said(patterns, tmp_path: Path):
    header = opened(write_emd1(tmp_path / "a.h5", patterns, pixel=(0.10, 0.12))).header
    assert values(header)["pixel_invA"] == pytest.approx(0.11) and "mean" in header.warnings[0]
    assert not opened(write_emd1(tmp_path / "b.h5", patterns, pixel=(0.10, 0.1005))).header.warnings


def test_several_datacubes_are_listed(patterns, tmp_path: Path):
    path = write_emd1(tmp_path / "a.h5", patterns)
    with h5py.File(path, "a") as file:
        file.copy("datacube_root/datacube", "datacube_root/other")
        file["datacube_root/other/data"][...] = 0
    with pytest.raises(DataError, match=r"2 datacubes.*other/data.*a\.h5::NAME"):
        opened(path)
    source = opened(path, "datacube_root/other/data")
    assert not source.read(np.arange(3)).any() and values(source.header) == {"step_A": (2, 3), "pixel_invA": 0.1}


def test_a_stack_of_patterns_and_a_stack_of_images(patterns, tmp_path: Path):
    source = opened(write_emd1(tmp_path / "a.h5", patterns[0]))
    assert source.header.scan_shape is None and source.header.n_frames == 5 and values(source.header) == {"pixel_invA": 0.1}
    images = write_emd1(tmp_path / "b.h5", patterns[0], unit="nm")
    with h5py.File(images) as file:
        assert not recognise_emd(file)


def test_a_dataset_of_another_kind(patterns, tmp_path: Path):
    path = write_emd1(tmp_path / "a.h5", patterns)
    with h5py.File(path, "a") as file:
        file["text"] = "no"
        file["complex"] = np.zeros((2, 2, 4, 4), complex)
    for name in ("text", "complex", "datacube_root", "datacube_root/datacube/dim0", "nothing"):
        with pytest.raises(DataError, match=r"a\.h5"):
            opened(path, name)


# Older versions


def test_py4dstem_before_014(patterns, tmp_path: Path):
    microscope = {"accelerating_voltage": np.array([300e3]), "convergence_semiangle_mrad": np.array([21.4])}
    calibration = {
        "R_pix_size": [1.5],
        "R_pix_units": ["angstrom"],
        "K_pix_size": 0.01,
        "K_pix_units": "angstrom^-1",
        "R_to_K_rotation_degrees": ["12"],
    }
    source = opened(write_py4dstem(tmp_path / "a.h5", patterns, microscope, calibration))
    assert values(source.header) == {"voltage_kV": 300, "semiangle_mrad": 21.4, "step_A": (1.5, 1.5), "pixel_invA": 0.01, "rotation_deg": 12}
    assert_reads(source, patterns)
    assert not opened(write_py4dstem(tmp_path / "b.h5", patterns, {"accelerating_voltage": ""}, {"R_pix_size": ""})).header.metadata


def test_prismatic(patterns, tmp_path: Path):
    source = opened(write_prismatic(tmp_path / "a.h5", patterns))
    assert_close(source.header, step_A=(0.25, 0.5), pixel_invA=0.05, voltage_kV=80, semiangle_mrad=25, defocus_A=100)
    assert not source.header.metadata["defocus_A"].trusted
    assert_reads(source, patterns.astype("f4"))
    with pytest.raises(DataError, match="3 datacubes"):
        opened(write_prismatic(tmp_path / "b.h5", patterns, 3))


@pytest.mark.parametrize("reverse", [False, True])
def test_berkeley_and_its_reverse_order(patterns, tmp_path: Path, reverse):
    source = opened(write_berkeley(tmp_path / "a.emd", patterns, reverse))
    assert source.header.scan_shape == (4, 5)
    assert_close(source.header, step_A=(2, 3), pixel_invA=0.05, voltage_kV=200)
    assert_reads(source, patterns)


def test_hyperspy_writes_this(patterns, tmp_path: Path):
    emd = pytest.importorskip("rsciio.emd")
    axes = [("y", 0.2, "nm", True), ("x", 0.3, "nm", True), ("ky", 0.5, "1 / nm", False), ("kx", 0.5, "1 / nm", False)]
    described = [{"name": n, "scale": s, "offset": 0.0, "units": u, "navigate": nav, "size": size, "index_in_array": i}
                 for i, ((n, s, u, nav), size) in enumerate(zip(axes, patterns.shape, strict=True))]  # fmt: skip
    signal = {"data": patterns, "axes": described, "metadata": {"General": {"title": "a"}, "Signal": {"signal_type": ""}}, "original_metadata": {}}
    emd.file_writer(tmp_path / "a.emd", signal)
    source = opened(tmp_path / "a.emd")
    assert values(source.header) == {"step_A": (2, 3), "pixel_invA": 0.05}
    assert_reads(source, patterns)


def test_emdfile_writes_this(patterns, tmp_path: Path):
    emdfile = pytest.importorskip("emdfile")
    array = emdfile.Array(patterns, name="cube", dims=[2.0, 3.0, 0.1, 0.1], dim_units=["nm", "nm", "A^-1", "A^-1"])
    root = emdfile.Root(name="any")
    root.metadata = emdfile.Metadata("calibration", {"QR_rotation_degrees": 3.0, "QR_flip": False, "origin": np.zeros((4, 5)), "nothing": None})
    root.tree(array)
    emdfile.save(str(tmp_path / "a.h5"), root)
    source = opened(tmp_path / "a.h5")
    assert values(source.header) == {"step_A": (20, 30), "pixel_invA": 0.1, "rotation_deg": 3}
    assert_reads(source, patterns)


# Velox


def open_a_velox(path: Path, dataset=None):
    return opened(path, dataset, recognise_velox, open_velox)


def test_velox(patterns, tmp_path: Path):
    path = write_velox(tmp_path / "a.emd", patterns)
    with h5py.File(path) as file:
        assert not recognise_emd(file)
    source = open_a_velox(path)
    assert_close(
        source.header, voltage_kV=200, semiangle_mrad=25, camera_length_m=0.285, exposure_ms=1, defocus_A=5000, rotation_deg=90, pixel_invA=0.01
    )
    assert {key for key, quantity in source.header.metadata.items() if not quantity.trusted} == {"camera_length_m", "defocus_A", "rotation_deg"}
    assert source.header.scan_shape is None and source.header.metadata["voltage_kV"].source == "a.emd: Optics.AccelerationVoltage"
    assert_reads(source, patterns)


def test_velox_scan_and_single_images(patterns, tmp_path: Path):
    sized = {**VELOX, "Scan": {"ScanSize": {"width": "5", "height": "4"}}}
    assert open_a_velox(write_velox(tmp_path / "a.emd", patterns, sized)).header.scan_shape == (4, 5)
    path = write_velox(tmp_path / "b.emd", patterns[:1, :1])
    with pytest.raises(DataError, match="no stack of patterns"):
        open_a_velox(path)
    assert open_a_velox(path, "Data/Image/2b/Data").header.n_frames == 1


@pytest.mark.parametrize(
    "metadata",
    [[], {}, {"Optics": []}, {"Optics": {"AccelerationVoltage": "x", "Defocus": {"a": 1}, "CameraLength": "inf"}},
     {"Scan": {"DwellTime": -1, "ScanSize": {"width": 1e308, "height": 1e308}}, "BinaryResult": {"PixelSize": 3}}],
)  # fmt: skip
def test_velox_without_usable_metadata(patterns, tmp_path: Path, metadata):
    assert open_a_velox(write_velox(tmp_path / "a.emd", patterns, metadata)).header.metadata == {}


# The writer

EVERYTHING = {"voltage_kV": 80.0, "semiangle_mrad": 21.4, "defocus_A": -123.456789012345, "step_A": (0.31, 0.47), "rotation_deg": 33.3,
              "pixel_invA": 0.0123, "pixel_mrad": 0.51, "adu_per_electron": 151.7, "camera_length_m": 0.1, "exposure_ms": 1.86,
              "beam_current_pA": 20.0}  # fmt: skip


@pytest.mark.parametrize("block", [1, 3, 5, 7, 20])
def test_round_trip(patterns, tmp_path: Path, block):
    frames, seen = patterns.reshape(-1, 6, 7), []
    positions, mask = np.random.default_rng(1).normal(size=(20, 2)), np.ones((6, 7), bool)
    mask[2, 3] = False
    blocks = (frames[i : i + block] for i in range(0, 20, block))
    given = {**EVERYTHING, "voltage_kV": Quantity(80.0, "kV", "user"), "scan_shape": (4, 5), "unknown": "x"}
    path = write_emd(tmp_path / "a.h5", blocks, shape=(4, 5), pattern_shape=(6, 7), dtype="u2", calibration=given, positions_A=positions, mask=mask,
                     progress=lambda *done: seen.append(done))  # fmt: skip
    assert seen[-1] == (20, 20) and seen == sorted(seen) and [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    source = opened(path)
    assert values(source.header) == EVERYTHING and source.header.scan_shape == (4, 5)
    assert source.header.metadata["defocus_A"].source == "a.h5: /datacube_root/datacube/data @defocus_A"
    np.testing.assert_array_equal(source.header.positions_A, positions)
    np.testing.assert_array_equal(source.header.bad_pixels, ~mask)
    assert_reads(source, patterns)
    with h5py.File(path) as file:
        assert file["datacube_root/datacube/data"].chunks == (1, 5, 6, 7) and file["datacube_root/datacube/data"].compression == "gzip"


def test_a_list_of_patterns_and_no_calibration(patterns, tmp_path: Path):
    source = opened(write_emd(tmp_path / "a.h5", [patterns[0]], shape=5, pattern_shape=(6, 7), dtype=">i4"))
    header = source.header
    assert (values(header), header.scan_shape, header.n_frames, header.dtype) == ({"adu_per_electron": 1.0}, None, 5, ">i4")
    np.testing.assert_array_equal(source.read(np.arange(5)), patterns[0])


@pytest.mark.parametrize(("size", "fast", "chunk"), [(128, 64, 1), (64, 20, 2), (64, 19, 2), (1024, 3, 1), (8, 128, 128)])
def test_chunks_are_whole_patterns_of_up_to_32_KiB(tmp_path: Path, size, fast, chunk):
    line = np.zeros((fast, size, size), "f4")
    with h5py.File(write_emd(tmp_path / "a.h5", [line], shape=(1, fast), pattern_shape=(size, size), dtype="f4")) as file:
        assert file["datacube_root/datacube/data"].chunks == (1, chunk, size, size)


def test_what_was_not_measured(patterns, tmp_path: Path):
    block = patterns.astype(np.float64).reshape(-1, 6, 7)
    block[3, 1, 2] = np.nan
    expected = patterns.reshape(-1, 6, 7).copy()
    expected[3, 1, 2] = 65535
    keys = {"shape": (4, 5), "pattern_shape": (6, 7)}
    np.testing.assert_array_equal(opened(write_emd(tmp_path / "a.h5", [block], dtype="u2", **keys)).read(np.arange(20)), expected)
    np.testing.assert_array_equal(opened(write_emd(tmp_path / "a.h5", [block], dtype="f4", **keys)).read(np.arange(20)), block.astype("f4"))
    with pytest.raises(OutputError, match="not measured"):
        write_emd(tmp_path / "a.h5", [np.where(np.isnan(block), block, 1)], dtype="u1", **keys)


@pytest.mark.parametrize(
    ("blocks", "keys", "message"),
    [([], {}, "0 patterns, not the 20"), ([np.zeros((19, 6, 7))], {}, "19 patterns, not"), ([np.zeros((21, 6, 7))], {}, "more patterns than the 20"),
     ([np.zeros((20, 7, 6))], {}, "block of the shape"), ([np.zeros((4, 5, 6, 7))], {}, "block of the shape"),
     ([np.zeros((20, 6, 7), complex)], {}, "type complex"),
     ([np.full((20, 6, 7), 0.5)], {"dtype": "u2"}, "choose float32"), ([np.full((20, 6, 7), 70000)], {"dtype": "u2"}, "choose float32"),
     ([np.full((20, 6, 7), -1)], {"dtype": "u2"}, "choose float32"), ([np.full((20, 6, 7), np.inf)], {"dtype": "u2"}, "choose float32"),
     ([], {"shape": (4, 5, 6)}, "is needed"), ([], {"shape": 0}, "is needed"), ([], {"dtype": "c8"}, "is needed"), ([], {"dtype": "O"}, "is needed"),
     ([], {"mask": np.ones((7, 6))}, "mask of the shape"), ([], {"positions_A": np.ones((19, 2))}, "19, 2"),
     ([], {"positions_A": np.ones(20)}, "20, 2")],
)  # fmt: skip
def test_what_cannot_be_written(tmp_path: Path, blocks, keys, message):
    (tmp_path / "a.h5").write_text("older")
    with pytest.raises(OutputError, match=message) as error:
        write_emd(tmp_path / "a.h5", blocks, **{"shape": (4, 5), "pattern_shape": (6, 7), "dtype": "f4", **keys})
    assert (tmp_path / "a.h5").read_text() == "older" and [p.name for p in tmp_path.iterdir()] == ["a.h5"] and len(str(error.value)) < 350


@pytest.mark.parametrize("name", ["none/a.h5", "folder", "x" * 300, "a\0b"])
def test_where_it_cannot_be_written(tmp_path: Path, patterns, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_emd(tmp_path / name, patterns, shape=(4, 5), pattern_shape=(6, 7), dtype="u2")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("no"), OSError("the source's"), RuntimeError("the source's")])
def test_an_error_of_the_source_stays_itself_and_leaves_nothing(tmp_path: Path, patterns, error):
    def blocks():
        yield patterns[0]
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        write_emd(tmp_path / "a.h5", blocks(), shape=(4, 5), pattern_shape=(6, 7), dtype="u2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of the file size are POSIX")
def test_a_full_disk(tmp_path: Path):
    code = """if True:
        import resource, signal, sys
        import numpy as np
        from ptycho.errors import OutputError
        from ptycho.io.emd_write import write_emd
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
        noise = np.random.default_rng(0).integers(0, 65535, (64, 64, 64), np.uint16)
        try:
            write_emd(sys.argv[1], (noise for _ in range(8)), shape=(8, 64), pattern_shape=(64, 64), dtype="u2")
        except OutputError as error:
            sys.exit(f"said: {error}")
    """
    for limit in (100, 20_000, 2_000_000):
        result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5"), str(limit)], capture_output=True, text=True, timeout=60)
        assert result.returncode == 1 and result.stderr.startswith("said: ") and "cannot be written" in result.stderr
        assert "\n" not in result.stderr.strip() and list(tmp_path.iterdir()) == []


def test_emdfile_reads_it(patterns, tmp_path: Path):
    emdfile = pytest.importorskip("emdfile")
    path = write_emd(tmp_path / "a.h5", patterns, shape=(4, 5), pattern_shape=(6, 7), dtype="u2", calibration=EVERYTHING, mask=np.ones((6, 7)),
                     positions_A=np.zeros((20, 2)))  # fmt: skip
    array = emdfile.read(str(path))
    np.testing.assert_array_equal(array.data, patterns)
    assert list(array.dim_units) == ["A", "A", "A^-1", "A^-1"] and list(array.dim_names) == ["Rx", "Ry", "Qx", "Qy"]
    assert [dim[1] for dim in array.dims] == pytest.approx([0.31, 0.47, 0.0123, 0.0123]) and [len(dim) for dim in array.dims] == [4, 5, 6, 7]
    calibration = array.root.metadata["calibration"]
    assert calibration["Q_pixel_size"] == 0.0123 and calibration["Q_pixel_units"] == "A^-1" and tuple(calibration["step_A"]) == (0.31, 0.47)


def test_rosettasciio_reads_it(patterns, tmp_path: Path):
    emd = pytest.importorskip("rsciio.emd")
    path = write_emd(tmp_path / "a.emd", patterns, shape=(4, 5), pattern_shape=(6, 7), dtype="u2", calibration=EVERYTHING, mask=np.ones((6, 7)))
    (signal,) = emd.file_reader(path)
    np.testing.assert_array_equal(signal["data"], patterns)
    axes = [(axis["name"], axis["scale"], axis["units"], axis["size"]) for axis in signal["axes"]]
    assert axes == [("Rx", 0.31, "Å", 4), ("Ry", 0.47, "Å", 5), ("Qx", 0.0123, "1 / Å", 6), ("Qy", 0.0123, "1 / Å", 7)]


# Damage


def test_truncated_files(patterns, tmp_path: Path):
    content = write_emd1(tmp_path / "a.h5", patterns).read_bytes()
    for length in range(1, len(content), max(1, len(content) // 60)):
        (tmp_path / "b.h5").write_bytes(content[:length])
        with pytest.raises(DataError):
            opened(tmp_path / "b.h5").read(np.arange(20))
