"""The loss of every epoch as a small SVG, which is drawn in no time: for pages that are made again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptycho.result import EpochRecord

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 24, 34
#: More points than this cannot be told apart.
_MOST_POINTS = 500


def loss_svg(history: Sequence[EpochRecord]) -> str:
    """Loss and held-out deviance against epoch, as the report shows them: logarithmic where it falls by more than ten, stages apart by thin lines."""
    losses = [(float(r.epoch), r.loss) for r in history if math.isfinite(r.loss)]
    judged = [(float(r.epoch), r.held_out) for r in history if r.held_out is not None and math.isfinite(r.held_out)]
    values = [value for _, value in (*losses, *judged)]
    if not values:
        return ""
    axis = _Axis(min(values), max(values))
    first, last = history[0].epoch - 0.5, history[-1].epoch + 0.5

    def x(epoch: float) -> float:
        return _LEFT + (epoch - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    bottom = _HEIGHT - _BOTTOM
    parts = [_line(_LEFT, bottom, _WIDTH - _RIGHT, bottom), _line(_LEFT, _TOP, _LEFT, bottom)]
    for value in axis.ticks:
        parts += [_line(_LEFT - 3, axis(value), _LEFT, axis(value)), _text(_LEFT - 6, axis(value) + 4, f"{value:.4g}", "end")]
    for number in _whole_ticks(history[0].epoch, history[-1].epoch):
        parts += [_line(x(number), bottom, x(number), bottom + 3), _text(x(number), bottom + 15, f"{number}", "middle")]
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 4, "epoch", "middle"))
    for old, new in pairwise(history):
        if old.stage != new.stage:
            parts.append(_line(x(new.epoch - 0.5), _TOP, x(new.epoch - 0.5), bottom, "#ccc"))
    for points, colour, name, where in ((losses, "#b5367a", "all patterns", 0), (judged, "#2a6fbb", "held out (1: noise alone)", 110)):
        if points:
            parts.append(_curve([(x(epoch), axis(value)) for epoch, value in points], colour))
            parts.append(f'<text x="{_LEFT + where}" y="12" fill="{colour}">{name}</text>')
    font = "font: 11px system-ui, sans-serif; fill: #333"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss of every epoch" style="{font}">{"".join(parts)}</svg>'


class _Axis:
    """Where a value lies, from the top of the picture; and the values that are written beside it."""

    def __init__(self, low: float, high: float) -> None:
        self.log = low > 0 and high > 10 * low
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            self.ticks = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        else:
            margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
            low, high = low - margin, high + margin
            step = _nice((high - low) / 5)
            self.ticks = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
        self.low, self.high = (math.log10(low), math.log10(high)) if self.log else (low, high)
        self.ticks = [value for value in self.ticks if _TOP - 1 <= self(value) <= _HEIGHT - _BOTTOM + 1]

    def __call__(self, value: float) -> float:
        part = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)


def _nice(step: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.999999 * step)


def _whole_ticks(first: int, last: int) -> list[int]:
    step = max(1, round(_nice(max(last - first, 1) / 5)))
    return list(range(-(-first // step) * step, last + 1, step))


def _curve(points: list[tuple[float, float]], colour: str) -> str:
    step = -(-len(points) // _MOST_POINTS)
    shown = [*points[:-1:step], points[-1]]
    drawn = f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in shown)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in shown) if len(shown) < 25 else ""
    return drawn + dots


def _line(x0: float, y0: float, x1: float, y1: float, colour: str = "#999") -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" stroke-width="0.8"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
