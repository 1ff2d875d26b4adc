"""A picture of the tilt-corrected bright field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptycho.plot import INK, Page, image_with_bar, robust_limits

if TYPE_CHECKING:
    from ptycho.tilt_corrected import Parallax

_SIDE, _TOP, _LEFT, _GAP = 4.4, 0.62, 0.15, 1.1


def parallax_png(seen: Parallax, name: str) -> bytes:
    """The aligned bright field and the phase with its contrast transfer undone, side by side, as a PNG file."""
    width, height = 2 * (_SIDE + _GAP) + _LEFT, _SIDE + _TOP + 0.35
    page = Page(width, height)
    title = f"{name}   ·   tilt-corrected bright field, defocus {seen.defocus_A:.0f} Å, explains {seen.explained:.0%} of the signal"
    page.text(_LEFT / width, 1 - 0.14 / height, title, fontsize=8.5, color=INK, va="top")
    images = ((seen.bright_field, "aligned sum", "relative to the mean"), (seen.phase, "phase, contrast transfer undone", "rad"))
    for number, (image, what, unit) in enumerate(images):
        corner = (_LEFT + number * (_SIDE + _GAP), _TOP)
        axes = image_with_bar(page, corner, (_SIDE, _SIDE), image, float(np.mean(seen.pixel_A)), robust_limits(image), unit)
        axes.set_title(what, fontsize=7.5, color=INK, pad=4, loc="left")
    return page.png()
