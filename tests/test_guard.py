"""Files that make the HDF5 library loop or take all memory end in a child process; others cost one process and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import environment, run

import ptycho
from ptycho.errors import DataError
from ptycho.io import guard, read
from ptycho.io.guard import check_in_child
from ptycho.io.options import Options


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """An HDF5 file with a text in which the library goes round for ever: an object of no length and no number in its heap of texts."""
    path = tmp_path / "endless.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.random.default_rng(0).poisson(3, (4, 4, 16, 16)).astype("u2")
        file["data"].attrs["units"] = "electrons"
    raw = bytearray(path.read_bytes())
    first = raw.index(b"GCOL") + 16  # behind the heap's header
    raw[first : first + 16] = bytes(16)
    path.write_bytes(raw)
    return path


def test_a_file_that_never_ends(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_SECONDS", 3.0)
    began = time.monotonic()
    with pytest.raises(DataError, match="does not come to an end; the file is damaged"):
        read(endless)
    assert time.monotonic() - began < 30
    ran = run("info", endless)
    assert ran.code == 4 and ran.err.count("\n") == 1 and "endless.h5" in ran.err


def test_the_childs_reason_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match=r"^a\.h5: not an HDF5 file") as error:
        check_in_child(Path("a.h5"), "hdf5", Options())
    assert "\n" not in str(error.value)


def test_memory_is_limited(tmp_path: Path) -> None:
    """A chunk of 240 MB in a file of a few kB: allowed, but not in a child that may have less."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (4, 4, 16384, 7680), "u1", chunks=(1, 1, 16384, 7680), compression="gzip")
        data[0, 0] = 1
    words = "import sys; from ptycho.io import guard; guard._MEMORY_BYTES = 300 << 20; sys.exit(guard._main(sys.argv[1], 'hdf5', '', ''))"
    command = [sys.executable, "-c", words, str(tmp_path / "a.h5")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 4 and done.stdout.count("\n") == 1 and "a.h5" in done.stdout


def test_nothing_of_the_current_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_patterns) -> None:
    ptycho.write_hdf5(tmp_path / "a.h5", disk_patterns)
    for name in ("h5py", "numpy", "ptycho", "json"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    assert read("a.h5").scan_shape == (6, 8) and not Path("ran").exists()
