"""Formats that rosettasciio reads (the optional extra "formats"). It is imported here only, when such a file is opened.

rosettasciio is GPL-3.0: it is a program of its own that the user installs, and no part of this one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io.extra_check import refuse_unsafe
from ptycho.io.extra_stack import Stack, choose_stack, describe
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.source import MAX_IN_MEMORY, LateSource


@dataclass(frozen=True)
class _Kind:
    """rosettasciio's reader, what the file is called, and whether it is read part by part."""

    reader: str
    name: str
    lazy: bool = True


_DM, _TVIPS, _TIA = _Kind("digitalmicrograph", "Gatan DigitalMicrograph"), _Kind("tvips", "TVIPS"), _Kind("tia", "TIA", lazy=False)
_KINDS = {
    ".dm3": _DM, ".dm4": _DM, ".tvips": _TVIPS, ".ser": _TIA, ".emi": _TIA,
    ".prz": _Kind("pantarhei", "Panta Rhei"), ".zspy": _Kind("zspy", "HyperSpy zspy"), ".app5": _Kind("topspin", "NanoMEGAS Topspin"),
}  # fmt: skip
#: Suffixes that ``open_extra`` knows.
SUFFIXES = tuple(_KINDS)


def open_extra(path: Path, options: Options) -> FrameSource:
    """Frames of a file that rosettasciio reads. Raises DataError when it is not installed, cannot read the file, or finds no patterns.

    Patterns are read from the file when asked for; those of TIA and of compressed Panta Rhei files are in memory.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: the optional readers do not know {path.suffix or 'a file without suffix'!r}; they read {', '.join(SUFFIXES)}")
    if options.dataset is not None:
        raise DataError(f"{path}: the patterns in a {kind.name} file are found without a name; remove ::{options.dataset}")
    if not (path.suffix.lower() == ".zspy" and path.is_dir()) and file_size(path) > MAX_IN_MEMORY and not kind.lazy:
        raise DataError(f"{path}: a {kind.name} file must be read at once, and this one is too large for that; save it as HDF5 or MRC")
    stack = _stack(path, kind)
    header = Header(path, kind.reader, stack.n_frames, stack.frame_shape, np.dtype(stack.data.dtype), stack.scan_shape)
    describe(header, stack)
    if stack.detector_first:
        # A pattern lies all over the file: such a stack must be turned round in memory.
        return LateSource(header, partial(_turned, path, kind))
    source = _ExtraSource(header, stack, lambda: _stack(path, kind))
    source.read(np.array([0, header.n_frames - 1]))  # a file that has been cut shows it here
    return source


def _stack(path: Path, kind: _Kind) -> Stack:
    """The largest stack of patterns in the file."""
    with _quiet():
        reader = _reader(path, kind)
        lazy = kind.lazy and refuse_unsafe(path)
        more = {"mode": "r"} if kind.reader == "zspy" else {}
        try:
            signals = reader(str(path), lazy=lazy, **more)
            return choose_stack(path, kind.name, signals)
        except DataError:
            raise
        except Exception as error:  # it fails in any way there is, MemoryError and RecursionError included
            raise _failed(path, error, f"rosettasciio cannot read this {kind.name} file") from None


def _reader(path: Path, kind: _Kind) -> Callable[..., list[dict[str, Any]]]:
    try:
        return import_module(f"rsciio.{kind.reader}").file_reader
    except ImportError as error:
        missing = "" if (error.name or "").startswith("rsciio") else f" ({error.name} is missing)"
        raise DataError(f"{path}: a {kind.name} file needs the optional readers: pip install 'ptycho[formats]'{missing}") from None


def _failed(path: Path, error: Exception, what: str) -> DataError:
    """One line for any error; those of rosettasciio may have a number where others have their text."""
    return unreadable(path, ValueError(str(error) or type(error).__name__), what)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep rosettasciio's log and warnings off the screen; what matters is said by this program."""
    logger = logging.getLogger("rsciio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ImportError):
            import_module("rsciio")  # this sets its level, so it must come first
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _turned(path: Path, kind: _Kind) -> NDArray[Any]:
    data = _stack(path, kind).data
    try:
        whole = data if isinstance(data, np.ndarray) else data.compute(scheduler="synchronous")
        return np.ascontiguousarray(whole)
    except Exception as error:
        raise _failed(path, error, "patterns cannot be read") from None


class _ExtraSource:
    """Frames of an array of NumPy or dask, scan axes first. Implements FrameSource."""

    def __init__(self, header: Header, stack: Stack, load: Callable[[], Stack]) -> None:
        self.header = header
        self._stack: Stack | None = stack
        self._load = load

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored. Raises DataError when they cannot be read."""
        stack = self._stack or self._load()
        self._stack = stack
        distinct, back = np.unique(np.asarray(frames, np.int64), return_inverse=True)
        places = np.unravel_index(distinct, stack.data.shape[:-2])
        try:
            if isinstance(stack.data, np.ndarray):
                return stack.data[places][back]
            part = stack.data.vindex[(*places, slice(None), slice(None))].compute(scheduler="synchronous")
        except Exception as error:
            raise _failed(self.header.path, error, "patterns cannot be read") from None
        return np.asarray(part)[back]

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        self._stack = None
