"""To and from the other packages: results as their files, their parameters and results as ours."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho.atomic import make_folder, write_file
from ptycho.errors import DataError, OutputError
from ptycho.exchange.formats import STATES, THICKNESSES, TILT, TILTS, Format

if TYPE_CHECKING:
    from ptycho.exchange.imported import Imported
    from ptycho.result import Result

logger = logging.getLogger("ptycho")


def formats() -> tuple[Format, ...]:
    """All that can be written; where two have a suffix, the first is what it means."""
    from ptycho.exchange import cxi, emd, foldslice, hyperspy, phaser, pictures, ptyrad

    everything = frozenset((STATES, THICKNESSES, TILT, TILTS))
    return (
        Format("emd", (".emd",), "EMD 1.0: emdfile, py4DSTEM, HyperSpy", emd.encode_emd, everything - {TILT, TILTS}),
        Format("hspy", (".hspy",), "HyperSpy", hyperspy.encode_hspy),
        Format("imagej", (".tif", ".tiff"), "ImageJ and Fiji: the phase", pictures.encode_imagej),
        Format("ome", (".ome.tif", ".ome.tiff"), "OME-TIFF for napari and Fiji: phase and amplitude", pictures.encode_ome),
        Format("cxi", (".cxi",), "CXI 1.6", cxi.encode_cxi, frozenset((THICKNESSES,))),
        Format("fold_slice", (".mat",), "fold_slice, PtychoShelves, MATLAB", foldslice.encode_foldslice, frozenset((THICKNESSES,))),
        Format("npz", (".npz",), "NumPy: all arrays", pictures.encode_npz, everything),
        Format("npy", (".npy",), "NumPy: the phase", pictures.encode_npy),
        Format("ptyrad", (".hdf5",), "PtyRAD's model", ptyrad.encode_ptyrad, frozenset((STATES, TILT, TILTS))),
        Format("py4dstem", (".h5",), "py4DSTEM's saved reconstruction", emd.encode_py4dstem, frozenset((THICKNESSES, TILT))),
        Format("phaser", (".h5",), "phaser's state", phaser.encode_phaser, frozenset((THICKNESSES, TILT, TILTS))),
    )


def export(result: Result, path: str | os.PathLike[str], to: str | None = None) -> Path:
    """Write ``result`` as a file of another program and return its path.

    ``to`` is the format's name; without it the end of the path says it. What the format has no place for is told as a warning. An older file
    is replaced only when the new one is complete. Raises OutputError for an unknown format and for a file that cannot be written.
    """
    target = Path(path).expanduser()
    chosen = _chosen(target, to)
    content = chosen.encode(result)
    make_folder(target.parent, target)
    write_file(target, memoryview(content))
    for sentence in chosen.losses(result, target):
        logger.warning(sentence)
    return target


def _chosen(path: Path, to: str | None) -> Format:
    known = formats()
    if to is not None:
        found = [form for form in known if form.name == to]
        names = ", ".join(form.name for form in known)
        if not found:
            raise OutputError(f'{path}: there is no format "{to}"; choose one of {names}')
        return found[0]
    ends = [(len(suffix), form) for form in known for suffix in form.suffixes if path.name.lower().endswith(suffix)]
    longest = [form for length, form in ends if length == max(length for length, _ in ends)]
    if path.suffix.lower() in (".h5", ".hdf5"):
        raise OutputError(f"{path}: which program's HDF5? Give --to ptyrad, py4dstem, phaser or emd")
    if not longest:
        suffixes = ", ".join(dict.fromkeys(suffix for form in known for suffix in form.suffixes if suffix not in (".h5", ".hdf5")))
        raise OutputError(f"{path}: a name that ends in {suffixes} is needed, or --to with the format's name")
    return longest[0]


def import_run(path: str | os.PathLike[str]) -> Imported:
    """Result, recipe or both of a file of another program: what it is is found in it.

    PtyRAD (parameters as YAML, JSON or TOML; ``model_iter*.hdf5``), phaser (plan; state), py4DSTEM (a saved ptychographic reconstruction), fold_slice
    and PtychoShelves (``.mat``). Raises DataError for any other file.
    """
    from ptycho.exchange.foldslice import import_foldslice
    from ptycho.exchange.imported import Imported
    from ptycho.exchange.parameters import SUFFIXES, read_parameters

    source = Path(path).expanduser()
    if source.suffix.lower() in SUFFIXES:
        from ptycho.exchange.phaser_plan import is_phaser_plan, phaser_recipe
        from ptycho.exchange.ptyrad_params import is_ptyrad_params, ptyrad_recipe

        tree = read_parameters(source)
        if is_ptyrad_params(tree):
            recipe = ptyrad_recipe(tree, source)
        elif is_phaser_plan(tree):
            recipe = phaser_recipe(tree, source)
        else:
            raise DataError(f"{source}: these are no parameters of PtyRAD (init_params) or phaser (raw_data, engines)")
        return Imported(None, recipe.text, recipe.warnings)
    if source.suffix.lower() == ".mat":
        return import_foldslice(source)
    return _import_hdf5(source)


def _import_hdf5(source: Path) -> Imported:
    from ptycho.exchange.emd import find_py4dstem, import_py4dstem
    from ptycho.exchange.hdf5 import Opened
    from ptycho.exchange.phaser import import_phaser, recognise_phaser
    from ptycho.exchange.ptyrad import import_ptyrad, recognise_ptyrad

    with Opened(source) as opened:
        if recognise_ptyrad(opened):
            return import_ptyrad(opened)
        if recognise_phaser(opened):
            return import_phaser(opened)
        group = find_py4dstem(opened)
        if group is not None:
            return import_py4dstem(opened, group)
    raise DataError(f"{source}: this is no result of PtyRAD, phaser or py4DSTEM; patterns are read with ptycho new")
