"""Signals to the real command: it keeps its state, exits with 75, tells so, and the same command goes on to the very same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import environment
from numpy.typing import NDArray

import ptycho
from ptycho.io.checkpoint import checkpoints

RECIPE = """
[data]
path = "scan.npy"
[microscope]
voltage_kV = 80
semiangle_mrad = 24.9
defocus_A = 20
[scan]
step_A = 0.4
[model]
probe_modes = 2
[[solve]]
kind = "gradient"
epochs = 30
batch = 8
update = { positions = 2 }
[output]
directory = "run"
"""
#: The real command with batches that last, so that a signal comes in their midst on any machine.
SLOWLY = """
import time
from ptycho.cli import main
from ptycho.solvers.gradient import Nesterov
batch = Nesterov.batch
done = []
def slowly(self, *given):
    done.append(1)
    time.sleep({seconds} if len(done) > 3 else 0)  # from the second epoch on
    return batch(self, *given)
Nesterov.batch = slowly
main()
"""
PATIENCE_S = 120.0


def begin(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """``ptycho reconstruct recipe.toml`` whose batches take so long at least."""
    words = [sys.executable, "-c", SLOWLY.format(seconds=seconds), "reconstruct", "recipe.toml", "--device", "cpu", "--threads", "1"]
    return subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def status(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "run" / "status.json").read_text()))
    except FileNotFoundError:
        return {}


def wait(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> Path:
    np.save(tmp_path / "scan.npy", disk_patterns[:4, :5])
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def test_each_signal_is_a_pause(folder: Path) -> None:
    whole = ptycho.reconstruct(folder / "recipe.toml", device="cpu")
    before = 0
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        process = begin(folder, 0.02)
        wait(process, lambda at=before: status(folder).get("state") == "running" and status(folder).get("epoch", 0) > at)  # type: ignore[misc]
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 75 and "Traceback" not in err, err
        assert "stopped in epoch" in err.splitlines()[-1] and "same command again" in err.splitlines()[-1]
        said = status(folder)
        assert (said["state"], said["code"]) == ("stopped", 75) and "stopped in epoch" in said["message"]
        assert (folder / "run" / said["checkpoint"]) == checkpoints(folder / "run")[-1]
        assert not (folder / "run" / "run.lock").exists()
        before = said["epoch"]
        assert 0 < before < 30
    process = begin(folder, 0.0)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and "going on from checkpoints/" in err, err
    assert status(folder)["state"] == "finished"
    found = ptycho.load(folder / "run")
    for name in ("object", "occupancy", "probe", "slice_thickness_A", "positions_A", "tilt_mrad"):
        assert getattr(found, name).tobytes() == getattr(whole, name).tobytes(), name
    assert [(r.epoch, r.loss) for r in found.history] == [(r.epoch, r.loss) for r in whole.history]


def test_a_second_interrupt_does_not_wait(folder: Path) -> None:
    process = begin(folder, 3600)
    wait(process, lambda: status(folder).get("epoch", 0) > 0)
    time.sleep(0.5)  # into the batch
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # it waits for the batch
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("ptycho: error: interrupted") and "Traceback" not in err
    assert (status(folder)["state"], status(folder)["code"]) == ("stopped", 130)
