"""Which device computes, by the name that a person gives it."""

from __future__ import annotations

import torch

from ptycho.errors import RecipeError


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA when there is one, else the CPU. Raises RecipeError for a device that is not here."""
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise RecipeError(f'device = "{name}": allowed are auto, cpu, cuda, mps')
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device = cuda: torch finds no CUDA device here; use --device cpu, or install a torch with CUDA")
    if name == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("device = mps: torch finds no Apple GPU here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
