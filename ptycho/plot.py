"""Figures of a result. Matplotlib's object interface only: no pyplot, no global state, safe in threads and without a display."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ptycho.overview import Overview
    from ptycho.result import EpochRecord, Result

Image: TypeAlias = NDArray[np.floating[Any]]
Limits: TypeAlias = tuple[float, float]

#: Lightness rises evenly with the phase (so no contour appears that is not there, and it prints in grey), while the change of hue
#: keeps light columns beside heavy ones visible, which grey does not.
MAP = "inferno"

INK = "#333333"
_MAX_SLICES = 6
_GAP = 0.06
#: Where the colours of lines end: white paper does not show the last.
_PALEST = 0.85


class Page(Figure):
    """A figure laid out in inches from its upper left corner, which notebooks show without any set-up (they know pyplot's only)."""

    def __init__(self, width_in: float, height_in: float) -> None:
        super().__init__(figsize=(width_in, height_in), dpi=150, facecolor="white")
        FigureCanvasAgg(self)

    def place(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes of this size at this place, in inches."""
        page_width, page_height = self.get_size_inches()
        return self.add_axes((left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height))

    def png(self) -> bytes:
        """The page as a PNG file."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=self.dpi)
        return file.getvalue()

    def webp(self) -> bytes:
        """The page as a WebP file, for pictures: a tenth of a PNG's size, without a difference to the eye."""
        file = io.BytesIO()
        self.savefig(file, format="webp", dpi=self.dpi, pil_kwargs={"quality": 90})
        return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def figure_of(result: Result) -> Page:
    """One page: summed phase of the scanned field, the strongest probe mode with the power of all, the loss of every epoch."""
    page = Page(9.0, 5.35)
    page.text(0.15 / 9.0, 1 - 0.14 / 5.35, _headline(result), fontsize=8.5, color=INK, va="top")
    phase = scanned_phase(result).sum(0)
    image_with_bar(page, (0.15, 0.42), (4.8, 4.8), phase, result.pixel_A, robust_limits(phase), "phase (rad)")
    amplitude = np.abs(result.probe[0][probe_box(result.probe)])
    axes = image_with_bar(page, (6.1, 0.62), (2.1, 2.1), amplitude, result.pixel_A, (0.0, float(amplitude.max()) or 1.0), "amplitude (√electrons)")
    axes.set_title(_probe_title(result.probe), fontsize=7.5, color=INK, pad=4, loc="left")
    show_loss(page.place(6.4, 3.2, 2.4, 1.68), result.history)
    return page


def phase_png(result: Result) -> bytes:
    """phase.png: the summed phase of the scanned field and, when there are several slices, up to six of them below; a PNG file."""
    phase = scanned_phase(result)
    shown = _evenly_spaced(len(phase)) if len(phase) > 1 else []
    width, height = fitted(phase.shape[1:], 5.1, 7.6)
    columns = max(len(shown), 3)
    tile = (width - _GAP * (columns - 1)) / columns
    tile_height = tile * height / width
    page = Page(width + 0.9, height + 0.24 + (tile_height + 0.35 if shown else 0))
    total = phase.sum(0)
    image_with_bar(page, (0.12, 0.12), (width, height), total, result.pixel_A, robust_limits(total), "phase (rad)")
    limits = robust_limits(phase[shown]) if shown else (0.0, 1.0)
    depth = np.concatenate([[0], np.cumsum(result.slice_thickness_A)[:-1]])
    for i, number in enumerate(shown):
        # The same colours in every slice, so that they compare; the depth is where the beam meets the slice.
        axes = page.place(0.12 + i * (tile + _GAP), height + 0.42, tile, tile_height)
        drawn = show_image(axes, phase[number], result.pixel_A, limits)
        axes.set_title(f"z = {depth[number]:.3g} Å", fontsize=6.5, color=INK, pad=3)
        if i == len(shown) - 1:
            colour_bar(page.place(0.12 + i * (tile + _GAP) + tile + 0.06, height + 0.42, 0.1, tile_height), drawn, "")
    return page.png()


def bare_png(image: Image, limits: Limits) -> bytes:
    """An image (y, x), one pixel for each number and nothing around it, as a PNG file: made in a hundredth of a page's time."""
    file = io.BytesIO()
    imsave(file, image, vmin=limits[0], vmax=limits[1], cmap=MAP, format="png", pil_kwargs={"compress_level": 1})
    return file.getvalue()


def overview_png(look: Overview, title: str, step_A: float | None) -> bytes:
    """Mean pattern (square root), bright-field image and histogram side by side, as a PNG file; with a scale bar if the step is known."""
    page = Page(11.2, 4.1)
    page.text(0.15 / 11.2, 1 - 0.14 / 4.1, title, fontsize=8.5, color=INK, va="top")
    mean = np.sqrt(np.nan_to_num(look.mean_pattern).clip(0))
    left = page.place(0.15, 0.62, *fitted(mean.shape, 3.0, 3.0))
    show_image(left, mean, 1.0, (0.0, float(mean.max()) or 1.0))
    left.set_title("mean pattern (square root of electrons)", fontsize=7.5, color=INK, pad=4, loc="left")
    if look.disk is not None:
        dotted_circle(left, (look.disk[1] + 0.5, look.disk[0] + 0.5), look.disk[2])
    known = look.bright_field[np.isfinite(look.bright_field)]
    limits = robust_limits(known) if known.size else (0.0, 1.0)
    width, height = fitted(look.bright_field.shape, 3.0, 3.0)
    middle = page.place(3.45, 0.62, width, height)
    pixel_A = look.stride * (step_A or 1.0)
    drawn = show_image(middle, look.bright_field, pixel_A, limits)
    if step_A is not None:
        scale_bar(middle, look.bright_field.shape[1] * pixel_A, width, height)
    coarse = "" if look.stride == 1 else f", every {look.stride}th point"
    middle.set_title(f"bright field{coarse}", fontsize=7.5, color=INK, pad=4, loc="left")
    colour_bar(page.place(3.45 + width + 0.06, 0.62, 0.14, height), drawn, "electrons in the disk")
    right = page.place(8.05, 0.75, 2.95, 2.65)
    right.stairs(look.counts, look.edges, color="#b5367a", fill=True)
    right.set_yscale("log")
    right.set_xlabel("electrons per pixel", fontsize=8, color=INK)
    right.set_ylabel("pixels", fontsize=8, color=INK)
    restrain(right)
    return page.png()


def scale_bar_length_A(width_A: float) -> float:
    """The longest of 1, 2, 5 times a power of ten, in Å, within a quarter of the image's width."""
    power = 10.0 ** math.floor(math.log10(width_A / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_A / 4)


def length_label(length: float, unit: str = "Å") -> str:
    """A round length in words: "5 Å", "2 nm"; of another ``unit`` it stays in that."""
    return f"{length / 10:g} nm" if length >= 10 and unit == "Å" else f"{length:g} {unit}"


def robust_limits(image: Image) -> Limits:
    """The 0.1 and 99.9 percentiles, so that a few wild pixels do not take the contrast."""
    low, high = (float(v) for v in np.percentile(image, (0.1, 99.9)))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def scanned_phase(result: Result) -> Image:
    """Phase (slices, y, x) of the scanned field."""
    return result.phase[(slice(None), *result.scanned)]


def _evenly_spaced(slices: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, slices - 1, min(slices, _MAX_SLICES))})


def fitted(shape: tuple[float, ...], width: float, height: float) -> tuple[float, float]:
    """Width and height of an image (y, x) that fills a box as far as its aspect allows; a line scan is made high enough to be seen."""
    scale = min(width / shape[1], height / shape[0])
    return max(scale * shape[1], 0.5), max(scale * shape[0], 0.5)


def image_with_bar(
    page: Page, corner: tuple[float, float], box: tuple[float, float], image: Image, pixel_A: float, limits: Limits, label: str, colours: str = MAP
) -> Axes:
    """An image with scale bar and colour bar at ``corner`` (left, top), as large as ``box`` (width, height) allows, in inches."""
    left, top = corner
    width, height = fitted(image.shape, *box)
    axes = page.place(left, top, width, height)
    drawn = show_image(axes, image, pixel_A, limits, colours)
    scale_bar(axes, image.shape[1] * pixel_A, width, height)
    colour_bar(page.place(left + width + 0.06, top, 0.14, height), drawn, label)
    return axes


def probe_box(probe: NDArray[np.complex64]) -> tuple[slice, slice]:
    """The smallest centred square with 99.5 % of the power, an eighth wider."""
    intensity = (np.abs(probe) ** 2).sum(0)
    y, x = (np.abs(np.arange(n) - n // 2) for n in intensity.shape)
    by_distance = np.bincount(np.maximum(y[:, None], x).ravel(), intensity.ravel())
    radius = int(np.searchsorted(np.cumsum(by_distance), 0.995 * intensity.sum()))
    radius = max(4, round(1.125 * radius))
    rows, columns = (slice(max(n // 2 - radius, 0), min(n // 2 + radius + 1, n)) for n in intensity.shape)
    return rows, columns


def _probe_title(probe: NDArray[np.complex64]) -> str:
    power = (np.abs(probe) ** 2).sum((1, 2))
    shares = [f"{share:.3g}" for share in 100 * power / max(float(power.sum()), 1e-30)]
    modes = f"modes {', '.join(shares[:5])}{' ...' if len(shares) > 5 else ''} %" if len(shares) > 1 else "one mode"
    return f"probe, {power.sum():.4g} electrons\n{modes}"


def show_loss(axes: Axes, history: tuple[EpochRecord, ...]) -> None:
    """Loss and, over what noise makes of it, the held-out deviance against epoch, stages apart by thin lines."""
    restrain(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("epoch", fontsize=8, color=INK)
    axes.set_ylabel("deviance per pixel", fontsize=8, color=INK)
    if not history:
        axes.text(0.5, 0.5, "no epochs", transform=axes.transAxes, ha="center", color=INK, fontsize=8)
        return
    loss = np.array([record.loss for record in history])
    marker = "o" if len(loss) < 25 else ""
    axes.plot([record.epoch for record in history], loss, color="#b5367a", linewidth=1.2, marker=marker, markersize=2.5, label="all patterns")
    judged = [(record.epoch, record.held_out) for record in history if record.held_out is not None]
    if judged:
        axes.plot(*zip(*judged, strict=True), color="#2a6fbb", linewidth=1.0, marker=marker, markersize=2.5, label="held out (1: noise alone)")
        axes.legend(fontsize=6.5, frameon=False)
    if loss.min() > 0 and loss.max() > 10 * loss.min():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    starts = [new for old, new in zip((None, *history), history, strict=False) if old is None or old.stage != new.stage]
    for record in starts[1:]:
        axes.axvline(record.epoch - 0.5, color="#bbbbbb", linewidth=0.6)
    for record in starts if len(starts) < 5 else []:
        axes.text(record.epoch, 1.0, f" {record.kind}", transform=axes.get_xaxis_transform(), fontsize=7, color="#777777", va="bottom")


def _headline(result: Result) -> str:
    states, slices = result.object.shape[:2]
    parts = [f"{result.voltage_kV:g} kV", f"{result.semiangle_mrad:g} mrad", f"pixel {result.pixel_A:.3g} Å"]
    parts += [f"{slices} slices, {result.slice_thickness_A.sum():.3g} Å"] if slices > 1 else []
    parts += [f"{states} object states"] if states > 1 else []
    if result.history:
        parts.append(f"{result.history[-1].epoch} epochs, loss {result.history[-1].loss:.4g}")
    return "   ·   ".join(parts)


def show_image(axes: Axes, image: Image, pixel_A: float, limits: Limits, colours: str = MAP) -> AxesImage:
    """An image (y, x) fills its axes, which count in Å (or in the unit of ``pixel_A``)."""
    height, width = image.shape[0] * pixel_A, image.shape[1] * pixel_A
    # The reconstruction is band-limited: Lanczos shows the function where nearest shows its samples. Reducing is left to matplotlib.
    interpolation = "lanczos" if max(image.shape) < 500 else "auto"
    axes.set_axis_off()
    return axes.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1], extent=(0, width, height, 0), aspect="auto", interpolation=interpolation)


def colour_bar(axes: Axes, drawn: AxesImage, label: str) -> None:
    """Fill axes with the bar of an image."""
    bar = drawn.figure.colorbar(drawn, cax=axes)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6 if label else 4, steps=[1, 2, 5, 10]))
    bar.ax.yaxis.get_offset_text().set_fontsize(6)
    bar.set_label(label, fontsize=8, color=INK)
    bar.outline.set_visible(False)
    restrain(axes)


def shades(order: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours (n, 4) of lines and dots on white for numbers from 0 (dark) to 1 (pale, but not so pale that it is not seen)."""
    colours: NDArray[np.float64] = colormaps[MAP](_PALEST * order)
    return colours


def restrain(axes: Axes) -> None:
    """Small grey ticks and thin grey spines."""
    axes.tick_params(which="both", labelsize=7, color="#999999", labelcolor=INK, width=0.6, length=2.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_edgecolor("#999999")


def dotted_circle(axes: Axes, centre: tuple[float, float], radius: float) -> None:
    """The edge of a disk, at (x, y) in the units of the axes."""
    axes.add_patch(Circle(centre, radius, fill=False, edgecolor="white", linewidth=0.6, linestyle=":"))


def scale_bar(axes: Axes, width_A: float, width_in: float, height_in: float, unit: str = "Å") -> None:
    """A bar of a round length, and that length, in the lower left corner of axes of this size; of another ``unit`` than Å it stays in that."""
    length = scale_bar_length_A(width_A)
    label = length_label(length, unit)
    outline = [withStroke(linewidth=2, foreground="black", alpha=0.6)]
    x, y, part = 0.12 / width_in, 0.12 / height_in, length / width_A
    axes.add_patch(Rectangle((x, y), part, 0.045 / height_in, transform=axes.transAxes, facecolor="white", path_effects=outline))
    y += 0.075 / height_in
    # Over a short bar a centred label would stand out of the picture.
    x, side = (x + part / 2, "center") if part * width_in > 0.08 * len(label) else (x, "left")
    axes.text(x, y, label, transform=axes.transAxes, color="white", fontsize=8.5, ha=side, va="bottom", path_effects=outline)
