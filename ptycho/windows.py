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

    def places(self) -> list[int]:
        """Addresses of the buffers."""
        return [buffer.data_ptr() for buffer in self._buffers.values()]


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
    return torch.stack([_view(canvas, y, x, size) for y, x in corners.tolist()], out=out)


def add_windows(canvas: Tensor, windows: Tensor, corners: Tensor, pool: Executor | None = None, workers: int = 1) -> None:
    """Add ``windows`` (N, states, slices, k, k) to ``canvas`` (states, slices, y, x) at ``corners`` (N, 2).

    On the CPU each worker owns some slices and adds the windows in their order, so that the sum is the same, bit for bit, for any
    number of workers; elsewhere see :func:`scatter_add`.
    """
    if canvas.device.type != "cpu":
        scatter_add(canvas, windows, corners)
        return
    places, size, slices = corners.tolist(), windows.shape[-1], canvas.shape[1]

    def add(first: int) -> None:
        with torch.no_grad():
            for s in range(first, slices, workers):
                part = canvas[:, s : s + 1]
                for window, (y, x) in zip(windows[:, :, s : s + 1], places, strict=True):
                    _view(part, y, x, size).add_(window)

    if pool is None or slices == 1:
        for first in range(workers):
            add(first)
        return
    for job in [pool.submit(add, first) for first in range(workers)]:
        job.result()


def _view(canvas: Tensor, y: int, x: int, size: int) -> Tensor:
    """canvas[:, :, y : y + size, x : x + size] in one call: slicing twice would cost more than the copy of a small window."""
    step = canvas.stride()
    return canvas.as_strided((*canvas.shape[:2], size, size), step, canvas.storage_offset() + y * step[2] + x * step[3])


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
