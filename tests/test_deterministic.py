"""The same recipe on the same machine gives the same bits, with several workers too, and ``--deterministic`` asks torch for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import GIVEN, run, write_npy
from numpy.typing import NDArray

import ptycho
import ptycho.pipeline
from ptycho.deterministic import CUBLAS, deterministic
from ptycho.solvers import LSQML, Gradient, Updates


def settings() -> tuple[Any, ...]:
    fill = torch.utils.deterministic.fill_uninitialized_memory
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), fill, os.environ.get(CUBLAS)


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_it_is_set_inside_and_put_back(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, given) if given else monkeypatch.delenv(CUBLAS, raising=False)
    before = settings()
    with deterministic(False):
        assert settings() == before
    with deterministic():
        assert settings() == (True, True, False, given or ":4096:8")
    assert settings() == before


def test_the_command_computes_inside_of_it(tmp_path: Path, disk_patterns: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = ptycho.pipeline.run
    monkeypatch.setattr(ptycho.pipeline, "run", lambda job: (seen.append(settings()[0]), real(job))[1])
    monkeypatch.setattr(ptycho.pipeline, "report", lambda result: "")
    monkeypatch.chdir(tmp_path)
    write_npy(tmp_path, disk_patterns)
    assert run("reconstruct", "scan.npy", *GIVEN, "--deterministic", "-o", "one").code == 0
    assert run("reconstruct", "scan.npy", *GIVEN, "-o", "two").code == 0
    assert seen == [True, False]
    # On the CPU it changes nothing.
    assert ptycho.load("one").object.tobytes() == ptycho.load("two").object.tobytes()


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_two_workers_give_the_same_bits_every_time(disk_patterns: NDArray[np.float32]) -> None:
    known: dict[str, Any] = {"voltage_kV": 80, "semiangle_mrad": 24.9, "step_A": 0.4, "defocus_A": 20, "adu_per_electron": 1}
    every = Updates(probe=1, positions=1, tilt=1, thickness=1, aberrations=1, background=1)
    solve = [Gradient(epochs=2, batch=16, chunk=3, update=every), LSQML(epochs=1, batch=16, chunk=3)]
    one, *others = (
        ptycho.reconstruct(ptycho.read(disk_patterns[:4, :5], **known), solve=solve, slices=2, probe_modes=2, slice_thickness_A=8, device="cpu")
        for _ in range(2)
    )
    for other in others:
        for name in ("object", "probe", "positions_A", "tilt_mrad", "slice_thickness_A"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
        assert [record.loss for record in one.history] == [record.loss for record in other.history]
