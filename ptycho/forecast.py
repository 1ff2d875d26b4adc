"""What a run will take: memory, time and space on the disk, from formulas with constants measured on runs of the package itself."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptycho.data import Dataset4D
from ptycho.geometry import Geometry
from ptycho.memory import free_bytes
from ptycho.patterns import pixel_bytes
from ptycho.solvers import Solver
from ptycho.stages import options_of, seen_through, view_of
from ptycho.start import ModelOptions, place_positions, window_px

_COMPLEX, _DOUBLE = 8, 8
#: Measured: the program with all that it imports, before it has any data.
_PROGRAM_BYTES = 400 << 20
#: Measured: the object, its velocity, its gradient, the copies to which a run returns, what a constraint makes of it.
_OBJECTS = 8
#: Waves of a chunk and, behind the last epoch, of the patterns that are compared with the model (ptycho/residual.py).
_CHUNK_FIELDS, _CHUNK_WAVES, _COMPARED, _COMPARED_FIELDS, _COMPARED_WAVES, _COMPARED_IMAGES = 1 << 18, 5, 256, 1 << 22, 4, 9.5
#: On a GPU a chunk is larger (ptycho/adjoint.py), but a batch at most.
_GPU_CHUNK_FIELDS = 192 << 14
#: Freed memory that the C library keeps (ptycho/threads.py).
_KEPT_BYTES = 256 << 20
#: Measured: a pattern costs so many transforms of its size, and each wave and slice so many more, forth and back.
_TRANSFORMS, _TRANSFORMS_PER_WAVE = 10.0, 9.2
#: The same on a GPU (H200, batches of 32).
_GPU_TRANSFORMS, _GPU_TRANSFORMS_PER_WAVE = 20.0, 6.0
#: Measured: bytes of the run folder for each of the object's pixels in all slices, and beside them.
_DISK_PER_PIXEL, _DISK_BYTES = 15, 3 << 20


@dataclass(frozen=True)
class Load:
    """What one stage works on: the waves, the pixels of the object in all slices and states, the patterns and the batch."""

    size: int
    slices: int
    states: int
    modes: int
    canvas: tuple[int, int]
    patterns: int
    batch: int

    @classmethod
    def of(cls, geometry: Geometry, options: ModelOptions, stage: Solver) -> Load:
        """Of a stage of a run on these patterns."""
        view = view_of(geometry.pattern_shape, stage.bin, stage.detector_px)
        seen, own = seen_through(geometry, view), options_of(options, view, stage.slices, stage.probe_modes)
        window = window_px(seen, own)
        size, count = window * own.oversample, len(geometry.positions_A)
        _, canvas = place_positions(geometry.positions_A * (window * seen.pixel_invA), size)
        batch = min(stage.batch, count) or count
        return cls(size, own.slices, own.object_states, own.probe_modes, canvas, count, batch)

    @property
    def object_pixels(self) -> int:
        """Of all slices and states."""
        return math.prod(self.canvas) * self.slices * self.states

    @property
    def least_bytes(self) -> int:
        """One copy of the object and one wave, without which nothing can begin."""
        return _COMPLEX * (self.object_pixels + self.size**2)

    def bytes(self, device: torch.device) -> float:
        """Memory beside program and patterns."""
        window = self.size**2
        fields = _CHUNK_FIELDS if device.type == "cpu" else min(_GPU_CHUNK_FIELDS, self.batch * self.modes * window)
        chunk = fields * (self.slices + self.slices / self.modes + _CHUNK_WAVES)
        solving = _COMPLEX * (self.batch * self.slices * self.states * window + chunk + self.slices * window)
        # In the end some patterns are modelled again, as many at a time as the fields allow.
        waves = self.modes * self.states * window
        compared = min(_COMPARED, self.patterns)
        together = compared / math.ceil(compared * waves / _COMPARED_FIELDS)
        modelled = _COMPLEX * together * (self.slices * self.states * window + _COMPARED_WAVES * waves)
        judging = max(modelled, _COMPARED_IMAGES * _DOUBLE * together * window)
        return _OBJECTS * _COMPLEX * self.object_pixels + max(solving, min(solving, _KEPT_BYTES) + judging)


def peak_bytes(data: Dataset4D, options: ModelOptions, stages: Sequence[Solver], device: torch.device) -> float:
    """Peak memory of a run on the device (of a CPU: of the whole process), to about 20 %."""
    geometry, peak = data.geometry, 0.0
    for stage in stages:
        view = view_of(data.pattern_shape, stage.bin, stage.detector_px)
        patterns = math.prod(data.pattern_shape if view is None else view.shape) * data.n_positions * pixel_bytes(data, view)
        limit = free_bytes(device) / 2 if data.memory_GB is None else data.memory_GB * 1e9
        peak = max(peak, (patterns if patterns < limit else 0) + Load.of(geometry, options, stage).bytes(device))
    return peak + (_PROGRAM_BYTES if device.type == "cpu" else 0)


def epoch_seconds(geometry: Geometry, options: ModelOptions, stage: Solver, device: torch.device) -> float:
    """Time of one pass over the data, from the speed of a transform that is measured here and now (a few hundredths of a second)."""
    load = Load.of(geometry, options, stage)
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    waves = load.slices * load.modes * load.states
    return len(geometry.positions_A) * pattern_seconds(load.size, waves, device) / workers


def pattern_seconds(size: int, waves: int, device: torch.device) -> float:
    """Time of one pattern of ``size`` pixels in a pass, on one thread of a CPU; ``waves`` are modes x slices x states."""
    of_all, of_each = (_TRANSFORMS, _TRANSFORMS_PER_WAVE) if device.type == "cpu" else (_GPU_TRANSFORMS, _GPU_TRANSFORMS_PER_WAVE)
    return (of_all + of_each * waves) * transform_seconds(size, device)


def transform_seconds(size: int, device: torch.device) -> float:
    """Of one complex64 transform of ``size`` x ``size`` on one thread of a CPU: the best of several, as others may want the processor too."""
    on_cpu = device.type == "cpu"
    count, best = max(1, (_CHUNK_FIELDS if on_cpu else _GPU_CHUNK_FIELDS) // size**2), math.inf
    # To launch one on a GPU and to wait for it takes longer than itself.
    together = 1 if on_cpu else 20
    wave = torch.zeros(count, size, size, dtype=torch.complex64, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(8):
            began = time.perf_counter()
            for _ in range(together):
                spectrum = torch.fft.fft2(wave)
            spectrum[0, 0, 0].item()
            best = min(best, (time.perf_counter() - began) / together)
    finally:
        torch.set_num_threads(threads)
    return best / count


def disk_bytes(geometry: Geometry, options: ModelOptions, stages: Sequence[Solver]) -> float:
    """Size of the run folder."""
    return _DISK_BYTES + _DISK_PER_PIXEL * max(Load.of(geometry, options, stage).object_pixels for stage in stages)
