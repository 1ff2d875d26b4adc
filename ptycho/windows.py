"""Windows of a canvas: cut out, added back, and the buffers they live in."""

from __future__ import annotations

import math
from concurrent.futures import Executor

import torch
from torch import Tensor

from ptycho.multislice import gather


class Workspace:
    """Named buffers that are allocated once and used again for every chunk of one worker."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape with the type and device of ``like``; the same memory at every call with this name."""
        count = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.numel() < count or held.dtype != like.dtype:
            held = self._buffers[name] = torch.empty(count, dtype=like.dtype, device=like.device)
        return held[:count].view(shape)


def touched_box(corners: Tensor, size: int, shape: torch.Size) -> tuple[slice, slice]:
    """Rows and columns of a canvas (..., y, x) that windows at ``corners`` (N, 2) cover; all of it where asking would stall the device."""
    if corners.device.type != "cpu":
        return slice(0, shape[-2]), slice(0, shape[-1])
    (y0, x0), (y1, x1) = corners.amin(0).tolist(), corners.amax(0).tolist()
    return slice(y0, y1 + size), slice(x0, x1 + size)


def cut_windows(canvas: Tensor, corners: Tensor, out: Tensor) -> Tensor:
    """Windows of ``canvas`` (states, slices, y, x) at ``corners`` (N, 2), in ``out`` (N, states, slices, k, k) where that is faster."""
    size = out.shape[-1]
    if canvas.device.type != "cpu":
        return gather(canvas.flatten(0, 1), corners, size).unflatten(1, canvas.shape[:2])
    windows = canvas.unfold(2, size, 1).unfold(3, size, 1)  # every window, as a view
    for window, (y, x) in zip(out, corners.tolist(), strict=True):
        window.copy_(windows[:, :, y, x])
    return out


def add_windows(canvas: Tensor, windows: Tensor, corners: Tensor, pool: Executor | None = None, workers: int = 1) -> None:
    """Add ``windows`` (N, states, slices, k, k) to ``canvas`` (states, slices, y, x) at ``corners`` (N, 2).

    On the CPU each worker owns a band of rows and adds the windows in their order, so that the sum is the same, bit for bit, for any
    number of workers; elsewhere see :func:`scatter_add`.
    """
    if canvas.device.type != "cpu":
        scatter_add(canvas, windows, corners)
        return
    places, size, rows = corners.tolist(), windows.shape[-1], canvas.shape[-2]

    def band(first: int, last: int) -> None:
        with torch.no_grad():
            for window, (y, x) in zip(windows, places, strict=True):
                low, high = max(first, y), min(last, y + size)
                if low < high:
                    canvas[:, :, low:high, x : x + size].add_(window[:, :, low - y : high - y])

    if pool is None:
        band(0, rows)
        return
    for job in [pool.submit(band, rows * w // workers, rows * (w + 1) // workers) for w in range(workers)]:
        job.result()


def scatter_add(canvas: Tensor, patches: Tensor, corners: Tensor) -> None:
    """Add windows (N, states, slices, k, k) to ``canvas`` (states, slices, y, x) at integer ``corners`` (N, 2), without sorting.

    ``index_add_`` uses atomics on a GPU; under ``torch.use_deterministic_algorithms`` it sums in a fixed order.
    """
    size = patches.shape[-1]
    window = torch.arange(size, device=canvas.device)
    flat = (corners[:, 0, None, None] + window[:, None]) * canvas.shape[-1] + corners[:, 1, None, None] + window
    target = torch.view_as_real(canvas.flatten(0, 1).flatten(1))
    source = torch.view_as_real(patches.flatten(1, 2).movedim(1, 0).flatten(1).contiguous())
    target.index_add_(1, flat.flatten(), source)
