"""The command line inside the tests' own process: torch is imported once, and the real entry point is what runs."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import ptycho
from ptycho.cli import main

#: What the test scans (conftest's disk_patterns) do not know themselves. One step is a fifth of a probe.
GIVEN = ("--voltage-kV", "80", "--semiangle-mrad", "24.9", "--step-A", "0.4", "--defocus-A", "20", "--epochs", "1", "--device", "cpu")


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(*words: object) -> Ran:
    """``ptycho WORDS...`` with its exit code and what it printed."""
    before, out, err, code = sys.argv, io.StringIO(), io.StringIO(), 0
    sys.argv = ["ptycho", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Ran(code, out.getvalue(), err.getvalue())


def shell(*words: object) -> Ran:
    """The same in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "ptycho", *map(str, words)], capture_output=True, encoding="utf-8", timeout=120, env=environment())
    return Ran(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    """For other processes: this package, installed or not."""
    return os.environ | {"PYTHONPATH": str(Path(ptycho.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}


def write_npy(folder: Path, patterns: NDArray[np.float32], name: str = "scan.npy") -> Path:
    """Patterns as float32, which has room for what is not a count."""
    np.save(folder / name, patterns)
    return folder / name


def write_raw(folder: Path, patterns: NDArray[np.float32]) -> Path:
    """Patterns (slow, fast, 32, 32) as an EMPAD scan, the disk in the middle of 128 x 128 pixels."""
    slow, fast = patterns.shape[:2]
    wide = np.pad(patterns, ((0, 0), (0, 0), (48, 48), (48, 48)))
    return ptycho.write_empad(folder / f"scan_x{fast}_y{slow}.raw", wide, adu_per_electron=148.0, voltage_kV=80.0, step_A=0.4)
