"""On a GPU: no halt for the host between batches, graphs change nothing, the same bits twice, and what the CPU finds."""

import copy

import numpy as np
import pytest
import torch
from small import Counts, counts_of, empty, make
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.holdout import Split
from ptycho.loss import Loss
from ptycho.solvers import EPIE, LSQML, Gradient, MixedState, Polish, Updates, recorded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
#: Not the amplitude loss: from a flat start it takes the direction of dark pixels from the rounding of the transforms.
SOLVER = Gradient(epochs=5, batch=8, loss="poisson", update=Updates(probe=1))


class OnDevice(Counts):
    """As Patterns in the GPU's memory: each batch lies where the one before did."""

    resident = True

    def __init__(self, counts: Tensor, device: str) -> None:
        super().__init__(counts.to(device))
        self.buffer = torch.empty(64, *counts.shape[1:], device=device)

    def batches(self, plan):
        for part in plan:
            index = torch.from_numpy(part).to(self.counts.device)
            yield index, self.buffer[: len(part)].copy_(self.counts[index])


def problem(slices=2, modes=2):
    """A model with its patterns, and the same without an object."""
    truth = make(scan=(15, 15), step_px=2.0, size=32, slices=slices, modes=modes)
    return empty(truth), counts_of(truth)


def solved(model, counts, device):
    model = copy.deepcopy(model).to(device)
    epochs = list(SOLVER.run(model, OnDevice(counts, device)))
    return model.object.transmission.detach().cpu(), model.probe.wave.detach().cpu(), [epoch.loss for epoch in epochs]


def test_gpu_finds_what_the_cpu_finds():
    model, counts = problem()
    here, there = solved(model, counts, "cpu"), solved(model, counts, "cuda")
    for one, other in zip(here[:2], there[:2], strict=True):
        assert torch.linalg.vector_norm(one - other) < 1e-4 * torch.linalg.vector_norm(one)
    # What is left of the loss when that of a perfect model is taken away, of counts without noise: the difference of large numbers.
    np.testing.assert_allclose(here[2], there[2], rtol=0.02)


def test_twice_the_same_bits_and_graphs_change_none(monkeypatch):
    model, counts = problem()
    first, second = solved(model, counts, "cuda"), solved(model, counts, "cuda")
    monkeypatch.setattr(recorded, "_LEAST_BATCHES", 10**9)
    launched = solved(model, counts, "cuda")
    for other in (second, launched):
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1]) and first[2] == other[2]


@pytest.mark.parametrize("slices", [1, 3])
def test_no_batch_waits_for_the_device(slices):
    model, counts = problem(slices)
    model, counts = model.cuda(), counts.cuda()
    engine = Likelihood(model, Loss("amplitude"))
    step = SOLVER.step(engine, Split.whole(len(counts)), 1.0)
    step.start_epoch(1, SOLVER.update.due(1))
    torch.cuda.synchronize()
    run = recorded.Recorded(step, engine, [8] * 20)
    index, seen = torch.arange(8, device="cuda"), counts[:8].clone()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            run(index, seen)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run._graphs


SOLVERS = {
    "nesterov, all that can be refined": Gradient(epochs=3, batch=16, update=Updates(*([1] * 5), thickness=0, total_thickness=1, aberrations=1)),
    "Adam": Gradient(epochs=3, batch=16, optimizer="Adam"),
    "epie": EPIE(epochs=3),
    "rpie with momentum": EPIE(epochs=3, object_damping=0.2, probe_damping=0.3, momentum=0.5, momentum_every=3),
    "3pie": EPIE(epochs=3, batch=1, slice_by_slice=True),
    "mixed_state": MixedState(epochs=3, modes=3),
    "lsqml": LSQML(epochs=3, batch=16),
    "polish": Polish(epochs=3),
    "detector side": Gradient(epochs=3, batch=16, update=Updates(probe=1, opr=1, descan=1, background=1, blur=1)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_same(name):
    solver = SOLVERS[name]
    truth = make(
        scan=(9, 9), step_px=2.0, size=32, slices=1 if "detector" in name else 2, modes=2, opr_modes=int("detector" in name), background=0.01
    )
    model, counts, losses = empty(truth), counts_of(truth), []
    for device in ("cpu", "cuda"):
        there = copy.deepcopy(model).to(device)
        losses.append([epoch.loss for epoch in solver.run(there, OnDevice(counts, device))])
    np.testing.assert_allclose(*losses, rtol=0.02)
