"""What all readers share about files: their size, their order, names that may be followed, and errors as one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.atomic import usual_mode
from ptycho.errors import DataError


def file_size(path: Path) -> int:
    """Size in bytes. Raises DataError for a missing file, a folder, a pipe or device, or an empty file."""
    try:
        if path.is_dir():
            raise DataError(f"{path}: this is a folder; name a file in it")
        size = path.stat().st_size
        regular = path.is_file()
    except FileNotFoundError:
        # TOML has made a tab of the \t in "C:\temp".
        hint = "" if str(path).isprintable() else r"; a \ in double quotes begins an escape: write the path in 'single quotes'"
        raise DataError(f"{path}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    if not regular:
        raise DataError(f"{path}: this is a pipe or a device, not a file")
    if not size:
        raise DataError(f"{path}: the file is empty")
    return size


def unreadable(path: Path, error: Exception, what: str = "cannot be read") -> DataError:
    """A library's error about a file as one line."""
    return DataError(f"{path}: {what} ({_reason(error)}); is it complete and of the right format?")


def _reason(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__)
    return text if len(text) <= 120 else text[:117] + "..."


def beside(path: Path, name: str) -> Path:
    """The file ``name`` in the folder of ``path``, for names that stand in a file. Raises DataError unless it is a plain name.

    A data file must not make the program open files elsewhere: no folders, no drives, and no symbolic link that leads out.
    """
    plain = name.removeprefix("./")
    if not plain or plain in (".", "..") or not plain.isprintable() or re.search(r"[/\\:]", plain):
        raise DataError(f"{path}: it names {name[:80]!r}; only a file in its own folder can be followed")
    found = path.with_name(plain)
    try:
        inside = found.resolve().parent == path.resolve().parent
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise DataError(f"{path}: it names {name[:80]!r}, which leads out of its folder; copy that file there")
    return found


def publish(temporary: Path, path: Path) -> None:
    """Move a complete file to its place, readable as a file made in the usual way."""
    temporary.chmod(usual_mode())
    os.replace(temporary, path)


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key by which "p2" comes before "p10"."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(1, int(part), "") if part.isdecimal() and len(part) < 19 else (0, 0, part) for part in parts]


def factor_pairs(number: int, limit: int = 8) -> str:
    """The (slow, fast) shapes that a number of frames allows, most square first: "36 x 64, 64 x 36"."""
    small = [n for n in range(int(number**0.5), 0, -1) if number % n == 0][: limit // 2]
    pairs = [pair for n in small for pair in dict.fromkeys([(n, number // n), (number // n, n)])]
    return ", ".join(f"{slow} x {fast}" for slow, fast in pairs)


def read_csv(path: Path) -> NDArray[np.float64]:
    """Numbers separated by commas or blanks; a first line of names is allowed."""
    lines = path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    lines = lines[1:] if lines and _is_heading(lines[0]) else lines
    if not lines:
        raise ValueError("there are no numbers in it")
    return np.loadtxt(lines, ndmin=2)


def _is_heading(line: str) -> bool:
    try:
        [float(word) for word in line.split()]
    except ValueError:
        return True
    return False
