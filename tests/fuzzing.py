"""Damaged files for all of our own readers: ``python tests/fuzzing.py --format mib --number 100000 --seed 1``.

Every mutant is read in a worker process with limits on memory and time. A reader must give patterns or one line that says what is
wrong. Only where the guard's child process comes first may a mutant stop the worker; then it is read again with the guard in place.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import h5py  # noqa: F401  here and not in every worker, as the next ones
import hdf5plugin  # noqa: F401
import numpy as np
import scipy.io
import scipy.ndimage  # noqa: F401
import tifffile  # noqa: F401
from command import Ran, run
from fuzzing_mutations import Mutant, Special, mutant
from fuzzing_seeds import SEEDS, Seed, counts, seed_of

import ptycho.io
from ptycho.errors import PtychoError
from ptycho.io import formats, guard, scan
from ptycho.io.images import read_image
from ptycho.io.result_file import load_result
from ptycho.recipe import Recipe

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 5.0, "step_A": 0.5, "pixel_invA": 0.05}
#: Patterns of few pixels and nothing to find out: twice as many mutants in the same time.
CROPPED = {**KNOWN, "adu_per_electron": 1.0, "detector_crop": (0, 8, 0, 8)}
MEMORY_BYTES = 4 << 30
#: Where the recipe has them, and what a data set is read with.
SECTIONS = (("microscope", "voltage_kV"), ("microscope", "semiangle_mrad"), ("scan", "step_A"), ("detector", "pixel_invA"))
_KEYS = {
    "scan_shape": "scan.shape", "layout": "data.layout", "calibration_file": "data.calibration_file", "format": "data.format",
    "semiangle_mrad": "microscope.semiangle_mrad",
}  # fmt: skip
#: A mutant of a few kB that takes so many seconds of computing, or of waiting, does not end.
CPU_SECONDS, SECONDS = 1.0, 10.0
LONGEST_TEXT = 300
WORKERS = 2


@dataclass
class Report:
    """What happened to ``number`` mutants: how many of each outcome, and every one that must not be (number, folder, text)."""

    format: str
    number: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: int = 0
    peak_MB: float = 0.0
    largest: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Task:
    """What every worker needs: where it may write, which data sets, and what is done with a mutant."""

    folder: Path
    format: str
    seeds: list[Seed]
    number: int
    seed: int
    use: Callable[[Path, Seed, Mutant, Random], str]
    seconds: tuple[float, float] = (CPU_SECONDS, SECONDS)


def fuzz(format: str, number: int, seed: int, folder: Path, first: int = 0, commands: bool = False) -> Report:
    """Read ``number`` mutants of a format of ``SEEDS``, from number ``first`` on, or run the commands on them. What fails is kept in ``folder``."""
    seeds = []
    for write in SEEDS[format]:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            seeds.append(seed_of(write, Path(place)))
    if commands:
        return carry_out(Task(folder, format, seeds, number, seed, command_mutant, (60.0, 120.0)), first)
    return carry_out(Task(folder, format, seeds, number, seed, read_mutant), first)


def read_mutant(folder: Path, seed: Seed, damaged: Mutant, rng: Random) -> str:
    """Open and read it as the program does. Raises what the reader raises."""
    path = folder / damaged.opened
    if seed.reader == "positions":
        scan.read_positions(path)
    elif seed.reader == "image":
        read_image("data.mask", path, (16, 16))
    elif seed.reader == "result":
        load_result(path)
    elif seed.reader == "recipe":
        Recipe.load(path)
    else:
        given: dict[str, Any] = {**seed.given, **(CROPPED if rng.random() < 0.75 else {})}
        if "calibration_file" in given:
            given["calibration_file"] = folder / given["calibration_file"]
        data = ptycho.io.read(path, **given)
        try:
            patterns = data.patterns(np.unique([0, data.n_positions // 2, data.n_positions - 1]))
            assert patterns.shape[1:] == data.pattern_shape and patterns.dtype == np.float32, (patterns.shape, patterns.dtype)
            data.survey()
            known = data.calibration.keys()
            if {"voltage_kV", "semiangle_mrad"} <= known and ("step_A" in known or data.positions_A is not None):
                assert np.isfinite(data.geometry.positions_A).all()
        finally:
            data.close()
    return "read"


def command_mutant(folder: Path, seed: Seed, damaged: Mutant, rng: Random) -> str:
    """``ptycho info`` and ``ptycho reconstruct`` on it, in this process."""
    settings = [f"{section}.{key}={KNOWN[key]}" for section, key in SECTIONS if rng.random() < 0.8]
    settings += [f"{_KEYS[key]}={_toml(value)}" for key, value in seed.given.items()]
    name = damaged.opened
    if seed.reader in ("positions", "image"):
        settings.append(f'{"scan.positions_file" if seed.reader == "positions" else "data.mask"}="{name}"')
        name = "run/scan.npy"
        (folder / "run").mkdir()
        np.save(folder / name, counts())
    words = [word for setting in settings for word in ("--set", setting)]
    codes = [check_command(run("info", name, *words), damaged)]
    if seed.reader not in ("recipe", "result"):
        words += ["--epochs", "1", "--device", "cpu", "--threads", "1", "-o", "run/here"]
        codes.append(check_command(run("reconstruct", name, *words), damaged))
    return f"exit codes {codes}"


def check_command(ran: Ran, damaged: Mutant) -> int:
    """Its exit code. Raises AssertionError when it or what was printed must not be."""
    assert ran.code in (0, 3, 4, 5), ran
    assert "Traceback" not in ran.err + ran.out and "bug" not in ran.err, ran
    if ran.code:
        assert ran.err.startswith("ptycho: error: ") and ran.err.count("\n") == 1, ran
        wrong = fault(ran.err.strip(), Path(), damaged, named=ran.code == 4)  # what is wrong in a recipe is a key
        assert not wrong, f"{wrong}: {ran.err}"
    return ran.code


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return str(list(value)) if isinstance(value, tuple) else json.dumps(value)


def carry_out(task: Task, first: int = 0) -> Report:
    """All mutants of a task, in two worker processes that are started again after each that dies."""
    report, started = Report(task.format), time.monotonic()
    outcomes: Counter[str] = Counter()
    with selectors.DefaultSelector() as waiting:
        for k in range(WORKERS):
            _start(task, range(first + k, first + task.number, WORKERS), waiting)
        while waiting.get_map():
            for key, _ in waiting.select():
                worker: _Worker = key.data
                for result in worker.results():
                    _count(report, outcomes, task, result)
                if worker.ended:
                    waiting.unregister(worker.pipe)
                    os.close(worker.pipe)
                    _, status = os.waitpid(worker.pid, 0)
                    rest = worker.rest
                    if worker.current is not None:
                        rest = rest[rest.index(worker.current) + 1 :]
                        _count(report, outcomes, task, _stopped(task, worker.current, status))
                    if rest and worker.current is not None:
                        _start(task, rest, waiting)
    report.outcomes = dict(outcomes.most_common())
    report.seconds = time.monotonic() - started
    return report


def _count(report: Report, outcomes: Counter[str], task: Task, result: dict[str, Any]) -> None:
    report.number += 1
    outcomes[result["outcome"]] += 1
    report.stopped += [result["number"]] if "guard" in result["outcome"] else []
    if result["seconds"] > report.slowest_s:
        report.slowest_s, report.slowest = result["seconds"], result["number"]
    if result["MB"] > report.peak_MB:
        report.peak_MB, report.largest = result["MB"], result["number"]
    if result["outcome"] == "failed":
        damaged, _, _ = make(task, result["number"])
        kept = task.folder / f"{task.format}-{task.seed}-{result['number']}"
        write(kept, damaged)
        report.failures.append((result["number"], str(kept / damaged.opened), f"{damaged.changed}: {damaged.what}: {result['text']}"))


def make(task: Task, number: int) -> tuple[Mutant, Seed, Random]:
    """Mutant ``number``, always the same one."""
    rng = Random(f"{task.format} {task.seed} {number}")
    seed = task.seeds[number % len(task.seeds)]
    return mutant(seed, rng), seed, rng


def write(folder: Path, damaged: Mutant) -> None:
    for name, content in damaged.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Special):
            content.make(folder / name)
        else:
            (folder / name).write_bytes(content)


def changes(folder: Path, damaged: Mutant) -> list[str]:
    """Names of what is not as it was written, but for the folder of a run."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    there = {str(path) for path in found if path.parts[0] != "run"}
    files = {name: content for name, content in damaged.files.items() if content is not Special.FOLDER}
    same = {name for name in there & files.keys() if isinstance(files[name], Special) or (folder / name).read_bytes() == files[name]}
    return sorted((there | files.keys()) - same)


class _Worker:
    """A process at work, seen from this one: what it says through a pipe."""

    def __init__(self, pid: int, pipe: int, rest: range) -> None:
        self.pid, self.pipe, self.rest = pid, pipe, rest
        self.current: int | None = None
        self.ended = False
        self._said = b""

    def results(self) -> Iterator[dict[str, Any]]:
        """Results that are complete; a line of a number alone says that this mutant is begun."""
        new = os.read(self.pipe, 1 << 16)
        self.ended = not new
        *lines, self._said = (self._said + new).split(b"\n")
        for line in lines:
            result = json.loads(line)
            if isinstance(result, int):
                self.current = result
            else:
                self.current = None
                yield result


def _start(task: Task, numbers: range, waiting: selectors.BaseSelector) -> None:
    if not numbers:
        return
    pipe, other = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(pipe)
            _work(task, numbers, other)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(other)
    waiting.register(pipe, selectors.EVENT_READ, _Worker(pid, pipe, numbers))


def _work(task: Task, numbers: range, pipe: int) -> None:
    """In the worker: limits, and one mutant after the other."""
    formats.check_in_child = scan.check_in_child = lambda *_: None  # type: ignore[assignment]  # it would do the same once more
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("error")
    place = Path(tempfile.mkdtemp(dir=task.folder))
    printed = place.with_name(place.name + ".printed")
    handle = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(place)
    for number in numbers:
        damaged, seed, rng = make(task, number)
        write(place, damaged)
        os.write(pipe, b"%d\n" % number)
        _forget_peak()
        before, started = _memory_MB("VmRSS"), time.monotonic()
        _watch(*task.seconds)
        outcome, text = _outcome(place, task, seed, damaged, rng)
        _watch(0, 0)
        result = {"number": number, "seconds": time.monotonic() - started, "MB": _memory_MB("VmHWM") - before, "outcome": outcome, "text": text}
        if os.fstat(handle).st_size:
            result |= {"outcome": "failed", "text": f"it prints {printed.read_bytes()[:500]!r}"}
            os.ftruncate(handle, 0)
        changed = changes(place, damaged)
        if changed and result["outcome"] != "failed":
            result |= {"outcome": "failed", "text": f"made, lost or changed: {changed}"}
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        os.write(pipe, json.dumps(result).encode() + b"\n")


def _outcome(place: Path, task: Task, seed: Seed, damaged: Mutant, rng: Random) -> tuple[str, str]:
    try:
        return task.use(place, seed, damaged, rng), ""
    except PtychoError as error:
        wrong = fault(str(error), place, damaged)
        return ("failed", f"{wrong}: {error}") if wrong else (type(error).__name__, "")
    except BaseException as error:
        place_of = traceback.extract_tb(error.__traceback__)
        where = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(place_of) if "ptycho" in f.filename), "")
        return "failed", f"{type(error).__name__} escapes from {where}: {str(error)[:300]}"


def fault(text: str, place: Path, damaged: Mutant, named: bool = True) -> str:
    """What is wrong with the message of an error; nothing when it is one line, and with ``named`` one that names the file."""
    said = text.replace(f"{place}/", "")
    if not said.isprintable():
        return "not one line of plain text"
    if len(said) >= LONGEST_TEXT:
        return f"{len(said)} characters"
    names = {part for name in (damaged.opened, *damaged.files) for part in Path(name).parts}
    return "" if not named or any(name in said for name in (*names, "scan.npy")) else "the file is not named"


def _stopped(task: Task, number: int, status: int) -> dict[str, Any]:
    """A mutant at which a worker ended: it must be refused, or read after all, when the guard comes first."""
    damaged, seed, rng = make(task, number)
    how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    result = {"number": number, "seconds": 0.0, "MB": 0.0, "text": ""}
    place = Path(tempfile.mkdtemp(dir=task.folder))
    write(place, damaged)
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        guard._SECONDS = 3.0
        _watch(30, 40)
        try:
            os.write(telling, " ".join(_outcome(place, task, seed, damaged, rng)).encode()[:4000])
        finally:
            os._exit(0)
    os.close(telling)
    with os.fdopen(told, "rb") as pipe:
        text = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(pid, 0)
    shutil.rmtree(place)
    if status or not text or text.startswith("failed"):
        again = f"status {status} {text}"
        return {**result, "outcome": "failed", "text": f"it stops a worker ({how}), and with the guard too: {again}"}
    return {**result, "outcome": f"{how}, with the guard {text.strip()}"}


def _watch(cpu_s: float, seconds: float) -> None:
    """End this process by a signal after so long; 0 for never."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory_MB(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", action="append", choices=SEEDS, help="default: all")
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the mutants that fail")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--commands", action="store_true", help="run ptycho info and ptycho reconstruct on each")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    reports = []
    for format in options.format or SEEDS:
        report = fuzz(format, options.number, options.seed, folder, options.first, options.commands)
        reports.append(report)
        if not options.json:
            show(report)
    if options.json:
        print(json.dumps([asdict(report) for report in reports]))
    return 0


def show(report: Report) -> None:
    rate = report.number / max(report.seconds, 1e-9)
    said = ", ".join(f"{number} {outcome}" for outcome, number in report.outcomes.items())
    print(f"{report.format}: {report.number} mutants, {rate:.0f}/s: {said}; slowest {report.slowest_s:.2f} s (no. {report.slowest}), ", end="")
    print(f"{report.peak_MB:.0f} MB (no. {report.largest}); workers stopped by no. {report.stopped}", flush=True)
    for number, kept, text in report.failures:
        print(f"  no. {number}: {kept}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
