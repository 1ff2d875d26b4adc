"""Damaged files for all of our own readers: ``python tests/fuzzing.py --format mib --number 100000 --seed 1``.

Every mutant is read in a worker process with limits on memory and time. A reader must give patterns or one line that says what is
wrong. Only where the guard's child process comes first may a mutant stop the worker; then it is read again with the guard in place.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import h5py  # noqa: F401  here and not in every worker, as the next ones
import hdf5plugin  # noqa: F401
import numpy as np
import scipy.io
import scipy.ndimage  # noqa: F401
import tifffile  # noqa: F401
from command import Ran, run
from fuzzing_mutations import Mutant
from fuzzing_seeds import SEEDS, Seed, counts, seed_of
from fuzzing_workers import Report, Task, carry_out, fault

import ptycho.io
from ptycho.io import scan
from ptycho.io.images import read_image

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 5.0, "step_A": 0.5, "pixel_invA": 0.05}
#: Patterns of few pixels and nothing to find out: twice as many mutants in the same time.
CROPPED = {**KNOWN, "adu_per_electron": 1.0, "detector_crop": (0, 8, 0, 8)}
#: Where the recipe has them, and what a data set is read with.
SECTIONS = (("microscope", "voltage_kV"), ("microscope", "semiangle_mrad"), ("scan", "step_A"), ("detector", "pixel_invA"))
_KEYS = {
    "scan_shape": "scan.shape", "layout": "data.layout", "calibration_file": "data.calibration_file", "format": "data.format",
    "semiangle_mrad": "microscope.semiangle_mrad",
}  # fmt: skip


def fuzz(format: str, number: int, seed: int, folder: Path, first: int = 0, commands: bool = False) -> Report:
    """Read ``number`` mutants of a format of ``SEEDS``, from number ``first`` on, or run the commands on them. What fails is kept in ``folder``."""
    seeds = []
    for write in SEEDS[format]:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            seeds.append(seed_of(write, Path(place)))
    # What takes seconds to import: not in every worker, and not where it is not needed.
    if commands or format == "recipe":
        import ptycho.recipe
    if commands:
        import ptycho.pipeline
        import ptycho.plot  # noqa: F401
    if commands:
        return carry_out(Task(folder, format, seeds, number, seed, command_mutant, (60.0, 120.0)), first)
    return carry_out(Task(folder, format, seeds, number, seed, read_mutant), first)


def read_mutant(folder: Path, seed: Seed, damaged: Mutant, rng: Random) -> str:
    """Open and read it as the program does. Raises what the reader raises."""
    path = folder / damaged.opened
    if seed.reader == "positions":
        scan.read_positions(path)
    elif seed.reader == "image":
        read_image("data.mask", path, (16, 16))
    elif seed.reader == "result":
        from ptycho.io.result_file import load_result

        load_result(path)
    elif seed.reader == "recipe":
        from ptycho.recipe import Recipe

        Recipe.load(path)
    else:
        given: dict[str, Any] = {**seed.given, **(CROPPED if rng.random() < 0.85 else {})}
        if "calibration_file" in given:
            given["calibration_file"] = folder / given["calibration_file"]
        data = ptycho.io.read(path, **given)
        try:
            patterns = data.patterns(np.unique([0, data.n_positions // 2, data.n_positions - 1]))
            assert patterns.shape[1:] == data.pattern_shape and patterns.dtype == np.float32, (patterns.shape, patterns.dtype)
            data.survey()
            known = data.calibration.keys()
            if {"voltage_kV", "semiangle_mrad"} <= known and ("step_A" in known or data.positions_A is not None):
                assert np.isfinite(data.geometry.positions_A).all()
        finally:
            data.close()
    return "read"


def command_mutant(folder: Path, seed: Seed, damaged: Mutant, rng: Random) -> str:
    """``ptycho info`` and ``ptycho reconstruct`` on it, in this process."""
    settings = [f"{section}.{key}={KNOWN[key]}" for section, key in SECTIONS if rng.random() < 0.8]
    settings += [f"{_KEYS[key]}={_toml(value)}" for key, value in seed.given.items()]
    name = damaged.opened
    if seed.reader in ("positions", "image"):
        settings.append(f'{"scan.positions_file" if seed.reader == "positions" else "data.mask"}="{name}"')
        name = "run/scan.npy"
        (folder / "run").mkdir()
        np.save(folder / name, counts())
    words = [word for setting in settings for word in ("--set", setting)]
    codes = [check_command(run("info", name, *words), damaged)]
    if seed.reader not in ("recipe", "result") and rng.random() < 0.4:  # what succeeds takes a second
        words += ["--epochs", "1", "--device", "cpu", "--threads", "1", "-o", "run/here"]
        codes.append(check_command(run("reconstruct", name, *words), damaged))
    return f"exit codes {codes}"


def check_command(ran: Ran, damaged: Mutant) -> int:
    """Its exit code. Raises AssertionError when it or what was printed must not be."""
    assert ran.code in (0, 3, 4, 5), ran
    assert "Traceback" not in ran.err + ran.out and "bug" not in ran.err, ran
    if ran.code:
        assert ran.err.startswith("ptycho: error: ") and ran.err.count("\n") == 1, ran
        wrong = fault(ran.err.strip(), Path(), damaged, named=ran.code == 4)  # what is wrong in a recipe is a key
        assert not wrong, f"{wrong}: {ran.err}"
    return ran.code


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return str(list(value)) if isinstance(value, tuple) else json.dumps(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", action="append", choices=SEEDS, help="default: all")
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the mutants that fail")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--commands", action="store_true", help="run ptycho info and ptycho reconstruct on each")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    reports = []
    for format in options.format or SEEDS:
        report = fuzz(format, options.number, options.seed, folder, options.first, options.commands)
        reports.append(report)
        if not options.json:
            show(report)
    if options.json:
        print(json.dumps([asdict(report) for report in reports]))
    return 0


def show(report: Report) -> None:
    rate = report.number / max(report.seconds, 1e-9)
    said = ", ".join(f"{number} {outcome}" for outcome, number in report.outcomes.items())
    print(f"{report.format}: {report.number} mutants, {rate:.0f}/s: {said}; slowest {report.slowest_s:.2f} s (no. {report.slowest}), ", end="")
    print(f"{report.peak_MB:.0f} MB (no. {report.largest}); workers stopped by no. {report.stopped}", flush=True)
    for number, kept, text in report.failures:
        print(f"  no. {number}: {kept}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
