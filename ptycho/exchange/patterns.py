"""The patterns of a result by our forward model, as the other packages model them: to see that a file means the same here and there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry import wavelength_A

if TYPE_CHECKING:
    from ptycho.model import Ptychography
    from ptycho.result import Result


def patterns_of(result: Result, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Expected electrons (n, ky, kx) at the positions ``index`` (n,), zero frequency in the centre.

    In the probe's window, at points of the detector and not over the area of its pixels, without blur, source and background.
    """
    import torch

    with torch.no_grad():
        pattern = model_of(result)(torch.from_numpy(np.asarray(index, np.int64)))
    return np.asarray(np.fft.fftshift(pattern.numpy(), axes=(-2, -1)))


def model_of(result: Result) -> Ptychography:
    """The forward model with the numbers of ``result`` and an ideal detector.

    Positions whose windows leave the object are given room: empty space around it, as far as is needed.
    """
    import torch

    from ptycho.detector import Detector
    from ptycho.model import Positions, Ptychography
    from ptycho.multislice import Object
    from ptycho.probe import Probe
    from ptycho.propagator import Propagator

    size, position = result.probe.shape[-1], result.positions_A / result.pixel_A
    corner = np.floor(position + 0.5).astype(int) - size // 2
    before = np.maximum(-corner.min(0), 0)
    after = np.maximum(corner.max(0) + size - np.array(result.object.shape[-2:]), 0)
    canvas = np.pad(result.object, ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])), constant_values=1)
    wavelength = wavelength_A(result.voltage_kV)
    return Ptychography(
        Object(torch.from_numpy(canvas), torch.from_numpy(np.asarray(result.occupancy))),
        Probe(torch.from_numpy(result.probe), result.pixel_A, wavelength),
        Propagator(
            size,
            result.pixel_A,
            wavelength,
            torch.from_numpy(result.slice_thickness_A).float(),
            torch.from_numpy(result.tilt_mrad * 1e-3).float(),
            # Nothing is cut off in the corners: most of the others propagate all frequencies.
            limit=2.0,
        ),
        Positions(torch.from_numpy(position + before).float()),
        Detector(size, torch.ones(size, size), torch.zeros(1, 1), pixel_area=False),
        result.pixel_A,
    )
