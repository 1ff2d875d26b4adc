"""A run that is killed again and again until it is done: ``python tests/survival.py FOLDER KILLS SEED``.

Each attempt is a process of its own (forked behind the imports, which take longer than a run), killed by SIGKILL at a random moment. Prints how many
were killed and the runs that came to their end; each of them must be, data set for data set, the run ``FOLDER/whole`` that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401  behind the fork it takes longer than a run
import numpy as np
import torch

import ptycho
import ptycho.pipeline  # before the fork, for speed
import ptycho.plot
from ptycho.errors import OutputError
from ptycho.solvers import LSQML, Gradient, Updates

KNOWN = {"voltage_kV": 80, "semiangle_mrad": 24.9, "step_A": 0.7, "defocus_A": 100, "adu_per_electron": 1}
SOLVE = [Gradient(epochs=6, batch=32, update=Updates(positions=2)), LSQML(epochs=3, batch=32, momentum=0.5)]


def attempt(scan: Path, folder: Path) -> None:
    """One process's work: the run from its newest checkpoint to the end."""
    recipe = ptycho.Recipe.of(ptycho.read(scan, **KNOWN))
    recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"checkpoint_epochs": 1})})
    ptycho.reconstruct(recipe, solve=SOLVE, device="cpu", output=folder)


def killed_until_done(scan: Path, folder: Path, moments: random.Random, left: int, longest_s: float) -> int:
    """So many processes were killed before one came to the end."""
    kills = 0
    while True:
        pid = os.fork()
        if pid == 0:
            try:
                attempt(scan, folder)
            except OutputError as error:
                # The kill may come when all is done and only the process is left.
                os._exit(0 if "the run here is finished" in str(error) else 1)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                os._exit(1)
            os._exit(0)
        if kills < left:
            time.sleep(moments.uniform(0, longest_s))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            kills += 1
            continue
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"an attempt failed in {folder}")
        return kills


def same(one: ptycho.Result, other: ptycho.Result) -> bool:
    """All numbers of two results, to the last bit; what an hour it was and how long it took is no part of them."""
    names = ("object", "occupancy", "probe", "slice_thickness_A", "positions_A", "tilt_mrad")
    losses = [[(r.stage, r.epoch, r.loss, r.held_out, r.note) for r in result.history] for result in (one, other)]
    return losses[0] == losses[1] and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def main() -> None:
    """Kill, compare, report."""
    root, wanted, moments = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    torch.set_num_threads(1)
    # The page takes longer than the run, and can be made again.
    ptycho.pipeline.report = lambda result: f"{len(result.history)} epochs"
    scan = root / "scan.npy"
    began = time.perf_counter()
    killed_until_done(scan, root / "whole", moments, 0, 0.0)
    longest_s = time.perf_counter() - began
    whole, kills, runs = ptycho.load(root / "whole"), 0, 0
    while kills < wanted:
        folder = root / f"run-{runs}"
        kills += killed_until_done(scan, folder, moments, wanted - kills, longest_s)
        if not same(ptycho.load(folder), whole):
            raise SystemExit(f"{folder} is not the run that nobody disturbed")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        if len(lines) != len(whole.history):
            raise SystemExit(f"{folder}: {len(lines)} lines of metrics.jsonl for {len(whole.history)} epochs")
        runs += 1
    print(f"{kills} killed, {runs} runs ended as if none had been")


if __name__ == "__main__":
    main()
