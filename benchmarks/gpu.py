"""A pass on a GPU: time, share of the time that the GPU works, memory, and the transforms alone; with and without kernels and graphs.

    python benchmarks/gpu.py --cases 4x1 6x6 --batches 32 512

16384 patterns of 128 x 128 (MODES x SLICES each case), Poisson noise, made on the spot. One line of JSON a case.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

import ptycho.adjoint
import ptycho.solvers.recorded
from ptycho.aberrations import parse_aberrations
from ptycho.adjoint import Likelihood
from ptycho.batches import stratified_batches
from ptycho.elementwise import Elementwise
from ptycho.geometry import Geometry, raster_positions_A
from ptycho.holdout import Split
from ptycho.loss import Loss
from ptycho.model import Ptychography
from ptycho.solvers import Gradient, Updates
from ptycho.solvers.recorded import Recorded
from ptycho.start import ModelOptions, start

ELECTRONS = 1e4


def make(scan: int, pixels: int, modes: int, slices: int) -> Ptychography:
    """A flat start for a scan of scan x scan points."""
    positions, aberrations = raster_positions_A((scan, scan), (0.43, 0.43)), parse_aberrations({"C10": -100.0})
    geometry = Geometry(80.0, 25.0, 0.05 * 128 / pixels, (pixels, pixels), positions, aberrations)
    options = ModelOptions(probe_modes=modes, slices=slices, slice_thickness_A=5.0, pad=0)
    return start(geometry, options, ELECTRONS, np.ones((pixels, pixels), bool))


class Counts:
    """Patterns of 8 bits on the device: those of vacuum with noise, which cost what others cost."""

    def __init__(self, count: int, pixels: int, device: torch.device) -> None:
        model = make(4, pixels, 1, 1).to(device)
        with torch.no_grad():
            mean = model(torch.zeros(1, dtype=torch.int64, device=device))
        blocks = [torch.poisson(mean.expand(512, -1, -1)).clamp_(max=254).to(torch.uint8) for _ in range(0, count, 512)]
        self.stored = torch.cat(blocks)[:count]
        self.buffer = torch.empty(0, device=device)

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        """As Patterns.batch."""
        if len(self.buffer) < len(index):
            self.buffer = torch.empty(len(index), *self.stored.shape[1:], device=index.device)
        return self.buffer[: len(index)].copy_(torch.index_select(self.stored, 0, index))


def passes(model: Ptychography, counts: Counts, batch: int, chunk: int, epochs: int) -> tuple[list[float], Callable[[], None]]:
    """Seconds of each pass, and a function that does one more."""
    device, count = model.probe.wave.device, len(counts.stored)
    engine = Likelihood(model, Loss("amplitude", 0.01), chunk or None)
    solver = Gradient(epochs=epochs, batch=batch, update=Updates(probe=1))
    solver = Gradient(epochs=epochs, batch=batch, update=Updates(probe=1), constraints=solver.constraints_for(engine.loss, model))
    step = solver.step(engine, Split.whole(count), 1.0)
    order, epoch, run = np.arange(count), 0, None

    def one() -> None:
        nonlocal epoch, run
        epoch += 1
        plan = stratified_batches(order, batch, 0, epoch)
        step.start_epoch(epoch, solver.update.due(epoch))
        if run is None or not run.fits(step):
            run = Recorded(step, engine, [len(part) for part in plan])
        indices = torch.from_numpy(np.concatenate(plan)).to(device).split([len(part) for part in plan])
        total = torch.zeros((), dtype=torch.float64, device=device)
        torch.cuda.set_sync_debug_mode("error")
        for number, index in enumerate(indices):
            engine.measures = number % 4 == 0
            loss = run(index, counts(index))
            if engine.measures:
                total = total + loss
        torch.cuda.set_sync_debug_mode("default")
        assert bool(torch.isfinite(total)), "the loss is not finite"

    times = []
    for _ in range(epochs):
        torch.cuda.synchronize()
        before = time.perf_counter()
        one()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return times, one


def busy(one: Callable[[], None]) -> float:
    """Share of a pass during which a kernel runs, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as watch:
        before = time.perf_counter()
        one()
        torch.cuda.synchronize()
        whole = time.perf_counter() - before
    spans = sorted((e.time_range.start, e.time_range.end) for e in watch.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    covered, end = 0.0, 0.0
    for first, last in spans:
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    first, last = spans[0][0], end
    top = sorted(watch.key_averages(), key=lambda e: -e.self_device_time_total)[:14]
    for entry in top:
        print(f"    {entry.self_device_time_total / 1e3:9.2f} ms {entry.count:7d} x  {entry.key[:90]}")
    print(f"    kernels cover {covered / 1e3:.1f} ms of {(last - first) / 1e3:.1f} ms (wall with the profiler {whole * 1e3:.1f} ms)")
    return covered / (last - first)


def transforms_alone(count: int, modes: int, slices: int, pixels: int, group: int, device: torch.device) -> float:
    """Seconds of a pass's transforms, 4 per mode, slice and pattern, in groups as large as the chunks'."""
    wave = torch.randn(group, modes, pixels, pixels, dtype=torch.complex64, device=device)
    for _ in range(3):
        torch.fft.fft2(wave)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(2 * slices):
            torch.fft.ifft2(torch.fft.fft2(wave), norm="forward")
    graph.replay()
    torch.cuda.synchronize()
    before = time.perf_counter()
    for _ in range(count // group):
        graph.replay()
    torch.cuda.synchronize()
    return time.perf_counter() - before


def copy_bandwidth(device: torch.device) -> float:
    """TB/s, read and written."""
    a = torch.empty(2**30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    for _ in range(3):
        b.copy_(a)
    torch.cuda.synchronize()
    before = time.perf_counter()
    for _ in range(20):
        b.copy_(a)
    torch.cuda.synchronize()
    return 20 * 2 * 2**30 / (time.perf_counter() - before) / 1e12


def plain(kernels: bool, graphs: bool) -> None:
    """Switch kernels and graphs off."""
    if not kernels:
        ptycho.adjoint._elementwise_for = lambda device, model: Elementwise
    ptycho.solvers.recorded._LEAST_BATCHES = 16 if graphs else 10**9


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["4x1", "6x6"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 512])
    parser.add_argument("--chunks", nargs="+", type=int, default=[0])
    parser.add_argument("--scan", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--no-kernels", action="store_true")
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--profile", action="store_true")
    a = parser.parse_args()
    device = torch.device("cuda")
    original = ptycho.adjoint._elementwise_for
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_TB_s": round(copy_bandwidth(device), 2)}), flush=True)
    counts = Counts(a.scan**2, a.pixels, device)
    for case in a.cases:
        modes, slices = map(int, case.split("x"))
        for batch in a.batches:
            for chunk in a.chunks:
                ptycho.adjoint._elementwise_for = original
                plain(not a.no_kernels, not a.no_graphs)
                torch.cuda.reset_peak_memory_stats()
                model = make(a.scan, a.pixels, modes, slices).to(device)
                times, one = passes(model, counts, batch, chunk, a.epochs)
                row = {"modes": modes, "slices": slices, "batch": batch, "chunk": chunk, "kernels": not a.no_kernels, "graphs": not a.no_graphs,
                       "seconds_per_pass": round(min(times), 4), "passes": [round(t, 3) for t in times],
                       "transforms_alone": round(transforms_alone(a.scan**2, modes, slices, a.pixels, min(batch, chunk or 64), device), 4),
                       "peak_GB": round(torch.cuda.max_memory_allocated() / 1e9, 2)}  # fmt: skip
                if a.profile:
                    row["busy"] = round(busy(one), 3)
                print(json.dumps(row), flush=True)
                del model, one
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
