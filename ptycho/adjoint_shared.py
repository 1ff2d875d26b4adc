"""The gradients of a batch of which each process has computed its part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptycho.adjoint_terms import Gradients, Varying, Wants
from ptycho.model import Ptychography
from ptycho.ranks import Ranks
from ptycho.windows import touched_box

#: Complex ones, which need an even place in memory and so come first; and those with a row for each pattern.
_COMPLEX = ("object", "spectrum", "variations")
_EACH = ("offsets", "tilt", "descan", "coefficients")


@dataclass(frozen=True, eq=False)
class Whole:
    """Gradients of a whole batch, zero at first; all in one piece of ``memory``, so that they are summed in one go."""

    memory: Tensor
    gradients: Gradients

    @classmethod
    def of(cls, model: Ptychography, corners: Tensor, spectrum: Tensor, tilt: Tensor, wants: Wants, varying: Varying) -> Whole:
        """For the batch with these windows, as :class:`ptycho.adjoint.Likelihood` is asked for it."""
        transmission = model.object.transmission.detach()
        box = touched_box(corners, model.size, transmission.shape)
        varies = wants.opr and varying.variations is not None
        like = {
            "object": transmission[..., box[0], box[1]] if wants.object else None,
            "spectrum": spectrum if wants.probe else None,
            "offsets": model.positions.value_px[: len(corners)] if wants.offsets else None,
            "tilt": tilt if wants.propagation else None,
            "thickness": model.propagator.thickness_A if wants.propagation else None,
            "background": model.detector.background if wants.background else None,
            "blur": model.detector.blur_px2 if wants.blur else None,
            "descan": varying.descan_px if wants.descan else None,
            "coefficients": varying.coefficients if varies else None,
            "variations": varying.variations if varies else None,
        }
        shapes = {name: tensor.shape for name, tensor in like.items() if tensor is not None}
        order = sorted(shapes, key=lambda name: name not in _COMPLEX)
        sizes = [math.prod(shapes[name]) * (2 if name in _COMPLEX else 1) for name in order]
        memory = torch.zeros(sum(sizes), dtype=transmission.real.dtype, device=transmission.device)
        views: dict[str, Any] = {
            name: torch.view_as_complex(part.view(*shapes[name], 2)) if name in _COMPLEX else part.view(shapes[name])
            for name, part in zip(order, memory.split(sizes), strict=True)
        }
        return cls(memory, Gradients(torch.zeros((), dtype=torch.float64, device=memory.device), box, **views))

    def add(self, found: Gradients, rows: Tensor) -> None:
        """What was found for the patterns in the ``rows`` (n,) of the batch."""
        whole = self.gradients
        whole.loss += found.loss
        if whole.object is not None and found.object is not None:
            within = [slice(f.start - w.start, f.stop - w.start) for f, w in zip(found.box, whole.box, strict=True)]
            whole.object[..., within[0], within[1]] = found.object
        for name in ("spectrum", "thickness", "background", "blur", "variations", *_EACH):
            target, source = getattr(whole, name), getattr(found, name)
            if target is None:
                continue
            if name in _EACH and len(target) > 1:
                target[rows] = source
            else:  # a tilt that all share, or a batch of one
                target.copy_(source)

    def over(self, ranks: Ranks, measured: bool) -> Gradients:
        """Summed over all processes; the loss only where it was ``measured``."""
        ranks.sum_(self.memory)
        if measured:
            ranks.sum_(self.gradients.loss)
        return self.gradients
