"""What the file and the user say, in one dictionary: the user's word counts, and differences are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import RecipeError
from ptycho.frames import UNITS, Header, Quantity
from ptycho.io import empad
from ptycho.io.checks import LIMITS, check_number, check_step
from ptycho.io.gain import counts_per_electron, find_adu_per_electron

_TOLD = ("voltage_kV", "semiangle_mrad", "defocus_A", "step_A", "pixel_invA", "pixel_mrad", "adu_per_electron")


def calibration_of(header: Header, user: dict[str, Quantity], warnings: list[str]) -> dict[str, Quantity]:
    """The file's usable values with the user's in their place."""
    name = header.path.name
    calibration = {key: q for key, q in header.metadata.items() if key != "scan_shape" and _usable(key, q, warnings)}
    user = dict(user)
    for key in user.keys() & calibration.keys() & UNITS.keys():
        said = f"{calibration[key].source} says {_shown(calibration[key])}"
        user[key] = replace(user[key], source=f"user ({said})")
        if key in _TOLD and _differ(user[key].value, calibration[key].value):
            warnings.append(f"{key} = {_shown(user[key])} is used; {said}")
    if {"pixel_invA", "pixel_mrad"} & user.keys():
        calibration = {key: q for key, q in calibration.items() if key not in ("pixel_invA", "pixel_mrad")}
    if "aberrations" in user:
        calibration.pop("defocus_A", None)  # the file's defocus is not the C10 of the list that was given
    for key in _TOLD:
        if key in calibration and key not in user and not calibration[key].trusted:
            warnings.append(f"{key} = {_shown(calibration[key])} is a guess ({calibration[key].source}); check it")
    rotation = calibration.get("rotation_deg")
    if rotation is None or not rotation.trusted:
        said = "" if rotation is None else f"; {rotation.source} says {rotation.value:g}, which is not applied"
        calibration["rotation_deg"] = Quantity(0.0, "°", f"default: 0{said}")
        if rotation is not None and abs(rotation.value) > 0.01 and "rotation_deg" not in user:
            warnings.append(f"{name}: a scan rotation of {rotation.value:.2f}° is recorded and not applied; give rotation_deg")
    return {**calibration, **user}


def _usable(key: str, quantity: Quantity, warnings: list[str]) -> bool:
    """False, with a warning, for a value of the file that cannot be true (a voltage of 0 when the gun was off)."""
    try:
        if key in LIMITS:
            check_number(key, quantity.value)
        elif key == "step_A":
            check_step(quantity.value)
    except RecipeError:
        warnings.append(f"{key} = {quantity.value} from {quantity.source} is not used: it is not possible")
        return False
    return True


def _differ(a: Any, b: Any) -> bool:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # the file's may be 0, or no value at all
        return bool(np.any(np.abs(np.divide(a, b) - 1) > 0.05))


def _shown(quantity: Quantity) -> str:
    values = np.atleast_1d(quantity.value)
    return f"{' x '.join(f'{v:.4g}' for v in dict.fromkeys(values.tolist()))} {quantity.unit}"


def default_flip(header: Header) -> Quantity:
    """Whether this detector's rows are upside down."""
    if not header.flip_rows:
        return Quantity(False, "", "default: rows as stored")
    who = "EMPAD" if header.format == "empad" else "this file"
    return Quantity(True, "", f"default: {who} stores rows upside down")


def gain_of(header: Header, sample: NDArray[Any], calibration: dict[str, Quantity], warnings: list[str]) -> Quantity:
    """ADU per electron from a sample of stored frames, else what is typical of the detector."""
    if header.dtype.kind in "biu" and header.dtype.itemsize <= 4 and header.format != "empad":
        return _counts(sample, warnings)
    found = find_adu_per_electron(sample)
    voltage = calibration["voltage_kV"].value if header.format == "empad" and "voltage_kV" in calibration else None
    typical = None if voltage is None else empad.typical_adu_per_electron(voltage)
    if found is not None:
        if typical is not None and found[0] != 1 and not 0.6 < found[0] / typical < 1.6:
            warnings.append(f"adu_per_electron = {found[0]:.4g} ({found[1]}); an EMPAD has about {typical:.0f} at {voltage:g} kV: check it")
        return Quantity(found[0], "ADU", f"estimate: {found[1]}", trusted=False)
    if typical is not None:
        warnings.append(f"adu_per_electron = {typical:.0f} is only typical of an EMPAD at {voltage:g} kV; give adu_per_electron when you know it")
        return Quantity(typical, "ADU", f"default: typical of an EMPAD at {voltage:g} kV", trusted=False)
    noise = counts_per_electron(sample)
    if noise is not None and noise > 0:
        warnings.append(f"adu_per_electron = {noise:.3g} is estimated from the noise of the dark field; give adu_per_electron when you know it")
        return Quantity(noise, "ADU", "estimate: noise in the dark field", trusted=False)
    warnings.append("adu_per_electron is not known and taken as 1: the dose may be wrong; give adu_per_electron")
    return Quantity(1.0, "ADU", "default: not known", trusted=False)


def _counts(sample: NDArray[Any], warnings: list[str]) -> Quantity:
    """Counts are electrons, unless their noise shows that one electron makes several (charge that spreads over neighbouring pixels)."""
    noise = counts_per_electron(sample)
    if noise is None or noise < 2:
        return Quantity(1.0, "ADU", "default: counts are integers")
    warnings.append(f"one electron makes about {noise:.2g} counts, by the noise in the dark field; give adu_per_electron = 1 if counts are electrons")
    return Quantity(noise, "ADU", "estimate: noise in the dark field", trusted=False)
