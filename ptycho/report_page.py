"""Pieces of report.html: one small style, sections, figures, tables. Pictures are inside; nothing is fetched, nothing is executed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

#: Whatever a data file's names may smuggle in, a browser neither runs nor loads it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
#: The one style of all pages.
_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 58rem; margin: 1.5rem auto 4rem; padding: 0 1rem }
h1 { font-size: 1.45rem; margin: 0 0 .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .8rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem }
p { max-width: 44rem; margin: .5rem 0 } .quiet, figcaption { color: #666; font-size: 13px }
nav { font-size: 13px; margin: .6rem 0 1.2rem } nav a { color: #2a5a94; text-decoration: none; margin-right: .9rem; white-space: nowrap }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 2rem; align-items: start }
figure { margin: 0; max-width: 29rem } figure.large { max-width: 40rem }
img { display: block; width: 100%; height: auto }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
th, td { text-align: left; vertical-align: top; padding: .15rem 1.4rem .15rem 0; font-weight: normal }
tbody th, thead th { color: #666 } thead th { border-bottom: 1px solid #ddd; font-size: 13px } td.source { color: #666; font-size: 13px }
.scroll td { white-space: nowrap } .scroll td.source { white-space: normal; min-width: 13rem } .scroll { margin: .8rem 0 }
.warnings { padding: .5rem 1rem .5rem 2rem; margin: 0; border-left: 3px solid #c60; background: #fff8f0; max-width: 46rem }
.warnings li { margin: .3rem 0; overflow-wrap: anywhere }
pre { background: #f6f6f6; padding: .8rem; overflow: auto; max-height: 26rem; font-size: 12.5px; line-height: 1.4 }
.slices > input { position: absolute; opacity: 0 }
.slices > label { display: inline-block; min-width: 1.7rem; padding: .1rem .25rem; margin: 0 .2rem .35rem 0; text-align: center;
  border: 1px solid #ccc; border-radius: 3px; font-size: 13px; cursor: pointer }
.slices > figure { display: none }
@media print { nav, .slices > label { display: none } body { max-width: none; font-size: 11px } pre { max-height: none; white-space: pre-wrap }
  .slices { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem } .slices > figure { display: block }
  figure, tr { break-inside: avoid } h2 { break-after: avoid } }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; ``name`` is its anchor."""

    name: str
    title: str
    body: str


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole file: heading, links to the sections, the sections."""
    links = "\n".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    body = [f"<h1>{escape(title)}</h1>", f'<p class="quiet">{escape(summary)}</p>', f"<nav>{links}</nav>"]
    for section in sections:
        body.append(f'<section id="{section.name}">\n<h2>{escape(section.title)}</h2>\n{section.body}\n</section>')
    return document(title, "\n".join(body))


def document(title: str, body: str, policy: str = _POLICY, style: str = "", more: str = "") -> str:
    """A file with this body: ``policy`` says what a browser may load and run, ``style`` follows the one of all pages, ``more`` ends the head."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    head += f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}"><style>{_STYLE}{style}</style>{more}'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def figure(picture: bytes, caption: str, size: str = "") -> str:
    """A picture (PNG or WebP) with its caption, which is also what is read out instead of it; ``size`` is its class: "large", or none."""
    kind = "png" if picture.startswith(b"\x89PNG") else "webp"
    data = base64.b64encode(picture).decode()
    said, named = escape(caption), f' class="{size}"' if size else ""
    return f'<figure{named}><img alt="{said}" src="data:image/{kind};base64,{data}"><figcaption>{said}</figcaption></figure>'


def row(figures: Iterable[str]) -> str:
    """Figures side by side, as many as there is room for."""
    return '<div class="row">\n' + "\n".join(figures) + "\n</div>"


def browser(labels: Sequence[str], pictures: Sequence[bytes], captions: Sequence[str], first: int) -> str:
    """Pictures in one place, one shown at a time: a click or the arrow keys choose it, without a script. All of them are printed."""
    count = range(len(labels))
    rules = ", ".join(f"#slice{i}:checked ~ figure.slice{i}" for i in count)
    chosen = ", ".join(f"#slice{i}:checked + label" for i in count)
    focus = ", ".join(f"#slice{i}:focus-visible + label" for i in count)
    style = f"{rules} {{ display: block }} {chosen} {{ background: #333; color: #fff; border-color: #333 }} {focus} {{ outline: 2px solid #2a6fbb }}"
    checked = [" checked" if i == first else "" for i in count]
    buttons = (f'<input type="radio" name="slice" id="slice{i}"{checked[i]}><label for="slice{i}">{escape(labels[i])}</label>' for i in count)
    figures = (figure(pictures[i], captions[i], f"slice{i}") for i in count)
    return f'<style>{style}</style>\n<div class="slices">\n' + "\n".join([*buttons, *figures]) + "\n</div>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and what there is to say of them."""
    return "<table><tbody>" + "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows) + "</tbody></table>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a head, the last column in small grey letters; it scrolls where the screen is narrow."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = []
    for *cells, last in rows:
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + f'<td class="source">{escape(last)}</td></tr>')
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def paragraph(text: str, quiet: bool = False) -> str:
    """Plain text."""
    return f'<p class="quiet">{escape(text)}</p>' if quiet else f"<p>{escape(text)}</p>"


def warnings_list(sentences: Iterable[str]) -> str:
    """Sentences that ask for attention."""
    return '<ul class="warnings">' + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def code(text: str) -> str:
    """Text as it is."""
    return f"<pre>{escape(text)}</pre>"
