"""What the changing side of a solver has to remember, as trees of numbers and tensors that can be kept and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Names -> numbers, tensors, arrays, texts, None, and lists, tuples and dictionaries of them.
State = dict[str, Any]


def state_of(record: Any, *names: str) -> State:
    """These attributes of ``record``."""
    return {name: getattr(record, name) for name in names}


def set_state(record: Any, state: State, device: torch.device) -> None:
    """Put attributes back that :func:`state_of` gave, their tensors on ``device``."""
    for name, value in state.items():
        setattr(record, name, placed(value, device))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a tree, in its order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def placed(value: Any, device: torch.device) -> Any:
    """``value`` with all tensors in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: placed(item, device) for key, item in value.items()}
    return type(value)(placed(item, device) for item in value) if isinstance(value, (list, tuple)) else value
