"""The search for a recipe's best values by the likelihood of held-out patterns, on one device or many.

``python -m ptycho.tuning FOLDER DEVICE THREADS`` is one more process for the search in a folder.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.errors import PtychoError, RecipeError

if TYPE_CHECKING:
    from ptycho.recipe import Recipe
    from ptycho.tune_plan import Plan
    from ptycho.tune_report import Tuned
    from ptycho.tune_study import Row, Search
    from ptycho.tune_worker import Pulse

#: Told of each trial that is closed, by whatever process, together with all trials.
News = Callable[["Row", "tuple[Row, ...]"], None]

#: So often the processes are looked at; so long they have to end what they are doing when all shall stop.
_LOOK_S, _PATIENCE_S = 0.5, 120.0


def tune(
    source: str | Path | Recipe,
    vary: Sequence[str] = (),
    *,
    output: str | Path = "tune",
    trials: int = 40,
    epochs: int = 0,
    patterns: int = 1024,
    workers: int = 1,
    device: str = "auto",
    seed: int = 0,
    prune: bool = True,
    news: News | None = None,
) -> Tuned:
    """Search for the values of a recipe that explain patterns best which no step was taken on.

    ``vary`` are texts such as "microscope.defocus_A=80:240", "model.slices=1,2,4,8" or "microscope.aberrations.C30=1e3:1e6:log"; without any,
    defocus, rotation, probe modes and, of a thick specimen, slices and their thickness are varied
    (:func:`ptycho.tune_ranges.default_ranges`). Each of the ``trials`` is a short reconstruction, of ``epochs`` passes (0: 4, or 20 with
    several slices) over ``patterns`` patterns in the middle of the field (0: all); number 0 has the recipe's own values. ``output`` is the
    search's folder: the same call goes on with what lies there, other processes with the same folder help, and ``workers`` processes are started
    here, each on its own GPU if there are as many. Raises RecipeError, DataError or OutputError with a sentence that says what to do.
    """
    check_optuna()
    from ptycho.recipe import Recipe
    from ptycho.tune_objective import Effort
    from ptycho.tune_plan import keep, planned

    recipe = source if isinstance(source, Recipe) else Recipe.load(source)
    plan, folder = planned(recipe, vary, Effort(epochs, patterns), seed, prune), Path(output).expanduser()
    keep(plan, folder)
    return carried_out(plan, folder, trials, workers, device, news)


def check_optuna() -> None:
    """Raise RecipeError when optuna, an optional dependency, is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise RecipeError("a search needs optuna, which is not installed: pip install ptycho[tune]")


def carried_out(plan: Plan, folder: Path, trials: int, workers: int, device: str, news: News | None) -> Tuned:
    """The search that lies in ``folder``, to its end or until TERM or Ctrl-C; the report's files are written when all trials are closed."""
    from ptycho.device import choose_device
    from ptycho.tune_objective import Short
    from ptycho.tune_report import Tuned, trials_csv
    from ptycho.tune_study import Search
    from ptycho.tune_worker import Pulse, stoppable, work

    place = choose_device(device)
    if trials < 1 or workers < 1:
        raise RecipeError(f"trials = {trials}, workers = {workers}: at least 1 of each is needed")
    search = Search(folder, plan.ranges, plan.seed, plan.prune)
    search.fill(trials, plan.own)
    teller = _Teller(search, news)
    with stoppable() as stopped, Pulse(folder) as pulse:
        if workers == 1:
            import torch

            short = Short(plan.recipe, plan.ranges, plan.effort, place, torch.get_num_threads())
            work(search, short, pulse, stopped, teller)
        else:
            _with_processes(search, folder, workers, place.type, pulse, stopped, teller)
    # A recipe that was tried as it is has no values of the search's.
    rows = tuple(row if row.slot or row.values else replace(row, values=plan.written) for row in search.rows())
    found = Tuned(folder, plan.ranges, rows, search.importances())
    if found.complete and found.ranked:
        _write(found, trials_csv(found))
    return found


def _write(found: Tuned, table: str) -> None:
    from ptycho.atomic import write_file
    from ptycho.plot_tune import importance_png, parallel_png

    write_file(found.folder / "trials.csv", table.encode())
    write_file(found.folder / "parallel.png", parallel_png(found.ranges, found.rows))
    write_file(found.folder / "importance.png", importance_png(found.ranges, found.rows, found.importances))


class _Teller:
    """Passes on each trial that is closed, once."""

    def __init__(self, search: Search, news: News | None) -> None:
        self.search, self.news = search, news
        self.known = {row.slot for row in search.rows() if row.state not in ("waiting", "running")}

    def __call__(self) -> None:
        rows = self.search.rows()
        for row in rows:
            if row.state not in ("waiting", "running") and row.slot not in self.known:
                self.known.add(row.slot)
                if self.news is not None:
                    self.news(row, rows)


def _with_processes(
    search: Search, folder: Path, workers: int, device: str, pulse: Pulse, stopped: Callable[[], bool], tell: Callable[[], None]
) -> None:
    """Start as many, and see to it that what one of them leaves behind is taken up by another. Raises PtychoError when all have died."""
    with _processes(folder, workers, device) as processes:
        while any(process.poll() is None for process in processes) and not stopped():
            time.sleep(_LOOK_S)
            search.rescue(pulse.alive)
            tell()
    search.rescue(pulse.alive)
    tell()
    if not stopped() and any(row.state == "waiting" for row in search.rows()):
        last = next((words for number in range(workers) if (words := _last_words(folder, number))), "nothing")
        raise PtychoError(f"{folder}: all {workers} processes have died before the last trial; the last words are: {last}")


@contextmanager
def _processes(folder: Path, workers: int, device: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Running ones; asked to stop, and in the end made to, when the block is left."""
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    gpus = _gpus() if device == "cuda" else []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(workers):
            environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
            command = [sys.executable, "-m", "ptycho.tuning", str(folder), device, str(threads)]
            with open(_log(folder, number), "wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + _PATIENCE_S
        for process in processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _gpus() -> list[str]:
    import torch

    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [part.strip() for part in said.split(",")] if said else [str(number) for number in range(torch.cuda.device_count())]


def _log(folder: Path, number: int) -> Path:
    return folder / f"worker-{number}.log"


def _last_words(folder: Path, number: int) -> str:
    lines = _log(folder, number).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""


def main(words: Sequence[str]) -> int:
    """One process of a search; its exit code."""
    import torch

    from ptycho.tune_objective import Short
    from ptycho.tune_plan import kept
    from ptycho.tune_study import Search
    from ptycho.tune_worker import STOPPED, Pulse, stoppable, work

    folder, device, threads = Path(words[0]), words[1], int(words[2])
    torch.set_num_threads(threads)
    try:
        plan: Any = kept(folder)
        search = Search(folder, plan.ranges, plan.seed, plan.prune)
        with stoppable() as stopped, Pulse(folder) as pulse:
            short = Short(plan.recipe, plan.ranges, plan.effort, torch.device(device), threads)
            return 0 if work(search, short, pulse, stopped) else STOPPED
    except PtychoError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
