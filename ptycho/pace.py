"""How often something beside the point may be done: not too often for an eye, and never for more than a small share of the time."""

from __future__ import annotations

import time
from types import TracebackType


class Pace:
    """Says when it is time again. What is done inside ``with pace:`` is timed; the next time comes no sooner than ``least_s`` seconds afterwards,
    and so late that it has taken at most ``share`` of the time. The first time is at once."""

    def __init__(self, least_s: float, share: float) -> None:
        self.least_s, self.share = least_s, share
        #: Seconds that all of them have taken.
        self.spent_s = 0.0
        self._next = self._began = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def __enter__(self) -> Pace:
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        now = time.monotonic()
        took = now - self._began
        self.spent_s += took
        self._next = now + max(self.least_s, took / self.share)
