"""Memory that runs out makes a run slower, not different."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import Counts, counts_of, empty, make, solve

import ptycho
from ptycho.adjoint import Likelihood
from ptycho.curvature import Curvature, Direction
from ptycho.holdout import Split
from ptycho.loss import Loss
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.residual import compare
from ptycho.solvers import Gradient
from ptycho.solvers.judge import Judge
from ptycho.solvers.step import Updates


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_fewer_patterns_at_a_time_and_the_same_result(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    truth, sizes, work = make(scan=(6, 6)), [], Likelihood._chunk
    counts, whole, parts = counts_of(truth), empty(truth), empty(truth)
    solver = Gradient(epochs=2, batch=16, chunk=16)
    solve(solver, whole, counts)

    def small(self, space, batch, chunk, partial):
        sizes.append(chunk.stop - chunk.start)
        if sizes[-1] > 4:
            raise error
        work(self, space, batch, chunk, partial)

    monkeypatch.setattr(Likelihood, "_chunk", small)
    solve(solver, parts, counts)
    assert 16 in sizes or 12 in sizes
    assert max(sizes[-9:]) <= 4
    torch.testing.assert_close(parts.object.transmission, whole.object.transmission, rtol=1e-5, atol=1e-6)


def test_not_even_one_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("x")

    monkeypatch.setattr(Likelihood, "_chunk", never)
    truth = make(scan=(4, 4))
    with pytest.raises(torch.OutOfMemoryError):
        solve(Gradient(epochs=1), empty(truth), counts_of(truth))


def room_for(patterns: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The forward model has room for so many; what was asked of it."""
    asked, forward = [], Ptychography.forward

    def small(self, index):
        asked.append(len(index))
        if len(index) > patterns:
            raise torch.OutOfMemoryError("x")
        return forward(self, index)

    monkeypatch.setattr(Ptychography, "forward", small)
    return asked


def test_the_judge_takes_fewer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(scan=(6, 6))
    counts = Counts(counts_of(make(scan=(6, 6), seed=1)))
    split, loss = Split(np.arange(20), np.arange(20, 36)), Loss("amplitude", 0.0, 0.5)

    def judged() -> tuple[list[float], float]:
        judge = Judge(Likelihood(model, loss, 16), counts, split, 0.01)
        deviances, held_out = judge(Updates().due(1))
        return deviances.tolist(), held_out

    whole = judged()
    asked = room_for(5, monkeypatch)
    few = judged()
    assert max(asked) == 16 and asked[-4:] == [4, 4, 4, 4]
    assert few[0] == pytest.approx(whole[0], rel=1e-5) and few[1] == pytest.approx(whole[1], rel=1e-5)


def test_the_curvature_takes_fewer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = make(scan=(4, 4))
    model, counts, sizes, exit_wave = empty(truth), counts_of(truth), [], Curvature._exit
    directions, index = [Direction(probe=model.probe.wave.detach() * 0.1)], torch.arange(16)
    whole = Curvature(Likelihood(model, Loss("amplitude", 0.0, 0.5), 64))(index, counts, directions)

    def small(self, waves, *more):
        sizes.append(waves.shape[1])
        if sizes[-1] > 2:
            raise MemoryError
        return exit_wave(self, waves, *more)

    monkeypatch.setattr(Curvature, "_exit", small)
    few = Curvature(Likelihood(model, Loss("amplitude", 0.0, 0.5), 64))(index, counts, directions)
    assert sizes[-1] <= 2 < sizes[0]
    torch.testing.assert_close(few.matrix, whole.matrix, rtol=1e-6, atol=0)
    torch.testing.assert_close(few.slope, whole.slope, rtol=1e-6, atol=1e-6)


def test_the_comparison_at_the_end_takes_fewer_too(monkeypatch: pytest.MonkeyPatch, disk_patterns) -> None:
    data = ptycho.read(disk_patterns, voltage_kV=80, semiangle_mrad=24.9, step_A=0.4, defocus_A=20, adu_per_electron=1)
    model, patterns = make(scan=(6, 8)), Patterns(data, torch.device("cpu"))
    whole = compare(model, patterns, data.geometry)[0]
    asked = room_for(7, monkeypatch)
    few = compare(model, patterns, data.geometry)[0]
    assert asked[0] == 48 and max(asked[4:]) == 6
    np.testing.assert_allclose(few.modelled_e, whole.modelled_e, rtol=1e-6)
    np.testing.assert_allclose(few.deviance, whole.deviance, rtol=1e-6)
