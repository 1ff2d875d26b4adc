"""The same bits at every run, on a GPU too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: What cuBLAS reads when it first starts: buffers of its own for each stream, so that sums are not split by what else is running.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_BUFFERS = ":4096:8"
# Its attribute is not known to type checkers.
_MEMORY: Any = torch.utils.deterministic


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Inside, torch sums in a fixed order (``torch.use_deterministic_algorithms``); afterwards everything is as it was. Nothing unless ``wanted``.

    On a GPU ``index_add_`` then sorts in place of atomic additions, which arrive in any order. On the CPU the order is fixed always. What torch
    warns of, as it has no such form, are the values of medians and running sums of a few numbers, which come out the same.
    """
    if not wanted:
        yield
        return
    before, warned, filled = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _MEMORY.fill_uninitialized_memory,
    )
    buffers = os.environ.get(CUBLAS)
    os.environ.setdefault(CUBLAS, _BUFFERS)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Buffers that are written before they are read need not be filled with NaN first.
    _MEMORY.fill_uninitialized_memory = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        _MEMORY.fill_uninitialized_memory = filled
        if buffers is None:
            os.environ.pop(CUBLAS, None)
