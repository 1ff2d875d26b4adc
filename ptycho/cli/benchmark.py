"""``ptycho benchmark``: how fast is this machine?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho.cli.arguments import Threads
from ptycho.cli.reconstruct import Device

if TYPE_CHECKING:
    from ptycho.benchmark import Figures

_HEAD = ("scan", "pattern", "modes", "slices", "batch", "measured", "pass s", "µs/pattern", "x FFT", "x copy", "memory GB", "data GB")
_WIDTHS = (9, 9, 6, 7, 6, 9, 10, 11, 7, 7, 10, 8)


def benchmark(
    device: Annotated[Device, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help="Two sizes, three passes of each.")] = False,
    case: Annotated[list[str] | None, typer.Option(metavar="NAME", help="small, large, batches, or as 128/128/6/6/32; repeatable.")] = None,
    patterns: Annotated[int | None, typer.Option(min=64, metavar="N", show_default=False, help="Measure so many of each scan.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="For records: versions, device, date, figures.")] = None,
    threads: Threads = 0,
) -> None:
    """Time of a pass over the standard sizes, beside its Fourier transforms alone and a copy of its waves, with the memory it takes.

    A case is SCAN/PATTERN/MODES/SLICES/BATCH: 128/128/6/6/32 is 128 x 128 patterns of 128 x 128 pixels. Only --json FILE is written.
    """
    import torch

    from ptycho.benchmark import Bench, cases_of, record, standard
    from ptycho.device import choose_device

    if threads > 0:
        torch.set_num_threads(threads)
    place = choose_device(device)
    bench = Bench(place, torch.get_num_threads() if place.type == "cpu" else 1, 3 if quick else 5, patterns)
    cases = cases_of(case) if case else standard(place, quick)
    facts: dict[str, Any] = {**bench.about(), "cases": []}
    typer.echo(_title(facts))
    for figures in bench.run(cases):
        typer.echo(_row(figures))
        facts["cases"].append(record(figures))
        if json_file is not None:
            _write(json_file, facts)
    typer.echo(_FOOT)


_FOOT = """
measured  patterns of a smaller scan where the whole one would take too long; the pass is scaled to the whole
x FFT     the pass over its Fourier transforms alone, as many, as large and on as many threads
x copy    the pass over the time in which a copy moves 200 bytes per sample of each wave in each slice"""


def _title(facts: dict[str, Any]) -> str:
    versions, threads = facts["versions"], facts["threads"]
    shared = "" if facts["cuda"] else f", {threads} thread{'' if threads == 1 else 's'}"
    about = f"ptycho {versions['ptycho']}, torch {versions['torch']}, {facts['device']}{shared}, {facts['date']}"
    return f"{about}\ncopy {facts['copy_GB_per_s']} GB/s; median of {facts['repeats']} passes\n\n{_line(_HEAD)}"


def _row(figures: Figures) -> str:
    c, f = figures.case, figures
    pass_s = f"{f.pass_s:.3g}" if f.patterns == c.scan**2 else f"({f.pass_s:.3g})"
    fixed = (f"{c.scan}^2", f"{c.size}^2", str(c.modes), str(c.slices), str(c.batch), str(f.patterns), pass_s)
    ratios = (f"{f.per_pattern_us:.4g}", f"{f.of_transforms:.2f}", f"{f.of_copy:.2f}", f"{f.memory_GB:.2f}", f"{f.data_GB:.2f}")
    return _line(fixed + ratios)


def _line(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _write(path: Path, facts: dict[str, Any]) -> None:
    """Behind every case: what was measured before a case that fails is kept."""
    from ptycho.atomic import write_file

    write_file(path, json.dumps(facts, indent=1).encode())
