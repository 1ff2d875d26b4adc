"""Nothing is lost: not to SIGKILL at any moment, not to a disk that fails at any call, not to two who write at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ptycho
from ptycho.atomic import write_file
from ptycho.errors import OutputError
from ptycho.io.checkpoint import load_latest, save_checkpoint
from ptycho.lock import Lock

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "close")


def test_twenty_kills_at_random_moments_change_no_bit(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> None:
    np.save(tmp_path / "scan.npy", disk_patterns)
    script = [sys.executable, str(Path(__file__).parent / "survival.py"), str(tmp_path), "20", "0"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("20 killed")


def failing(monkeypatch: pytest.MonkeyPatch, at: int, fail: Callable[[], Any]) -> list[int]:
    """Call number ``at`` of all that the save asks the system for fails; the number of calls so far."""
    seen = [0]

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            seen[0] += 1
            if seen[0] == at:
                if real is REAL["close"]:
                    real(*args, **named)
                fail()
            return real(*args, **named)

        return call

    for name, real in REAL.items():
        monkeypatch.setattr(os, name, wrapped(real))
    return seen


REAL = {name: getattr(os, name) for name in CALLS}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_each_call_of_a_save_may_fail(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    told: list[str] = []
    for at in range(1, 200):
        run = tmp_path / str(at)
        save_checkpoint(run, 1, 1, {"epoch": 1, "a": torch.ones(5)})
        with monkeypatch.context() as patched:
            seen = failing(patched, at, fail)
            try:
                save_checkpoint(run, 2, 1, {"epoch": 2, "a": torch.zeros(5)})
            except OutputError as error:
                told.append(str(error))
        latest = load_latest(run)
        assert latest is not None
        assert latest[1]["epoch"] in (1, 2)
        assert float(latest[1]["a"].sum()) == (5.0 if latest[1]["epoch"] == 1 else 0.0)
        save_checkpoint(run, 3, 1, {"epoch": 3})  # what was left behind is in nobody's way
        assert load_latest(run)[1] == {"epoch": 3}  # type: ignore[index]
        if seen[0] < at:
            break
    assert len(told) >= 10
    assert all(os.strerror(code) in message and "\n" not in message for message in told)


def test_a_process_may_die_at_each_call_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, deaths = os.urandom(3000), 0
    for at in range(1, 200):
        run = tmp_path / str(at)
        save_checkpoint(run, 1, 1, {"epoch": 1})
        write_file(run / "phase.tif", b"old")
        pid = os.fork()
        if pid == 0:
            with monkeypatch.context() as patched:
                failing(patched, at, lambda: os._exit(9))
                save_checkpoint(run, 2, 1, {"epoch": 2})
                write_file(run / "phase.tif", content)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        deaths += died
        latest = load_latest(run)
        assert latest is not None
        assert latest[1]["epoch"] in (1, 2)
        assert (run / "phase.tif").read_bytes() in (b"old", content)
        if not died:
            break
    assert deaths >= 20


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_each_call_of_a_file_may_fail_and_the_old_one_stays(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    target, told = write_file(tmp_path / "result.h5", b"old"), list[str]()
    for at in range(1, 50):
        with monkeypatch.context() as patched:
            seen = failing(patched, at, fail)
            try:
                write_file(target, b"new")
            except OutputError as error:
                told.append(str(error))
        assert target.read_bytes() in (b"old", b"new")
        assert os.listdir(tmp_path) == ["result.h5"]
        write_file(target, b"old")
        if seen[0] < at:
            break
    assert len(told) >= 4
    assert all("result.h5" in message for message in told)


def test_of_fifty_who_start_at_once_one_runs(tmp_path: Path) -> None:
    start_read, start_write = os.pipe()
    end_read, end_write = os.pipe()
    answers_read, answers_write = os.pipe()
    children = []
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            os.close(start_write)
            os.close(end_write)
            os.read(start_read, 1)  # all at once, when the writing end is closed
            try:
                Lock(tmp_path).take()
                os.write(answers_write, b"took it\n")
                os.read(end_read, 1)
            except OutputError as error:
                os.write(answers_write, f"{str(error)[:300]}\n".encode())
            os._exit(0)
        children.append(pid)
    os.close(start_write)
    os.close(answers_write)
    answers = b""
    while answers.count(b"\n") < 50:
        answers += os.read(answers_read, 65536)
    os.close(end_write)
    for pid in children:
        os.waitpid(pid, 0)
    lines = answers.decode().splitlines()
    assert lines.count("took it") == 1
    assert all("process" in line for line in lines if line != "took it")


def test_a_flipped_byte_anywhere_in_a_result_is_noticed(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> None:
    known: dict[str, Any] = {"voltage_kV": 80, "semiangle_mrad": 24.9, "step_A": 0.7, "defocus_A": 20, "adu_per_electron": 1}
    ptycho.reconstruct(ptycho.read(disk_patterns, **known), epochs=1, device="cpu", output=tmp_path / "run")
    content, random = (tmp_path / "run" / "result.h5").read_bytes(), np.random.default_rng(1)
    damaged, noticed = tmp_path / "damaged.h5", 0
    for place in [*random.integers(len(content), size=190), *range(len(content) - 10, len(content))]:
        damaged.write_bytes(content[:place] + bytes([content[place] ^ int(random.integers(1, 256))]) + content[place + 1 :])
        with pytest.raises(ptycho.PtychoError, match=r"damaged\.h5"):
            ptycho.load(damaged)
        noticed += 1
    assert noticed == 200
