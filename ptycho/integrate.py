"""From a field of gradients to what it is the gradient of: Fourier integration, divergence, and how much of it is noise.

The scan is not periodic. Its field is continued by reflection at the borders as the gradient of an even function: each component changes
sign across the borders that it points to, and only across them. A phase that rises all the way is then no jump.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]


def integrate(com_invA: Field, step_A: tuple[float, float], highpass_invA: float | Literal["noise"] = 0.0) -> Field:
    """Phase (y, x) in rad, of mean zero, of which ``com_invA`` (2, y, x) = (y, x) in 1/Å is the gradient over 2 pi.

    phi(q) = q.k(q) / (i (q^2 + h^2)) (Lazic, Bosch & Lazar, Ultramicroscopy 160 (2016) 265, eq. 20), where h = ``highpass_invA``
    holds back low frequencies, in which the noise of a gradient becomes large. "noise": as much of each low frequency is kept as stands above
    the noise, which is known from the curl (``noise_filter``). NaN is filled from the nearest point.
    """
    k_y, k_x = _spectrum(com_invA)
    q_y, q_x = _frequencies(k_y.shape, step_A)
    squared = q_y**2 + q_x**2
    held = 0.0 if highpass_invA == "noise" else highpass_invA**2
    divided = np.divide(1.0, squared + held, out=np.zeros_like(squared), where=squared > 0)
    phase = -1j * (q_y * k_y + q_x * k_x) * divided
    if highpass_invA == "noise":
        phase *= noise_filter(com_invA, step_A)
    height, width = com_invA.shape[1:]
    image = np.fft.ifft2(phase).real[:height, :width]
    return image - image.mean()


def noise_filter(com_invA: Field, step_A: tuple[float, float]) -> Field:
    """Share (2 y, 2 x) of each low frequency that is signal: 1 - |curl|^2 / |divergence|^2, a Wiener filter; corner order.

    A phase has no curl, and counting noise as much of it as of divergence. Means over rings of equal frequency; from the ring that stands
    out most outwards everything is kept, for there the noise of the phase is small and a filter would only blur.
    """
    k_y, k_x = _spectrum(com_invA)
    q_y, q_x = _frequencies(k_y.shape, step_A)
    radius = np.hypot(q_y, q_x)
    width = 1 / min(n * step for n, step in zip(com_invA.shape[1:], step_A, strict=True))
    ring = np.rint(radius / width).astype(int)
    along, across = (np.bincount(ring.ravel(), (np.abs(part) ** 2).ravel()) for part in (q_y * k_y + q_x * k_x, q_y * k_x - q_x * k_y))
    share = np.clip(1 - np.divide(across, along, out=np.ones_like(along), where=along > 0), 0, 1)
    best = int(share.argmax())
    share[best:] = 1
    share[: best + 1] = np.maximum.accumulate(share[: best + 1])
    return share[ring]


def minus_divergence(com_invA: Field, step_A: tuple[float, float]) -> Field:
    """-div (y, x) of ``com_invA`` (2, y, x), in 1/Å^2: positive where the specimen pulls electrons in from all sides, at nuclei.

    It is proportional to the projected charge density (dCoM; Lazic, Bosch & Lazar, Ultramicroscopy 160 (2016) 265, eq. 24). NaN stays NaN.
    """
    slopes = [np.gradient(part, step, axis=axis) for axis, (part, step) in enumerate(zip(com_invA, step_A, strict=True)) if part.shape[axis] > 1]
    total: Field = -np.sum(slopes, axis=0) if slopes else np.zeros(com_invA.shape[1:])
    return total


def filled(field: Field) -> Field:
    """The field (..., y, x) with NaN replaced by the value of the nearest point that has one; zero where there is none."""
    missing = ~np.isfinite(field)
    if not missing.any():
        return field
    whole = np.asarray(missing.reshape(-1, *field.shape[-2:]).any(0))
    if whole.all():
        return np.zeros_like(field)
    from scipy.ndimage import distance_transform_edt  # late: it takes longer to import than to use

    y, x = distance_transform_edt(whole, return_distances=False, return_indices=True)
    return field[..., y, x]


def _spectrum(com_invA: Field) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """(k_y, k_x) of the field continued by reflection, each (2 y, 2 x), in corner order."""
    com_y, com_x = filled(com_invA)
    return _reflected(com_y, (-1, 1)), _reflected(com_x, (1, -1))


def _reflected(part: Field, signs: tuple[int, int]) -> NDArray[np.complex128]:
    for axis, sign in enumerate(signs):
        part = np.concatenate([part, sign * np.flip(part, axis)], axis)
    return np.fft.fft2(part)


def _frequencies(shape: tuple[int, ...], step_A: tuple[float, float]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(q_y, q_x) in 1/Å as column and row. The highest of an even number has no sign: a gradient says nothing of it."""
    q_y, q_x = (np.fft.fftfreq(n, step) for n, step in zip(shape, step_A, strict=True))
    q_y[len(q_y) // 2] = q_x[len(q_x) // 2] = 0
    return q_y[:, None], q_x[None, :]
