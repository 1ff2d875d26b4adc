"""A search without patterns, for tests of its processes: ``python tune_toy.py FOLDER`` is one of them. Torch is not needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path

from ptycho.tune_ranges import Range, Value
from ptycho.tune_study import Score, Search
from ptycho.tune_worker import STOPPED, Pulse, stoppable, work

RANGES = (Range("x", 0.0, 1.0), Range("n", choices=(1, 2, 4)))
OWN: dict[str, Value] = {"x": 0.9, "n": 2}
PASSES, SECONDS = 3, 0.15


def toy(values: Mapping[str, Value]) -> Generator[Score, None, None]:
    """Best at x = 0.3, n = 4; three passes that take their time."""
    for _ in range(PASSES):
        time.sleep(SECONDS)
        deviance = (float(values["x"]) - 0.3) ** 2 + 0.1 / int(values["n"])
        yield Score(deviance, (deviance, deviance + 0.01))


def opened(folder: Path, seed: int = 0) -> Search:
    """The search of all these processes."""
    return Search(folder, RANGES, seed, prune=False)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    search = opened(place)
    with stoppable() as stopped, Pulse(place) as pulse:
        sys.exit(0 if work(search, toy, pulse, stopped) else STOPPED)
