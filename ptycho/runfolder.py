"""The run folder: one folder, one run; what is in it can be read at any moment."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptycho.errors import OutputError
from ptycho.result import EpochRecord

STATUS = "status.json"


class RunFolder:
    """recipe.toml, log.txt, metrics.jsonl and status.json of a run; the results are written by :mod:`ptycho.io.result_file`.

    Making the object only looks: it raises OutputError when the folder holds something already (``fresh`` will move that aside,
    nothing is deleted) or cannot be written. ``create`` makes the folder, so that a run whose data are bad leaves nothing behind.
    """

    def __init__(self, path: str | Path, fresh: bool = False) -> None:
        self.path, self.fresh = Path(path).expanduser(), fresh
        self.started = time.time()
        self._handler: logging.Handler | None = None
        self._said: dict[str, Any] = {}
        try:
            self._check()
        except OSError as error:
            raise self._unwritable(error) from None

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: this is a file; give another folder with -o")
        if self._holds_something() and not self.fresh:
            raise OutputError(f"{self.path}: the folder is not empty; give another with -o, or --fresh to move the old one aside")
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir():
            raise OutputError(f"{self.path}: {existing} is a file; give another folder with -o")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"{self.path}: {existing} cannot be written; give a folder that can be written with -o")

    def _holds_something(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def keep_out(self, data: Path) -> None:
        """Raise OutputError when ``data`` lie in the folder that is to be moved aside."""
        if self.fresh and self.path.resolve() in data.resolve().parents:
            raise OutputError(f"{self.path}: --fresh would move {data.name} aside, which is to be read; give another folder with -o")

    def create(self) -> None:
        """Make the folder, with status.json as the sign that it is taken. Raises OutputError."""
        try:
            self._check()  # again: reading the data may have taken an hour
            if self._holds_something():
                os.rename(self.path, self._aside())
            self.path.mkdir(parents=True, exist_ok=True)
            open(self.path / STATUS, "x").close()
        except FileExistsError:
            raise OutputError(f"{self.path}: another run has just begun here; give another folder with -o") from None
        except OSError as error:
            raise self._unwritable(error) from None
        self.started = time.time()

    def _aside(self) -> Path:
        """A free name beside the folder."""
        stamp = f"{self.path.absolute().name}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
        return next(path for path in map(self.path.absolute().with_name, names) if not path.exists())

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: {error.strerror or error}; give a folder that can be written with -o")

    def open_log(self, logger: logging.Logger) -> None:
        """From here on the logger writes to log.txt as well, news included."""
        self._handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
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
            self._handler.close()
            self._handler = None

    def write(self, name: str, text: str) -> None:
        """Write a small text file so that it is either the old one or the new one, never half of it."""
        target, temporary = self.path / name, self.path / f".{name}.part"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise OutputError(f"{target}: {error.strerror or error}; free some space or give another folder with -o") from None

    def add_epoch(self, record: EpochRecord) -> None:
        """One more line of metrics.jsonl."""
        target = self.path / "metrics.jsonl"
        try:
            with open(target, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        except OSError as error:
            raise OutputError(f"{target}: {error.strerror or error}; free some space or give another folder with -o") from None

    def set_status(self, state: str, **more: Any) -> None:
        """status.json: running, finished, failed or stopped, with what else is known; what was said before stays."""
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
