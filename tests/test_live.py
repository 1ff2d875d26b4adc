"""The live view: what a run leaves behind for it, what the page says, and that nothing else can be read through it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import GIVEN, environment, run, write_npy
from matplotlib.image import imread
from numpy.typing import NDArray
from test_result import PNG, make

import ptycho
from ptycho.lock import Owner
from ptycho.loss_curve import loss_svg
from ptycho.pace import Pace
from ptycho.preview import PREVIEW, Preview, PreviewWriter
from ptycho.result import EpochRecord
from ptycho.status import STATUS
from ptycho.watch import Watch, page_of, watched

HISTORY = tuple(EpochRecord(epoch > 2, "gradient", epoch, 1 / epoch, 0.5, 1 + 1 / epoch) for epoch in range(1, 5))

#: Four bytes are no picture of nine pixels.
BROKEN = b'{"epoch": 1, "phase": {"pixels": "AAAA", "shape": [3, 3], "width_A": 1, "height_A": 1, "low": 0, "high": 1}, "probe": {}}'


def begin(folder: Path, state: str = "running", **more: Any) -> Path:
    """A run's folder with a state, four epochs and a preview."""
    folder.mkdir(exist_ok=True)
    now = time.time()
    status = {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "started": now, "updated": now, "process": Owner.me().start}
    (folder / STATUS).write_text(json.dumps(status | {"epoch": 4, "epochs": 20, "loss": 0.25, "held_out": 1.25} | more))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(vars(record)) + "\n" for record in HISTORY))
    (folder / PREVIEW).write_text(Preview.of(make(history=HISTORY)).text())
    return folder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A run's folder and the port of its page."""
    folder = begin(tmp_path / "run")
    watch = Watch(folder)
    threading.Thread(target=watch.serve, daemon=True).start()
    yield folder, int(watch.url.rsplit(":", 1)[1].strip("/"))
    watch.close()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    """The answer to a path exactly as it is written here."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_pace_keeps_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace(2.0, 0.01)
    assert pace.due
    with pace:
        now += 0.001
    assert not pace.due
    now += 1.9
    assert not pace.due
    now += 0.2
    assert pace.due
    with pace:
        now += 0.3
    now += 29.0
    assert not pace.due
    now += 1.1
    assert pace.due and pace.spent_s == pytest.approx(0.301)


def test_a_preview_is_the_phase_and_the_probe_of_the_scanned_field() -> None:
    result = make(history=HISTORY)
    preview = Preview.parse(Preview.of(result).text().encode())
    assert preview == Preview.of(result) and preview.epoch == 4
    field = result.phase[(slice(None), *result.scanned)].sum(0)
    assert preview.phase.width_A == pytest.approx(field.shape[1] * result.pixel_A)
    assert preview.phase.height_A == pytest.approx(field.shape[0] * result.pixel_A)
    assert preview.phase.low <= np.median(field) <= preview.phase.high
    drawn = imread(io.BytesIO(base64.b64decode(preview.phase.png())))
    factor = drawn.shape[0] / field.shape[0]
    assert factor == int(factor) and drawn.shape[1] == factor * field.shape[1]
    # Brighter is more, at every pixel of the object.
    middle = drawn[int(factor) // 2 :: int(factor), int(factor) // 2 :: int(factor), :3].sum(-1)
    assert np.corrcoef(middle.ravel(), field.ravel())[0, 1] > 0.95


def test_large_pictures_are_made_coarser() -> None:
    result = make(history=HISTORY)
    rows, columns = 1500, 900
    corners = np.array([[0.0, 0.0], [rows - 1.0, columns - 1.0]]) * result.pixel_A
    wide = replace(result, object=np.ones((1, 1, rows, columns), np.complex64), positions_A=corners)
    panel = Preview.of(wide).phase
    assert imread(io.BytesIO(base64.b64decode(panel.png()))).shape[:2] == (500, 300)
    assert panel.height_A == pytest.approx(1500 * result.pixel_A)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"epoch": 1}', BROKEN, BROKEN.replace(b"AAAA", b'\\"><script>')])
def test_a_broken_preview_is_no_preview(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Preview.parse(text)
    (begin(tmp_path / "run") / PREVIEW).write_bytes(text)
    assert "><script>" not in page_of(tmp_path / "run")[1]


def test_a_run_writes_previews_and_takes_them_away_when_it_is_complete(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> None:
    data = ptycho.read(write_npy(tmp_path, disk_patterns), voltage_kV=80, semiangle_mrad=24.9, step_A=0.4, defocus_A=20)
    seen: list[tuple[int, int]] = []

    def look(result: ptycho.Result) -> None:
        preview = Preview.parse((tmp_path / "run" / PREVIEW).read_bytes())
        seen.append((result.history[-1].epoch, preview.epoch))

    shown = ptycho.reconstruct(data, epochs=3, device="cpu", output=tmp_path / "run", on_epoch=look)
    # The second comes two seconds after the first, at the earliest.
    assert [epoch for epoch, _ in seen] == [1, 2, 3] and seen[0] == (1, 1)
    assert not (tmp_path / "run" / PREVIEW).exists()
    # Looking changes nothing.
    np.testing.assert_array_equal(shown.object, ptycho.reconstruct(data, epochs=3, device="cpu").object)


def test_a_full_disk_stops_no_run(tmp_path: Path) -> None:
    writer = PreviewWriter(tmp_path / "not there")
    writer(lambda: make(history=HISTORY))
    writer = PreviewWriter(tmp_path)
    bad = make(history=HISTORY)
    writer(lambda: replace(bad, probe=bad.probe * np.nan))
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_a_run(served: tuple[Path, int]) -> None:
    folder, port = served
    status, page = ask(port, "/")
    text = page.decode()
    assert status == 200 and "epoch 4 of at most 20" in text and "held out 1.2500" in text and "8 s left" in text
    assert text.count("<img") == 4 and "<svg" in text and 'data-state="running"' in text
    assert ask(port, "/?again")[0] == 200
    assert ask(port, "/", "HEAD") == (200, b"")
    (folder / "log.txt").write_text("2026-01-01 00:00:00,000 WARNING there is <b>a grid</b>\n")
    assert "there is &lt;b&gt;a grid" in ask(port, "/")[1].decode()
    assert ask(port, "/report.html")[0] == 404


def test_what_it_says_of_every_state(tmp_path: Path) -> None:
    assert "waiting" in page_of(tmp_path / "not there")[1]
    for state, message, said in (
        ("failed", "DivergedError: too far", "DivergedError: too far"), ("stopped", "stopped in epoch 5", "goes on from the checkpoint"),
    ):  # fmt: skip
        page = page_of(begin(tmp_path / "run", state, message=message))[1]
        assert f"<b>{state}</b>" in page and said in page
    page = page_of(begin(tmp_path / "run", pid=2**22 + 1))[1]
    assert "<b>dead</b>" in page and "without a word" in page
    (begin(tmp_path / "run", "finished") / "phase.png").write_bytes(PNG)
    page = page_of(tmp_path / "run")[1]
    assert "<b>finished</b>" in page and '<a href="report.html">' in page and base64.b64encode(PNG).decode() in page
    (tmp_path / "run" / STATUS).write_text("{")
    assert "<b>unreadable</b>" in page_of(tmp_path / "run")[1]


def test_of_a_finished_run_the_report_is_served(served: tuple[Path, int]) -> None:
    folder, port = served
    (begin(folder, "finished") / "report.html").write_text("<p>all of it")
    assert ask(port, "/report.html") == (200, b"<p>all of it")


@pytest.mark.parametrize("path", [
    "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "//secret.txt", "/./secret.txt",
    "/report.html/../../secret.txt", "/status.json", "/recipe.toml", "/run", "/checkpoints/", "/report.html%00", "/report.html/",
    "/REPORT.HTML/..", "report.html", "/\\..\\secret.txt",
    "http://127.0.0.1/report.html", "/etc/passwd", "//etc/passwd",
])  # fmt: skip
def test_no_other_path_can_be_read(served: tuple[Path, int], path: str) -> None:
    folder, port = served
    (folder.parent / "secret.txt").write_text("secret")
    for name in ("report.html", "recipe.toml"):
        (folder / name).write_text("mine")
    status, body = ask(port, path)
    assert status in (400, 404) and b"secret\n" not in body and b"mine" not in body and b"root:" not in body
    assert ask(port, str(folder.parent / "secret.txt"))[0] == 404


def test_links_out_of_the_folder_are_not_followed(served: tuple[Path, int]) -> None:
    folder, port = served
    begin(folder, "finished")
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret 2026-01-01 00:00:00,000 WARNING secret")
    for name in ("report.html", "phase.png", "log.txt", "metrics.jsonl", PREVIEW):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / "secret.txt")
    assert ask(port, "/report.html")[0] == 404
    status, body = ask(port, "/")
    assert status == 200 and b"secret" not in body and base64.b64encode(b"secret") not in body
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    assert ask(port, "/report.html")[0] == 404
    (folder / "report.html").rmdir()
    (folder / "report.html").symlink_to("report.html")
    assert ask(port, "/report.html")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_pages_of_others_cannot_ask(served: tuple[Path, int], host: str) -> None:
    assert ask(served[1], "/", host=host)[0] == 403
    assert ask(served[1], "/", host="localhost:1234")[0] == 200  # a tunnel's end


def test_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    try:
        assert watch._server.server_address[0] == "127.0.0.1"
        with pytest.raises(OSError, match="in use"):
            Watch(tmp_path, int(watch.url.split(":")[2].strip("/")))
    finally:
        watch._server.server_close()


def test_nothing_is_run_or_fetched_but_its_own_script(served: tuple[Path, int]) -> None:
    page = ask(served[1], "/")[1].decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and "default-src &#x27;none&#x27;" in policy[1] and page.count("<script>") == 1
    script = page.partition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy[1]
    assert "http://" not in page and "https://" not in page


def test_an_open_page_hears_of_the_end(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    with watched(folder) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        ask(port, "/")
        begin(folder, "failed", message="it broke")
        began = time.monotonic()
        answers: list[bytes] = []
        later = threading.Timer(0.3, lambda: answers.append(ask(port, "/")[1]))
        later.start()
    later.join()
    assert b"it broke" in answers[0] and time.monotonic() - began < 4
    began = time.monotonic()
    with watched(folder):
        pass
    assert time.monotonic() - began < 2  # nobody looks


def test_reconstruct_live_tells_where(tmp_path: Path, disk_patterns: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("reconstruct", write_npy(tmp_path, disk_patterns), *GIVEN, "--live")
    assert ran.code == 0, ran.err
    assert re.search(r"^live: http://127\.0\.0\.1:\d+/$", ran.err, re.MULTILINE) and "report: run" in ran.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_serves_until_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    folder = begin(tmp_path / "run", "finished")
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "ptycho", "watch", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            found = re.match(r"live: http://127\.0\.0\.1:(\d+)/", line)
            assert found is not None, line
            status, page = ask(int(found[1]), "/")
            process.send_signal(number)
            assert process.wait(20) == 0 and process.stderr.read() == ""
        finally:
            process.kill()
    assert status == 200 and b"finished" in page


def test_watch_says_what_is_wrong(tmp_path: Path) -> None:
    ran = run("watch", tmp_path / "not there")
    assert ran.code == 4 and "no such folder" in ran.err
    (tmp_path / "file").touch()
    assert run("watch", tmp_path / "file").code == 4
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = run("watch", tmp_path, "--port", taken.getsockname()[1])
    assert ran.code == 2 and "take another" in ran.err


def test_the_loss_curve() -> None:
    assert loss_svg(()) == ""
    svg = loss_svg(HISTORY)
    assert svg.count("<polyline") == 2 and svg.count("#ccc") == 1
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', svg)[1].split()]
    x, y = np.array(points).T
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all()  # downwards is more
    steep = loss_svg([replace(record, loss=10.0 ** -record.epoch, held_out=None) for record in HISTORY])
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', steep)[1].split()]
    np.testing.assert_allclose(np.diff(points, axis=0)[:, 1], np.diff(points, axis=0)[0, 1], atol=0.2)  # decades are even
    many = [replace(HISTORY[0], epoch=epoch, held_out=None) for epoch in range(1, 4000)]
    assert len(loss_svg(many)) < 20_000
    assert "nan" not in loss_svg([replace(HISTORY[0], loss=float("nan"))]) and "<polyline" in loss_svg([replace(HISTORY[0], held_out=float("nan"))])


class Notebook:
    """Stands in for IPython with a kernel."""

    def __init__(self, kernel: object) -> None:
        self.shown: list[str] = []
        self.module = types.ModuleType("IPython")
        self.module.get_ipython = lambda: types.SimpleNamespace(kernel=kernel)  # type: ignore[attr-defined]
        self.display = types.ModuleType("IPython.display")
        self.display.HTML = str  # type: ignore[attr-defined]
        self.display.display = self.show  # type: ignore[attr-defined]

    def show(self, what: str, display_id: bool) -> Notebook:
        self.shown.append(what)
        return self

    def update(self, what: str) -> None:
        self.shown.append(what)


@pytest.mark.parametrize(("kernel", "epochs"), [(object(), [1, 2, 4]), (None, [])])
def test_a_notebook_shows_a_figure_and_a_terminal_none(kernel: object, epochs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(kernel)
    monkeypatch.setitem(sys.modules, "IPython", notebook.module)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook.display)
    figure = ptycho.LiveFigure(every_s=1000)
    assert figure.html == ""
    for record in HISTORY:
        noted = replace(record, note="all epochs done" if record.epoch in (2, 4) else "")
        figure(make(history=(*HISTORY[: record.epoch - 1], noted)))
    # The first at once, then only what ends a stage: a thousand seconds are not over.
    assert [int(re.search(r"epoch (\d+)", html)[1]) for html in notebook.shown] == epochs
    assert "epoch 4" in figure.html and figure._repr_html_() == figure.html and "<svg" in figure.html


def test_without_ipython_the_figure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    figure = ptycho.LiveFigure()
    figure(make(history=HISTORY))
    assert "IPython" not in sys.modules and "epoch 4" in figure.html
