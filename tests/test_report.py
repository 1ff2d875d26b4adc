"""report.html: all that a run is about in one file that needs no other."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from test_result import PNG, make, quality, residual

from ptycho.plot_quality import quality_png, residual_png
from ptycho.report import report
from ptycho.result import EpochRecord


class Page(HTMLParser):
    """Tags, attributes and text; fails when a tag is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_all_of_it_is_in_one_file():
    result = make(residual=residual(), quality=quality())
    text = report(result, "scan.raw", ["2 hot pixels masked"])
    page = Page(text)
    for said in (
        "scan.raw",
        "2 hot pixels masked",
        "80 kV, 24.9 mrad",
        "4 in 1 s",
        result.quality.summary(),
        result.recipe,
        "C10 = -350 Å",
        "torch 2.6",
    ):
        assert said in page.text
    assert [tag for tag, _ in page.tags].count("img") == 4  # phase, slices, quality, residual
    for attributes in (attributes for tag, attributes in page.tags if tag == "img"):
        kind, _, data = str(attributes["src"]).partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(PNG) and attributes["alt"]
    bare = re.sub(r"data:image/png;base64,[^\"]+", "", text)
    assert not re.search(r"(href|src|url)[=(][\"']?[^\"'\s]", bare) and "<script" not in bare and "http" not in bare


def test_why_it_ended_is_said():
    history = tuple(EpochRecord(0, "gradient", i + 1, 1.0, 0.1, 1.2 - i / 100, "at rest" if i == 2 else "") for i in range(3))
    assert "3 in 0 s, loss 1 (deviance per pixel), held out 1.18; at rest" in Page(report(make(history=history), "scan.raw")).text


def test_what_is_not_known_is_left_out():
    page = Page(report(make(states=1, slices=1, epochs=0), "scan.raw"))
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert "Warnings" not in page.text and "Quality" not in page.text and "epochs" not in page.text.partition("Phase, probe")[0]


def test_foreign_text_is_text():
    page = Page(report(make(recipe="a < b # <script>alert(1)</script>"), "<b>scan</b>.raw", ['"<img src=x>"']))
    assert {"script", "b"}.isdisjoint(tag for tag, _ in page.tags) and "<script>alert(1)</script>" in page.text and '"<img src=x>"' in page.text


@pytest.mark.parametrize("fsc", [True, False])
def test_odd_qualities_can_be_drawn(fsc):
    result, known = make(), quality(fsc)
    assert quality_png(result, known).startswith(PNG)
    known.frc.half_bit[:] = np.inf
    known.constrained[:] = False
    assert quality_png(result, known).startswith(PNG)
    dark = residual()
    for name in ("measured_e", "modelled_e", "chi_squared", "deviance"):
        getattr(dark, name)[:] = 0
    assert residual_png(dark).startswith(PNG)
