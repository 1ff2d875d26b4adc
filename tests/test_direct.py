"""Direct phase methods: gain, noise and signs against formulas, on periodic objects simulated apart from the package's forward model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from physics import known_probe
from scipy.ndimage import gaussian_filter

import ptycho
from ptycho.aberrations import parse_aberrations
from ptycho.data import Dataset4D
from ptycho.direct import DirectPhase, obf, ssb, wdd
from ptycho.errors import DataError, RecipeError
from ptycho.geometry import wavelength_A
from ptycho.halves import two_halves
from ptycho.known import known_object
from ptycho.metrics import Agreement, compare_with_truth
from ptycho.optics import probe_wave
from ptycho.simulation import Simulated, Simulation, simulate
from ptycho.start import Known, ModelOptions, start

POINTS, EVERY, PIXEL_A, TILES, PATTERN_PX = 28, 2, 0.2, 3, 32
KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 24.9, "step_A": EVERY * PIXEL_A, "pixel_invA": 1 / (POINTS * EVERY * PIXEL_A)}
APERTURE_INVA = 24.9e-3 / wavelength_A(80.0)
FOCUS: dict[str, float] = {}
OVERFOCUS = {"defocus_A": -60.0}
ABERRATED = {"defocus_A": 80.0, "C12": 30.0, "phi12_deg": 25.0, "C21": 300.0, "C30": 2e4}


@cache
def phase_of(kind: str, strength: float) -> np.ndarray:
    """A periodic phase (n, n): noise, as much of every frequency up to twice the aperture, or sharp atoms."""
    random, n = np.random.default_rng(0), POINTS * EVERY
    if kind == "noise":
        image = np.fft.ifft2(np.fft.fft2(random.standard_normal((n, n))) * (radii(n, PIXEL_A) < 2)).real
    else:
        image = gaussian_filter((random.random((n, n)) < 0.012).astype(float), 1.8, mode="wrap")
    return image * (strength / np.abs(image).max())


def radii(n: int, pixel_A: float) -> np.ndarray:
    """\\|Q\\| of the transform of an image (n, n) in radii of the aperture."""
    axis = np.fft.fftfreq(n, pixel_A)
    return np.hypot(*np.meshgrid(axis, axis, indexing="ij")) / APERTURE_INVA


def expected(phase: np.ndarray, **aberrations: float) -> np.ndarray:
    """Patterns (scan, scan, ky, kx) of one electron of a periodic object, the scan one period: TILES samples per detector pixel and axis."""
    n = len(phase)
    wave = torch.from_numpy(np.exp(1j * np.tile(phase, (TILES, TILES))))
    size, cut = n * TILES, PATTERN_PX * TILES
    probe = probe_wave(size, PIXEL_A, wavelength_A(80.0), 24.9, parse_aberrations(aberrations), edge_px=TILES)
    low = size // 2 - cut // 2 - TILES // 2
    out = np.empty((POINTS, POINTS, PATTERN_PX, PATTERN_PX))
    for i, j in np.ndindex(POINTS, POINTS):
        here = wave.roll((size // 2 - i * EVERY, size // 2 - j * EVERY), (0, 1))
        intensity = torch.fft.fftshift(torch.fft.fft2(probe * here, norm="ortho")).abs().square()
        part = intensity[low : low + cut, low : low + cut].reshape(PATTERN_PX, TILES, PATTERN_PX, TILES)
        out[i, j] = part.sum((1, 3)).numpy()
    return out


@cache
def patterns_of(kind: str, strength: float, aberrations: tuple[tuple[str, float], ...]) -> np.ndarray:
    return expected(phase_of(kind, strength), **dict(aberrations))


def dataset(patterns: np.ndarray, **changes: Any) -> Dataset4D:
    return ptycho.read(patterns.astype(np.float32), **{**KNOWN, "adu_per_electron": 1.0, "centre": "none", "rotation_deg": 0.0, **changes})


def read_as(aberrations: dict[str, float]) -> dict[str, Any]:
    """As keys of a recipe."""
    return {"defocus_A": aberrations.get("defocus_A", 0.0), "aberrations": {k: v for k, v in aberrations.items() if k != "defocus_A"}}


def experiment(kind: str, strength: float, aberrations: dict[str, float], electrons: float = 1e6, **changes: Any) -> tuple[Dataset4D, np.ndarray]:
    """Noise-free data and the phase at the scan's points."""
    patterns = patterns_of(kind, strength, tuple(aberrations.items())) * electrons
    return dataset(patterns, **{**read_as(aberrations), **changes}), phase_of(kind, strength)[::EVERY, ::EVERY]


def in_band(image: np.ndarray, most: float = 1.8) -> np.ndarray:
    """What the method can transfer, mean taken away."""
    q = radii(POINTS, EVERY * PIXEL_A)
    return np.fft.ifft2(np.fft.fft2(image) * ((q > 0) & (q < most))).real


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("aberrations", [FOCUS, OVERFOCUS, ABERRATED], ids=["focus", "overfocus", "aberrated"])
@pytest.mark.parametrize("method", [ssb, wdd])
def test_a_weak_phase_comes_back_with_gain_one_at_every_frequency(method: Any, aberrations: dict[str, float]) -> None:
    """Also with the aberrations corrected: within 3 % in each ring, where the law allows 5."""
    data, truth = experiment("noise", 0.01, aberrations)
    found = method(data, pad_A=0.0)
    q = radii(POINTS, EVERY * PIXEL_A)
    for low, high in ((0.1, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 1.8)):
        ring = (q > low) & (q < high)
        ring = np.fft.fft2(found.phase)[ring] / np.fft.fft2(truth)[ring]
        assert ring.mean() == pytest.approx(1.0, abs=0.03)
        assert np.median(np.abs(ring - 1)) < 0.05
    assert correlation(in_band(found.phase), in_band(truth)) > 0.99
    assert found.phase.shape == (POINTS, POINTS) and found.pixel_A == pytest.approx((0.4, 0.4))


def test_the_wrong_sign_of_the_defocus_is_seen() -> None:
    data, truth = experiment("noise", 0.01, OVERFOCUS)
    wrong, _ = experiment("noise", 0.01, OVERFOCUS, defocus_A=60.0)
    assert correlation(in_band(ssb(data, pad_A=0.0).phase), in_band(truth)) > 0.99
    assert correlation(in_band(ssb(wrong, pad_A=0.0).phase), in_band(truth)) < 0.6


def test_wdd_takes_a_strong_phase_that_is_too_much_for_ssb() -> None:
    data, truth = experiment("atoms", 2.0, OVERFOCUS)
    true = in_band(truth)
    errors = [np.std(in_band(image.phase) - true) / true.std() for image in (ssb(data, pad_A=0.0), wdd(data, 1e-3, pad_A=0.0))]
    assert errors[1] < 0.07 < 0.12 < errors[0]
    assert correlation(in_band(wdd(data, pad_A=0.0).phase), true) > 0.99


def noise_images(method: Any, electrons: float = 400.0, times: int = 6) -> np.ndarray:
    """Power of the unitary transform of vacuum's images, mean of several draws."""
    mean = patterns_of("noise", 1e-9, ())
    power = []
    for seed in range(times):
        counts = np.random.default_rng(seed).poisson(mean * electrons)
        power.append(np.abs(np.fft.fft2(method(dataset(counts), pad_A=0.0).phase, norm="ortho")) ** 2)
    return np.mean(power, 0)


def test_the_noise_of_ssb_follows_the_double_overlap() -> None:
    """DQE = (double overlap as a share of the disk) / 4, 1 for the variance 1 / (4 dose) of a Zernike plate."""

    def lens(x: np.ndarray) -> np.ndarray:
        """Share of a disk that another one, x radii away, overlaps."""
        x = np.clip(x, 0, 2)
        return 2 / np.pi * (np.arccos(x / 2) - x / 2 * np.sqrt(1 - x**2 / 4))

    power, q = noise_images(ssb), radii(POINTS, EVERY * PIXEL_A)
    for low, high in ((0.4, 0.7), (0.7, 1.0), (1.0, 1.3), (1.3, 1.6)):
        ring = (q > low) & (q < high)
        law = 2 * (lens(q[ring]) - lens(2 * q[ring])) / 4
        dqe = 1 / (4 * 400.0 * power[ring])
        assert 1 / np.mean(1 / dqe * law) == pytest.approx(1.0, abs=0.15)


def test_obf_has_the_same_noise_at_every_frequency_and_positive_atoms() -> None:
    power, q = noise_images(obf), radii(POINTS, EVERY * PIXEL_A)
    rings = [power[(q > low) & (q < low + 0.3)].mean() for low in (0.3, 0.6, 0.9, 1.2)]
    assert max(rings) < 1.3 * min(rings)
    data, truth = experiment("atoms", 0.2, OVERFOCUS)
    assert correlation(obf(data, pad_A=0.0).phase, truth) > 0.8


def test_single_bits_of_few_electrons_give_the_image_of_counts() -> None:
    """0.04 electrons in a pixel of the disk (O'Leary et al., Appl. Phys. Lett. 116 (2020) 124101)."""
    mean = patterns_of("atoms", 0.3, ())
    disk = np.pi * (APERTURE_INVA / KNOWN["pixel_invA"]) ** 2
    counts = np.random.default_rng(0).poisson(mean * 0.04 * disk)
    images = [ssb(dataset(counted), pad_A=0.0).phase for counted in (counts, np.minimum(counts, 1))]
    assert counts.max() > 1 and correlation(*images) >= 0.98


def seen_at(rotation_deg: float, defocus_A: float) -> Simulated:
    return simulate(
        Simulation(
            specimen="MoS2", scan_shape=(28, 36), step_A=0.36, rotation_deg=rotation_deg, defocus_A=defocus_A, pattern_px=32, pixel_invA=0.06,
            dose_e_per_A2=1e7, read_noise_electrons=0.0, vacancy_fraction=0.1,
        )
    )  # fmt: skip


def agreement(simulated: Simulated, found: DirectPhase) -> Agreement:
    """With the truth, in a square that fits the turned scan."""
    image, origin = found.upright()
    positions = simulated.positions_A
    centre = (positions.min(0) + positions.max(0)) / 2 - origin
    return compare_with_truth(image, min(found.pixel_A), simulated.truth_phase, simulated.truth_pixel_A, tuple(centre), (7.0, 7.0), margin_A=0.0)


@pytest.mark.parametrize(("rotation_deg", "defocus_A"), [(0.0, 0.0), (35.0, 60.0), (-110.0, -60.0)])
def test_a_turned_scan_of_a_monolayer(rotation_deg: float, defocus_A: float) -> None:
    """The package's simulation, a real potential, a scan that is not periodic: in the truth's frame, atoms positive, nothing shifted."""
    simulated = seen_at(rotation_deg, defocus_A)
    found = agreement(simulated, ssb(simulated.dataset()))
    assert found.correlation > 0.96 and found.slope == pytest.approx(1, abs=0.12)
    assert np.hypot(*found.shift_px) < 0.1
    assert agreement(simulated, wdd(simulated.dataset())).correlation > 0.96
    if defocus_A:
        wrong = agreement(simulated, ssb(simulated.dataset(rotation_deg=-rotation_deg)))
        assert wrong.correlation < 0.85


def test_the_file_may_be_read_in_parts_and_miss_points() -> None:
    data, _ = experiment("atoms", 0.3, OVERFOCUS)
    whole = ssb(data).phase
    assert np.allclose(ssb(replace(data, memory_GB=5e-4)).phase, whole, atol=1e-4)
    assert np.allclose(wdd(replace(data, memory_GB=5e-4)).phase, wdd(data).phase, atol=1e-4)
    lost = data.without(np.random.default_rng(0).choice(data.n_positions, 40, replace=False))
    assert correlation(ssb(lost).phase, whole) > 0.9


def test_what_is_no_raster_is_refused_and_a_coarse_one_warned_of() -> None:
    data, _ = experiment("atoms", 0.3, FOCUS)
    scattered = replace(data, positions_A=np.random.default_rng(0).random((data.n_positions, 2)), scan_shape=(1, data.n_positions))
    with pytest.raises(DataError, match="positions are a list; direct methods need a raster"):
        ssb(scattered)
    with pytest.raises(DataError, match="its scan is 2 x 28"):
        wdd(dataset(patterns_of("atoms", 0.3, ())[:2]))
    ssb(data)
    assert "coarser" not in str(data.warnings)
    coarse, _ = experiment("atoms", 0.3, FOCUS, step_A=0.6)
    ssb(coarse)
    assert any("coarser than lambda / (4 alpha)" in warning for warning in coarse.warnings)


def test_ws2_of_another_program(test_data: Path) -> None:
    """350 Å of defocus, counts, an EMPAD's gain; the scan is coarser than the law asks for."""
    folder = test_data / "ws2_empad"
    data = ptycho.read(folder / "scan_x48_y48.raw", voltage_kV=80, semiangle_mrad=24.9, step_A=0.7, defocus_A=350, flip_rows=True)
    with np.load(folder / "truth.npz") as file:
        truth, pixel_A = file["phase"].sum(0), float(file["sampling_A"])
    image, origin = ssb(data).upright()
    found = compare_with_truth(image, 0.7, truth, pixel_A, tuple(-origin), (32.9, 32.9), margin_A=6.0)
    assert found.correlation > 0.96


def test_an_object_that_begins_as_an_image_begins_better() -> None:
    simulated = seen_at(35.0, 60.0)
    losses = {}
    for name in ("flat", "ssb", "wdd"):
        result = ptycho.reconstruct(simulated.dataset(), solve=known_probe(1), start=name, device="cpu")
        losses[name] = result.history[0].loss
    assert losses["ssb"] < 0.95 * losses["flat"] and losses["wdd"] < 0.95 * losses["flat"]


def test_the_slices_share_the_image_and_a_half_has_its_own() -> None:
    simulated = seen_at(0.0, 60.0)
    data = simulated.dataset()
    options = ModelOptions(start="ssb", slices=3, slice_thickness_A=(1.0, 2.0, 1.0))
    known = known_object(options, data, Known())
    model = start(data.geometry, options, data.beam_electrons, data.mask, known)
    phase = model.object.transmission.detach().angle()[0]
    assert torch.allclose(phase[1], 2 * phase[0], atol=1e-3) and phase.abs().max() > 0.1
    _, (half, _) = two_halves(data)
    own = known_object(options, half.data, Known())
    assert known.object is not None and own.object is not None and np.abs(own.object - known.object).max() > 1e-3


def test_starts_that_do_not_exist() -> None:
    with pytest.raises(RecipeError, match='start = "sbs": unknown'):
        ModelOptions(start="sbs")
    with pytest.raises(RecipeError, match="object_file: the object can begin as one of them only"):
        ModelOptions(start="ssb", object_file="run")
