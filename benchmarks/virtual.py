"""All virtual images and the centre of mass in one pass, against the rate at which the machine can read and sum the file.

    python benchmarks/virtual.py [--side 256] [--pixels 128] [--dtype uint16] [--rounds 5] [--threads 1 2] [--folder DIR]

Makes a file of side x side patterns of pixels x pixels (2.1 GB by default) in a temporary folder and removes it afterwards. Every round runs
all rows in turn, so that what else the machine does falls on all of them; the best round counts. "read and sum" reads the file in blocks
and adds up each pattern with NumPy in uint64, on as many threads. CPU seconds are those of the process, all threads together. LiberTEM and
py4DSTEM are measured where they are installed. Prints one JSON line for each row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import ptycho
from ptycho.pictures import Looks
from ptycho.sums import weighted_sums

_BLOCK_BYTES = 4 << 20


def make(path: Path, side: int, pixels: int, dtype: str) -> Path:
    """Poisson counts of a bright-field disk with a faint tail; 64 different patterns, repeated."""
    random = np.random.default_rng(0)
    y, x = np.indices((pixels, pixels)) - pixels // 2
    mean = 6.0 * (np.hypot(y, x) < pixels / 7) + 0.5 * np.exp(-np.hypot(y, x) / (pixels / 6))
    some = random.poisson(mean, (64, pixels, pixels)).astype(dtype)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(some.dtype), "fortran_order": False, "shape": (side, side, pixels, pixels)}
        )
        for start in range(0, side * side, 64):
            file.write(some[: side * side - start].tobytes())
    return path


def read_and_sum(path: Path, threads: int) -> np.ndarray:
    """Electrons of each pattern: every byte read and added up, nothing else."""
    whole = np.load(path, mmap_mode="r")
    frames, frame_bytes, offset = whole.shape[0] * whole.shape[1], whole[0, 0].nbytes, whole.offset
    sums = np.empty(frames, np.uint64)
    step = max(1, _BLOCK_BYTES // frame_bytes)
    per_thread = -(-frames // threads)

    def some(start: int) -> None:
        buffer = np.empty((step, *whole.shape[2:]), whole.dtype)
        with open(path, "rb", buffering=0) as file:
            file.seek(offset + start * frame_bytes)
            for first in range(start, min(start + per_thread, frames), step):
                block = buffer[: min(step, min(start + per_thread, frames) - first)]
                file.readinto(memoryview(block).cast("B"))
                block.sum((1, 2), dtype=np.uint64, out=sums[first : first + len(block)])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(0, frames, per_thread)))
    return sums


def ours(path: Path, pixels: int) -> tuple[Callable[[int], object], float, int]:
    """(the pass on so many threads, seconds of the survey that finds the mask, number of images)."""
    data = ptycho.read(path, voltage_kV=80, semiangle_mrad=24.9, step_A=0.4, pixel_invA=0.596 / (pixels / 7), adu_per_electron=1, centre="none")
    start = time.perf_counter()
    _ = data.mask
    survey = time.perf_counter() - start
    masks = np.array(list(Looks(data)._masks.values()))
    return (lambda threads: weighted_sums(data, masks, threads)), survey, len(masks) + 3


def libertem(path: Path, pixels: int) -> Callable[[int], object] | None:
    """The same masks and the centre of mass in LiberTEM, one worker for each thread."""
    if importlib.util.find_spec("libertem") is None:
        return None
    import libertem.api as lt
    from libertem.udf.com import CoMUDF
    from libertem.udf.masks import ApplyMasksUDF

    data = ptycho.read(path, voltage_kV=80, semiangle_mrad=24.9, step_A=0.4, pixel_invA=0.596 / (pixels / 7), adu_per_electron=1, centre="none")
    masks = np.array(list(Looks(data)._masks.values()), np.float32)
    udfs = [ApplyMasksUDF(mask_factories=lambda: masks, mask_count=len(masks), mask_dtype=np.float32, use_sparse=False), CoMUDF.with_params()]
    contexts: dict[int, tuple[object, object]] = {}

    def run(threads: int) -> object:
        if threads not in contexts:
            context = lt.Context.make_with("inline") if threads == 1 else lt.Context.make_with(cpus=threads)
            contexts[threads] = context, context.load("npy", path=str(path))
        context, dataset = contexts[threads]
        return context.run_udf(dataset=dataset, udf=udfs)  # type: ignore[attr-defined]

    return run


def py4dstem(path: Path) -> Callable[[int], object] | None:
    """Four annular images and the centre of mass in py4DSTEM, which makes one pass for each and no threads of its own."""
    if importlib.util.find_spec("py4DSTEM") is None:
        return None
    import py4DSTEM

    cube = py4DSTEM.DataCube(np.load(path, mmap_mode="r"))
    middle = cube.shape[2] // 2

    def run(threads: int) -> object:
        edges = [0, middle / 7, 2 * middle / 7, 4 * middle / 7, middle]
        for number, (inner, outer) in enumerate(pairwise(edges)):
            cube.get_virtual_image(mode="annulus", geometry=((middle, middle), (inner, outer)), name=f"v{number}", verbose=False)
        return py4DSTEM.process.phase.DPC(datacube=cube, energy=80e3, verbose=False).preprocess(plot_center_of_mass=False, plot_rotation=False)

    return run


def main() -> None:
    """Measure every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--dtype", default="uint16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = make(Path(folder) / "large.npy", given.side, given.pixels, given.dtype)
        run, survey, images = ours(path, given.pixels)
        rows = {"read and sum": lambda threads: read_and_sum(path, threads), f"ptycho, {images} images": run}
        rows |= {name: row for name, row in (("LiberTEM", libertem(path, given.pixels)), ("py4DSTEM", py4dstem(path))) if row is not None}
        for threads in given.threads:
            _measure(rows, threads, given.rounds, path.stat().st_size)
        print(json.dumps({"row": "survey that finds bad pixels, once", "seconds": round(survey, 2)}))


def _measure(rows: dict[str, Callable[[int], object]], threads: int, rounds: int, n_bytes: int) -> None:
    torch.set_num_threads(threads)
    best = {name: [np.inf, np.inf] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            wall, cpu = time.perf_counter(), time.process_time()
            row(threads)
            seconds = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = [min(pair) for pair in zip(best[name], seconds, strict=True)]
    reference = best["read and sum"]
    for name, (wall, cpu) in best.items():
        print(json.dumps({
            "row": name, "threads": threads, "seconds": round(wall, 3), "GB_per_s": round(n_bytes / wall / 1e9, 2),
            "share_of_read_and_sum": round(reference[0] / wall, 3), "cpu_seconds": round(cpu, 3), "share_by_cpu": round(reference[1] / cpu, 3),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
