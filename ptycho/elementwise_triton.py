"""The adjoint's element-wise work on an NVIDIA GPU, each step one pass over memory.

Complex numbers are pairs of float32. Sums run in a fixed order, without atomic operations: the same input gives the same bits. Whatever
a kernel is not made for (several object states, a blurred or binned detector, another precision) takes the way of
:class:`ptycho.elementwise.Elementwise`.
"""

from __future__ import annotations

from concurrent.futures import Executor

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptycho.elementwise import Elementwise, Momentum

#: Pixels per program; rows and columns of the canvas per program.
_BLOCK, _TILE_Y, _TILE_X = 512, 8, 64


class FusedElementwise(Elementwise):
    """Waves and slopes as in :class:`Elementwise`, on the GPU, complex64 and one object state."""

    def ramps(self, offsets_px: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Both in one launch."""
        out = torch.empty(2, len(offsets_px), size, dtype=torch.complex64, device=offsets_px.device)
        block = triton.next_power_of_2(size)
        _ramps[(len(offsets_px), 2)](offsets_px.contiguous(), torch.view_as_real(out), size, BLOCK=block)
        return out[0, :, :, None], out[1, :, None, :]

    def entrance(self, spectrum: Tensor, ramps: tuple[Tensor, Tensor], ramp: Tensor, out: Tensor) -> None:
        """Both products in one pass."""
        patterns, modes, side, _ = out.shape
        ramp_y, ramp_x, whole = (torch.view_as_real(each) for each in (*ramps, ramp))
        _entrance[(triton.cdiv(side * side, _BLOCK), patterns)](
            torch.view_as_real(spectrum.contiguous()), ramp_y, ramp_x, whole, torch.view_as_real(out), side, modes, BLOCK=_BLOCK
        )

    def windows(self, canvas: Tensor, corners: Tensor, out: Tensor) -> Tensor:
        """In ``out``, in one launch."""
        layers, (height, width), size = canvas.shape[0] * canvas.shape[1], canvas.shape[2:], out.shape[-1]
        grid = (triton.cdiv(size * size, _BLOCK), layers, len(corners))
        _windows[grid](torch.view_as_real(canvas), corners, torch.view_as_real(out), layers, height, width, size, BLOCK=_BLOCK)
        return out

    def intensity(self, exit_wave: Tensor, weights: list[float], out: Tensor) -> Tensor:
        """One reading of the waves."""
        if len(weights) > 1:
            return super().intensity(exit_wave, weights, out)
        patterns, _, modes = exit_wave.shape[:3]
        pixels = out[0].numel()
        _intensity[(triton.cdiv(pixels, _BLOCK), patterns)](torch.view_as_real(exit_wave), out, pixels, modes, weights[0], BLOCK=_BLOCK)
        return out

    def slope(self, intensity: Tensor, counts: Tensor, measures: bool) -> tuple[Tensor, Tensor | None]:
        """The pixels' area, the loss and its slope in one pass."""
        detector = self.detector
        if detector.taps is None or self.loss.name == "power":
            return super().slope(intensity, counts, measures)
        slope = torch.empty_like(counts)
        side = intensity.shape[-1]
        blocks = triton.cdiv(side * side, _BLOCK)
        values = intensity.new_empty(len(counts), blocks)
        floor = 0.375 if self.loss.name == "anscombe" else self.loss.floor
        _slope[(blocks, len(counts))](
            intensity, counts, detector.mask, detector.background, slope, values, side, *detector.taps, floor,
            POISSON=self.loss.name == "poisson", WHOLE=detector.background.numel() > 1, MEASURES=measures, BLOCK=_BLOCK,
        )  # fmt: skip
        return slope, values.sum(dtype=torch.float64) if measures else None

    def turn_back(self, exit_wave: Tensor, slope: Tensor, weights: list[float]) -> Tensor:
        """The pixels' area, product and conjugate in one pass."""
        if len(weights) > 1:
            return super().turn_back(exit_wave, slope, weights)
        taps = self.detector.taps
        if taps is None:
            slope, taps = self.detector.adjoint(slope).contiguous(), (0.0, 1.0)
        patterns, _, modes, side, _ = exit_wave.shape
        grid = (triton.cdiv(side * side, _BLOCK), patterns)
        _turn_back[grid](torch.view_as_real(exit_wave), slope, side, modes, weights[0], *taps, TAPS=taps[0] != 0, BLOCK=_BLOCK)
        return exit_wave

    def object_side(self, wave: Tensor, back: Tensor, patches: Tensor, total: Tensor | None, onward: bool) -> None:
        """One reading of both waves."""
        patterns, states, modes, side, _ = back.shape
        if states > 1:
            super().object_side(wave, back, patches, total, onward)
            return
        pixels = side * side
        _object_side[(triton.cdiv(pixels, _BLOCK), patterns)](
            torch.view_as_real(wave), torch.view_as_real(back), torch.view_as_real(patches), patches.stride(0),
            torch.view_as_real(patches if total is None else total), 0 if total is None else total.stride(0), pixels, modes,
            TOTAL=total is not None, ONWARD=onward, BLOCK=_BLOCK,
        )  # fmt: skip

    def gather_back(self, canvas: Tensor, windows: Tensor, corners: Tensor, pool: Executor | None, workers: int) -> None:
        """Each pixel of the canvas collects what the windows hold for it, in their order."""
        layers, (height, width) = canvas.shape[0] * canvas.shape[1], canvas.shape[2:]
        grid = (triton.cdiv(width, _TILE_X), triton.cdiv(height, _TILE_Y), layers)
        _gather_back[grid](
            torch.view_as_real(canvas), torch.view_as_real(windows), corners, len(corners), layers, height, width, windows.shape[-1],
            TILE_Y=_TILE_Y, TILE_X=_TILE_X,
        )  # fmt: skip

    def sum_patterns(self, back: Tensor, ramp: Tensor, total: Tensor) -> None:
        """One reading of the waves."""
        patterns, states, modes, side, _ = back.shape
        if states > 1:
            super().sum_patterns(back, ramp, total)
            return
        pixels, block = side * side, 64
        grid = (triton.cdiv(pixels, block), modes)
        _sum_patterns[grid](
            torch.view_as_real(back), torch.view_as_real(ramp), torch.view_as_real(total), patterns, pixels, modes, BLOCK=block, num_warps=2
        )

    def bounds(self, corners: Tensor, size: int) -> Tensor | None:
        """In one launch."""
        out = torch.empty(4, dtype=torch.int32, device=corners.device)
        _bounds[(1,)](corners, out, len(corners), size, BLOCK=triton.next_power_of_2(len(corners)))
        return out

    def momentum_step(self, leaf: Tensor, velocity: Tensor, gradient: Tensor, scale: Tensor | float, step: Momentum) -> None:
        """One pass."""
        if not (leaf.is_contiguous() and velocity.is_contiguous() and gradient.is_contiguous()):
            super().momentum_step(leaf, velocity, gradient, scale, step)
            return
        height, width = leaf.shape[-2:]
        varies, bounded = isinstance(scale, Tensor), step.bounds is not None
        common = 1.0 if isinstance(scale, Tensor) else scale
        _momentum_step[(triton.cdiv(height * width, _BLOCK), leaf.numel() // (height * width))](
            torch.view_as_real(leaf), torch.view_as_real(velocity), torch.view_as_real(gradient), scale if varies else step.length,
            step.bounds if bounded else step.length, step.length, common * step.factor, step.momentum, common * 0.5 * step.prior, height, width,
            VARIES=varies, BOUNDED=bounded, PURE=step.pure_phase, BLOCK=_BLOCK,
        )  # fmt: skip


@triton.jit
def _load(pointer, at, inside):
    pair = tl.load(pointer + 2 * at[:, None] + tl.arange(0, 2)[None, :], mask=inside[:, None], other=0.0)
    return tl.split(pair)


@triton.jit
def _store(pointer, at, inside, real, imaginary):
    tl.store(pointer + 2 * at[:, None] + tl.arange(0, 2)[None, :], tl.join(real, imaginary), mask=inside[:, None])


@triton.jit
def _taps(image, at, inside, width, side, centre):
    """The image (width, width), periodic, with (side, centre, side) along both axes."""
    y, x = at // width, at % width
    up, down = ((y + width - 1) % width) * width, ((y + 1) % width) * width
    left, right = (x + width - 1) % width, (x + 1) % width
    row = y * width
    near = tl.load(image + up + x, mask=inside, other=0.0) + tl.load(image + down + x, mask=inside, other=0.0)
    near += tl.load(image + row + left, mask=inside, other=0.0) + tl.load(image + row + right, mask=inside, other=0.0)
    far = tl.load(image + up + left, mask=inside, other=0.0) + tl.load(image + up + right, mask=inside, other=0.0)
    far += tl.load(image + down + left, mask=inside, other=0.0) + tl.load(image + down + right, mask=inside, other=0.0)
    return centre * centre * tl.load(image + at, mask=inside, other=0.0) + centre * side * near + side * side * far


@triton.jit
def _intensity(wave, out, pixels, modes, weight, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pattern = tl.program_id(1).to(tl.int64)
    inside = at < pixels
    total = tl.zeros((BLOCK,), tl.float32)
    for mode in range(modes):
        real, imaginary = _load(wave + 2 * (pattern * modes + mode) * pixels, at, inside)
        total += real * real + imaginary * imaginary
    tl.store(out + pattern * pixels + at, total * weight, mask=inside)


@triton.jit
def _slope(
    intensity, counts, mask, background, slope, values, width, side, centre, floor,
    POISSON: tl.constexpr, WHOLE: tl.constexpr, MEASURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pattern = tl.program_id(1).to(tl.int64)
    pixels = width * width
    inside = at < pixels
    model = _taps(intensity + pattern * pixels, at, inside, width, side, centre)
    if WHOLE:
        model += tl.load(background + at, mask=inside, other=0.0)
    else:
        model += tl.load(background)
    data = tl.load(counts + pattern * pixels + at, mask=inside, other=0.0)
    weight = tl.load(mask + at, mask=inside, other=0.0)
    # NaN was not measured; it differs from itself.
    weight = tl.where(data == data, weight, 0.0)
    data = tl.where(data == data, data, 0.0)
    if POISSON:
        shifted = model + floor
        found = (model - data) / shifted
        if MEASURES:
            value = shifted - (data + floor) * tl.log(tl.where(inside, shifted, 1.0))
    else:
        shifted = tl.maximum(model + floor, 1e-20)
        known = tl.maximum(data + floor, 0.0)
        found = 1.0 - tl.sqrt(known / shifted)
        if MEASURES:
            difference = tl.sqrt(tl.maximum(model + floor, 0.0)) - tl.sqrt(known)
            value = difference * difference
    # Written so that weight 0 gives 0, whatever stands in the pixel.
    tl.store(slope + pattern * pixels + at, tl.where(weight > 0, found * weight, 0.0), mask=inside)
    if MEASURES:
        total = tl.sum(tl.where(weight > 0, value * weight, 0.0))
        tl.store(values + pattern * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit
def _turn_back(wave, slope, width, modes, weight, side, centre, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pattern = tl.program_id(1).to(tl.int64)
    pixels = width * width
    inside = at < pixels
    if TAPS:
        factor = weight * _taps(slope + pattern * pixels, at, inside, width, side, centre)
    else:
        factor = weight * tl.load(slope + pattern * pixels + at, mask=inside, other=0.0)
    for mode in range(modes):
        place = wave + 2 * (pattern * modes + mode) * pixels
        real, imaginary = _load(place, at, inside)
        _store(place, at, inside, factor * real, -factor * imaginary)


@triton.jit
def _object_side(wave, back, patches, patch_step, total, total_step, pixels, modes, TOTAL: tl.constexpr, ONWARD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pattern = tl.program_id(1).to(tl.int64)
    inside = at < pixels
    if ONWARD:
        object_real, object_imaginary = _load(patches + 2 * pattern * patch_step, at, inside)
    sum_real = tl.zeros((BLOCK,), tl.float32)
    sum_imaginary = tl.zeros((BLOCK,), tl.float32)
    for mode in range(modes):
        first = 2 * (pattern * modes + mode) * pixels
        back_real, back_imaginary = _load(back + first, at, inside)
        if TOTAL:
            real, imaginary = _load(wave + first, at, inside)
            sum_real += real * back_real - imaginary * back_imaginary
            sum_imaginary += real * back_imaginary + imaginary * back_real
        if ONWARD:
            turned_real = back_real * object_real - back_imaginary * object_imaginary
            turned_imaginary = back_real * object_imaginary + back_imaginary * object_real
            _store(back + first, at, inside, turned_real, turned_imaginary)
    if TOTAL:
        _store(total + 2 * pattern * total_step, at, inside, sum_real, sum_imaginary)


@triton.jit
def _gather_back(canvas, windows, corners, count, layers, height, width, size, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    left, top, layer = tl.program_id(0) * TILE_X, tl.program_id(1) * TILE_Y, tl.program_id(2).to(tl.int64)
    place = tl.arange(0, TILE_Y * TILE_X)
    y, x = top + place // TILE_X, left + place % TILE_X
    real = tl.zeros((TILE_Y * TILE_X,), tl.float32)
    imaginary = tl.zeros((TILE_Y * TILE_X,), tl.float32)
    for window in range(count):
        first_y = tl.load(corners + 2 * window).to(tl.int32)
        first_x = tl.load(corners + 2 * window + 1).to(tl.int32)
        if (first_y < top + TILE_Y) & (first_y + size > top) & (first_x < left + TILE_X) & (first_x + size > left):
            row, column = y - first_y, x - first_x
            inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
            more_real, more_imaginary = _load(windows + 2 * (window * layers + layer) * size * size, row * size + column, inside)
            real += more_real
            imaginary += more_imaginary
    _store(canvas + 2 * layer * height * width, y * width + x, (y < height) & (x < width), 2 * real, -2 * imaginary)


@triton.jit
def _sum_patterns(back, ramp, total, patterns, pixels, modes, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mode = tl.program_id(1).to(tl.int64)
    inside = at < pixels
    real, imaginary = _load(total + 2 * mode * pixels, at, inside)
    for pattern in tl.range(0, patterns, loop_unroll_factor=4):
        back_real, back_imaginary = _load(back + 2 * (pattern * modes + mode) * pixels, at, inside)
        ramp_real, ramp_imaginary = _load(ramp + 2 * pattern * pixels, at, inside)
        real += ramp_real * back_real - ramp_imaginary * back_imaginary
        imaginary += ramp_real * back_imaginary + ramp_imaginary * back_real
    _store(total + 2 * mode * pixels, at, inside, real, imaginary)


@triton.jit
def _ramps(offsets, out, size, BLOCK: tl.constexpr):
    pattern, axis = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    frequency = tl.where(at < (size + 1) // 2, at, at - size).to(tl.float32) / size
    angle = -6.283185307179586 * frequency * tl.load(offsets + 2 * pattern + axis)
    # The factor 1 / size belongs to the ramp along y.
    modulus = tl.where(axis == 0, 1.0 / size, 1.0)
    _store(out + 2 * (axis * tl.num_programs(0) + pattern) * size, at, at < size, modulus * tl.cos(angle), modulus * tl.sin(angle))


@triton.jit
def _entrance(spectrum, ramp_y, ramp_x, ramp, out, size, modes, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pattern = tl.program_id(1).to(tl.int64)
    pixels = size * size
    inside = at < pixels
    y_real, y_imaginary = _load(ramp_y + 2 * pattern * size, at // size, inside)
    x_real, x_imaginary = _load(ramp_x + 2 * pattern * size, at % size, inside)
    turn_real = y_real * x_real - y_imaginary * x_imaginary
    turn_imaginary = y_real * x_imaginary + y_imaginary * x_real
    _store(ramp + 2 * pattern * pixels, at, inside, turn_real, turn_imaginary)
    for mode in range(modes):
        real, imaginary = _load(spectrum + 2 * mode * pixels, at, inside)
        place = out + 2 * (pattern * modes + mode) * pixels
        _store(place, at, inside, turn_real * real - turn_imaginary * imaginary, turn_real * imaginary + turn_imaginary * real)


@triton.jit
def _windows(canvas, corners, out, layers, height, width, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layer, window = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    inside = at < size * size
    y, x = tl.load(corners + 2 * window) + at // size, tl.load(corners + 2 * window + 1) + at % size
    real, imaginary = _load(canvas + 2 * layer * height * width, y * width + x, inside)
    _store(out + 2 * (window * layers + layer) * size * size, at, inside, real, imaginary)


@triton.jit
def _bounds(corners, out, count, size, BLOCK: tl.constexpr):
    window = tl.arange(0, BLOCK)
    inside = window < count
    for axis in tl.static_range(2):
        corner = tl.load(corners + 2 * window + axis, mask=inside, other=0).to(tl.int32)
        tl.store(out + axis, tl.min(tl.where(inside, corner, 2147483647)))
        tl.store(out + 2 + axis, tl.max(tl.where(inside, corner, -2147483647)) + size)


@triton.jit
def _momentum_step(
    leaf, velocity, gradient, scales, bounds, length, factor, momentum, prior, height, width,
    VARIES: tl.constexpr, BOUNDED: tl.constexpr, PURE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = 2 * tl.program_id(1).to(tl.int64) * height * width
    inside = at < height * width
    if BOUNDED:
        y, x = at // width, at % width
        inside &= (y >= tl.load(bounds)) & (x >= tl.load(bounds + 1)) & (y < tl.load(bounds + 2)) & (x < tl.load(bounds + 3))
    real, imaginary = _load(leaf + first, at, inside)
    slope_real, slope_imaginary = _load(gradient + first, at, inside)
    slope_real = factor * slope_real - prior * imaginary
    slope_imaginary = factor * slope_imaginary + prior * real
    if VARIES:
        scale = tl.load(scales + at, mask=inside, other=0.0)
        slope_real *= scale
        slope_imaginary *= scale
    moving_real, moving_imaginary = _load(velocity + first, at, inside)
    moving_real = momentum * moving_real + slope_real
    moving_imaginary = momentum * moving_imaginary + slope_imaginary
    _store(velocity + first, at, inside, moving_real, moving_imaginary)
    step = tl.load(length)
    real -= step * (slope_real + momentum * moving_real)
    imaginary -= step * (slope_imaginary + momentum * moving_imaginary)
    if PURE:
        turn = 1.0 / tl.sqrt(tl.maximum(real * real + imaginary * imaginary, 1e-20))
        real *= turn
        imaginary *= turn
    _store(leaf + first, at, inside, real, imaginary)
