"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real and simulated data sets: PTYCHO_TEST_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("PTYCHO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set PTYCHO_TEST_DATA")
    return folder


@pytest.fixture
def disk_patterns() -> NDArray[np.float32]:
    """Counts (6, 8, 32, 32) of a bright-field disk of 7.3 px radius about (16, 16), 20 electrons per pixel inside."""
    y, x = np.indices((32 * 8, 32 * 8)) / 8 - 16 + (0.5 / 8 - 0.5)  # 8 x 8 points in each pixel
    mean = 20.0 * (np.hypot(y, x) < 7.3).reshape(32, 8, 32, 8).mean((1, 3)) + 0.05
    return np.random.default_rng(1).poisson(mean, (6, 8, 32, 32)).astype(np.float32)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment of a Slurm with two nodes (n1, n2) of two cores, and the partitions low and high, of which high pre-empts.

    The program PTYCHO_TEST_SLURM (else ../shared/tools/slurm_local.sh beside the repository) fetches it, brings it up and takes it down.
    """
    program = Path(os.environ.get("PTYCHO_TEST_SLURM", Path(__file__).parents[2] / "shared" / "tools" / "slurm_local.sh"))
    if not program.is_file():
        pytest.skip(f"no Slurm to test with: {program} is no program that brings one up; set PTYCHO_TEST_SLURM")
    folder = tempfile.mkdtemp(prefix="ptycho-slurm-")  # a short name: sockets have no room for a long one

    def do(what: str) -> subprocess.CompletedProcess[str]:
        # Into files: the daemons would hold pipes open.
        with open(Path(folder) / what, "w+") as out, open(Path(folder) / f"{what}.err", "w+") as err:
            done = subprocess.run(["bash", str(program), what, folder], stdout=out, stderr=err, timeout=120)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())

    try:
        for what in ("fetch", "up"):
            done = do(what)
            if done.returncode != 0:
                pytest.skip(f"no Slurm to test with: {what}: {done.stderr.strip().splitlines()[-1:]}")
        exports = subprocess.run(["bash", "-c", f"{done.stdout}\nenv -0"], capture_output=True, text=True, check=True).stdout
        yield dict(line.split("=", 1) for line in exports.split("\0") if "=" in line)
    finally:
        do("down")
        shutil.rmtree(folder, ignore_errors=True)
