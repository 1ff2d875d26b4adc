"""CoM, DPC and iDPC against what theory says: a ramp, the transfer of a weak object, signs, units, the eight orientations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from small import correlation, flat

from ptycho.centre_of_mass import com, dcom, idpc, phase_of, quadrants, segmented_com, without_descan
from ptycho.errors import DataError, RecipeError
from ptycho.geometry import interaction_parameter, raster_positions_A, wavelength_A
from ptycho.integrate import integrate
from ptycho.io import read
from ptycho.optics import aperture, frequency_grid, shift_ramps
from ptycho.orientation import disagreement, orientations
from ptycho.simulation import Simulation, simulate

KV, MRAD, SIZE, PIXEL_A = 80.0, 25.0, 64, 0.25
LAMBDA_A = wavelength_A(KV)
Q_A = 2 * MRAD * 1e-3 / LAMBDA_A  # where the transfer ends


def scan_of(phase, scan=(32, 32), step_A=0.5, rotation_deg=0.0, electrons=None, shift_px=(0.0, 0.0), edge_px=0.0, seed=0):
    """Patterns (slow, fast, 64, 64) of a phase object given as a function of (y, x) in Å, probe in focus; no periodic border is met."""
    ky, kx = frequency_grid(SIZE, PIXEL_A)
    probe = torch.fft.fftshift(torch.fft.ifft2(aperture(ky, kx, MRAD * 1e-3 / LAMBDA_A, edge_px / (SIZE * PIXEL_A)).to(torch.complex128)))
    axis = (np.arange(SIZE) - SIZE // 2) * PIXEL_A
    positions = raster_positions_A(scan, (step_A, step_A), rotation_deg)
    patterns = []
    for y, x in positions:
        exit_wave = probe * torch.from_numpy(np.exp(1j * phase(axis[:, None] + y, axis[None, :] + x)))
        patterns.append(torch.fft.fft2(exit_wave).abs().square())
    stack = torch.stack(patterns)
    stack = torch.fft.fftshift(stack / stack.sum((1, 2)).mean(), dim=(1, 2))
    if shift_px != (0.0, 0.0):
        y_ramp, x_ramp = shift_ramps(torch.tensor([shift_px], dtype=torch.float64), SIZE)
        stack = torch.fft.ifft2(torch.fft.fft2(stack) * y_ramp * x_ramp).real.clamp(min=0)
    counts = stack.numpy() * (electrons or 1e6)
    if electrons is not None:
        counts = np.random.default_rng(seed).poisson(counts)
    return counts.reshape(*scan, SIZE, SIZE).astype(np.float32)


def given(rotation_deg=0.0, step_A=0.5, **more):
    known = {"voltage_kV": KV, "semiangle_mrad": MRAD, "step_A": step_A, "rotation_deg": rotation_deg, "pixel_invA": 1 / (SIZE * PIXEL_A)}
    return known | {"adu_per_electron": 1.0, "centre": "none"} | more


def atoms(strength=0.3, width_A=0.45, seed=1, field_A=24.0):
    """Gaussian atoms at random places, as a function of (y, x)."""
    places = np.random.default_rng(seed).uniform(-field_A / 2, field_A / 2, (int(field_A**2 / 12), 2))

    def phase(y, x):
        along_y, along_x = (np.exp(-((r.ravel()[:, None] - at) ** 2) / (2 * width_A**2)) for r, at in ((y, places[:, 0]), (x, places[:, 1])))
        return strength * along_y @ along_x.T

    return phase


def band_limited(places, q_invA, strength):
    """Cosines of one frequency in several directions, as a function of (y, x): periodic, weak."""

    def phase(y, x):
        return sum(strength * np.cos(2 * np.pi * q_invA * (y * np.sin(a) + x * np.cos(a)) + b) for a, b in places)

    return phase


@pytest.mark.parametrize("rotation_deg", [0.0, -37.0])
def test_centre_of_mass_of_a_ramp_is_its_slope(rotation_deg):
    slope = np.array([0.03, -0.05])  # 1/Å along the detector's axes
    patterns = scan_of(lambda y, x: 2 * np.pi * (slope[0] * y + slope[1] * x), scan=(3, 3), rotation_deg=rotation_deg, edge_px=12)
    # The pixels are 1/16 1/Å wide: the ramp moves the disk by parts of one. The probe of a soft aperture ends before the window does.
    found = com(read(patterns, **given(rotation_deg)))
    along_scan = raster_positions_A((2, 2), (1.0, 1.0), rotation_deg)
    wanted = [(along_scan[2] - along_scan[0]) @ slope, (along_scan[1] - along_scan[0]) @ slope]
    assert np.linalg.norm(found - np.reshape(wanted, (2, 1, 1)), axis=0).max() < 1e-3 * np.linalg.norm(slope)


def test_a_ramp_integrates_to_itself_border_or_not():
    field = np.stack([np.full((20, 30), 0.01), np.full((20, 30), -0.02)])
    y, x = np.indices((20, 30))
    wanted = 2 * np.pi * (0.01 * y * 0.5 - 0.02 * x * 0.7)
    phase = integrate(field, (0.5, 0.7))
    inside = (slice(4, -4), slice(4, -4))
    assert np.abs(phase - phase[inside].mean() - wanted + wanted[inside].mean())[inside].max() < 0.02 * np.ptp(wanted)


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
def test_idpc_is_the_projected_phase_times_the_transfer_of_the_aperture(share):
    directions = [(0.3, 0.1), (1.4, 2.0), (2.5, 4.0)]
    q_invA = share * Q_A
    wave = band_limited(directions, q_invA, 0.02)
    image = idpc(read(scan_of(wave, scan=(40, 40), step_A=0.4), **given(step_A=0.4)), "constant")
    axis = (np.arange(40) - 19.5) * 0.4
    truth = wave(axis[:, None], axis[None, :])
    transfer = 2 / np.pi * (np.arccos(share) - share * np.sqrt(1 - share**2))
    inside = (slice(6, -6), slice(6, -6))
    a, b = flat(image[inside]), flat(truth[inside])
    assert correlation(a, b) > 0.99
    assert (a * b).sum() / (b * b).sum() == pytest.approx(transfer, rel=0.04)


def test_atoms_are_positive_in_every_picture_and_the_units_are_right():
    data = read(scan_of(atoms()), **given())
    image = idpc(data)
    axis = (np.arange(32) - 15.5) * 0.5
    truth = atoms()(axis[:, None], axis[None, :])
    assert correlation(flat(image), flat(truth)) > 0.9
    np.testing.assert_allclose(idpc(data, unit="V·Å"), image / interaction_parameter(KV))
    assert correlation(dcom(data), truth) > 0.5
    quarters = integrate(segmented_com(data, quadrants(data), "plane"), data.scan_step_A)
    assert correlation(flat(quarters), flat(truth)) > 0.85
    pixelated, segmented = com(data), segmented_com(data, quadrants(data))
    assert min(correlation(a, b) for a, b in zip(pixelated, segmented, strict=True)) > 0.9


def test_segments_measure_the_shift_of_the_disk():
    """The calibration: a disk that moves as a whole by 0.6 px is a shift of 0.6 px."""
    slope = 0.6 / (SIZE * PIXEL_A)
    data = read(scan_of(lambda y, x: 2 * np.pi * slope * x + 0 * y, scan=(2, 2)), **given())
    found = segmented_com(data, quadrants(data)).mean((1, 2))
    assert found[1] == pytest.approx(slope, rel=0.1) and abs(found[0]) < 0.1 * slope


@pytest.mark.parametrize("turned", [(False, False, False), (False, True, False), (True, False, True), (True, True, True)])
@pytest.mark.parametrize("rotation_deg", [-37.0, 17.0, 90.0, -126.0])
def test_curl_finds_rotation_and_all_eight_orientations(turned, rotation_deg):
    patterns = _scan_at(rotation_deg)
    transpose, flip_rows, flip_columns = turned
    # What the detector stores so that transpose, then flips give back the patterns.
    stored = patterns[:, :, ::-1] if flip_rows else patterns
    stored = stored[:, :, :, ::-1] if flip_columns else stored
    # The middle is between pixels: turning the patterns must not move the disk.
    stored = stored.swapaxes(2, 3) if transpose else stored
    found = orientations(read(stored, **given(), flip_rows=False))
    assert {(one.transpose, one.flip_rows, one.flip_columns) for one in found} == {(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)}
    same = next(one for one in found[:4] if (one.transpose, one.flip_rows, one.flip_columns) == turned)
    assert abs((same.rotation_deg - rotation_deg + 180) % 360 - 180) < 0.5
    assert found[0].agreement > 0.95 and found[4].agreement < 0.6
    assert disagreement(read(stored, **given(rotation_deg), transpose=transpose, flip_rows=flip_rows, flip_columns=flip_columns)) is None
    if sum(turned) % 2:  # mirrored: no rotation will do
        assert "least curl with" in disagreement(read(stored, **given(), flip_rows=False))


_SCANS = {}


def _scan_at(rotation_deg, electrons=None):
    """Made once; a beam centre that is off by (1.3, -0.7) px."""
    key = rotation_deg, electrons
    if key not in _SCANS:
        _SCANS[key] = scan_of(atoms(), rotation_deg=rotation_deg, electrons=electrons, shift_px=(1.3, -0.7))
    return _SCANS[key]


def test_rotation_at_500_electrons_per_square_angstrom():
    patterns = scan_of(atoms(strength=0.6), scan=(48, 48), rotation_deg=-37.0, electrons=500 * 0.5**2, shift_px=(1.3, -0.7))
    found = orientations(read(patterns, **given(), flip_rows=False))
    best = next(one for one in found[:4] if not (one.transpose or one.flip_rows or one.flip_columns))
    assert abs(best.rotation_deg + 37) < 2 and best.error_deg < 3
    assert found[0].agreement > found[4].agreement + 0.1


def test_the_forward_model_has_the_same_axes():
    """Patterns of the package's own simulation, rotated: right rotation, and the phase as the truth has it."""
    simulation = Simulation(
        scan_shape=(20, 20), step_A=0.5, rotation_deg=33.0, defocus_A=0.0, pattern_px=64, pixel_invA=1 / 15, dose_e_per_A2=1e6, seed=2
    )
    simulated = simulate(simulation)
    data = simulated.dataset()
    found = orientations(data)[0]
    assert (found.transpose, found.flip_rows, found.flip_columns) == (False, False, False) and abs(found.rotation_deg - 33) < 1
    middle = np.array(simulated.truth_phase.shape)[:, None] // 2
    blurred = gaussian_filter(simulated.truth_phase, 0.5 / simulated.truth_pixel_A)
    truth = map_coordinates(blurred, simulated.positions_A.T / simulated.truth_pixel_A + middle, order=1).reshape(20, 20)
    assert correlation(flat(idpc(data)), flat(truth)) > 0.9


def test_a_crystal_that_ends_in_mid_cell_is_level():
    y, x = np.indices((30, 30)) * 0.1
    truth = np.cos(2 * np.pi * y / 1.13) * np.cos(2 * np.pi * (x - 0.3) / 1.31)
    field = np.stack(np.gradient(truth, 0.1)) / (2 * np.pi) + 0.02  # and a beam that is not in the middle
    phase = phase_of(without_descan(field, "constant"), (0.1, 0.1), "constant")
    left = phase - truth
    assert abs(left[:, 20:].mean() - left[:, :10].mean()) < 0.1 and correlation(phase, truth) > 0.98


def test_descan_is_taken_off_outliers_or_not():
    y, x = np.indices((20, 24)) / 20
    noise = np.random.default_rng(0).normal(0, 1e-3, (2, 20, 24))
    drift = np.stack([0.1 + 0.05 * y - 0.02 * x, -0.2 + 0.03 * x])
    field = drift + noise
    field[:, 3, 4], field[:, 5, 6] = 5.0, np.nan
    left = without_descan(field, "plane") - noise
    left[:, 3, 4] = left[:, 5, 6] = 0
    assert np.abs(left).max() < 5e-4
    assert np.nanmean(without_descan(drift, "constant")) == pytest.approx(0, abs=1e-12)
    np.testing.assert_array_equal(without_descan(field, "none"), field)
    with pytest.raises(RecipeError, match='"none", "constant" or "plane"'):
        without_descan(field, "parabola")


def test_highpass_by_noise_keeps_what_stands_above_it():
    axis = (np.arange(48) - 23.5) * 0.5
    truth = atoms(strength=1.0)(axis[:, None], axis[None, :])
    field = np.stack(np.gradient(truth, 0.5)) / (2 * np.pi)
    assert correlation(integrate(field, (0.5, 0.5), "noise"), integrate(field, (0.5, 0.5))) > 0.99  # no noise, no filter
    noisy = field + np.random.default_rng(0).normal(0, 1.5 * field.std(), field.shape)
    plain, held = (correlation(integrate(noisy, (0.5, 0.5), how), truth) for how in (0.0, "noise"))
    assert held > plain + 0.02
    assert integrate(field, (0.5, 0.5), 0.2).std() < integrate(field, (0.5, 0.5)).std()


def test_without_a_raster_or_a_step_it_is_said(tmp_path):
    patterns = scan_of(atoms(), scan=(3, 3))
    np.savetxt(tmp_path / "p.csv", raster_positions_A((3, 3), (0.5, 0.5)), delimiter=",")
    known = given()
    del known["step_A"]
    with pytest.raises(DataError, match="the positions are a list"):
        com(read(patterns, **known, positions_file=tmp_path / "p.csv"))
    with pytest.raises(DataError, match="step_A is not in the file"):
        idpc(read(patterns, **known))
    with pytest.raises(DataError, match="too small to find its rotation"):
        orientations(read(patterns, **given()))
    with pytest.raises(RecipeError, match="must cover its edge"):
        segmented_com(read(patterns, **given()), quadrants(read(patterns, **given()), 0, 0.5))
