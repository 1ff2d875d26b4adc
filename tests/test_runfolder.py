"""The run folder: looked at first, made later, and never half written."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest

from ptycho.errors import OutputError
from ptycho.result import EpochRecord
from ptycho.runfolder import RunFolder


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("test_runfolder")


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    folder.create("")
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["recipe.toml", "run.lock", "status.json"]
    assert RunFolder("~/x").path == Path.home() / "x"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    RunFolder(tmp_path).create("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"the folder is not empty; give another with -o, or --fresh"):
        RunFolder(tmp_path / "mine")


def test_what_was_begun_goes_on_and_what_is_finished_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create("a = 1")
    folder.close()
    with pytest.raises(OutputError, match=r"a run of another recipe: a was 1 and is 2"):
        RunFolder(tmp_path).create("a = 2")
    folder = RunFolder(tmp_path)
    folder.create("a = 1")
    folder.set_status("finished")
    folder.close()
    with pytest.raises(OutputError, match="the run here is finished"):
        RunFolder(tmp_path)
    assert RunFolder(tmp_path, resume=True).finished


def test_fresh_moves_aside_and_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for number in range(3):
        folder = RunFolder(tmp_path / "run", fresh=True)
        folder.create("")
        folder.write("recipe.toml", str(number))
        folder.close()
    found = {p.name: (p / "recipe.toml").read_text() for p in tmp_path.iterdir()}
    assert found == {"run": "2", "run-now": "0", "run-now-2": "1"}


def test_data_inside_are_not_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "scan.raw").touch()
    with pytest.raises(OutputError, match=r"--fresh would move scan\.raw aside"):
        RunFolder(tmp_path, fresh=True).keep_out(tmp_path / "scan.raw")
    RunFolder(tmp_path / "run", fresh=True).keep_out(tmp_path / "scan.raw")


def test_the_second_of_two_writers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.create("")
    with pytest.raises(OutputError, match=f"another run writes here .process {os.getpid()} on"):
        second.create("")
    with pytest.raises(OutputError, match="another run writes here"):
        RunFolder(tmp_path / "run", fresh=True)
    monkeypatch.setattr("ptycho.runfolder.holder", lambda _: None)  # both looked in the same instant
    with pytest.raises(OutputError, match="another run writes here"):
        second.create("")


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"this is a file; give another folder with -o"):
        RunFolder(tmp_path / "file")
    with pytest.raises(OutputError, match=r"file is a file; give another"):
        RunFolder(tmp_path / "file" / "run" / "deep")
    with pytest.raises(OutputError, match=r"File name too long; give a folder"):
        RunFolder(tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match=r"cannot be written; give a folder that can be written with -o"):
        RunFolder(tmp_path / "run")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: logging.Logger) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    folder.write("recipe.toml", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"recipe\.toml: cannot be written \(No space left on device\); .* free some space"):
        folder.write("recipe.toml", "new")
    assert (folder.path / "recipe.toml").read_text() == "old"
    folder.fail(RuntimeError("first"), 1, stopped=False)  # the disk must not hide it


def test_status_metrics_and_log(tmp_path: Path, logger: logging.Logger) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    folder.open_log(logger)
    logger.info("news: %s", "Å")
    folder.set_status("running", epoch=1, epochs=2)
    for epoch in (1, 2):
        folder.add_epoch(EpochRecord(0, "epie", epoch, 0.5, 1.5))
    folder.fail(KeyboardInterrupt(), 130, stopped=True)
    folder.close_log(logger)
    logger.info("after the end")
    assert logger.level == logging.NOTSET and logger.handlers == []
    log = (folder.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in log] == ["INFO news: Å", "ERROR KeyboardInterrupt: "]
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["state"], status["code"], status["epoch"], status["epochs"]) == ("stopped", 130, 1, 2)
    assert {"pid", "host", "started", "updated", "message"} <= status.keys() and status["updated"] >= status["started"]
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads(lines[0]) == {"stage": 0, "kind": "epie", "epoch": 1, "loss": 0.5, "seconds": 1.5, "held_out": None, "note": ""}
