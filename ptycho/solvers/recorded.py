"""A solver's batches as CUDA graphs: recorded once, then launched with a single call each.

A batch is some hundred small kernels. Python takes longer to launch them than the GPU to run them, where a batch has less than about
128 waves of 128 x 128; a graph is launched in a few microseconds.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.solvers.state import tensors_in
from ptycho.solvers.step import Step

logger = logging.getLogger("ptycho")

#: With fewer batches a pass recording takes longer than it saves.
_LEAST_BATCHES = 16


class Recorded:
    """:meth:`Step.batch` for batches of the given ``sizes``, until :meth:`fits` says that something has changed.

    Steps that cannot be recorded, and devices that cannot record, run as they are. A kind of batch is its size, whether its loss is measured, and
    where its counts lie, which should be the same place in every call. It is recorded at its second time, and not before one of the largest
    has run: all memory that is allocated once has then been.
    """

    def __init__(self, step: Step, engine: Likelihood, sizes: list[int]) -> None:
        self.step, self.engine, self._largest = step, engine, max(sizes, default=0)
        alone = engine.shard.ranks.count == 1
        self._records = alone and engine.device.type == "cuda" and len(sizes) >= _LEAST_BATCHES and step.recordable
        self._seen: set[tuple[int, bool, int]] = set()
        self._graphs: dict[tuple[int, bool, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._stream = torch.cuda.Stream(engine.device) if self._records else None
        self._due, self._places = step.due, list[int]()

    def fits(self, step: Step) -> bool:
        """Whether the graphs are still those of this step: what it updates is the same, and lies where it did."""
        same = self.step is step and self._due == step.due
        return same and (not self._graphs or self._places == self._now())

    def __call__(self, index: Tensor, counts: Tensor) -> Tensor:
        """The summed loss of the batch before its update, as :meth:`Step.batch` gives it; the next call overwrites it."""
        kind = (len(index), self.engine.measures, counts.data_ptr())
        ready = kind in self._seen and any(size == self._largest for size, *_ in self._seen)
        if self._records and ready and kind not in self._graphs:
            self._record(kind, index, counts)
        self._seen.add(kind)
        if kind not in self._graphs:
            return self.step.batch(index, counts)
        graph, place, loss = self._graphs[kind]
        place.copy_(index)
        graph.replay()
        return loss

    def _now(self) -> list[int]:
        """Where all lies that a graph reads and writes."""
        model = self.engine.model
        held = [*model.parameters(), *model.buffers(), *tensors_in(self.step.state_dict())]
        return [tensor.data_ptr() for tensor in held] + self.engine.places()

    def _record(self, kind: tuple[int, bool, int], index: Tensor, counts: Tensor) -> None:
        assert self._stream is not None
        graph, place = torch.cuda.CUDAGraph(), index.clone()
        pool = next((known.pool() for known, _, _ in self._graphs.values()), None)
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                # Other threads may copy and save meanwhile.
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    loss = self.step.batch(place, counts)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            # Too little memory for a second set of buffers, as a rule. Nothing has been computed: the batch runs as it did before.
            self._records = False
            logger.info(f"no CUDA graph could be recorded, batches are launched one by one: {str(error).splitlines()[0]}")
            return
        torch.cuda.current_stream().wait_stream(self._stream)
        self._graphs[kind] = (graph, place, loss)
        self._places = self._now()
