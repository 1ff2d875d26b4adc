"""Memory that runs out makes a run slower, not different."""

from __future__ import annotations

import pytest
import torch
from small import counts_of, empty, make, solve

from ptycho.adjoint import Likelihood
from ptycho.solvers import Gradient


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
