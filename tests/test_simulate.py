"""Simulated data: atoms that scatter as published, electrons that add up, signs that a ray diagram predicts, files that are read back."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import constants
from scipy.ndimage import gaussian_filter

import ptycho.io
from ptycho.aberrations import parse_aberrations
from ptycho.errors import RecipeError
from ptycho.geometry import interaction_parameter, wavelength_A
from ptycho.optics import frequency_grid, probe_wave, propagation_phase
from ptycho.scattering import atomic_number, elements, scattering_factor_A
from ptycho.simulated_files import write_simulation
from ptycho.simulation import Simulation, expected_patterns, forward_model, simulate
from ptycho.specimen import monolayer, phase_slices, strontium_titanate

#: f_e in Å at k = 0, 0.25, 0.5, 1, 2, 3 1/Å from another fit to other atoms: Kirkland, Advanced Computing in Electron Microscopy, App. C.
KIRKLAND = {
    6: (2.5114, 1.9674, 1.1700, 0.4127, 0.1168, 0.0569),
    7: (2.2188, 1.8467, 1.2171, 0.4839, 0.1372, 0.0655),
    8: (1.9897, 1.7229, 1.2231, 0.5421, 0.1586, 0.0745),
    14: (5.8143, 3.9393, 1.9658, 0.7423, 0.2702, 0.1320),
    16: (5.1721, 4.0070, 2.3271, 0.8606, 0.2976, 0.1496),
    22: (8.7400, 5.3721, 2.8449, 1.2294, 0.3886, 0.1952),
    34: (7.2231, 5.6235, 3.4503, 1.5624, 0.6026, 0.2972),
    38: (13.0552, 7.2065, 3.8989, 1.7284, 0.6502, 0.3325),
    42: (10.2895, 7.2317, 4.3432, 1.9350, 0.6950, 0.3634),
    74: (12.4822, 9.2285, 5.7684, 2.8993, 1.1590, 0.6013),
    79: (10.5534, 8.6832, 6.0346, 3.0708, 1.2082, 0.6388),
}
#: Quick: 32 x 32 detector pixels, the beam half as wide as the window.
SMALL = Simulation(scan_shape=(3, 4), pattern_px=32, pixel_invA=0.06, defocus_A=160.0, read_noise_electrons=0.0)


def expected(simulation: Simulation, atoms: np.ndarray | None = None) -> np.ndarray:
    return expected_patterns(forward_model(simulation, atoms)[0])


# Specimens


@pytest.mark.parametrize("z", KIRKLAND)
def test_scattering_factors_agree_with_another_publication(z: int) -> None:
    k = np.array([0, 0.25, 0.5, 1, 2, 3])
    np.testing.assert_allclose(scattering_factor_A(z, k)[1:], KIRKLAND[z][1:], rtol=0.02)
    np.testing.assert_allclose(scattering_factor_A(z, k)[0], KIRKLAND[z][0], rtol=0.06)  # the outermost electrons; molybdenum differs most


def test_fast_scattering_is_rutherfords() -> None:
    """Far out the nucleus alone scatters: f k² -> Z / (2 pi² a_0), for every element."""
    bohr_A = constants.physical_constants["Bohr radius"][0] * 1e10
    assert list(elements()) == list(range(1, 104))
    for z in elements():
        assert float(scattering_factor_A(z, np.array([1e4]))[0] * 1e8) == pytest.approx(z / (2 * np.pi**2 * bohr_A), rel=1e-4)


def test_unknown_elements_are_refused() -> None:
    with pytest.raises(RecipeError, match="atomic number 104"):
        scattering_factor_A(104, np.zeros(1))
    assert [atomic_number(symbol) for symbol in ("H", "Sr", "Lr")] == [1, 38, 103]
    with pytest.raises(RecipeError, match="such as Sr"):
        atomic_number("SR")


def test_mean_inner_potential_of_silicon() -> None:
    """Eight atoms in a cell of 5.431 Å: 13.9 V for independent atoms."""
    a = 5.431
    basis = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]]) / 4 * a
    basis[:, 1:] -= a / 2
    atoms = np.column_stack([np.full(8, 14), basis])
    phase = phase_slices(atoms, (32, 32), a / 32, 200.0, [0, a], 0.08)
    assert phase.mean() / (interaction_parameter(200.0) * a) == pytest.approx(13.9, abs=0.1)


def test_sub_pixel_shift_is_a_fourier_shift() -> None:
    atom, pixel, shift = np.array([[74, 0.5, 0.3, -0.7]]), 0.2, np.array([0.37, -0.61])
    there = phase_slices(atom, (64, 60), pixel, 80.0, [0, 1], 0.08)[0].astype(float)
    moved = phase_slices(atom + np.r_[0, 0, shift * pixel], (64, 60), pixel, 80.0, [0, 1], 0.08)[0]
    ramp = np.exp(-2j * np.pi * (np.fft.fftfreq(64)[:, None] * shift[0] + np.fft.fftfreq(60) * shift[1]))
    np.testing.assert_allclose(np.fft.ifft2(np.fft.fft2(there) * ramp).real, moved, atol=1e-6)


def test_atom_lies_where_it_was_put() -> None:
    phase = phase_slices(np.array([[16, 0.5, -1.2, 2.4]]), (40, 50), 0.2, 80.0, [0, 1], 0.08)[0]
    assert np.unravel_index(phase.argmax(), phase.shape) == (20 - 6, 25 + 12)
    assert phase.max() > 0.3


def test_atoms_go_to_their_slices() -> None:
    atoms = np.array([[6, 0.0, 0, 0], [6, 1.0, 0, 0], [6, 1.5, 0, 0]])
    total = phase_slices(atoms, (16, 16), 0.3, 80.0, [0, 1, 2], 0.1).sum((1, 2))
    assert total[1] == pytest.approx(2 * total[0], rel=1e-4)
    with pytest.raises(RecipeError, match="widen the edges"):
        phase_slices(atoms, (16, 16), 0.3, 80.0, [0, 1], 0.1)
    with pytest.raises(RecipeError, match="rise"):
        phase_slices(atoms, (16, 16), 0.3, 80.0, [0, 2, 1], 0.1)


def test_monolayer() -> None:
    sheet = monolayer("WS2", 60.0)
    inside = (np.abs(sheet[:, 2:]) <= 30).all(1)
    density = np.array([(sheet[inside, 0] == z).sum() for z in (74, 16)]) / 60**2
    np.testing.assert_allclose(density * np.sqrt(3) / 2 * 3.153**2, [1, 2], rtol=0.03)  # W and S in the area of a cell
    assert set(np.round(np.unique(sheet[:, 1]), 6)) == {0.785, 2.355, 3.925}
    tungsten, sulphur = (sheet[(sheet[:, 0] == z) & (np.abs(sheet[:, 2:]) < 10).all(1), 2:] for z in (74, 16))
    apart = np.hypot(*(tungsten[:, None] - sulphur).transpose(2, 0, 1)).min(1)
    np.testing.assert_allclose(apart, 3.153 / np.sqrt(3), rtol=1e-6)
    vacancies = 1 - len(monolayer("WS2", 60.0, 0.1, seed=3)[:, 0]) / len(sheet)
    assert vacancies == pytest.approx(0.1 * 2 / 3, rel=0.2)
    with pytest.raises(RecipeError, match="WTe2"):
        monolayer("WTe2", 10.0)


def test_strontium_titanate() -> None:
    a = 3.905
    crystal = strontium_titanate(20 * a, 10.2 * a)
    assert crystal[:, 1].min() == pytest.approx(a / 4) and crystal[:, 1].max() == pytest.approx(9.75 * a)
    inside = crystal[((crystal[:, 2:] >= -9.9 * a) & (crystal[:, 2:] < 9.1 * a)).all(1), 0]
    assert [(inside == z).sum() for z in (38, 22, 8)] == [19**2 * 10, 19**2 * 10, 19**2 * 30]


# Patterns


def test_electrons_add_up() -> None:
    assert SMALL.electrons_per_pattern == pytest.approx(2e4 * 0.8**2)
    vacuum = expected(replace(SMALL, specimen="vacuum"))
    np.testing.assert_allclose(vacuum.sum((1, 2)), SMALL.electrons_per_pattern, rtol=5e-4)
    # A monolayer scatters little beyond this detector, and noise does not shift the mean.
    noisy = simulate(replace(SMALL, read_noise_electrons=0.007)).patterns.sum((2, 3))
    np.testing.assert_allclose(noisy, SMALL.electrons_per_pattern, rtol=0.05)
    assert noisy.max() < SMALL.electrons_per_pattern * 1.04


def test_vacuum_gives_the_aperture() -> None:
    """A uniform disk about pixel (size // 2, size // 2), its radius semiangle / (lambda pixel)."""
    simulation = replace(SMALL, specimen="vacuum", pattern_px=64, pixel_invA=0.04, scan_shape=(1, 1))
    pattern = expected(simulation)[0]
    radius = 24.9e-3 / wavelength_A(80.0) / 0.04
    ky, kx = np.indices(pattern.shape) - 32
    k = np.hypot(ky, kx)
    level = pattern[k < radius - 2]
    np.testing.assert_allclose(level, simulation.electrons_per_pattern / (np.pi * radius**2), rtol=2e-3)
    assert np.ptp(level) < 1e-3 * level.mean()
    assert np.sqrt(pattern.sum() / level.mean() / np.pi) == pytest.approx(radius, abs=0.05)
    assert pattern[k > radius + 2].max() < 1e-6 * level.mean()
    assert abs((pattern * ky).sum()) < 1e-4 * pattern.sum() and abs((pattern * kx).sum()) < 1e-4 * pattern.sum()


def test_underfocus_comes_to_focus_behind_the_specimen() -> None:
    size, pixel, wavelength = 128, 0.2, wavelength_A(80.0)
    focused, under = (probe_wave(size, pixel, wavelength, 24.9, parse_aberrations({"defocus_A": d})) for d in (0.0, 200.0))
    ky, kx = frequency_grid(size, pixel)
    kernel = torch.exp(1j * 200.0 * propagation_phase(ky, kx, wavelength, torch.zeros(1, 2, dtype=torch.float64))[0])
    there = torch.fft.ifft2(torch.fft.fft2(under) * kernel)
    torch.testing.assert_close(there, focused)


@pytest.mark.parametrize("defocus_A", [600.0, -600.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_shadow_image_is_upside_down_with_underfocus(defocus_A: float, axis: int) -> None:
    """With underfocus the ray through a point at +r of the probe runs towards the axis: the shadow of an atom there is at k = -r / (lambda D)."""
    simulation = Simulation(scan_shape=(1, 1), defocus_A=defocus_A, pixel_invA=0.03, pattern_px=64, read_noise_electrons=0.0)
    atom = np.array([[42, 0.0, 0.0, 0.0]])
    atom[0, 2 + axis] = 8.0
    change = (expected(simulation, atom) - expected(replace(simulation, specimen="vacuum")))[0]
    # Smoothing removes the Fresnel fringes and leaves their centre.
    shadow = np.unravel_index(np.abs(gaussian_filter(change, 2)).argmax(), change.shape)
    k = (np.array(shadow) - 32) * 0.03
    assert k[axis] == pytest.approx(-8.0 / (wavelength_A(80.0) * defocus_A), abs=0.031)
    assert k[1 - axis] == pytest.approx(0, abs=0.031)


def test_beam_is_drawn_towards_an_atom() -> None:
    """In focus, a probe beside an atom is deflected towards it: positive phase is positive potential."""
    atom = np.array([[42, 0.0, 0.0, 0.6]])
    pattern = expected(replace(SMALL, scan_shape=(1, 1), defocus_A=0.0), atom)[0]
    assert (pattern * (np.arange(32) - 16)).sum() / pattern.sum() > 0.1


def test_scan_moves_the_probe_over_the_specimen() -> None:
    """The pattern of a probe at (y, x) is that of a probe at the centre with the atoms moved by (-y, -x)."""
    simulation = replace(SMALL, scan_shape=(2, 3), step_A=1.3, rotation_deg=20.0)
    atoms = np.array([[42, 0.0, 0.5, 1.0], [16, 0.0, -1.5, 0.4]])
    patterns = expected(simulation, atoms)
    for position, pattern in zip(simulation.positions_A, patterns, strict=True):
        alone = expected(replace(simulation, scan_shape=(1, 1)), atoms - np.r_[0, 0, position])[0]
        np.testing.assert_allclose(pattern, alone, atol=2e-3 * alone.max())


@pytest.mark.parametrize(("specimen", "whole"), [("WS2", 1.57), ("SrTiO3", 3.905 / 2)])
def test_thinner_slices_change_little(specimen: str, whole: float) -> None:
    one = expected(replace(SMALL, specimen=specimen, thickness_A=40.0, scan_shape=(2, 2)))
    two = expected(replace(SMALL, specimen=specimen, thickness_A=40.0, scan_shape=(2, 2), slice_thickness_A=whole / 2))
    assert np.abs(two - one).sum() / one.sum() < 0.01
    assert np.abs(two - one).sum() > 0


def test_truth_is_centred_on_the_scan() -> None:
    result = simulate(replace(SMALL, defocus_A=100.0), atoms=np.array([[74, 0.0, 0.0, 0.0]]))
    height, width = result.truth_phase.shape
    assert np.unravel_index(result.truth_phase.argmax(), (height, width)) == (height // 2, width // 2)
    assert height % 2 == 0 and width % 2 == 0
    np.testing.assert_allclose(result.positions_A.mean(0), 0, atol=1e-12)
    assert result.truth_pixel_A < 1 / (32 * 0.06) / 1.7  # finer than the detector's own sampling


def test_same_seed_same_bits() -> None:
    first, again, other = (simulate(replace(SMALL, seed=seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.patterns, again.patterns) and np.array_equal(first.truth_phase, again.truth_phase)
    assert not np.array_equal(first.patterns, other.patterns)


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    simulate(SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12) and seen == sorted(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"specimen": "WS3"}, "WS3"),
        ({"step_A": 0.0}, "step_A"),
        ({"dose_e_per_A2": float("nan")}, "dose_e_per_A2"),
        ({"vacancy_fraction": 1.5}, "vacancy_fraction"),
        ({"pattern_px": 33}, "pattern_px"),
        ({"tilt_mrad": (0.0, float("inf"))}, "tilt_mrad"),
        ({"scan_shape": (0, 4)}, "scan_shape"),
        ({"slice_thickness_A": -1.0}, "slice_thickness_A"),
        ({"pixel_invA": 0.03}, "enlarge"),
        ({"defocus_A": 2000.0}, "stay below"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]


# Files


@pytest.fixture(scope="module")
def empad_sized() -> object:
    return simulate(replace(SMALL, pattern_px=128, pixel_invA=0.05, read_noise_electrons=0.007, scan_shape=(2, 3)))


@pytest.mark.parametrize("format", ["empad", "hdf5"])
def test_reader_reads_back(tmp_path: Path, empad_sized, format: str) -> None:  # type: ignore[no-untyped-def]
    recipe_path = write_simulation(empad_sized, tmp_path / "new", format)
    recipe = tomllib.loads(recipe_path.read_text(encoding="utf-8"))
    assert set(recipe) == {"data", "microscope", "scan", "detector", "model"}
    path = recipe_path.parent / recipe["data"].pop("path")
    assert path.name == {"empad": "scan_x3_y2.raw", "hdf5": "data.h5"}[format]

    scan = {"scan_shape": recipe["scan"]["shape"], "step_A": recipe["scan"]["step_A"], "rotation_deg": recipe["scan"]["rotation_deg"]}
    by_recipe = ptycho.io.read(path, **recipe["data"], **recipe["microscope"], **scan, **recipe["detector"])
    patterns = np.asarray(by_recipe.patterns()).reshape(empad_sized.patterns.shape)
    np.testing.assert_allclose(patterns, empad_sized.patterns, rtol=1e-6, atol=1e-6)
    assert by_recipe.geometry.defocus_A == 160.0
    np.testing.assert_allclose(by_recipe.geometry.positions_A, empad_sized.positions_A, atol=1e-9)

    alone = ptycho.io.read(path)  # what the file itself knows
    assert alone.calibration["voltage_kV"].value == pytest.approx(80.0)
    np.testing.assert_allclose(alone.calibration["step_A"].value, 0.8)
    with np.load(tmp_path / "new" / "truth.npz", allow_pickle=False) as truth:
        assert np.array_equal(truth["phase"], empad_sized.truth_phase[None])
        assert float(truth["sampling_A"]) == empad_sized.truth_pixel_A


def test_formats_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    small = simulate(replace(SMALL, scan_shape=(1, 1)))
    with pytest.raises(RecipeError, match="hdf5"):
        write_simulation(small, tmp_path)
    with pytest.raises(RecipeError, match="tiff"):
        write_simulation(small, tmp_path, "tiff")


# Another program's data


def test_agrees_with_another_programs_monolayer(test_data: Path) -> None:
    """WS2 at the same conditions: the mean pattern's disk and the fractions scattered beyond it."""
    raw = np.memmap(test_data / "ws2_empad" / "scan_x48_y48.raw", "<f4", "r", shape=(2304, 130, 128))[::5, :128]
    theirs = np.asarray(raw, np.float64).mean(0)[::-1] / 148
    # 6 x 6 positions over 23 Å see nearly the same mean specimen.
    ours = expected(Simulation(scan_shape=(6, 6), step_A=4.5)).mean(0)
    k = np.hypot(*(np.indices((128, 128)) - 64)) / 30 / (24.9e-3 / wavelength_A(80.0))
    for low, high, tolerance in ((0, 0.9, 0.01), (0.9, 1.1, 0.02), (1.1, 2.0, 0.1), (2.0, 3.5, 0.2)):
        ring = (k >= low) & (k < high)
        assert ours[ring].sum() / ours.sum() == pytest.approx(theirs[ring].sum() / theirs.sum(), rel=tolerance)


def test_the_function_stays_a_function() -> None:
    """A module of the same name would take its place in the package after the first use."""
    import ptycho

    for _ in range(2):
        assert callable(ptycho.simulate) and callable(ptycho.calibrate) and callable(ptycho.com)
