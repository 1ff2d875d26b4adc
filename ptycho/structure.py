"""Specimens from structure files or ASE: any crystal along any zone axis, any molecule (the optional extra "structures").

ASE reads the files and knows their space groups; it is imported here only, when a file is read.
"""

from __future__ import annotations

import math
import os
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError, RecipeError

#: Suffix -> ASE's name of the format. These are text and hold atoms, nothing that is run.
FORMATS = {".cif": "cif", ".xyz": "extxyz", ".pdb": "proteindatabank", ".vasp": "vasp", ".poscar": "vasp"}
#: About what is between two planes of atoms: a slice where nothing else is asked for.
PLANE_A = 2.0
#: Atoms that a specimen may have.
_MOST_ATOMS = 20_000_000


def read_structure(path: str | os.PathLike[str]) -> Any:
    """The ``ase.Atoms`` of a CIF, XYZ, PDB or VASP file. Raises DataError for a file that is none, RecipeError without ASE."""
    path = Path(path)
    name = FORMATS.get(path.suffix.lower())
    if name is None:
        raise RecipeError(f"{path}: a structure is a file that ends in {', '.join(FORMATS)}; pass any other as an ase.Atoms in Python")
    try:
        from ase.io import read
    except ImportError:
        raise RecipeError(f"{path}: structure files need ASE: pip install 'ptycho[structures]'") from None
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give the structure's path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = read(str(path), index=-1, format=name)
    except Exception as error:  # a reader of free text fails in any way there is
        raise DataError(f"{path}: not a {path.suffix[1:].upper()} file that ASE can read ({str(error).strip() or type(error).__name__})") from None
    if not len(structure):
        raise DataError(f"{path}: no atoms in it")
    return structure


def oriented(
    structure: Any, zone_axis: tuple[int, int, int], field_A: float, thickness_A: float
) -> tuple[NDArray[np.float64], float, float]:
    """Atoms (N, 4) = (Z, z, y, x) in Å of an ``ase.Atoms``, how thick they are and how far apart slices of one plane would be, in Å.

    The beam travels along ``zone_axis`` [u, v, w]. x is the part of the cell's a across the beam (of b, where a is the axis), and x, y, z are
    right-handed: y points down in a picture whose x points right. A crystal covers ``field_A`` x ``field_A`` about (0, 0), an origin of
    its cell, and is as many whole repeats thick as come nearest to ``thickness_A``. What does not repeat is centred, and as thick as it is.
    Raises RecipeError for a zone axis that is none, positions that are no numbers and sites that are occupied in part.
    """
    occupancy = [share for site in (structure.info.get("occupancy") or {}).values() for share in site.values()]
    if any(share < 1 for share in occupancy):
        raise RecipeError("specimen: some sites are occupied in part; write a structure of whole atoms, as one cell of a larger one")
    numbers, positions = np.asarray(structure.numbers, float), np.asarray(structure.positions, float)
    repeats = np.asarray(structure.pbc, bool)
    cell = np.asarray(structure.cell.complete(), float) if structure.cell.rank else np.eye(3)
    if not (len(numbers) and np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise RecipeError("specimen: a structure needs atoms at finite positions")
    if len(zone_axis) != 3 or not any(zone_axis):
        raise RecipeError(f"zone_axis = {list(zone_axis)!r}: three whole numbers [u, v, w], not all of them 0, are needed")
    axes = _axes(cell, np.array(zone_axis))
    positions, cell = positions @ axes.T, cell @ axes.T
    if repeats.all():
        period = abs(float(np.array(zone_axis) @ cell[:, 0])) / math.gcd(*zone_axis)
        slices = max(1, round(period / PLANE_A))
        positions[:, 0] += _middle(positions[:, 0], period / slices)
        thickness, spacing = period * max(1, round(thickness_A / period)), period / slices
    else:
        positions -= (positions.max(0) + positions.min(0)) / 2
        thickness, spacing = float(np.ptp(positions[:, 0])) + PLANE_A / 2, PLANE_A
        positions[:, 0] += thickness / 2
    box = np.array([[0, thickness], [-field_A / 2, field_A / 2], [-field_A / 2, field_A / 2]])
    atoms = _filled(np.column_stack([numbers, positions]), cell, repeats, box)
    if not repeats.any():
        return atoms, thickness, spacing
    inside = ((atoms[:, 1:] >= box[:, 0]) & (atoms[:, 1:] < box[:, 1])).all(1)
    return atoms[inside], thickness, spacing


def _axes(cell: NDArray[np.float64], zone_axis: NDArray[np.int64]) -> NDArray[np.float64]:
    """Unit vectors (3, 3) along z, y, x in the structure's own axes."""
    z = zone_axis @ cell
    z = z / np.linalg.norm(z)
    across = [vector - (vector @ z) * z for vector in cell]
    # A vector along the beam leaves rounding.
    x = next(part for part, vector in zip(across, cell, strict=True) if np.linalg.norm(part) > 1e-3 * np.linalg.norm(vector))
    x = x / np.linalg.norm(x)
    return np.stack([z, np.cross(z, x), x])


def _middle(z: NDArray[np.float64], spacing: float) -> float:
    """Shift that brings planes ``spacing`` apart to the middle of their slices: by the phase of their first harmonic."""
    phase = np.angle(np.exp(2j * np.pi * z / spacing).sum())
    return float(spacing * (0.5 - phase / (2 * np.pi)))


def _filled(atoms: NDArray[np.float64], cell: NDArray[np.float64], repeats: NDArray[np.bool_], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Atoms (N, 4) of all cells that may reach into the ``box`` (3, 2), repeated where the structure does."""
    corners = np.array(list(product(*box)))
    inverse = np.linalg.inv(cell)
    fractions = atoms[:, 1:] @ inverse
    reach = corners @ inverse
    low = np.floor(reach.min(0) - fractions.max(0)).astype(int) * repeats
    high = np.ceil(reach.max(0) - fractions.min(0)).astype(int) * repeats
    count = int(np.prod(high - low + 1)) * len(atoms)
    if count > _MOST_ATOMS:
        raise RecipeError(f"specimen: {count:.2g} atoms are too many; make the scan or thickness_A smaller")
    cells = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij"), -1).reshape(-1, 1, 3)
    found = np.broadcast_to(atoms, (len(cells), *atoms.shape)).copy()
    found[..., 1:] += cells @ cell
    return found.reshape(-1, 4)
