"""How strongly an atom scatters fast electrons: tabulated elastic scattering factors of all elements up to lawrencium."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import RecipeError


class Element(NamedTuple):
    """``a`` in Å and ``b`` in Å² of f_e(k) = sum a (2 + b k²) / (1 + b k²)², k = 2 sin(theta) / lambda in Å⁻¹: a neutral atom."""

    symbol: str
    a: tuple[float, ...]
    b: tuple[float, ...]


@cache
def elements() -> Mapping[int, Element]:
    """Atomic number -> its scattering factor, as fitted by Lobato & Van Dyck, Acta Cryst. A 70 (2014) 636."""
    with open(Path(__file__).with_name("scattering_factors.csv"), encoding="ascii", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return MappingProxyType({int(z): Element(symbol, tuple(map(float, n[:5])), tuple(map(float, n[5:]))) for z, symbol, *n in rows})


def atomic_number(symbol: str) -> int:
    """Of an element's symbol, as "Sr". Raises RecipeError for another word."""
    known = {element.symbol: z for z, element in elements().items()}
    if symbol not in known:
        near = difflib.get_close_matches(symbol.capitalize(), known, n=1, cutoff=0.4)
        raise RecipeError(f"element {symbol!r}: unknown; give a symbol{f' such as {near[0]}' if near else ''}, as in the periodic table")
    return known[symbol]


def scattering_factor_A(atomic_number: int, k_invA: NDArray[np.float64]) -> NDArray[np.float64]:
    """Elastic electron scattering factor f_e(k) in Å of a neutral atom at rest mass, first Born approximation; k in Å⁻¹ (cycles).

    Lobato & Van Dyck, Acta Cryst. A 70 (2014) 636. Raises RecipeError for a number that is no element's up to 103.
    """
    if atomic_number not in elements():
        raise RecipeError(f"atomic number {atomic_number}: no scattering factor is known; they are for 1 to {max(elements())}")
    factor: NDArray[np.float64] = np.zeros_like(k_invA)
    for a, b in zip(*elements()[atomic_number][1:], strict=True):
        bk2 = b * k_invA**2
        factor += a * (2 + bk2) / (1 + bk2) ** 2
    return factor
