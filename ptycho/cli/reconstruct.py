"""``ptycho reconstruct``: the main job."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ptycho.recipe import Recipe
    from ptycho.result import EpochRecord, Result

DEMO = Path("ptycho-demo")

Number = float | None


def reconstruct(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE|demo", help="A recipe.toml, a 4D-STEM file, or demo, which needs neither.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the results (default: the recipe's, or ./run).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A recipe key, as in --set model.slices=4; may be repeated.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move what is in the folder aside and start anew.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads (0: all cores).")] = 0,
    voltage_kV: Annotated[Number, typer.Option("--voltage-kV")] = None,
    semiangle_mrad: Annotated[Number, typer.Option("--semiangle-mrad", help="Convergence semi-angle.")] = None,
    defocus_A: Annotated[Number, typer.Option("--defocus-A", help="Positive is underfocus.")] = None,
    scan_shape: Annotated[str | None, typer.Option("--scan-shape", help="slow,fast: for example 48,48.")] = None,
    step_A: Annotated[str | None, typer.Option("--step-A", help="Scan step, one number or slow,fast.")] = None,
    rotation_deg: Annotated[Number, typer.Option("--rotation-deg", help="Scan relative to detector.")] = None,
    pixel_invA: Annotated[Number, typer.Option("--pixel-invA", help="Detector pixel; fitted from the bright-field disk when absent.")] = None,
    adu_per_electron: Annotated[Number, typer.Option("--adu-per-electron")] = None,
    flip_rows: Annotated[bool | None, typer.Option("--flip-rows/--no-flip-rows")] = None,
    flip_columns: Annotated[bool, typer.Option("--flip-columns")] = False,
    transpose: Annotated[bool, typer.Option("--transpose")] = False,
    bin_: Annotated[int | None, typer.Option("--bin", help="Sum this many detector pixels along each axis.")] = None,
    modes: Annotated[int | None, typer.Option("--probe-modes")] = None,
    slices: Annotated[int | None, typer.Option("--slices")] = None,
    slice_thickness_A: Annotated[Number, typer.Option("--slice-thickness-A")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs")] = None,
    kind: Annotated[str | None, typer.Option("--solver", help="gradient, epie or mixed_state.")] = None,
) -> None:
    """Reconstruct a recipe, a data file, or the demo, and write phase.png, phase.tif and result.h5."""
    given = {
        "microscope.voltage_kV": voltage_kV, "microscope.semiangle_mrad": semiangle_mrad, "microscope.defocus_A": defocus_A,
        "scan.shape": _numbers(scan_shape), "scan.step_A": _numbers(step_A), "scan.rotation_deg": rotation_deg,
        "detector.pixel_invA": pixel_invA, "data.adu_per_electron": adu_per_electron, "data.flip_rows": flip_rows,
        "data.flip_columns": flip_columns or None, "data.transpose": transpose or None, "data.bin": bin_, "model.probe_modes": modes,
        "model.slices": slices, "model.slice_thickness_A": slice_thickness_A, "solve.0.kind": None if kind is None else f'"{kind}"',
        "solve.0.epochs": epochs,
    }  # fmt: skip
    settings = [f"{key}={_toml(value)}" for key, value in given.items() if value is not None] + (set_ or [])
    from ptycho.runfolder import RunFolder

    recipe = _recipe(source, settings)
    folder = RunFolder(output or recipe.output.directory, fresh)
    result = _run(recipe, folder, device, threads)
    typer.echo(f"picture: {folder.path / 'phase.png'}")
    _tell_agreement(result, Path(recipe.data.path.partition("::")[0]).parent / "truth.npz")


def _recipe(source: str, settings: list[str]) -> Recipe:
    """The recipe of a file, of the demo (made when it is not there), or one around a data file."""
    from ptycho.recipe import Recipe

    if source == "demo":
        source = str(_make_demo())
    if source.endswith(".toml"):
        return Recipe.load(source, settings)
    return Recipe.parse({"data": {"path": source}}, settings, name=source)


def _make_demo() -> Path:
    """A simulated scan on disk, in the form that a microscope leaves it; made once."""
    recipe = DEMO / "recipe.toml"
    if not recipe.exists():
        from ptycho.simulate import Simulation, simulate, write_simulation

        typer.echo(f"simulating a WS2 monolayer with vacancies into {DEMO}/ ...")
        write_simulation(simulate(Simulation()), DEMO)
    return recipe


def _run(recipe: Recipe, folder: Any, device: str, threads: int) -> Result:
    """The pipeline with a progress bar on a terminal and a line per epoch elsewhere."""
    import torch
    from tqdm import tqdm

    from ptycho.pipeline import Job, choose_device, run

    if threads > 0:
        torch.set_num_threads(threads)
    terminal = sys.stderr.isatty()
    logger = logging.getLogger("ptycho")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.WARNING if terminal else logging.INFO)
    logger.addHandler(handler)
    bar: tqdm[Any] = tqdm(total=sum(s.epochs for s in recipe.solve), unit="epoch", disable=not terminal)

    def show(record: EpochRecord, total: int) -> None:
        bar.set_postfix(deviance=f"{record.loss:.5f}", refresh=False)
        bar.update()

    with bar:
        return run(Job(recipe, recipe.read(), choose_device(device), folder, show))


def _tell_agreement(result: Result, truth: Path) -> None:
    """How well the phase matches a simulation's truth, when one lies beside the data."""
    if not truth.exists():
        return
    import numpy as np

    from ptycho.metrics import compare_with_truth

    with np.load(truth, allow_pickle=False) as file:
        phase, pixel_A = np.asarray(file["phase"], dtype=float), float(file["sampling_A"])
    low, high = result.positions_A.min(0), result.positions_A.max(0)
    summed = phase if phase.ndim == 2 else phase.sum(0)
    found = compare_with_truth(result.phase.sum(0), result.pixel_A, summed, pixel_A, (low + high) / 2, high - low)
    typer.echo(f"match with the truth: correlation {found.correlation:.3f}, resolution {found.resolution_A:.2f} Å")


def _numbers(text: str | None) -> list[float] | float | None:
    """ "48,48" as [48, 48], "0.7" as 0.7."""
    if text is None:
        return None
    try:
        values = [float(part) if "." in part or "e" in part else int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise typer.BadParameter(f'"{text}": numbers separated by a comma are needed') from None
    return values if len(values) > 1 else values[0]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
