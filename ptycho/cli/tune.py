"""``ptycho tune``: the best values of a recipe, by the likelihood of held-out patterns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho.cli.arguments import Settings, recipe_for
from ptycho.cli.reconstruct import Device

if TYPE_CHECKING:
    from ptycho.recipe import Recipe
    from ptycho.tune_report import Tuned


def tune(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe.toml, or a file that knows all that is needed.")],
    vary: Annotated[list[str] | None, typer.Option(metavar="KEY=RANGE", help="80:240, 1e-4:1e-1:log or 1,2,4; repeatable.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The search, which others may join.")] = Path("tune"),
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Short reconstructions, by all processes together.")] = 40,
    epochs: Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="Passes of each (default: 4; several slices: 20).")] = 0,
    patterns: Annotated[int, typer.Option(min=0, metavar="N", help="Patterns from the middle of the field (0: all).")] = 1024,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes, each on its own GPU if there are as many.")] = 1,
    set_: Settings = None,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Cut short what is worse than the median at the same pass.")] = True,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the candidates that are drawn.")] = 0,
    device: Annotated[Device, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = Device.auto,
    threads: Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="CPU threads of all processes (0: all cores).")] = 0,
) -> None:
    """Search for a recipe's best values: many short reconstructions, judged by patterns that they have not seen.

    Without --vary: defocus, rotation of the scan, probe modes, and with several slices their number and thickness. The folder gets best.toml,
    trials.csv and pictures. The same command goes on after Ctrl-C or TERM; on other machines it joins in.
    """
    from ptycho.tuning import check_optuna

    check_optuna()
    import torch

    from ptycho.tune_objective import Effort
    from ptycho.tune_plan import keep, planned
    from ptycho.tune_report import progress_line
    from ptycho.tune_worker import STOPPED
    from ptycho.tuning import carried_out

    if threads > 0:
        torch.set_num_threads(threads)
    settings = set_ or []
    recipe = recipe_for(source, settings)
    plan = planned(recipe, vary or [], Effort(epochs, patterns), seed, prune)
    keep(plan, output)
    typer.echo("varied: " + "; ".join(f"{r.key} = {r}" for r in plan.ranges), err=True)
    found = carried_out(plan, output, trials, workers, device, lambda row, rows: typer.echo(progress_line(row, rows), err=True))
    if not found.complete:
        left = sum(row.state in ("waiting", "running") for row in found.rows)
        typer.echo(f"stopped with {left} of {len(found.rows)} trials to go; the same command goes on", err=True)
        raise typer.Exit(STOPPED)
    typer.echo(str(found))
    typer.echo(f"recipe: {_write_best(found, source, recipe, settings)}")
    typer.echo(f"pictures: {output / 'parallel.png'}, {output / 'importance.png'}; all trials: {output / 'trials.csv'}")


def _write_best(found: Tuned, source: str, recipe: Recipe, settings: list[str]) -> Path:
    """The recipe with the best values and the settings of the command line."""
    from ptycho.atomic import write_file
    from ptycho.tune_report import best_recipe

    if source.endswith(".toml"):
        text, folder = Path(source).read_text(encoding="utf-8"), Path(source).parent
    else:
        text, folder = recipe.text(), Path()
    write_file(found.folder / "best.toml", best_recipe(found, text, folder, dict(_pair(s) for s in settings)).encode())
    return found.folder / "best.toml"


def _pair(setting: str) -> tuple[str, Any]:
    from ptycho.settings import setting_of

    return setting_of(setting)
