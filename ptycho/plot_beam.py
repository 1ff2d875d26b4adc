"""Pictures of the beam for the report: probe modes in real and reciprocal space, positions with their shifts, tilts. WebP files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry import wavelength_A
from ptycho.plot import INK, MAP, Page, dotted_circle, fitted, probe_box, restrain, scale_bar, show_image
from ptycho.plot_object import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ptycho.result import Result

_TILE = 2.0
#: What is shown of reciprocal space, in radii of the aperture.
_RADII = 1.5
#: So many arrows can be told apart.
_ARROWS = 500


def mode_picture(result: Result, number: int) -> bytes:
    """Amplitude of one mode of the probe where it meets the specimen, and in the aperture, whose edge is dotted."""
    page = Page(WIDTH, _TILE + 0.34)
    mode = result.probe[number]
    real = np.abs(mode[probe_box(result.probe)])
    n = len(mode)
    pixel_mrad = 1e3 * wavelength_A(result.voltage_kV) / (n * result.pixel_A)
    reach = min(int(np.ceil(_RADII * result.semiangle_mrad / pixel_mrad)), n // 2 - 1)
    inner = slice(n // 2 - reach, n // 2 + reach + 1)
    aperture = np.abs(np.fft.fftshift(np.fft.fft2(mode)))[inner, inner]
    axes = _tile(page, 0.05, real, result.pixel_A, "Å")
    axes.set_title("real space", fontsize=7.5, color=INK, pad=3, loc="left")
    axes = _tile(page, WIDTH - _TILE - 0.05, aperture, pixel_mrad, "mrad")
    axes.set_title("reciprocal space", fontsize=7.5, color=INK, pad=3, loc="left")
    middle = (reach + 0.5) * pixel_mrad
    dotted_circle(axes, (middle, middle), result.semiangle_mrad)
    return page.webp()


def positions_picture(result: Result, moved_A: NDArray[np.float64]) -> bytes:
    """All positions; where they were learned, coloured by their shift (its mean, which no data fix, taken away) and with arrows."""
    page, axes, size = _map(result, bar=len(moved_A) > 0)
    y, x = result.positions_A.T
    if not len(moved_A):
        axes.scatter(x, y, s=min(6.0, _spacing(result, size) ** 2 / 8), color="#b5367a", linewidths=0)
        return page.webp()
    shift = moved_A - moved_A.mean(0)
    length = np.hypot(*shift.T)
    drawn = axes.scatter(x, y, c=length, s=min(14.0, _spacing(result, size) ** 2 / 4), cmap="viridis", linewidths=0)
    _bar(page, size, drawn, "shift (Å)")
    # A random choice: every k-th of a raster would show a pattern that is not there.
    some = np.sort(np.random.default_rng(0).permutation(len(y))[:_ARROWS])
    longest = float(np.percentile(length, 98)) or 1.0
    factor = 0.07 * float(np.ptp(result.positions_A, axis=0).max() or 1.0) / longest
    arrows = axes.quiver(
        x[some], y[some], shift[some, 1], shift[some, 0], angles="xy", scale_units="xy", scale=1 / factor, width=0.003, color=INK, alpha=0.8
    )
    axes.quiverkey(arrows, 0.86, 1.035, longest, f"{longest:.2g} Å", labelpos="W", fontproperties={"size": 7}, labelcolor=INK)
    return page.webp()


def tilt_pictures(result: Result) -> tuple[bytes, bytes]:
    """Tilt at each position along y and along x, red positive, both in the same colours."""
    largest = float(np.abs(result.tilt_mrad).max()) or 1.0
    pictures = []
    for column, name in enumerate("yx"):
        page, axes, size = _map(result, bar=True)
        y, x = result.positions_A.T
        side = _spacing(result, size)
        drawn = axes.scatter(x, y, c=result.tilt_mrad[:, column], s=side**2, marker="s", cmap="RdBu_r", vmin=-largest, vmax=largest, linewidths=0)
        _bar(page, size, drawn, f"tilt along {name} (mrad)")
        pictures.append(page.webp())
    return pictures[0], pictures[1]


def _tile(page: Page, left: float, image: NDArray[np.floating[Any]], pixel: float, unit: str) -> Axes:
    axes = page.place(left, 0.24, _TILE, _TILE)
    show_image(axes, image, pixel, (0.0, float(image.max()) or 1.0), MAP)
    scale_bar(axes, image.shape[1] * pixel, _TILE, _TILE, unit)
    return axes


def _map(result: Result, bar: bool) -> tuple[Page, Axes, tuple[float, float]]:
    """Axes in Å that hold all positions, y downwards, with equal scales; and their width and height in inches."""
    (y0, x0), (y1, x1) = result.positions_A.min(0), result.positions_A.max(0)
    margin = 0.03 * max(y1 - y0, x1 - x0, 1e-9)
    extent = (y1 - y0 + 2 * margin, x1 - x0 + 2 * margin)
    width, height = fitted(extent, WIDTH - (1.3 if bar else 0.7), 4.2)
    page = Page(WIDTH, height + 0.75)
    axes = page.place(0.55, 0.28, width, height)
    axes.set_xlim(x0 - margin, x1 + margin)
    axes.set_ylim(y1 + margin, y0 - margin)
    axes.set_xlabel("x (Å)", fontsize=8, color=INK)
    axes.set_ylabel("y (Å)", fontsize=8, color=INK)
    restrain(axes)
    return page, axes, (width, height)


def _spacing(result: Result, size: tuple[float, float]) -> float:
    """Mean distance of the positions on a map of this size, in points."""
    return float(72 * np.sqrt(size[0] * size[1] / len(result.positions_A)))


def _bar(page: Page, size: tuple[float, float], drawn: Any, label: str) -> None:
    bar = page.place(0.55 + size[0] + 0.06, 0.28, 0.14, size[1])
    page.colorbar(drawn, cax=bar).set_label(label, fontsize=8, color=INK)
    restrain(bar)
