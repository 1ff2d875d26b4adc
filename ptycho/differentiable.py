"""The likelihood and its exact gradient as one operation of autograd, for torch's optimisers and for models that are a part of something larger."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.adjoint_terms import Wants


class _Function(torch.autograd.Function):
    """The likelihood as one differentiable operation; the gradients come with the value."""

    @staticmethod
    def forward(ctx: Any, engine: Likelihood, index: Tensor, counts: Tensor, *leaves: Tensor) -> Tensor:
        _, spectrum, _, _, _, _, blur, descan, coefficients, _ = leaves
        need = ctx.needs_input_grad[3:]
        varies, descans = coefficients.numel() > 0, descan.numel() > 0
        wants = Wants(
            object=need[0],
            probe=need[1],
            offsets=need[2],
            propagation=need[3] or need[4],
            background=need[5],
            blur=need[6] and blur.numel() > 0,
            descan=need[7] and descans,
            opr=(need[8] or need[9]) and varies,
        )
        g, _ = engine.of(index, counts, spectrum, wants)
        whole = None
        if g.object is not None:
            whole = torch.zeros_like(leaves[0])
            whole[..., g.box[0], g.box[1]] = g.object
        ctx.gradients = (whole, g.spectrum, g.offsets, g.tilt, g.thickness, g.background, g.blur, g.descan, g.coefficients, g.variations)
        return g.loss.to(spectrum.real.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None or not n else g * outputs[0] for g, n in zip(ctx.gradients, ctx.needs_input_grad[3:], strict=True)]
        return (None, None, None, *scaled)


def likelihood(engine: Likelihood, index: Tensor, counts: Tensor) -> Tensor:
    """Summed loss of the patterns ``counts`` (B, ky, kx) at the positions ``index`` (B,), differentiable in every parameter of the model.

    Any torch optimiser can use it: object, probe (and through it aberrations, source and
    variation), positions, tilts, thicknesses, background, blur and descan.
    """
    model = engine.model
    _, offsets = model.positions.split(index, model.size)
    leaves = (
        model.object.transmission,
        model.probe.spectrum(),
        offsets,
        model.propagator.tilt_of(index),
        model.propagator.thickness_A,
        model.detector.background,
        model.detector.blur_px2,
        model.detector.descan_of(index),
        model.probe.coefficients_of(index),
        model.probe.variation_spectrum(),
    )
    return torch.as_tensor(_Function.apply(engine, index, counts, *leaves))  # type: ignore[no-untyped-call]
