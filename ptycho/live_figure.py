"""A picture of a reconstruction that a notebook shows, and draws anew, while it runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ptycho.live_page import live_picture
from ptycho.pace import Pace
from ptycho.preview import EVERY_S, Preview

if TYPE_CHECKING:
    from ptycho.result import Result

#: Share of a reconstruction's time that drawing may take.
_SHARE = 0.02


class LiveFigure:
    """Phase, probe and loss while a reconstruction runs: ``ptycho.reconstruct(data, on_epoch=ptycho.LiveFigure())`` in a notebook.

    It is drawn anew at most every ``every_s`` seconds, and takes at most a fiftieth of the time. Outside of a notebook nothing is shown; ``html``
    holds the last picture either way, and whoever asks for it later, or ends a cell with the object, sees it.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._result: Result | None = None
        self._html = ""
        self._pace = Pace(every_s, _SHARE)
        self._shown: Any = None

    def __call__(self, result: Result) -> None:
        """An epoch is over; ``result`` is what there is so far."""
        self._result, self._html = result, ""
        # A note tells of a stage's end, among other things: its last epoch is not left out.
        if not _in_notebook() or not (self._pace.due or result.history[-1].note):
            return
        with self._pace:
            self._show()

    @property
    def html(self) -> str:
        """The picture of the last epoch as HTML that needs nothing else; empty before the first."""
        if not self._html and self._result is not None:
            self._html = live_picture(Preview.of(self._result), self._result.history)
        return self._html

    def _repr_html_(self) -> str:
        return self.html

    def _show(self) -> None:
        from IPython.display import HTML, display

        if self._shown is None:
            self._shown = display(HTML(self.html), display_id=True)
        else:
            self._shown.update(HTML(self.html))


def _in_notebook() -> bool:
    """Whether there is a kernel that shows pictures: a terminal would only print their names."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
