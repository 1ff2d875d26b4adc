"""``ptycho check``: what could go wrong, before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho.cli.arguments import Settings, recipe_for
from ptycho.cli.reconstruct import Device

if TYPE_CHECKING:
    from ptycho.check import Check


def check(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe.toml, or a file that knows all that is needed.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where the results would go.")] = None,
    set_: Settings = None,
    device: Annotated[Device, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = Device.auto,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Overlap, sampling, dose, slices, memory, time and disk space of a run, each with a remedy if it is not good."""
    from ptycho.check import check as look
    from ptycho.pipeline import check_plan, plan_of

    plan = plan_of(recipe_for(source, set_ or []), device, output)
    found = look(plan)
    told = list(dict.fromkeys(plan.data.warnings))
    typer.echo(_json(found, told) if as_json else _table(found, told))
    check_plan(plan)


def _json(found: tuple[Check, ...], told: list[str]) -> str:
    lines = [{"name": c.name, "value": c.value, "good": c.good, "remedy": c.remedy} for c in found]
    return json.dumps({"checks": lines, "warnings": told}, indent=1, ensure_ascii=False)


def _table(found: tuple[Check, ...], told: list[str]) -> str:
    """Verdict, name and value of each check, the remedy below; then what reading the data had to say."""
    width = max(len(c.name) for c in found) + 2
    lines = []
    for c in found:
        lines.append(f"{'ok' if c.good else 'WARN':<6}{c.name:<{width}}{c.value}")
        if not c.good:
            lines.append(f"{'':<{6 + width}}-> {c.remedy}")
    return "\n".join([*lines, *(f"{'WARN':<6}{'data':<{width}}{warning}" for warning in told)])
