"""Memory over a long run of many short epochs: ``python tests/soak.py [MINUTES]``; asked is that it grows by less than 1 %.

The run has everything that is kept from epoch to epoch: several modes and slices, positions that are learned, held-out patterns, constraints, a
checkpoint now and then, a line of metrics.jsonl for every epoch. Prints resident memory, open files and threads at 10 % and at the end. Not collected
by pytest: five minutes are the least that says anything.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import ptycho
from ptycho.errors import Stopped
from ptycho.recipe import model_from
from ptycho.result import EpochRecord
from ptycho.solvers import Gradient, Updates
from ptycho.solvers.stop import Stop

#: Growth that is no leak: pages of the allocator, the history of the run.
ALLOWED = 0.01
KNOWN = {"voltage_kV": 80, "semiangle_mrad": 24.9, "step_A": 0.3, "defocus_A": 20, "adu_per_electron": 1}


@dataclass(frozen=True)
class Sample:
    """What the process holds at a moment."""

    epoch: int
    resident_MB: float
    files: int
    threads: int

    @classmethod
    def now(cls, epoch: int) -> Sample:
        """Of this process; Linux only."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(epoch, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count())


def scan() -> NDArray[np.float32]:
    """A disk without a specimen on 11 x 11 positions, so many that some patterns can be held out."""
    y, x = np.indices((32, 32)) - 15.5
    return np.random.default_rng(0).poisson(20.0 * (np.hypot(y, x) < 7.3) + 0.05, (11, 11, 32, 32)).astype(np.float32)


def main() -> None:
    """Run, look at 10 % of the epochs and at the end."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    torch.set_num_threads(1)
    samples: list[Sample] = []

    def look(record: EpochRecord, total: int) -> None:
        samples.append(Sample.now(record.epoch))
        if record.epoch % 100 == 0:
            print(f"{time.strftime('%H:%M:%S')} {samples[-1]}", flush=True)

    solve = [Gradient(epochs=1_000_000, batch=40, update=Updates(positions=1, background=1), stop=Stop(patience=0), memory=(1.0, 1.0))]
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "scan.npy", scan())
        recipe = ptycho.Recipe.of(ptycho.read(Path(folder) / "scan.npy", **KNOWN))
        recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"checkpoint_epochs": 20})})
        model = {"probe_modes": 2, "slices": 2, "slice_thickness_A": 8.0}
        end = time.monotonic() + 60 * minutes
        with contextlib.suppress(Stopped):
            ptycho.reconstruct(
                recipe.model_copy(update={"model": model_from({**vars(recipe.model), **model})}),
                solve=solve,
                device="cpu",
                output=Path(folder) / "run",
                progress=look,
                stop=lambda: time.monotonic() > end,
            )
    first, last = samples[len(samples) // 10], samples[-1]
    growth = last.resident_MB / first.resident_MB - 1
    print(f"{len(samples)} epochs: {first.resident_MB:.1f} MB at 10 %, {last.resident_MB:.1f} MB at the end, {growth:+.2%}")
    if growth > ALLOWED or last.files > first.files or last.threads > first.threads:
        raise SystemExit("it grows")


if __name__ == "__main__":
    main()
