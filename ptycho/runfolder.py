"""The run folder: one folder, one run, one writer; what is in it can be read at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptycho.atomic import PART, unwritable, write_file
from ptycho.errors import DataError, OutputError
from ptycho.lock import HEARTBEAT_S, LOCK, Lock, Owner, held, holder
from ptycho.result import EpochRecord
from ptycho.status import STATUS, Status, read_status

RECIPE = "recipe.toml"


class RunFolder:
    """recipe.toml, log.txt, metrics.jsonl and status.json of a run; the results are written by :mod:`ptycho.io.result_file`.

    Making the object only looks: it raises OutputError when the folder holds something that is no run to go on with (``fresh`` will move that aside,
    nothing is deleted), when a run writes there, or when it cannot be written. A run that is finished is in the way too, unless ``resume`` says that
    this is well. ``create`` makes the folder, so that a run whose data are bad leaves nothing behind.
    """

    def __init__(self, path: str | Path, fresh: bool = False, resume: bool = False) -> None:
        self.path, self.fresh, self.resume = Path(path).expanduser(), fresh, resume
        self.started = time.time()
        self._handler: logging.Handler | None = None
        self._said: dict[str, Any] = {}
        self._state = "running"
        self._lock = Lock(self.path)
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._lost: OutputError | None = None
        try:
            self._check()
        except OSError as error:
            raise self._unwritable(error) from None

    def _check(self) -> None:
        if "\0" in str(self.path):
            raise OutputError(f"{str(self.path)!r}: a null byte is in this name; give another folder with -o")
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: this is a file; give another folder with -o")
        if (owner := holder(self.path)) is not None:
            raise OutputError(held(self.path / LOCK, owner))
        if self._holds_something() and not self.fresh:
            self._check_run()
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir():
            raise OutputError(f"{self.path}: {existing} is a file; give another folder with -o")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"{self.path}: {existing} cannot be written; give a folder that can be written with -o")

    def _check_run(self) -> None:
        """What is there is a run, and not a finished one."""
        if not any((self.path / name).exists() for name in (STATUS, LOCK)):
            raise OutputError(f"{self.path}: the folder is not empty; give another with -o, or --fresh to move the old one aside")
        if self.finished and not self.resume:
            raise OutputError(f"{self.path}: the run here is finished; give another folder with -o, or --fresh to move it aside and begin anew")

    def _holds_something(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def status(self) -> Status | None:
        """How the run in the folder stands; None without one that can be read."""
        try:
            return read_status(self.path)
        except DataError:
            return None

    @property
    def finished(self) -> bool:
        """Whether the run in the folder is complete."""
        status = None if self.fresh else self.status()
        return status is not None and status.state == "finished"

    def keep_out(self, data: Path) -> None:
        """Raise OutputError when ``data`` lie in the folder that is to be moved aside."""
        if self.fresh and self.path.resolve() in data.resolve().parents:
            raise OutputError(f"{self.path}: --fresh would move {data.name} aside, which is to be read; give another folder with -o")

    def earlier_recipe(self, given: str) -> Path | None:
        """The complete recipe of the run that was begun here by the recipe ``given``; None without one."""
        with contextlib.suppress(OSError, ValueError):
            if not self.fresh and json.loads((self.path / STATUS).read_bytes()).get("given") == _sha256(given) and (self.path / RECIPE).exists():
                return self.path / RECIPE
        return None

    def create(self, recipe: str, given: str = "") -> None:
        """Make the folder and take it for the run of the complete ``recipe``, made from the one that was ``given``. Raises OutputError.

        A run that was begun here must be of the same recipe.
        """
        try:
            self._check()  # again: reading the data may have taken an hour
            self._move_aside()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.take()
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._check_content(recipe)
            self.started = time.time()
            self._said = {"process": Owner.me().start, "given": _sha256(given)}
            if self.finished:
                return
            self.set_status("running", epoch=0)
            self.write(RECIPE, recipe)
        except BaseException:
            self._lock.release()
            raise
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _move_aside(self) -> None:
        if not (self.fresh and self._holds_something()):
            return
        # The right to write there goes along with it: nobody moves away what another has just begun.
        old = Lock(self.path)
        old.take()
        try:
            aside = self._aside()
            os.rename(self.path, aside)
            old.path = aside / LOCK
        finally:
            old.release()

    def _check_content(self, recipe: str) -> None:
        others = [p.name for p in self.path.iterdir() if p.name != LOCK and not p.name.endswith(PART)]
        if not others:
            return
        self._check_run()
        with contextlib.suppress(FileNotFoundError):
            if changed := difference((self.path / RECIPE).read_text(encoding="utf-8"), recipe):
                raise OutputError(f"{self.path}: there is a run of another recipe: {changed}; give another folder with -o, or --fresh to begin anew")
        for left in self.path.glob(f".*{PART}"):
            left.unlink(missing_ok=True)

    def _beat(self) -> None:
        """Say now and then that the run is alive."""
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._lock.beat()
                self.set_status(self._state)
            except OutputError as error:
                self._lost = error

    def still_mine(self) -> None:
        """Raises OutputError when the folder cannot be written any more, or another run has it."""
        if self._lost is not None:
            raise self._lost
        self._lock.beat()

    def close(self) -> None:
        """Others may write here."""
        self._ended.set()
        with self._writing:
            self._lock.release()

    def _aside(self) -> Path:
        """A free name beside the folder."""
        stamp = f"{self.path.absolute().name}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
        return next(path for path in map(self.path.absolute().with_name, names) if not path.exists())

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: {error.strerror or error}; give a folder that can be written with -o")

    def open_log(self, logger: logging.Logger) -> None:
        """From here on the logger writes to log.txt as well, news included."""
        try:
            self._handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        except OSError as error:
            raise unwritable(self.path / "log.txt", error) from None
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._level = logger.level
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        logger.addHandler(self._handler)

    def close_log(self, logger: logging.Logger) -> None:
        """The log file is complete."""
        if self._handler is not None:
            logger.removeHandler(self._handler)
            logger.setLevel(self._level)
            with contextlib.suppress(OSError):
                self._handler.close()
            self._handler = None

    def write(self, name: str, text: str) -> None:
        """Write a small text file so that it is either the old one or the new one, never half of it. Raises OutputError."""
        write_file(self.path / name, text.encode())

    def begin_metrics(self, history: Sequence[EpochRecord]) -> None:
        """metrics.jsonl holds these epochs and no others: what came after the checkpoint comes again."""
        self.write("metrics.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in history))

    def add_epoch(self, record: EpochRecord) -> None:
        """One more line of metrics.jsonl."""
        target = self.path / "metrics.jsonl"
        try:
            with open(target, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        except OSError as error:
            raise unwritable(target, error) from None

    def note(self, **more: Any) -> None:
        """Something more for status.json."""
        self.set_status(self._state, **more)

    def set_status(self, state: str, **more: Any) -> None:
        """status.json: running, finished, failed or stopped, with what else is known; what was said before stays."""
        with self._writing:
            if self._ended.is_set():
                return
            self._state = state
            self._said |= more
            status = {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "started": self.started, "updated": time.time(), **self._said}
            self.write(STATUS, json.dumps(status, indent=1) + "\n")

    def fail(self, error: BaseException, code: int, stopped: bool) -> None:
        """Say in status.json and log.txt why there is no result."""
        # The disk that is full must not hide the error that is being reported.
        with contextlib.suppress(OutputError):
            self.set_status("stopped" if stopped else "failed", code=code, message=f"{type(error).__name__}: {error}")
        if self._handler is not None:
            # Into the file alone: the caller prints the error.
            fields = {"name": "ptycho", "levelno": logging.ERROR, "levelname": "ERROR", "msg": f"{type(error).__name__}: {error}"}
            self._handler.handle(logging.makeLogRecord(fields))


def difference(old: str, new: str) -> str:
    """The first key in which two complete recipes ask for different runs, with both values; empty when there is none.

    Where the results and the data lie, and how often the state is kept, is no matter.
    """
    try:
        before, now = (_flat(tomllib.loads(text)) for text in (old, new))
    except tomllib.TOMLDecodeError:
        return "it cannot be read"
    for key in [*before, *(key for key in now if key not in before)]:
        if key not in _NO_MATTER and before.get(key) != now.get(key):
            shown = [json.dumps(tree[key]) if key in tree else "nothing" for tree in (before, now)]
            return f"{key} was {shown[0]} and is {shown[1]}"
    return ""


_NO_MATTER = ("data.path", "output.directory", "output.checkpoint_minutes", "output.checkpoint_epochs")


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Keys with dots, entries of lists by their number: solve.0.epochs."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = [(str(number), value) for number, value in enumerate(tree)]
    else:
        return {name: tree}
    return {key: value for part, item in items for key, value in _flat(item, f"{name}.{part}" if name else part).items()}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
