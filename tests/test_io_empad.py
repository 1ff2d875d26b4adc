"""EMPAD raw and XML: the real layout, both dialects, broken files, and what is written is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ptycho.errors import DataError, OutputError
from ptycho.io import open_source, read, write_empad
from ptycho.io.empad import FRAME_BYTES, typical_adu_per_electron
from ptycho.io.empad_xml import read_xml
from ptycho.io.gain import find_adu_per_electron

XML = '<root name="a"><raw_file filename="{}"/><exposure_time>1</exposure_time></root>'


@pytest.fixture
def counts():
    """Electrons (6, 8, 128, 128) of a disk, few outside."""
    y, x = np.indices((128, 128)) - 64
    return np.random.default_rng(2).poisson(np.where(np.hypot(y, x) < 20, 3.0, 0.02), (6, 8, 128, 128)).astype(np.float32)


@pytest.fixture
def raw(counts, tmp_path: Path) -> Path:
    return write_empad(tmp_path / "scan_x8_y6.raw", counts, adu_per_electron=148, voltage_kV=80, step_A=0.7, camera_length_m=0.3, rotation_deg=30)


@pytest.fixture
def bare(raw: Path) -> Path:
    """The raw file without its XML."""
    raw.with_suffix(".xml").unlink()
    return raw


def test_what_is_written_is_read(raw: Path, counts):
    assert raw.stat().st_size == 48 * FRAME_BYTES
    for path in (raw, raw.with_suffix(".xml")):
        data = read(path, semiangle_mrad=20)
        np.testing.assert_array_equal(data.patterns().reshape(counts.shape), counts)
        assert data.scan_shape == (6, 8)
        values = {name: data.calibration[name].value for name in ("voltage_kV", "camera_length_m", "exposure_ms", "adu_per_electron", "rotation_deg")}
        assert values == pytest.approx({"voltage_kV": 80, "camera_length_m": 0.3, "exposure_ms": 1, "adu_per_electron": 148, "rotation_deg": 0})
        assert data.calibration["step_A"].value == pytest.approx((0.7, 0.7)) and not data.calibration["step_A"].trusted
        assert data.source.header.metadata["rotation_deg"].value == pytest.approx(30)
        assert any("rotation of 30.00" in w for w in data.warnings)
    assert not list(raw.parent.glob(".*"))


def test_rows_are_stored_upside_down(raw: Path, counts):
    stored = np.fromfile(raw, "<f4").reshape(48, 130, 128)
    np.testing.assert_array_equal(stored[:, :128], counts.reshape(48, 128, 128)[:, ::-1] * 148)
    data = read(raw)
    assert data.preparation.flip_rows and data.calibration["flip_rows"].source == "default: EMPAD stores rows upside down"
    np.testing.assert_array_equal(read(raw, flip_rows=False, centre="none").patterns([0])[0], counts[0, 0, ::-1])


def test_lines_can_be_written_one_by_one(counts, tmp_path: Path, raw: Path):
    again = (
        write_empad(tmp_path / "b" / ".." / "again.raw", (line for line in counts), adu_per_electron=148) if (tmp_path / "b").mkdir() is None else raw
    )
    assert again.read_bytes() == raw.read_bytes()


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, counts):
    with pytest.raises(OutputError, match="128 x 128"):
        write_empad(tmp_path / "a.raw", counts[..., :64])
    with pytest.raises(OutputError, match="cannot be written"):
        write_empad(tmp_path / "none" / "a.raw", counts)
    assert not list(tmp_path.iterdir())


def test_ws2(test_data: Path):
    for name in ("scan_x48_y48.raw", "ws2.xml"):
        data = read(test_data / "ws2_empad" / name, semiangle_mrad=24.9, step_A=0.7, defocus_A=350)
        assert data.scan_shape == (48, 48) and data.pattern_shape == (128, 128)
        assert data.calibration["voltage_kV"].value == 80 and data.calibration["voltage_kV"].source == "ws2.xml: iom_measurements/high_voltage"
        assert data.calibration["adu_per_electron"].value == pytest.approx(148, rel=0.02)
    assert data.survey().mean_electrons == pytest.approx(0.7**2 * 1e4, rel=0.01)
    assert data.geometry.pixel_invA == pytest.approx(1 / 30, rel=0.003)
    assert data.geometry.defocus_A == 350
    assert data.centre() == pytest.approx((64, 64), abs=0.05)
    assert data.warnings == []


def test_a_user_value_wins_and_a_contradiction_is_told(raw: Path):
    data = read(raw, voltage_kV=200, step_A=(0.7, 0.71))
    used = data.calibration["voltage_kV"]
    assert used.value == 200 and used.source == "user (scan_x8_y6.xml: iom_measurements/high_voltage says 80 kV)"
    assert any("voltage_kV = 200 kV is used" in w and "80 kV" in w for w in data.warnings)
    assert not any("step_A" in w for w in data.warnings)


def test_real_xml_files(test_data: Path):
    folder = test_data / "formats" / "empad_xml"
    old = read_xml(folder / "map4x4.xml")
    assert (old.raw_name, old.kind, old.shapes[0]) == ("scan_x4_y4.raw", "scan", (4, 4))
    assert old.metadata["voltage_kV"].value == 300 and old.metadata["camera_length_m"].value == 0.7225
    assert old.metadata["pixel_mrad"].value == pytest.approx(0.429066, rel=1e-5)
    assert old.field_of_view_A == pytest.approx((45663.43, 45663.43), rel=1e-5)
    new = read_xml(folder / "EMPAD_v1.2.2_x32_y64_size0.8.xml")
    assert (new.raw_name, new.shapes, new.metadata["voltage_kV"].value) == ("scan_x32_y64.raw", [(64, 32), (64, 32)], 300)
    assert new.field_of_view_A == pytest.approx((1.272412341559544e4 / 0.72,) * 2)
    series = read_xml(folder / "stack_images.xml")
    assert (series.kind, series.count, series.raw_name) == ("series", 10, "series_x10.raw")
    ws2 = read_xml(test_data / "ws2_empad" / "ws2.xml")
    assert ws2.metadata["exposure_ms"].value == 1


def test_real_xml_with_a_raw_of_its_size(test_data: Path, tmp_path: Path):
    for name, raw_name, frames, shape in [("map4x4.xml", "scan_x4_y4.raw", 16, (4, 4)), ("stack_images.xml", "series_x10.raw", 10, None)]:
        shutil.copyfile(test_data / "formats" / "empad_xml" / name, tmp_path / name)
        (tmp_path / raw_name).write_bytes(bytes(frames * FRAME_BYTES))
        source = open_source(tmp_path / name)
        assert (source.header.scan_shape, source.header.n_frames) == (shape, frames)
    with pytest.raises(DataError, match="2 x 5"):
        read(tmp_path / "series_x10.raw")


def test_opening_a_large_file_reads_nothing(tmp_path: Path, monkeypatch):
    path = tmp_path / "scan_x250_y250.raw"
    with open(path, "wb") as file:
        file.truncate(62500 * FRAME_BYTES)
    with monkeypatch.context() as patch:
        patch.setattr("ptycho.io.source.FileIO", None)  # any read would fail
        assert open_source(path).header.scan_shape == (250, 250)
        data = read(path, adu_per_electron=148, centre="none")
    assert data.patterns([62499]).shape == (1, 128, 128)


def test_a_scan_cut_in_a_frame_uses_whole_lines(bare: Path, counts):
    with open(bare, "r+b") as file:
        file.truncate(29 * FRAME_BYTES + 1000)
    for shape in (None, (6, 8)):
        data = read(bare, scan_shape=shape)
        assert data.scan_shape == (3, 8)
        np.testing.assert_array_equal(data.patterns().reshape(3, 8, 128, 128), counts[:3])
        assert any("1000 bytes after the last whole frame" in w for w in data.warnings) and any("3 whole scan lines" in w for w in data.warnings)


def test_one_byte_too_many(bare: Path, counts):
    with open(bare, "ab") as file:
        file.write(b"x")
    data = read(bare)
    np.testing.assert_array_equal(data.patterns().reshape(counts.shape), counts)
    assert any("1 bytes after" in w for w in data.warnings)


def test_a_file_that_shrinks_while_open_is_an_error(bare: Path):
    data = read(bare, adu_per_electron=1)
    with open(bare, "r+b") as file:
        file.truncate(10 * FRAME_BYTES + 40)
    with pytest.raises(DataError, match=f"ends at byte {10 * FRAME_BYTES + 40}, in frame 10"):
        data.patterns()


def test_shape_from_the_name_a_square_or_the_user(bare: Path, tmp_path: Path):
    other = bare.rename(tmp_path / "other.raw")
    with pytest.raises(DataError, match=r"48 frames is not known.*6 x 8, 8 x 6"):
        read(other)
    assert read(other, scan_shape=(4, 12)).scan_shape == (4, 12)
    with pytest.raises(DataError, match="7 x 7 needs 49 frames, the file has 48; 48 frames are 6 x 8"):
        read(other, scan_shape=(7, 7))
    data = read(other, scan_shape=(5, 8))
    assert data.n_positions == 40 and any("first 40 of 48" in w for w in data.warnings)
    other.write_bytes(other.read_bytes()[: 36 * FRAME_BYTES])
    data = read(other)
    assert data.scan_shape == (6, 6) and any("guess from 36 frames" in w for w in data.warnings)


def test_a_wrong_shape_for_a_complete_scan_is_an_error(bare: Path):
    with pytest.raises(DataError, match="by the file 6 x 8"):
        read(bare, scan_shape=(5, 12))


def test_xml_of_another_raw(bare: Path, tmp_path: Path):
    xml = tmp_path / "acquisition.xml"
    xml.write_text(XML.format("lost.raw"))
    assert any("acquisition.xml is not used: it names lost.raw" in w for w in read(bare).warnings)
    with pytest.raises(DataError, match=r"acquisition.xml: it names 'lost.raw'"):
        read(xml)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE root [<!ENTITY a "b">]>' + XML.format("scan_x8_y6.raw"), "DOCTYPE"),
        ("<root><raw_file", "not an EMPAD XML"),
        ("<html/>", "<html>"),
        (XML.format("../../etc/passwd"), "plain file name"),
        (XML.format(""), "plain file name"),
        ("<root" + " " * (1 << 20) + "/>", "1048576 bytes"),
        ("<a>" * 100000, "not an EMPAD XML"),
    ],
)
def test_hostile_xml(bare: Path, text, message):
    xml = bare.with_suffix(".xml")
    xml.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read(xml)
    assert "\n" not in str(error.value)
    data = read(bare)  # the raw is still good; the XML of its own name is mentioned
    assert any(message in w for w in data.warnings)


def test_impossible_values_of_the_file_are_left_out(bare: Path):
    measured = "<iom_measurements><high_voltage>0.0</high_voltage><nominal_camera_length>None</nominal_camera_length></iom_measurements>"
    bare.with_suffix(".xml").write_text(XML.format(bare.name).replace("</root>", measured + "</root>"))
    data = read(bare)
    assert "voltage_kV" not in data.calibration and "camera_length_m" not in data.calibration
    assert any("voltage_kV = 0.0" in w for w in data.warnings)


def test_not_an_empad_file(tmp_path: Path):
    (tmp_path / "a.raw").write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(DataError, match="100 bytes are less than one EMPAD frame of 66560 bytes"):
        read(tmp_path / "a.raw")
    (tmp_path / "b.raw").write_bytes(np.random.default_rng(0).bytes(16 * FRAME_BYTES))
    with pytest.raises(DataError):
        read(tmp_path / "b.raw").survey()


def test_gain_from_single_electrons():
    rng = np.random.default_rng(5)
    y, x = np.indices((64, 64)) - 32
    electrons = rng.poisson(np.where(np.hypot(y, x) < 10, 4.0, 0.01), (100, 64, 64))
    share = 0.12  # of its charge goes to the next pixel
    charge = electrons * (1 - share) + share * np.roll(electrons, 1, axis=2)
    analogue = 580 * charge * rng.normal(1, 0.03, charge.shape) + rng.normal(0, 6, charge.shape)
    found = find_adu_per_electron(analogue.astype(np.float32))
    assert found is not None and found[0] == pytest.approx(580, rel=0.02)


def test_gain_of_a_file_that_does_not_show_it(tmp_path: Path):
    smooth = np.random.default_rng(0).uniform(500, 3000, (2, 3, 128, 128)).astype(np.float32)
    data = read(write_empad(tmp_path / "a.raw", smooth, voltage_kV=300))
    gain = data.calibration["adu_per_electron"]
    assert gain.value == typical_adu_per_electron(300) == 579 and not gain.trusted
    assert any("typical of an EMPAD at 300 kV" in w for w in data.warnings)
