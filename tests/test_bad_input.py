"""Bad input: one line on stderr with the remedy, the right exit code, nothing written; or a warning and a finite result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import GIVEN, Ran, run, shell, write_npy, write_raw
from numpy.typing import NDArray

import ptycho
from ptycho.io.empad import FRAME_BYTES

Patterns = NDArray[np.float32]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, so that everything that is written is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def assert_refused(ran: Ran, code: int, *said: str) -> None:
    assert ran.code == code, ran.err
    assert ran.err.startswith("ptycho: error: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err and "bug" not in ran.err
    for text in said:
        assert text in ran.err, ran.err


# Files that cannot be used: name, content or what makes it, what the error says


def missing(path: Path, patterns: Patterns) -> None: ...


def folder(path: Path, patterns: Patterns) -> None:
    path.mkdir()


def empty(path: Path, patterns: Patterns) -> None:
    path.touch()


def random_bytes(path: Path, patterns: Patterns) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(100))


def only_tables(path: Path, patterns: Patterns) -> None:
    with h5py.File(path, "w") as file:
        file["table"] = np.zeros((3, 2))


def two_stacks(path: Path, patterns: Patterns) -> None:
    with h5py.File(path, "w") as file:
        file["first"] = file["second"] = patterns
        del file["second"]
        file["second"] = patterns


def cut_hdf5(path: Path, patterns: Patterns) -> None:
    ptycho.write_hdf5(path, patterns)
    path.write_bytes(path.read_bytes()[:-500])


def objects(path: Path, patterns: Patterns) -> None:
    np.save(path, np.array([{}, []], dtype=object), allow_pickle=True)


def cut_npy(path: Path, patterns: Patterns) -> None:
    write_npy(path.parent, patterns, path.name)
    path.write_bytes(path.read_bytes()[:-100])


def all_nan(path: Path, patterns: Patterns) -> None:
    write_npy(path.parent, np.full_like(patterns, np.nan), path.name)


def all_zero(path: Path, patterns: Patterns) -> None:
    write_npy(path.parent, patterns * 0, path.name)


def flat(path: Path, patterns: Patterns) -> None:
    write_npy(path.parent, patterns[0, 0], path.name)


def many_damaged(path: Path, patterns: Patterns) -> None:
    patterns = patterns.copy()
    patterns[:2] = np.nan
    write_npy(path.parent, patterns, path.name)


def other_raw(path: Path, patterns: Patterns) -> None:
    write_raw(path.parent, patterns).rename(path.parent / "elsewhere.raw")
    path.with_name("scan_x8_y6.xml").rename(path)


def doctype(path: Path, patterns: Patterns) -> None:
    path.write_text('<!DOCTYPE root [<!ENTITY a "b">]><root><raw_file filename="scan.raw"/></root>')


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("scan.raw", missing, "no such file"),
        ("scan.h5", missing, "no such file"),
        ("scan.npy", folder, "no patterns in this folder"),
        ("scan.raw", empty, "the file is empty"),
        ("scan.h5", empty, "the file is empty"),
        ("scan.raw", random_bytes, "100 bytes are less than one EMPAD frame"),
        ("scan.h5", random_bytes, "not an HDF5 file"),
        ("scan.npy", random_bytes, "not a NumPy file"),
        ("scan.npz", random_bytes, "not an .npz file"),
        ("scan.xml", random_bytes, "not an EMPAD XML"),
        ("scan.dat", random_bytes, "give [data.layout] dtype"),
        ("scan.xml", other_raw, "it names 'scan_x8_y6.raw', which is not beside it; put the two together"),
        ("scan.xml", doctype, "XML with a DOCTYPE"),
        ("scan.h5", only_tables, "there is no dataset of 3 or 4 axes; the file has table (3, 2) float64"),
        ("scan.h5", two_stacks, "write scan.h5::NAME"),
        ("scan.h5", cut_hdf5, "is it complete"),
        ("scan.npy", objects, "type object cannot be diffraction patterns"),
        ("scan.npy", cut_npy, "has it been cut?"),
        ("scan.npy", flat, "(scan_y, scan_x, ky, kx) or (n, ky, kx) is needed"),
    ],
)
def test_unusable_file(here: Path, disk_patterns: Patterns, name: str, make: Callable[[Path, Patterns], None], said: str) -> None:
    make(here / name, disk_patterns)
    before = files(here)
    assert_refused(run("reconstruct", name, *GIVEN), 4, name, said)
    assert_refused(run("info", name), 4, name, said)
    assert files(here) == before  # no run folder, no log, nothing beside the data


@pytest.mark.parametrize(
    ("make", "said"), [(all_nan, "no pixel is usable"), (all_zero, "all pixels are 0"), (many_damaged, "16 of 48 patterns are damaged")]
)
def test_unusable_patterns(here: Path, disk_patterns: Patterns, make: Callable[[Path, Patterns], None], said: str) -> None:
    """What the file is can be told all the same."""
    make(here / "scan.npy", disk_patterns)
    assert_refused(run("reconstruct", "scan.npy", *GIVEN), 4, "scan.npy", said)
    told = run("info", "scan.npy")
    assert told.code == 0 and said in told.out and "scan 6 x 8" in told.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--voltage-kV", "80000"], 3, ["microscope.voltage_kV = 80000", "is in V? write 80"]),
        (["--voltage-kV", "-80"], 3, ["microscope.voltage_kV = -80", "must be from 1 to 3000 kV"]),
        (["--voltage-kV", "nan"], 3, ["microscope.voltage_kV", "number"]),
        (["--step-A", "0"], 3, ["scan.step_A = 0", "more than 0"]),
        (["--step-A", "1,2,3"], 3, ["scan.step_A", "2 values"]),
        (["--semiangle-mrad", "0"], 3, ["microscope.semiangle_mrad = 0", "mrad"]),
        (["--semiangle-mrad", "1e400"], 3, ["microscope.semiangle_mrad", "finite number"]),
        (["--semiangle-mrad", "190", "--pixel-invA", "0.08"], 4, ["semiangle_mrad = 190", "larger than the pattern of 32 x 32 px"]),
        (["--defocus-A", "4000"], 3, ["the probe is", "the window", "check defocus_A"]),
        (["--scan-shape", "7,9"], 4, ["needs 63 frames, the file has 48", "6 x 8"]),
        (["--scan-shape", "0,8"], 3, ["scan.shape = 0", "at least 1"]),
        (["--scan-shape", "48"], 3, ["scan.shape = 48", "list"]),
        (["--bin", "5"], 3, ["data.bin = 5 does not divide"]),
        (["--adu-per-electron", "0"], 3, ["data.adu_per_electron = 0", "more than 0"]),
        (["--probe-modes", "0"], 3, ["probe_modes = 0", "at least 1"]),
        (["--slices", "2", "--slice-thickness-A", "-3"], 3, ["slice_thickness_A = -3", "positive"]),
        (["--epochs", "0"], 3, ["epochs = 0", "at least 1"]),
        (["--solver", "magic"], 3, ['solve.0.kind: found "magic"', '"gradient", "epie", "mixed_state"']),
        (["--set", "model.slces=4"], 3, ['model.slces: unknown key; did you mean "slices"?']),
        (["--set", "model.slices=four"], 3, ['model.slices = "four": a whole number is needed']),
        (["--set", "data.mask=none.npy"], 4, ["none.npy", "no such file"]),
        (["--set", "scan.positions_file=none.csv"], 4, ["none.csv", "no such file"]),
        (["--set", "model.probe_file=none"], 4, ["none", "no such file"]),
        (["--set", "data.format=bmp"], 3, ["data.format = 'bmp'", "empad, empad_g2"]),
        (["--set", "oops"], 3, ['--set "oops"', "section.key=value"]),
        (["-o", "scan.npy"], 5, ["scan.npy", "this is a file", "-o"]),
        (["-o", "scan.npy/run"], 5, ["scan.npy is a file", "-o"]),
        (["-o", "full"], 5, ["full: the folder is not empty", "--fresh"]),
        (["-o", ".", "--fresh"], 5, ["--fresh would move scan.npy aside"]),
    ],
)
def test_bad_value(here: Path, disk_patterns: Patterns, words: list[str], code: int, said: list[str]) -> None:
    write_npy(here, disk_patterns)
    (here / "full").mkdir()
    (here / "full" / "result.h5").write_bytes(b"of last year")
    before = files(here)
    assert_refused(run("reconstruct", "scan.npy", *GIVEN, *words), code, *said)
    assert files(here) == before


def test_missing_values_are_named_with_their_flags(here: Path, disk_patterns: Patterns) -> None:
    write_npy(here, disk_patterns)
    ran = run("reconstruct", "scan.npy")
    assert_refused(ran, 4, "voltage_kV, semiangle_mrad, step_A are not in the file", "[microscope] voltage_kV = ...", "--step-A ...")
    assert list(files(here)) == ["scan.npy"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write, root included")
def test_output_that_cannot_be_written(here: Path, disk_patterns: Patterns) -> None:
    write_npy(here, disk_patterns)
    assert_refused(run("reconstruct", "scan.npy", *GIVEN, "-o", "/proc/run"), 5, "/proc/run", "-o")


def test_no_permission(here: Path, disk_patterns: Patterns, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npy(here, disk_patterns)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere, and tests often run as root
    assert_refused(run("reconstruct", "scan.npy", *GIVEN, "-o", "run"), 5, "run", "cannot be written", "-o")
    assert list(files(here)) == ["scan.npy"]


# Files that are usable in part: a warning, and a result that is finite


@pytest.mark.parametrize(
    ("change", "scan", "said"),
    [
        (-FRAME_BYTES // 2, (5, 8), ["after the last whole frame", "5 whole scan lines are used"]),
        (-9 * FRAME_BYTES, (4, 8), ["39 frames for a scan of 6 x 8: 4 whole scan lines"]),
        (1, (6, 8), ["1 bytes after the last whole frame"]),
    ],
)
def test_empad_of_another_length(here: Path, disk_patterns: Patterns, change: int, scan: tuple[int, int], said: list[str]) -> None:
    raw = write_raw(here, disk_patterns)
    os.truncate(raw, raw.stat().st_size + change)
    ran = run("reconstruct", raw, *GIVEN, "--set", "data.detector_crop=[48, 80, 48, 80]", "-o", "run")
    assert ran.code == 0, ran.err
    assert all(any(line.startswith("warning: ") and text in line for line in ran.err.splitlines()) for text in said), ran.err
    assert len(ptycho.load("run").positions_A) == scan[0] * scan[1]
    assert f"scan {scan[0]} x {scan[1]}" in run("info", raw).out


def test_xml_with_a_doctype_beside_the_raw(here: Path, disk_patterns: Patterns) -> None:
    raw = write_raw(here, disk_patterns)
    doctype(raw.with_suffix(".xml"), disk_patterns)
    ran = run("reconstruct", raw, *GIVEN, "--set", "data.detector_crop=[48, 80, 48, 80]", "-o", "run")
    assert ran.code == 0 and "warning: " in ran.err and "DOCTYPE" in ran.err


def test_xml_of_another_scan_beside_the_raw(here: Path, disk_patterns: Patterns) -> None:
    write_raw(here, disk_patterns).rename(here / "mine_x8_y6.raw")
    ran = run("info", "mine_x8_y6.raw")
    assert ran.code == 0 and "scan_x8_y6.xml is not used: it names scan_x8_y6.raw" in ran.out
    assert "voltage_kV" in ran.out.partition("Missing")[2]


def test_bad_pixels_are_left_out_and_counted(here: Path, disk_patterns: Patterns) -> None:
    patterns = disk_patterns.copy()
    patterns[:, :, 3, 4] = 5000  # hot
    patterns[:, :, 16, 15] = 0  # dead
    patterns[1, 2, 5:7, 5] = np.nan
    patterns[2, 2, 7, 7] = -np.inf
    patterns[3, 1, 8, 9] = -50
    patterns[4, 4] = 0  # a pattern without beam
    write_npy(here, patterns)
    counted = ["1 hot pixel masked", "1 dead pixel masked", "3 values are NaN", "1 value is below -1 electron", "1 of 48 patterns are damaged"]
    ran = run("reconstruct", "scan.npy", *GIVEN, "-o", "run", "--probe-modes", "2")
    assert ran.code == 0, ran.err
    assert all(text in ran.err for text in counted), ran.err
    assert ran.err.count("hot pixel") == 1
    result = ptycho.load("run")
    assert len(result.positions_A) == 47
    for array in (result.phase, result.amplitude, result.probe, result.positions_A, result.aberrations.values()):
        assert np.isfinite(np.array(list(array))).all()
    told = run("info", "scan.npy")
    assert told.code == 0 and all(text in told.out for text in counted)
    assert "1 hot pixels, 1 dead pixels, 1 damaged patterns, 3 values not finite, 1 values below -1 electron" in told.out
    # The recipe that is left speaks of the whole scan and gives the same again.
    assert run("reconstruct", "run/recipe.toml", "-o", "again").code == 0
    np.testing.assert_array_equal(ptycho.load("again").phase, result.phase)


# The same from a shell


def test_from_a_shell(here: Path, disk_patterns: Patterns) -> None:
    (here / "recipe.toml").write_text('[data]\npath = "scan.npy"\n[model]\nslces = 4\n')
    assert_refused(shell("reconstruct", "recipe.toml"), 3, "recipe.toml: model.slces: unknown key")
    assert_refused(shell("info", "nothing.raw"), 4, "nothing.raw: no such file")
    assert_refused(shell("reconstruct"), 2, "ptycho reconstruct --help")
    assert list(files(here)) == ["recipe.toml"]
