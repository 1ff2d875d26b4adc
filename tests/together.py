"""Several processes that work together, as torchrun would start them; forked behind the imports, which take longer than a test."""

from __future__ import annotations

import multiprocessing.connection
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ptycho.pipeline
import ptycho.plot
from ptycho.errors import PtychoError
from ptycho.ranks import TIMEOUT, joined

#: Seconds that a group of processes may take, and that the others may take once the first has ended.
PATIENCE_S, GRACE_S = 200, 30


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def together(work: Callable[..., Any], count: int, folder: Path, *given: Any, timeout_s: float = 100, grace_s: float = GRACE_S) -> list[int]:
    """Exit codes of ``count`` processes that each do ``work(ranks, folder, *given)``; what they print is in ``folder/rank-N.txt``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ptycho.pipeline", "ptycho.plot", "matplotlib.figure", "torch.distributed", "small"])
    port, folder = free_port(), Path(folder)
    folder.mkdir(exist_ok=True)
    places = [{"RANK": str(i), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for i in range(count)]
    processes = [context.Process(target=_one, args=(work, place | {TIMEOUT: str(timeout_s)}, folder, given)) for place in places]
    for process in processes:
        process.start()
    multiprocessing.connection.wait([process.sentinel for process in processes], PATIENCE_S)
    end = time.monotonic() + grace_s
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in processes]


def _one(work: Callable[..., Any], environment: dict[str, str], folder: Path, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # The page and the pictures take longer than the run, and are tested elsewhere.
    ptycho.pipeline.report = lambda result: f"{len(result.history)} epochs"
    ptycho.plot.phase_png = lambda result: b""
    sys.stderr = open(folder / f"rank-{environment['RANK']}.txt", "w")  # noqa: SIM115
    # torch reads its own, wherever it is asked.
    os.environ |= environment
    code = 0
    try:
        with joined(environment) as ranks:
            work(ranks, folder, *given)
    except PtychoError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    sys.stderr.flush()
    sys.exit(code)
