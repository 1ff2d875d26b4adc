"""Pictures of ``ptycho.pictures`` as PNG files: one for each, and a contact sheet of all side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

from ptycho.plot import INK, MAP, Image, Limits, Page, colour_bar, fitted, robust_limits, scale_bar

if TYPE_CHECKING:
    from ptycho.pictures import Picture

_MAPS = {"grey": "gray", "signed": "RdBu_r", "phase": MAP, "angle": "hsv"}
_TILE, _BAR, _TITLE, _MARGIN = 2.35, 0.62, 0.42, 0.15
_MOST_COLUMNS = 4


def picture_png(picture: Picture, step_A: tuple[float, float] | None) -> bytes:
    """One picture with its title, colour bar and, when the step (slow, fast) is known, scale bar."""
    width, height = fitted(_extent(picture.image, step_A), 5.0, 5.0)
    page = Page(max(width, 2.2) + 0.95, height + 0.55)
    _show(page, (0.12, 0.4), (width, height), picture, step_A, 8.5)
    return page.png()


def contact_sheet_png(pictures: Sequence[Picture], step_A: tuple[float, float] | None, headline: str, notes: Sequence[str] = ()) -> bytes:
    """All pictures, four in a row, below a headline; ``notes`` stand below them."""
    columns = min(_MOST_COLUMNS, max(len(pictures), 2))
    rows = math.ceil(len(pictures) / columns)
    width, height = fitted(_extent(pictures[0].image, step_A), _TILE, _TILE) if pictures else (_TILE, 0.0)
    cell = (_TILE + _BAR + _MARGIN, height + _TITLE)
    top = 0.45
    page = Page(columns * cell[0] + _MARGIN, top + rows * cell[1] + 0.18 * len(notes) + _MARGIN)
    page_width, page_height = page.get_size_inches()
    page.text(_MARGIN / page_width, 1 - 0.14 / page_height, headline, fontsize=8.5, color=INK, va="top")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        corner = (_MARGIN + column * cell[0], top + row * cell[1] + 0.24)
        _show(page, corner, (width, height), picture, step_A, 7.0)
    for line, note in enumerate(notes):
        y = top + rows * cell[1] + 0.1 + 0.18 * line
        page.text(_MARGIN / page_width, 1 - y / page_height, note, fontsize=6.5, color="#777777", va="top")
    return page.png()


def _extent(image: Image, step_A: tuple[float, float] | None) -> tuple[float, float]:
    """Height and width of the field, in Å when the step is known."""
    slow, fast = step_A or (1.0, 1.0)
    return image.shape[0] * slow, image.shape[1] * fast


def _show(
    page: Page, corner: tuple[float, float], size: tuple[float, float], picture: Picture, step_A: tuple[float, float] | None, fontsize: float
) -> None:
    axes = page.place(*corner, *size)
    axes.set_axis_off()
    axes.set_title(picture.title, fontsize=fontsize, color=INK, pad=4, loc="left")
    low, high = _limits(picture)
    drawn = axes.imshow(picture.image, cmap=_MAPS[picture.style], vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    bar = page.place(corner[0] + size[0] + 0.06, corner[1], 0.1, size[1])
    colour_bar(bar, drawn, "")
    if picture.style == "angle":
        drawn.remove()
        axes.imshow(_hues(picture), aspect="auto", interpolation="nearest")
        bar.set_yticks([-180, -90, 0, 90, 180], ["left", "up", "right", "down", "left"])
    else:
        # The unit stands below the bar, where it needs no room at its side.
        bar.set_xlabel(picture.unit, fontsize=fontsize - 1, color=INK, labelpad=2)
    if step_A is not None:
        scale_bar(axes, _extent(picture.image, step_A)[1], *size)


def _limits(picture: Picture) -> Limits:
    if picture.style == "angle":
        return -180.0, 180.0
    known = picture.image[np.isfinite(picture.image)]
    low, high = robust_limits(known) if known.size else (0.0, 1.0)
    largest = max(abs(low), abs(high))
    return (-largest, largest) if picture.style == "signed" else (low, high)


def _hues(picture: Picture) -> NDArray[np.float64]:
    """RGB (y, x, 3): the angle as hue, its strength as brightness; what is not known is white."""
    known = np.isfinite(picture.image)
    hue = (np.nan_to_num(picture.image) + 180) / 360 % 1
    value = np.ones_like(hue) if picture.strength is None else picture.strength
    return hsv_to_rgb(np.stack([hue, known * 1.0, np.where(known, value, 1.0)], -1))
