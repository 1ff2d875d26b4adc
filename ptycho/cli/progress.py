"""What a person sees of a run: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho.result import EpochRecord


class _Plain(logging.Formatter):
    """The message alone; what is more than news says so."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


@contextmanager
def shown(epochs: int) -> Iterator[Callable[[EpochRecord, int], None]]:
    """Show the package's log, and a bar of so many epochs when stderr is a terminal; gives what is to be called after each epoch."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    terminal = sys.stderr.isatty()
    logger = logging.getLogger("ptycho")
    level = logger.level
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    handler.setLevel(logging.WARNING if terminal else logging.INFO)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    # A bar on which nothing happened goes away again, so that an error stands alone.
    bar: tqdm[Any] = tqdm(total=epochs, unit="epoch", disable=not terminal, leave=False, dynamic_ncols=True)

    def show(record: EpochRecord, total: int) -> None:
        bar.leave, bar.total = True, total
        bar.set_postfix(loss=f"{record.loss:.5f}", refresh=False)
        bar.update()

    try:
        with bar, logging_redirect_tqdm([logger]):
            yield show
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
