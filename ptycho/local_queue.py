"""The same queue on this machine: a number of workers, each running one reconstruction after the other in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

from ptycho.jobfolder import JobFolder

#: Exit code of a run that stopped with a checkpoint: run me again.
RESUMABLE = 75
#: What asks a run to stop.
_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@dataclass(frozen=True)
class Workers:
    """How many run at a time, where they compute, which GPUs there are to share out, and how often a run is started again after a stop."""

    number: int
    device: str = "auto"
    gpus: tuple[str, ...] = ()
    restarts: int = 100

    @property
    def threads(self) -> int:
        """The cores of each worker."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.number)


def visible_gpus(count: int) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES may say to name each of the GPUs that can be seen now."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return tuple(named.split(","))[:count] if named else tuple(str(number) for number in range(count))


def worst(codes: list[int]) -> int:
    """0 when all are well, else a failure before "stopped, run me again"."""
    return max((code for code in codes if code not in (0, RESUMABLE)), default=RESUMABLE if RESUMABLE in codes else 0)


def run_here(job: JobFolder, names: list[str], workers: Workers, tell: Callable[[str], None]) -> int:
    """Run them all; the worst of their exit codes. A signal stops all of them with a checkpoint, and no new one begins.

    ``tell`` hears a line for each run that ends. The output of a run is added to NAME.out in the job folder.
    """
    pool = _Pool(job, workers, tell)
    with _stopping(pool.stop), ThreadPoolExecutor(workers.number) as threads:
        futures = [threads.submit(pool.run, name) for name in names]
        return worst([future.result() for future in futures])


class _Pool:
    """The processes that run now, and the places (GPUs) that are free."""

    def __init__(self, job: JobFolder, workers: Workers, tell: Callable[[str], None]) -> None:
        self.job, self.workers, self.tell = job, workers, tell
        self._lock = threading.RLock()  # stop comes from a signal, in the middle of anything
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._places: SimpleQueue[int] = SimpleQueue()
        for place in range(workers.number):
            self._places.put(place)

    def stop(self) -> None:
        """Ask every run to write a checkpoint and end."""
        self._stopped = True
        with self._lock:
            for process in self._running:
                process.send_signal(signal.SIGTERM)

    def run(self, name: str) -> int:
        """One run to its end, started again as often as it may; its exit code."""
        place = self._places.get()
        try:
            began, code, starts = time.monotonic(), RESUMABLE, 0
            while code == RESUMABLE and not self._stopped and starts <= self.workers.restarts:
                code, starts = self._once(name, place), starts + 1
        finally:
            self._places.put(place)
        if starts:
            log = self.job.path / f"{name}.out"
            ended = {0: "finished", RESUMABLE: "stopped, can go on"}.get(code) or f"failed with code {code}: {_last_line(log)}"
            self.tell(f"{name}: {ended} ({time.monotonic() - began:.0f} s{f', started {starts} times' if starts > 1 else ''})")
        return code

    def _once(self, name: str, place: int) -> int:
        w = self.workers
        command = [sys.executable, "-m", "ptycho", "reconstruct", f"{name}.toml", "--resume", "--device", w.device, "--threads", str(w.threads)]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": w.gpus[place % len(w.gpus)]} if w.gpus else {})
        with open(self.job.path / f"{name}.out", "ab") as log:
            with self._lock:
                if self._stopped:
                    return RESUMABLE
                # In a session of its own: Ctrl-C reaches it through stop, once, and not from the terminal as well.
                process = subprocess.Popen(
                    command, cwd=self.job.path, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if -code in _ASKING:  # it came before the run could listen; nothing is lost
            return RESUMABLE
        return code if code >= 0 else 128 - code


def _last_line(log: Path) -> str:
    """Why a run failed, as it said itself."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-1].removeprefix("ptycho: error: ") if lines else f"see {log}"


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and the signals of queues call ``stop``; afterwards they do what they did before."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may listen
        return
    before = {number: signal.signal(number, handle) for number in _ASKING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
