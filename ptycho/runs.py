"""All runs below some folders, and how each stands: begun, waiting in a queue, ended or dead. From files alone, and the ids that a queue holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptycho.errors import DataError
from ptycho.jobfolder import SUFFIX, JobFolder
from ptycho.status import STATUS, read_status

#: Epochs whose mean time tells how long the next ones take.
_RECENT = 10


@dataclass(frozen=True)
class Run:
    """A run as its folder tells. ``state``: finished, running, failed, stopped or dead; queued when a job is to begin or continue it; waiting when
    none is; unreadable. ``job`` is the last job (or task of an array) that was submitted for it. What is not known is None."""

    folder: Path
    state: str
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    held_out: float | None = None
    seconds_left: float | None = None
    job: str | None = None
    message: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether a queue has to take it: nobody works on it, nobody will, and it is not finished."""
        return self.state not in ("finished", "running", "queued")


def look(folder: Path) -> Run:
    """One run; "waiting" where there is none yet."""
    if not (folder / STATUS).exists():
        return Run(folder, "waiting")
    try:
        s = read_status(folder)
    except DataError as error:
        return Run(folder, "unreadable", message=str(error))
    left = None
    if s.state == "running" and s.epoch is not None and s.epochs is not None and (pace := _seconds_per_epoch(folder)) is not None:
        left = max(0, s.epochs - s.epoch) * pace
    return Run(folder, s.state, s.epoch, s.epochs, s.loss, s.held_out, left, message=s.message)


def queued_runs(job: JobFolder, in_queue: set[str]) -> dict[str, Run]:
    """Name -> run of a job folder; ``in_queue`` are the ids of jobs and tasks that wait or run."""
    last = {name: task for task, name in job.tasks().items()}
    found = {}
    for name in job.names():
        folder = job.run_folder(name)
        if folder is None:
            continue
        run, task = replace(look(folder), job=last.get(name)), last.get(name)
        # A task that runs may not have said so yet, or be back in the queue after a stop.
        found[name] = replace(run, state="queued") if task in in_queue and run.state not in ("finished", "running") else run
    return found


def find_runs(folders: Sequence[Path], in_queue: set[str]) -> list[Run]:
    """All runs in and below the folders, and those that their job folders still wait for, by path.

    Raises DataError when a folder is not there.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        # The first run of a job makes the folder; until then there is the job's.
        if not folder.is_dir() and (folder.exists() or not JobFolder(folder.absolute()).path.is_dir()):
            raise DataError(f"{folder}: {'this is a file' if folder.exists() else 'no such folder'}; name run folders, or folders that hold some")
        seen, jobs = _below(folder)
        # Jobs lie beside what they make: of a run of a sweep the sweep's, of a run its own.
        whole = folder.absolute()
        jobs += [job for job in (JobFolder(whole), JobFolder(whole.parent)) if whole.name and job.path.is_dir()]
        for run in (run for job in jobs for run in queued_runs(job, in_queue).values()):
            inside = run.folder == whole or whole in run.folder.parents or folder.resolve() in run.folder.resolve().parents
            if inside:
                shown = folder / run.folder.relative_to(whole) if whole == run.folder or whole in run.folder.parents else run.folder
                found[run.folder] = replace(run, folder=shown)
        for path in seen:
            found.setdefault(path.absolute(), look(path))
    return sorted(found.values(), key=lambda run: run.folder)


def _below(folder: Path) -> tuple[list[Path], list[JobFolder]]:
    """Run folders and job folders, the folder itself included."""
    runs, jobs = [], []
    for place, names, files in os.walk(folder):
        names[:] = [name for name in names if name != "checkpoints"]
        path = Path(place)
        if STATUS in files:
            runs.append(path)
        if path.name.endswith(SUFFIX) and "points.txt" in files:
            jobs.append(JobFolder(path.absolute().with_name(path.absolute().name.removesuffix(SUFFIX))))
    return runs, jobs


def _seconds_per_epoch(folder: Path) -> float | None:
    """The mean of the last epochs; None before the first."""
    try:
        with open(folder / "metrics.jsonl", encoding="utf-8") as file:
            seconds = [seconds for line in file.readlines()[-_RECENT:] for seconds in _seconds(line)]
    except (OSError, UnicodeDecodeError):
        return None
    return sum(seconds) / len(seconds) if seconds else None


def _seconds(line: str) -> Iterator[float]:
    try:
        yield float(json.loads(line)["seconds"])
    except (ValueError, KeyError, TypeError):
        return  # half a line: it is being written
