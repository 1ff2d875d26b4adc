"""Passes and seconds that each solver takes to agree with the truth, in one table.

    PTYCHO_TEST_DATA=DIR python benchmarks/convergence.py --data ws2 --epochs 30 --targets 0.9 0.95 0.98 --solvers gradient lsqml adam

DIR holds ws2_empad and sto_20nm, simulated scans with truth.npz. After every pass the summed phase is compared with the truth; the
time of that is not counted, nor that of loading. A solver that has reached the last target stops. ``adam`` stands for one run at each of
``--lr``; ``a+b`` runs solver b for the last ``--polish`` epochs, a before it. No patterns are held out: every run gets its epochs.
Seconds mean something on an otherwise idle machine only; passes always do. Rows appear as they are ready, ``--json`` keeps the curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import ptycho
from ptycho.errors import PtychoError
from ptycho.metrics import compare_with_truth
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.result import Result
from ptycho.solvers import EPIE, LSQML, Gradient, MixedState, Polish, Updates
from ptycho.start import ModelOptions, start

FOLDERS = {"ws2": "ws2_empad", "sto": "sto_20nm"}
FILES = {"ws2": "scan_x48_y48.raw", "sto": "sto_28x28x192x192.h5"}
SLICES = {"ws2": (1, 10.0), "sto": (10, 19.525)}
SOLVERS: dict[str, Any] = {
    "gradient": Gradient(),
    "adam": Gradient(optimizer="Adam"),
    "epie": EPIE(),
    "rpie": EPIE(object_damping=0.1, probe_damping=0.5),
    "3pie": EPIE(slice_by_slice=True),
    "mixed_state": MixedState(),
    "lsqml": LSQML(),
    "polish": Polish(),
}


class Scored:
    """A data set with its truth, and the curve of a run on it."""

    def __init__(self, name: str, folder: Path, modes: int, slices: int, thickness_A: float) -> None:
        m = json.loads((folder / "metadata.json").read_text())
        known = {"voltage_kV": m["kv"], "semiangle_mrad": m["alpha_mrad"], "step_A": m["step_A"], "defocus_A": m["defocus_A"]}
        if name == "ws2":
            known |= {"flip_rows": m["detector_rows_flipped"]}
        self.data = ptycho.read(folder / FILES[name], **known)
        self.patterns = Patterns(self.data, torch.device("cpu"))
        self.options = ModelOptions(probe_modes=modes, slices=slices, slice_thickness_A=thickness_A)
        truth = np.load(folder / "truth.npz")
        phase = np.asarray(truth["phase"], np.float64)
        self.truth, self.truth_pixel_A = phase.sum(0) if phase.ndim == 3 else phase, float(truth["sampling_A"])

    def model(self) -> Ptychography:
        return start(self.data.geometry, self.options, self.data.survey().mean_electrons, self.data.mask)

    def correlation(self, model: Ptychography) -> float:
        geometry = self.data.geometry
        result = Result.of(model, (), "", geometry.voltage_kV, geometry.semiangle_mrad, geometry.aberrations)
        low, high = result.positions_A.min(0), result.positions_A.max(0)
        phase = np.asarray(result.phase, np.float64).sum(0)
        return compare_with_truth(phase, result.pixel_A, self.truth, self.truth_pixel_A, (low + high) / 2, high - low).correlation

    def curve(self, stages: list[Any], threads: int, enough: float) -> list[tuple[float, float]]:
        """(seconds so far, correlation) after each pass."""
        model, found, seconds = self.model(), [], 0.0
        for stage in stages:
            began = time.perf_counter()
            for _ in stage.run(model, self.patterns, threads):
                seconds += time.perf_counter() - began
                try:
                    found.append((seconds, self.correlation(model)))
                except PtychoError:  # a flat or broken phase agrees with nothing
                    found.append((seconds, 0.0))
                if found[-1][1] >= enough:
                    return found
                began = time.perf_counter()
        return found


def runs(names: list[str], rates: list[float], epochs: int, polish: int, batch: int | None) -> dict[str, list[Any]]:
    """The stages of every row; the probe moves from the second pass on, in all alike."""
    found: dict[str, list[Any]] = {}
    for name in names:
        first, *rest = name.split("+")
        changes: dict[str, Any] = {"epochs": epochs - polish if rest else epochs, "update": Updates()}
        if batch is not None:
            changes["batch"] = batch
        then = [dataclasses.replace(SOLVERS[other], epochs=polish) for other in rest]
        if first == "adam":
            found |= {f"{name} lr {lr:g}": [dataclasses.replace(SOLVERS[first], **changes, lr=lr), *then] for lr in rates}
        else:
            found[name] = [dataclasses.replace(SOLVERS[first], **changes), *then]
    return found


def row(name: str, curve: list[tuple[float, float]], targets: list[float], width: int) -> str:
    """One line of the table: passes and seconds to each target, the best correlation, seconds per pass."""
    cells = []
    for target in targets:
        passes = next((number for number, (_, value) in enumerate(curve, start=1) if value >= target), None)
        cells.append("-" if passes is None else f"{passes} / {curve[passes - 1][0]:.1f} s")
    best = max((value for _, value in curve), default=0.0)
    cells += [f"{best:.4f}", f"{curve[-1][0] / len(curve):.2f}" if curve else "-"]
    return f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=FOLDERS, default="ws2")
    parser.add_argument("--folder", type=Path, help="of the data set (default: its place under PTYCHO_TEST_DATA)")
    parser.add_argument("--solvers", nargs="+", default=["gradient", "adam", "epie", "mixed_state", "lsqml", "gradient+polish", "lsqml+polish"])
    parser.add_argument("--lr", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2, 3e-2], help="Adam's rates for the object, in rad")
    parser.add_argument("--targets", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--beyond", action="store_true", help="go on to the last epoch behind the last target, for the best correlation")
    for name, value in (("epochs", 20), ("polish", 5), ("modes", 1), ("threads", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, kind in (("slices", int), ("batch", int), ("slice-thickness-A", float)):
        parser.add_argument(f"--{name}", type=kind, help="(default: the solver's or the data set's)")
    parser.add_argument("--json", type=Path, help="write the curves there")
    a = parser.parse_args()
    unknown = {part for name in a.solvers for part in name.split("+")} - SOLVERS.keys()
    if unknown or not 0 < a.polish < a.epochs:
        parser.error(f"unknown solvers {sorted(unknown)}; known are {sorted(SOLVERS)}" if unknown else "0 < polish < epochs is needed")
    folder = a.folder or Path(os.environ.get("PTYCHO_TEST_DATA", ".")) / FOLDERS[a.data]
    slices, thickness_A = SLICES[a.data]
    slices, thickness_A = a.slices or slices, a.slice_thickness_A or thickness_A * slices / (a.slices or slices)
    scored = Scored(a.data, folder, a.modes, slices, thickness_A)
    planned, targets = runs(a.solvers, a.lr, a.epochs, a.polish, a.batch), sorted(a.targets)
    width = max(map(len, planned)) + 2
    print(f"{a.data}: {len(scored.patterns)} patterns, {slices} slices, {a.modes} modes, {a.threads} threads; passes / seconds to each correlation")
    print(f"{'':<{width}}" + "".join(f"{head:>14}" for head in [*(f"{t:g}" for t in targets), "best", "s per pass"]), flush=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, stages in planned.items():
        try:
            curves[name] = scored.curve(stages, a.threads, 2.0 if a.beyond else targets[-1])
        except PtychoError as error:
            print(f"{name:<{width}}{error}", flush=True)
            continue
        print(row(name, curves[name], targets, width), flush=True)
        if a.json is not None:
            a.json.write_text(json.dumps(curves))


if __name__ == "__main__":
    main()
