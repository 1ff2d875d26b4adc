"""What a run shows of itself while it goes on: one small file in its folder, from which a page or a notebook makes a picture."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from ptycho.atomic import write_file
from ptycho.errors import OutputError
from ptycho.examples import coarser
from ptycho.pace import Pace
from ptycho.result import Result

PREVIEW = "live.json"
#: A picture comes at most this often, and all of them take at most this share of a run's time.
EVERY_S, SHARE = 2.0, 0.01
#: Larger pictures are shown more coarsely; smaller ones are interpolated, as a screen would not: they are band-limited.
_MOST_PX, _LEAST_PX = 512, 256


@dataclass(frozen=True)
class Panel:
    """A picture: uint8 (y, x) in base64, its shape, width and height in Å, and what 0 and 255 stand for.

    Whoever looks makes colours of it: a tenth of a second that the run is spared.
    """

    pixels: str
    shape: tuple[int, int]
    width_A: float
    height_A: float
    low: float
    high: float

    @classmethod
    def of(cls, image: NDArray[Any], pixel_A: float, limits: tuple[float, float]) -> Panel:
        """Of an image (y, x)."""
        low, high = map(float, limits)
        shown = coarser(image, -(-max(image.shape) // _MOST_PX))
        levels = ((shown - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
        height_A, width_A = (float(n * pixel_A) for n in image.shape)
        return cls(base64.b64encode(levels.tobytes()).decode(), (levels.shape[0], levels.shape[1]), width_A, height_A, low, high)

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> Panel:
        """From the fields as JSON has them. Raises ValueError, KeyError or TypeError for what is none."""
        height, width = map(int, tree["shape"])
        numbers = [float(tree[name]) for name in ("width_A", "height_A", "low", "high")]
        if len(base64.b64decode(tree["pixels"], validate=True)) != height * width or not np.isfinite(numbers).all() or min(numbers[:2]) <= 0:
            raise ValueError("a picture of another shape")
        return cls(tree["pixels"], (height, width), *numbers)

    def png(self) -> str:
        """The PNG file in base64."""
        return _png(self.pixels, self.shape)


@lru_cache(maxsize=8)
def _png(pixels: str, shape: tuple[int, int]) -> str:
    from ptycho.plot import bare_png

    image = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(shape).astype(np.float32)
    if max(shape) < _LEAST_PX:
        image = zoom(image, -(-_LEAST_PX // max(shape)), order=3, mode="nearest", grid_mode=True)
    return base64.b64encode(bare_png(image, (0.0, 255.0))).decode()


@dataclass(frozen=True)
class Preview:
    """A run after ``epoch`` epochs: its summed phase in the scanned field, and the amplitude of the strongest mode of its probe."""

    epoch: int
    phase: Panel
    probe: Panel

    @classmethod
    def of(cls, result: Result) -> Preview:
        """Of a result as it stands."""
        from ptycho.plot import probe_box, robust_limits, scanned_phase

        phase = scanned_phase(result).sum(0)
        probe = np.abs(result.probe[0][probe_box(result.probe)])
        epoch = result.history[-1].epoch if result.history else 0
        return cls(
            epoch, Panel.of(phase, result.pixel_A, robust_limits(phase)), Panel.of(probe, result.pixel_A, (0.0, float(probe.max()) or 1.0))
        )

    def text(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, text: bytes) -> Preview:
        """From the file's content. Raises ValueError when it is none."""
        try:
            tree = json.loads(text)
            return cls(int(tree["epoch"]), Panel.parse(tree["phase"]), Panel.parse(tree["probe"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a preview ({error})") from None


class PreviewWriter:
    """Called after every epoch with what makes the result: writes the preview into the run's folder when it is time.

    It is written by the run itself, between two epochs: the time that this takes is measured, and spaces the next ones so that all of them take
    at most a hundredth of the run. A disk that is full is not told of here: the run's own files will.
    """

    def __init__(self, folder: Path) -> None:
        import ptycho.plot  # noqa: F401  # now, so that its second is no part of the first picture's time; a run needs it anyway

        self.path, self.pace = folder / PREVIEW, Pace(EVERY_S, SHARE)

    def __call__(self, so_far: Callable[[], Result]) -> None:
        """An epoch is over."""
        if not self.pace.due:
            return
        with self.pace, contextlib.suppress(OutputError):
            result = so_far()
            if np.isfinite(result.object).all() and np.isfinite(result.probe).all():
                write_file(self.path, Preview.of(result).text().encode(), lasting=False)


def discard_preview(folder: Path) -> None:
    """The run is complete: its report shows more."""
    with contextlib.suppress(OSError):
        (folder / PREVIEW).unlink(missing_ok=True)
