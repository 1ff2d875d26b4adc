"""Aberration coefficients and their names.

The aberration function is (Krivanek, Dellby & Lupini, Ultramicroscopy 78 (1999) 1)

    chi(alpha, phi) = (2 pi / lambda) * sum_nm  alpha^(n+1) / (n+1) * C_nm cos(m (phi - phi_nm))

with C_nm in Å, phi_nm in degrees from the detector's x axis towards its y axis. ``C10 > 0`` is overfocus; the key
``defocus_A`` is ``-C10``, so that positive defocus is underfocus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ptycho.errors import RecipeError

#: (n, m) of every coefficient up to the fifth order.
ORDERS: tuple[tuple[int, int], ...] = (
    (1, 0), (1, 2),
    (2, 1), (2, 3),
    (3, 0), (3, 2), (3, 4),
    (4, 1), (4, 3), (4, 5),
    (5, 0), (5, 2), (5, 4), (5, 6),
)  # fmt: skip

#: Haider's name -> (n, m, C_nm / Haider's value): the axial coma, star and lobe terms are C_nm / (n + 1)
#: (Haider, Uhlemann & Zach, Ultramicroscopy 81 (2000) 163).
HAIDER: Mapping[str, tuple[int, int, float]] = {
    "C1": (1, 0, 1.0), "A1": (1, 2, 1.0),
    "B2": (2, 1, 3.0), "A2": (2, 3, 1.0),
    "C3": (3, 0, 1.0), "S3": (3, 2, 4.0), "A3": (3, 4, 1.0),
    "B4": (4, 1, 5.0), "D4": (4, 3, 5.0), "A4": (4, 5, 1.0),
    "C5": (5, 0, 1.0), "S5": (5, 2, 6.0), "R5": (5, 4, 6.0), "A5": (5, 6, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Aberration:
    """One term: radial power ``n + 1``, azimuthal symmetry ``m``, Cartesian coefficients in Å.

    ``a = C_nm cos(m phi_nm)`` and ``b = C_nm sin(m phi_nm)``; for m = 0 only ``a`` has a meaning.
    """

    n: int
    m: int
    a: float
    b: float = 0.0

    @property
    def name(self) -> str:
        """Krivanek's name, for example ``C12``."""
        return f"C{self.n}{self.m}"

    @property
    def magnitude_A(self) -> float:
        """C_nm in Å: signed for m = 0, positive otherwise."""
        return self.a if self.m == 0 else math.hypot(self.a, self.b)

    @property
    def angle_deg(self) -> float:
        """phi_nm in degrees (0 for m = 0)."""
        return 0.0 if self.m == 0 else math.degrees(math.atan2(self.b, self.a)) / self.m


Aberrations = tuple[Aberration, ...]

#: A hundred metres.
_MOST_A = 1e12


def parse_aberrations(values: Mapping[str, float]) -> Aberrations:
    """Aberrations from names: Krivanek (``C12``, ``phi12_deg``), Haider (``A1``, ``A1_deg``) or ``defocus_A``.

    Magnitudes in Å, angles in degrees. Raises RecipeError for an unknown name, an angle without its magnitude, a
    term given under two names, or a value that is not finite.
    """
    terms: dict[tuple[int, int], tuple[float, float]] = {}
    angles = {name: float(v) for name, v in values.items() if name.endswith("_deg")}
    for name, given in values.items():
        if name.endswith("_deg"):
            continue
        value = float(given)
        if not abs(value) <= _MOST_A:
            raise RecipeError(f"aberrations.{name} = {given}: a finite number in Å, at most {_MOST_A:g}, is needed")
        n, m, factor, angle_name = _term(name)
        if (n, m) in terms:
            raise RecipeError(f"aberrations.{name}: C{n}{m} is given twice; keep one of its names")
        phi = math.radians(angles.pop(angle_name, 0.0))
        terms[n, m] = (factor * value * math.cos(m * phi), factor * value * math.sin(m * phi))
    if angles:
        name = next(iter(angles))
        raise RecipeError(f"aberrations.{name}: its coefficient is not given, or is round and has no angle; add the one or remove the other")
    return tuple(Aberration(n, m, a, b) for (n, m), (a, b) in sorted(terms.items()))


def _term(name: str) -> tuple[int, int, float, str]:
    """(n, m, factor to C_nm, name of the angle key) of one coefficient name."""
    if name == "defocus_A":
        return 1, 0, -1.0, ""
    if name in HAIDER:
        n, m, factor = HAIDER[name]
        return n, m, factor, f"{name}_deg" if m else ""
    if len(name) == 3 and name[0] == "C" and name[1:].isdigit() and (int(name[1]), int(name[2])) in ORDERS:
        m = int(name[2])
        # A round aberration has no angle: whatever is given as one is left over and refused.
        return int(name[1]), m, 1.0, f"phi{name[1:]}_deg" if m else ""
    known = ", ".join(f"C{n}{m}" for n, m in ORDERS)
    haider = ", ".join(HAIDER)
    raise RecipeError(f"aberrations.{name}: unknown coefficient; use {known} with phi12_deg ..., or {haider} with A1_deg ..., or defocus_A")


def name_aberrations(terms: Aberrations) -> dict[str, float]:
    """Krivanek names with Å and degrees: what :func:`parse_aberrations` reads."""
    named: dict[str, float] = {}
    for term in terms:
        named[term.name] = term.magnitude_A
        if term.m and term.angle_deg:
            named[f"phi{term.n}{term.m}_deg"] = term.angle_deg
    return named


def corrected(nominal: Aberrations, terms: Aberrations, change_A: Sequence[float]) -> Aberrations:
    """``nominal`` plus the changes in Å of the Cartesian coefficients of ``terms``: one for m = 0, two otherwise, one term after the other."""
    total = {(term.n, term.m): (term.a, term.b) for term in nominal}
    changes = iter(change_A)
    for term in terms:
        a, b = total.get((term.n, term.m), (0.0, 0.0))
        total[term.n, term.m] = (a + next(changes), b + next(changes) if term.m else b)
    return tuple(Aberration(n, m, a, b) for (n, m), (a, b) in sorted(total.items()))
