"""Files that are either the old ones or the new ones, never half of it, whatever happens in between.

A new file is written beside the old one, brought to the disk, and renamed over it: what a reader, a crash or a power cut finds under the
name is complete. Nothing here knows what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from ptycho.errors import OutputError

#: End of the names of files and folders that are not complete; whoever owns the folder may remove them.
PART = ".part"
#: What file systems say that cannot bring a folder to the disk.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_file(path: Path, content: bytes | memoryview, lasting: bool = True) -> Path:
    """Put ``content`` at ``path`` in one step; an older file stays until then. Raises OutputError, with what is needed and what is free.

    What need not be ``lasting`` is not waited for until it is on the disk: a power cut may leave an empty file.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(PART, f".{path.name}.", path.parent)
        try:
            write_all(handle, content)
            if lasting:
                os.fsync(handle)
        finally:
            os.close(handle)
        os.chmod(temporary, usual_mode())
        os.replace(temporary, path)
        if lasting:
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error, len(content)) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return path


def write_all(handle: int, content: bytes | memoryview) -> None:
    """All of it: one call may write a part, 2 GB at the most."""
    left = memoryview(content).cast("B")
    while left:
        left = left[os.write(handle, left) :]


def sync_folder(folder: Path) -> None:
    """Make new names survive a power cut; some file systems (and Windows) cannot, and need not, do this."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        finally:
            os.close(handle)


def make_folder(folder: Path, wanted: Path | None = None) -> None:
    """Make ``folder`` and all above it that is not there. Raises OutputError that names it, or what is ``wanted`` in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(wanted or folder, error) from None


def unwritable(path: Path, error: OSError, n_bytes: int = 0) -> OutputError:
    """The error of a file or folder that cannot be written, in one line."""
    message = f"{path}: cannot be written ({error.strerror or error})"
    with contextlib.suppress(OSError, StopIteration):
        existing = next(folder for folder in path.absolute().parents if folder.is_dir())
        needed = f"needs {n_bytes / 1e6:.1f} MB, " if n_bytes else ""
        message += f"; {needed}{shutil.disk_usage(existing).free / 1e6:.1f} MB free on {existing}"
    return OutputError(message + "; free some space or choose another folder with -o")


def usual_mode() -> int:
    """The rights of a file that is made in the usual way."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
