"""``ptycho doctor``: is this machine in good health?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ptycho.doctor import Machine


def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Versions, processors, memory, disk, speed of transforms, and common trouble with its remedy."""
    from ptycho.doctor import examine

    machine = examine(Path.cwd())
    typer.echo(json.dumps(_finite(asdict(machine)), indent=1, ensure_ascii=False) if as_json else _page(machine))


def _page(machine: Machine) -> str:
    from ptycho.doctor import PATTERNS, what_for

    lines = [machine.system, " ".join(f"{name} {version or '(absent)'}" + "," for name, version in machine.versions).rstrip(","), ""]
    lines.append(f"CPU      {machine.cores} cores, {machine.threads} threads used")
    for d in machine.devices:
        memory = "" if math.isnan(d.memory_GB) else f" of {d.memory_GB:.1f}"
        lines.append(f"{d.kind:<8} {d.name}, {d.free_GB:.1f}{memory} GB free")
        lines.append(f"{'':<8} FFT 128 x 128: {d.gflops:.3g} GFLOP/s; a pass of {PATTERNS} patterns (1 mode, 1 slice) takes about {_time(d.pass_s)}")
    lines += [f"disk     {machine.disk_free_GB:.1f} GB free in {machine.folder}", ""]
    lines += [f"extra    {name} {version or f'absent ({what_for(name)})'}" for name, version in machine.extras]
    lines += ["", *(f"WARN     {t.what}\n{'':<8} -> {t.remedy}" for t in machine.troubles)]
    return "\n".join([*lines, *([] if machine.troubles else ["All is well. Next: ptycho new FILE, or ptycho reconstruct demo"])])


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99 else f"{seconds / 60:.0f} min"


def _finite(value: Any) -> Any:
    """Without nan, which is not JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
