"""``ptycho reconstruct``: the main job."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho.cli.arguments import (
    AduPerElectron,
    Bin,
    DefocusA,
    FlipColumns,
    FlipRows,
    Number,
    PixelInvA,
    RotationDeg,
    ScanShape,
    SemiangleMrad,
    Settings,
    StepA,
    Threads,
    Transpose,
    VoltageKV,
    numbers,
    recipe_for,
    settings_of,
)

if TYPE_CHECKING:
    from ptycho.ranks import Ranks
    from ptycho.recipe import Recipe
    from ptycho.result import Result

DEMO = Path("ptycho-demo")


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def reconstruct(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE|demo", help="A recipe.toml, a 4D-STEM file, or demo.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Results (default: the recipe's, or ./run).")] = None,
    set_: Settings = None,
    halves: Annotated[bool, typer.Option("--halves", help="Two half-data runs too: resolution, error.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move what is in DIR aside and start anew.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on, as always; done is no error.")] = False,
    live: Annotated[bool, typer.Option("--live", help="A page in the browser while it runs.")] = False,
    device: Annotated[Device, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = Device.auto,
    threads: Threads = 0,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Same bits on a GPU each time.")] = False,
    voltage_kV: VoltageKV = None,
    semiangle_mrad: SemiangleMrad = None,
    defocus_A: DefocusA = None,
    scan_shape: ScanShape = None,
    step_A: StepA = None,
    rotation_deg: RotationDeg = None,
    pixel_invA: PixelInvA = None,
    adu_per_electron: AduPerElectron = None,
    flip_rows: FlipRows = None,
    flip_columns: FlipColumns = False,
    transpose: Transpose = False,
    bin_: Bin = None,
    modes: Annotated[int | None, typer.Option("--probe-modes", metavar="N", help="Incoherent modes of the probe.")] = None,
    slices: Annotated[int | None, typer.Option("--slices", metavar="N", help="Slices of the object along the beam.")] = None,
    slice_thickness_A: Annotated[Number, typer.Option("--slice-thickness-A", metavar="Å", help="From slice to slice.")] = None,
    refine: Annotated[str | None, typer.Option("--refine", metavar="NAMES", help="As in scan,positions,tilt,aberrations.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", help="Passes over the data, of the first stage.")] = None,
    kind: Annotated[str | None, typer.Option("--solver", metavar="KIND", help="gradient, epie, mixed_state, lsqml, polish.")] = None,
) -> None:
    """Reconstruct a recipe, a data file, or the demo, and write phase.png, phase.tif and result.h5."""
    names = refine.split(",") if refine else None
    given = {
        "microscope.voltage_kV": voltage_kV, "microscope.semiangle_mrad": semiangle_mrad, "microscope.defocus_A": defocus_A,
        "scan.shape": numbers(scan_shape, "--scan-shape"), "scan.step_A": numbers(step_A, "--step-A"), "scan.rotation_deg": rotation_deg,
        "detector.pixel_invA": pixel_invA, "data.adu_per_electron": adu_per_electron, "data.flip_rows": flip_rows,
        "data.flip_columns": flip_columns or None, "data.transpose": transpose or None, "data.bin": bin_, "model.probe_modes": modes,
        "model.slices": slices, "model.slice_thickness_A": slice_thickness_A, "solve.0.kind": kind, "model.refine": names, "solve.0.epochs": epochs,
        "output.halves": halves or None,
    }  # fmt: skip
    from ptycho.errors import Stopped
    from ptycho.ranks import Ranks, joined

    ranks = Ranks()
    try:
        with joined() as ranks:
            recipe = recipe_for(str(_make_demo(ranks)) if source == "demo" else source, settings_of(given, set_))
            folder = output or Path(recipe.output.directory)
            result = _run(recipe, RunPlace(folder, fresh, resume, ranks, live), Machine(device, threads, deterministic))
            if ranks.first:
                _tell(folder, result, recipe)
    except Stopped as stopped:
        if ranks.first:
            raise
        raise typer.Exit(stopped.exit_code) from None  # the first process says it for all


def _tell(folder: Path, result: Result, recipe: Recipe) -> None:
    typer.echo(f"picture: {folder / 'phase.png'}")
    if result.quality is not None:
        typer.echo(result.quality.summary())
    _tell_agreement(result, Path(recipe.data.path.partition("::")[0]).parent / "truth.npz")
    typer.echo(f"report: {folder / 'report.html'}")


def _make_demo(ranks: Ranks) -> Path:
    """A simulated scan on disk, in the form that a microscope leaves it; made once."""
    recipe = DEMO / "recipe.toml"
    if ranks.first and not recipe.exists():
        from ptycho.simulated_files import write_simulation
        from ptycho.simulation import simulate
        from ptycho.simulation_settings import Simulation

        typer.echo(f"simulating a WS2 monolayer with vacancies into {DEMO}/ ...")
        write_simulation(simulate(Simulation()), DEMO)
    ranks.wait()
    return recipe


@dataclass(frozen=True)
class RunPlace:
    """Where the run's folder is, what is done with one that is there, which processes share the work, and whether a page shows it."""

    path: Path
    fresh: bool
    resume: bool
    ranks: Ranks
    live: bool = False


@dataclass(frozen=True)
class Machine:
    """What computes, and how: the device, threads of a CPU (0: all cores), whether a GPU's sums have a fixed order."""

    device: str
    threads: int
    deterministic: bool


def _run(recipe: Recipe, where: RunPlace, machine: Machine) -> Result:
    """Carry out the recipe."""
    import torch

    from ptycho.cli.progress import shown, silent
    from ptycho.cli.signals import stopping
    from ptycho.deterministic import deterministic
    from ptycho.device import choose_device
    from ptycho.pipeline import Job, run
    from ptycho.runfolder import RunFolder

    if machine.threads > 0:
        torch.set_num_threads(machine.threads)
    # What is quick to check comes first; nothing is written before everything is known to be sound.
    ranks = where.ranks
    folder = RunFolder(where.path, where.fresh, where.resume) if ranks.first else None
    place = choose_device(machine.device, ranks)
    with stopping() as stop, _page(where), deterministic(machine.deterministic):
        data = recipe.read()
        epochs = sum(stage.epochs for stage in recipe.solve) * (3 if recipe.output.halves else 1)
        with shown(epochs) if ranks.first else silent() as progress:
            return run(Job(recipe, data, place, folder, progress, stop, ranks))


@contextmanager
def _page(where: RunPlace) -> Iterator[None]:
    """The live page beside the run, if it is wanted."""
    if not where.live or not where.ranks.first:
        yield
        return
    from ptycho.watch import watched

    with watched(where.path) as url:
        typer.echo(f"live: {url}", err=True)
        yield


def _tell_agreement(result: Result, truth: Path) -> None:
    """How well the phase matches a simulation's truth, when one lies beside the data."""
    if not truth.exists():
        return
    import numpy as np

    from ptycho.metrics import compare_with_truth

    try:
        with np.load(truth, allow_pickle=False) as file:
            phase, pixel_A = np.asarray(file["phase"], dtype=float), float(file["sampling_A"])
        low, high = result.positions_A.min(0), result.positions_A.max(0)
        summed = phase if phase.ndim == 2 else phase.sum(0)
        found = compare_with_truth(result.phase.sum(0), result.pixel_A, summed, pixel_A, (low + high) / 2, high - low)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        # The result is complete and saved: a file that only happens to have this name must not make it a failure.
        typer.echo(f"no comparison with {truth}: {' '.join(str(error).split())}")
        return
    typer.echo(f"match with the truth: correlation {found.correlation:.3f}, resolution {found.resolution_A:.2f} Å")
