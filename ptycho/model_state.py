"""All numbers of a model, to be kept and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptycho.model import Ptychography


def model_state(model: Ptychography) -> dict[str, Any]:
    """Parameters and buffers by name, the model's own tensors, and ``source_order``; what a fresh model of the same options has is left out."""
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()} | _buffers(model)
    return {"tensors": tensors, "source_order": model.probe.source_order}


@torch.no_grad()
def load_model_state(model: Ptychography, state: dict[str, Any]) -> None:
    """Put them into ``model``, a fresh one of the same options; parameters take the shapes that they had."""
    own = dict(model.named_parameters()) | _buffers(model)
    for name, tensor in state["tensors"].items():
        own[name].data = tensor.to(own[name].device)
    model.probe.source_order = state["source_order"]


def finite(model: Ptychography) -> bool:
    """Whether all parameters are numbers."""
    numbers = (torch.view_as_real(p) if p.is_complex() else p for p in model.parameters())
    return all(bool(torch.isfinite(p).all()) for p in numbers)


def _buffers(model: Ptychography) -> dict[str, Tensor]:
    """Those that are not formed anew with the model."""
    persistent = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in persistent}
