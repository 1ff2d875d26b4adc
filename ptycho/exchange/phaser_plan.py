"""phaser's plans (YAML) as a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.exchange.imported import Taken
from ptycho.exchange.recipe_text import Draft, RecipeText
from ptycho.geometry import voltage_kV_of

#: Haider's names in phaser: (C_nm, C_nm / value).
_HAIDER = {
    "c1": ("C10", 1), "a1": ("C12", 1), "b2": ("C21", 3), "a2": ("C23", 1), "c3": ("C30", 1), "s3": ("C32", 4), "a3": ("C34", 1),
    "b4": ("C41", 4), "d4": ("C43", 4), "a4": ("C45", 1), "c5": ("C50", 1),
}  # fmt: skip
#: phaser's own way of working.
_NOT_NEEDED = ("name", "backend", "device", "dtype", "file_type", "version", "raw_data.type", "init.scan.type", "init.probe.type", "init.tilt.type")


def is_phaser_plan(tree: object) -> bool:
    """Whether these are a plan of phaser."""
    return isinstance(tree, dict) and "engines" in tree and ("raw_data" in tree or "init" in tree)


def phaser_recipe(tree: Mapping[str, Any], path: Path) -> RecipeText:
    """The recipe of a plan: its data, optics, scan and slices, and what its last engine models."""
    engines = tree.get("engines")
    last = engines[-1] if isinstance(engines, list) and engines and isinstance(engines[-1], dict) else {}
    taken, draft = Taken({**{key: value for key, value in tree.items() if key != "engines"}, "engine": last}), Draft("phaser", path)
    for name in _NOT_NEEDED:
        taken.get(name)
    _data(taken, draft)
    _optics(taken, draft)
    _scan(taken, draft)
    _model(taken, draft)
    epochs, group = taken.number("engine.niter"), taken.number("engine.grouping")
    if isinstance(engines, list) and engines:
        ran = f"{epochs or 10:g} iterations in groups of {group or 64:g}"
        draft.notes.append(f"the last of phaser's {len(engines)} engines ran {ran}; without [[solve]] this ends when nothing more is gained")
    state = taken.get("init.state")
    if state is not None:
        draft.warnings.append(f"{path.name}: it starts from {state}: import that file too, and name the result.h5 in probe_file and object_file")
    return draft.done(taken)


def _data(taken: Taken, draft: Draft) -> None:
    given, key = taken.get("raw_data.path"), taken.get("raw_data.key")
    if isinstance(given, str):
        draft.add("data", "path", Path(given).as_posix() + (f"::{str(key).replace('.', '/')}" if key else ""), "raw_data.path; relative to this file")
    draft.add("data", "adu_per_electron", taken.number("raw_data.adu"), "raw_data.adu")
    flips = taken.numbers("raw_data.det_flips", (3,))
    if flips is not None:
        for name, value in zip(("flip_rows", "flip_columns", "transpose"), flips, strict=True):
            draft.add("data", name, bool(value), "raw_data.det_flips; check with ptycho calibrate")


def _optics(taken: Taken, draft: Draft) -> None:
    voltage, wavelength = taken.number("raw_data.kv"), taken.number("raw_data.wavelength") or taken.number("wavelength")
    if voltage is None and wavelength:
        voltage = round(voltage_kV_of(wavelength), 6)
    draft.add("microscope", "voltage_kV", voltage, "kv or wavelength")
    draft.add("microscope", "semiangle_mrad", taken.number("init.probe.conv_angle"), "init.probe.conv_angle")
    draft.add("detector", "pixel_mrad", taken.number("raw_data.diff_step"), "raw_data.diff_step")
    terms, unknown = _aberrations(taken.get("init.probe.aberrations", []))
    defocus = taken.number("init.probe.defocus")
    if defocus is not None:
        terms["C10"] = terms.get("C10", 0.0) + defocus
    if unknown:
        draft.warnings.append(f"{draft.path.name}: aberrations that are not understood: {', '.join(unknown)[:120]}")
    draft.aberrations(terms, "init.probe; defocus is positive for overfocus there")


def _aberrations(given: Any) -> tuple[dict[str, float], list[str]]:
    """By our names, and what is not understood."""
    terms: dict[str, float] = {}
    unknown = []
    for item in given if isinstance(given, list) else []:
        pairs = _named(item)
        if not pairs:
            unknown.append(str(item))
        for name, value in pairs:
            terms[name] = abs(value) if name[2] != "0" else value.real
            if name[2] != "0" and value.imag:
                terms[f"phi{name[1:]}_deg"] = float(np.degrees(np.angle(value))) / int(name[2])
    return terms, unknown


def _named(item: Any) -> list[tuple[str, complex]]:
    """(our name, a + i b in Å) of one entry: {n, m, ...} or {Haider's name: value}."""
    if not isinstance(item, dict):
        return []
    if "n" in item and "m" in item:
        value = _complex(item)
        return [] if value is None else [(f"C{item['n']}{item['m']}", value)]
    found = []
    for name, given in item.items():
        value = _complex(given)
        if str(name).lower() in _HAIDER and value is not None:
            ours, factor = _HAIDER[str(name).lower()]
            found.append((ours, factor * value))
    return found


def _complex(given: Any) -> complex | None:
    """A number, {a, b}, {mag, angle in degrees} or {val}. phaser's angle is m times Krivanek's."""
    if isinstance(given, dict):
        values = {key: value for key, value in given.items() if isinstance(value, (int, float))}
        if "a" in values:
            return complex(values["a"], values.get("b", 0.0))
        if "mag" in values:
            return complex(values["mag"] * np.exp(1j * np.radians(values.get("angle", 0.0))))
        return complex(values["val"]) if "val" in values else None
    return complex(given) if isinstance(given, (int, float)) and not isinstance(given, bool) else None


def _scan(taken: Taken, draft: Draft) -> None:
    shape = taken.numbers("init.scan.shape", (2,))
    if shape is not None:
        draft.add("scan", "shape", shape.astype(int), "init.scan.shape")
    step = taken.number("init.scan.step_size")
    pair = taken.numbers("init.scan.step_size", (2,))
    draft.add("scan", "step_A", step if step is not None else pair, "init.scan.step_size")
    rotation = taken.number("init.scan.rotation")
    if rotation is not None:
        draft.add("scan", "rotation_deg", -float(rotation) + 0.0, "init.scan.rotation, which turns the other way there")
    affine = taken.numbers("init.scan.affine", (2, 2))
    if affine is not None:
        draft.add("scan", "affine", affine, "init.scan.affine")
        if rotation:
            draft.warnings.append(f"{draft.path.name}: phaser applies its affine map after the rotation, here it is before; check the two")


def _model(taken: Taken, draft: Draft) -> None:
    modes = taken.number("engine.probe_modes")
    draft.add("model", "probe_modes", None if modes is None else int(modes), "probe_modes of the last engine")
    place = "engine.slices" if taken.get("engine.slices") else "slices"
    count, total, each = (taken.number(f"{place}.{name}") for name in ("n", "total_thickness", "slice_thickness"))
    listed = taken.numbers(f"{place}.thicknesses", (-1,))
    if listed is not None:
        draft.add("model", "slices", len(listed), f"{place}.thicknesses")
        draft.add("model", "slice_thickness_A", listed, f"{place}.thicknesses")
    elif count:
        draft.add("model", "slices", int(count), f"{place}.n")
        draft.add("model", "slice_thickness_A", each if each is not None else None if total is None else total / count, place)
    tilt = taken.numbers("init.tilt.tilt", (2,))
    draft.add("model", "tilt_mrad", tilt, "init.tilt.tilt (y, x)")
    limit = taken.number("engine.bwlim_frac")
    draft.add("model", "band_limit", None if limit is None else min(float(limit), 1.0), "bwlim_frac of the last engine")
    learned = [ours for theirs, ours in (("update_positions", "positions"), ("update_tilt", "tilt")) if taken.get(f"engine.{theirs}")]
    if learned:
        draft.add("model", "refine", learned, "update_positions, update_tilt of the last engine")
    for name in ("type", "save", "save_images", "save_options", "update_probe", "update_object", "shuffle_groups", "compact", "calc_error"):
        taken.get(f"engine.{name}")
