"""Conversion keeps patterns, calibration and gaps; what is written is read by us and by others."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from command import run

from ptycho.errors import OutputError
from ptycho.io import read, write_empad
from ptycho.io.convert import convert

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": (0.5, 0.6), "defocus_A": 300.0, "rotation_deg": 12.0, "pixel_invA": 0.04}


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i2", "f4"])
@pytest.mark.parametrize("factor", [1, 2])
def test_patterns_and_calibration_come_back(kind, factor, disk_patterns, tmp_path: Path):
    counts = disk_patterns.astype(kind)
    if kind == "f4":
        counts[1, 2, 3, 4] = np.nan
    elif kind != "u1":
        counts[1, 2, 3, 4] = np.iinfo(kind).max if kind[0] == "u" else -5
    data = read(counts, bin=factor, flip_columns=True, adu_per_electron=1, centre="none", **KNOWN)
    again = read(convert(data, tmp_path / "a.h5"), centre="none")
    np.testing.assert_array_equal(again.patterns(), data.patterns())
    assert again.scan_shape == (6, 8) and again.source.header.dtype.kind == ("u" if kind[0] == "u" else "f")
    values = {name: again.calibration[name].value for name in KNOWN}
    assert values == {**KNOWN, "pixel_invA": 0.04 * factor}
    assert again.calibration["adu_per_electron"].value == 1 and again.geometry.defocus_A == 300


def test_masked_pixels_stay_masked(disk_patterns, tmp_path: Path):
    disk_patterns[:, :, 2, 30] = 100  # hot
    mask = np.ones((32, 32), bool)
    mask[10, 10] = False
    data = read(disk_patterns, mask=mask, **KNOWN)
    again = read(convert(data, tmp_path / "a.h5"), centre="none")
    np.testing.assert_array_equal(again.mask, data.mask)
    assert not again.mask[2, 30] and not again.mask[10, 10]


def test_gaps_become_a_list_of_positions(disk_patterns, tmp_path: Path):
    data = read(disk_patterns, **KNOWN).without(np.array([5, 17]))
    again = read(convert(data, tmp_path / "a.h5"))
    assert again.n_positions == 46
    ours, theirs = data.geometry.positions_A, again.geometry.positions_A
    np.testing.assert_allclose(ours - ours.mean(0), theirs - theirs.mean(0), atol=1e-9)
    np.testing.assert_array_equal(again.patterns(), data.patterns())


def test_the_command(disk_patterns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    wide = np.pad(disk_patterns, ((0, 0), (0, 0), (48, 48), (48, 48)))
    write_empad(Path("scan_x8_y6.raw"), wide, adu_per_electron=148.0, voltage_kV=80.0, step_A=0.4)
    ran = run("convert", "scan_x8_y6.raw", "out.h5", "--set", "data.window=64", "--set", "microscope.semiangle_mrad=24.9")
    assert ran.code == 0 and "out.h5: 48 patterns of 64 x 64" in ran.out, ran.err
    told = run("info", "out.h5").out
    assert "80 kV" in told and "24.9 mrad" in told and "Missing" not in told
    assert run("convert", "scan_x8_y6.raw", "out.h5").code == 5  # it is there already
    assert run("convert", "scan_x8_y6.raw", "out.h5", "--overwrite").code == 0
    assert run("convert", "out.h5", "out.h5", "--overwrite").code == 5  # the file that is read
    assert run("convert", "scan_x8_y6.raw", "out.tif").code == 5
    assert run("convert", "none.raw", "new.h5").code == 4 and not Path("new.h5").exists()
    with h5py.File("out.h5") as file:
        assert dict(file.attrs)["emd_group_type"] == "file"


def test_a_failure_leaves_what_was_there(disk_patterns, tmp_path: Path):
    np.save(tmp_path / "a.npy", disk_patterns)
    data = read(tmp_path / "a.npy", **KNOWN)
    data.survey()
    path = tmp_path / "a.h5"
    path.write_text("older")
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(50_000)
    with pytest.raises(Exception, match="has it been cut"):
        convert(data, path)
    assert path.read_text() == "older" and sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "a.npy"]
    with pytest.raises(OutputError, match="cannot be written"):
        convert(read(disk_patterns, **KNOWN), tmp_path / "none" / "a.h5")
