"""The job folder: what a queue needs to know of one or many runs, beside their results.

``DIR.job/`` belongs to the runs of ``DIR``: ``points.txt`` with a name a line, ``NAME.toml`` with the complete recipe of each, ``jobs.json`` with
what was submitted, ``job.sbatch`` and the output of the jobs. Lines of ``points.txt`` are only ever added: a job that waits counts them.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from ptycho.atomic import make_folder, write_file
from ptycho.errors import OutputError
from ptycho.lock import Lock

SUFFIX = ".job"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def plain_name(text: str, default: str = "run") -> str:
    """``text`` as a name that needs no quotes anywhere: letters, digits, "._-", at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.-")[:80] or default


class JobFolder:
    """The job folder of the runs in ``runs``; made when it is first :meth:`taken`."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.path = runs.with_name(runs.name + SUFFIX)

    def names(self) -> list[str]:
        """Of all runs, in the order of their numbers."""
        try:
            lines = (self.path / "points.txt").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"{self.path / 'points.txt'}: {error}; give another folder with -o") from None
        for number, line in enumerate(lines, 1):
            if not _NAME.fullmatch(line):  # left out, it would change the numbers of the others
                raise OutputError(f"{self.path / 'points.txt'}: line {number} is {line!r}, not a run's name; mend it, or give another folder with -o")
        return lines

    def recipe_file(self, name: str) -> Path:
        """The complete recipe of a run."""
        return self.path / f"{name}.toml"

    def run_folder(self, name: str) -> Path | None:
        """Where the run's results go; None when its recipe is gone."""
        try:
            return Path(tomllib.loads(self.recipe_file(name).read_text(encoding="utf-8"))["output"]["directory"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add(self, recipes: dict[str, str]) -> None:
        """Write the recipes, and the names that are new. Raises OutputError. The folder must be :meth:`taken`."""
        names = self.names()
        for name, text in recipes.items():
            self.write(f"{name}.toml", text)
        self.write("points.txt", "\n".join([*names, *(name for name in recipes if name not in names)]) + "\n")

    def tasks(self) -> dict[str, str]:
        """What was submitted: Slurm's id of a job ("12345") or of a task of an array ("12345_7") -> the name of its run, the oldest first."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = json.loads((self.path / "jobs.json").read_text(encoding="utf-8"))
            return {str(task): str(name) for task, name in found.items()}
        return {}

    def add_job(self, job: str, names: list[str], array: bool) -> None:
        """Remember a job that was submitted."""
        numbers = {name: number for number, name in enumerate(self.names())}
        tasks = {f"{job}_{numbers[name]}" if array else job: name for name in names}
        self.write("jobs.json", json.dumps(self.tasks() | tasks, indent=1) + "\n")

    def write(self, name: str, text: str) -> None:
        """A small file, old or new, never half. Raises OutputError."""
        write_file(self.path / name, text.encode())

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, nobody else submits runs of this folder. Raises OutputError saying who does."""
        make_folder(self.path)
        lock = Lock(self.path)
        lock.take()
        try:
            yield
        finally:
            lock.release()
