"""The turn of the scan from the centre of mass: the field of a potential has no curl.

For a phase object the centre of mass is the gradient of the phase seen through the probe, <k> = |psi|^2 * grad phi / 2 pi, in focus or not
(Müller-Caspary et al., Ultramicroscopy 178 (2017) 62). In the scan's frame its curl is zero only for the right turn and handedness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.bright_field import BrightField
from ptycho.pose import MIRROR, Matrix, turn

_FREQUENCIES, _LEAST_CYCLES = 250, 1.5


@dataclass(frozen=True)
class Curl:
    """The orientation (slow, fast) -> (y, x) with the least curl, up to its sign, and the share of the field's power that is curl then.

    0 would be a perfect potential, about one half a field that is none.
    """

    orientation: Matrix
    share: float


def fit_curl(bright: BrightField) -> tuple[Curl, Curl]:
    """The best turn without and with a mirror (y -> -y), the better one first.

    With u the field in the scan's frame at frequency q, turned by theta, the curl is C cos theta + D sin theta; the least sum of squares is at
    theta = atan2(-2 Re sum C* D, sum |D|^2 - |C|^2) / 2.
    """
    field, q = _spectrum(bright)
    direction = q / np.linalg.norm(q, axis=1, keepdims=True)
    fits = []
    for mirrored in (False, True):
        v = field @ MIRROR if mirrored else field
        # A^T v with A^T = [[c, -s], [s, c]]; its part across q, u_y q_x - u_x q_y = c C + s D.
        across = v[:, 0] * direction[:, 1] - v[:, 1] * direction[:, 0]
        along = -(v[:, 1] * direction[:, 1] + v[:, 0] * direction[:, 0])
        total = float((np.abs(v) ** 2).sum())
        cross = float((across.conj() * along).real.sum())
        c2, d2 = float((np.abs(across) ** 2).sum()), float((np.abs(along) ** 2).sum())
        theta = 0.5 * np.arctan2(-2 * cross, d2 - c2)
        left = np.abs(across * np.cos(theta) + along * np.sin(theta)) ** 2
        a = turn(float(np.degrees(theta)))
        fits.append(Curl(MIRROR @ a if mirrored else a, float(left.sum()) / max(total, 1e-30)))
    fits.sort(key=lambda fit: fit.share)
    return fits[0], fits[1]


def _spectrum(bright: BrightField) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """The strongest spatial frequencies of the field (n, 2) = (y, x) within what the aperture passes, and their q (n, 2) in 1/Å."""
    slow, fast = bright.scan_shape
    window = np.hanning(slow + 2)[1:-1, None] * np.hanning(fast + 2)[1:-1]
    field = np.fft.fft2(bright.centre_of_mass_invA * window).reshape(2, -1).T
    qy, qx = (a.ravel() for a in np.meshgrid(np.fft.fftfreq(slow), np.fft.fftfreq(fast), indexing="ij"))
    q = np.stack([qy / bright.step_A[0], qx / bright.step_A[1]], axis=1)
    used = ((qy > 0) | ((qy == 0) & (qx > 0))) & (np.hypot(qy * slow, qx * fast) > _LEAST_CYCLES)
    used &= np.linalg.norm(q, axis=1) < 2 * bright.aperture_invA
    power = np.where(used, (np.abs(field) ** 2).sum(1), 0)
    chosen = np.argsort(-power, kind="stable")[: min(_FREQUENCIES, int(used.sum()))]
    return field[chosen], q[chosen]
