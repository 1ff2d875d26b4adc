"""What a run looks like while it goes on, as HTML: phase, probe and loss for a notebook, and the page that ``ptycho watch`` serves."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ptycho.loss_curve import loss_svg
from ptycho.preview import EVERY_S, Panel, Preview
from ptycho.report_page import document, figure, warnings_list

if TYPE_CHECKING:
    from ptycho.result import EpochRecord
    from ptycho.runs import Run

#: Names of its own: in a notebook it is a guest on somebody else's page.
_STYLE = """
.ptycho-live { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; align-items: flex-start; background: #fff; color: #222;
  font: 15px/1.5 system-ui, sans-serif }
.ptycho-live > figure { margin: 0; flex: 3 1 20rem; max-width: 34rem } .ptycho-live > div { flex: 2 1 16rem; max-width: 25rem }
.ptycho-live > div > figure { margin: 0 0 1rem }
.ptycho-live .picture { position: relative; line-height: 0 } .ptycho-live .probe { max-width: 15rem }
.ptycho-live .picture img { display: block; width: 100%; height: 100%; margin: 0 }
.ptycho-live .bar { position: absolute; left: 3%; bottom: .7rem; border-bottom: .25rem solid #fff; color: #fff; font-size: 13px; line-height: 1.6;
  text-align: center; white-space: nowrap; text-shadow: 0 0 3px #000, 0 0 3px #000; filter: drop-shadow(0 0 1px #000) }
.ptycho-live figcaption { color: #666; font-size: 13px; margin-top: .25rem; text-align: left }
.ptycho-live .ramp { display: inline-block; width: 5rem; height: .6rem; margin: 0 .35rem; vertical-align: baseline }
.ptycho-live svg { display: block; width: 100%; height: auto }
"""
_PAGE_STYLE = """
body { max-width: 66rem } .state { margin: .1rem 0 1.1rem } .state b { margin-right: .6rem } .bad b { color: #b00 }
#lost { padding: .3rem .8rem; border-left: 3px solid #c60; background: #fff8f0 }
main p a { color: #2a5a94 } main > .warnings { margin-top: 1.2rem }
"""
#: Asks for the page again and puts what is new in the place of what is old: nothing flickers, and it stays when nobody answers any more.
_SCRIPT = """
const lost = document.getElementById("lost"), state = () => document.querySelector("main").dataset.state;
async function look() {
  const before = state();
  try {
    const answer = await fetch("./", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html"), main = page.querySelector("main");
    if (main.outerHTML !== document.querySelector("main").outerHTML) document.querySelector("main").replaceWith(main);
    document.title = page.title;
    lost.hidden = true;
    if (before === "running" && state() === "finished") location.href = "report.html";
  } catch { lost.hidden = false; }
  setTimeout(look, EVERY_MS);
}
setTimeout(look, EVERY_MS);
""".replace("EVERY_MS", str(round(1000 * EVERY_S)))
_LOST = "No answer: what you see is the last that was heard. The run, or ptycho watch, has ended, or the connection is lost."
#: What a state means to the one who looks.
_SAID = {
    "waiting": "nothing is there yet",
    "running": "",
    "finished": "",
    "failed": "there is no result",
    "stopped": "the same command goes on from the checkpoint",
    "dead": "give the same command again: it goes on from the last checkpoint",
    "unreadable": "",
}


def live_picture(preview: Preview | None, history: Sequence[EpochRecord], phase: str = "") -> str:
    """Phase, probe and loss side by side, or one below the other where the screen is narrow; HTML that needs nothing else.

    ``phase`` is a figure that stands in for the preview's.
    """
    phase = phase if preview is None else _figure(preview.phase, f"Phase (rad), epoch {preview.epoch}", "picture")
    probe = "" if preview is None else _figure(preview.probe, "Probe, amplitude (√electrons)", "picture probe")
    loss = f"<figure>{loss_svg(history)}<figcaption>Deviance per pixel.</figcaption></figure>" if history else ""
    return f'<div class="ptycho-live"><style>{_STYLE}</style>{phase}<div>{probe}{loss}</div></div>'


def live_page(run: Run, preview: Preview | None, history: Sequence[EpochRecord], warnings: Sequence[str], phase_png: bytes | None) -> str:
    """The whole page; ``phase_png`` is the picture of a finished run."""
    name = run.folder.absolute().name or str(run.folder)
    picture = live_picture(preview, history, "" if phase_png is None else figure(phase_png, "Phase in the scanned field."))
    if run.state == "finished":
        picture = f'<p><a href="report.html">The report</a> shows all of it.</p>{picture}'
    told = warnings_list(warnings) if warnings else ""
    bad = " bad" if run.state in ("failed", "dead", "unreadable") else ""
    main = f'<main data-state="{escape(run.state)}"><h1>{escape(name)}</h1><p class="state{bad}">{_state(run)}</p>{picture}{told}</main>'
    return _page(f"{run.state}: {name}", main)


def _page(title: str, main: str) -> str:
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; connect-src 'self'"
    refresh = f'<noscript><meta http-equiv="refresh" content="{round(EVERY_S)}"></noscript>'
    body = f'{main}\n<p id="lost" hidden>{escape(_LOST)}</p>\n<script>{_SCRIPT}</script>'
    return document(title, body, policy, _PAGE_STYLE, refresh)


def _state(run: Run) -> str:
    """One line: how it stands, how far it is, what went wrong, what to do."""
    parts = []
    if run.epoch is not None:
        parts.append(f"epoch {run.epoch}" + ("" if run.epochs is None or run.state == "finished" else f" of at most {run.epochs}"))
    if run.loss is not None:
        parts.append(f"loss {run.loss:.5f}")
    if run.held_out is not None:
        parts.append(f"held out {run.held_out:.4f}")
    if run.seconds_left:
        parts.append(f"{_duration(run.seconds_left)} left, at most")
    parts += [part for part in (run.message or "", _SAID.get(run.state, "")) if part and run.state != "finished"]
    return f"<b>{escape(run.state)}</b>{escape(' · '.join(parts))}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _figure(panel: Panel, caption: str, kind: str) -> str:
    """A picture with its scale bar, and what its colours mean."""
    from ptycho.plot import length_label, scale_bar_length_A

    length = scale_bar_length_A(panel.width_A)
    bar = f'<span class="bar" style="width: {100 * length / panel.width_A:.2f}%">{length_label(length)}</span>'
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{panel.png()}">'
    ramp = f'{panel.low:.3g}<img class="ramp" alt="to" src="data:image/png;base64,{_ramp()}">{panel.high:.3g}'
    aspect = f"aspect-ratio: {panel.width_A:.6g} / {panel.height_A:.6g}"
    return f'<figure><div class="{kind}" style="{aspect}">{image}{bar}</div><figcaption>{escape(caption)}: {ramp}</figcaption></figure>'


@cache
def _ramp() -> str:
    """The colours from dark to bright, as a picture in base64."""
    from ptycho.plot import bare_png

    return base64.b64encode(bare_png(np.linspace(0, 1, 64)[None], (0, 1))).decode()
