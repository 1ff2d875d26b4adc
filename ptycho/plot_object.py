"""Pictures of the object for the report: summed phase, each slice, amplitude, sections along the beam. All of the scanned field, as WebP files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho.plot import INK, MAP, Limits, Page, fitted, image_with_bar, restrain, robust_limits, scanned_phase

if TYPE_CHECKING:
    from ptycho.result import Result

#: A panel of the report: as wide as a phone's screen makes its letters legible, in inches.
WIDTH = 4.2
_BOX = (3.4, 4.6)
#: What an atom column is wide, about, in Å.
_COLUMN_A = 0.4


def summed_phase_picture(result: Result) -> bytes:
    """The phase summed over all slices; marks at its edges tell where the sections are cut."""
    total = scanned_phase(result).sum(0)
    page, axes = _panel(result, total, robust_limits(total), "phase (rad)")
    page.set_dpi(220)
    if len(result.phase) > 1:
        row, column = strongest_column(result)
        height, width = (n * result.pixel_A for n in total.shape)
        axes.autoscale(False)  # what lies outside must not widen them
        mark: dict[str, Any] = {"color": INK, "markersize": 4, "clip_on": False, "linestyle": ""}
        axes.plot([(column + 0.5) * result.pixel_A], [-0.012 * height], marker="v", **mark)
        axes.plot([-0.012 * width], [(row + 0.5) * result.pixel_A], marker=">", **mark)
    return page.webp()


def slice_pictures(result: Result, numbers: list[int]) -> list[bytes]:
    """The phase of these slices, all in the same colours."""
    phase = scanned_phase(result)
    limits = robust_limits(phase)
    return [_panel(result, phase[number], limits, "phase (rad)")[0].webp() for number in numbers]


def amplitude_picture(result: Result) -> bytes:
    """The modulus of the transmission through all slices, in grey."""
    amplitude = total_amplitude(result)
    return _panel(result, amplitude, robust_limits(amplitude), "amplitude", "gray")[0].webp()


def total_amplitude(result: Result) -> NDArray[np.floating[Any]]:
    """Modulus (y, x) of the product of the slices in the scanned field."""
    return np.asarray(result.amplitude[(slice(None), *result.scanned)].prod(0))


def section_pictures(result: Result) -> tuple[bytes, bytes]:
    """The phase along x and depth, and along y and depth, through the strongest column, in the colours of the slices."""
    phase = scanned_phase(result)
    row, column = strongest_column(result)
    limits = robust_limits(phase)
    return _section(result, phase[:, row], "x", limits), _section(result, phase[:, :, column], "y", limits)


def strongest_column(result: Result) -> tuple[int, int]:
    """Row and column, in pixels of the scanned field, of the largest summed phase, seen as wide as an atom column."""
    total = gaussian_filter(scanned_phase(result).sum(0), _COLUMN_A / result.pixel_A)
    # Not at the very edge, where the field is scanned from one side only.
    inner = tuple(slice(n // 8, n - n // 8) for n in total.shape)
    row, column = np.unravel_index(int(np.argmax(total[inner])), total[inner].shape)
    return int(row) + inner[0].start, int(column) + inner[1].start


def _panel(result: Result, image: NDArray[Any], limits: Limits, label: str, colours: str = MAP) -> tuple[Page, Any]:
    width, height = fitted(image.shape, *_BOX)
    page = Page(width + WIDTH - _BOX[0], height + 0.24)
    axes = image_with_bar(page, (0.12, 0.12), (width, height), image, result.pixel_A, limits, label, colours)
    return page, axes


def _section(result: Result, phase: NDArray[np.floating[Any]], axis: str, limits: Limits) -> bytes:
    """Phase (slices, along): each slice as thick as it is, the beam from above; depth and width have scales of their own."""
    edges = np.concatenate([[0], np.cumsum(result.slice_thickness_A)])
    along = np.arange(phase.shape[1] + 1) * result.pixel_A
    width = WIDTH - 1.3
    height = float(np.clip(width * edges[-1] / along[-1], 1.0, 2.6))
    page = Page(WIDTH, height + 0.75)
    axes = page.place(0.55, 0.3, width, height)
    drawn = axes.pcolormesh(along, edges, phase, cmap=MAP, vmin=limits[0], vmax=limits[1], rasterized=True)
    axes.invert_yaxis()
    axes.set_xlabel(f"{axis} (Å)", fontsize=8, color=INK)
    axes.set_ylabel("depth (Å)", fontsize=8, color=INK)
    restrain(axes)
    bar = page.place(0.55 + width + 0.06, 0.3, 0.14, height)
    page.colorbar(drawn, cax=bar).set_label("phase (rad)", fontsize=8, color=INK)
    restrain(bar)
    return page.webp()
