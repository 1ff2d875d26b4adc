"""A value that is formed anew only when what it depends on has changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Kept:
    """The last value of a function of a few small tensors: what seldom changes need not be formed for every batch.

    On the CPU and outside of autograd only; elsewhere the comparison would stall the device, or a graph would be used twice.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[Tensor, ...], Tensor] | None = None

    def __call__(self, form: Callable[[], Tensor], *inputs: Tensor) -> Tensor:
        """``form()``, or what it gave when the inputs were last the same. Workers may call it at the same time."""
        if torch.is_grad_enabled() or inputs[0].device.type != "cpu":
            return form()
        last = self._last
        if last is not None and all(torch.equal(before, now) for before, now in zip(last[0], inputs, strict=True)):
            return last[1]
        # Inside of a worker tensors belong to its inference mode, and could not be used after it.
        with torch.inference_mode(False), torch.no_grad():
            value = form()
            self._last = (tuple(x.detach().clone() for x in inputs), value)
        return value
