"""``ptycho info``: what is in a file, and what is missing."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

#: What a reconstruction needs, and how to give it.
_NEEDED = {
    "voltage_kV": "[microscope] voltage_kV or --voltage-kV",
    "semiangle_mrad": "[microscope] semiangle_mrad or --semiangle-mrad",
    "step_A": "[scan] step_A or --step-A",
}


def info(
    file: Annotated[str, typer.Argument(help="A 4D-STEM file; file.h5::/entry/data names a data set in it.")],
    scan_shape: Annotated[str | None, typer.Option("--scan-shape", help="slow,fast when the file does not know it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    survey: Annotated[bool, typer.Option(help="Read the patterns for mean, hot and dead pixels.")] = True,
) -> None:
    """Shape, type, metadata with unit and source, mean pattern, and what is missing."""
    from ptycho.cli.reconstruct import _numbers
    from ptycho.io import read

    shape: Any = _numbers(scan_shape)
    data = read(file, scan_shape=shape)
    facts: dict[str, Any] = {
        "file": str(data.source.path),
        "format": data.source.format,
        "scan": list(data.scan_shape),
        "pattern": list(data.pattern_shape),
        "type": str(data.source.dtype),
        "metadata": {
            name: {"value": _plain(q.value), "unit": q.unit, "source": q.source, "trusted": q.trusted}
            for name, q in {**data.source.metadata, **data.calibration}.items()
        },
        "missing": {name: how for name, how in _NEEDED.items() if name not in data.calibration},
    }
    if survey:
        s, centre = data.survey(), data.centre()
        facts["survey"] = {
            "electrons per pattern": s.mean_electrons, "largest pixel": s.max_electrons, "pixels not finite": s.n_nonfinite,
            "pixels negative": s.n_negative, "hot pixels": s.n_hot, "dead pixels": s.n_dead, "bad patterns": len(s.bad_frames),
            "disk centre": [round(c, 2) for c in centre], "disk radius": _radius(data),
        }  # fmt: skip
    facts["warnings"] = list(data.warnings)
    typer.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else _table(facts))


def _radius(data: Any) -> float | None:
    from ptycho.errors import DataError

    try:
        return round(float(data.disk_radius_px), 2)
    except DataError:
        return None


def _table(facts: dict[str, Any]) -> str:
    """The same for people: name, value with unit, where it comes from."""
    scan, pattern = facts["scan"], facts["pattern"]
    lines = [f"{facts['file']}: {facts['format']}, scan {scan[0]} x {scan[1]}, patterns {pattern[0]} x {pattern[1]}, {facts['type']}", ""]
    for name, q in facts["metadata"].items():
        value = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in (q["value"] if isinstance(q["value"], list) else [q["value"]]))
        doubt = "" if q["trusted"] else "  (not sure)"
        lines.append(f"  {name:<18} {value + ' ' + q['unit']:<22} {q['source']}{doubt}")
    for name, value in facts.get("survey", {}).items():
        shown = f"{value:.6g}" if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        lines.append(f"  {name:<18} {shown}")
    lines += [f"  missing: {name}: give it as {how}" for name, how in facts["missing"].items()]
    lines += [f"  note: {warning}" for warning in facts["warnings"]]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
