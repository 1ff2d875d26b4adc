"""The recipe: a TOML file as frozen, validated types.

Each section is a record; the [model] and [[solve]] entries are the very dataclasses that the model and the solvers use.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ptycho.data import Dataset4D
from ptycho.errors import RecipeError
from ptycho.io import read
from ptycho.solvers import EPIE, Gradient, MixedState
from ptycho.start import ModelOptions

#: A recipe is a page of text; anything larger is another kind of file.
_MOST_BYTES = 1 << 20

AnySolver = Annotated[Gradient | EPIE | MixedState, Field(discriminator="kind")]
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
    detector_crop: Box | None = None
    bin: int = 1
    mask: str | None = None
    dark: str | None = None
    adu_per_electron: float | None = None


class MicroscopeSection(Section):
    """Beam and probe; what the file knows need not be written."""

    voltage_kV: float | None = None
    semiangle_mrad: float | None = None
    defocus_A: float | None = None
    aberrations: dict[str, float] | None = None


class ScanSection(Section):
    """Where the probe stood."""

    shape: tuple[int, int] | None = None
    step_A: float | Pair | None = None
    rotation_deg: float | None = None
    affine: tuple[Pair, Pair] | None = None
    positions_file: str | None = None


class DetectorSection(Section):
    """The angle of a detector pixel; fitted from the bright-field disk when absent."""

    pixel_invA: float | None = None
    pixel_mrad: float | None = None


class OutputSection(Section):
    """Where the run folder goes, relative to the recipe."""

    directory: str = "run"


class Recipe(Section):
    """A complete description of a run."""

    data: DataSection
    microscope: MicroscopeSection = MicroscopeSection()
    scan: ScanSection = ScanSection()
    detector: DetectorSection = DetectorSection()
    model: ModelOptions = ModelOptions()
    solve: tuple[AnySolver, ...] = (Gradient(),)
    output: OutputSection = OutputSection()

    @classmethod
    def load(cls, path: str | Path, settings: Sequence[str] = ()) -> Recipe:
        """From a file, with ``a.b=c`` settings in place of its values; relative paths in it start from its folder.

        Raises RecipeError naming file, key, what was found and what is allowed.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise RecipeError(f"{path}: {path.stat().st_size} bytes is too long for a recipe; is it a data file?")
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror or error}; give the recipe's path") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RecipeError(f"{path}: not a TOML file: {error}") from None
        return cls.parse(tree, settings, name=str(path), folder=path.parent)

    @classmethod
    def parse(cls, tree: Mapping[str, Any], settings: Sequence[str] = (), name: str = "recipe", folder: Path | None = None) -> Recipe:
        """From a tree of plain values; ``name`` is said in errors. Raises RecipeError."""
        tree = dict(tree)
        for setting in settings:
            _apply(tree, setting)
        if tree.get("solve") == []:
            del tree["solve"]
        try:
            # JSON's strict mode takes lists as tuples and integers as floats, and still refuses "40" for 40.
            recipe = TypeAdapter(cls).validate_json(json.dumps(tree), strict=True)
        except ValidationError as error:
            raise RecipeError(f"{name}: {_explain(error, tree)}") from None
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{name}: {error}") from None
        return recipe if folder is None else recipe._from(folder)

    def _from(self, folder: Path) -> Recipe:
        """With paths that are valid wherever the program stands."""

        def there(path: str | None) -> str | None:
            return None if path is None else str(folder / Path(path).expanduser())

        d, m = self.data, self.model
        data = d.model_copy(update={"path": there(d.path), "mask": there(d.mask), "dark": there(d.dark)})
        scan = self.scan.model_copy(update={"positions_file": there(self.scan.positions_file)})
        files = {name: there(getattr(m, name)) for name in ("probe_file", "vacuum_file", "object_file")}
        model = ModelOptions(**{**vars(m), **files})  # type: ignore[arg-type]
        output = OutputSection(directory=str(folder / Path(self.output.directory).expanduser()))
        return self.model_copy(update={"data": data, "scan": scan, "model": model, "output": output})

    def read(self) -> Dataset4D:
        """The data set that the recipe describes. Raises as :func:`ptycho.io.read` does."""
        d = self.data
        return read(
            d.path, format=d.format, flip_rows=d.flip_rows, flip_columns=d.flip_columns, transpose=d.transpose, scan_region=d.scan_region,
            detector_crop=d.detector_crop, bin=d.bin, mask=d.mask, dark=d.dark, adu_per_electron=d.adu_per_electron,
            voltage_kV=self.microscope.voltage_kV, semiangle_mrad=self.microscope.semiangle_mrad, defocus_A=self.microscope.defocus_A,
            aberrations=self.microscope.aberrations, scan_shape=self.scan.shape, step_A=self.scan.step_A, rotation_deg=self.scan.rotation_deg,
            affine=self.scan.affine, positions_file=self.scan.positions_file, pixel_invA=self.detector.pixel_invA,
            pixel_mrad=self.detector.pixel_mrad,
        )  # fmt: skip

    def completed(self, data: Dataset4D) -> Recipe:
        """With the values that were read or estimated, so that the recipe says all that the run used."""
        known = {key: quantity.value for key, quantity in data.calibration.items()}
        d, m, s = self.data, self.microscope, self.scan
        pixel = self.detector
        if pixel.pixel_invA is None and pixel.pixel_mrad is None:
            pixel = DetectorSection(pixel_invA=float(data.pixel_invA.value) / d.bin)
        # A region or a positions file speaks of the whole scan's shape, which is not the shape of what was kept.
        whole = s.positions_file is None and d.scan_region is None
        shape = s.shape or ((data.scan_shape[0], data.scan_shape[1]) if whole else None)
        return self.model_copy(
            update={
                "data": d.model_copy(update={key: known.get(key) for key in ("flip_rows", "adu_per_electron")}),
                "microscope": m.model_copy(update={key: known.get(key) for key in ("voltage_kV", "semiangle_mrad")}),
                "scan": s.model_copy(update={"shape": shape, "step_A": known.get("step_A", s.step_A), "rotation_deg": known.get("rotation_deg")}),
                "detector": pixel,
            }
        )

    def text(self) -> str:
        """As TOML that :meth:`load` reads back to the same recipe."""
        tree = TypeAdapter(Recipe).dump_python(self, mode="json", exclude_none=True)
        return tomlkit.dumps({key: value for key, value in tree.items() if value != {}})


def solvers_from(given: Any) -> tuple[Gradient | EPIE | MixedState, ...]:
    """One or more solvers from solver records or plain dictionaries (a [[solve]] entry each). Raises RecipeError."""
    entries = list(given) if isinstance(given, (list, tuple)) else [given]
    adapter: TypeAdapter[Gradient | EPIE | MixedState] = TypeAdapter(AnySolver)
    return tuple(e if isinstance(e, (Gradient, EPIE, MixedState)) else _one_solver(adapter, e) for e in entries)


def _one_solver(adapter: TypeAdapter[Any], entry: Any) -> Any:
    try:
        return adapter.validate_json(json.dumps(entry), strict=True)
    except ValidationError as error:
        raise RecipeError(f"solve: {_explain(error, entry)}") from None


def _apply(tree: dict[str, Any], setting: str) -> None:
    """Put one ``a.b.0.c=value`` into the tree; the value is TOML, or text when it is no TOML value."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f'--set "{setting}": write it as section.key=value, for example model.slices=4')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    node: Any = tree
    for name, following in zip(parents, [*parents[1:], last], strict=True):
        node = _child(node, name, [] if following.isdigit() else {}, setting)
    if isinstance(node, list):
        _child(node, last, value, setting)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f'--set "{setting}": {".".join(parents)} is a value, not a section')


def _child(node: Any, name: str, new: Any, setting: str) -> Any:
    """The entry ``name`` of a table or list, made when absent (a list grows by one at most)."""
    if isinstance(node, dict):
        return node.setdefault(name, new)
    if isinstance(node, list) and name.isdigit() and int(name) <= len(node):
        if int(name) == len(node):
            # A stage that the recipe does not name is the default one with this key changed.
            node.append({"kind": "gradient"} if new == {} else new)
        return node[int(name)]
    raise RecipeError(f'--set "{setting}": there is no entry {name}; stages count from 0')


def _explain(error: ValidationError, tree: Any) -> str:
    """The first problem in one sentence: path, what was found, what is allowed; and how many more there are."""
    problems = error.errors()
    # A wrong kind of solver hides nothing else; an unknown key says more than the missing one beside it.
    first = min(problems, key=lambda p: p["type"] != "extra_forbidden" and p["type"] != "unexpected_keyword_argument")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _sentence(first, tree) + more


def _sentence(problem: ErrorDetails, tree: Any) -> str:
    kinds = ("gradient", "epie", "mixed_state")
    location = [str(part) for part in problem["loc"] if str(part) not in kinds]
    # The branches of "a number or two" are pydantic's, not the user's.
    location = [part for part in location if "[" not in part and part not in ("float", "int", "str", "bool", "true", "false")]
    path = ".".join(location) or "recipe"
    found = problem.get("input")
    kind = problem["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{path}: unknown key{_suggest(location, tree)}"
    if kind == "missing":
        return f"{path}: missing; it has to be given"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f'{path}.kind: found {_quoted(found, "kind")}; allowed are "gradient", "epie", "mixed_state"'
    text = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {text}" if path != "recipe" else text
    return f"{path} = {json.dumps(found, ensure_ascii=False, default=str)[:80]}: {text[0].lower()}{text[1:]}"


def _quoted(found: Any, key: str) -> str:
    return json.dumps(found.get(key) if isinstance(found, dict) else found)


def _suggest(location: Sequence[str], tree: Any) -> str:
    """What may stand there instead, nearest first."""
    names = _known_keys(location[:-1], tree)
    near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"? Allowed are {", ".join(names)}' if near else f"; allowed are {', '.join(names)}"


def _known_keys(parents: Sequence[str], tree: Any) -> list[str]:
    """Names that the record at this place of the recipe has."""
    if not parents:
        return list(Recipe.model_fields)
    rest = list(parents[1:])
    if parents[0] == "solve":
        entry = tree["solve"][int(rest.pop(0))] if "solve" in tree else tree
        record: Any = {"epie": EPIE, "mixed_state": MixedState}.get(entry.get("kind", ""), Gradient)
    else:
        record = Recipe.model_fields[parents[0]].annotation
    for name in rest:
        options = get_args(get_type_hints(record)[name]) or (get_type_hints(record)[name],)
        record = next(option for option in options if option is not type(None))
    return [f.name for f in fields(record)] if is_dataclass(record) else list(getattr(record, "model_fields", ()))
