"""The speed of this machine: a pass over the data, beside what its transforms alone and the bare transport of its waves would take.

Passes are those of a run (the solver, its batches, constraints and step control) on synthetic data. Each is followed by the transforms of a
pass and nothing else, of the same number, shape and grouping, so that what else the machine does hits both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from statistics import median
from typing import Any

import numpy as np
import torch

from ptycho.adjoint import Likelihood
from ptycho.data import Dataset4D
from ptycho.doctor import processor, versions
from ptycho.errors import OutOfMemoryError, RecipeError
from ptycho.explain import suggestion
from ptycho.frames import Quantity
from ptycho.io.source import ArraySource
from ptycho.loss import Loss
from ptycho.memory import device_name, is_out_of_memory, peak_bytes, restart_peak
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.preparation import Preparation
from ptycho.solvers import Gradient, Updates
from ptycho.start import ModelOptions, start
from ptycho.threads import single_threaded

#: The optics of the synthetic data; 1 / pixel_invA is the window, which grows with the pattern: the object's pixel is 30 / 128 Å for all.
_OPTICS = {"voltage_kV": 80.0, "semiangle_mrad": 24.9, "defocus_A": 100.0, "step_A": (0.7, 0.7)}
_PIXEL_A, _ELECTRONS = 30 / 128, 1e4
#: So many different patterns are drawn; the scan repeats them.
_DIFFERENT = 64
#: Passes before the first that counts: buffers are allocated, plans made, kernels compiled and graphs captured.
_WARM_UP = 2
#: Bytes to and from memory per sample of a wave and slice, with everything between the transforms fused into four sweeps: four transforms
#: of 32, the product with the object 16, with the propagator 16 and 16, the way back through the object 24.
_BYTES_PER_SAMPLE = 4 * 32 + 16 + 16 + 24 + 16
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
#: Waves of 128 x 128 that a pass works through at most; with more, fewer patterns are taken and the time scaled.
_LARGEST = {"cpu": 1 << 13, "cuda": 1 << 20}


@dataclass(frozen=True)
class Case:
    """One size: a scan of ``scan`` x ``scan`` patterns of ``size`` x ``size`` pixels, and the model and batch with which it is solved."""

    scan: int
    size: int
    modes: int
    slices: int
    batch: int = 32

    @property
    def name(self) -> str:
        """As on the command line: scan, pattern, modes, slices, batch."""
        return f"{self.scan}/{self.size}/{self.modes}/{self.slices}/{self.batch}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """From its name; the batch may be left out. Raises RecipeError for anything else."""
        try:
            numbers = [int(part) for part in text.split("/")]
            case = cls(*numbers)
        except (TypeError, ValueError):
            raise RecipeError(f'case = "{text}": SCAN/PATTERN/MODES/SLICES or with /BATCH is needed, as in 128/128/4/1/32') from None
        if min(numbers) < 1 or not 32 <= case.size <= 4096:
            raise RecipeError(f'case = "{text}": whole numbers from 1 on are needed, and patterns of 32 to 4096 pixels')
        return case


#: The standard sizes; what a machine without a GPU can do in a minute comes first.
SMALL = (Case(32, 64, 2, 1), Case(32, 64, 4, 4), Case(32, 128, 1, 1), Case(32, 128, 2, 1), Case(32, 128, 4, 4))
LARGE = (Case(64, 128, 4, 1), Case(128, 128, 4, 1), Case(128, 128, 6, 6), Case(128, 128, 6, 21), Case(256, 256, 6, 20))
BATCHES = tuple(Case(128, 128, 6, 6, batch) for batch in (16, 64, 256, 512, 1024)) + (Case(128, 128, 4, 1, 512),)
SETS = {"small": SMALL, "large": LARGE, "batches": BATCHES}


@dataclass(frozen=True)
class Figures:
    """What was measured of a case. ``pass_s`` is for the whole scan; ``patterns`` of it were measured (fewer: a smaller scan, scaled).

    ``of_transforms`` is the pass over its Fourier transforms alone (same number, shape, grouping and threads), ``of_copy`` over the time in
    which a copy would move 200 bytes per sample of each wave in each slice: the least of plain transforms with all else fused.
    ``memory_GB`` is the most that was held: allocated on a GPU, resident of the process on a CPU.
    """

    case: Case
    patterns: int
    pass_s: float
    passes_s: tuple[float, ...]
    per_pattern_us: float
    of_transforms: float
    of_copy: float
    memory_GB: float
    data_GB: float


@dataclass(frozen=True)
class Bench:
    """Where and how often is measured: ``workers`` threads of a CPU, median of ``repeats`` passes."""

    device: torch.device
    workers: int
    repeats: int
    patterns: int | None = None

    def about(self) -> dict[str, Any]:
        """Versions, device, date: what a record needs to be read later."""
        return {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "device": device_name(self.device) if self.device.type == "cuda" else processor(),
            "threads": self.workers, "repeats": self.repeats, "cuda": torch.version.cuda if self.device.type == "cuda" else None,
            "versions": dict(versions()), "copy_GB_per_s": round(self.copy_speed / 1e9, 2),
        }  # fmt: skip

    @property
    def copy_speed(self) -> float:
        """Bytes per second that a large copy reads and writes."""
        source = torch.empty(_COPY_BYTES.get(self.device.type, 256 << 20), dtype=torch.uint8, device=self.device).fill_(1)
        target, threads = torch.empty_like(source), torch.get_num_threads()
        torch.set_num_threads(self.workers)
        try:
            times = [self._seconds(lambda: target.copy_(source)) for _ in range(7)]
        finally:
            torch.set_num_threads(threads)
        return 2 * source.numel() / median(times[2:])

    def run(self, cases: Sequence[Case]) -> Iterator[Figures]:
        """Measure one case after the other. Raises OutOfMemoryError naming the case that does not fit."""
        speed, made, patterns = self.copy_speed, (0, 0), None
        for case in cases:
            try:
                if patterns is None or made != (case.size, self._side(case)):
                    patterns, made = None, (case.size, self._side(case))
                    patterns = Patterns(synthetic(case, self._side(case)), self.device)
                yield self._figures(case, patterns, speed)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemoryError(f"case {case.name}: out of memory; choose others with --case") from None

    def _side(self, case: Case) -> int:
        """Scan points along an axis that are measured."""
        waves = case.modes * case.slices * (case.size / 128) ** 2
        most = max(2 * case.batch, int(_LARGEST.get(self.device.type, _LARGEST["cpu"]) / waves)) if self.patterns is None else self.patterns
        return min(case.scan, max(2, int(most**0.5)))

    def _figures(self, case: Case, patterns: Patterns, speed: float) -> Figures:
        restart_peak(self.device)
        data = patterns.data
        model = start(data.geometry, _options(case), patterns.mean_electrons, patterns.mask).to(self.device)
        solver = Gradient(epochs=_WARM_UP + self.repeats, batch=case.batch, update=Updates(probe=1))
        group = min(Likelihood(model, Loss()).chunk, case.batch)
        epochs, passes, alone = solver.run(model, patterns, self.workers), list[float](), list[float]()
        for _ in range(_WARM_UP + self.repeats):
            passes.append(self._seconds(lambda: next(epochs)))
            alone.append(self._transforms(case, len(patterns), group))
        counted = passes[_WARM_UP:]
        seconds, factor = median(counted), case.scan**2 / len(patterns)
        samples = len(patterns) * case.modes * case.slices * case.size**2
        resident, on_gpu = peak_bytes(self.device)
        return Figures(
            case, len(patterns), seconds * factor, tuple(s * factor for s in counted), seconds / len(patterns) * 1e6,
            median(a / b for a, b in zip(counted, alone[_WARM_UP:], strict=True)), seconds * speed / (samples * _BYTES_PER_SAMPLE),
            (on_gpu if self.device.type == "cuda" else resident) / 1e9, len(patterns) * case.size**2 / 1e9,
        )  # fmt: skip

    def _transforms(self, case: Case, count: int, group: int) -> float:
        """Seconds for the transforms of a pass: 4 per mode, slice and pattern, half of them inverse, ``group`` patterns at a time."""
        wave = torch.ones(group, case.modes, case.size, case.size, dtype=torch.complex64, device=self.device)
        rounds = -(-count // group)

        def work(worker: int) -> None:
            for _ in range(2 * case.slices * len(range(worker, rounds, self.workers))):
                torch.fft.fft2(wave)
                torch.fft.ifft2(wave, norm="forward")

        # A transform into fresh memory is faster than one with out=, which copies; it is what the solvers do.
        with single_threaded(), ThreadPoolExecutor(self.workers) as pool:
            work(rounds - 1)
            return self._seconds(lambda: list(pool.map(work, range(self.workers))))

    def _seconds(self, work: Callable[[], Any]) -> float:
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def cases_of(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names, of single ones or of ``SETS``. Raises RecipeError for a name that is neither."""
    for name in names:
        if "/" not in name and name not in SETS:
            raise RecipeError(f'case = "{name}": unknown{suggestion(name, tuple(SETS))}')
    return tuple(dict.fromkeys(case for name in names for case in SETS.get(name) or (Case.parse(name),)))


def standard(device: torch.device, quick: bool) -> tuple[Case, ...]:
    """What is measured when nobody says what."""
    if device.type == "cuda":
        return (Case(128, 128, 4, 1), Case(128, 128, 6, 6)) if quick else LARGE + BATCHES
    return (Case(32, 128, 1, 1), Case(32, 128, 4, 4)) if quick else SMALL + LARGE


def record(figures: Figures) -> dict[str, Any]:
    """For a file."""
    return {"name": figures.case.name, **asdict(figures)}


def synthetic(case: Case, side: int) -> Dataset4D:
    """A scan of ``side`` x ``side`` patterns of empty space, few of them different, with Poisson noise; nothing is read."""
    pixel_invA = 1 / (_PIXEL_A * case.size)
    known = {name: Quantity(value, "", "benchmark") for name, value in {**_OPTICS, "pixel_invA": pixel_invA}.items()}
    empty = np.zeros((_DIFFERENT, case.size, case.size), np.uint8)
    data = Dataset4D(ArraySource(empty), Preparation(), known, (side, side), np.arange(side**2) % _DIFFERENT)
    expected = _expected(start(data.geometry, _options(replace(case, modes=1, slices=1)), _ELECTRONS, np.ones(data.pattern_shape, bool)))
    noise = np.random.default_rng(0)
    drawn = noise.poisson(expected, (_DIFFERENT, *expected.shape)).clip(max=200).astype(np.uint8)
    return replace(data, source=ArraySource(drawn))


@torch.no_grad()
def _expected(model: Ptychography) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The pattern of empty space, (ky, kx), zero frequency in the centre."""
    return torch.fft.fftshift(model(torch.zeros(1, dtype=torch.int64))[0]).double().numpy()


def _options(case: Case) -> ModelOptions:
    return ModelOptions(probe_modes=case.modes, slices=case.slices, slice_thickness_A=2.0, pad=0)
