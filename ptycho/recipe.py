"""The recipe: a TOML file as frozen, validated types.

Each section is a record; the [model] and [[solve]] entries are the very dataclasses that the model and the solvers use.
"""

from __future__ import annotations

import copy
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tomlkit
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ptycho.data import Dataset4D
from ptycho.errors import RecipeError
from ptycho.explain import sentence
from ptycho.io import RawLayout, read
from ptycho.sample import SPECIMENS
from ptycho.settings import apply
from ptycho.simulation_settings import Simulation
from ptycho.solvers import EPIE, LSQML, Gradient, MixedState, Polish, Solver
from ptycho.start import ModelOptions

#: A recipe is a page of text; anything larger is another kind of file.
_MOST_BYTES = 1 << 20

AnySolver = Annotated[Solver, Field(discriminator="kind")]
_KINDS: dict[str, Any] = {"gradient": Gradient, "epie": EPIE, "mixed_state": MixedState, "lsqml": LSQML, "polish": Polish}
Pair = tuple[float, float]
Box = tuple[int, int, int, int]


class Section(BaseModel):
    """Common to all sections: no unknown keys, no silent conversion, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSection(Section):
    """Where the patterns are and how they are oriented."""

    path: str
    format: str | None = None
    flip_rows: bool | None = None
    flip_columns: bool = False
    transpose: bool = False
    scan_region: Box | None = None
    centre: Literal["auto", "none"] | Pair | None = None
    window: int | tuple[int, int] | None = None
    detector_crop: Box | None = None
    descan: Literal["plane", "parabola"] | None = None
    bin: int = 1
    mask: str | None = None
    dark: str | None = None
    gain: str | None = None
    adu_per_electron: float | None = None
    layout: RawLayout | None = None
    calibration_file: str | None = None
    memory_GB: float | None = None


class MicroscopeSection(Section):
    """Beam and probe; what the file knows need not be written."""

    voltage_kV: float | None = None
    semiangle_mrad: float | None = None
    defocus_A: float | None = None
    aberrations: dict[str, float] | None = None


class ScanSection(Section):
    """Where the probe stood."""

    shape: tuple[int, int] | None = None
    flyback: tuple[int, int] | None = None
    skip_frames: int = 0
    step_A: float | Pair | None = None
    rotation_deg: float | None = None
    affine: tuple[Pair, Pair] | None = None
    positions_file: str | None = None


class DetectorSection(Section):
    """The angle of a detector pixel; fitted from the bright-field disk when absent."""

    pixel_invA: float | None = None
    pixel_mrad: float | None = None


class OutputSection(Section):
    """Where the run folder goes, relative to the recipe; with ``halves`` two more reconstructions, from half of the data each, say how good it is.

    The state is kept every ``checkpoint_minutes`` and every ``checkpoint_epochs``; 0: not by this rule.
    """

    directory: str = "run"
    halves: bool = False
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    checkpoint_epochs: Annotated[int, Field(ge=0)] = 0


class Recipe(Section):
    """A complete description of a run."""

    data: DataSection
    microscope: MicroscopeSection = MicroscopeSection()
    scan: ScanSection = ScanSection()
    detector: DetectorSection = DetectorSection()
    model: ModelOptions = ModelOptions()
    solve: tuple[AnySolver, ...] = ()
    output: OutputSection = OutputSection()

    @classmethod
    def load(cls, path: str | Path, settings: Sequence[str] = ()) -> Recipe:
        """From a file, with ``a.b=c`` settings in place of its values; relative paths in it start from its folder.

        Raises RecipeError naming file, key, what was found and what is allowed.
        """
        return cls.parse(_tree(path), settings, name=str(path), folder=Path(path).parent)

    @classmethod
    def parse(cls, given: Mapping[str, Any], settings: Sequence[str] = (), name: str = "recipe", folder: Path | None = None) -> Recipe:
        """From a tree of plain values; ``name`` is said in errors. Raises RecipeError."""
        tree = copy.deepcopy(dict(given))
        for setting in settings:
            apply(tree, setting)
        if tree.get("solve") == []:
            del tree["solve"]
        try:
            # JSON's strict mode takes lists as tuples and integers as floats, and still refuses "40" for 40. Dates become text.
            recipe = TypeAdapter(cls).validate_json(json.dumps(tree, default=str), strict=True)
        except ValidationError as error:
            raise RecipeError(f"{name}: {_explain(error, tree, Recipe)}") from None
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{name}: {error}") from None
        return recipe if folder is None else recipe._from(folder)

    @classmethod
    def of(cls, data: Dataset4D) -> Recipe:
        """The recipe that reads ``data`` again. Arrays that were given in place of files cannot be named and are left out."""
        tree: dict[str, dict[str, Any]] = {"data": {"path": str(data.source.header.path)}}
        for section, key, argument in _READ:
            value = data.given.get(argument)
            if value is None or (argument in _FILES and isinstance(value, np.ndarray)):
                continue
            tree.setdefault(section, {})[key] = os.fspath(value) if argument in _FILES else _plain(value)
        return cls.parse(tree)

    def _from(self, folder: Path) -> Recipe:
        """With paths that are valid wherever the program stands."""

        def there(path: str | None) -> str | None:
            if path is None:
                return None
            # What follows "::" is a name inside of the file, with / on every system; a Path would turn it round on Windows.
            file, colons, dataset = path.partition("::")
            return str(folder / Path(file).expanduser()) + colons + dataset

        d, m = self.data, self.model
        data = d.model_copy(update={key: there(getattr(d, key)) for key in ("path", "mask", "dark", "gain", "calibration_file")})
        scan = self.scan.model_copy(update={"positions_file": there(self.scan.positions_file)})
        model = replace(m, probe_file=there(m.probe_file), vacuum_file=there(m.vacuum_file), object_file=there(m.object_file))
        output = self.output.model_copy(update={"directory": str(folder / Path(self.output.directory).expanduser())})
        return self.model_copy(update={"data": data, "scan": scan, "model": model, "output": output})

    def read(self) -> Dataset4D:
        """The data set that the recipe describes. Raises as :func:`ptycho.io.read` does."""
        return read(**self.reading())

    def reading(self) -> dict[str, Any]:
        """The arguments of :func:`ptycho.io.read`."""
        return {argument: getattr(getattr(self, section), key) for section, key, argument in _READ}

    def completed(self, data: Dataset4D, pixel_invA: float) -> Recipe:
        """With the values that were read or estimated and absolute paths, so that it says all that the run used, wherever it is put.

        ``pixel_invA`` is that of the patterns, after binning.
        """
        known = {key: quantity.value for key, quantity in data.calibration.items()}
        d, m, s = self.data, self.microscope, self.scan
        pixel = self.detector
        if pixel.pixel_invA is None and pixel.pixel_mrad is None:
            pixel = DetectorSection(pixel_invA=float(pixel_invA) / d.bin)
        # A region or a positions file speaks of the whole scan's shape, which is not the shape of what was kept.
        whole = s.positions_file is None and d.scan_region is None
        shape = s.shape or ((data.scan_shape[0], data.scan_shape[1]) if whole else None)
        # Without a centre the patterns are as they were stored, and a crop says it all.
        centre = None if d.detector_crop is not None else known.get("centre_px", "none")
        recipe = self.model_copy(
            update={
                "data": d.model_copy(update={"centre": centre, **{key: known.get(key) for key in ("flip_rows", "adu_per_electron")}}),
                "microscope": m.model_copy(update={key: known.get(key) for key in ("voltage_kV", "semiangle_mrad", "defocus_A")}),
                "scan": s.model_copy(update={"shape": shape, "step_A": known.get("step_A", s.step_A), "rotation_deg": known.get("rotation_deg")}),
                "detector": pixel,
            }
        )
        return recipe._from(Path.cwd())

    def text(self) -> str:
        """As TOML that :meth:`load` reads back to the same recipe."""
        tree = TypeAdapter(Recipe).dump_python(self, mode="json", exclude_none=True)
        return tomlkit.dumps({key: value for key, value in tree.items() if value != {}})


#: Every key of the sections that say how to read: (section, key, argument of ptycho.io.read).
_READ = tuple(
    (section, key, "scan_shape" if (section, key) == ("scan", "shape") else key)
    for section in ("data", "microscope", "scan", "detector")
    for key in Recipe.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
)
_FILES = ("path", "mask", "dark", "gain", "positions_file", "calibration_file")


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, through lists and dictionaries."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, RawLayout):
        return vars(value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def load_simulation(path: str | Path | None, settings: Sequence[str] = ()) -> Simulation:
    """The settings of a simulated data set from a TOML file whose keys are the fields of :class:`ptycho.Simulation`.

    ``key=value`` settings take the place of its values, or stand alone. A structure's path starts from the file's folder. Raises RecipeError.
    """
    tree = {} if path is None else _tree(path)
    specimen = tree.get("specimen")
    if path is not None and isinstance(specimen, str) and specimen not in SPECIMENS:
        tree["specimen"] = str(Path(path).parent / Path(specimen).expanduser())
    for setting in settings:
        apply(tree, setting)
    name = "simulation" if path is None else str(path)
    try:
        return _validated(TypeAdapter(Simulation), tree, name, Simulation)
    except RecipeError as error:
        raise RecipeError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None


def _tree(path: str | Path) -> dict[str, Any]:
    """What a TOML file holds. Raises RecipeError."""
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RecipeError(f"{path}: this is a pipe or a device; give the recipe's path")
        if path.stat().st_size > _MOST_BYTES:
            raise RecipeError(f"{path}: {path.stat().st_size} bytes is too long for a recipe; is it a data file?")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # an editor's byte order mark is no part of it
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}; give the recipe's path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = r"; in 'single quotes' a \ is a \ (path = 'C:\data\scan.raw')" if "escape" in str(error) or "\\" in str(error) else ""
        raise RecipeError(f"{path}: not a TOML file: {error}{hint}") from None


def solvers_from(given: Any) -> tuple[Solver, ...]:
    """One or more solvers from solver records or plain dictionaries (a [[solve]] entry each). Raises RecipeError."""
    entries = list(given) if isinstance(given, (list, tuple)) else [given]
    adapter: TypeAdapter[Solver] = TypeAdapter(AnySolver)
    return tuple(e if isinstance(e, Solver) else _validated(adapter, e, "solve", Gradient) for e in entries)


def solver_keys() -> set[str]:
    """Every key that some [[solve]] entry can have."""
    return {f.name for kind in _KINDS.values() for f in fields(kind)}


def model_from(given: Mapping[str, Any]) -> ModelOptions:
    """The [model] section from plain values. Raises RecipeError."""
    return _validated(TypeAdapter(ModelOptions), given, "model", ModelOptions)


def _validated(adapter: TypeAdapter[Any], given: Any, name: str, record: Any) -> Any:
    tree = _plain(given)
    try:
        return adapter.validate_json(json.dumps(tree, default=_as_tree), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{name}: {_explain(error, tree, record)}") from None


def _as_tree(value: Any) -> Any:
    """A record inside of a dictionary (``update=Updates(...)``) as its values, None left out; anything else as text."""
    return {k: v for k, v in vars(value).items() if v is not None} if is_dataclass(value) else str(value)


def _explain(error: ValidationError, tree: Any, record: Any) -> str:
    return sentence(error.errors(), tree, record, _KINDS)
