"""Signals that ask a run to stop: they set a flag, the run looks at it between its batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ptycho.errors import Stopped

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class StoppedAtOnce(KeyboardInterrupt):
    """A signal while there is nothing new to keep yet: Ctrl-C's way out, which no reader of files takes for a damaged file."""

    exit_code = Stopped.exit_code


class StopRequest:
    """Whether somebody has asked the run to stop; to be called between batches.

    Before the first call there is nothing to keep, and a signal ends the program where it is. A second Ctrl-C always does; a third does not wait.
    """

    def __init__(self) -> None:
        self.name = ""
        self._asked, self._interrupts = False, 0

    def __call__(self) -> bool:
        """True from the first signal on."""
        self._asked = True
        return bool(self.name)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self.name = signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 2:
            os._exit(130)
        if self._interrupts == 2:
            raise KeyboardInterrupt
        if not self._asked:
            raise StoppedAtOnce(f"stopped by {self.name} before the first batch; give the same command again")


@contextmanager
def stopping() -> Iterator[StopRequest]:
    """Signals ask to stop inside; Stopped is raised, or comes from inside."""
    request = StopRequest()
    before: dict[int, Any] = {}
    try:
        for name in _NAMES:
            if hasattr(signal, name):  # Windows has two of them
                number = getattr(signal, name)
                before[number] = signal.signal(number, request.handle)
        yield request
    except StoppedAtOnce as now:
        raise Stopped(str(now)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
