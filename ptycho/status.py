"""How a run stands, as its folder tells; also of one that has been killed."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptycho.errors import DataError
from ptycho.lock import DEAD_AFTER_S, LOCK, Owner

STATUS = "status.json"
#: ``stopped``: by a signal, with a checkpoint; ``dead``: it says that it runs, and does not.
State = Literal["running", "finished", "failed", "stopped", "dead"]


@dataclass(frozen=True)
class Status:
    """status.json, with ``state`` as it is; of what was not said yet None.

    ``epoch`` is the last complete one of at most ``epochs``, ``code`` the exit code of what has ended, ``message`` why; times in seconds since 1970.
    """

    state: State
    pid: int
    host: str
    started: float
    updated: float
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    held_out: float | None = None
    code: int | None = None
    message: str | None = None
    checkpoint: str | None = None


def read_status(folder: str | os.PathLike[str]) -> Status:
    """How the run in ``folder`` stands now. Raises DataError when there is none, or it cannot be read."""
    path = Path(folder) / STATUS
    try:
        said: dict[str, Any] = json.loads(path.read_bytes())
        known = {name: said[name] for name in Status.__dataclass_fields__ if name in said}
        status = Status(**known)
    except FileNotFoundError:
        raise DataError(f"{folder}: there is no {STATUS} in it; name the folder of a run") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not the status of a run ({error})") from None
    if status.state != "running" or _alive(Path(folder), said, status):
        return status
    return Status(**(known | {"state": "dead", "message": f"process {status.pid} on {status.host} has ended without a word"}))


def _alive(folder: Path, said: dict[str, Any], status: Status) -> bool:
    if status.host == socket.gethostname():
        return Owner(status.host, status.pid, str(said.get("process", "")), status.started).alive(status.updated)
    try:
        heard = max(status.updated, (folder / LOCK).stat().st_mtime)
    except OSError:
        heard = status.updated
    return time.time() - heard < DEAD_AFTER_S
