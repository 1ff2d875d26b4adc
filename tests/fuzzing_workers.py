"""Worker processes for the fuzzer: limits on memory and time, a new worker after each that dies, and what must hold for every mutant."""

from __future__ import annotations

import json
import os
import resource
import selectors
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzzing_mutations import Mutant, Special, mutant
from fuzzing_seeds import Seed

from ptycho.errors import DataError, PtychoError
from ptycho.io import formats, guard, scan

MEMORY_BYTES = 4 << 30
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
        # What is wrong with what the user gives is a key; only the recipe itself is a file.
        wrong = fault(str(error), place, damaged, named=isinstance(error, DataError) or seed.reader == "recipe")
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
    if not os.WIFSIGNALED(status):
        return {**result, "outcome": "failed", "text": f"the harness itself ends with {how}"}
    place = Path(tempfile.mkdtemp(dir=task.folder))
    write(place, damaged)
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        guard._SECONDS = 3.0
        os.chdir(place)
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
    slow = how in ("SIGPROF", "SIGALRM") and text.startswith(("read", "exit codes"))
    if status or not (slow or text.startswith(("DataError", "RecipeError"))):
        return {**result, "outcome": "failed", "text": f"it stops a worker ({how}), and with the guard: status {status} {text}"}
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
