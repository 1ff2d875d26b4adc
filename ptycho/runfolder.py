"""The run folder: one folder, one run; what is in it can be read at any moment."""

from __future__ import annotations

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


class RunFolder:
    """recipe.toml, log.txt, metrics.jsonl and status.json of a run; the results are written by :mod:`ptycho.io.result_file`.

    Raises OutputError when the folder holds something already (``fresh`` moves it aside, nothing is deleted) or cannot be written.
    """

    def __init__(self, path: str | Path, fresh: bool = False) -> None:
        self.path = Path(path)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"{self.path}: this is a file; give another folder with -o")
            if self.path.exists() and any(self.path.iterdir()):
                self._make_room(fresh)
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}; give a folder that can be written with -o") from None
        self._handler: logging.Handler | None = None
        self.started = time.time()

    def _make_room(self, fresh: bool) -> None:
        if not fresh:
            raise OutputError(f"{self.path}: the folder is not empty; give another with -o, or --fresh to move the old one aside")
        aside = self.path.with_name(f"{self.path.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        os.rename(self.path, aside)

    def open_log(self, logger: logging.Logger) -> None:
        """From here on the logger writes to log.txt as well."""
        self._handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self._handler)

    def close_log(self, logger: logging.Logger) -> None:
        """The log file is complete."""
        if self._handler is not None:
            logger.removeHandler(self._handler)
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
            raise OutputError(f"{target}: {error.strerror or error}") from None

    def add_epoch(self, record: EpochRecord) -> None:
        """One more line of metrics.jsonl."""
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path / 'metrics.jsonl'}: {error.strerror or error}") from None

    def set_status(self, state: str, **more: Any) -> None:
        """status.json: running, finished, failed or stopped, with what else is known."""
        status = {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "started": self.started, "updated": time.time(), **more}
        self.write("status.json", json.dumps(status, indent=1) + "\n")
