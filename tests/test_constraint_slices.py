"""Coupling along the beam: what it leaves, what it spreads, and that nothing passes the surfaces."""

import math

import numpy as np
import pytest
import torch
from small import make

from ptycho.constraint import SliceCoupling, SliceSmoothing
from ptycho.constraint.slices import depth_modes

BOTH = [SliceSmoothing(sigma_A=20.0), SliceCoupling(strength=25.0)]


def stack(phase, thickness_A=20.0):
    model = make(scan=(2, 2), size=8, slices=phase.shape[0], thickness_A=thickness_A, dtype=torch.float64)
    model.object.transmission = torch.nn.Parameter(torch.polar(torch.ones_like(phase), phase)[None])
    return model


def phase_after(constraint, phase, thickness_A=20.0):
    model = stack(phase, thickness_A)
    constraint.apply(model)
    return model.object.transmission.detach().angle()[0]


def blobs(slices, strength=0.4):
    generator = torch.Generator().manual_seed(3)
    spectrum = torch.fft.fft2(torch.randn(slices, 32, 33, dtype=torch.float64, generator=generator))
    f = torch.hypot(torch.fft.fftfreq(32, dtype=torch.float64)[:, None], torch.fft.fftfreq(33, dtype=torch.float64))
    phase = torch.fft.ifft2(spectrum * torch.exp(-((f / 0.1) ** 2))).real
    return phase * (strength / phase.abs().max())


@pytest.mark.parametrize("coupling", BOTH, ids=lambda c: type(c).__name__)
def test_the_summed_phase_stays(coupling):
    phase = blobs(5)
    found = phase_after(coupling, phase, (5.0, 9.0, 3.0, 12.0, 7.0))
    torch.testing.assert_close(found.sum(0), phase.sum(0))
    assert (found - phase).norm() > 0.2 * phase.norm()


@pytest.mark.parametrize("coupling", BOTH, ids=lambda c: type(c).__name__)
def test_what_is_the_same_in_all_depths_stays(coupling):
    thickness = torch.tensor([5.0, 9.0, 3.0, 12.0, 7.0], dtype=torch.float64)
    phase = blobs(1) * thickness[:, None, None] / 12
    torch.testing.assert_close(phase_after(coupling, phase, tuple(thickness.tolist())), phase)


@pytest.mark.parametrize("coupling", BOTH, ids=lambda c: type(c).__name__)
def test_top_and_bottom_do_not_mix(coupling):
    phase = torch.zeros(16, 32, 33, dtype=torch.float64)
    phase[0] = blobs(1)[0] - blobs(1)[0].mean()  # a constant phase has no depth at all
    found = phase_after(coupling, phase).norm(dim=(-2, -1))
    assert 0.1 < found[0] / phase[0].norm() < 0.9 and found[-1] < 0.05 * found[0]


@pytest.mark.parametrize("coupling", BOTH, ids=lambda c: type(c).__name__)
def test_a_phase_beyond_pi_has_not_wrapped(coupling):
    # Atoms of 3.0 and 3.5 rad in turn, the latter -2.8 as an angle: 3.25 on average, not 0.1.
    phase = torch.tensor([3.0, 3.5, 3.0, 3.5], dtype=torch.float64)[:, None, None] * torch.ones(4, 32, 33, dtype=torch.float64)
    found = torch.remainder(phase_after(coupling, phase), 2 * math.pi)
    assert (found - 3.25).abs().max() < 0.25


def test_the_weight_is_the_published_one():
    # A standing wave along the beam times a plane wave across it: both known to the filter.
    slices, thickness, n = 12, 10.0, 32
    _, kz, back = depth_modes(torch.full((slices,), thickness))
    for mode, cycles, strength in ((1, 1, 1.0), (3, 2, 0.5), (2, 0, 1.0), (0, 3, 1.0)):
        across = torch.cos(2 * math.pi * cycles * torch.arange(n, dtype=torch.float64) / n)
        phase = 0.1 * back[:, mode][:, None, None] / back.abs().max() * across * torch.ones(n, n, dtype=torch.float64)
        model = stack(phase, thickness)
        SliceCoupling(strength=strength).apply(model)
        kr = cycles / (n * model.pixel_A)
        wanted = 1.0 if mode == 0 else 0.0 if kr == 0 else 1 - 2 / math.pi * math.atan((strength * float(kz[mode]) / kr) ** 2)
        torch.testing.assert_close(model.object.transmission.detach().angle()[0], wanted * phase, rtol=1e-6, atol=1e-9)


def test_standing_waves_of_equal_slices_are_cosines():
    into, kz, back = depth_modes(torch.full((16,), 5.0))
    torch.testing.assert_close(back @ into, torch.eye(16, dtype=torch.float64))
    # Of wavelengths twice the thickness over 0, 1, 2, ...; the finest ones are as finite differences see them.
    np.testing.assert_allclose(kz[:4], np.arange(4) / (2 * 80.0), rtol=0.02)
    wave = torch.cos(math.pi * (torch.arange(16) + 0.5) * 2 / 16).double()
    assert abs(float(torch.dot(wave, back[:, 2]) / wave.norm() / back[:, 2].norm())) > 1 - 1e-9
