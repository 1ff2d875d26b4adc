"""Seconds per pass of ptycho on an EMPAD scan, on the CPU: the twin of ptyrad_cpu.py.

    python benchmarks/ptycho_cpu.py DATA_DIR --modes 1 --slices 1 --batch 32 --epochs 6 --threads 2

DATA_DIR holds scan_x48_y48.raw and metadata.json. Object and probe are updated from the first pass on; loading and saving are not
timed. Prints one JSON line. Run it and its twin in turn on an otherwise idle machine and compare within the run: machines differ
more than packages do. Also prints the time of the Fourier transforms alone, 4 per mode, slice and pattern, on the same threads.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import ptycho
from ptycho.patterns import Patterns
from ptycho.solvers import Gradient, Updates
from ptycho.start import ModelOptions, start


def data_set(folder: Path) -> ptycho.Dataset4D:
    """The scan with the values of its metadata."""
    m = json.loads((folder / "metadata.json").read_text())
    return ptycho.read(
        next(folder.glob("*.raw")), voltage_kV=m["kv"], semiangle_mrad=m["alpha_mrad"], defocus_A=m["defocus_A"], step_A=m["step_A"],
        pixel_invA=m["dk_invA"], adu_per_electron=m["adu_per_electron"], flip_rows=m["detector_rows_flipped"],
    )  # fmt: skip


def passes(data: ptycho.Dataset4D, modes: int, slices: int, batch: int, epochs: int, threads: int, pixel_area: bool) -> list[float]:
    """Seconds of each pass."""
    options = ModelOptions(probe_modes=modes, slices=slices, slice_thickness_A=2.0, pixel_area=pixel_area, pad=0)
    model = start(data.geometry, options, data.survey().mean_electrons, data.mask)
    patterns = Patterns(data, torch.device("cpu"))
    solver = Gradient(epochs=epochs, batch=batch, update=Updates(probe=1))
    times, before = [], time.perf_counter()
    for _ in solver.run(model, patterns, threads):
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times


def transforms(count: int, size: int, threads: int) -> float:
    """Seconds for ``count`` transforms of size x size in cache-sized groups, shared out over the threads."""
    torch.set_num_threads(1)
    group = 8

    def work(groups: int) -> None:
        wave, out = torch.randn(group, size, size, dtype=torch.complex64), torch.empty(group, size, size, dtype=torch.complex64)
        for _ in range(groups):
            torch.fft.fft2(wave, out=out)

    with ThreadPoolExecutor(threads) as pool:
        before = time.perf_counter()
        list(pool.map(work, [count // group // threads] * threads))
        return time.perf_counter() - before


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("modes", 1), ("slices", 1), ("batch", 32), ("epochs", 6), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--point-pixels", action="store_true", help="no integration over the pixel area, as in the packages that lack it")
    a = parser.parse_args()
    data = data_set(a.folder)
    seconds = passes(data, a.modes, a.slices, a.batch, a.epochs, a.threads, not a.point_pixels)
    alone = transforms(4 * a.modes * a.slices * data.n_positions, data.pattern_shape[0], a.threads)
    print(
        json.dumps(
            {"package": "ptycho", "version": ptycho.__version__, "torch": torch.__version__, "modes": a.modes, "slices": a.slices,
             "batch": a.batch, "threads": a.threads, "pixel_area": not a.point_pixels, "seconds_per_pass": seconds, "transforms_alone": alone}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
