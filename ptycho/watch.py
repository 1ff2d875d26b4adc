"""A page on this machine that shows a run while it goes on, from the files in its folder alone.

Two things are served and nothing else: the page, made anew each time, and the report of a finished run. No name that a browser sends is ever made
into a path, what lies in the folder as a link that leads out of it is not there, and only programs on this machine can ask.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ptycho.live_page import live_page
from ptycho.preview import EVERY_S, PREVIEW, Preview
from ptycho.report import REPORT, logged_warnings
from ptycho.result import EpochRecord
from ptycho.runs import Run, look

HOST = "127.0.0.1"
#: Names by which a browser calls this machine: a page from elsewhere whose name leads here is refused. The port may be a tunnel's.
_HERE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
#: A page that has asked so lately is open.
_OPEN_S = 2.5 * EVERY_S
#: Larger files than this are no part of a page.
_MOST_BYTES = 1 << 29


class Watch:
    """The server of one run's page, until :meth:`close`; ``port`` 0 takes a free one. Raises OSError when the port is taken."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder.absolute()
        self._server = _Server((HOST, port), _Handler)
        self._server.folder = self.folder
        self.url = f"http://{HOST}:{self._server.server_address[1]}/"

    def serve(self) -> None:
        """Answer until Ctrl-C, or until closed from another thread."""
        self._server.serve_forever(poll_interval=0.2)

    def linger(self) -> None:
        """Wait until an open page knows how the run has ended; not for long, and not without one."""
        ended = time.monotonic()
        while time.monotonic() - ended < _OPEN_S and self._server.asked > ended - _OPEN_S and not self._server.told_end:
            time.sleep(0.05)

    def close(self) -> None:
        """Nobody is answered any more."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    """Serve the page of the run in ``folder`` (which may not be there yet) in the background; gives its address."""
    watch = Watch(folder)
    threading.Thread(target=watch.serve, name="watch", daemon=True).start()
    try:
        yield watch.url
    finally:
        watch.linger()
        watch.close()


def page_of(folder: Path) -> tuple[Run, str]:
    """How the run stands, and its page."""
    inside = {name: _content(folder, name) for name in ("status.json", "metrics.jsonl", "log.txt", PREVIEW, "phase.png")}
    run = look(folder) if inside["status.json"] is not None else Run(folder, "waiting")
    preview = None
    if run.state != "finished" and (content := inside[PREVIEW]) is not None:
        with contextlib.suppress(ValueError):
            preview = Preview.parse(content)
    warnings = logged_warnings((inside["log.txt"] or b"").decode("utf-8", "replace"))
    picture = inside["phase.png"] if run.state == "finished" else None
    return run, live_page(run, preview, _history(inside["metrics.jsonl"] or b""), warnings, picture)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    folder: Path
    #: When a page was last asked for, and whether one has been told that the run has ended, report included.
    asked, told_end = float("-inf"), False


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: _Server
    server_version, sys_version = "ptycho", ""
    timeout = 10

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        code, body = self._response()
        with contextlib.suppress(OSError):  # it has gone away
            self.send_response(code)
            headers = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
            for name, value in {**headers, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    def _response(self) -> tuple[HTTPStatus, bytes]:
        server = self.server
        if not _HERE.fullmatch(self.headers.get("Host", "")):
            return HTTPStatus.FORBIDDEN, b"this page is for the machine that it is made on: ask for 127.0.0.1 or localhost\n"
        name = self.path.partition("?")[0]
        if name == "/":
            run, page = page_of(server.folder)
            server.asked = time.monotonic()
            # After this answer the page of a finished run asks for the report.
            server.told_end = server.told_end or run.state not in ("running", "waiting", "finished")
            return HTTPStatus.OK, page.encode()
        if name == f"/{REPORT}" and (content := _content(server.folder, REPORT)) is not None:
            server.told_end = True
            return HTTPStatus.OK, content
        return HTTPStatus.NOT_FOUND, b"there is only / and, of a finished run, /report.html\n"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the run's."""


def _content(folder: Path, name: str) -> bytes | None:
    """A file of the folder; None when it is not there, is no plain file, or is a link that leads out of the folder."""
    path = folder / name
    try:
        if path.resolve(strict=True).parent != folder.resolve() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        return path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: a ring of links
        return None


def _history(metrics: bytes) -> Sequence[EpochRecord]:
    """The epochs in metrics.jsonl; a line that is still being written is left for later."""
    records = []
    for line in metrics.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            tree = json.loads(line)
            records.append(EpochRecord(int(tree["stage"]), str(tree["kind"]), int(tree["epoch"]), float(tree["loss"]), float(tree["seconds"]),
                                       None if tree.get("held_out") is None else float(tree["held_out"])))  # fmt: skip
    return records
