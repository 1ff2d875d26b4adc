"""PtyRAD's parameters (YAML, JSON, TOML, or in a model file) as a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.exchange.imported import Taken
from ptycho.exchange.recipe_text import Draft, RecipeText, krivanek

#: Haider's names in PtyRAD: (C_nm, C_nm / value). B4 and D4 have 4 there, where the literature has 5.
_HAIDER = {
    "C1": ("C10", 1), "A1": ("C12", 1), "B2": ("C21", 3), "A2": ("C23", 1), "C3": ("C30", 1), "S3": ("C32", 4), "A3": ("C34", 1),
    "B4": ("C41", 4), "D4": ("C43", 4), "A4": ("C45", 1), "C5": ("C50", 1), "S5": ("C52", 6), "R5": ("C54", 6), "A5": ("C56", 1),
    "defocus": ("C10", -1), "Cs": ("C30", 1),
}  # fmt: skip
#: What follows from the data file or from other keys, or belongs to PtyRAD's own way of working: nothing is lost without it.
_NOT_NEEDED = (
    "init_params.pos_N_scans", "init_params.probe_illum_type", "init_params.meas_normalization", "init_params.meas_remove_neg_values",
    "init_params.probe_normalization", "init_params.meas_source", "init_params.meas_export", "init_params.probe_pmode_init_pows",
    "init_params.obj_omode_init_occu", "init_params.pos_scan_rand_std", "init_params.meas_permute", "init_params.meas_reshape",
    "recon_params", "hypertune_params", "params_path", "model_params.optimizer_params", "model_params.scheduler_params", "model_params.preload_data",
    "init_params.tilt_source", "init_params.meas_pad.mode", "init_params.meas_pad.padding_type", "init_params.meas_pad.value",
    "init_params.meas_pad.threshold",
)  # fmt: skip


def is_ptyrad_params(tree: object) -> bool:
    """Whether these are parameters of PtyRAD."""
    return isinstance(tree, dict) and "init_params" in tree


def ptyrad_recipe(tree: Mapping[str, Any], path: Path, result_file: str | None = None) -> RecipeText:
    """The recipe of PtyRAD's parameters; ``result_file`` is where the result of the same file will lie, to start from it."""
    taken, draft = Taken(tree), Draft("PtyRAD", path)
    for name in _NOT_NEEDED:
        taken.get(name)
    _data(taken, draft)
    _microscope(taken, draft)
    _scan(taken, draft)
    _detector(taken, draft)
    _model(taken, draft)
    draft.start(result_file)
    epochs, batch = taken.number("recon_params.NITER"), taken.number("recon_params.BATCH_SIZE.size")
    if epochs is not None:
        draft.notes.append(f"PtyRAD ran {epochs:g} iterations in batches of {batch or 32:g}; without [[solve]] this ends when nothing more is gained")
    return draft.done(taken)


def _data(taken: Taken, draft: Draft) -> None:
    given, key = taken.get("init_params.meas_params.path") or taken.get("init_params.meas_params"), taken.get("init_params.meas_params.key")
    if isinstance(given, str) and given:
        draft.add("data", "path", Path(given).as_posix() + (f"::{key}" if key else ""), "meas_params; relative to this file")
    _layout(taken, draft)
    flips = taken.numbers("init_params.meas_flipT", (3,))
    if flips is not None:
        up, left, transpose = (bool(v) for v in flips)
        # PtyRAD turns over and then transposes; here it is the other way round.
        rows, columns = (left, up) if transpose else (up, left)
        for name, value in (("flip_rows", rows), ("flip_columns", columns), ("transpose", transpose)):
            if value or name == "flip_rows":
                draft.add("data", name, value, f"meas_flipT = {[int(v) for v in flips]}")
    elif given is not None:
        draft.add("data", "flip_rows", False, "no meas_flipT")
    _crop(taken, draft)


def _layout(taken: Taken, draft: Draft) -> None:
    shape, offset, gap = (taken.get(f"init_params.meas_params.{name}") for name in ("shape", "offset", "gap"))
    if isinstance(shape, list) and len(shape) >= 2 and (offset or gap is not None):
        layout = {"dtype": "<f4", "frame_shape": shape[-2:], "offset_bytes": int(offset or 0), "after_bytes": int(gap or 0)}
        draft.add("data", "layout", layout, "shape, offset and gap of meas_params")


def _crop(taken: Taken, draft: Draft) -> None:
    crop = taken.get("init_params.meas_crop")
    if not isinstance(crop, list) or len(crop) != 4:
        return
    shape = [taken.number(f"init_params.{name}") for name in ("pos_N_scan_slow", "pos_N_scan_fast", "meas_Npix", "meas_Npix")]
    ends = [list(pair) if isinstance(pair, list) and len(pair) == 2 else [0, size] for pair, size in zip(crop, shape, strict=True)]
    if any(crop[:2]) and all(isinstance(v, int) for pair in ends[:2] for v in pair):
        draft.add("data", "scan_region", [*ends[0], *ends[1]], "meas_crop")
    if any(crop[2:]) and all(isinstance(v, int) for pair in ends[2:] for v in pair):
        draft.add("data", "detector_crop", [*ends[2], *ends[3]], "meas_crop")


def _cropped_size(taken: Taken) -> float | None:
    """Side of a pattern after meas_crop."""
    crop = taken.get("init_params.meas_crop")
    ends = crop[2] if isinstance(crop, list) and len(crop) == 4 else None
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int) for end in ends):
        return float(ends[1] - ends[0])
    return taken.number("init_params.meas_Npix")


def _microscope(taken: Taken, draft: Draft) -> None:
    draft.add("microscope", "voltage_kV", taken.number("init_params.probe_kv"), "probe_kv")
    draft.add("microscope", "semiangle_mrad", taken.number("init_params.probe_conv_angle"), "probe_conv_angle")
    given = taken.get("init_params.probe_aberrations", {})
    old = taken.number("init_params.probe_defocus")  # of versions before 1.0
    terms, unknown = _aberrations(given if isinstance(given, Mapping) else {})
    if old is not None and "C10" not in terms:
        terms["C10"] = -old
    if unknown:
        draft.warnings.append(f"{draft.path.name}: aberrations that are not known here: {', '.join(unknown)}")
    draft.aberrations(terms, "probe_aberrations")


def _aberrations(given: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """By our names, and the names that nobody knows. PtyRAD takes Krivanek's, polar or Cartesian, and Haider's."""
    terms: dict[str, float] = {}
    cartesian: dict[str, list[float]] = {}
    unknown = []
    for name, value in given.items():
        base, factor = _HAIDER.get(name.removesuffix("phi"), (name, 1)) if name not in _HAIDER else _HAIDER[name]
        order = krivanek(f"C{name[3:5]}") if name.startswith("phi") else krivanek(base)
        if order is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            unknown.append(str(name))
        elif name.startswith("phi") or name.endswith("phi"):
            terms[f"phi{order[0]}{order[1]}_deg"] = float(value)
        elif name[-1] in "ab" and order[1]:
            cartesian.setdefault(base[:3], [0.0, 0.0])["ab".index(name[-1])] = float(value)
        else:
            terms[base] = factor * float(value)
    for name, (a, b) in cartesian.items():
        terms[name], terms[f"phi{name[1:]}_deg"] = math.hypot(a, b), math.degrees(math.atan2(b, a)) / int(name[2])
    return {name: value for name, value in terms.items() if not name.startswith("phi") or f"C{name[3:5]}" in terms}, unknown


def _scan(taken: Taken, draft: Draft) -> None:
    slow, fast = (taken.number(f"init_params.pos_N_scan_{axis}") for axis in ("slow", "fast"))
    if slow is not None and fast is not None:
        draft.add("scan", "shape", [int(slow), int(fast)], "pos_N_scan_slow, pos_N_scan_fast")
    draft.add("scan", "step_A", taken.number("init_params.pos_scan_step_size"), "pos_scan_step_size")
    affine = taken.numbers("init_params.pos_scan_affine", (4,))
    flips = taken.numbers("init_params.pos_scan_flipT", (3,))
    if affine is not None or (flips is not None and flips.any()):
        draft.add("scan", "affine", scan_affine(affine, flips), "pos_scan_affine [scale, asymmetry, rotation, shear] and pos_scan_flipT, on (y, x)")


def scan_affine(affine: NDArray[np.float64] | None, flips: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The 2 x 2 map of (y, x) columns that PtyRAD's affine (scale, asymmetry, rotation and shear in degrees) and flips make.

    PtyRAD multiplies rows of positions from the left, by scale, asymmetry, rotation and shear in this order; flips come before.
    """
    total = np.eye(2)
    if flips is not None:
        total = np.diag([-1.0 if flip else 1.0 for flip in flips[:2]])
        total = total[::-1] if flips[2] else total
    if affine is not None:
        scale, asymmetry, rotation, shear = affine
        c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        stretch = np.diag([1 + asymmetry / 2, 1 - asymmetry / 2])
        rows = scale * stretch @ np.array([[c, s], [-s, c]]) @ np.array([[1.0, 0.0], [math.tan(math.radians(shear)), 1.0]])
        total = rows.T @ total
    return total


def _detector(taken: Taken, draft: Draft) -> None:
    mode, value = taken.get("init_params.meas_calibration.mode"), taken.number("init_params.meas_calibration.value")
    size, angle = taken.number("init_params.meas_Npix"), taken.number("init_params.probe_conv_angle")
    if mode is None or value is None or size is None:
        return
    # PtyRAD's pixel is 1 / (N dx) everywhere.
    frequencies = {"dk": value, "dx": 1 / (size * value), "kMax": 2 * value / size}
    angles = {"da": value, "angleMax": 2 * value / size}
    if angle:
        angles |= {"RBF": angle / value, "n_alpha": 2 * value * angle / size}
    if mode in frequencies:
        draft.add("detector", "pixel_invA", frequencies[mode], f"meas_calibration {mode} = {value:g}")
    elif mode in angles:
        draft.add("detector", "pixel_mrad", angles[mode], f"meas_calibration {mode} = {value:g}")


def _model(taken: Taken, draft: Draft) -> None:
    names = {"probe_modes": "probe_pmode_max", "object_states": "obj_omode_max", "slices": "obj_Nlayer", "seed": "random_seed"}
    for key, name in names.items():
        value = taken.number(f"init_params.{name}")
        draft.add("model", key, None if value is None else int(value), name)
    draft.add("model", "slice_thickness_A", taken.number("init_params.obj_slice_thickness"), "obj_slice_thickness")
    tilt = taken.numbers("init_params.tilt_params.init_tilts", (-1, 2))
    if tilt is not None and tilt.any():
        draft.add("model", "tilt_mrad", tilt.mean(0), "tilt_params.init_tilts")
    if taken.get("init_params.tilt_params.tilt_type") == "each":
        draft.add("model", "tilt_per_position", True, "tilt_params.tilt_type")
    blur = taken.number("model_params.detector_blur_std")
    if blur:
        draft.add("model", "detector_blur_px", float(blur), "detector_blur_std")
    target, size = taken.number("init_params.meas_pad.target_Npix"), _cropped_size(taken)
    if target and size and target > size:
        draft.add("model", "pad", int(target - size) // 2, "meas_pad.target_Npix")
    refined = {"probe_pos_shifts": "positions", "obj_tilts": "tilt", "slice_thickness": "thickness"}
    rates = {name: taken.number(f"model_params.update_params.{name}.lr") for name in refined}
    learned = [ours for theirs, ours in refined.items() if rates[theirs]]
    for name in rates:
        taken.get(f"model_params.update_params.{name}")
    if learned:
        draft.add("model", "refine", learned, "update_params")
