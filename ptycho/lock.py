"""One writer at a time in a folder: a file that says who it is, and who is dead."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ptycho.atomic import unwritable, write_all
from ptycho.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
#: A writer touches its lock this often; one on another machine that has not for so long is dead.
HEARTBEAT_S, DEAD_AFTER_S = 15.0, 120.0


@dataclass(frozen=True)
class Owner:
    """A process: ``start`` tells it from a later one with the same number; empty where the system does not say."""

    host: str
    pid: int
    start: str
    since: float

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _start(os.getpid()), time.time())

    def alive(self, heartbeat: float) -> bool:
        """Whether it still runs; ``heartbeat`` is when it was last heard of, which tells of other machines."""
        if self.host != socket.gethostname():
            return time.time() - heartbeat < DEAD_AFTER_S
        return runs(self.pid) and _start(self.pid) == self.start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


class Lock:
    """The right to write into a folder, from :meth:`take` to :meth:`release`.

    On one machine (and on file systems that carry it) the system's own lock on the file decides, which ends with the process, however it ends. What
    is in the file decides where that does not reach: the owner, and the file's time as its heartbeat.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._handle: int | None = None
        self._owner: Owner | None = None

    def take(self) -> None:
        """Raises OutputError when another run has it, saying who, or when the folder cannot be written."""
        try:
            while self._handle is None:
                self._try()
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _try(self) -> None:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            supported = _system_lock(handle)
            # The run before may have taken its file away meanwhile.
            if supported is None or not _is(handle, self.path):
                if supported is None:
                    raise OutputError(held(self.path, _read_patiently(self.path)))
                return
            owner = read_owner(self.path)
            if owner is not None and owner.alive(os.fstat(handle).st_mtime):
                raise OutputError(held(self.path, owner))
            self._owner = Owner.me()
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            write_all(handle, json.dumps(asdict(self._owner)).encode())
            os.fsync(handle)
            if not supported:
                time.sleep(0.3)  # of several that came at once the last to write has it
            if read_owner(self.path) != self._owner:
                raise OutputError(held(self.path, read_owner(self.path)))
            self._handle = handle
        finally:
            if self._handle is None:
                os.close(handle)

    def beat(self) -> None:
        """Still alive. Raises OutputError when the lock is no longer this run's."""
        if self._handle is None:
            return
        try:
            if read_owner(self.path) != self._owner:
                raise OutputError(held(self.path, read_owner(self.path)))
            os.utime(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def release(self) -> None:
        """Others may write."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if read_owner(self.path) == self._owner:
                os.unlink(self.path)
        os.close(self._handle)
        self._handle = None


def read_owner(path: Path) -> Owner | None:
    """Who a lock file says it is; None without one, or where it is not one."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def holder(folder: Path) -> Owner | None:
    """The living process that writes into ``folder``; None if there is none."""
    path = folder / LOCK
    owner = read_owner(path)
    try:
        return owner if owner is not None and owner.alive(path.stat().st_mtime) else None
    except OSError:
        return None


def held(path: Path, owner: Owner | None) -> str:
    """The sentence for the one who comes second."""
    return f"{path.parent}: another run writes here ({owner or 'it has just begun'}); wait for it, or give another folder with -o"


def _read_patiently(path: Path) -> Owner | None:
    """The winner writes its name after it has won."""
    for _ in range(20):
        if (owner := read_owner(path)) is not None:
            return owner
        time.sleep(0.05)
    return None


def _system_lock(handle: int) -> bool | None:
    """Whether the system's lock is ours; False where there is no such thing, None where somebody else has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def runs(pid: int) -> bool:
    """Whether there is a process of this number here that is not merely waiting to be buried; True where the system cannot be asked."""
    if os.name != "posix":
        return True  # there the question would be a signal
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


def _start(pid: int) -> str:
    """When a process began, in the system's own count since it was started itself; empty where /proc does not say, or nothing runs any more."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in ("Z", "X") else f"{boot}/{rest[18]}"
