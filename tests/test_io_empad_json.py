"""The JSON beside an EMPAD raw: a real one, its units, which one belongs to a raw file, and what cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ptycho.errors import DataError
from ptycho.geometry import raster_positions_A
from ptycho.io.empad import open_empad, write_empad
from ptycho.io.empad_g2 import open_empad_combined
from ptycho.io.empad_json import read_json
from ptycho.io.options import Options

#: Published in the tests of another program as written at a microscope, unedited.
REAL = """
{"adu": 580.0, "author": null, "beam_current": 3e-11, "bg_unix": 1787698869.291719, "camera_length": 0.4575, "conv_angle": 25.0,
 "crop": null, "defocus": 1e-08, "det_flips": [true, false, false], "det_rotation": 0.0, "diff_step": 0.6718065573770492,
 "empad_version": 1, "exposure_time": 0.001, "file_type": "empad_metadata", "has_bg": true, "name": "acquisition_7", "notes": null,
 "orig_path": "/home/empad/empad_projects/20260824/acquisition_7", "post_exposure_time": 0.0, "raw_filename": "scan_x128_y128.raw",
 "scan_correction": null, "scan_fov": [6.778247519042817e-09, 6.778247519042817e-09], "scan_positions": null, "scan_rotation": 0.0,
 "scan_shape": [128, 128], "scan_step": [5.2955058742522006e-11, 5.2955058742522006e-11], "time": "2026-08-25T19:27:16.325168",
 "time_unix": 1787700436.325168, "version": "2.0", "voltage": 300000.0}
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Six lines of eight points, with its XML."""
    patterns = np.random.default_rng(1).poisson(2.0, (6, 8, 128, 128))
    return write_empad(tmp_path / "scan_x8_y6.raw", patterns, adu_per_electron=148, voltage_kV=80, step_A=0.7, camera_length_m=0.3, exposure_ms=2)


def fields(**changes) -> dict:
    given = {"raw_filename": "scan_x8_y6.raw", "scan_shape": [8, 6], "scan_step": [0.7e-10, 0.9e-10], "defocus": -350e-10, "voltage": 60000.0}
    return {**json.loads(REAL), **given, **changes}


def sidecar(raw: Path, name: str = "acquisition.json", **changes) -> Path:
    path = raw.with_name(name)
    path.write_text(json.dumps(fields(**changes)))
    return path


def values(path: Path) -> dict:
    return {name: quantity.value for name, quantity in open_empad(path, Options()).header.metadata.items()}


def test_a_real_file(tmp_path: Path):
    path = tmp_path / "acquisition_7.json"
    path.write_text(REAL)
    header = read_json(path)
    assert (header.raw_name, header.shapes, header.flips, header.positions_A) == ("scan_x128_y128.raw", [(128, 128)], (True, False, False), None)
    assert header.warnings == []
    expected = {
        "voltage_kV": 300, "semiangle_mrad": 25, "defocus_A": -100, "camera_length_m": 0.4575, "pixel_mrad": 0.6718065573770492,
        "rotation_deg": 0, "exposure_ms": 1, "beam_current_pA": 30, "adu_per_electron": 580, "step_A": (0.529550587425, 0.529550587425),
    }  # fmt: skip
    assert header.metadata.keys() == expected.keys()
    assert {name: header.metadata[name].value for name in expected} == {name: pytest.approx(value) for name, value in expected.items()}
    assert header.metadata["defocus_A"].source == "acquisition_7.json: defocus" and header.metadata["defocus_A"].unit == "Å"
    assert {name for name, quantity in header.metadata.items() if not quantity.trusted} == {"rotation_deg", "beam_current_pA"}


def test_its_values_win_over_the_xml_and_it_may_be_opened_itself(raw: Path):
    path = sidecar(raw)
    for opened in (raw, path, raw.with_suffix(".xml")):
        header = open_empad(opened, Options()).header
        assert (header.path, header.n_frames, header.scan_shape, header.warnings) == (raw, 48, (6, 8), [])
        found = {name: (quantity.value, quantity.source) for name, quantity in header.metadata.items()}
        assert found["voltage_kV"] == (60, "acquisition.json: voltage") and found["step_A"][0] == pytest.approx((0.9, 0.7))
        assert found["defocus_A"] == (pytest.approx(350), "acquisition.json: defocus") and found["scan_shape"] == ((6, 8), "acquisition.json")
    given = fields()
    for name in ("voltage", "scan_step", "exposure_time"):
        del given[name]
    path.write_text(json.dumps(given))
    found = values(raw)
    assert found["voltage_kV"] == 80 and found["exposure_ms"] == 2 and found["step_A"] == pytest.approx((0.7, 0.7))
    np.testing.assert_array_equal(open_empad(path, Options()).read(np.array([3])), open_empad(raw, Options()).read(np.array([3])))


def test_which_json_belongs_to_a_raw(raw: Path):
    sidecar(raw, "another.json", raw_filename="another.raw", voltage=200e3)
    raw.with_name("list.json").write_text("[1, 2]")
    raw.with_name("notes.json").write_text('{"raw_filename": "scan_x8_y6.raw"}')
    header = open_empad(raw, Options()).header
    assert header.metadata["voltage_kV"].value == 80 and header.warnings == []
    path = sidecar(raw, "scan_x8_y6.json", raw_filename="before_it_was_renamed.raw")
    header = open_empad(raw, Options()).header
    assert header.metadata["voltage_kV"].value == 60
    assert header.warnings == ["scan_x8_y6.json names 'before_it_was_renamed.raw' and is used for scan_x8_y6.raw, whose name it has"]
    path.write_text("{")
    header = open_empad(raw, Options()).header
    assert header.metadata["voltage_kV"].value == 80 and len(header.warnings) == 1 and "not the JSON of EMPAD metadata" in header.warnings[0]


def test_the_scan_shape_is_x_before_y(tmp_path: Path):
    patterns = np.ones((6, 8, 128, 128))
    raw = write_empad(tmp_path / "plain.raw", patterns)
    raw.with_suffix(".xml").unlink()
    sidecar(raw, raw_filename="plain.raw", scan_shape=[8, 6])
    assert open_empad(raw, Options()).header.scan_shape == (6, 8)
    sidecar(raw, raw_filename="plain.raw", scan_shape=[8, 7])
    header = open_empad(raw, Options()).header
    assert header.scan_shape == (6, 8) and any("48 frames for a scan of 7 x 8" in w for w in header.warnings)


def test_it_serves_the_second_generation_too(tmp_path: Path):
    raw = tmp_path / "scan.raw"
    raw.write_bytes(np.full((6, 128, 128), 3.0, "<f4").tobytes())
    path = sidecar(raw, raw_filename="scan.raw", scan_shape=[3, 2])
    for header in (open_empad(path, Options()).header, open_empad_combined(path, Options()).header):
        assert (header.format, header.scan_shape, header.metadata["voltage_kV"].value, header.flip_rows) == ("empad_combined", (2, 3), 60, True)


def test_orientation(raw: Path):
    sidecar(raw, det_flips=[False, True, True])
    header = open_empad(raw, Options()).header
    assert not header.flip_rows
    assert header.warnings == ["acquisition.json: its det_flips need [data] flip_columns = true and transpose = true, which is not applied"]
    sidecar(raw, det_flips=None)
    assert open_empad(raw, Options()).header.flip_rows


def test_the_rotation_is_that_of_phaser_in_our_sense(raw: Path):
    sidecar(raw, scan_rotation=30.0)
    ours = raster_positions_A((2, 3), (1.0, 1.0), values(raw)["rotation_deg"])
    # phaser: positions (y, x) are multiplied by [[cos, -sin], [sin, cos]].
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    np.testing.assert_allclose(ours, raster_positions_A((2, 3), (1.0, 1.0)) @ np.array([[c, -s], [s, c]]).T, atol=1e-12)


def test_positions_and_their_correction(raw: Path):
    points = np.random.default_rng(3).uniform(-1e-9, 1e-9, (48, 2))
    sidecar(raw, scan_positions=points.tolist(), scan_correction=[[1, 0.1], [0, 2]])
    header = open_empad(raw, Options()).header
    x, y = points.T * 1e10
    np.testing.assert_allclose(header.positions_A, np.stack([2 * y, x + 0.1 * y], axis=1))
    assert header.warnings == []
    sidecar(raw, scan_positions=points[:5].tolist())
    header = open_empad(raw, Options()).header
    assert header.positions_A is None and header.warnings == ["acquisition.json: 5 scan_positions for 48 frames are not used"]


def test_what_the_user_must_say_too(raw: Path):
    sidecar(raw, scan_correction=[[1.25, 0.5], [0.0, 2.0]], crop=[0, 4, 1, 7])
    warnings = open_empad(raw, Options()).header.warnings
    assert "acquisition.json: its scan_correction is not applied; give [scan] affine = [[2, 0], [0.5, 1.25]]" in warnings
    assert "acquisition.json: by its crop the scan is valid in [data] scan_region = [0, 4, 1, 7], which is not applied" in warnings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("voltage", "NaN"), ("voltage", "-Infinity"), ("voltage", '"80 kV"'), ("voltage", "true"), ("voltage", "[80000]"),
        ("voltage", "1" * 400), ("voltage", "{}"), ("defocus", "1e300"), ("defocus", "1e999"), ("scan_step", "[1e-10]"),
        ("scan_step", "[NaN, 1]"), ("scan_step", '["a", "b"]'), ("scan_step", "[[1], 2]"), ("scan_step", "[1, 1e305]"),
        ("scan_shape", "[8]"), ("scan_shape", "[8.0, 6]"), ("scan_shape", "[-8, 6]"), ("scan_shape", '"8x6"'), ("scan_shape", "[true, 48]"),
        ("det_flips", "[1, 0, 0]"), ("det_flips", "[true]"), ("scan_positions", "[[1, 2], [3]]"), ("scan_positions", "7"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_left_out(raw: Path, key: str, value: str):
    path = sidecar(raw)
    given = fields()
    given.pop(key)
    path.write_text(json.dumps(given)[:-1] + f', "{key}": {value}}}')
    header = open_empad(raw, Options()).header
    told = [w for w in header.warnings if f"acquisition.json: {key} = " in w]
    assert len(told) == 1 and len(told[0]) < 150 and header.scan_shape == (6, 8) and header.metadata["semiangle_mrad"].value == 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("{}", "it names no raw_filename"),
        ('["raw_filename"]', "a list, not named values"),
        ('{"raw_filename": "scan_x8_y6.raw"}', "file_type is None"),
        ('{"raw_filename": "scan_x8_y6.raw", "file_type": "empad_metadata", "version": "1.3"}', "version '1.3' may have other units"),
        ('{"raw_filename": 7, "file_type": "empad_metadata"}', "raw_filename = 7"),
        ('{"raw_filename": "../scan_x8_y6.raw", "file_type": "empad_metadata"}', "only a file in its own folder"),
        ('{"raw_filename": "C:\\\\scan.raw", "file_type": "empad_metadata"}', "only a file in its own folder"),
        ('{"raw_filename": "lost.raw", "file_type": "empad_metadata"}', "it names 'lost.raw', which is not beside it"),
        ('{"raw_filename": "it.json", "file_type": "empad_metadata"}', "as its data"),
        ('{"raw_filename": ' + "[" * 100_000, "not the JSON of EMPAD metadata"),
        ('{"raw_filename": ' + "9" * 10_000 + "}", "not the JSON of EMPAD metadata"),
        ('{"raw_filename": "\udcff"}', "not the JSON of EMPAD metadata"),
        ('{"raw_filename": "' + " " * (4 << 20) + '"}', "more than 4194304 bytes"),
    ],
)
def test_what_is_no_metadata(raw: Path, text: str, message: str):
    path = raw.with_name("it.json")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as error:
        open_empad(path, Options())
    assert "\n" not in str(error.value) and len(str(error.value)) < 250 + len(str(path)) and str(error.value).startswith(str(path))
    assert open_empad(raw, Options()).header.scan_shape == (6, 8)


def test_a_link_out_of_the_folder_is_not_followed(raw: Path, tmp_path: Path):
    inner = tmp_path / "inner"
    inner.mkdir()
    os.symlink(raw, inner / "scan_x8_y6.raw")
    with pytest.raises(DataError, match="leads out of its folder"):
        open_empad(sidecar(inner / "x.raw"), Options())


def test_damage_anywhere_is_told_or_harmless(raw: Path):
    rng = np.random.default_rng(4)
    path = sidecar(raw)
    good = path.read_bytes()
    for cut in range(0, len(good), 7):
        path.write_bytes(good[:cut] or b" ")
        with pytest.raises(DataError):
            read_json(path)
    for _ in range(300):
        data = bytearray(good)
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        assert open_empad(raw, Options()).header.n_frames == 48
