"""The command line: usage, help, what a run says and leaves, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import GIVEN, environment, run, shell, write_npy
from numpy.typing import NDArray

import ptycho
from ptycho.errors import DivergedError
from ptycho.io.source import BinarySource

VERBS = ("reconstruct", "info", "image", "simulate")


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_patterns: NDArray[np.float32]) -> Path:
    """A small scan in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_npy(tmp_path, disk_patterns)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bogus"], "No such command 'bogus'; see ptycho --help"),
        (["--bogus"], "No such option: --bogus"),
        (["reconstruct"], "Missing argument 'RECIPE|FILE|demo'; see ptycho reconstruct --help"),
        (["reconstruct", "a", "b"], "unexpected extra argument"),
        (["reconstruct", "a", "--epochs", "many"], "'--epochs'"),
        (["reconstruct", "a", "--device", "tpu"], "'auto', 'cpu', 'cuda', 'mps'"),
        (["reconstruct", "a", "--threads", "-1"], "'--threads'"),
        (["reconstruct", "a", "--step-A", "wide"], "--step-A"),
        (["info", "a", "--scan-shape", "a,b"], "--scan-shape"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("ptycho: error: ") and said in err


def test_without_a_verb_the_help_is_shown() -> None:
    code, out, err = run()
    assert (code, out) == (2, "") and all(verb in err for verb in VERBS)


def test_help_has_a_line_for_everything() -> None:
    assert run("-h").out == run("--help").out
    assert "│" not in run("--help").out and "..." not in run("--help").out.partition("Commands:")[2]  # no box, no line cut short
    for verb in VERBS:
        code, out, _ = run(verb, "--help")
        options = [line for line in out.splitlines() if line.startswith("  -")]
        assert code == 0 and len(options) > 3
        assert all(len(line.split("  ")) >= 3 and len(line) <= 80 for line in options), out
    assert run("--version").out == f"ptycho {ptycho.__version__}\n"


def test_help_is_quick_and_without_torch() -> None:
    heavy = "{'torch', 'h5py', 'scipy', 'matplotlib', 'pydantic'}"
    code = "import sys, ptycho\nfrom ptycho.cli import main\nsys.argv = ['ptycho', '--help']\n"
    code += f"try: main()\nfinally: print(sorted({heavy} & set(sys.modules)))"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    seconds = time.perf_counter() - began
    assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stdout + done.stderr
    assert seconds < 1 or os.getloadavg()[0] > (os.cpu_count() or 1)  # a busy machine proves nothing


def test_a_run_off_the_terminal(scan: Path) -> None:
    code, out, err = run("reconstruct", scan, *GIVEN, "--epochs", "2", "-o", "run")
    assert code == 0, err
    assert out == f"picture: {Path('run') / 'phase.png'}\nreport: {Path('run') / 'report.html'}\n"
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert lines[0].startswith("scan.npy: 48 patterns of 32 x 32") and "\r" not in err
    names = {p.name for p in Path("run").iterdir()}
    assert {"recipe.toml", "result.h5", "phase.tif", "phase.png", "report.html", "log.txt", "metrics.jsonl", "status.json"} <= names
    assert not any(name.startswith(".") for name in names)
    status = json.loads(Path("run/status.json").read_text())
    assert (status["state"], status["epoch"], status["pid"]) == ("finished", 2, os.getpid())
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [(m["stage"], m["kind"], m["epoch"]) for m in metrics] == [(0, "gradient", 1), (0, "gradient", 2)]
    assert status["loss"] == metrics[-1]["loss"] and all(m["seconds"] > 0 for m in metrics)
    log = Path("run/log.txt").read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in log] == lines  # the same, with date, time and level


def test_halves(scan: Path) -> None:
    code, out, err = run("reconstruct", scan, *GIVEN, "--step-A", "1.4", "--halves", "-o", "run")
    assert code == 0, err
    assert out.splitlines()[1] == ptycho.load("run").quality.summary()
    assert "half 2 of 2" in err and Path("run/report.html").exists()


def test_a_run_on_a_terminal_shows_a_bar(scan: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "ptycho", "reconstruct", str(scan), *GIVEN, "--epochs", "3", "-o", "run"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave, env=environment() | {"COLUMNS": "100", "LINES": "30"})
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # Linux's way to say that the other side is closed
        pass
    finally:
        os.close(master)
    assert process.wait(60) == 0, shown
    text = shown.decode()
    # 2/3 [00:01<00:00, ...: time left] and the loss; no line for each epoch
    assert "3/3" in text and "loss=" in text and "<00:0" in text and "epoch 1 of 3" not in text


def test_full_folders_stay_as_they_are_and_fresh_moves_them_aside(scan: Path) -> None:
    assert run("reconstruct", scan, *GIVEN, "-o", "run").code == 0
    (Path("run") / "mine.txt").write_text("notes")
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    assert run("reconstruct", scan, *GIVEN, "-o", "run").code == 5
    assert run("reconstruct", scan, *GIVEN, "-o", "run", "--fresh", "--bin", "5").code == 3  # bad input moves nothing
    assert {p.name: p.read_bytes() for p in Path("run").iterdir()} == before
    assert run("reconstruct", scan, *GIVEN, "-o", "run", "--fresh").code == 0
    aside = [p for p in Path().iterdir() if p.name.startswith("run-")]
    assert len(aside) == 1 and {p.name: p.read_bytes() for p in aside[0].iterdir()} == before
    assert (Path("run") / "result.h5").exists() and not (Path("run") / "mine.txt").exists()


def test_command_and_python_agree_to_the_last_bit(scan: Path, disk_patterns: NDArray[np.float32]) -> None:
    known: dict[str, Any] = {"voltage_kV": 80, "semiangle_mrad": 24.9, "step_A": 0.4, "defocus_A": 20}
    assert run("reconstruct", scan, *GIVEN, "--probe-modes", "2", "-o", "run").code == 0
    by_command = ptycho.load("run")
    by_python = ptycho.reconstruct(ptycho.read(scan, **known), probe_modes=2, epochs=1, device="cpu")
    again = ptycho.reconstruct("run/recipe.toml", device="cpu")
    for result in (by_python, again):
        np.testing.assert_array_equal(result.object, by_command.object)
        np.testing.assert_array_equal(result.probe, by_command.probe)
        np.testing.assert_array_equal(result.positions_A, by_command.positions_A)
    assert again.recipe.partition("[output]")[0] == by_command.recipe.partition("[output]")[0]


def test_a_run_that_diverges(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any) -> None:
        raise DivergedError("epoch 1: the loss is nan; use smaller steps")

    monkeypatch.setattr("ptycho.solvers.base.run", diverge)
    code, _, err = run("reconstruct", scan, *GIVEN, "-o", "run")
    assert code == 7 and err.splitlines()[-1].startswith("ptycho: error: epoch 1: the loss is nan") and "Traceback" not in err
    status = json.loads(Path("run/status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 7) and "the loss is nan" in status["message"]
    assert "ERROR DivergedError: epoch 1" in Path("run/log.txt").read_text() and not Path("run/result.h5").exists()


@pytest.mark.parametrize(("error", "code", "said"), [(MemoryError("70 GB"), 6, "smaller batch"), (ZeroDivisionError("x"), 1, "this is a bug")])
def test_other_failures(scan: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("ptycho.solvers.base.run", fail)
    ran = run("reconstruct", scan, *GIVEN, "-o", "run")
    assert ran.code == code and said in ran.err.splitlines()[-1] and "Traceback" not in ran.err
    with pytest.raises(type(error) if code == 1 else ptycho.PtychoError):
        run("reconstruct", scan, *GIVEN, "-o", "other", "--debug")


def test_memory_that_runs_out_before_the_run(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("70 GB")

    monkeypatch.setattr("ptycho.io.read", fail)
    code, _, err = run("info", scan)
    assert code == 6 and err.startswith("ptycho: error: out of memory: 70 GB; ") and err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupted(scan: Path) -> None:
    command = [sys.executable, "-m", "ptycho", "reconstruct", str(scan), *GIVEN, "--epochs", "100000", "-o", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 5 "):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    (line,) = [line for line in err.splitlines() if not line.startswith("epoch")]
    assert line.startswith("ptycho: stopped in epoch ") and line.endswith("give the same command again to go on") and "run/checkpoints/epoch-" in line
    status = json.loads(Path("run/status.json").read_text())
    assert (status["state"], status["code"]) == ("stopped", 75) and status["epoch"] >= 3


def test_info_for_people_and_for_programs(scan: Path) -> None:
    code, out, _ = run("info", scan)
    assert code == 0 and "NumPy: scan 6 x 8 (slow x fast), patterns 32 x 32 px, float32" in out
    for text in ("adu_per_electron    1 ADU", "radius 7.", "nothing: no hot", "--voltage-kV ...", "[scan] step_A = ...", "taken as 0: defocus_A"):
        assert text in out, out
    facts = json.loads(run("info", scan, "--json").out)
    assert facts["scan"] == [6, 8] and facts["patterns"]["hot_pixels"] == 0
    assert facts["missing"] == {"voltage_kV": "microscope", "semiangle_mrad": "microscope", "step_A": "scan"}
    assert "patterns" not in json.loads(run("info", scan, "--json", "--no-survey").out)


def test_info_draws_a_picture(scan: Path) -> None:
    code, out, err = run("info", scan, "-o", "look.png")
    assert code == 0 and "picture: look.png" in out and Path("look.png").read_bytes().startswith(b"\x89PNG"), err
    assert json.loads(run("info", scan, "--json", "-o", "look.png").out)["picture"] == "look.png"
    assert run("info", scan, "-o", "look.jpg").code == 5
    assert run("info", scan, "-o", "none/look.png").code == 5


def test_info_of_frames_without_a_scan_shape(scan: Path) -> None:
    np.save("series.npy", np.load(scan).reshape(48, 32, 32))
    code, out, _ = run("info", "series.npy")
    assert code == 0 and "scan 1 x 48" in out and "[scan] shape = ...  or  --scan-shape ..." in out and "6 x 8" in out
    assert "scan 6 x 8" in run("info", "series.npy", "--scan-shape", "6,8").out
    assert run("reconstruct", "series.npy", *GIVEN).code == 4


def test_info_with_settings(scan: Path) -> None:
    out = run("info", scan, "--set", "data.bin=2", "--set", "microscope.voltage_kV=300").out
    assert "patterns 16 x 16 px" in out and "300 kV" in out


def test_info_of_a_17_GB_file_looks_at_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 x 512 EMPAD frames, most of them never written; what is read of it is bounded."""
    read_frames = []
    reading = BinarySource.read

    def counted(self: BinarySource, frames: Any) -> Any:
        read_frames.append(len(frames))
        return reading(self, frames)

    monkeypatch.setattr(BinarySource, "read", counted)
    path = tmp_path / "scan_x512_y512.raw"
    with open(path, "wb") as file:
        file.truncate(512 * 512 * 66560)
    code, out, _ = run("info", path)
    assert code == 0 and "scan 512 x 512" in out and "all pixels are 0" in out
    assert sum(read_frames) <= 1200


def test_info_of_a_recipe(scan: Path) -> None:
    Path("recipe.toml").write_text('[data]\npath = "scan.npy"\n[microscope]\nvoltage_kV = 80\nsemiangle_mrad = 24.9\n[scan]\nstep_A = [0.4, 0.5]\n')
    out = run("info", "recipe.toml").out
    assert "80 kV" in out and "0.4 x 0.5 Å" in out and "Missing" not in out


def test_simulate_and_info_in_a_shell(tmp_path: Path) -> None:
    made = shell("simulate", "--scan", "3", "-o", tmp_path / "made")
    assert made.code == 0, made.err
    assert made.out == f"ptycho reconstruct {tmp_path / 'made' / 'recipe.toml'}\n" and made.err == ""
    assert run("simulate", "--scan", "3", "-o", tmp_path / "made").code == 5
    assert run("simulate", "--format", "tiff", "--scan", "2", "-o", tmp_path / "other").code == 3
    assert run("info", tmp_path / "made" / "recipe.toml").code == 0


def test_output_cut_off_by_the_reader(scan: Path) -> None:
    command = [sys.executable, "-m", "ptycho", "info", str(scan)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as "| head" does
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(60)


def test_a_truth_that_is_none(scan: Path) -> None:
    np.savez("truth.npz", something=np.zeros(3))
    code, out, _ = run("reconstruct", scan, *GIVEN, "-o", "run")
    assert code == 0 and "no comparison with" in out and Path("run/result.h5").exists()
