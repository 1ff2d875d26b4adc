"""What the programs peer_*.py share: their command line, the scan with what is known of it, and the clock of their passes.

Each times one package on one scan and prints one JSON line; peers.py runs them in turn. Only NumPy is needed here: every package can live in
an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin slow both packages on a machine that others use too

import numpy as np

SLICE_THICKNESS_A = 2.0


def arguments(description: str | None, **extra: Any) -> argparse.Namespace:
    """The common options, and ``extra`` switches by name and help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA_DIR", help="one EMPAD *.raw and its metadata.json")
    for name, value in (("modes", 1), ("slices", 1), ("batch", 32), ("epochs", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--phases", type=Path, metavar="FILE.npz", help="store the phase after each pass, to be scored")
    for name, help_ in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=help_)
    return parser.parse_args()


@dataclass(frozen=True)
class Scan:
    """``patterns`` float32 (N, ky, kx) in electrons, zero frequency in the centre, in the orientation of the scan; and its metadata."""

    patterns: np.ndarray[Any, np.dtype[np.float32]]
    meta: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Scan:
        meta = json.loads((folder / "metadata.json").read_text())
        (raw,) = folder.glob("*.raw")
        # Each stored frame has two more rows that are not image.
        frames = np.fromfile(raw, "<f4").reshape(-1, 130, 128)[:, :128] / np.float32(meta["adu_per_electron"])
        return cls(np.ascontiguousarray(frames[:, ::-1] if meta["detector_rows_flipped"] else frames), meta)


@dataclass
class Passes:
    """Wall and processor seconds of each pass, and the phase after it when it is to be stored."""

    args: argparse.Namespace
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    phases: list[Any] = field(default_factory=list)
    _began: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """A pass begins."""
        self._wait()
        self._began = time.perf_counter(), time.process_time()

    def stop(self, phase: Any = None) -> None:
        """It is over; ``phase()`` gives (y, x) in rad, summed over slices. What that takes is not counted."""
        self._wait()
        self.wall_s.append(time.perf_counter() - self._began[0])
        self.cpu_s.append(time.process_time() - self._began[1])
        if self.args.phases is not None and phase is not None:
            self.phases.append(np.asarray(phase(), np.float32))

    def report(self, package: str, version: str, pixel_A: float, positions_px: Any, **more: Any) -> None:
        """Print the line. ``positions_px`` (N, 2) are the probe centres (y, x) in pixels of the phase."""
        a = self.args
        if a.phases is not None:
            np.savez(a.phases, phases=self.phases, pixel_A=pixel_A, positions_px=positions_px)
        facts = {"package": package, "version": version, "modes": a.modes, "slices": a.slices, "batch": a.batch, "device": a.device,
                 "threads": a.threads, "wall_s": self.wall_s, "cpu_s": self.cpu_s}  # fmt: skip
        print(json.dumps(facts | more), flush=True)

    def _wait(self) -> None:
        if self.args.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
