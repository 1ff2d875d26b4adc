"""``ptycho submit``: runs for a queue, Slurm's or this machine's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho.cli.arguments import Settings, Text
from ptycho.cli.reconstruct import Device

if TYPE_CHECKING:
    from ptycho.jobfolder import JobFolder
    from ptycho.recipe import Recipe
    from ptycho.runs import Run
    from ptycho.slurm import Course, Resources


def submit(
    sources: Annotated[list[str], typer.Argument(metavar="RECIPE|FILE...", help="Recipes, files, or a recipe for files.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Results (default: the recipe's).")] = None,
    set_: Settings = None,
    vary: Annotated[list[str] | None, typer.Option("--vary", metavar="KEY=V,V", help="A run for each value; repeatable.")] = None,
    print_: Annotated[bool, typer.Option("--print", help="Show the script, do nothing.")] = False,
    local: Annotated[int | None, typer.Option(min=1, metavar="N", help="Run here, N at a time.")] = None,
    device: Annotated[Device, typer.Option(metavar="NAME", help="With --local: auto, cpu, cuda, mps.")] = Device.auto,
    gpus: Annotated[Text, typer.Option(metavar="[TYPE:]N", help="GPUs, 0 for none (default: 1).")] = None,
    cpus: Annotated[int | None, typer.Option(metavar="N", help="Cores (default: 4).")] = None,
    memory: Annotated[Text, typer.Option(metavar="16G", help="Memory of a node.")] = None,
    time: Annotated[Text, typer.Option(metavar="H:M:S", help="Time limit.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes (default: 1).")] = None,
    partition: Annotated[Text, typer.Option(metavar="NAME", help="Partition.")] = None,
    account: Annotated[Text, typer.Option(metavar="NAME", help="Account.")] = None,
    setup: Annotated[list[str] | None, typer.Option(metavar="LINE", help="Shell: 'module load ...'; repeatable.")] = None,
    sbatch: Annotated[list[str] | None, typer.Option(metavar="OPTION", help="As in --sbatch=--qos=low; repeatable.")] = None,
    python: Annotated[Text, typer.Option(metavar="PATH", help="Interpreter on the nodes (default: this).")] = None,
    site: Annotated[Path | None, typer.Option(envvar="PTYCHO_SITE", metavar="FILE", help="TOML with the options above.")] = None,
    lead: Annotated[int, typer.Option(metavar="S", help="Signal before the time limit.")] = 180,
    requeues: Annotated[int, typer.Option(min=0, metavar="N", help="Restarts at most.")] = 100,
    at_once: Annotated[int | None, typer.Option(metavar="N", help="Array tasks at a time.")] = None,
) -> None:
    """Queue runs as a Slurm job, or an array of them, that continues after pre-emption and time limits; prints the job's id.

    Several recipes, several files or --vary make one run each, in a folder below DIR. What is finished, running or queued already
    is left alone, so the same command again queues the rest. Script, recipes and output of the jobs are in DIR.job.
    """
    from ptycho.jobfolder import JobFolder
    from ptycho.slurm import Course, Resources, load_site
    from ptycho.slurm_queue import check_slurm

    given: dict[str, Any] = {
        "gpus": gpus, "cpus": cpus, "memory": memory, "time": time, "nodes": nodes, "partition": partition, "account": account,
        "setup": setup or None, "sbatch": sbatch or None, "python": python,
    }  # fmt: skip
    asked = (Resources() if site is None else load_site(site)).replaced({key: value for key, value in given.items() if value is not None}, "--")
    course = Course(lead, requeues, at_once)
    runs, points = _points(sources, set_ or [], vary or [], output)
    if print_:
        typer.echo(_script(runs, asked, course, list(range(len(points))), len(points) > 1), nl=False)
        return
    if local is None:
        check_slurm()
    job = JobFolder(runs)
    _check(job, points)
    with job.taken():
        wanted = _prepare(job, points)
        if not wanted:
            typer.echo(f"nothing to do; see ptycho status {runs}", err=True)
        elif local is None:
            _to_slurm(job, wanted, asked, course)
        else:
            _here(job, wanted, local, device, requeues)


def _points(sources: list[str], settings: list[str], vary: list[str], output: Path | None) -> tuple[Path, dict[str, Recipe]]:
    """The runs, whose data can be opened."""
    from ptycho.sweep import points_of

    if output is None and len(sources) > 1:
        raise typer.BadParameter("several recipes or files need a folder for the results", param_hint="-o")
    runs, points = points_of(sources, settings, vary, output)
    seen = []
    for recipe in points.values():
        if (reading := recipe.reading()) not in seen:
            seen.append(reading)
            recipe.read()  # a name that is wrong is told now, not after a night in the queue
    return runs, points


def _known(job: JobFolder) -> dict[str, Run]:
    """What was submitted before, and how it stands."""
    from ptycho.runs import queued_runs
    from ptycho.slurm_queue import has_slurm, queued

    return queued_runs(job, queued() if job.tasks() and has_slurm() else set())


def _check(job: JobFolder, points: dict[str, Recipe]) -> None:
    """What is in the way is told before anything is written."""
    from ptycho.errors import RecipeError
    from ptycho.recipe import Recipe
    from ptycho.runfolder import RunFolder, difference
    from ptycho.runs import look

    known = _known(job)
    for name, recipe in points.items():
        folder = Path(recipe.output.directory)
        if name in known and known[name].state != "waiting":
            before = job.recipe_file(name)
            # The rule by which reconstruct goes on.
            if changed := difference(Recipe.load(before).text(), recipe.text()):
                what = f"is {known[name].state} with another recipe ({before}): {changed}"
                raise RecipeError(f"{name}: {what}; give another folder with -o, or move this run and its recipe away")
        elif look(folder).state == "waiting":
            RunFolder(folder)


def _prepare(job: JobFolder, points: dict[str, Recipe]) -> list[str]:
    """Write the recipes of the runs that are to be queued, and give their names."""
    known = _known(job)
    for name, run in known.items():
        if name in points and not run.wanted:
            number = f" as job {run.job}" if run.job and run.state != "finished" else ""
            typer.echo(f"{name}: {run.state}{number}, left alone", err=True)
    wanted = [name for name in points if name not in known or known[name].wanted]
    job.add({name: points[name].text() for name in wanted})
    return wanted


def _script(runs: Path, asked: Resources, course: Course, tasks: list[int], array: bool) -> str:
    from ptycho.jobfolder import plain_name
    from ptycho.slurm import script

    return script(plain_name(runs.name), asked, course, tasks if array else None)


def _to_slurm(job: JobFolder, wanted: list[str], asked: Resources, course: Course) -> None:
    from ptycho.slurm_queue import submit

    names = job.names()
    job.write("job.sbatch", _script(job.runs, asked, course, [names.index(name) for name in wanted], len(names) > 1))
    number = submit(job.path)
    job.add_job(number, wanted, len(names) > 1)
    typer.echo(number)
    typer.echo(f"{len(wanted)} run(s) queued with {job.path / 'job.sbatch'}; see ptycho status {job.runs}", err=True)


def _here(job: JobFolder, wanted: list[str], number: int, device: str, restarts: int) -> None:
    import torch

    from ptycho.local_queue import Workers, run_here, visible_gpus

    gpus = visible_gpus(torch.cuda.device_count()) if device in ("auto", "cuda") else ()
    typer.echo(f"{len(wanted)} run(s) here, {number} at a time; their output is in {job.path}; see ptycho status {job.runs}", err=True)
    code = run_here(job, wanted, Workers(min(number, len(wanted)), device, gpus, restarts), typer.echo)
    if code:
        raise typer.Exit(code)
