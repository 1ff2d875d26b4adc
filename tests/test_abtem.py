"""Potentials and patterns against abTEM's, an independent program, where it is installed: the same scattering factors on the same grid.

Both are blurred by the thermal displacement before they are compared: without it each is as high at the nucleus as its sampling lets it be, and
rings around it with the cut of its own Fourier transform.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho.aberrations import parse_aberrations
from ptycho.geometry import interaction_parameter, wavelength_A
from ptycho.multislice import multislice
from ptycho.optics import probe_wave
from ptycho.propagator import Propagator
from ptycho.specimen import monolayer, phase_slices, strontium_titanate

pytestmark = pytest.mark.filterwarnings("ignore")
abtem = pytest.importorskip("abtem", exc_type=ImportError)
ase = pytest.importorskip("ase")

U_A = 0.08
A = 3.905


def theirs_V_A(atoms: np.ndarray, shape: tuple[int, int], pixel_A: float, thickness_A: float, slices: int, blur: bool = True) -> np.ndarray:
    """Their projected potential (slices, y, x) in V Å of atoms (N, 4) on our grid."""
    size = np.array(shape)[::-1] * pixel_A
    # Their axes are (x, y), from the corner; our atoms are about pixel shape // 2.
    xy = (atoms[:, :1:-1] + np.array(shape)[::-1] // 2 * pixel_A) % size
    specimen = ase.Atoms(atoms[:, 0].astype(int), positions=np.column_stack([xy, atoms[:, 1]]), cell=[*size, thickness_A], pbc=True)
    with abtem.config.set({"precision": "float64"}):
        potential = abtem.Potential(
            specimen, gpts=shape[::-1], slice_thickness=thickness_A / slices, parametrization="lobato", projection="infinite", periodic=True
        ).build(lazy=False)
    found = np.asarray(potential.array, float).transpose(0, 2, 1)
    if not blur:
        return found
    k = np.hypot(np.fft.fftfreq(shape[0], pixel_A)[:, None], np.fft.fftfreq(shape[1], pixel_A))
    return np.fft.ifft2(np.fft.fft2(found) * np.exp(-2 * (np.pi * U_A * k) ** 2)).real


def ours_V_A(atoms: np.ndarray, shape: tuple[int, int], pixel_A: float, edges: np.ndarray, u_A: float = U_A) -> np.ndarray:
    return phase_slices(atoms, shape, pixel_A, 200.0, edges, u_A).astype(float) / interaction_parameter(200.0)


def rectangle(atoms: np.ndarray, height_A: float, width_A: float, pixel_A: float) -> np.ndarray:
    """What repeats with these sides, moved by a pixel from the edges."""
    inside = (np.abs(atoms[:, 2:] + 0.01) < np.array([height_A, width_A]) / 2).all(1)
    return atoms[inside] + [0, 0, pixel_A, pixel_A]


@pytest.mark.parametrize("z", [6, 8, 14, 22, 38, 74, 79])
def test_an_atoms_projected_potential(z: int) -> None:
    """To 1 % of its value at every pixel within 2 Å, the centre included, and in the mean to 1e-5."""
    n, pixel = 200, 0.05
    atom = np.array([[z, 0.5, 0.0, 0.0]])
    ours, theirs = ours_V_A(atom, (n, n), pixel, np.array([0, 1.0]))[0], theirs_V_A(atom, (n, n), pixel, 1.0, 1)[0]
    near = np.hypot(*(np.indices((n, n)) - n // 2)) * pixel < 2
    assert np.abs(ours / theirs - 1)[near].max() < 0.01
    assert ours.mean() == pytest.approx(theirs.mean(), rel=1e-5)


def test_a_layer_and_a_crystal() -> None:
    """WS2 and SrTiO3, slice by slice: to 1 % of the largest value at every pixel, and of the value itself where it is no small one."""
    a = 3.153
    # Whole pixels between atoms, where their program is exact; those of the layer are 0.3 % shorter along y.
    pixel, height = a / 66, 114
    layer = rectangle(monolayer("WS2", 40.0) * [1, 1, height * pixel / (np.sqrt(3) * a), 1], 2 * height * pixel, 2 * a, pixel)
    crystal = rectangle(strontium_titanate(4 * A, 2 * A), 2 * A, 2 * A, 2 * A / 128)
    for atoms, shape, spacing in ((layer, (2 * height, 132), 1.57), (crystal, (128, 128), A / 2)):
        step = pixel if atoms is layer else 2 * A / 128
        slices = round((atoms[:, 1].max() + spacing / 2) / spacing)
        ours = ours_V_A(atoms, shape, step, np.linspace(0, slices * spacing, slices + 1))
        theirs = theirs_V_A(atoms, shape, step, slices * spacing, slices)
        difference, large = np.abs(ours - theirs), theirs > 0.02 * theirs.max()
        assert difference.max() < 0.01 * theirs.max()
        assert (difference / theirs)[large].max() < 0.01


def test_a_convergent_pattern_of_strontium_titanate() -> None:
    """10 nm, 200 kV, 20 mrad, 100 Å of underfocus: the sum of the differences is below 1 % of the electrons."""
    cells, n, thickness, voltage = 6, 240, 100.0, 200.0
    pixel = cells * A / n
    crystal = rectangle(strontium_titanate(2 * cells * A, thickness), cells * A, cells * A, pixel)
    slices = round(crystal[:, 1].max() / (A / 2) + 0.5)
    edges = np.arange(slices + 1) * A / 2

    phases = phase_slices(crystal, (n, n), pixel, voltage, edges, U_A)
    wavelength = wavelength_A(voltage)
    wave = probe_wave(n, pixel, wavelength, 20.0, parse_aberrations({"defocus_A": 100.0}), edge_px=0)
    propagator = Propagator(n, pixel, wavelength, torch.full((slices,), A / 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    transmission = torch.polar(torch.ones(phases.shape, dtype=torch.float64), torch.from_numpy(phases.astype(float)))
    spectrum = multislice(wave[None, None, None], transmission[None, None], propagator.kernels(torch.zeros(1, dtype=torch.long)))[0, 0, 0]
    ours = np.fft.fftshift((spectrum.abs() ** 2).detach().numpy())

    with abtem.config.set({"precision": "float64"}):
        projected = theirs_V_A(crystal, (n, n), pixel, slices * A / 2, slices).transpose(0, 2, 1)
        potential = abtem.PotentialArray(projected, A / 2, sampling=(pixel, pixel))
        probe = abtem.Probe(energy=voltage * 1e3, semiangle_cutoff=20.0, defocus=100.0, soft=False)
        waves = probe.multislice(potential, scan=(n // 2 * pixel, n // 2 * pixel), lazy=False)
        theirs = np.asarray(waves.diffraction_patterns(max_angle=None, fftshift=True).array).T
    ours, theirs = ours / ours.sum(), theirs / theirs.sum()
    k = np.hypot(*(np.indices((n, n)) - n // 2)) / (n * pixel)
    inside = k < 0.3 / pixel
    assert np.abs(ours - theirs)[inside].sum() < 0.01

