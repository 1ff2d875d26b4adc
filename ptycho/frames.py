"""Frames of a file as stored, and what the file says about them. Readers (``ptycho.io``) provide these; ``data.py`` uses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

#: Unit of every value that a file or a user can give, by the recipe's name.
UNITS = {
    "voltage_kV": "kV",
    "semiangle_mrad": "mrad",
    "defocus_A": "Å",
    "step_A": "Å",
    "rotation_deg": "°",
    "pixel_invA": "1/Å",
    "pixel_mrad": "mrad",
    "adu_per_electron": "ADU",
    "camera_length_m": "m",
    "exposure_ms": "ms",
    "beam_current_pA": "pA",
}


@dataclass(frozen=True)
class Quantity:
    """A value with its unit and where it is from: "user", "ws2.xml: iom_measurements/high_voltage", "estimate: ...", "default: ..."."""

    value: Any
    unit: str
    source: str
    trusted: bool = True


@dataclass(eq=False)
class Header:
    """What a file says of its frames, found without reading any.

    ``frame_shape`` (ky, kx) and ``dtype`` are as stored. ``scan_shape`` (slow, fast) is what the file, its sidecar or its name says, without
    the ``flyback`` frames that stand before and after each of its lines. ``metadata`` is keyed by the recipe's names (``UNITS``; also
    ``scan_shape``, to say where that is from). ``flip_rows`` is this detector's usual orientation. ``bad_pixels`` (ky, kx) is True for pixels
    that are never to be used, ``saturation`` the largest stored value that is a measurement. ``acquired`` (n_frames,) is the number of
    each frame in the acquisition, counted from 0, when some of them are missing from the file or stand in another order.
    ``positions_A`` (n_frames, 2) = (y, x) is the probe position of each stored frame, for files that have a list of them.
    """

    path: Path
    format: str
    n_frames: int
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    scan_shape: tuple[int, int] | None = None
    flyback: tuple[int, int] = (0, 0)
    metadata: dict[str, Quantity] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    flip_rows: bool = False
    bad_pixels: NDArray[np.bool_] | None = None
    saturation: float | None = None
    acquired: NDArray[np.int64] | None = None
    positions_A: NDArray[np.float64] | None = None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame as ``FrameSource.read`` gives it."""
        return self.frame_shape[0] * self.frame_shape[1] * self.dtype.itemsize


class FrameSource(Protocol):
    """Frames of one file, or of several that belong together, read when asked for."""

    header: Header

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) in the stored type and in the order asked for. Raises DataError when the file ends too early.

        Threads may call it at the same time.
        """

    def close(self) -> None:
        """Release the file."""
