"""Pictures of how good a result is, for the report: correlation of halves, standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptycho.plot import INK, Page, fitted, image_with_bar, restrain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ptycho.quality import Correlation, Quality
    from ptycho.result import Result

PURPLE, BLUE, GREY = "#b5367a", "#2a6fbb", "#888888"


def correlation_picture(quality: Quality) -> bytes:
    """Correlation of the halves with its thresholds; a PNG file."""
    page = Page(4.2, 3.4)
    axes = page.place(0.65, 0.5, 3.4, 2.4)
    _show_correlation(axes, quality.frc, PURPLE, "FRC, summed phase" if quality.fsc else "FRC of two halves")
    if quality.fsc is not None:
        axes.plot(quality.fsc.frequency_invA, quality.fsc.correlation, color=BLUE, linewidth=1.0, label="FSC, slices")
    axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return page.png()


def error_picture(result: Result, quality: Quality) -> bytes:
    """Map of the standard error in the scanned field, white where no data constrain it; a WebP file."""
    error = np.ma.masked_where(~quality.constrained, 1e3 * quality.standard_error_rad)[result.scanned]
    known = error.compressed()
    limits = (0.0, float(np.percentile(known, 99.5)) if known.size and known.max() > 0 else 1.0)
    width, height = fitted(error.shape, 3.3, 4.6)
    page = Page(width + 0.9, height + 0.24)
    image_with_bar(page, (0.12, 0.12), (width, height), error, result.pixel_A, limits, "standard error (mrad)")
    return page.webp()


def _show_correlation(axes: Axes, curve: Correlation, colour: str, label: str) -> None:
    axes.axhline(0.143, color=GREY, linewidth=0.8, linestyle=":", label="0.143")
    shown = curve.half_bit <= 1
    axes.plot(curve.frequency_invA[shown], curve.half_bit[shown], color=GREY, linewidth=0.8, label="half-bit")
    axes.plot(curve.frequency_invA, curve.correlation, color=colour, linewidth=1.4, label=label)
    for resolution_A, style in ((curve.half_bit_A, "-"), (curve.outermost_A, ":")):
        if np.isfinite(resolution_A):
            axes.axvline(1 / resolution_A, color=colour, linewidth=0.6, linestyle=style)
    axes.set_xlim(0, float(curve.frequency_invA[-1]))
    axes.set_ylim(min(-0.1, float(curve.correlation[1:].min())), 1.03)
    label_axes(axes, "spatial frequency (1/Å)", "correlation")


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Names of the two axes, and no box about them."""
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    restrain(axes)
