"""Several processes are one: the same batches, the same model, the same end; each holds its part of the patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import Counts, counts_of, empty, make
from together import together

from ptycho.constraint import Constraints, OrthogonalModes
from ptycho.model import Ptychography
from ptycho.ranks import Ranks
from ptycho.shards import Shard
from ptycho.solvers import EPIE, LSQML, Gradient, MixedState, Polish, Updates

ALL = Updates(probe=1, positions=2, affine=2, tilt=2, thickness=2, aberrations=2, source=2, descan=2, background=2, blur=2)
BOTH = Constraints(orthogonal_modes=OrthogonalModes())
SOLVERS: dict[str, Any] = {
    "nesterov": Gradient(epochs=5, batch=10, update=ALL),
    "adam": Gradient(epochs=5, batch=10, optimizer="Adam", update=Updates(probe=1, positions=2)),
    "lsqml": LSQML(epochs=5, batch=10, momentum=0.5, update=ALL),
    "epie": EPIE(epochs=5, batch=10),
    "mixed_state": MixedState(epochs=5, modes=3, batch=10),
    "polish": Polish(epochs=5, batch=10, constraints=BOTH),
    "opr": Gradient(epochs=5, batch=3, update=Updates(probe=1, opr=2)),
}


def problem(name: str) -> tuple[Ptychography, torch.Tensor]:
    """A start and the counts of the truth, in float64."""
    options: dict[str, Any] = {"scan": (6, 6), "size": 16, "slices": 2, "modes": 2, "background": 0.01, "dtype": torch.float64}
    truth = make(**options, tilt_mrad=(1.0, 2.0), opr_modes=0)
    return empty(make(**options, opr_modes=1 if name == "opr" else 0)), counts_of(truth)


def solved(name: str, ranks: Ranks) -> list[torch.Tensor]:
    start, counts = problem(name)
    shard = Shard.of(start.positions.value_px.detach().numpy(), ranks, torch.device("cpu"))
    losses = [epoch.loss for epoch in SOLVERS[name].run(start, Counts(counts, shard))]
    return [torch.tensor(losses), *(parameter.detach().clone() for parameter in start.parameters())]


def keep_solved(ranks: Ranks, folder: Path) -> None:
    for name in SOLVERS:
        torch.save(solved(name, ranks), folder / f"{name}-{ranks.index}-of-{ranks.count}.pt")


def far(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The largest difference of a number, as a share of the largest of its kind."""
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in zip(ones, others, strict=True) if a.numel())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    assert together(keep_solved, 2, folder) == [0, 0], (folder / "rank-0.txt").read_text()
    return folder


@pytest.mark.parametrize("name", SOLVERS)
def test_two_processes_are_one_in_float64(name: str, shared: Path) -> None:
    alone = solved(name, Ranks())
    first, second = (torch.load(shared / f"{name}-{index}-of-2.pt") for index in (0, 1))
    assert far(alone, first) < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
