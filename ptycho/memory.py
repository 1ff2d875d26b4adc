"""How much memory is free: on a GPU, on the machine, and in the share of it that a cluster's job may use."""

from __future__ import annotations

import logging
import math
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

logger = logging.getLogger("ptycho")

T = TypeVar("T")

_UNKNOWN = 8 << 30


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken now on the device; 8 GB where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [n for n in (_available(Path("/proc/meminfo")), *map(_left_in_group, _groups())) if n is not None]
    return min(known) if known else _UNKNOWN


def peak_bytes(device: torch.device) -> tuple[float, float]:
    """The most that this process has held of the machine's memory, and of the GPU's; NaN where nobody says, or where there is none."""
    on_gpu = float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else math.nan
    try:
        import resource  # not on Windows
    except ImportError:
        return math.nan, on_gpu
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most << 10), on_gpu


def restart_peak(device: torch.device) -> None:
    """Let :func:`peak_bytes` count from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def device_name(device: torch.device) -> str:
    """What computes, for a person."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = f"{platform.system()} {platform.machine()}"
    threads = torch.get_num_threads()
    return f"{name}, {threads} CPU thread{'' if threads == 1 else 's'}" if device.type == "cpu" else f"{name}, {device.type}"


def _available(meminfo: Path) -> int | None:
    """MemAvailable, which counts what the file cache would give back."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _groups() -> list[Path]:
    """The control groups (version 2) that this process is in, from its own up to the root: each may have a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return [root]
    own = root / line[3:].strip("/")
    return [own, *(parent for parent in own.parents if parent.is_relative_to(root))]


def _left_in_group(group: Path) -> int | None:
    """What the limit of a group leaves, file cache that can be dropped not counted; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(limit - used + int(stat.get("inactive_file", 0)), 0)
    except (OSError, ValueError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an allocation that failed; torch has no class of its own for that on the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def with_less(work: Callable[[int], T], chunk: int, most: int, device: torch.device) -> tuple[T, int]:
    """(what ``work`` gives, the chunk of patterns that it took at a time): ``chunk``, halved as often as memory runs out.

    There are ``most`` patterns. ``work`` must change nothing before it has its result. Raises what it raised when there is no room for one pattern.
    """
    while True:
        try:
            return work(chunk), chunk
        except (MemoryError, RuntimeError) as error:
            if chunk == 1 or not is_out_of_memory(error):
                raise
        chunk = max(1, min(chunk, most) // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(f"out of memory: from here on {chunk} patterns are computed at a time")
