"""The fused kernels are the plain ones: on a GPU, or without one where Triton can interpret them (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ptycho.detector import Detector
from ptycho.elementwise import Elementwise, Momentum
from ptycho.loss import Loss

pytest.importorskip("triton", reason="no Triton here")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no GPU, and Triton does not interpret", allow_module_level=True)

from ptycho.elementwise_triton import FusedElementwise  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SIDE, PATTERNS, MODES = 18, 5, 3
LOSSES = [Loss("amplitude"), Loss("anscombe"), Loss("poisson", 0.01), Loss("power", 0.0, 0.4)]


def waves(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, SIDE, SIDE, dtype=torch.complex64, generator=random).to(DEVICE)


def pair(loss: Loss, pixel_area: bool = True, missing: bool = False, blur_px: float = 0.0, whole: bool = False) -> tuple[Elementwise, Elementwise]:
    mask = torch.ones(SIDE, SIDE)
    mask[3, 4] = 0
    background = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(1)) if whole else torch.full((1, 1), 0.2)
    detector = Detector(SIDE, mask, background, blur_px, pixel_area=pixel_area).to(DEVICE)
    return Elementwise(detector, loss, missing), FusedElementwise(detector, loss, missing)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a)) < 2e-6)


@pytest.mark.parametrize("states", [1, 2])
def test_intensity(states: int) -> None:
    exit_wave, weights = waves(PATTERNS, states, MODES), [0.3, 0.7][:states]
    found = [each.intensity(exit_wave, weights, torch.full((PATTERNS, SIDE, SIDE), torch.nan, device=DEVICE)) for each in pair(LOSSES[0])]
    assert close(*found)


@torch.no_grad()
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("kind", [{}, {"pixel_area": False}, {"missing": True}, {"blur_px": 0.8}, {"whole": True}], ids=str)
def test_slope_loss_and_way_back(loss: Loss, kind: dict[str, bool]) -> None:
    intensity, counts = waves(PATTERNS).abs().square(), waves(PATTERNS, seed=3).abs().square().round()
    if kind.get("missing"):
        counts[1, 2, 5] = torch.nan
    plain, fused = pair(loss, **kind)
    (slope, value), (fused_slope, fused_value) = plain.slope(intensity, counts, True), fused.slope(intensity, counts, True)
    assert close(slope, fused_slope) and slope[0, 3, 4] == fused_slope[0, 3, 4] == 0
    assert close(value, fused_value)
    assert fused.slope(intensity, counts, False)[1] is None
    exit_wave = waves(PATTERNS, 1, MODES, seed=5)
    assert close(plain.turn_back(exit_wave.clone(), slope.clone(), [0.5]), fused.turn_back(exit_wave.clone(), slope, [0.5]))


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("onward", [True, False])
@pytest.mark.parametrize("states", [1, 2])
def test_object_side(states: int, wanted: bool, onward: bool) -> None:
    wave, back, patches = waves(PATTERNS, states, MODES), waves(PATTERNS, states, MODES, seed=1), waves(PATTERNS, states, 2, seed=2)
    found = []
    for each in pair(LOSSES[0]):
        moved, totals = back.clone(), torch.full((PATTERNS, states, 2, SIDE, SIDE), torch.nan, dtype=torch.complex64, device=DEVICE)
        each.object_side(wave, moved, patches[:, :, 1], totals[:, :, 1] if wanted else None, onward)
        found.append(torch.cat([moved.flatten(), totals[:, :, 1].flatten().nan_to_num()]))
        assert bool(torch.isnan(totals[:, :, 0].real).all())
    assert close(*found)


def test_gather_back() -> None:
    windows = waves(PATTERNS, 1, 2)
    corners = torch.tensor([[0, 0], [3, 1], [3, 1], [70, 50], [15, 63]], device=DEVICE)
    found = []
    for each in pair(LOSSES[0]):
        canvas = torch.full((1, 2, 90, 83), torch.nan, dtype=torch.complex64, device=DEVICE)
        each.gather_back(canvas, windows, corners, None, 1)
        found.append(canvas)
    assert close(*found) and bool((found[1][0, 0, 40] == 0).all())


def test_sum_patterns() -> None:
    back, ramp, start = waves(PATTERNS, 1, MODES), waves(PATTERNS, seed=1), waves(MODES, seed=2)
    found = []
    for each in pair(LOSSES[0]):
        total = start.clone()
        each.sum_patterns(back.clone(), ramp, total)
        found.append(total)
    assert close(*found)


def test_ramps_and_entrance() -> None:
    offsets = torch.rand(PATTERNS, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE) - 0.5
    spectrum, found = waves(MODES), []
    for each in pair(LOSSES[0]):
        ramp, out = torch.empty_like(waves(PATTERNS)), torch.empty_like(waves(PATTERNS, MODES))
        ramps = each.ramps(offsets, SIDE)
        each.entrance(spectrum, (ramps[0][1:], ramps[1][1:]), ramp[1:], out[1:])
        found.append(torch.cat([ramp[1:].flatten(), out[1:].flatten()]))
    assert close(*found)


def test_windows() -> None:
    canvas = torch.randn(2, 3, 40, 33, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    corners = torch.tensor([[0, 0], [22, 15], [7, 3]], device=DEVICE)
    plain, fused = (each.windows(canvas, corners, torch.empty(3, 2, 3, SIDE, SIDE, dtype=torch.complex64, device=DEVICE)) for each in pair(LOSSES[0]))
    assert torch.equal(plain, fused)


@pytest.mark.parametrize("numbers", [{}, {"prior": 5.0, "pure_phase": True}, {"bounds": (2, 3, 12, 17)}], ids=["probe", "object", "bounded"])
@pytest.mark.parametrize("scaled", [True, False])
def test_momentum_step(numbers: dict[str, Any], scaled: bool) -> None:
    numbers = dict(numbers)
    bounds, scale = numbers.pop("bounds", None), waves().abs() if scaled else 0.7
    plain, fused = pair(LOSSES[0])
    start = [waves(1, 2, seed=seed) for seed in (1, 2, 3)]
    expected, found = ([leaf.clone() for leaf in start] for _ in range(2))
    step = Momentum(torch.tensor(0.2, device=DEVICE), 0.3, 0.9, **numbers)
    part = (..., slice(None), slice(None)) if bounds is None else (..., slice(bounds[0], bounds[2]), slice(bounds[1], bounds[3]))
    plain.momentum_step(*(leaf[part] for leaf in expected), scale[part] if scaled else scale, step)
    edges = None if bounds is None else torch.tensor(bounds, dtype=torch.int32, device=DEVICE)
    fused.momentum_step(*found, scale, replace(step, bounds=edges))
    assert close(expected[0], found[0]) and close(expected[1], found[1])


def test_bounds() -> None:
    corners = torch.tensor([[4, 9], [22, 15], [7, 3]], device=DEVICE)
    assert pair(LOSSES[0])[1].bounds(corners, SIDE).tolist() == [4, 3, 22 + SIDE, 15 + SIDE]
