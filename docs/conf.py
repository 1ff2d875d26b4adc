"""How the documentation is built: sphinx-build -W --keep-going -b html docs OUT."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import generated  # noqa: E402

import ptycho  # noqa: E402

project = "ptycho"
author = "The ptycho authors"
release = version = ptycho.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"ptycho {release}"
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
exclude_patterns = ["_build"]

#: Pages whose end is made from the code at each build.
_GENERATED = {
    "reference/recipe": generated.recipe_page,
    "reference/simulation": generated.simulation_page,
    "reference/commands": generated.commands_page,
    "architecture": generated.layers_page,
}


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    if name in _GENERATED:
        source[0] += "\n" + _GENERATED[name]()


def _literal_bars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """|O| and x* in a docstring are mathematics, not marks of reStructuredText; what stands between double backticks is left alone."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``[^`]*``)", line)
        lines[number] = "".join(part if part.startswith("``") else re.sub(r"([|*])", r"\\\1", part) for part in parts)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(writer: Any, node: nodes.math_block) -> None:
    # Room above and below: the theme cuts what stands higher than a line.
    formula = convert(node.astext(), display="block")
    writer.body.append(f'<div style="padding: 0.6em 0; overflow-x: auto">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw by themselves: no page fetches anything."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _literal_bars)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
