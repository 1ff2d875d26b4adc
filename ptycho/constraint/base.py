"""What every constraint has: the epochs after which it acts, and a way to look at the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ptycho.errors import RecipeError
from ptycho.model import Ptychography


@dataclass(frozen=True)
class Constraint:
    """Imposed after epoch ``start``, ``start + every``, ... up to ``stop`` (0: to the end)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py
    #: The parts of the model that it changes.
    acts_on: ClassVar[frozenset[str]] = frozenset({"object"})

    start: int = 1
    stop: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 1 or self.every < 1 or self.stop < 0:
            raise RecipeError(f"start = {self.start}, every = {self.every}, stop = {self.stop}: start and every count from 1, stop is 0 for no end")

    def due(self, epoch: int) -> bool:
        """Whether it acts after this epoch (counted from 1)."""
        return epoch >= self.start and (self.stop == 0 or epoch <= self.stop) and (epoch - self.start) % self.every == 0

    def apply(self, model: Ptychography) -> None:
        """Impose it on the model, in place."""
        raise AssertionError("a constraint says what it does")


def unwrapped(transmission: Tensor) -> Tensor:
    """Phase in (-pi/2, 3 pi/2]: strong positive phases stay above the weak ones, and noise about zero stays about zero."""
    phase = torch.angle(transmission)
    return torch.where(phase < -torch.pi / 2, phase + 2 * torch.pi, phase)


def logarithm(transmission: Tensor) -> Tensor:
    """ln O = ln|O| + i phase, complex, with the phase of :func:`unwrapped`; opaque pixels end at |O| = 1e-6."""
    return torch.complex(torch.log(transmission.abs().clamp_min(1e-6)), unwrapped(transmission))


def scanned(light: Tensor) -> Tensor:
    """Where an illumination (y, x) is more than half of its maximum, (y, x) of booleans."""
    return light > 0.5 * light.max()


def canvas_frequencies(model: Ptychography) -> tuple[Tensor, Tensor]:
    """(ky, kx) in Å⁻¹ of the object's canvas as a (y, 1) column and a (1, x) row, in corner order."""
    transmission = model.object.transmission
    kind = {"dtype": transmission.real.dtype, "device": transmission.device}
    height, width = transmission.shape[-2:]
    return torch.fft.fftfreq(height, model.pixel_A, **kind)[:, None], torch.fft.fftfreq(width, model.pixel_A, **kind)[None, :]
