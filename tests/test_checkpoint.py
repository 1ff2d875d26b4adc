"""Nothing is lost: a run that is stopped anywhere and goes on is the run that was not stopped, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ptycho
import ptycho.pipeline
import ptycho.plot
from ptycho.constraint import Constraints, OrthogonalModes, PurePhase
from ptycho.errors import DataError, OutputError, Stopped
from ptycho.io.checkpoint import checkpoints, load_checkpoint, load_latest, save_checkpoint
from ptycho.runfolder import difference
from ptycho.solvers import EPIE, LSQML, Gradient, MixedState, Polish, Updates

KNOWN: dict[str, Any] = {"voltage_kV": 80, "semiangle_mrad": 24.9, "step_A": 0.4, "defocus_A": 20}
ALL = Updates(probe=1, positions=1, affine=1, aberrations=1, source=2, descan=1, background=1, blur=2)


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page and the pictures take longer than the runs, are not what is looked at here, and can be made again."""
    monkeypatch.setattr(ptycho.pipeline, "report", lambda result: f"{len(result.history)} epochs")
    monkeypatch.setattr(ptycho.plot, "phase_png", lambda *_, **__: b"")


def after(batches: int) -> Callable[[], bool]:
    """Asks to stop after so many batches."""
    seen = iter(range(batches))
    return lambda: next(seen, None) is None


def assert_same(one: ptycho.Result, other: ptycho.Result) -> None:
    for name in ("object", "occupancy", "probe", "slice_thickness_A", "positions_A", "tilt_mrad"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert [(r.stage, r.epoch, r.loss, r.held_out, r.note) for r in one.history] == [
        (r.stage, r.epoch, r.loss, r.held_out, r.note) for r in other.history
    ]
    assert one.aberrations == other.aberrations


@pytest.fixture
def data(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> ptycho.Dataset4D:
    np.save(tmp_path / "scan.npy", disk_patterns)
    return ptycho.read(tmp_path / "scan.npy", **KNOWN)


def interrupted(data: ptycho.Dataset4D, folder: Path, every: int, **options: Any) -> ptycho.Result:
    """To the end, with a stop after every so many batches."""
    for _ in range(200):
        try:
            return ptycho.reconstruct(data, device="cpu", output=folder, stop=after(every), **options)
        except Stopped:
            assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    raise AssertionError("it does not come to an end")


SOLVERS = [
    [Gradient(epochs=2, batch=10, update=ALL)],
    [Gradient(epochs=2, batch=10, optimizer="Adam", update=ALL)],
    [Gradient(epochs=2, batch=24, optimizer="LBFGS")],
    [LSQML(epochs=2, batch=10, momentum=0.5, update=ALL)],
    [EPIE(epochs=2, batch=10, momentum=0.5, momentum_every=3)],
    [Polish(epochs=3, batch=10, constraints=Constraints(pure_phase=PurePhase(), orthogonal_modes=OrthogonalModes()))],
    [MixedState(epochs=1, modes=2, batch=20), Gradient(epochs=1, batch=20, bin=2), Gradient(epochs=1, batch=20, slices=2)],
]


@pytest.mark.parametrize("solve", SOLVERS, ids=lambda solve: "+".join(s.kind for s in solve) + getattr(solve[0], "optimizer", ""))
def test_stopped_and_started_again_is_the_same_bit_for_bit(data: ptycho.Dataset4D, tmp_path: Path, solve: list[Any]) -> None:
    options = {"solve": solve, "probe_modes": 2, "slices": 2, "slice_thickness_A": 8}
    whole = ptycho.reconstruct(data, device="cpu", output=tmp_path / "whole", **options)
    parts = interrupted(data, tmp_path / "parts", 4, **options)
    assert_same(parts, whole)
    assert_same(ptycho.load(tmp_path / "parts"), whole)
    lines = [json.loads(line)["epoch"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, len(whole.history) + 1))
    assert not (tmp_path / "parts" / "checkpoints").exists() and not (tmp_path / "parts" / "run.lock").exists()


def assert_stops_change_nothing(data: ptycho.Dataset4D, tmp_path: Path, every: int, **options: Any) -> ptycho.Result:
    whole = ptycho.reconstruct(data, device="cpu", output=tmp_path / "whole", **options)
    assert_same(interrupted(data, tmp_path / "parts", every, **options), whole)
    return whole


def test_with_patterns_held_out_and_stages_of_several_modes_and_slices(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> None:
    np.save(tmp_path / "scan.npy", np.random.default_rng(3).poisson(disk_patterns.mean((0, 1)), (11, 11, 32, 32)).astype(np.float32))
    data = ptycho.read(tmp_path / "scan.npy", **{**KNOWN, "step_A": 0.3})
    every = replace(ALL, tilt=1, thickness=1)
    solve = [
        Gradient(epochs=1, batch=40, bin=2, probe_modes=1, slices=1),
        Gradient(epochs=2, batch=40, update=every),
        LSQML(epochs=1, batch=40, slices=3, probe_modes=3, update=every),
    ]
    whole = assert_stops_change_nothing(data, tmp_path, 3, solve=solve, probe_modes=2, slices=2, slice_thickness_A=8, tilt_per_position=True)
    assert all(record.held_out is not None for record in whole.history)
    assert whole.object.shape[1] == 3 and len(whole.probe) == 3 and len(whole.tilt_mrad) == 121


def test_with_two_halves_of_the_data(tmp_path: Path, disk_patterns: NDArray[np.float32]) -> None:
    np.save(tmp_path / "scan.npy", disk_patterns)
    data = ptycho.read(tmp_path / "scan.npy", **{**KNOWN, "step_A": 1.4})
    whole = assert_stops_change_nothing(data, tmp_path, 4, epochs=2, batch=20, halves=True)
    quality, other = whole.quality, ptycho.load(tmp_path / "parts").quality
    assert quality is not None and other is not None
    for name in ("standard_error_rad", "shot_noise_rad", "constrained", "error_rad"):
        np.testing.assert_array_equal(getattr(quality, name), getattr(other, name), err_msg=name)


def test_with_a_scan_and_a_tilt_that_are_searched_for(data: ptycho.Dataset4D, tmp_path: Path) -> None:
    """What was found before the run is not found again, and the stages are those that were chosen then; the run itself would be a long one."""
    options: dict[str, Any] = {"refine": ("scan", "positions", "tilt"), "slices": 2, "slice_thickness_A": 8, "device": "cpu"}
    for name, stops in (("whole", (11,)), ("parts", (4, 6))):  # each stop is behind one batch more
        for batches in stops:
            with pytest.raises(Stopped):
                ptycho.reconstruct(data, output=tmp_path / name, stop=after(batches), **options)
    (_, whole), (path, parts) = load_latest(tmp_path / "whole"), load_latest(tmp_path / "parts")  # type: ignore[misc]
    assert path.name == "epoch-000001-000012" and not difference(whole["recipe"], parts["recipe"])
    tensors, others = (tree["state"]["model"]["tensors"] for tree in (whole, parts))
    assert set(tensors) == set(others)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def test_epochs_after_the_checkpoint_are_not_told_twice(data: ptycho.Dataset4D, tmp_path: Path) -> None:
    """As after a kill: metrics.jsonl is ahead of the checkpoint."""
    folder, options = tmp_path / "run", {"epochs": 4, "batch": 10}
    with pytest.raises(Stopped):
        ptycho.reconstruct(data, device="cpu", output=folder, stop=after(8), **options)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"epoch": 2}) + "\n")
    ptycho.reconstruct(data, device="cpu", output=folder, **options)
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_other_recipes_and_other_data_are_refused(data: ptycho.Dataset4D, tmp_path: Path, disk_patterns: NDArray[np.float32]) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        ptycho.reconstruct(data, device="cpu", output=folder, stop=after(3), epochs=4, batch=10)
    with pytest.raises(OutputError, match=r"solve\.0\.epochs was 4 and is 5"):
        ptycho.reconstruct(data, device="cpu", output=folder, epochs=5, batch=10)
    np.save(tmp_path / "scan.npy", disk_patterns[::-1].copy())
    with pytest.raises(OutputError, match="a run of other data"):
        ptycho.reconstruct(ptycho.read(tmp_path / "scan.npy", **KNOWN), device="cpu", output=folder, epochs=4, batch=10)


TREE = {"a": torch.arange(6.0).reshape(2, 3), 3: (None, True, float("nan"), [torch.ones(0, 2), np.arange(4)]), "z": torch.tensor([1 + 2j])}


def test_a_checkpoint_gives_back_what_was_put_in(tmp_path: Path) -> None:
    back = load_checkpoint(save_checkpoint(tmp_path, 1, 2, TREE))
    assert torch.equal(back["a"], TREE["a"]) and torch.equal(back["z"], TREE["z"]) and list(back) == ["a", 3, "z"]
    assert back[3][:2] == (None, True) and np.isnan(back[3][2]) and back[3][3][0].shape == (0, 2) and (back[3][3][1] == np.arange(4)).all()


def test_tensors_lie_in_memory_as_they_did(tmp_path: Path) -> None:
    numbers = torch.arange(24.0).reshape(2, 3, 4)
    saved = {"columns": numbers[0].clone().mT, "turned": torch.complex(numbers, -numbers).permute(2, 0, 1), "rows": numbers, "part": numbers[:, 1:]}
    back = load_checkpoint(save_checkpoint(tmp_path, 1, 1, saved))
    for name, tensor in saved.items():
        assert torch.equal(back[name], tensor)
        assert back[name].stride() == torch.empty_like(tensor, memory_format=torch.preserve_format).stride()


def test_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, epoch, 1, {"epoch": epoch})
    assert [p.name for p in checkpoints(tmp_path)] == ["epoch-000002-000001", "epoch-000003-000001"]
    (checkpoints(tmp_path)[-1] / "state.json").write_bytes(b"{}")
    assert load_latest(tmp_path)[1] == {"epoch": 2} and "damaged" in caplog.text
    (checkpoints(tmp_path)[0] / "sha256.txt").unlink()
    with pytest.raises(DataError, match="no checkpoint is sound"):
        load_latest(tmp_path)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path, random = save_checkpoint(tmp_path, 1, 1, TREE), np.random.default_rng(0)
    files = sorted(path.iterdir())
    for number in range(200):
        file = files[number % len(files)]
        content = file.read_bytes()
        place = int(random.integers(len(content)))
        file.write_bytes(content[:place] + bytes([content[place] ^ int(random.integers(1, 256))]) + content[place + 1 :])
        with pytest.raises(DataError):
            load_checkpoint(path)
        file.write_bytes(content)
    load_checkpoint(path)
