"""A value that is formed anew only when what it depends on has changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Kept:
    """The last value of a function of a few small tensors: what seldom changes need not be formed for every batch.

    Outside of autograd only, where a graph would be used twice. On a GPU a comparison would stall the device: there it is formed at every
    call, always at the same place, but for what is being recorded as a CUDA graph, which takes what the call before has formed.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[Tensor, ...], Tensor] | None = None

    def __call__(self, form: Callable[[], Tensor], *inputs: Tensor) -> Tensor:
        """``form()``, or what it gave when the inputs were last the same. Workers may call it at the same time."""
        if torch.is_grad_enabled():
            return form()
        last = self._last
        if inputs[0].device.type != "cpu":
            return self._in_place(form, last)
        if last is not None and all(torch.equal(before, now) for before, now in zip(last[0], inputs, strict=True)):
            return last[1]
        # Inside of a worker tensors belong to its inference mode, and could not be used after it.
        with torch.inference_mode(False), torch.no_grad():
            value = form()
            self._last = (tuple(x.detach().clone() for x in inputs), value)
        return value

    def _in_place(self, form: Callable[[], Tensor], last: tuple[tuple[Tensor, ...], Tensor] | None) -> Tensor:
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if recording and last is not None:
            return last[1]
        with torch.inference_mode(False), torch.no_grad():
            value = form()
            if recording:
                return value
            if last is None or last[1].shape != value.shape or last[1].dtype != value.dtype:
                self._last = last = ((), value)
            elif last[1] is not value:
                last[1].copy_(value)
        return last[1]
