"""The trials of a search: each is carried out exactly once, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from ptycho.errors import DivergedError
from ptycho.tune_ranges import Value

pytest.importorskip("optuna", reason="the search needs optuna: pip install ptycho[tune]")

from command import environment
from tune_toy import OWN, PASSES, RANGES, opened, toy

from ptycho import tune_study
from ptycho.tune_study import LostError, Score, Search
from ptycho.tune_worker import STOPPED, Pulse, work


def never() -> bool:
    return False


def start(folder: Path, count: int) -> list[subprocess.Popen[bytes]]:
    script = Path(__file__).with_name("tune_toy.py")
    return [subprocess.Popen([sys.executable, script, folder], env=environment(), stderr=subprocess.PIPE) for _ in range(count)]


def pid_of(worker: str) -> int:
    return int(worker.split("_")[-2])


def completes(folder: Path) -> int:
    """Trials that the journal says are complete, in optuna's own words: one line each."""
    lines = [json.loads(line) for line in (folder / "journal.log").read_text().splitlines()]
    return sum(line["op_code"] == 6 and line["state"] == 1 for line in lines)


def test_four_of_eight_processes_are_killed_and_every_trial_is_completed_exactly_once(tmp_path: Path) -> None:
    count = 24
    search = opened(tmp_path)
    search.fill(count, OWN)
    processes = start(tmp_path, 8)
    deadline = time.monotonic() + 60
    victims: dict[int, int] = {}
    while len(victims) < 4 and time.monotonic() < deadline:
        # In the middle of a trial, one after the other.
        for row in search.rows():
            if row.state == "running" and 0 < row.epochs < PASSES and (pid := pid_of(row.worker)) not in victims and len(victims) < 4:
                os.kill(pid, signal.SIGKILL)
                victims[pid] = row.slot
        time.sleep(0.02)
    for process in processes:
        said = process.communicate(timeout=60)[1].decode()
        assert process.returncode == (-signal.SIGKILL if process.pid in victims else 0), said
    rows = search.rows()
    assert len(victims) == 4
    assert [row.slot for row in rows] == list(range(count))
    assert {row.state for row in rows} == {"done"}
    assert len({tuple(sorted(row.values.items())) for row in rows}) == completes(tmp_path) == count
    assert rows[0].values == OWN
    assert all(pid_of(rows[slot].worker) != pid for pid, slot in victims.items())


def test_a_terminated_process_gives_its_trial_back_and_another_carries_it_out(tmp_path: Path) -> None:
    search = opened(tmp_path)
    search.fill(6, OWN)
    (process,) = start(tmp_path, 1)
    while not any(row.state == "running" and row.epochs for row in search.rows()):
        assert process.poll() is None
        time.sleep(0.01)
    taken = next(row for row in search.rows() if row.state == "running")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == STOPPED, said
    assert all(row.state in ("done", "waiting") for row in search.rows())
    with Pulse(tmp_path) as pulse:
        assert work(search, toy, pulse, never)
    assert {row.state for row in search.rows()} == {"done"}
    assert completes(tmp_path) == 6
    if taken.values:
        assert search.rows()[taken.slot].values == taken.values


def test_what_a_dead_process_had_claimed_is_put_back_once_with_the_same_values(tmp_path: Path) -> None:
    search = opened(tmp_path)
    search.fill(3, OWN)
    search.claim("gone_1_a")
    lost = search.claim("gone_1_a")
    assert lost is not None
    assert search.rescue(lambda name: True) == 0
    assert search.rescue(lambda name: False) == 2
    assert search.rescue(lambda name: False) == 0
    with pytest.raises(LostError):
        search.finish(lost, Score(0.0))
    seen = []
    while (claim := search.claim("here_2_b")) is not None:
        seen.append(claim)
        search.finish(claim, Score(1.0))
    assert sorted(claim.slot for claim in seen) == [0, 1, 2]
    assert next(claim.values for claim in seen if claim.slot == lost.slot) == lost.values


def test_a_candidate_that_kills_every_process_is_given_up(tmp_path: Path) -> None:
    search = opened(tmp_path)
    search.fill(1, OWN)
    for _ in range(3):
        assert search.claim("gone_1_a") is not None
        assert search.rescue(lambda name: False) == 1
    assert search.claim("here_2_b") is None
    (row,) = search.rows()
    assert row.state == "failed" and "died" in row.reason


def test_a_candidate_that_cannot_be_run_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    def fragile(values: Mapping[str, Value]) -> Generator[Score, None, None]:
        if values["n"] == 4:
            raise DivergedError("too far")
        yield Score(float(values["x"]))

    search = opened(tmp_path)
    search.fill(8, OWN)
    with Pulse(tmp_path) as pulse:
        assert work(search, fragile, pulse, never)
    rows = search.rows()
    assert {row.reason for row in rows if row.values["n"] == 4} == {"too far"}
    assert all((row.state == "failed") == (row.values["n"] == 4) for row in rows)


def test_a_bug_puts_the_candidate_back(tmp_path: Path) -> None:
    def broken(values: Mapping[str, Value]) -> Generator[Score, None, None]:
        yield Score(1.0)
        raise ZeroDivisionError

    search = opened(tmp_path)
    search.fill(1, OWN)
    with Pulse(tmp_path) as pulse, pytest.raises(ZeroDivisionError):
        work(search, broken, pulse, never)
    assert [row.state for row in search.rows()] == ["waiting"]


def test_more_trials_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    with Pulse(tmp_path) as pulse:
        for count in (4, 4, 7):
            search = opened(tmp_path)
            search.fill(count, OWN)
            assert work(search, toy, pulse, never)
            assert [row.slot for row in search.rows()] == list(range(count))
    assert completes(tmp_path) == 7


def test_the_same_seed_draws_the_same_candidates(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        search = opened(tmp_path / name, seed)
        search.fill(14, OWN)
        with Pulse(tmp_path / name) as pulse:
            work(search, lambda values: iter_once(values), pulse, never)
        drawn.append([row.values for row in search.rows()])
    assert drawn[0] == drawn[1] != drawn[2]


def iter_once(values: Mapping[str, Value]) -> Generator[Score, None, None]:
    yield Score((float(values["x"]) - 0.3) ** 2)


def test_half_a_line_of_a_process_that_died_in_writing_is_cut_off(tmp_path: Path) -> None:
    opened(tmp_path).fill(3, OWN)
    with open(tmp_path / "journal.log", "a") as file:
        file.write('{"op_code": 4, "worker')
    search = opened(tmp_path)
    assert search.claim("here_1_a") is not None
    assert len(opened(tmp_path).rows()) == 3


def test_the_lock_of_a_process_that_died_with_it_in_its_hands_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_study, "_GRACE_S", 4)
    opened(tmp_path).fill(1, OWN)
    (tmp_path / "claims.lock").touch()
    assert opened(tmp_path).claim("here_1_a") is not None


def test_signs_of_life(tmp_path: Path) -> None:
    with Pulse(tmp_path) as one, Pulse(tmp_path) as other:
        assert one.alive(other.name) and one.alive(one.name)
        # On another machine the process cannot be asked: only its sign of life tells.
        away = "elsewhere_1_abcdef"
        (tmp_path / "workers" / away).touch()
        assert one.alive(away)
        os.utime(tmp_path / "workers" / away, (1, 1))
        assert not one.alive(away)
        name = other.name
    assert not one.alive(name)


def test_hopeless_trials_are_cut_short(tmp_path: Path) -> None:
    search = Search(tmp_path, RANGES, 0, prune=True)
    search.fill(30, OWN)
    with Pulse(tmp_path) as pulse:
        assert work(search, lambda values: (next(iter_once(values)) for _ in range(4)), pulse, never)  # type: ignore[arg-type,return-value]
    cut = [row for row in search.rows() if row.state == "cut"]
    done = [row for row in search.rows() if row.state == "done"]
    assert cut and all(row.epochs < 4 for row in cut)
    best = min(row.score.deviance for row in done if row.score)
    assert all(row.score is not None and row.score.deviance > best for row in cut)
    assert sum(search.importances().values()) == pytest.approx(1)
    assert search.importances()["x"] > 0.5
