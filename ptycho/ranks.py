"""The processes that compute one reconstruction together: who is who, sums over all of them, and the word of the first.

The only module that speaks to torch.distributed: gloo between CPUs and for all that is not a tensor on a GPU, NCCL between GPUs. A process by
itself is the usual case, for which nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from ptycho.errors import DataError, PtychoError, Stopped, SubmitError

T = TypeVar("T")

#: A process from which the others have heard nothing for so long is dead; the longest that one works alone is while it writes a checkpoint.
_TIMEOUT_S = 600.0
#: Sets another limit.
TIMEOUT = "PTYCHO_TIMEOUT_S"
#: So long the processes wait for each other when they end: what the first one writes is to be complete, and all are to know why.
_FAREWELL_S = 10.0


class _Line:
    """What connects the processes, beside torch's own group: a few words that are kept by the first, or by torchrun."""

    def __init__(self, store: Any) -> None:
        self.store = store
        #: Another process has gone.
        self.lost = False

    def word(self, name: str) -> str:
        """What a process has left under this name; empty without one."""
        try:
            return str(self.store.get(name).decode()) if self.store.check([name]) else ""
        except RuntimeError:  # whoever kept it has gone
            return ""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among those of a run: the ``index``-th of ``count``, and the ``local``-th of ``local_count`` on its machine.

    All processes have to call the same methods in the same order. When one of them has gone they raise Stopped, or PtychoError with the exit code of
    the one that failed.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1
    line: _Line | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.index == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place of ``tensor``, which is contiguous; the same bits everywhere, and every time."""
        if self.line is not None:
            import torch.distributed as dist

            with self._together(self.line):
                dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.line is None:
            return here
        return bool(self.sum_(torch.tensor(int(here))))

    def told(self, value: T) -> T:
        """``value`` of the first process, whatever the others have."""
        if self.line is None:
            return value
        import torch.distributed as dist

        words = [value]
        with self._together(self.line):
            dist.broadcast_object_list(words, src=0)
        return words[0]

    def copy_(self, tensors: Iterator[Tensor]) -> None:
        """``tensors`` become those of the first process, in place."""
        if self.line is None:
            return
        import torch.distributed as dist

        with self._together(self.line):
            for tensor in tensors:
                if tensor.numel():
                    whole = tensor.detach().contiguous()
                    dist.broadcast(torch.view_as_real(whole) if whole.is_complex() else whole, src=0)
                    tensor.data.copy_(whole)

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def check_same(self, text: str, what: str) -> None:
        """Raise DataError where a process has another ``text`` than the first."""
        if self.told(text) != text:
            raise DataError(f"process {self.index} on {socket.gethostname()} has another {what} than process 0; give all processes the same")

    @contextlib.contextmanager
    def _together(self, line: _Line) -> Iterator[None]:
        """Inside, a process that has gone is an error of its own kind."""
        try:
            yield
        except RuntimeError as error:
            line.lost = True
            said, code = line.word("error"), int(line.word("code") or Stopped.exit_code)
            if code == Stopped.exit_code:
                how = "gives no answer" if "timed out" in str(error).lower() else "has gone"
                raise Stopped(f"another process of this run {how}; give the same command again to go on from the last checkpoint") from None
            other = PtychoError(f"another process of this run failed: {said}")
            other.exit_code = code
            raise other from None


@contextlib.contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """This process among those that torchrun, or srun with MASTER_ADDR set, has started with it; by itself without them.

    torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Raises SubmitError when the others do not come, or when these are no numbers.
    """
    place = _place(environment)
    if place is None:
        yield Ranks()
        return
    import torch.distributed as dist

    ranks, line = _join(environment, *place)
    try:
        yield ranks
    except BaseException as error:
        _leave_word(line, error)
        dist.destroy_process_group()
        _say_farewell(line, ranks)
        raise
    dist.destroy_process_group()


def _join(environment: Mapping[str, str], index: int, count: int) -> tuple[Ranks, _Line]:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # torchrun keeps the words itself, and says where; elsewhere the first process does.
    job = environment.get("SLURM_JOB_ID", "0")
    address, port = environment.get("MASTER_ADDR", "localhost"), environment.get("MASTER_PORT") or str(20000 + int(job) % 20000)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        timeout = timedelta(seconds=float(environment.get(TIMEOUT, _TIMEOUT_S)))
        url = "env://" if "RANK" in environment else f"tcp://{address}:{port}"
        store, *_ = next(iter(rendezvous(url, index, count, timeout=timeout)))
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=PrefixStore("ptycho", store), rank=index, world_size=count, timeout=timeout)
        hosts = [""] * count
        dist.all_gather_object(hosts, socket.gethostname())
    except (RuntimeError, ValueError) as error:
        what = f"process {index} of {count}: no connection with the others at {address}:{port}"
        raise SubmitError(f"{what} ({' '.join(str(error).split())[-120:]}); start all of them, and check MASTER_ADDR") from None
    line, here = _Line(PrefixStore("ptycho-words", store)), hosts[index]
    return Ranks(index, count, hosts[:index].count(here), hosts.count(here), line), line


def _place(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Number of this process and number of all; None for one by itself."""
    names = ("RANK", "WORLD_SIZE")
    if "RANK" not in environment and "MASTER_ADDR" in environment:
        # Not SLURM_NTASKS: a batch script has it too, and is one process.
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    if not all(name in environment for name in names):
        return None
    try:
        index, count = (int(environment[name]) for name in names)
    except ValueError:
        raise SubmitError(f"{names[0]} and {names[1]} are no numbers; start the processes with torchrun or srun") from None
    return (index, count) if count > 1 else None


def _leave_word(line: _Line, error: BaseException) -> None:
    """The others are to end with the same code as the one that failed first."""
    if isinstance(error, Stopped) or line.lost:
        return
    with contextlib.suppress(RuntimeError):
        line.store.set("error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        line.store.set("code", str(error.exit_code if isinstance(error, PtychoError) else 130 if isinstance(error, KeyboardInterrupt) else 1))


def _say_farewell(line: _Line, ranks: Ranks) -> None:
    """The first process has written all that it will write before another one ends, and keeps the words until they are read."""
    with contextlib.suppress(RuntimeError):
        # From one that was killed nobody will hear.
        all_here = not line.lost or line.word("code") != ""
        if ranks.first:
            line.store.set("closed", "1")
        elif not line.lost:
            line.store.wait(["closed"], timedelta(seconds=_FAREWELL_S))
        gone, end = line.store.add("gone", 1), time.monotonic() + _FAREWELL_S
        while ranks.first and all_here and gone < ranks.count and time.monotonic() < end:
            time.sleep(0.05)
            gone = line.store.add("gone", 0)
