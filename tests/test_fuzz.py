"""Damaged files: patterns or one line that says what is wrong, whatever the bytes are. ``PTYCHO_FUZZ`` is the number for each format."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import environment, run

from ptycho.io.formats import SUFFIXES

if sys.platform != "linux":
    pytest.skip("limits of memory and time are set as Linux has them", allow_module_level=True)

from fuzzing_mutations import Special
from fuzzing_seeds import SEEDS

NUMBER = int(os.environ.get("PTYCHO_FUZZ", "2000"))
HARNESS = Path(__file__).with_name("fuzzing.py")
#: What a reader may need for a file of a few kB: chunks of up to 256 MB, and a sample of the patterns.
PEAK_MB = 1000


def fuzz(folder: Path, formats: list[str], number: int, *words: str) -> list[dict[str, Any]]:
    """Reports of the harness, in a process of its own: nothing of the tests' process may matter."""
    names = [word for format in formats for word in ("--format", format)]
    command = [sys.executable, str(HARNESS), *names, "--number", str(number), "--folder", str(folder), "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment() | {"OPENBLAS_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_sound(report: dict[str, Any], number: int) -> None:
    told = [f"no. {k} ({report['format']}, seed 0, kept as {kept}): {text}" for k, kept, text in report["failures"]]
    assert not told, "\n".join(told[:20])
    assert report["number"] == number
    assert report["peak_MB"] < PEAK_MB, f"no. {report['largest']} took {report['peak_MB']:.0f} MB"


@pytest.mark.parametrize("format", SEEDS)
def test_damaged_files_are_read_or_refused(tmp_path: Path, format: str) -> None:
    (report,) = fuzz(tmp_path, [format], NUMBER)
    assert_sound(report, NUMBER)
    outcomes = report["outcomes"]
    assert outcomes["read"] > NUMBER / 100, "the seed itself is not sound"
    assert outcomes.get("DataError", 0) + outcomes.get("RecipeError", 0) > NUMBER / 100, "nothing was damaged"


def test_commands_on_damaged_files(tmp_path: Path) -> None:
    number = max(1, min(12, NUMBER // 100))
    for report in fuzz(tmp_path, list(SEEDS), number, "--commands"):
        assert_sound(report, number)


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that takes longer than 5 s fails: what waits for a pipe waits for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def unreadable(path: Path) -> None:
    path.write_bytes(b"x" * 100)
    path.chmod(0)


@pytest.mark.parametrize("make", [*(special.make for special in Special), unreadable], ids=[*(special.name for special in Special), "UNREADABLE"])
@pytest.mark.usefixtures("in_time")
def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]) -> None:
    """A folder, a pipe, an endless device, a link to nothing, a file of somebody else: one line each, for every suffix."""
    if make is unreadable and os.geteuid() == 0:
        pytest.skip("root may read everything")
    monkeypatch.chdir(tmp_path)
    for suffix in (*SUFFIXES, ".bin", ".toml", ""):
        path = tmp_path / f"scan{suffix}"
        make(path)
        began = time.monotonic()
        ran = run("info", path.name)
        assert time.monotonic() - began < 5, suffix
        assert ran.code in (3, 4) and ran.err.startswith("ptycho: error: ") and ran.err.count("\n") == 1 and path.name in ran.err, (suffix, ran)
        path.rmdir() if path.is_dir() else path.unlink()
        assert not list(tmp_path.iterdir())
