"""Laws of the forward model: electrons, signs and windows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptycho.aberrations import parse_aberrations
from ptycho.detector import Detector
from ptycho.model import Positions, Ptychography
from ptycho.multislice import Object, gather
from ptycho.optics import frequency_grid, probe_wave
from ptycho.probe import Probe, seed_modes
from ptycho.propagator import Propagator

SIZE, PIXEL, WAVELENGTH, CANVAS = 24, 0.3, 0.0197, 48
ALL_PASS = 1.5  # sqrt(2) reaches the corners


def random_phase(*shape: int) -> Tensor:
    phase = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return torch.polar(torch.ones_like(phase), phase)


def model(
    transmission: Tensor, positions_px: Tensor, limit: float = ALL_PASS, modes: int = 1, pixel_area: bool = False, defocus_A: float = 0.0
) -> Ptychography:
    wave = 10 * probe_wave(SIZE, PIXEL, WAVELENGTH, 15.0, parse_aberrations({"defocus_A": defocus_A}))[None]
    thickness, tilt = torch.full((transmission.shape[1],), 20.0, dtype=torch.float64), torch.tensor([[0.004, -0.002]], dtype=torch.float64)
    return Ptychography(
        Object(transmission, torch.arange(1, 1 + len(transmission), dtype=torch.float64)),
        Probe(seed_modes(wave, modes), PIXEL, WAVELENGTH),
        Propagator(SIZE, PIXEL, WAVELENGTH, thickness, tilt, limit),
        Positions(positions_px),
        Detector(SIZE, torch.ones(SIZE, SIZE, dtype=torch.float64), pixel_area=pixel_area),
        PIXEL,
    )


def patterns(of: Ptychography) -> Tensor:
    return of(torch.arange(len(of.positions.value_px))).detach()


def somewhere(count: int = 4) -> Tensor:
    return 13 + 22 * torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


def mean_frequency(pattern: Tensor) -> Tensor:
    """First moment <k> (y, x) in Å⁻¹."""
    ky, kx = frequency_grid(SIZE, PIXEL)
    return torch.stack([(pattern * ky).sum((-2, -1)), (pattern * kx).sum((-2, -1))], -1) / pattern.sum((-2, -1))[..., None]


# Electrons


@pytest.mark.parametrize(("states", "slices", "modes"), [(1, 1, 1), (1, 4, 1), (2, 3, 3)])
@pytest.mark.parametrize("pixel_area", [True, False])
def test_a_pure_phase_object_keeps_every_electron(states: int, slices: int, modes: int, pixel_area: bool) -> None:
    of = model(random_phase(states, slices, CANVAS, CANVAS), somewhere(), modes=modes, pixel_area=pixel_area)
    torch.testing.assert_close(patterns(of).sum((1, 2)), torch.full((4,), 100.0, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_band_limit_only_ever_takes_electrons() -> None:
    total = patterns(model(random_phase(1, 3, CANVAS, CANVAS), somewhere(), limit=2 / 3)).sum((1, 2))
    assert (total < 100).all()


def test_nothing_propagates_behind_the_last_slice() -> None:
    of = model(random_phase(1, 2, CANVAS, CANVAS), somewhere())
    before = patterns(of)
    of.propagator.thickness_A.data[-1] = 500.0
    torch.testing.assert_close(patterns(of), before, rtol=0, atol=0)


def test_vacuum_slices_are_free_space() -> None:
    """Phase object, vacuum, vacuum: the same pattern as the phase object alone; a wave's intensity at the detector does not propagate."""
    thin = random_phase(1, 1, CANVAS, CANVAS)
    thick = torch.cat([thin, torch.ones(1, 2, CANVAS, CANVAS, dtype=torch.complex128)], 1)
    torch.testing.assert_close(patterns(model(thick, somewhere())), patterns(model(thin, somewhere())), rtol=1e-10, atol=1e-12)


def test_a_vacuum_slice_before_the_object_is_a_change_of_defocus() -> None:
    thin = random_phase(1, 1, CANVAS, CANVAS)
    thick = torch.cat([torch.ones_like(thin), thin], 1)
    first = model(thick, somewhere(), defocus_A=50.0)
    first.propagator.tilt_rad.data.zero_()
    torch.testing.assert_close(patterns(first), patterns(model(thin, somewhere(), defocus_A=30.0)), rtol=1e-10, atol=1e-12)


# Signs


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("step", [(0, 3), (-3, 3)])  # whole periods in the window, also when spread over the slices
def test_a_phase_gradient_deflects_by_its_slope_over_two_pi(slices: int, step: tuple[int, int]) -> None:
    """<k> = grad(phase) / 2 pi: the beam goes to where the phase rises, towards the atom."""
    gradient = 2 * math.pi * torch.tensor(step, dtype=torch.float64) / (SIZE * PIXEL)  # rad/Å
    axis = torch.arange(CANVAS, dtype=torch.float64) * PIXEL
    phase = (gradient[0] * axis[:, None] + gradient[1] * axis) / slices
    transmission = torch.polar(torch.ones_like(phase), phase).expand(1, slices, CANVAS, CANVAS)
    deflected = mean_frequency(patterns(model(transmission, somewhere())))
    straight = mean_frequency(patterns(model(torch.ones_like(transmission), somewhere())))
    torch.testing.assert_close(deflected - straight, (gradient / (2 * math.pi)).expand(4, 2), rtol=1e-9, atol=1e-9)


def test_the_probe_is_drawn_to_an_atom() -> None:
    axis = torch.arange(CANVAS, dtype=torch.float64)
    atom = 0.3 * torch.exp(-((axis[:, None] - 24) ** 2 + (axis - 24) ** 2) / (2 * 3.0**2))
    left = torch.tensor([[24.0, 21.0], [24.0, 27.0], [24.0, 24.0]], dtype=torch.float64)
    pull = mean_frequency(patterns(model(torch.polar(torch.ones_like(atom), atom)[None, None], left)))
    assert pull[0, 1] > 0.01
    assert pull[1, 1] < -0.01
    torch.testing.assert_close(pull[2], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


# Positions and windows


@pytest.mark.parametrize("shift", [(3, -2), (-4, 5)])
def test_a_position_moved_by_whole_pixels_moves_its_window(shift: tuple[int, int]) -> None:
    positions = somewhere()
    moved = positions + torch.tensor(shift, dtype=torch.float64)
    index = torch.arange(4)
    corners, offsets = Positions(positions).split(index, SIZE)
    new_corners, new_offsets = Positions(moved).split(index, SIZE)
    assert torch.equal(new_corners - corners, torch.tensor(shift).expand(4, 2))
    torch.testing.assert_close(new_offsets, offsets, rtol=0, atol=1e-12)


def test_object_and_positions_move_together() -> None:
    transmission, positions, shift = random_phase(1, 2, CANVAS, CANVAS), 20 + somewhere() / 4, (5, -3)
    moved = model(torch.roll(transmission, shift, (2, 3)), positions + torch.tensor(shift, dtype=torch.float64))
    torch.testing.assert_close(patterns(moved), patterns(model(transmission, positions)), rtol=1e-9, atol=1e-12)


def test_a_probe_within_its_window_sees_the_object_at_its_position() -> None:
    """Where the sub-pixel shift ends and the next window begins, the pattern does not jump."""
    axis = torch.arange(CANVAS, dtype=torch.float64)
    phase = torch.sin(2 * math.pi * axis[:, None] / 12) + torch.cos(2 * math.pi * axis / 8)  # periodic in the window of 24 pixels
    positions = torch.tensor([[20.5 - 1e-9, 22.5 - 1e-9], [20.5, 22.5]], dtype=torch.float64)
    first, second = patterns(model(torch.polar(torch.ones_like(phase), phase)[None, None], positions))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.sampled_from([torch.float32, torch.float64]), st.integers(2, 65))
def test_offsets_are_within_half_a_pixel(position: float, dtype: torch.dtype, size: int) -> None:
    value = torch.tensor([[position, -position]], dtype=dtype)
    corners, offsets = Positions(value).split(torch.tensor([0]), size)
    assert (offsets >= -0.5).all()
    assert (offsets < 0.5).all()
    torch.testing.assert_close((corners + size // 2 + offsets).detach(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("position", [0.5 - 2**-25, 0.5 - 2**-54, -0.5, 0.5, 1e4 + 0.5])
def test_offsets_at_the_ends_of_the_interval(position: float) -> None:
    for dtype in (torch.float32, torch.float64):
        _, offsets = Positions(torch.tensor([[position, position]], dtype=dtype)).split(torch.tensor([0]), 16)
        assert (offsets >= -0.5).all()
        assert (offsets < 0.5).all()


def test_the_offset_keeps_the_gradient_of_the_position() -> None:
    positions = Positions(somewhere())
    _, offsets = positions.split(torch.arange(4), SIZE)
    offsets.sum().backward()
    assert positions.value_px.grad is not None
    assert torch.equal(positions.value_px.grad, torch.ones(4, 2, dtype=torch.float64))


def test_gather_cuts_windows_at_their_corners() -> None:
    canvas = torch.arange(2 * 10 * 12.0).reshape(2, 10, 12)
    windows = gather(canvas, torch.tensor([[0, 0], [3, 5]]), 4)
    assert torch.equal(windows[0], canvas[:, :4, :4])
    assert torch.equal(windows[1], canvas[:, 3:7, 5:9])


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 2.0], [0.1, 0.7, 3.0]])
def test_occupancies_add_up_to_one(weights: list[float] | None) -> None:
    occupancy = Object(random_phase(3, 1, 4, 4), None if weights is None else torch.tensor(weights)).occupancy
    assert occupancy.dtype == torch.float64
    assert occupancy.sum().item() == pytest.approx(1, abs=1e-12)
