"""report.html: one page that says what a run did and how far to trust it. Figures are inside; nothing is fetched, nothing is executed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from ptycho.result import Result

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
img { max-width: 100%; height: auto } table { border-collapse: collapse }
th { text-align: left; font-weight: normal; color: #666; padding: .1rem 1.5rem .1rem 0; vertical-align: top }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px } .warning { color: #a33 }
"""


def report(result: Result, name: str, warnings: Sequence[str] = ()) -> str:
    """The page about ``result``, reconstructed from the data set called ``name``, as self-contained HTML."""
    from ptycho.plot import figure_of, phase_png  # matplotlib only when there is something to draw
    from ptycho.plot_quality import quality_png, residual_png

    parts = [f"<h1>{escape(name)}</h1>", _table(_numbers(result))]
    if warnings:
        parts += ["<h2>Warnings</h2>", "<ul>", *(f'<li class="warning">{escape(warning)}</li>' for warning in warnings), "</ul>"]
    parts.append(_figure("Phase, probe and loss", figure_of(result).png(), "summed phase of the scanned field, probe, loss of every epoch"))
    if len(result.phase) > 1:
        parts.append(_figure("Slices", phase_png(result), "phase of single slices"))
    if result.quality is not None:
        parts.append(_figure("Quality", quality_png(result, result.quality), "correlation of two halves of the data, standard error"))
        parts.append(f"<p>{escape(_reading(result.quality.split))}</p>")
    if result.residual is not None:
        parts.append(_figure("Model against data", residual_png(result.residual), "electrons and residual by scattering angle"))
    parts += ["<h2>Recipe</h2>", f"<pre>{escape(result.recipe)}</pre>"]
    return _page(name, parts)


def _numbers(result: Result) -> Iterable[tuple[str, str]]:
    """What a person asks first, each with its name."""
    yield "microscope", f"{result.voltage_kV:g} kV, {result.semiangle_mrad:g} mrad"
    states, slices, height, width = result.object.shape
    field = " x ".join(f"{(axis.stop - axis.start) * result.pixel_A:.4g}" for axis in result.scanned)
    yield "object", f"{height} x {width} pixels of {result.pixel_A:.4g} Å, {slices} slices, {states} states; scanned field {field} Å"
    yield (
        "probe",
        f"{len(result.probe)} modes, {float((np.abs(result.probe) ** 2).sum()):.4g} electrons per pattern, {len(result.positions_A)} positions",
    )
    if result.aberrations:
        yield "aberrations", ", ".join(f"{term} = {value:.4g} {'°' if term.endswith('_deg') else 'Å'}" for term, value in result.aberrations.items())
    if result.history:
        seconds = sum(record.seconds for record in result.history)
        last = result.history[-1]
        held_out = "" if last.held_out is None else f", held out {last.held_out:.4g}"
        note = f"; {last.note}" if last.note else ""
        yield "epochs", f"{last.epoch} in {seconds:.0f} s, loss {last.loss:.4g} (deviance per pixel){held_out}{note}"
    if result.quality is not None:
        yield "quality", result.quality.summary()
        share = float(result.quality.constrained[result.scanned].mean())
        yield "constrained by the data", f"{100 * share:.3g} % of the scanned field"
        floor = 1e3 * float(np.nanmedian(result.quality.shot_noise_rad[result.scanned]))
        yield "shot noise", f"{floor:.3g} mrad at least, at that resolution and dose"
    yield "written by", ", ".join(f"{package} {number}" for package, number in result.versions.items())


def _reading(split: str) -> str:
    """How to read the figures of quality."""
    how = "every electron went to one of two halves by chance" if split == "electrons" else "every second position, by chance, made one half"
    return (
        f"For this, {how}, and each half was reconstructed by the same recipe. Noise is what they differ by; what they share, a wrong defocus "
        "or an artefact of the raster included, counts as specimen. Of a perfect crystal the resolution is optimistic."
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows) + "</table>"


def _figure(title: str, png: bytes, alternative: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<h2>{escape(title)}</h2>\n<img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'


def _page(title: str, parts: Iterable[str]) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"
