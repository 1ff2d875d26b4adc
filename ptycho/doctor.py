"""What this machine has for a reconstruction: versions, processors, memory, disk, the speed of transforms, and what is wrong with it."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = ("ptycho", "numpy", "torch", "scipy", "h5py", "hdf5plugin", "typer", "pydantic", "tifffile", "matplotlib")
#: Package -> what is missing without it.
_EXTRAS = {"rsciio": "more formats: pip install 'ptycho[formats]'", "zarr": "zspy files: pip install 'ptycho[formats]'",
           "optuna": "ptycho tune: pip install 'ptycho[tune]'", "ase": "crystals from CIF files: pip install 'ptycho[structures]'"}  # fmt: skip
_SIZE = 128
#: The pass that is foretold.
PATTERNS = 10_000
_LEAST_MEMORY_GB, _LEAST_DISK_GB = 4.0, 2.0


@dataclass(frozen=True)
class Device:
    """Where can be computed: its name, memory and speed of transforms; ``pass_s`` seconds for ``PATTERNS`` patterns of 128 x 128."""

    kind: str
    name: str
    memory_GB: float
    free_GB: float
    gflops: float
    pass_s: float


@dataclass(frozen=True)
class Trouble:
    """Something that makes runs slow, or fail, and what to do."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Machine:
    """All that the doctor looked at. ``versions`` and ``extras`` are (package, version or "" when absent)."""

    system: str
    versions: tuple[tuple[str, str], ...]
    extras: tuple[tuple[str, str], ...]
    cores: int
    threads: int
    disk_free_GB: float
    folder: str
    devices: tuple[Device, ...]
    troubles: tuple[Trouble, ...]


def examine(folder: Path) -> Machine:
    """Look at this machine and at the folder in which results would be written; about three seconds."""
    troubles: list[Trouble] = []
    devices, threads = _devices(troubles)
    disk = _disk_free_GB(folder)
    troubles += _environment(threads) + _imports() + _folder(folder, disk)
    if devices and devices[0].free_GB < _LEAST_MEMORY_GB:
        troubles.append(Trouble(f"{devices[0].free_GB:.1f} GB of memory are free", "close programs, or set [data] bin or memory_GB"))
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        versions=versions(),
        extras=tuple((name, _version({"rsciio": "rosettasciio"}.get(name, name))) for name in _EXTRAS),
        cores=cores(), threads=threads, disk_free_GB=disk, folder=str(folder), devices=devices, troubles=tuple(troubles),
    )  # fmt: skip


def what_for(extra: str) -> str:
    """What an optional package is good for, and how to get it."""
    return _EXTRAS[extra]


def cores() -> int:
    """CPU cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def versions() -> tuple[tuple[str, str], ...]:
    """(package, version or "" when absent) of what a run depends on."""
    return tuple((name, _version(name)) for name in _PACKAGES)


def processor() -> str:
    """Name of the CPU; of its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "ptycho":
            return ""
    from ptycho import __version__

    return __version__


def _devices(troubles: list[Trouble]) -> tuple[tuple[Device, ...], int]:
    """(the CPU first, then every GPU that torch can use; torch's threads)."""
    try:
        import torch

        from ptycho.memory import free_bytes
    except (ImportError, OSError) as error:  # OSError: a library of torch's own is missing (Windows)
        troubles.append(Trouble(f"torch cannot be loaded ({' '.join(str(error).split())[:120]})", "install it again: https://pytorch.org"))
        return (), 1
    threads = torch.get_num_threads()
    cpu = torch.device("cpu")
    devices = [_device(cpu, processor(), _memory_GB(), free_bytes(cpu), max(1, min(threads, cores())))]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            place = torch.device("cuda", number)
            try:
                about = torch.cuda.get_device_properties(place)
                devices.append(_device(place, about.name, about.total_memory / 1e9, free_bytes(place), 1))
            except RuntimeError as error:
                troubles.append(Trouble(f"cuda:{number} does not work ({str(error).splitlines()[0][:120]})", "update the driver, or --device cpu"))
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        troubles.append(
            Trouble("there is an NVIDIA driver, but this torch is built for the CPU only", "install torch with CUDA: https://pytorch.org")
        )
    elif shutil.which("nvidia-smi"):
        troubles.append(Trouble("torch has CUDA, but finds no GPU that it can use", "update the NVIDIA driver, see CUDA_VISIBLE_DEVICES"))
    if torch.backends.mps.is_available():
        place = torch.device("mps")
        devices.append(_device(place, "Apple GPU", _memory_GB(), free_bytes(cpu), 1))
    return tuple(devices), threads


def _device(place: Any, name: str, memory_GB: float, free: int, workers: int) -> Device:
    from ptycho.forecast import pattern_seconds, transform_seconds

    transform_seconds(_SIZE, place)  # plans are made and kernels loaded
    flop = 5 * _SIZE**2 * math.log2(_SIZE**2)  # the customary count for a complex transform
    speed = flop / (transform_seconds(_SIZE, place) / workers) / 1e9
    return Device(str(place), name, memory_GB, free / 1e9, speed, PATTERNS * pattern_seconds(_SIZE, 1, place) / workers)


def _memory_GB() -> float:
    """All of the machine's memory; nan where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows
        return math.nan


def _disk_free_GB(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free / 1e9
    except OSError:
        return math.nan


def _environment(threads: int) -> list[Trouble]:
    found, here = [], cores()
    if threads > here:
        found.append(Trouble(f"{threads} threads for {here} cores: they wait for each other", f"set OMP_NUM_THREADS={here}, or --threads {here}"))
    if threads == 1 and here > 2:
        found.append(Trouble(f"1 thread of {here} cores is used", "unset OMP_NUM_THREADS, or give --threads"))
    if os.environ.get("OMP_WAIT_POLICY", "PASSIVE").upper() == "ACTIVE":
        found.append(Trouble("OMP_WAIT_POLICY=ACTIVE: threads that spin slow each other many times", "unset it, or set it to PASSIVE"))
    if os.environ.get("KMP_DUPLICATE_LIB_OK"):
        found.append(
            Trouble("KMP_DUPLICATE_LIB_OK hides two OpenMP libraries in one process: wrong or slow", "install all from pip, or all from conda")
        )
    return found


def _imports() -> list[Trouble]:
    found = []
    for name, loses in (("h5py", "HDF5 files and results"), ("hdf5plugin", "compressed HDF5 of Dectris, Arina and others"), ("scipy", "everything")):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            found.append(Trouble(f"{name} cannot be loaded ({' '.join(str(error).split())[:100]}): no {loses}", f"pip install --upgrade {name}"))
    return found


def _folder(folder: Path, disk_GB: float) -> list[Trouble]:
    found = []
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found.append(Trouble(f"{folder}: nothing can be written here ({error.strerror or error})", "go to another folder, or give one with -o"))
    if disk_GB < _LEAST_DISK_GB:
        found.append(Trouble(f"{disk_GB:.1f} GB are free on this disk", "make room, or give a folder on another disk with -o"))
    return found
