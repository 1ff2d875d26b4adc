"""Structures from files and from ASE: as many atoms as the volume holds, repeats where the lattice has them, a molecule as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ptycho.errors import DataError, RecipeError
from ptycho.recipe import load_simulation
from ptycho.simulation import Simulation, expected_patterns, forward_model
from ptycho.specimen import strontium_titanate
from ptycho.structure import oriented, read_structure

ase = pytest.importorskip("ase")

PEROVSKITE = """data_SrTiO3
_cell_length_a 3.905
_cell_length_b 3.905
_cell_length_c 3.905
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P m -3 m'
_symmetry_Int_Tables_number 221
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Sr1 Sr 0 0 0 {share}
Ti1 Ti 0.5 0.5 0.5 1
O1 O 0.5 0.5 0 1
"""
A = 3.905


@pytest.fixture
def perovskite(tmp_path: Path) -> Path:
    path = tmp_path / "SrTiO3.cif"
    path.write_text(PEROVSKITE.format(share=1), encoding="ascii")
    return path


def repeats_by(atoms: np.ndarray, shift: tuple[float, float, float], margin_A: float = 12.0) -> bool:
    """Whether every inner atom has one of its kind at ``shift`` = (z, y, x)."""
    inner = atoms[(np.abs(atoms[:, 2:]) < margin_A).all(1)]
    # Atoms of two elements are never near each other.
    distance, _ = cKDTree(atoms * [10, 1, 1, 1]).query((inner + [0, *shift]) * [10, 1, 1, 1])
    return bool((distance < 1e-6).all())


@pytest.mark.parametrize(
    ("zone_axis", "period", "across"),
    [
        # (repeat along the beam, (y, x) repeats): y is the third direction of a right-handed set.
        ((0, 0, 1), A, ((A, 0), (0, A))),
        ((1, 1, 0), A * np.sqrt(2), ((A, 0), (0, A * np.sqrt(2)))),
        ((1, 1, 1), A * np.sqrt(3), ((A * np.sqrt(2), 0), (0, A * np.sqrt(6)))),
        ((2, 0, 0), A, ((A, 0), (0, A))),
    ],
)
def test_a_crystal_along_a_zone_axis(perovskite: Path, zone_axis, period: float, across) -> None:  # type: ignore[no-untyped-def]
    """The orthogonal cell repeats, the number of atoms is that of the volume, whole repeats near 40 Å."""
    atoms, thickness, spacing = oriented(read_structure(perovskite), zone_axis, 60.0, 40.0)
    assert thickness == pytest.approx(period * round(40 / period)) and period / spacing == pytest.approx(round(period / 2))
    assert atoms[:, 1].min() >= 0 and atoms[:, 1].max() < thickness
    volume = thickness * 60.0**2
    for z, per_cell in ((38, 1), (22, 1), (8, 3)):
        assert (atoms[:, 0] == z).sum() / volume * A**3 == pytest.approx(per_cell, rel=0.1)
    for y, x in across:
        assert repeats_by(atoms, (0, y, x)) and not repeats_by(atoms, (0, y / 2.5, x / 2.5))
    top = atoms[atoms[:, 1] + period < thickness]
    assert repeats_by(np.concatenate([top, top + [0, period, 0, 0]]), (0, 0, 0)) and len(atoms) > 500


def test_the_file_gives_the_patterns_of_the_built_in_crystal(perovskite: Path) -> None:
    """Planes in the middle of their slices, as there; the cell's origin is at strontium for both."""
    built_in = Simulation("SrTiO3", (1, 2), thickness_A=20.0, pattern_px=32, pixel_invA=0.08, defocus_A=60.0, voltage_kV=300.0, semiangle_mrad=15.0)
    ours, theirs = (expected_patterns(forward_model(s)[0]) for s in (built_in, replace(built_in, specimen=str(perovskite))))
    np.testing.assert_allclose(theirs, ours, atol=1e-3 * ours.max())


def test_x_y_and_the_beam_are_right_handed() -> None:
    """A cell of three different lengths and elements: x is a, y is b, the beam goes along c; an axis the other way turns it round."""
    atoms = ase.Atoms("CNO", positions=[[1, 0, 0], [0, 1.5, 0], [0, 0, 2]], cell=[10, 12, 8], pbc=True)
    for zone, signs in (((0, 0, 1), (1, 1, 1)), ((0, 0, -1), (1, -1, -1))):
        found, _, _ = oriented(atoms, zone, 11.0, 8.0)
        carbon, nitrogen, oxygen = (found[found[:, 0] == z, 1:] for z in (6, 7, 8))
        near = carbon[np.abs(carbon[:, 1:]).sum(1).argmin()]
        np.testing.assert_allclose(near[1:], [0, signs[0]], atol=1e-6)
        offsets = [(other - near - [0, *shift] + [4, 6, 5]) % [8, 12, 10] - [4, 6, 5] for other, shift in ((nitrogen, (0, 0)), (oxygen, (0, 0)))]
        assert (np.abs(offsets[0] - [0, 1.5 * signs[1], -1]).max(1) < 1e-6).any()
        assert (np.abs(offsets[1] - [2 * signs[2], 0, -1]).max(1) < 1e-6).any()


def test_a_hexagonal_layer_covers_the_field() -> None:
    from ase.build import mx2

    layer = mx2("WS2", "2H", a=3.153, thickness=3.14, vacuum=5.0)
    atoms, thickness, _ = oriented(layer, (0, 0, 1), 50.0, 5.0)
    assert [(atoms[:, 0] == z).sum() / 50**2 * 3.153**2 * np.sqrt(3) / 2 for z in (74, 16)] == pytest.approx([1, 2], rel=0.05)
    assert repeats_by(atoms, (0, 0, 3.153)) and repeats_by(atoms, (0, np.sqrt(3) * 3.153, 0))
    assert np.ptp(atoms[:, 1]) == pytest.approx(3.14) and atoms[:, 1].min() > 0 and atoms[:, 1].max() < thickness


def test_a_molecule_is_centred_and_whole(tmp_path: Path) -> None:
    from ase.build import molecule
    from ase.io import write

    benzene = molecule("C6H6")
    write(tmp_path / "benzene.xyz", benzene)
    atoms, thickness, _ = oriented(read_structure(tmp_path / "benzene.xyz"), (0, 0, 1), 5.0, 100.0)
    assert sorted(atoms[:, 0].tolist()) == [1] * 6 + [6] * 6
    np.testing.assert_allclose((atoms[:, 2:].max(0) + atoms[:, 2:].min(0)) / 2, 0, atol=1e-9)
    assert thickness == pytest.approx(1.0) and (atoms[:, 1] == 0.5).all()
    ring = np.hypot(*atoms[atoms[:, 0] == 6, 2:].T)
    np.testing.assert_allclose(ring, 1.395, atol=0.01)
    # The same through the simulation, from the object itself.
    simulation = Simulation("vacuum", (1, 1), pattern_px=32, pixel_invA=0.06, defocus_A=160.0)
    np.testing.assert_array_equal(forward_model(simulation, benzene)[1], forward_model(simulation, atoms)[1])


def test_settings_in_a_file_find_the_structure_beside_it(perovskite: Path) -> None:
    recipe = perovskite.with_name("sto.toml")
    recipe.write_text(
        'specimen = "SrTiO3.cif"\nzone_axis = [1, 1, 0]\nscan_shape = [3, 4]\nrms_displacement_A = { Sr = 0.09, Ti = 0.07, O = 0.1 }\n'
        "source_A = 0.4\nfrozen_phonons = 2\ndetector_mtf = [[0, 1], [0.5, 0.4]]\ndrift_A = [1, 0]\n",
        encoding="utf-8",
    )
    found = load_simulation(recipe, ["scan_shape=[5, 5]", "thickness_A=60"])
    assert found == Simulation(
        str(perovskite), (5, 5), zone_axis=(1, 1, 0), source_A=0.4, thickness_A=60.0, frozen_phonons=2, detector_mtf=((0.0, 1.0), (0.5, 0.4)),
        drift_A=(1.0, 0.0), rms_displacement_A={"Sr": 0.09, "Ti": 0.07, "O": 0.1},
    )  # fmt: skip


def test_what_is_no_structure_is_named(tmp_path: Path, perovskite: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_structure(tmp_path / "none.cif")
    with pytest.raises(RecipeError, match="ends in"):
        read_structure(tmp_path / "model.stl")
    for text in ("", "data_x\n", "loop_\n_atom_site_label\nSr1\n", "\x00\x01"):
        (tmp_path / "bad.cif").write_text(text, encoding="ascii")
        with pytest.raises(DataError, match=r"bad\.cif"):
            read_structure(tmp_path / "bad.cif")
    perovskite.write_text(PEROVSKITE.format(share=0.5), encoding="ascii")
    with pytest.raises(RecipeError, match="occupied in part"):
        oriented(read_structure(perovskite), (0, 0, 1), 10.0, 10.0)
    crystal = ase.Atoms("C", cell=[2, 2, 2], pbc=True)
    with pytest.raises(RecipeError, match="zone_axis"):
        oriented(crystal, (0, 0, 0), 10.0, 10.0)
    with pytest.raises(RecipeError, match="too many"):
        oriented(crystal, (0, 0, 1), 1e4, 1e4)
    with pytest.raises(RecipeError, match="atomic number 0"):
        forward_model(Simulation(scan_shape=(1, 1)), ase.Atoms("X"))


def test_the_built_in_strontium_titanate_is_that_of_the_file(perovskite: Path) -> None:
    ours = strontium_titanate(30.0, 20.0)
    theirs, thickness, _ = oriented(read_structure(perovskite), (0, 0, 1), 30.0, 20.0)
    theirs = theirs[(np.abs(theirs[:, 2:]) < 14.9).all(1)]
    ours = ours[(np.abs(ours[:, 2:]) < 14.9).all(1)]
    assert thickness == pytest.approx(5 * A)
    np.testing.assert_allclose(*(a[np.lexsort(np.round(a, 3).T)] for a in (ours, theirs)), atol=1e-9)
