"""Which device computes, by the name that a person gives it."""

from __future__ import annotations

import torch

from ptycho.errors import RecipeError
from ptycho.ranks import Ranks


def choose_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """``auto``: CUDA when there is one, else the CPU; one GPU for each of the processes. Raises RecipeError for a device that is not here."""
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise RecipeError(f'device = "{name}": allowed are auto, cpu, cuda, mps')
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device = cuda: torch finds no CUDA device here; use --device cpu, or install a torch with CUDA")
    if name == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("device = mps: torch finds no Apple GPU here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks is None or ranks.count == 1 or name == "cpu":
        return torch.device(name)
    if name == "mps":
        raise RecipeError(f"device = mps: not by {ranks.count} processes together; use --device cpu, or one process")
    # Where each process sees its own GPU alone, that is number 0.
    visible = torch.cuda.device_count()
    if 1 < visible < ranks.local_count:
        raise RecipeError(f"{ranks.local_count} processes on a machine with {visible} GPUs: start one for each GPU")
    place = torch.device("cuda", ranks.local % visible)
    torch.cuda.set_device(place)
    return place
