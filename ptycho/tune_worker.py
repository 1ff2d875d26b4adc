"""The processes of a search: each claims candidates until none is left, shows that it is alive, and may be killed at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from ptycho.errors import DivergedError, OutOfMemoryError, RecipeError
from ptycho.lock import runs
from ptycho.tune_ranges import Value
from ptycho.tune_study import Claim, LostError, Score, Search

#: A candidate's score after each of its passes.
Objective = Callable[[Mapping[str, Value]], Generator[Score, None, None]]

#: The sign of life is renewed so often; without one for so long a process on another machine is dead (file systems on a network show it late).
_BEAT_S, _SILENT_S = 5.0, 180.0
#: So often a process without work looks whether somebody has died.
_LOOK_S = 0.5
#: Exit code of a process that stopped on a signal and can go on.
STOPPED = 75


class Pulse:
    """A process's sign of life: a file in ``folder``/workers whose time is renewed while the ``with`` block lasts; ``name`` is known to all."""

    def __init__(self, folder: Path) -> None:
        self.name = f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:6]}"
        self._folder = folder / "workers"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        self._folder.mkdir(exist_ok=True)
        self._file.touch()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def alive(self, name: str) -> bool:
        """Whether the process of this name lives. Times are those of the file system, the same for all machines."""
        host, pid, _ = name.rsplit("_", 2)
        if host == socket.gethostname() and not runs(int(pid)):
            return False
        try:
            self._file.touch()
            return self._file.stat().st_mtime - (self._folder / name).stat().st_mtime < _SILENT_S
        except FileNotFoundError:
            return False

    @property
    def _file(self) -> Path:
        return self._folder / self.name

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            with contextlib.suppress(OSError):  # the disk may be back at the next beat
                self._file.touch()


def work(search: Search, objective: Objective, pulse: Pulse, stopped: Callable[[], bool], finished: Callable[[], None] = lambda: None) -> bool:
    """Carry out candidates until all slots of the search are closed, by whomever; False when ``stopped`` says to leave first.

    ``finished`` is called after each. An error that is not the candidate's own puts it back and is raised.
    """
    while not stopped():
        search.rescue(pulse.alive)
        claim = search.claim(pulse.name)
        if claim is None:
            if all(row.state not in ("waiting", "running") for row in search.rows()):
                return True
            time.sleep(_LOOK_S)
            continue
        try:
            with contextlib.suppress(LostError):
                _carry_out(search, objective, claim, stopped)
                finished()
        except BaseException:
            search.give_back(claim)
            raise
    return False


def _carry_out(search: Search, objective: Objective, claim: Claim, stopped: Callable[[], bool]) -> None:
    score = None
    try:
        with closing(objective(claim.values)) as passes:
            for epoch, score in enumerate(passes, 1):
                if stopped():
                    search.give_back(claim)
                    return
                if search.report(claim, epoch, score):
                    search.finish(claim, None)
                    return
    except (RecipeError, DivergedError, OutOfMemoryError) as error:
        search.finish(claim, None, " ".join(str(error).split()))
        return
    search.finish(claim, score, "no pass was made")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """TERM and Ctrl-C ask to stop inside; a second one of them does it at once. Gives the question whether one came."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread hears signals
        return

    def hear(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.SIG_DFL)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, hear) for number in signals]
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
