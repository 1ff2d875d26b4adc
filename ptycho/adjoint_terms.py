"""What the adjoint gives besides the waves themselves: the derivative of each parameter, from the waves on their way forward and back.

``back`` is the derivative of the loss with respect to the wave at the same place, without any complex conjugate; a real parameter p
that changes the wave by dw / dp has dL / dp = 2 Re sum back dw / dp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptycho.elementwise import Elementwise
from ptycho.model import Ptychography
from ptycho.optics import propagation_phase


@dataclass(frozen=True)
class Wants:
    """Which derivatives are needed; the object's and the probe's come together with the waves, the others cost a little."""

    object: bool = True
    probe: bool = True
    offsets: bool = False
    propagation: bool = False
    background: bool = False
    blur: bool = False
    descan: bool = False
    opr: bool = False


@dataclass(frozen=True)
class Varying:
    """What differs between the patterns of a batch beside offset and tilt; None where the model has no such thing.

    ``coefficients`` (B, k) of the probe's ``variations`` (k, source modes, y, x) as from :meth:`Probe.variation_spectrum`, ``descan_px``
    (B, 2) as :meth:`Detector.descan_of`.
    """

    coefficients: Tensor | None = None
    variations: Tensor | None = None
    descan_px: Tensor | None = None

    @classmethod
    def of(cls, model: Ptychography, index: Tensor) -> Varying:
        """At the positions ``index`` (B,)."""
        probe, detector = model.probe, model.detector
        return cls(
            coefficients=probe.coefficients_of(index) if probe.varies else None,
            variations=probe.variation_spectrum() if probe.varies else None,
            descan_px=detector.descan_of(index) if detector.descans else None,
        )

    def rows(self, rows: Tensor) -> Varying:
        """Of the ``rows`` (n,) of the batch."""
        each = [None if values is None else values[rows] for values in (self.coefficients, self.descan_px)]
        return Varying(each[0], self.variations, each[1])


@dataclass
class Gradients:
    """Loss of a batch and its derivatives, torch's convention (2 dL/dz* for complex leaves); None where not wanted.

    ``object`` (states, slices, h, w) covers the part ``box`` (rows, columns) of the canvas that the batch touches and lies in a buffer
    which the next batch overwrites; where that is the whole canvas ``bounds`` (4,) may tell on the device what is touched (first row and
    column, those behind the last); ``spectrum`` (modes, y, x) of the probe, ``offsets`` (B, 2) per pixel, ``tilt`` (B or 1, 2) per rad,
    ``thickness`` (slices,) per Å, ``background`` shaped as the detector's, ``blur`` (1,) per squared pixel, ``descan`` (B, 2) per detector
    pixel, ``coefficients`` (B, k) and ``variations`` (k, source modes, y, x).
    """

    loss: Tensor
    box: tuple[slice, slice] = (slice(None), slice(None))
    object: Tensor | None = None
    bounds: Tensor | None = None
    spectrum: Tensor | None = None
    offsets: Tensor | None = None
    tilt: Tensor | None = None
    thickness: Tensor | None = None
    background: Tensor | None = None
    blur: Tensor | None = None
    descan: Tensor | None = None
    coefficients: Tensor | None = None
    variations: Tensor | None = None


@dataclass
class Batch:
    """What all chunks of a batch share: where the windows are, the probe's spectrum, ramps and kernels."""

    corners: Tensor
    counts: Tensor
    spectrum: Tensor
    ramps: tuple[Tensor, Tensor]
    kernels: Tensor
    tilt: Tensor
    object_patches: Tensor | None
    wants: Wants
    varying: Varying
    #: Of the pattern on the detector, in real space: (B, y, 1) and (B, 1, x).
    descan_ramps: tuple[Tensor, Tensor] | None


@dataclass
class Partial:
    """Sums of one worker, and rows (first pattern, values) of what each pattern has for itself."""

    loss: Tensor
    spectrum: Tensor | None = None
    variations: Tensor | None = None
    thickness: Tensor | None = None
    background: Tensor | None = None
    blur: Tensor | None = None
    tilts: list[tuple[int, Tensor]] = field(default_factory=list)
    offsets: list[tuple[int, Tensor]] = field(default_factory=list)
    descans: list[tuple[int, Tensor]] = field(default_factory=list)
    coefficients: list[tuple[int, Tensor]] = field(default_factory=list)


def propagation_gradient(model: Ptychography, batch: Batch, chunk: slice, gap: int, spectrum: Tensor, back: Tensor, partial: Partial) -> None:
    """Thickness and tilt: dL/dz = -2 sum kappa Im(back * spectrum), and likewise with k for the tangents of the tilt."""
    p = model.propagator
    product = (back * spectrum).sum((1, 2)).imag
    tilt = batch.tilt if len(batch.tilt) == 1 else batch.tilt[chunk]
    kappa = propagation_phase(p.ky, p.kx, p.wavelength_A, tilt)
    assert partial.thickness is not None
    partial.thickness[gap] -= 2 * (kappa * product).sum()
    slope = -4 * math.pi * p.thickness_A[gap] / torch.cos(tilt) ** 2
    moment = torch.stack([(product * p.ky).sum((1, 2)), (product * p.kx).sum((1, 2))], -1)
    partial.tilts.append((chunk.start, slope * moment))


def entrance_gradient(batch: Batch, chunk: slice, ramp: Tensor, entrance: Tensor, back: Tensor, partial: Partial, elementwise: Elementwise) -> None:
    """Probe spectrum: sum of ramp * back; offsets: dL/dd_y = 4 pi sum f_y Im(back * entrance); the probe's variation from both."""
    if batch.wants.offsets:
        moment = _moments((back * entrance).sum((1, 2)).imag, torch.fft.fftfreq(ramp.shape[-1], dtype=ramp.real.dtype, device=ramp.device))
        partial.offsets.append((chunk.start, 4 * math.pi * moment))
    varying = batch.varying
    if partial.variations is not None and varying.variations is not None and varying.coefficients is not None:
        first = (back[:, :, : varying.variations.shape[1]].sum(1) * ramp[:, None]).flatten(1)
        partial.coefficients.append((chunk.start, 2 * (first @ varying.variations.flatten(1).mT).real))
        partial.variations += (varying.coefficients[chunk].to(first.dtype).mT @ first).view_as(partial.variations)
    if partial.spectrum is not None:
        elementwise.sum_patterns(back, ramp, partial.spectrum)


def descan_gradient(model: Ptychography, chunk: slice, product: Tensor, patches: Tensor, partial: Partial) -> None:
    """dL/ds_y = -4 pi sum (y / size) Im(back * exit wave), in real space; ``product`` = sum over modes of wave * back, (b, states, y, x)."""
    size = model.size
    place = torch.fft.fftshift(torch.fft.fftfreq(size, dtype=product.real.dtype, device=product.device))
    moment = _moments((product * patches).sum(1).imag, place)
    partial.descans.append((chunk.start, -4 * math.pi * model.detector.oversample * moment))


def blur_gradient(model: Ptychography, intensity: Tensor, slope: Tensor) -> Tensor:
    """(1,): a Gaussian spreads as heat does, d image / d variance = half the Laplacian of what is blurred; ``slope`` is that of the intensity."""
    neighbours = sum(torch.roll(intensity, step, axis) for step in (-1, 1) for axis in (-2, -1))
    return 0.5 * model.detector.oversample**2 * (slope * (neighbours - 4 * intensity)).sum()[None]


def _moments(image: Tensor, place: Tensor) -> Tensor:
    """(b, 2): first moments of images (b, y, x) along both axes."""
    return torch.stack([image.sum(2) @ place, image.sum(1) @ place], -1)
