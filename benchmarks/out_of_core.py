"""A data set of 2.1 GB reconstructed from memory and from disk: seconds per pass and resident memory of each.

    python benchmarks/out_of_core.py DATA_DIR [--side 256] [--rounds 2] [--format npy]

DATA_DIR holds scan_x48_y48.raw; its patterns are repeated over side x side points as uint16 (npy, or h5 as ``ptycho convert`` writes it).
Each run is a process of its own, the two kinds in turn, so that the file is in the cache of both. Prints one JSON line for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

import ptycho

SOURCE_SIDE = 48


def make(folder: Path, source: Path, side: int, kind: str) -> Path:
    """The large file."""
    small = ptycho.read(source, adu_per_electron=148.0, centre="none").patterns().astype(np.uint16).reshape(SOURCE_SIDE, SOURCE_SIDE, 128, 128)
    place = np.arange(side) % SOURCE_SIDE
    path = folder / f"large.{kind}"
    if kind == "h5":
        from ptycho.io.emd_write import write_emd

        return write_emd(path, (small[y][place] for y in place), shape=(side, side), pattern_shape=(128, 128), dtype="u2")
    large = np.lib.format.open_memmap(path, "w+", dtype=np.uint16, shape=(side, side, 128, 128))
    for line, y in enumerate(place):
        large[line] = small[y][place]
    large.flush()
    return path


def run(path: Path, memory_GB: float | None) -> None:
    """One reconstruction of two passes."""
    data = ptycho.read(path, voltage_kV=80, semiangle_mrad=24.9, step_A=0.7, defocus_A=350, pixel_invA=1 / 30, memory_GB=memory_GB)
    result = ptycho.reconstruct(data, epochs=2, device="cpu")
    print(json.dumps({
        "memory_GB": memory_GB, "seconds_per_pass": round(min(record.seconds for record in result.history), 2),
        "resident_GB": round(_peak_bytes() / 1e9, 2), "loss": result.history[-1].loss,
    }))  # fmt: skip


def _peak_bytes() -> int:
    """Largest resident memory of this program; getrusage would count what its parent had when it was started."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def main() -> None:
    """Make the file and run both kinds in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--format", choices=("npy", "h5"), default="npy")
    parser.add_argument("--run", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        run(given.data, given.run if given.run >= 0 else None)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), next(given.data.glob("*.raw")), given.side, given.format)
        for _ in range(given.rounds):
            for limit in (-1.0, 0.0):
                subprocess.run([sys.executable, __file__, str(path), "--run", str(limit)], check=True)


if __name__ == "__main__":
    main()
