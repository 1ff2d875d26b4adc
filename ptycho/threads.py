"""How the CPU's cores are shared out: one Python thread per core, each with single-threaded torch.

Whole chunks in parallel need no barrier inside an operation. Torch's own threads wait for each other at every one of them, which
costs half of the time on chunks that fit the cache and twenty times as much when another process takes one of the cores.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def single_threaded() -> Iterator[None]:
    """Torch uses one thread per operation inside, and what it used before afterwards; inside, denormal numbers are flushed to zero.

    Without flushing, decayed momenta become denormal after many epochs and CPU arithmetic 10 to 30 times slower.
    """
    threads = torch.get_num_threads()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 256 MiB of freed memory instead of handing every large block back to the system at once.

    A transform allocates its result; a fresh megabyte from the system costs more in page faults than the transform itself.
    Only glibc has this habit, and this setting; elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_threshold, keep = -1, -3, 256 * 2**20
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(trim_threshold, keep)
    mallopt(mmap_threshold, 32 * 2**20)
