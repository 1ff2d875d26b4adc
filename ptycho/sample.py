"""What a simulated scan looks at: a built-in specimen, a structure file, or atoms that a program gives; and the slices they are cut into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import RecipeError
from ptycho.specimen import MFI_CELL_A, MONOLAYERS, STRONTIUM_TITANATE_A, mfi, monolayer, strontium_titanate
from ptycho.structure import PLANE_A, oriented, read_structure

#: The specimens that are built in.
SPECIMENS = (*MONOLAYERS, "SrTiO3", "MFI", "vacuum")


@dataclass(frozen=True)
class Sample:
    """``atoms`` (N, 4) = (Z, z, y, x) in Å, (y, x) from the centre of the scan, z from the entrance; ``thickness_A`` and the distance of planes."""

    atoms: NDArray[np.float64]
    thickness_A: float
    spacing_A: float

    @classmethod
    def named(cls, name: str, field_A: float, thickness_A: float, zone_axis: tuple[int, int, int], vacancy_fraction: float, seed: int) -> Sample:
        """One of ``SPECIMENS`` or a structure file. Raises RecipeError, and DataError for a file that cannot be read."""
        if name == "vacuum":
            return cls(np.empty((0, 4)), 0.0, PLANE_A)
        if name == "MFI":
            # Planes that are not alike: slices a tenth of the cell thick, and whole cells.
            cells = max(1, round(thickness_A / MFI_CELL_A[1]))
            return cls(mfi(field_A, thickness_A), MFI_CELL_A[1] * cells, MFI_CELL_A[1] / 10)
        if name not in SPECIMENS:
            return cls(*oriented(read_structure(name), zone_axis, field_A, thickness_A))
        if name == "SrTiO3":
            atoms, spacing = strontium_titanate(field_A, thickness_A), STRONTIUM_TITANATE_A / 2
        else:
            atoms, spacing = monolayer(name, field_A, vacancy_fraction, seed), MONOLAYERS[name][3] / 2
        # Every plane is in the middle of its slice.
        return cls(atoms, float(atoms[:, 1].max()) + spacing / 2, spacing)

    @classmethod
    def given(cls, atoms: Any, field_A: float, thickness_A: float, zone_axis: tuple[int, int, int]) -> Sample:
        """From atoms (N, 4) or an ``ase.Atoms``. Raises RecipeError for what is neither."""
        if hasattr(atoms, "pbc") and hasattr(atoms, "numbers"):
            return cls(*oriented(atoms, zone_axis, field_A, thickness_A))
        atoms = np.asarray(atoms, float)
        if atoms.ndim != 2 or atoms.shape[1] != 4 or not np.isfinite(atoms).all():
            raise RecipeError(f"atoms of shape {atoms.shape}: rows of four finite numbers (Z, z, y, x), or an ase.Atoms, are needed")
        return cls(atoms, float(atoms[:, 1].max(initial=0.0)) + 1.0, PLANE_A)

    def edges_A(self, slice_thickness_A: float | None) -> NDArray[np.float64]:
        """Edges of equal slices, (slices + 1,), about as thick as wanted; None: one for each atomic plane."""
        slices = max(1, round(self.thickness_A / (slice_thickness_A or self.spacing_A)))
        return np.linspace(0, self.thickness_A, slices + 1)


def known(specimen: str) -> bool:
    """Whether this is one of ``SPECIMENS``, or may be a file."""
    return specimen in SPECIMENS or bool(Path(specimen).suffix)
