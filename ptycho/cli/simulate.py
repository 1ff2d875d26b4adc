"""``ptycho simulate``: a data set with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho.cli.arguments import DefocusA, Number, SemiangleMrad, Settings, Text, VoltageKV, settings_of


def simulate(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="A TOML file of simulation keys (default: a WS2 monolayer).")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="For data, truth.npz and recipe.toml.")] = Path("simulated"),
    set_: Settings = None,
    format_: Annotated[str, typer.Option("--format", metavar="NAME", help="empad or hdf5.")] = "empad",
    specimen: Annotated[Text, typer.Option(metavar="NAME|FILE", help="WS2, SrTiO3, MFI, ... or a CIF.")] = None,
    thickness_A: Annotated[Number, typer.Option("--thickness-A", metavar="Å", help="Of a crystal.")] = None,
    scan: Annotated[int | None, typer.Option(metavar="N", help="Scan points along each axis.")] = None,
    step_A: Annotated[Number, typer.Option("--step-A", metavar="Å", help="Scan step.")] = None,
    voltage_kV: VoltageKV = None,
    semiangle_mrad: SemiangleMrad = None,
    defocus_A: DefocusA = None,
    dose: Annotated[Number, typer.Option("--dose-e-per-A2", metavar="DOSE", help="Electrons per Å2.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of noise, vacancies and phonons.")] = None,
) -> None:
    """Simulate a scan of a crystal or a molecule and write it as a detector would, with a recipe beside it that reconstructs it."""
    from ptycho.cli.progress import counted
    from ptycho.errors import OutputError
    from ptycho.recipe import load_simulation
    from ptycho.simulated_files import check_format, write_simulation
    from ptycho.simulation import simulate as run

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output}: the folder is not empty; give another with -o")
    given = {
        "specimen": specimen, "thickness_A": thickness_A, "scan_shape": None if scan is None else [scan, scan], "step_A": step_A,
        "voltage_kV": voltage_kV, "semiangle_mrad": semiangle_mrad, "defocus_A": defocus_A, "dose_e_per_A2": dose, "seed": seed,
    }  # fmt: skip
    settings = load_simulation(recipe, settings_of(given, set_))
    check_format(settings, format_)
    with counted("pattern") as progress:
        simulated = run(settings, progress)
    typer.echo(f"ptycho reconstruct {write_simulation(simulated, output, format_)}")
