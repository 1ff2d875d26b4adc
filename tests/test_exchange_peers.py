"""The other packages themselves, where they are installed: their readers open our files, and their models make our patterns.

They are no dependencies, not even of the tests: pip install ptyrad==1.0.0, py4DSTEM, phaserEM into an environment of their own.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_result import make

from ptycho.exchange import export, import_run
from ptycho.exchange.patterns import patterns_of
from ptycho.result import Result

# Their warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")
INDEX = np.arange(0, 20, 3)


@pytest.fixture(scope="module")
def result() -> Result:
    positions = np.random.default_rng(3).uniform((8.6, 8.6), (21.4, 25.4), (20, 2)) * 0.21
    return replace(make(states=1), positions_A=positions, tilt_mrad=np.array([[3.0, -5.0]]), slice_thickness_A=np.full(3, 20.0))


def test_ptyrad_there_and_back(test_data: Path, monkeypatch: pytest.MonkeyPatch):
    """PtyRAD's model from its own parameters, one iteration, its own file: our patterns are its own to 1e-3, and so are those of our file in it."""
    for name in ("ptyrad", "torchvision", "sklearn"):
        if importlib.util.find_spec(name) is None:  # to import torchvision would fail beside a torch of another kind, which is mended below
            pytest.skip(f"{name} is not installed: PtyRAD needs it")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    before = set(sys.modules)
    try:
        from exchange_ptyrad import compare, parse_args

        found = compare(parse_args([str(test_data / "ws2_empad"), "--scan", "6", "--slices", "3", "--modes", "2"]))
    finally:
        for name in set(sys.modules) - before:  # stubs of its plotting must not reach another test
            if name.startswith("ptyrad"):
                del sys.modules[name]
    for way in ("there", "back"):
        assert found[way]["max"] < 1e-3 and found[way]["rms"] < 1e-3 and found[way]["scale"] == pytest.approx(1, abs=1e-3), (way, found[way])


def test_py4dstem_opens_its_own_class_and_makes_our_patterns(result: Result, tmp_path: Path):
    package = pytest.importorskip("py4DSTEM", reason="py4DSTEM is not installed with what it needs")
    for slices, modes, name in ((3, 1, "MultislicePtychography"), (1, 1, "SingleslicePtychography"), (1, 2, "MixedstatePtychography")):
        some = replace(result, object=result.object[:, :slices], slice_thickness_A=result.slice_thickness_A[:slices], probe=result.probe[:modes])
        opened = package.read(str(export(some, tmp_path / f"{name}.h5", "py4dstem")))
        assert type(opened).__name__ == name and opened.sampling == pytest.approx((0.21, 0.21), rel=1e-4)
        np.testing.assert_array_equal(np.squeeze(opened.object), np.squeeze(some.object))
        if modes == 1:
            close(patterns_of(some, INDEX), py4dstem_patterns(opened, slices))
        saved = tmp_path / f"{name}_again.h5"
        package.save(str(saved), opened)
        back = import_run(saved).result
        np.testing.assert_allclose(back.probe, some.probe, atol=1e-6)
        close(patterns_of(back, INDEX), patterns_of(some, INDEX))


def py4dstem_patterns(opened: Any, slices: int) -> np.ndarray:
    """By its own patches, shifts, propagators and overlaps; of coherent probes."""
    opened._object_shape = opened.object.shape[-2:]  # what preprocess() would set
    positions = opened._positions_px[INDEX]
    opened._positions_px_fractional = positions - np.round(positions)
    if slices > 1:
        shape, thicknesses = tuple(opened._region_of_interest_shape), opened._slice_thicknesses
        tilts = opened._theta_x, opened._theta_y
        opened._propagator_arrays = opened._precompute_propagator_arrays(shape, opened.sampling, opened._energy, thicknesses, *tilts)
    shifted = opened._return_shifted_probes(opened._probe, opened._positions_px_fractional)
    rows, columns = opened._extract_vectorized_patch_indices(positions)
    _, _, overlap = opened._overlap_projection(opened._object, rows, columns, shifted)
    return np.fft.fftshift(np.abs(np.fft.fft2(overlap)) ** 2, axes=(-2, -1))


def test_phaser_opens_its_own_state_and_makes_our_patterns(result: Result, tmp_path: Path):
    state = pytest.importorskip("phaser.state", reason="phaser is not installed")
    opened = state.ReconsState.read_hdf5(export(result, tmp_path / "state.h5", "phaser"))
    np.testing.assert_array_equal(opened.object.data, result.object[0])
    np.testing.assert_allclose(opened.object.sampling.sampling, 0.21)
    np.testing.assert_allclose(opened.object.thicknesses, 20.0)
    close(patterns_of(result, INDEX), phaser_patterns(opened))
    opened.write_hdf5(tmp_path / "again.h5")
    back = import_run(tmp_path / "again.h5").result
    np.testing.assert_allclose(back.tilt_mrad, result.tilt_mrad)
    close(patterns_of(back, INDEX), patterns_of(result, INDEX))


def phaser_patterns(opened: Any) -> np.ndarray:
    """By its own cutouts, shifts, propagators and transforms."""
    from phaser.utils.num import abs2, fft2, ifft2
    from phaser.utils.optics import fourier_shift_filter, fresnel_propagator

    ky, kx = opened.probe.sampling.recip_grid()
    scan = getattr(opened.scan, "data", opened.scan)
    tilt = opened.scan.tilt[0] if hasattr(opened.scan, "tilt") else opened.tilt[0]
    found = []
    for position in np.asarray(scan)[INDEX]:
        shift = opened.object.sampling.get_subpx_shifts(position, opened.probe.data.shape)
        patches = opened.object.sampling.get_view_at_pos(opened.object.data, position, opened.probe.data.shape)
        wave = ifft2(fft2(opened.probe.data) * fourier_shift_filter(ky, kx, shift))
        for index, patch in enumerate(patches):
            wave = wave * patch
            if index < len(patches) - 1:
                kernel = fresnel_propagator(ky, kx, opened.wavelength, opened.object.thicknesses[index], tuple(tilt[::-1]))
                wave = ifft2(fft2(wave) * kernel)
        found.append(np.fft.fftshift(abs2(fft2(wave)).sum(0)))
    return np.array(found)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape and abs(ours - theirs).max() < 1e-3 * theirs.max()
