"""Figures of how good a result is: correlation of halves, standard error, residual by angle. Drawn on the pages of ``plot.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptycho.plot import INK, Page, image_with_bar, restrain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ptycho.quality import Correlation, Quality, Residual
    from ptycho.result import Result

_ONE, _TWO, _GREY = "#b5367a", "#2a6fbb", "#888888"


def quality_png(result: Result, quality: Quality) -> bytes:
    """Correlation of the halves with its thresholds, and the map of the standard error in the scanned field; a PNG file."""
    page = Page(9.0, 4.0)
    axes = page.place(0.65, 0.35, 3.7, 2.95)
    _show_correlation(axes, quality.frc, _ONE, "FRC, summed phase" if quality.fsc else "FRC of two halves")
    if quality.fsc is not None:
        axes.plot(quality.fsc.frequency_invA, quality.fsc.correlation, color=_TWO, linewidth=1.0, label="FSC, slices")
    axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4)
    error = np.ma.masked_where(~quality.constrained, 1e3 * quality.standard_error_rad)[result.scanned]
    known = error.compressed()
    limits = (0.0, float(np.percentile(known, 99.5)) if known.size and known.max() > 0 else 1.0)
    drawn = image_with_bar(page, (5.0, 0.35), (3.2, 3.2), error, result.pixel_A, limits, "standard error (mrad)")
    drawn.set_title("white: not constrained by the data" if error.mask.any() else "", fontsize=7.5, color=INK, pad=4, loc="left")
    return page.png()


def residual_png(residual: Residual) -> bytes:
    """Electrons of model and data, and how far apart they are, by scattering angle; a PNG file."""
    page = Page(9.0, 2.9)
    left, right = page.place(0.65, 0.3, 3.5, 2.05), page.place(5.2, 0.3, 3.5, 2.05)
    angle = residual.angle_mrad
    left.plot(angle, residual.measured_e, color=_GREY, linewidth=2.4, alpha=0.6, label="data")
    left.plot(angle, residual.modelled_e, color=_ONE, linewidth=1.0, label="model")
    left.set_yscale("log" if (residual.measured_e > 0).any() else "linear")
    right.axhline(1, color=_GREY, linewidth=0.8, linestyle=":")
    right.plot(angle, residual.chi_squared, color=_ONE, linewidth=1.2, label="χ² (1: nothing but noise)")
    right.plot(angle, residual.deviance, color=_TWO, linewidth=1.0, label="reduced Poisson deviance")
    right.set_ylim(bottom=0, top=max(2.0, 1.1 * float(np.percentile(residual.chi_squared, 95))))
    for axes, label in ((left, "electrons per pixel"), (right, "model against data")):
        _label(axes, "scattering angle (mrad)", label)
        axes.legend(fontsize=7, frameon=False)
    return page.png()


def _show_correlation(axes: Axes, curve: Correlation, colour: str, label: str) -> None:
    axes.axhline(0.143, color=_GREY, linewidth=0.8, linestyle=":", label="0.143")
    shown = curve.half_bit <= 1
    axes.plot(curve.frequency_invA[shown], curve.half_bit[shown], color=_GREY, linewidth=0.8, label="half-bit")
    axes.plot(curve.frequency_invA, curve.correlation, color=colour, linewidth=1.4, label=label)
    for resolution_A, style in ((curve.half_bit_A, "-"), (curve.outermost_A, ":")):
        if np.isfinite(resolution_A):
            axes.axvline(1 / resolution_A, color=colour, linewidth=0.6, linestyle=style)
    axes.set_xlim(0, float(curve.frequency_invA[-1]))
    axes.set_ylim(min(-0.1, float(curve.correlation[1:].min())), 1.03)
    _label(axes, "spatial frequency (1/Å)", "correlation")


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    restrain(axes)
