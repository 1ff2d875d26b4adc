"""What a person sees of a run: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho.result import EpochRecord


class _Console(logging.Handler):
    """Messages on stderr, above the bar if there is one; what is more than news says so."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        from tqdm import tqdm

        text = record.getMessage()
        tqdm.write(text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}", file=sys.stderr)


@contextmanager
def silent() -> Iterator[None]:
    """Show nothing of the package's log: another process does."""
    logger, handler = logging.getLogger("ptycho"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def shown(epochs: int) -> Iterator[Callable[[EpochRecord, int], None]]:
    """Show the package's log, and a bar of so many epochs when stderr is a terminal; gives what is to be called after each epoch."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    logger = logging.getLogger("ptycho")
    level = logger.level
    handler = _Console(logging.WARNING if terminal else logging.INFO)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    # A bar on which nothing happened goes away again, so that an error stands alone.
    size = shutil.get_terminal_size()  # tqdm believes a terminal that says it has no columns
    bar: tqdm[Any] = tqdm(total=epochs, unit="epoch", disable=not terminal, leave=False, ncols=size.columns, nrows=size.lines)

    def show(record: EpochRecord, total: int) -> None:
        bar.leave, bar.total = True, total
        shown = {"loss": f"{record.loss:.5f}"} | ({} if record.held_out is None else {"held_out": f"{record.held_out:.4f}"})
        bar.set_postfix(shown, refresh=False)
        bar.update(record.epoch - bar.n)  # a run that goes on begins in the middle

    try:
        with bar:
            yield show
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def counted(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar when stderr is a terminal; gives what is to be called with (done, in all)."""
    from tqdm import tqdm

    size = shutil.get_terminal_size()
    bar: tqdm[Any] = tqdm(unit=unit, disable=not sys.stderr.isatty(), leave=False, ncols=size.columns, nrows=size.lines)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield show
