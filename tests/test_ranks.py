"""Several processes are one: the same batches, the same model, the same end; each holds its part of the patterns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import environment
from small import PIXEL_A, SEMIANGLE_MRAD, Counts, counts_of, empty, make
from together import free_port, together

import ptycho
from ptycho.constraint import Constraints, OrthogonalModes
from ptycho.errors import OutputError, RecipeError, SubmitError
from ptycho.io.checkpoint import checkpoints
from ptycho.keeper import never
from ptycho.model import Ptychography
from ptycho.ranks import Ranks, _place
from ptycho.shards import Shard
from ptycho.shared_patterns import SharedPatterns, patterns_of
from ptycho.solvers import EPIE, LSQML, Gradient, MixedState, Polish, Updates
from ptycho.status import read_status

ALL = Updates(probe=1, positions=2, affine=2, tilt=2, thickness=2, aberrations=2, source=2, descan=2, background=2, blur=2)
BOTH = Constraints(orthogonal_modes=OrthogonalModes())
SOLVERS: dict[str, Any] = {
    "nesterov": Gradient(epochs=5, batch=12, update=ALL),
    "adam": Gradient(epochs=5, batch=12, optimizer="Adam", update=Updates(probe=1, positions=2)),
    "lsqml": LSQML(epochs=5, batch=12, momentum=0.5, update=ALL),
    "mixed_state": MixedState(epochs=5, modes=3, batch=12),
    "polish": Polish(epochs=5, batch=12, constraints=BOTH),
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
    return [torch.tensor(losses, dtype=torch.float64), *(parameter.detach().clone() for parameter in start.parameters())]


def keep_solved(ranks: Ranks, folder: Path) -> None:
    mine = torch.rand(100_003, generator=torch.Generator().manual_seed(ranks.index))
    assert len({ranks.sum_(mine.clone()).numpy().tobytes() for _ in range(10)}) == 1
    for name in SOLVERS:
        torch.save(solved(name, ranks), folder / f"{name}-{ranks.index}-of-{ranks.count}.pt")


def far(one: torch.Tensor, other: torch.Tensor, start: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number, now or at the beginning."""
    largest = max([float(values.abs().max()) for values in (one, start) if values.numel()], default=0.0)
    return float((one - other).abs().max()) / max(largest, 1e-30) if one.numel() else 0.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    assert together(keep_solved, 2, folder) == [0, 0], (folder / "rank-0.txt").read_text()
    return folder


@pytest.mark.parametrize("name", SOLVERS)
def test_two_processes_are_one_in_float64(name: str, shared: Path) -> None:
    alone = solved(name, Ranks())
    first, second = (torch.load(shared / f"{name}-{index}-of-2.pt") for index in (0, 1))
    start = [alone[0], *(parameter.detach() for parameter in problem(name)[0].parameters())]
    named = {parameter: number for number, (parameter, _) in enumerate(problem(name)[0].named_parameters(), 1)}
    for parameter, number in named.items():
        # Of what is a small difference of large sums, as the background is, rounding is a larger share.
        most = 1e-12 if parameter in ("object.transmission", "probe.wave", "positions.value_px") else 1e-10
        assert far(alone[number], first[number], start[number]) < most, parameter
    np.testing.assert_allclose(first[0], alone[0], rtol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def write_scan(folder: Path) -> Path:
    """12 x 12 patterns of 32 x 32 with their noise."""
    model = make(scan=(12, 12), electrons=2e3)
    patterns = np.fft.fftshift(np.random.default_rng(1).poisson(counts_of(model).clamp_min(0).numpy()), axes=(1, 2))
    np.save(folder / "scan.npy", patterns.reshape(12, 12, 32, 32).astype(np.float32))
    return folder / "scan.npy"


PIXEL_INVA = 1 / (32 * PIXEL_A)
KNOWN: dict[str, Any] = {"voltage_kV": 80, "semiangle_mrad": SEMIANGLE_MRAD, "step_A": 3 * PIXEL_A, "defocus_A": 100, "pixel_invA": PIXEL_INVA}
#: Enough patterns are held out to judge; the probe may diverge.
STAGES: list[Any] = [Gradient(epochs=3, batch=32, update=Updates(positions=2)), LSQML(epochs=2, batch=32)]


def reconstruct(scan: Path, folder: Path | None, ranks: Ranks, stop: Callable[[], bool] = never, **options: Any) -> ptycho.Result:
    recipe = ptycho.Recipe.of(ptycho.read(scan, **KNOWN))
    recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"checkpoint_epochs": 1})})
    return ptycho.reconstruct(recipe, device="cpu", output=folder, ranks=ranks, stop=stop, **({"solve": STAGES} | options))


def keep_whole(ranks: Ranks, folder: Path, scan: Path) -> None:
    patterns = patterns_of(ptycho.read(scan, **KNOWN), torch.device("cpu"), None, ranks)
    assert isinstance(patterns, SharedPatterns) and len(patterns) == 144 and len(patterns.held) == 72 and patterns.resident
    (_, counts), *_ = patterns.batches([np.arange(30, 50)])
    np.testing.assert_array_equal(counts.numpy(), np.fft.ifftshift(np.load(scan).reshape(-1, 32, 32)[30:50], axes=(1, 2)))
    reconstruct(scan, folder / "run", ranks, halves=True)


def stop_one(ranks: Ranks, folder: Path, scan: Path, batches: int) -> None:
    """The second process is asked to stop."""
    seen = iter(range(batches))
    reconstruct(scan, folder / "run", ranks, stop=lambda: ranks.index == 1 and next(seen, None) is None)


def lose_one(ranks: Ranks, folder: Path, scan: Path, batches: int) -> None:
    """The last process is killed."""
    seen = iter(range(batches))

    def die() -> bool:
        if ranks.index == ranks.count - 1 and next(seen, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    reconstruct(scan, folder / "run", ranks, stop=die)


def hang_one(ranks: Ranks, folder: Path, scan: Path, batches: int) -> None:
    """The last process comes to a standstill."""
    seen = iter(range(batches))

    def sleep() -> bool:
        if ranks.index == ranks.count - 1 and next(seen, None) is None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return False

    reconstruct(scan, folder / "run", ranks, stop=sleep)


def fail_one(ranks: Ranks, folder: Path, scan: Path, which: int) -> None:
    """One process has an error of its own."""
    seen = iter(range(3))

    def fail() -> bool:
        if ranks.index == which and next(seen, None) is None:
            raise OutputError("the disk is full")
        return False

    reconstruct(scan, folder / "run", ranks, stop=fail)


def same(one: ptycho.Result, other: ptycho.Result) -> None:
    for name in ("object", "probe", "positions_A"):
        a, b = getattr(one, name), getattr(other, name)
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max(), name
    for r, q in zip(one.history, other.history, strict=True):
        np.testing.assert_allclose((r.loss, r.held_out or 0), (q.loss, q.held_out or 0), rtol=1e-5)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def whole(scan: Path) -> ptycho.Result:
    return reconstruct(scan, None, Ranks(), halves=True)


def test_two_processes_are_one_run(scan: Path, whole: ptycho.Result, tmp_path: Path) -> None:
    assert together(keep_whole, 2, tmp_path, scan) == [0, 0], (tmp_path / "rank-0.txt").read_text()
    result = ptycho.load(tmp_path / "run")
    same(whole, result)
    assert result.quality is not None and whole.quality is not None
    assert any(record.held_out is not None for record in result.history)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == len(result.history)
    assert (tmp_path / "rank-1.txt").read_text() == ""


def test_one_is_asked_and_all_stop_and_any_number_goes_on(scan: Path, whole: ptycho.Result, tmp_path: Path) -> None:
    assert together(stop_one, 2, tmp_path, scan, 7) == [75, 75]
    assert [p.name for p in checkpoints(tmp_path / "run")][-1] == "epoch-000002-000003"
    assert together(stop_one, 3, tmp_path, scan, 6) == [75, 75, 75]
    same(whole, reconstruct(scan, tmp_path / "run", Ranks()))


@pytest.mark.parametrize("lose", [lose_one, hang_one])
def test_a_lost_process_ends_the_run_and_nothing_is_lost(lose: Callable[..., None], scan: Path, whole: ptycho.Result, tmp_path: Path) -> None:
    codes = together(lose, 2, tmp_path, scan, 11, timeout_s=5, grace_s=2)
    assert codes == [75, -signal.SIGKILL], (tmp_path / "rank-0.txt").read_text()
    said = "another process of this run " + ("has gone" if lose is lose_one else "gives no answer")
    assert said in (tmp_path / "rank-0.txt").read_text()
    assert read_status(tmp_path / "run").state == "stopped"
    assert checkpoints(tmp_path / "run")
    same(whole, reconstruct(scan, tmp_path / "run", Ranks()))


@pytest.mark.parametrize("which", [0, 1])
def test_all_end_with_the_code_of_the_one_that_failed(which: int, scan: Path, tmp_path: Path) -> None:
    """As Slurm sees it: the highest of all codes is the job's, and 75 would bring it back for ever."""
    assert together(fail_one, 3, tmp_path, scan, which) == [5, 5, 5]
    assert all("the disk is full" in (tmp_path / f"rank-{rank}.txt").read_text() for rank in range(3))


def test_what_cannot_be_shared_is_refused() -> None:
    for solver, message in (
        (EPIE(batch=1), "batch = 1: 2 processes share a batch"),
        (EPIE(slice_by_slice=True), "slice_by_slice = true: not by 2 processes"),
        (Gradient(optimizer="LBFGS"), 'optimizer = "LBFGS": not by 2 processes'),
    ):
        with pytest.raises(RecipeError, match=message):
            solver.check_shared(2)


def test_who_is_who() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert _place(torchrun) == (1, 2) and _place(torchrun | {"WORLD_SIZE": "1"}) is None and _place({}) is None
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}
    assert _place(srun) is None and _place(srun | {"MASTER_ADDR": "a"}) == (3, 4)
    # A batch script is one process, whatever it may start.
    assert _place({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "MASTER_ADDR": "a"}) is None
    with pytest.raises(SubmitError, match="RANK"):
        _place(torchrun | {"RANK": "one"})


def test_torchrun_just_works(scan: Path, tmp_path: Path) -> None:
    given = [f"{key} = {value}" for key, value in KNOWN.items()]
    (tmp_path / "recipe.toml").write_text(
        f'[data]\npath = "{scan}"\n[microscope]\n{given[0]}\n{given[1]}\n{given[3]}\n[scan]\n{given[2]}\n[detector]\n{given[4]}\n'
        '[[solve]]\nkind = "gradient"\nepochs = 2\n'
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "ptycho"]
    words = ["reconstruct", "recipe.toml", "--device", "cpu", "-o", "run"]
    done = subprocess.run([*torchrun, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("epoch")] == ["epoch 1 of 2", "epoch 2 of 2"]
    alone = reconstruct(scan, None, Ranks(), solve=[Gradient(epochs=2)])
    same(alone, ptycho.load(tmp_path / "run"))
