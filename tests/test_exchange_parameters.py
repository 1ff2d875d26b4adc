"""Parameters of PtyRAD and phaser become recipes that say the same experiment, and what has no place is told."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run

from ptycho.aberrations import parse_aberrations
from ptycho.errors import DataError
from ptycho.exchange import import_run
from ptycho.exchange.ptyrad_params import scan_affine
from ptycho.recipe import Recipe

PTYRAD = """
init_params:
    probe_kv               : 80 # [kV]
    probe_conv_angle       : 24.9
    probe_aberrations      : {'C10': -350, 'C12': 20, 'phi12': 30}
    meas_Npix              : 128
    pos_N_scan_slow        : 48
    pos_N_scan_fast        : 40
    pos_scan_step_size     : 0.7
    meas_calibration       : {'mode': 'kMax', 'value': 2.0}
    probe_pmode_max        : 6
    obj_Nlayer             : 4
    obj_slice_thickness    : 2
    meas_flipT             : [1,0,0]
    pos_scan_affine        : null
    meas_crop              : [[0, 32], null, [4, 124], [4, 124]]
    meas_pad               : {'mode': 'on_the_fly', 'target_Npix': 160}
    tilt_params            : {'tilt_type': 'all', 'init_tilts': [[1.5, -2]]}
    meas_params            : {'path': 'data/scan.h5', 'key': 'entry/data'}
model_params:
    detector_blur_std: 0.8
    update_params: {'probe_pos_shifts': {'start_iter': 1, 'lr': 5.0e-4}, 'obj_tilts': {'start_iter': 1, 'lr': 0}}
loss_params:
    loss_sparse: {'state': true, 'weight': 0.1, 'ln_order': 1}
constraint_params:
    obj_zblur     : {'start_iter': 1, 'std': 1}
a_new_section: 3
recon_params:
    NITER: 200
    BATCH_SIZE: {'size': 32}
"""
PHASER = """---
name: "mos2"
backend: jax
raw_data:
  type: manual
  path: "sample_data/scan.raw"
  kv: 80.0
  diff_step: 1.4
  adu: 148.0
init:
  probe: {type: focused, conv_angle: 24.9, defocus: 200.0, aberrations: [{n: 1, m: 2, mag: 30.0, angle: 40.0}, {b2: 10.0}]}
  scan: {type: raster, shape: [64, 32], step_size: [0.5, 0.6], rotation: 12.0}
  tilt: {type: global, tilt: [1.0, 2.0]}
post_load:
 - type: poisson
slices: {n: 10, total_thickness: 200}
engines:
 - {type: gradient, probe_modes: 2, niter: 5}
 - {type: conventional, probe_modes: 4, bwlim_frac: 1.0, niter: 100, grouping: 128, update_positions: {after: 5}, noise_model: {type: amplitude}}
"""


def imported(folder: Path, text: str, name: str = "params.yaml") -> tuple[dict[str, Any], tuple[str, ...]]:
    """The recipe as a tree, after it has passed the recipe's own validation, and the warnings."""
    if name.endswith(("yaml", "yml")):
        pytest.importorskip("yaml", reason="PyYAML is not installed")
    path = folder / name
    path.write_text(text)
    found = import_run(path)
    assert found.result is None and found.recipe is not None
    tree = tomllib.loads(found.recipe)
    Recipe.parse({**tree, "data": {"path": "scan", **tree["data"]}})
    return tree, found.warnings


def test_ptyrad_parameters_are_a_recipe(tmp_path: Path):
    tree, warnings = imported(tmp_path, PTYRAD)
    assert tree["data"] == {"path": "data/scan.h5::entry/data", "flip_rows": True, "scan_region": [0, 32, 0, 40], "detector_crop": [4, 124, 4, 124]}
    assert tree["microscope"] == {"voltage_kV": 80, "semiangle_mrad": 24.9, "aberrations": {"C10": -350.0, "C12": 20.0, "phi12_deg": 30.0}}
    assert tree["scan"] == {"shape": [48, 40], "step_A": 0.7}
    assert tree["detector"] == {"pixel_invA": 2 * 2.0 / 128}
    assert tree["model"] == {
        "probe_modes": 6, "slices": 4, "slice_thickness_A": 2, "tilt_mrad": [1.5, -2.0], "detector_blur_px": 0.8, "pad": 20, "refine": ["positions"],
    }  # fmt: skip
    assert len(warnings) == 1 and all(name in warnings[0] for name in ("loss_params", "constraint_params", "a_new_section"))
    assert not any(name in warnings[0] for name in ("probe_kv", "NITER", "meas_flipT"))


def test_the_sources_stand_in_the_recipe(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"init_params": {"probe_kv": 200, "probe_aberrations": {"defocus": 100}}}))
    found = import_run(path)
    assert "voltage_kV = 200              # PtyRAD: probe_kv" in found.recipe and "defocus_A = 100.0" in found.recipe and not found.warnings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"C10": 200}, {"C10": 200}),
        ({"defocus": 200, "Cs": 1e4}, {"C10": -200, "C30": 1e4}),
        ({"C10": 0, "C12a": 3, "C12b": 4}, {"C12": 5, "phi12_deg": np.degrees(np.arctan2(4, 3)) / 2}),
        ({"A1": 20, "A1phi": 30, "B2": 10, "S3": 2}, {"C12": 20, "phi12_deg": 30, "C21": 30, "C32": 8}),
    ],
)
def test_aberrations_of_ptyrad(tmp_path: Path, given: dict[str, float], expected: dict[str, float]):
    tree, _ = imported(tmp_path, json.dumps({"init_params": {"probe_kv": 80, "probe_aberrations": given}}), "a.json")
    microscope = tree["microscope"]
    found = parse_aberrations(microscope.get("aberrations", {"defocus_A": microscope.get("defocus_A", 0.0)}))
    for one, two in zip([t for t in found if t.magnitude_A], parse_aberrations(expected), strict=True):
        assert (one.n, one.m, one.a, one.b) == pytest.approx((two.n, two.m, two.a, two.b), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("mode", ["dk", "dx", "kMax", "da", "angleMax", "RBF", "n_alpha"])
def test_every_calibration_of_ptyrad_is_the_same_pixel(tmp_path: Path, mode: str):
    # 0.0333 1/Å at 80 kV are 1.3905 mrad; all say the same.
    angle = 0.0333 * 41.7572
    values = {"dk": 0.0333, "dx": 1 / (128 * 0.0333), "kMax": 64 * 0.0333, "da": angle, "angleMax": 64 * angle, "RBF": 24.9 / angle}
    values["n_alpha"] = 64 * angle / 24.9
    init = {"probe_kv": 80, "probe_conv_angle": 24.9, "meas_Npix": 128, "meas_calibration": {"mode": mode, "value": values[mode]}}
    tree, _ = imported(tmp_path, json.dumps({"init_params": init}), "a.json")
    assert tree["detector"] == {
        ("pixel_invA" if mode in ("dk", "dx", "kMax") else "pixel_mrad"): pytest.approx(0.0333 if mode in ("dk", "dx", "kMax") else angle, rel=1e-5)
    }


def test_flips_and_affine_maps_of_ptyrad():
    """PtyRAD's rows of positions times its four matrices; its flips reverse axes of the raster (slow, fast, yx), the last one the pair."""
    raster = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.5, -0.5, 0.5, 1.5], indexing="ij"), -1)
    scale, asymmetry, rotation, shear = 1.1, 0.04, 12.0, 3.0
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    stretch = scale * np.diag([1 + asymmetry / 2, 1 - asymmetry / 2])
    matrix = stretch @ np.array([[c, s], [-s, c]]) @ np.array([[1, 0], [np.tan(np.radians(shear)), 1]])
    for flips in ([0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]):
        turned = np.flip(raster, np.nonzero(flips)[0]) if any(flips) else raster
        expected = turned.reshape(-1, 2) @ matrix
        found = raster.reshape(-1, 2) @ scan_affine(np.array([scale, asymmetry, rotation, shear]), np.array(flips, float)).T
        np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=str(flips))


def test_a_transposed_detector_of_ptyrad(tmp_path: Path):
    """PtyRAD flips before it transposes; the recipe transposes before it flips."""
    tree, _ = imported(tmp_path, json.dumps({"init_params": {"meas_Npix": 4, "meas_flipT": [1, 0, 1]}}), "a.json")
    pattern = np.arange(16).reshape(4, 4)
    theirs = pattern[::-1].T
    ours = pattern.T if tree["data"].get("transpose") else pattern
    ours = ours[::-1] if tree["data"].get("flip_rows") else ours
    ours = ours[:, ::-1] if tree["data"].get("flip_columns") else ours
    np.testing.assert_array_equal(ours, theirs)


def test_a_plan_of_phaser_is_a_recipe(tmp_path: Path):
    tree, warnings = imported(tmp_path, PHASER, "plan.yml")
    assert tree["data"] == {"path": "sample_data/scan.raw", "adu_per_electron": 148.0}
    assert tree["microscope"]["semiangle_mrad"] == 24.9
    # Overfocus is positive there; its angle is that of the complex number, twice Krivanek's for C12.
    assert tree["microscope"]["aberrations"] == pytest.approx({"C10": 200.0, "C12": 30.0, "phi12_deg": 20.0, "C21": 30.0})
    assert tree["scan"] == {"shape": [64, 32], "step_A": [0.5, 0.6], "rotation_deg": -12.0}
    assert tree["detector"] == {"pixel_mrad": 1.4}
    expected = {"probe_modes": 4, "slices": 10, "slice_thickness_A": 20.0, "tilt_mrad": [1.0, 2.0], "band_limit": 1.0, "refine": ["positions"]}
    assert tree["model"] == expected
    assert len(warnings) == 1 and "post_load" in warnings[0] and "noise_model" in warnings[0]


def test_parameters_on_the_command_line(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"init_params": {"probe_kv": 80, "constraint": 1}}))
    out = run("import", tmp_path / "a.json", "-o", tmp_path / "new")
    assert out.code == 0 and "not taken over: init_params.constraint" in out.err
    assert (tmp_path / "new" / "recipe.toml").exists() and not (tmp_path / "new" / "result.h5").exists()
    (tmp_path / "b.json").write_text(json.dumps({"init_params": {"obj_Nlayer": -3}}))
    out = run("import", tmp_path / "b.json", "-o", tmp_path / "other")
    assert out.code == 3 and "slices = -3" in out.err and len(out.err.splitlines()) == 1 and not (tmp_path / "other" / "recipe.toml").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "a: [1, 2"), ("a.yaml", "a: &b [1]\nc: *b\n"), ("a.yaml", "!!python/object/apply:os.system ['true']"), ("a.yaml", "- 1\n"),
        ("a.json", "{"), ("a.json", "[1]"), ("a.toml", "a = "), ("a.yaml", "\x00\x01"), ("a.json", "[" * 100_000), ("a.json", '{"init": 1}'),
    ],
)  # fmt: skip
def test_bad_parameters_are_one_sentence(tmp_path: Path, name: str, text: str):
    if name.endswith("yaml"):
        pytest.importorskip("yaml", reason="PyYAML is not installed")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        import_run(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    "init",
    [
        {"probe_kv": "eighty", "probe_aberrations": [1], "meas_flipT": [1], "meas_crop": 3, "tilt_params": 4, "meas_params": {"path": 3}},
        {"probe_aberrations": {"C99": 1, "C12": "x", "phi": 2, 3: 4}, "meas_calibration": {"mode": "dk", "value": None}, "meas_pad": []},
        {"pos_scan_affine": [1, "a", 2, 3], "meas_crop": [1, 2, 3, 4], "pos_N_scan_slow": 1.5, "meas_params": None},
    ],
)
def test_values_of_the_wrong_kind_do_not_stop_it(tmp_path: Path, init: dict[str, Any]):
    (tmp_path / "a.json").write_text(json.dumps({"init_params": init, "model_params": 3, "recon_params": []}))
    assert import_run(tmp_path / "a.json").recipe is not None
