"""The aberrations of a probe are found wherever they are kept."""

import pytest
import torch
from small import PIXEL_A, SEMIANGLE_MRAD, WAVELENGTH_A

from ptycho.aberrations import name_aberrations, parse_aberrations
from ptycho.optics import probe_wave
from ptycho.probe import Probe
from ptycho.probe_fit import total_aberrations

NOMINAL = parse_aberrations({"defocus_A": 100.0})
TRUE = {"defocus_A": 140.0, "C12": 20.0, "phi12_deg": 30.0, "C21": 600.0, "phi21_deg": -50.0, "C30": 2e4}
TERMS = parse_aberrations({"C10": 1.0, "C12": 1.0, "C21": 1.0, "C30": 1.0})


def probe_with(values, modes=1):
    wave = probe_wave(64, PIXEL_A / 2, WAVELENGTH_A, SEMIANGLE_MRAD, parse_aberrations(values))
    return Probe(torch.stack([wave * 0.1**m for m in range(modes)][::-1]), PIXEL_A / 2, WAVELENGTH_A, TERMS)


def named(probe):
    found = name_aberrations(total_aberrations(probe, NOMINAL, WAVELENGTH_A))
    return [found["C10"], found["C12"], found["phi12_deg"], found["C21"], found["phi21_deg"], found["C30"]]


WANTED = pytest.approx([-140.0, 20.0, 30.0, 600.0, -50.0, 2e4], rel=1e-3)


@pytest.mark.parametrize("modes", [1, 2])
def test_aberrations_of_a_free_wave(modes):
    assert named(probe_with(TRUE, modes)) == WANTED


def test_aberrations_shared_between_wave_and_parameters():
    probe = probe_with({**TRUE, "defocus_A": 80.0, "C30": 0.0})
    probe.correction_A.data[0], probe.correction_A.data[-1] = -60.0, 2e4
    assert named(probe) == WANTED


def test_the_place_and_the_phase_of_the_probe_do_not_count():
    probe = probe_with(TRUE)
    probe.wave.data = torch.roll(probe.wave.data, (2, -3), (-2, -1)) * (0.6 + 0.8j)
    assert named(probe) == WANTED


def test_a_probe_without_terms_is_as_it_was_said():
    probe = Probe(torch.ones(1, 8, 8, dtype=torch.complex64), PIXEL_A, WAVELENGTH_A)
    assert total_aberrations(probe, NOMINAL, WAVELENGTH_A) == NOMINAL
