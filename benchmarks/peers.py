"""ptycho beside other packages that you have installed: seconds per pass on the same scan, in turn, in one run; and time to a score.

    python benchmarks/peers.py DATA_DIR --peers ptyrad --cases 1x1 4x4 --batches 32 --rounds 3 --threads 2
    python benchmarks/peers.py DATA_DIR --peers ptyrad quantem --targets 0.9 0.95 0.98 --epochs 30 --rounds 1

DATA_DIR holds one EMPAD ``*.raw``, its metadata.json and, for ``--targets``, truth.npz. A case is MODES x SLICES. ``--python ptyrad=FILE`` names
the Python of an environment that has the package (default: this one). Each round runs every package once, in a process of its own; the first pass
of a process warms up and is not counted. What stands in the table is the least of all rounds, which other programs disturb least, and the
ratios to ptycho of wall and of processor seconds (the second hardly feels what else runs). ``--threads`` holds for all.

With targets, the summed phase after each pass is compared with the truth (ptycho.metrics, constant, plane and shift free): passes and
seconds to each correlation, of each package as it comes. A word behind the peer's name is a switch of its program: ``ptyrad:compile``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PEERS = sorted(path.stem.removeprefix("peer_") for path in HERE.glob("peer_*.py") if path.stem != "peer_common")


class Runner:
    """Starts the packages' programs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.python = dict(word.split("=", 1) for word in args.python)

    def __call__(self, peer: str, case: tuple[int, int], batch: int, phases: Path | None = None) -> dict[str, Any] | None:
        """What the program says; None when it fails, with its last words on stderr."""
        a, (name, *switches) = self.args, peer.split(":")
        command = [self.python.get(name, sys.executable), str(HERE / f"peer_{name}.py"), str(a.folder), "--device", a.device]
        options = {"modes": case[0], "slices": case[1], "batch": batch, "epochs": a.epochs, "threads": a.threads, "phases": phases}
        command += [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
        command += [f"--{switch}" for switch in switches]
        threads = {key: str(a.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=os.environ | threads)
        if done.returncode:
            print(f"{peer} failed: {' '.join(done.stderr.split())[-400:]}", file=sys.stderr, flush=True)
            return None
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts


def best(rounds: list[dict[str, Any]], key: str) -> float:
    """The least of all passes but each process's first."""
    return min(min(facts[key][1:] or facts[key]) for facts in rounds)


def speeds(runner: Runner, peers: list[str], case: tuple[int, int], batch: int) -> dict[str, list[dict[str, Any]]]:
    """All rounds of all packages, in turn."""
    found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for number in range(runner.args.rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            facts = runner(peer, case, batch)
            if facts is not None:
                found[peer].append(facts)
    return found


def print_speeds(found: dict[str, list[dict[str, Any]]], case: tuple[int, int], batch: int) -> None:
    """One line for each package."""
    ours = found["ptycho"]
    for peer, rounds in found.items():
        if not rounds or not ours:
            continue
        wall, cpu = best(rounds, "wall_s"), best(rounds, "cpu_s")
        ratios = f"{wall / best(ours, 'wall_s'):>10.2f}{cpu / best(ours, 'cpu_s'):>12.2f}"
        alone = f"{wall / best(rounds, 'transforms_s'):>8.2f}" if "transforms_s" in rounds[0] else ""
        title = f"{peer} {rounds[0]['version']}"
        print(f"{f'{case[0]}x{case[1]}':<6}{batch:>6}  {title:<24}{wall:>10.3f}{cpu:>10.3f}{ratios}{alone}", flush=True)


def curve(phases: Path, folder: Path) -> list[float]:
    """Correlation with the truth after each pass."""
    from ptycho.errors import PtychoError
    from ptycho.metrics import compare_with_truth

    stored, truth = np.load(phases), np.load(folder / "truth.npz")
    known, pixel = np.asarray(truth["phase"], np.float64), float(stored["pixel_A"])
    known = known.sum(0) if known.ndim == 3 else known
    positions = stored["positions_px"] * pixel
    low, high = positions.min(0), positions.max(0)
    found = []
    for phase in stored["phases"].astype(np.float64):
        try:
            place = ((low + high) / 2, high - low)
            found.append(compare_with_truth(phase, pixel, known, float(truth["sampling_A"]), *place).correlation)
        except PtychoError:  # a flat or broken phase agrees with nothing
            found.append(0.0)
    return found


def print_targets(runner: Runner, peer: str, case: tuple[int, int], batch: int) -> None:
    """Passes and seconds to each target."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "phases.npz"
        facts = runner(peer, case, batch, file)
        if facts is None:
            return
        values, seconds, cells = curve(file, runner.args.folder), np.cumsum(facts["wall_s"]), []
    for target in runner.args.targets:
        number = next((n for n, value in enumerate(values) if value >= target), None)
        cells.append("-" if number is None else f"{number + 1} / {seconds[number]:.1f} s")
    title = f"{peer} {facts['version']}"
    print(f"{f'{case[0]}x{case[1]}':<6}{batch:>6}  {title:<24}" + "".join(f"{cell:>14}" for cell in cells) + f"{max(values):>9.4f}", flush=True)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA_DIR")
    parser.add_argument("--peers", nargs="+", default=["ptyrad"], metavar="NAME", help=f"of {', '.join(PEERS)}, with :switch")
    parser.add_argument("--cases", nargs="+", default=["1x1", "4x4"], metavar="MODESxSLICES")
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--targets", nargs="+", type=float, help="correlations with the truth")
    parser.add_argument("--python", nargs="+", default=[], metavar="NAME=FILE", help="Python of the environment that has the package")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name, value in (("rounds", 3), ("epochs", 4), ("threads", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    unknown = {peer.split(":")[0] for peer in args.peers} - set(PEERS)
    if unknown:
        parser.error(f"unknown peers {sorted(unknown)}; known are {PEERS}")
    runner, peers = Runner(args), ["ptycho", *(peer for peer in args.peers if peer != "ptycho")]
    heads = [f"{t:g}" for t in args.targets or ()]
    head = "".join(f"{h:>14}" for h in heads) + f"{'best':>9}" if heads else f"{'wall s':>10}{'cpu s':>10}{'x wall':>10}{'x cpu':>12}{'x FFT':>8}"
    print(f"{'case':<6}{'batch':>6}  {'package':<24}{head}", flush=True)
    for text in args.cases:
        modes, slices = (int(part) for part in text.split("x"))
        for batch in args.batches:
            if not args.targets:
                print_speeds(speeds(runner, peers, (modes, slices), batch), (modes, slices), batch)
                continue
            for peer in peers:
                print_targets(runner, peer, (modes, slices), batch)


if __name__ == "__main__":
    main()
