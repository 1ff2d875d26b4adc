"""Figures of a search: what its trials had in common. Drawn on the pages of ``plot.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ptycho.plot import INK, Page, restrain, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ptycho.tune_ranges import Range, Value
    from ptycho.tune_study import Row

_ONE, _TWO, _GREY = "#b5367a", "#2a6fbb", "#888888"


def parallel_png(ranges: Sequence[Range], rows: Sequence[Row]) -> bytes:
    """A line for each trial that was carried to the end, through its values and its held-out deviance; the best is dark, the recipe's own dashed."""
    done = _done(ranges, rows)
    width = 1.5 + 1.7 * len(ranges)
    page = Page(max(width, 5.0) + 0.6, 4.0)
    axes = page.place(0.7, 0.55, max(width, 5.0) - 0.8, 2.9)
    deviance = np.array([_deviance(row) for row in done])
    order = np.argsort(np.argsort(deviance)) / max(len(done) - 1, 1)
    heights = [[_place(r, row.values[r.key]) for r in ranges] + [1 - float(rank)] for row, rank in zip(done, order, strict=True)]
    colours = shades(order)
    for number in np.argsort(-deviance):
        best = number == int(np.argmin(deviance))
        axes.plot(heights[number], color=colours[number], linewidth=2.0 if best else 0.8, alpha=1.0 if best else 0.7, zorder=3 if best else 2)
        if done[number].slot == 0:
            axes.plot(heights[number], color=_TWO, linewidth=1.4, linestyle="--", zorder=4, label="the recipe's own values")
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for place, r in enumerate(ranges):
        axes.axvline(place, color=_GREY, linewidth=0.7, zorder=1)
        for at, text in _ticks(r):
            axes.text(place - 0.03, at, text, fontsize=7, color=INK, ha="right", va="center", bbox=paper, zorder=5)
        axes.text(place, 1.07, r.key.replace(".", ".\n", 1), fontsize=7.5, color=INK, ha="center", va="bottom")
    last = len(ranges)
    axes.axvline(last, color=_GREY, linewidth=0.7, zorder=1)
    for rank in np.linspace(0, len(done) - 1, min(5, len(done))).round().astype(int):
        axes.text(last + 0.03, 1 - rank / max(len(done) - 1, 1), f"{np.sort(deviance)[rank]:.5g}", fontsize=7, color=INK, va="center")
    axes.text(last, 1.07, "held-out deviance\nby rank", fontsize=7.5, color=INK, ha="center", va="bottom")
    axes.set_xlim(-0.25, last + 0.3)
    axes.set_ylim(-0.04, 1.04)
    axes.set_axis_off()
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.0))
    return page.png()


def importance_png(ranges: Sequence[Range], rows: Sequence[Row], importances: Mapping[str, float]) -> bytes:
    """Held-out deviance against each value that was varied, best trials dark, and the share of each key in what makes trials good; a PNG file."""
    done = _done(ranges, rows)
    columns = min(max(len(ranges), 2), 3)
    lines = math.ceil(len(ranges) / columns)
    below = 0.35 + 0.24 * len(importances) if importances else 0.0
    page = Page(0.55 + 2.75 * columns, 0.2 + 2.35 * lines + below + (0.35 if importances else 0.0))
    for number, r in enumerate(ranges):
        left, top = 0.75 + 2.75 * (number % columns), 0.2 + 2.35 * (number // columns)
        _show_values(page.place(left, top, 2.0, 1.7), r, done, number % columns == 0)
    if importances:
        names = sorted(importances, key=lambda key: importances[key])
        axes = page.place(2.2, 0.2 + 2.35 * lines + 0.05, 2.75 * columns - 2.0, below - 0.2)
        axes.barh(names, [importances[name] for name in names], height=0.6, color=_ONE)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share in what sets the best quarter apart (PED-ANOVA)", fontsize=8, color=INK)
        _open(axes)
    return page.png()


def _show_values(axes: Axes, r: Range, done: Sequence[Row], labelled: bool) -> None:
    deviance = np.array([_deviance(row) for row in done])
    colours = shades(np.argsort(np.argsort(deviance)) / max(len(done) - 1, 1))
    places = [float(r.choices.index(row.values[r.key])) if r.choices else float(row.values[r.key]) for row in done]
    axes.scatter(places, deviance, s=12, c=colours, linewidths=0, zorder=2)
    for row, place in zip(done, places, strict=True):
        if row.slot == 0:
            axes.scatter([place], [_deviance(row)], s=46, facecolors="none", edgecolors=_TWO, linewidths=1.2, zorder=3, label="the recipe's own")
            axes.legend(fontsize=6.5, frameon=False, loc="best", handletextpad=0.2)
    if r.choices:
        axes.set_xticks(range(len(r.choices)), [str(choice) for choice in r.choices])
        axes.set_xlim(-0.5, len(r.choices) - 0.5)
    elif r.log:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks([value for _, value in _marks(r, 3)], [f"{value:.2g}" for _, value in _marks(r, 3)])
        axes.set_xlim(r.low / 1.1, r.high * 1.1)
    axes.set_xlabel(r.key, fontsize=8, color=INK)
    if labelled:
        axes.set_ylabel("held-out deviance", fontsize=8, color=INK)
    _open(axes)


def _done(ranges: Sequence[Range], rows: Sequence[Row]) -> list[Row]:
    """Trials carried to the end that have a value within each range."""
    return [row for row in rows if row.state == "done" and all(r.key in row.values and r.holds(row.values[r.key]) for r in ranges)]


def _deviance(row: Row) -> float:
    assert row.score is not None
    return row.score.deviance


def _place(r: Range, value: Value) -> float:
    """Height of a value on its axis, 0 to 1."""
    if r.choices:
        return r.choices.index(value) / max(len(r.choices) - 1, 1)
    low, high, at = (math.log(float(v)) if r.log else float(v) for v in (r.low, r.high, value))
    return (at - low) / (high - low)


def _ticks(r: Range) -> list[tuple[float, str]]:
    if r.choices:
        return [(_place(r, choice), str(choice)) for choice in r.choices]
    return [(height, f"{value:.3g}") for height, value in _marks(r, 5)]


def _marks(r: Range, count: int) -> list[tuple[float, float]]:
    """(height on the axis, value) of so many values from end to end."""
    between = np.geomspace(r.low, r.high, count) if r.log else np.linspace(r.low, r.high, count)
    return [(number / (count - 1), float(value)) for number, value in enumerate(between)]


def _open(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    restrain(axes)
