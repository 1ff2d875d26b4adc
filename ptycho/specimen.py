"""Model specimens: atoms, and the phase they give to a fast electron, slice by slice.

Neutral, independent atoms: the projected potential of a slice is the sum of its atoms' potentials, each the Fourier transform of an
elastic scattering factor. Bonding moves the potential by a few per cent at low frequencies and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import constants

from ptycho.errors import RecipeError
from ptycho.geometry import interaction_parameter
from ptycho.scattering import atomic_number, elements, scattering_factor_A

#: Name -> (Z of the metal, Z of the chalcogen, lattice constant a, distance of the two chalcogen planes), Å:
#: bulk 2H values, Schutte et al., J. Solid State Chem. 70 (1987) 207 (W) and Bronsema et al., Z. Anorg. Allg. Chem. 540 (1986) 15 (Mo).
MONOLAYERS: Mapping[str, tuple[int, int, float, float]] = {
    "WS2": (74, 16, 3.153, 3.14),
    "MoS2": (42, 16, 3.160, 3.17),
    "MoSe2": (42, 34, 3.289, 3.34),
}

STRONTIUM_TITANATE_A = 3.905

#: Lengths a, b, c of the cell of MFI (silicalite-1, ZSM-5) in Å, and Z -> fractions (x, y, z) of its 12 T and 26 O sites, Pnma:
#: van Koningsveld, van Bekkum & Jansen, Acta Cryst. B 43 (1987) 127.
MFI_CELL_A = (20.022, 19.899, 13.383)
_MFI_SITES: Mapping[int, Sequence[tuple[float, float, float]]] = {
    14: ((0.42238, 0.0565, -0.33598), (0.30716, 0.02772, -0.1893), (0.27911, 0.06127, 0.0312), (0.12215, 0.06298, 0.0267),
         (0.07128, 0.02722, -0.18551), (0.18641, 0.05896, -0.32818), (0.42265, -0.1725, -0.32718), (0.30778, -0.13016, -0.18548),
         (0.27554, -0.17279, 0.03109), (0.12058, -0.1731, 0.02979), (0.07044, -0.13037, -0.182), (0.18706, -0.17327, -0.31933)),
    8: ((0.3726, 0.0534, -0.2442), (0.3084, 0.0587, -0.0789), (0.2007, 0.0592, 0.0289), (0.0969, 0.0611, -0.0856),
         (0.1149, 0.0541, -0.2763), (0.2435, 0.0553, -0.246), (0.3742, -0.1561, -0.2372), (0.3085, -0.1552, -0.0728),
         (0.198, -0.1554, 0.0288), (0.091, -0.1614, -0.0777), (0.1169, -0.1578, -0.2694), (0.2448, -0.1594, -0.2422),
         (0.3047, -0.051, -0.1866), (0.0768, -0.0519, -0.1769), (0.4161, 0.1276, -0.3896), (0.4086, -0.0017, -0.4136),
         (0.402, -0.1314, -0.4239), (0.1886, 0.1298, -0.3836), (0.194, 0.0007, -0.4082), (0.1951, -0.1291, -0.419),
         (-0.0037, 0.0502, -0.208), (-0.004, -0.1528, -0.2078), (0.4192, -0.25, -0.354), (0.1884, -0.25, -0.3538),
         (0.2883, -0.25, 0.0579), (0.1085, -0.25, 0.0611)),
}  # fmt: skip
#: The eight operations of Pnma as signs and shifts of (x, y, z): International Tables for Crystallography A, no. 62.
_PNMA = (
    ((1, 1, 1), (0, 0, 0)), ((-1, -1, 1), (0.5, 0, 0.5)), ((-1, 1, -1), (0, 0.5, 0)), ((1, -1, -1), (0.5, 0.5, 0.5)),
    ((-1, -1, -1), (0, 0, 0)), ((1, 1, -1), (0.5, 0, 0.5)), ((1, -1, 1), (0, 0.5, 0)), ((-1, 1, 1), (0.5, 0.5, 0.5)),
)  # fmt: skip


def monolayer(kind: str, field_A: float, vacancy_fraction: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    """Atoms (N, 4) = (Z, z, y, x) in Å of a 2H monolayer "WS2", "MoS2" or "MoSe2", some of its chalcogens missing at random.

    The sheet reaches one unit cell further than ``field_A`` x ``field_A`` about (0, 0); zigzag rows lie along x. Its planes are at 1/4,
    3/4 and 5/4 of the distance between the chalcogen planes, in the middle of three equal slices. Raises RecipeError.
    """
    if kind not in MONOLAYERS:
        raise RecipeError(f"specimen = {kind!r}: unknown; known are {', '.join(MONOLAYERS)}")
    if not 0 <= vacancy_fraction < 1:
        raise RecipeError(f"vacancy_fraction = {vacancy_fraction!r}: a number from 0 to less than 1 is needed")
    metal, chalcogen, a, distance = MONOLAYERS[kind]
    # A rectangle of two formula units: (y, x) in units of (sqrt(3) a, a).
    metals = np.array([[0, 0], [1 / 2, 1 / 2]])
    chalcogens = metals + [1 / 3, 0]
    planes = [(chalcogen, distance / 4, chalcogens), (metal, 3 * distance / 4, metals), (chalcogen, 5 * distance / 4, chalcogens)]
    atoms = np.concatenate([_plane(z, height, basis, (np.sqrt(3) * a, a), field_A / 2 + a) for z, height, basis in planes])
    missing: NDArray[np.bool_] = (atoms[:, 0] == chalcogen) & (np.random.default_rng([seed, 0]).random(len(atoms)) < vacancy_fraction)
    return np.compress(~missing, atoms, axis=0)


def strontium_titanate(field_A: float, thickness_A: float) -> NDArray[np.float64]:
    """Atoms (N, 4) = (Z, z, y, x) in Å of SrTiO3 [001]: whole cells nearest to ``thickness_A``, one cell wider than the field.

    SrO and TiO2 planes alternate a/2 apart, the first at a/4. Raises RecipeError.
    """
    if not thickness_A > 0:
        raise RecipeError(f"thickness_A = {thickness_A!r}: a length in Å of more than 0 is needed")
    a = STRONTIUM_TITANATE_A
    reach = field_A / 2 + a
    layers = []
    for cell in range(max(1, round(thickness_A / a))):
        top, middle = (cell + 1 / 4) * a, (cell + 3 / 4) * a
        for z, height, basis in (
            (38, top, [[0, 0]]),
            (8, top, [[1 / 2, 1 / 2]]),
            (22, middle, [[1 / 2, 1 / 2]]),
            (8, middle, [[0, 1 / 2], [1 / 2, 0]]),
        ):
            layers.append(_plane(z, height, np.array(basis), (a, a), reach))
    return np.concatenate(layers)


def twisted_bilayer(kind: str, field_A: float, twist_deg: float, gap_A: float = 3.0) -> NDArray[np.float64]:
    """Atoms (N, 4) = (Z, z, y, x) in Å of two monolayers (see :func:`monolayer`), ``gap_A`` between their nearest planes.

    The lower one is turned by ``twist_deg`` about (0, 0), x axis towards y axis. Both cover a disk as wide as the field's diagonal.
    Raises RecipeError for an unknown kind.
    """
    upper = monolayer(kind, field_A * np.sqrt(2))
    lower = upper.copy()
    lower[:, 1] += np.ptp(upper[:, 1]) + gap_A
    cosine, sine = np.cos(np.deg2rad(twist_deg)), np.sin(np.deg2rad(twist_deg))
    lower[:, 2:] = upper[:, 2:] @ np.array([[cosine, -sine], [sine, cosine]])
    return np.concatenate([upper, lower])


def mfi(field_A: float, thickness_A: float) -> NDArray[np.float64]:
    """Atoms (N, 4) = (Z, z, y, x) in Å of the zeolite MFI (ZSM-5 without aluminium) along [010], its straight channels along the beam.

    Whole cells of 19.9 Å nearest to ``thickness_A``, z from 0; y is c, x is a; at least as wide as the field. Raises RecipeError.
    """
    if not thickness_A > 0:
        raise RecipeError(f"thickness_A = {thickness_A!r}: a length in Å of more than 0 is needed")
    a, b, c = MFI_CELL_A
    cell = mfi_cell()
    layers = []
    for z, x_fraction, y_fraction, z_fraction in cell:
        for number in range(max(1, round(thickness_A / b))):
            layers.append(_plane(int(z), (number + y_fraction) * b, np.array([[z_fraction, x_fraction]]), (c, a), field_A / 2 + 1.0))
    return np.concatenate(layers)


def mfi_cell() -> NDArray[np.float64]:
    """Atoms (288, 4) = (Z, x, y, z) of a cell of MFI, in fractions from 0 to 1 of a, b and c: 96 Si and 192 O."""
    found = []
    for number, sites in _MFI_SITES.items():
        images = np.concatenate([np.array(signs) * sites + shift for signs, shift in _PNMA])
        # A site on a mirror is its own image. Rounding takes out the last digit's difference; % 1 must not leave a 1.
        images = np.unique(np.round(images % 1, 6) % 1, axis=0)
        found.append(np.column_stack([np.full(len(images), number), images]))
    return np.concatenate(found)


def substitute(atoms: NDArray[np.float64], place_A: tuple[float, float, float], number: int) -> NDArray[np.float64]:
    """The same atoms (N, 4), the one nearest to ``place_A`` = (z, y, x) replaced by the element of this ``number``: a dopant in a column."""
    changed = atoms.copy()
    changed[np.linalg.norm(atoms[:, 1:] - place_A, axis=1).argmin(), 0] = number
    return changed


def leaning(atoms: NDArray[np.float64], tilt_mrad: tuple[float, float]) -> NDArray[np.float64]:
    """The same atoms (N, 4) in a specimen tilted by (y, x): each moves by z tan(tilt), as columns seen from a slanting beam do."""
    moved = atoms.copy()
    moved[:, 2:] += atoms[:, 1:2] * np.tan(np.array(tilt_mrad) * 1e-3)
    return moved


def displacements_A(atoms: NDArray[np.float64], rms_displacement_A: float | Mapping[str, float]) -> NDArray[np.float64]:
    """Thermal displacement (N,) of each atom: rms along one axis in Å, one for all or one for each element's symbol.

    Raises RecipeError for an unknown symbol, and for an element of the specimen that is not named.
    """
    if not isinstance(rms_displacement_A, Mapping):
        return np.full(len(atoms), float(rms_displacement_A))
    by_number = {atomic_number(symbol): float(rms) for symbol, rms in rms_displacement_A.items()}
    missing = sorted(set(atoms[:, 0].astype(int).tolist()) - set(by_number))
    if missing:
        raise RecipeError(f"rms_displacement_A has no {', '.join(elements()[z].symbol for z in missing)}; name every element of the specimen")
    return np.array([by_number[int(z)] for z in atoms[:, 0]])


def displaced(atoms: NDArray[np.float64], rms_A: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """The same atoms (N, 4) as a fast electron finds them at one moment: a frozen phonon of the Einstein model.

    Independent normal displacements of ``rms_A`` (N,) along y and x (Loane, Xu & Silcox, Acta Cryst. A 47 (1991) 267). Those along the
    beam change the path between planes by far less than a wave can tell and are left out, so that every plane stays in its slice.
    """
    moved = atoms.copy()
    moved[:, 2:] += random.normal(size=(len(atoms), 2)) * rms_A[:, None]
    return moved


def _plane(number: int, z_A: float, basis: NDArray[np.float64], cell_A: tuple[float, float], reach_A: float) -> NDArray[np.float64]:
    """Atoms (N, 4) of one plane: ``basis`` (n, 2) = (y, x) in fractions of the rectangular cell, repeated over |y|, |x| <= reach."""
    cells_y, cells_x = (np.arange(-np.ceil(reach_A / side) - 1, np.ceil(reach_A / side) + 1) for side in cell_A)
    corners = np.stack(np.meshgrid(cells_y, cells_x, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    yx = ((corners + basis) * cell_A).reshape(-1, 2)
    yx = yx[(np.abs(yx) <= reach_A).all(axis=1)]
    return np.column_stack([np.full(len(yx), number), np.full(len(yx), z_A), yx])


def phase_slices(
    atoms: NDArray[np.float64],
    shape: tuple[int, int],
    pixel_A: float,
    voltage_kV: float,
    slice_edges_A: Sequence[float] | NDArray[np.float64],
    rms_displacement_A: float | Mapping[str, float] = 0.0,
) -> NDArray[np.float32]:
    """Phase sigma * projected potential of each slice, (slices, y, x) in rad, positive for atoms.

    ``atoms`` (N, 4) are (Z, z, y, x) in Å with (y, x) = (0, 0) at pixel (shape[0] // 2, shape[1] // 2); atoms beyond the grid are left
    out. Slice i holds edges[i] <= z < edges[i + 1]. ``rms_displacement_A`` along one axis, one for all or by symbol, blurs the potential
    (Debye-Waller factor exp(-2 pi² u² k²)): the mean of all frozen phonons. The sum over atoms is exact for every frequency inside the
    circle of Nyquist, which is all that is kept; the grid is periodic, so an atom at an edge reaches round to the other side. Raises
    RecipeError for edges that do not rise, atoms outside them and unknown elements.

    V(k) = h² / (2 pi m e) sum_j f_j(k) exp(-2 pi i k.r_j) (Kirkland, Advanced Computing in Electron Microscopy, eq. 5.9-5.12).
    """
    edges = np.asarray(slice_edges_A, float)
    owner = _slice_of(atoms, edges)
    half_A = np.array(shape) * pixel_A / 2
    inside = ((atoms[:, 2:] >= -half_A) & (atoms[:, 2:] < half_A)).all(axis=1)
    ky, kx = np.fft.fftfreq(shape[0], pixel_A), np.fft.rfftfreq(shape[1], pixel_A)
    k = np.hypot(ky[:, None], kx)
    volt_A2 = constants.h**2 / (2 * np.pi * constants.m_e * constants.e) * 1e20
    scale = interaction_parameter(voltage_kV) * volt_A2 / pixel_A**2 * (k < 0.5 / pixel_A)
    rms_A = dict(zip(atoms[:, 0], displacements_A(atoms, rms_displacement_A), strict=True))
    factors = {z: scale * np.exp(-2 * (np.pi * u * k) ** 2) * scattering_factor_A(int(z), k) for z, u in sorted(rms_A.items())}
    phases = np.zeros((len(edges) - 1, *shape), np.float32)
    for i in range(len(phases)):
        spectrum = np.zeros(k.shape, complex)
        for z, factor in factors.items():
            y, x = (atoms[inside & (owner == i) & (atoms[:, 0] == z), 2:] + np.array(shape) // 2 * pixel_A).T
            # The sum over atoms of exp(-2 pi i k.r) is separable: one product of two small matrices.
            spectrum += factor * (np.exp(-2j * np.pi * np.outer(ky, y)) @ np.exp(-2j * np.pi * np.outer(x, kx)))
        phases[i] = np.fft.irfft2(spectrum, shape)
    return phases


def _slice_of(atoms: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of each atom's slice, (N,)."""
    if len(edges) < 2 or (len(edges) > 2 and not (np.diff(edges) > 0).all()):
        raise RecipeError(f"slice_edges_A = {edges.tolist()}: at least two numbers in Å that rise are needed")
    # A plane of atoms right on an edge belongs to the slice below it as a whole, whatever the last digit of its z is.
    z = atoms[:, 1] + 1e-6
    if len(z) and not (z.min() >= edges[0] and z.max() < edges[-1] + 2e-6):
        raise RecipeError(f"slice_edges_A reach from {edges[0]:g} to {edges[-1]:g} Å, the atoms from {z.min():g} to {z.max():g} Å; widen the edges")
    return np.minimum(np.searchsorted(edges, z, side="right") - 1, len(edges) - 2).astype(np.int64)
