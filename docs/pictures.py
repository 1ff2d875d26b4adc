"""Pictures of what goes wrong, for howto/troubleshooting.md: right beside wrong, from small simulated scans. About five minutes on one core.

A maintainer runs it by hand, and not the build of the documentation: python docs/pictures.py [NAME ...]. It writes images/NAME.png and
prints what each run said, which the page quotes.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

import ptycho
from ptycho.constraint import Constraints
from ptycho.plot import INK, MAP, Page, image_with_bar, robust_limits, scanned_phase
from ptycho.simulation import Simulated
from ptycho.solvers.stop import Stop

_IMAGES = Path(__file__).parent / "images"
#: Counts enough for the amplitude loss and no prior, which would hide how a fault looks.
_SCAN = ptycho.Simulation(scan_shape=(24, 24), rotation_deg=20.0, defocus_A=200.0, pattern_px=64, pixel_invA=0.05, dose_e_per_A2=1e5)
#: A panel's side, its width with the colour bar and its height with the title, in inches; few colours (of the map, and greys) make a
#: small file.
_SIDE, _CELL, _HEIGHT, _DPI, _COLOURS, _GREYS = 1.75, 2.3, 2.05, 92, 28, 6

#: A title and the result below it; "probe" in the title shows the probe in place of the phase.
Panel = tuple[str, ptycho.Result]


def defocus() -> list[Panel]:
    """A thin specimen: the probe update repairs a tenth by itself, but not this much."""
    return [_right(), ("20 % off", _told(defocus_A=240.0)), ("40 % off", _told(defocus_A=280.0))]


def rotation() -> list[Panel]:
    """Of the scan relative to the detector."""
    return [_right(), ("5° off", _told(rotation_deg=25.0)), ("15° off", _told(rotation_deg=35.0))]


def step() -> list[Panel]:
    """The magnification of the scan."""
    return [_right(), ("10 % too long", _told(step_A=0.88)), ("10 % too short", _told(step_A=0.72))]


def flips() -> list[Panel]:
    """One flip changes the handedness; two are half a turn, which the reversed defocus turns into the twin with a negative phase."""
    half_turn = {"flip_rows": True, "flip_columns": True, "centre": "auto"}
    dark = _told(**half_turn, defocus_A=-200.0)
    return [_right(), ("rows flipped", _told(flip_rows=True, centre="auto")), ("twin: half a turn, defocus reversed", dark)]


def overlap() -> list[Panel]:
    """Close to focus, the same field in many and in few steps along its axes."""
    many = _simulated(defocus_A=60.0, rotation_deg=0.0, dose_e_per_A2=2e5).dataset()
    few = _simulated(defocus_A=60.0, rotation_deg=0.0, dose_e_per_A2=2e5, scan_shape=(9, 9), step_A=2.5).dataset()
    return [("step 0.8 Å", _run(many)), ("step 2.5 Å", _run(few)), ("step 2.5 Å, ePIE", _run(few, kind="epie", epochs=30))]


def noise() -> list[Panel]:
    """1000 electrons on each Å²: as the package does it, and with all that holds noise back turned off."""
    data = _simulated(dose_e_per_A2=1e3).dataset()
    over = _run(data, solve=[ptycho.Gradient(epochs=60, stop=Stop(patience=0), constraints=Constraints())])
    return [("default", _run(data)), ("60 epochs, no stop, no prior", over), ("probe of the same", over)]


def window() -> list[Panel]:
    """Binned patterns have a smaller window."""
    data = _simulated(defocus_A=160.0)
    wraps = _run(data.dataset(bin=2))
    return [("probe, window 20 Å", _run(data.dataset())), ("probe, window 10 Å", wraps), ("phase, window 10 Å", wraps)]


PICTURES: dict[str, Callable[[], list[Panel]]] = {f.__name__: f for f in (defocus, rotation, step, flips, overlap, noise, window)}


@cache
def _simulated(**changes: Any) -> Simulated:
    return ptycho.simulate(replace(_SCAN, **changes))


@cache
def _right() -> Panel:
    return "right", _told()


def _told(**changes: Any) -> ptycho.Result:
    """The scan reconstructed with something else said of it; and what calibrate makes of that."""
    data = _simulated().dataset(**changes)
    print("calibrate:", *str(ptycho.calibrate(data)).splitlines(), sep="\n    ")
    return _run(data, str(changes))


def _run(data: ptycho.Dataset4D, what: str = "", **options: Any) -> ptycho.Result:
    print("run:", what)
    return ptycho.reconstruct(data, device="cpu", **options)


def _drawn(panels: list[Panel]) -> bytes:
    """Phase of the scanned field or the whole window of the probe, each in its own colours, side by side."""
    page = Page(len(panels) * _CELL + 0.1, _HEIGHT)
    page.set_dpi(_DPI)
    for number, (title, result) in enumerate(panels):
        is_probe = title.startswith("probe")
        image = np.abs(result.probe[0]) if is_probe else scanned_phase(result).sum(0)
        limits = (0.0, float(image.max())) if is_probe else robust_limits(image)
        axes = image_with_bar(page, (0.08 + number * _CELL, 0.24), (_SIDE, _SIDE), image, result.pixel_A, limits, "")
        axes.set_title(title, fontsize=7.5, color=INK, pad=4, loc="left")
    file = io.BytesIO()
    drawn = Image.open(io.BytesIO(page.png())).convert("RGB")
    drawn.quantize(palette=_palette(), dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _palette() -> Image.Image:
    """Evenly spaced, so that steps of colour are steps of the number."""
    colours = np.concatenate([colormaps[MAP](np.linspace(0, 1, _COLOURS))[:, :3], np.linspace(0, 1, _GREYS)[:, None].repeat(3, 1)])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * colours).astype(np.uint8).tobytes())
    return palette


def main(names: list[str]) -> None:
    """Draw the named pictures, all of them by default."""
    torch.set_flush_denormal(True)
    logging.basicConfig(format="    %(message)s", level=logging.INFO, stream=sys.stdout)
    _IMAGES.mkdir(exist_ok=True)
    for name in names or PICTURES:
        print(f"\n{name}")
        picture = _drawn(PICTURES[name]())
        (_IMAGES / f"{name}.png").write_bytes(picture)
        print(f"{name}.png: {len(picture) / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
