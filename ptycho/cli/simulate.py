"""``ptycho simulate``: a data set with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="For data, truth.npz and recipe.toml.")] = Path("simulated"),
    format_: Annotated[str, typer.Option("--format", metavar="NAME", help="empad or hdf5.")] = "empad",
    scan: Annotated[int, typer.Option(metavar="N", help="Scan points along each axis.")] = 32,
    step_A: Annotated[float, typer.Option("--step-A", metavar="Å", help="Scan step.")] = 0.8,
    voltage_kV: Annotated[float, typer.Option("--voltage-kV", metavar="KV", help="Acceleration voltage.")] = 80.0,
    semiangle_mrad: Annotated[float, typer.Option("--semiangle-mrad", metavar="MRAD", help="Convergence semi-angle.")] = 24.9,
    defocus_A: Annotated[float, typer.Option("--defocus-A", metavar="Å", help="Positive is underfocus.")] = 350.0,
    dose: Annotated[float, typer.Option("--dose-e-per-A2", metavar="DOSE", help="Electrons per Å2.")] = 1e4,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the noise and the vacancies.")] = 0,
) -> None:
    """Simulate a scan of a WS2 monolayer with vacancies and write it as a detector would, with a recipe beside it."""
    from ptycho.errors import OutputError
    from ptycho.simulated_files import write_simulation
    from ptycho.simulation import Simulation
    from ptycho.simulation import simulate as run

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output}: the folder is not empty; give another with -o")
    settings = Simulation(
        scan_shape=(scan, scan), step_A=step_A, voltage_kV=voltage_kV, semiangle_mrad=semiangle_mrad, defocus_A=defocus_A,
        dose_e_per_A2=dose, seed=seed,
    )  # fmt: skip
    recipe = write_simulation(run(settings), output, format_)
    typer.echo(f"ptycho reconstruct {recipe}")
