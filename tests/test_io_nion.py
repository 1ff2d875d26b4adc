"""Nion Swift's .ndata, .h5 and .nhdf."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_nion import properties, write_ndata, write_nhdf, write_nion_h5

from ptycho.errors import DataError
from ptycho.io import hdf5
from ptycho.io.nion import open_ndata, open_nion, recognise_nion
from ptycho.io.options import Options

EXPECTED = {"voltage_kV": 60, "semiangle_mrad": 35, "defocus_A": 50, "beam_current_pA": 20, "exposure_ms": 2, "adu_per_electron": 35,
            "rotation_deg": np.degrees(0.5), "pixel_mrad": 0.5}  # fmt: skip


@pytest.fixture
def patterns():
    return np.random.default_rng(0).normal(size=(4, 5, 6, 7)).astype(np.float32)


def opened(path: Path, dataset=None):
    if path.suffix == ".ndata":
        return open_ndata(path, Options(dataset=dataset))
    file = hdf5.open_file(path)
    try:
        assert recognise_nion(file)
        return open_nion(path, file, Options(dataset=dataset))
    except BaseException:
        file.close()
        raise


def values(source):
    return {key: quantity.value for key, quantity in source.header.metadata.items()}


WRITERS = {"a.ndata": write_ndata, "a.h5": write_nion_h5, "a.nhdf": write_nhdf}


@pytest.mark.parametrize("name", WRITERS)
def test_frames_and_metadata(patterns, tmp_path: Path, name):
    source = opened(WRITERS[name](tmp_path / name, patterns))
    assert (source.header.scan_shape, source.header.frame_shape, source.header.dtype) == ((4, 5), (6, 7), np.float32)
    assert source.header.format == ("ndata" if name == "a.ndata" else "nion")
    found = values(source)
    assert found.pop("step_A") == (2.0, 3.0) and found == pytest.approx(EXPECTED)
    assert {k for k, q in source.header.metadata.items() if not q.trusted} == {"defocus_A", "rotation_deg", "adu_per_electron"}
    assert source.header.metadata["voltage_kV"].source == f"{name}: instrument.high_tension"
    np.testing.assert_array_equal(source.read(np.array([19, 3, 4, 5])), patterns.reshape(-1, 6, 7)[[19, 3, 4, 5]])
    source.close()


def test_a_compressed_ndata(patterns, tmp_path: Path):
    source = opened(write_ndata(tmp_path / "a.ndata", patterns, compression=zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(source.read(np.arange(20)), patterns.reshape(-1, 6, 7))


@pytest.mark.parametrize("name", WRITERS)
def test_a_list_of_patterns(patterns, tmp_path: Path, name):
    source = opened(WRITERS[name](tmp_path / name, patterns[0]))
    assert source.header.scan_shape is None and source.header.n_frames == 5 and values(source) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("name", ["a.ndata", "a.h5"])
def test_spectra_are_refused(patterns, tmp_path: Path, name):
    with pytest.raises(DataError, match="1 axes for each point"):
        opened(WRITERS[name](tmp_path / name, patterns, {**properties(), "datum_dimension_count": 1}))


@pytest.mark.parametrize("wrap", [lambda p: {"data_source": p}, lambda p: {"data_sources": [p]}])
def test_older_properties(patterns, tmp_path: Path, wrap):
    said = {**properties(), "metadata": {"hardware_source": {"autostem": {"high_tension_v": 100000}}}}
    found = values(opened(write_nion_h5(tmp_path / "a.h5", patterns, wrap(said))))
    assert found == {"step_A": (2, 3), "pixel_mrad": 0.5, "voltage_kV": 100}


@pytest.mark.parametrize(
    "said",
    [{}, [], {"dimensional_calibrations": 3, "metadata": []}, {"dimensional_calibrations": [{}, 1, None, {"scale": "x", "units": 3}]},
     {"dimensional_calibrations": [{"scale": 0, "units": "nm"}] * 4, "data_sources": [[]], "datum_dimension_count": "x"},
     {"metadata": {"instrument": {"high_tension": 10**400, "defocus": float("nan"), "convergence_angle": -1}}}],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.ndata", "a.h5"])
def test_useless_properties(patterns, tmp_path: Path, said, name):
    assert values(opened(WRITERS[name](tmp_path / name, patterns, said))) == {}


def test_text_that_is_no_json(patterns, tmp_path: Path):
    path = write_nion_h5(tmp_path / "a.h5", patterns)
    for text in ("[" * 100_000, "{", b"\xff\xfe", 3):
        with h5py.File(path, "a") as file:
            file["data"].attrs["properties"] = text[:60_000] if isinstance(text, str) else text
        assert values(opened(path)) == {}


def test_several_items(patterns, tmp_path: Path):
    path = write_nhdf(tmp_path / "a.nhdf", patterns, patterns[0], patterns[0, 0])
    assert opened(path).header.scan_shape == (4, 5)
    assert opened(path, "data/1").header.n_frames == 5
    path = write_nhdf(tmp_path / "a.nhdf", patterns, patterns)
    with pytest.raises(DataError, match="which item"):
        opened(path)
    with pytest.raises(DataError, match="no item of 3 or 4"):
        opened(write_nhdf(tmp_path / "a.nhdf", patterns[0, 0]))


def test_ndata_has_no_datasets(patterns, tmp_path: Path):
    path = write_ndata(tmp_path / "a.ndata", patterns)
    with pytest.raises(DataError, match="remove ::data"):
        opened(path, "data")
    with zipfile.ZipFile(tmp_path / "b.ndata", "w") as archive:
        archive.writestr("other.npy", b"")
    with pytest.raises(DataError, match=r"b\.ndata"):
        opened(tmp_path / "b.ndata")


def test_truncated_ndata(patterns, tmp_path: Path):
    content = write_ndata(tmp_path / "a.ndata", patterns).read_bytes()
    for length in [*range(0, 300, 7), *range(300, len(content), 97)]:
        (tmp_path / "b.ndata").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"b\.ndata"):
            opened(tmp_path / "b.ndata")
