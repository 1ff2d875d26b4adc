"""Model crystals: known counts of atoms, bond lengths that chemistry knows, tilts that a slanting beam sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho.errors import RecipeError
from ptycho.simulation import Simulation, expected_patterns, forward_model
from ptycho.specimen import MFI_CELL_A, leaning, mfi, mfi_cell, monolayer, strontium_titanate, substitute, twisted_bilayer


def test_cell_of_mfi_holds_96_silicon_and_192_oxygen() -> None:
    cell = mfi_cell()
    assert [(cell[:, 0] == z).sum() for z in (14, 8)] == [96, 192]
    assert cell[:, 1:].min() >= 0 and cell[:, 1:].max() < 1


def test_every_silicon_of_mfi_has_four_oxygens() -> None:
    """SiO4 tetrahedra with bonds of 1.57 to 1.61 Å, no fifth neighbour within 3 Å; each oxygen between two silicons."""
    crystal = mfi(60.0, 40.0)
    inner = (np.abs(crystal[:, 2:]) < 12).all(1) & (crystal[:, 1] > 5) & (crystal[:, 1] < 35)
    silicon, oxygen = (crystal[(crystal[:, 0] == z), 1:] for z in (14, 8))
    for element, ligands, number in ((14, oxygen, 4), (8, silicon, 2)):
        centres = crystal[inner & (crystal[:, 0] == element), 1:]
        distance = np.sort(np.linalg.norm(centres[:, None] - ligands, axis=2), axis=1)
        assert distance[:, :number].min() > 1.55 and distance[:, :number].max() < 1.62
        assert distance[:, number].min() > 3.0


def test_straight_channels_of_mfi_are_empty_and_along_the_beam() -> None:
    """The ten-ring channel at (x, z) = (0, 1/2) of the cell: no atom within 3.7 Å of its axis; as many cells as asked for."""
    crystal = mfi(60.0, 41.0)
    a, b, c = MFI_CELL_A
    assert crystal[:, 1].min() >= 0 and crystal[:, 1].max() < 2 * b
    assert np.hypot(crystal[:, 2] - c / 2, crystal[:, 3]).min() > 3.7
    corner = np.array([-c, -a]) + 1e-4
    inside = ((crystal[:, 2:] >= corner) & (crystal[:, 2:] < -corner + 2e-4)).all(1)
    assert inside.sum() == 4 * 2 * 288
    with pytest.raises(RecipeError, match="thickness_A"):
        mfi(10.0, 0.0)


def test_bilayer_is_turned() -> None:
    pair, single = twisted_bilayer("MoS2", 40.0, 7.0), monolayer("MoS2", 40.0 * np.sqrt(2))
    upper, lower = pair[: len(single)], pair[len(single) :]
    np.testing.assert_array_equal(upper, single)
    assert lower[:, 1].min() - upper[:, 1].max() == pytest.approx(3.0)
    # x towards y: the row of metals along x rises.
    row = (single[:, 0] == 42) & (np.abs(single[:, 2]) < 0.01) & (single[:, 3] > 1)
    np.testing.assert_allclose(np.rad2deg(np.arctan2(*lower[row, 2:].T)), 7.0)


def test_dopant_replaces_one_atom() -> None:
    crystal = strontium_titanate(20.0, 40.0)
    doped = substitute(crystal, (20.5, 0.0, 0.0), 74)
    changed = (doped != crystal).any(1)
    assert changed.sum() == 1 and crystal[changed, 0] == 38 and doped[changed, 0] == 74
    np.testing.assert_allclose(doped[changed, 1:], [[5.25 * 3.905, 0, 0]], atol=1e-9)


def test_leaning_columns_are_a_tilt() -> None:
    """Atoms that move with depth give the patterns of the tilted propagator, but for the shift of the whole specimen within a slice."""
    simulation = Simulation("SrTiO3", (1, 1), voltage_kV=300.0, semiangle_mrad=20.0, defocus_A=80.0, pattern_px=48, pixel_invA=0.07)
    straight = strontium_titanate(120.0, 120.0)
    patterns = [
        expected_patterns(forward_model(changed, atoms)[0])[0]
        for changed, atoms in (
            (simulation, straight),
            (simulation, leaning(straight, (8.0, -5.0))),
            (replace(simulation, tilt_mrad=(8.0, -5.0)), straight),
            (replace(simulation, tilt_mrad=(-8.0, 5.0)), straight),
        )
    ]
    away = [np.abs(pattern - patterns[1]).sum() / patterns[1].sum() for pattern in patterns]
    assert away[2] < 0.1 * away[0] and away[0] > 0.05
    assert away[3] > away[0]
