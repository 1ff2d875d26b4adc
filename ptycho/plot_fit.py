"""Pictures of how well the model describes the data, for the report: patterns side by side, loss of every epoch, residual by angle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptycho.plot import INK, MAP, Page, fitted, restrain, scale_bar, show_loss
from ptycho.plot_object import WIDTH
from ptycho.plot_quality import BLUE, GREY, PURPLE, label_axes

if TYPE_CHECKING:
    from ptycho.examples import Examples
    from ptycho.quality import Residual
    from ptycho.result import Result

#: Decades of the logarithmic scale below the brightest pixel.
_DECADES = 5


def pattern_picture(examples: Examples, number: int) -> bytes:
    """A pattern as measured and as modelled, in the same logarithmic colours; white was not measured. A WebP file."""
    pair = np.stack([examples.measured_e[number], examples.modelled_e[number]])
    known = pair[np.isfinite(pair) & (pair > 0)]
    high = float(known.max()) if known.size else 1.0
    # A tenth of what a dim pixel holds is dark enough; below it a model's tails would take all the colours.
    low = max(high * 10.0**-_DECADES, 0.1 * float(np.percentile(known, 5)) if known.size else 0.0)
    tile = (WIDTH - 0.75) / 2
    width, height = fitted(pair.shape[1:], tile, tile)
    page = Page(WIDTH, height + 0.36)
    for column, (image, name) in enumerate(zip(pair, ("measured", "modelled"), strict=True)):
        axes = page.place(0.05 + column * (width + 0.06), 0.24, width, height)
        axes.set_axis_off()
        extent = (0, image.shape[1] * examples.pixel_mrad, image.shape[0] * examples.pixel_mrad, 0)
        shown = np.ma.masked_invalid(np.maximum(image, low))
        drawn = axes.imshow(shown, cmap=MAP, norm="log", clim=(low, high), extent=extent, aspect="auto", interpolation="nearest")
        scale_bar(axes, extent[1], width, height, "mrad")
        axes.set_title(name, fontsize=7.5, color=INK, pad=3, loc="left")
    bar = page.place(0.05 + 2 * width + 0.12, 0.24, 0.12, height)
    page.colorbar(drawn, cax=bar).set_label("electrons per pixel", fontsize=7.5, color=INK)
    restrain(bar)
    return page.webp()


def loss_picture(result: Result) -> bytes:
    """Loss and held-out deviance of every epoch, the stages apart; a PNG file."""
    page = Page(1.2 * WIDTH, 2.7)
    show_loss(page.place(0.6, 0.25, 1.2 * WIDTH - 0.7, 2.0), result.history)
    return page.png()


def electrons_picture(residual: Residual) -> bytes:
    """Electrons of model and data by scattering angle; a PNG file."""
    page = Page(WIDTH, 2.6)
    axes = page.place(0.65, 0.15, WIDTH - 0.8, 2.0)
    axes.plot(residual.angle_mrad, residual.measured_e, color=GREY, linewidth=2.4, alpha=0.6, label="data")
    axes.plot(residual.angle_mrad, residual.modelled_e, color=PURPLE, linewidth=1.0, label="model")
    axes.set_yscale("log" if (residual.measured_e > 0).any() else "linear")
    label_axes(axes, "scattering angle (mrad)", "electrons per pixel")
    axes.legend(fontsize=7, frameon=False)
    return page.png()


def residual_picture(residual: Residual) -> bytes:
    """How far model and data are apart by scattering angle; a PNG file."""
    page = Page(WIDTH, 2.6)
    axes = page.place(0.65, 0.15, WIDTH - 0.8, 2.0)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(residual.angle_mrad, residual.chi_squared, color=PURPLE, linewidth=1.2, label="χ² (1: nothing but noise)")
    axes.plot(residual.angle_mrad, residual.deviance, color=BLUE, linewidth=1.0, label="reduced Poisson deviance")
    axes.set_ylim(bottom=0, top=max(2.0, 1.1 * float(np.percentile(residual.chi_squared, 95))))
    label_axes(axes, "scattering angle (mrad)", "model against data")
    axes.legend(fontsize=7, frameon=False)
    return page.png()
