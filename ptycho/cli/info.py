"""``ptycho info``: what is in a file, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho.cli.arguments import Settings, numbers, opened, quoted, reading, tell_next

if TYPE_CHECKING:
    from ptycho.data import Dataset4D

#: What a reconstruction needs: section of the recipe, and what to do when it is not known.
_NEEDED = {"voltage_kV": "microscope", "semiangle_mrad": "microscope", "step_A": "scan"}
_FORMATS = {"empad": "EMPAD", "hdf5": "HDF5", "npy": "NumPy", "npz": "NumPy (npz)"}


def info(
    file: Annotated[str, typer.Argument(metavar="FILE|RECIPE", help="file.h5::/entry/data names a data set in it.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="PNG", help="Mean pattern, bright field and histogram.")] = None,
    scan_shape: Annotated[str | None, typer.Option("--scan-shape", metavar="SLOW,FAST", help="When the file does not know it.")] = None,
    set_: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    survey: Annotated[bool, typer.Option("--survey/--no-survey", help="Read the patterns for mean, hot and dead pixels.")] = True,
) -> None:
    """Shape, type, metadata with unit and source, mean pattern, and what is missing."""
    from ptycho.errors import DataError

    shape = numbers(scan_shape, "--scan-shape")
    arguments = reading(file, set_ or []) | ({} if shape is None else {"scan_shape": shape})
    data, known = opened(arguments)
    facts = _facts(data)
    facts["missing"] = {} if known else {"shape": "scan"}
    if survey:
        try:
            facts["patterns"] = _patterns(data)
        except DataError as error:
            if output is not None:
                raise
            data.warnings.append(str(error))
    facts["missing"] |= {name: section for name, section in _NEEDED.items() if name not in data.calibration and not _listed(data, name)}
    facts["warnings"] = list(data.warnings)
    if output is not None:
        facts["picture"] = str(_draw(data, output))
    typer.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else _table(facts))
    if not as_json:
        tell_next(f"ptycho {f'calibrate {quoted(file)} --write' if file.endswith('.toml') else f'new {quoted(file)}'}")


def _listed(data: Dataset4D, name: str) -> bool:
    """Positions that are listed in a file need no step."""
    return name == "step_A" and data.positions_A is not None


def _draw(data: Dataset4D, output: Path) -> Path:
    """The picture, in its place; what was there is replaced only by a complete one."""
    import numpy as np

    from ptycho.atomic import write_file
    from ptycho.errors import OutputError
    from ptycho.overview import overview
    from ptycho.plot import overview_png

    if output.suffix.lower() != ".png":
        raise OutputError(f"{output}: pictures are PNG files; give a name that ends in .png")
    step = data.calibration.get("step_A")
    title = f"{data.name}   ·   {_by(list(data.scan_shape))} patterns of {_by(list(data.pattern_shape))} px"
    write_file(output, overview_png(overview(data), title, None if step is None else float(np.mean(step.value))))
    return output


def _facts(data: Dataset4D) -> dict[str, Any]:
    known = {**data.source.header.metadata, **data.calibration}
    known.pop("scan_shape", None)  # it may not be the shape that is used
    return {
        "file": str(data.source.header.path),
        "format": data.source.header.format,
        "scan": list(data.scan_shape),
        "patterns_used": data.n_positions,
        "pattern": list(data.pattern_shape),
        "type": str(data.source.header.dtype),
        "metadata": {
            name: {"value": _plain(q.value), "unit": q.unit, "source": q.source, "trusted": q.trusted}
            for name, q in sorted(known.items(), key=lambda item: _order(item[0]))
        },
    }


def _patterns(data: Dataset4D) -> dict[str, Any]:
    """What the patterns show; None where they do not."""
    from ptycho.errors import DataError

    survey = data.survey()
    try:
        centre, radius = [round(float(c), 2) for c in data.centre()], round(float(data.disk_radius_px), 2)
    except DataError:
        centre = radius = None  # type: ignore[assignment]
    return {
        "surveyed": survey.n_surveyed, "electrons_per_pattern": survey.mean_electrons, "largest_pixel_electrons": survey.max_electrons,
        "values_not_finite": survey.n_nonfinite, "values_negative": survey.n_negative, "hot_pixels": survey.n_hot,
        "dead_pixels": survey.n_dead, "pixels_never_measured": survey.n_static_bad, "bad_patterns": len(survey.bad_frames),
        "disk_centre_px": centre, "disk_radius_px": radius,
    }  # fmt: skip


def _table(facts: dict[str, Any]) -> str:
    """The same for people: name, value with unit, where it comes from."""
    kind = _FORMATS.get(facts["format"], facts["format"])
    lines = [facts["file"], f"{kind}: scan {_by(facts['scan'])} (slow x fast), patterns {_by(facts['pattern'])} px, {facts['type']}"]
    lines += ["", "Known"]
    rows = [(name, _value(q), q["source"] + ("" if q["trusted"] else "  (check)")) for name, q in facts["metadata"].items()]
    width = max((len(value) for _, value, _ in rows), default=0)
    lines += [f"  {name:<20}{value:<{width}}  {source}" for name, value, source in rows]
    if "patterns" in facts:
        lines += ["", f"Patterns ({facts['patterns']['surveyed']} of them read)", *_pattern_lines(facts["patterns"], facts["pattern"])]
    if facts["missing"]:
        lines += ["", "Missing: a reconstruction needs, in the recipe or on the command line"]
        lines += [
            f"  {'scan_shape' if name == 'shape' else name:<20}[{section}] {name} = ...  or  {_flag('scan_shape' if name == 'shape' else name)} ..."
            for name, section in facts["missing"].items()
        ]
    if "defocus_A" not in facts["metadata"] and "aberrations" not in facts["metadata"]:
        lines += ["", "Not known and taken as 0: defocus_A; give [microscope] defocus_A = ...  or  --defocus-A ... (positive is underfocus)"]
    if "picture" in facts:
        lines += ["", f"picture: {facts['picture']}"]
    if facts["warnings"]:
        lines += ["", "Warnings", *(f"  {warning}" for warning in facts["warnings"])]
    return "\n".join(lines)


def _pattern_lines(found: dict[str, Any], pattern: list[int]) -> list[str]:
    bad = {
        "hot pixels": found["hot_pixels"], "dead pixels": found["dead_pixels"], "pixels never measured": found["pixels_never_measured"],
        "damaged patterns": found["bad_patterns"],
        "values not finite": found["values_not_finite"], "values below -1 electron": found["values_negative"],
    }  # fmt: skip
    disk = "none found"
    if found["disk_centre_px"] is not None:
        y, x = found["disk_centre_px"]
        disk = f"radius {found['disk_radius_px']:.2f} px, centre ({y:.2f}, {x:.2f}); the pattern's centre is ({pattern[0] // 2}, {pattern[1] // 2})"
    rows = {
        "electrons": f"{found['electrons_per_pattern']:.6g} per pattern on average, {found['largest_pixel_electrons']:.4g} in the brightest pixel",
        "bright-field disk": disk,
        "left out": ", ".join(f"{number} {what}" for what, number in bad.items() if number) or "nothing: no hot, dead, negative or damaged pixels",
    }
    return [f"  {name:<20}{text}" for name, text in rows.items()]


def _order(name: str) -> int:
    """Microscope, scan and detector in the recipe's order; what is only told, last."""
    names = (
        "voltage_kV", "semiangle_mrad", "defocus_A", "aberrations", "step_A", "rotation_deg", "affine",
        "pixel_invA", "pixel_mrad", "adu_per_electron", "flip_rows", "centre_px", "descan",
    )  # fmt: skip
    return names.index(name) if name in names else len(names)


def _value(quantity: dict[str, Any]) -> str:
    """A value with its unit, as a person would write it."""
    value, unit = quantity["value"], quantity["unit"]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{key} = {number:.6g}" for key, number in value.items())
    if isinstance(value, list) and value and isinstance(value[0], list):
        return str(value)
    numbers = value if isinstance(value, list) else [value]
    text = " x ".join(f"{v:.6g}" for v in dict.fromkeys(numbers))
    return f"{text}{unit}" if unit == "°" else f"{text} {unit}"


def _by(shape: list[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
