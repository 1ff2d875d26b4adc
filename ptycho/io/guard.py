"""A damaged file is met in a child process first.

The HDF5 library can loop for ever in a damaged file, inside C code that Python cannot interrupt, or ask for all of the memory. A
child process with limits opens the file and reads a few frames exactly as this process is about to do; only then does this process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ptycho.errors import DataError
from ptycho.io.options import Options

#: Opening a sound file takes the processor less than a second. One that loops for ever is known by that, not by the clock: on a busy
#: machine, or from a disk far away, a sound file may be long in coming.
_PROCESSOR_SECONDS, _SECONDS = 15, 300.0
_MEMORY_BYTES = 6 << 30
#: The signal to a child that takes too much of the processor (not on Windows).
_TOO_LONG = int(getattr(signal, "SIGXCPU", 24))
#: Exit code of a child that refuses the file; its reason is the last line of its output.
_REFUSED = 4


def check_in_child(path: Path, format: str, options: Options) -> None:
    """Open the file and read three frames in a child process. Raises DataError with its reason, or when it does not come to an end.

    ``format`` is a key of ``FORMATS``, or "positions" or "calibration" for files of these kinds.
    """
    # The child finds this package where this process has found it, installed or not, and nothing in the current folder.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    shape = "" if options.scan_shape is None else "{},{}".format(*options.scan_shape)
    words = [sys.executable, "-m", "ptycho.io.guard", str(path.absolute()), format, options.dataset or "", shape]
    try:
        done = subprocess.run(words, capture_output=True, timeout=_SECONDS, env=environment, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise DataError(f"{path}: reading does not come to an end; the file is damaged") from None
    except OSError:
        return  # no child can be started here (no more processes, or no Python beside this program)
    if done.returncode == _REFUSED:
        reason = done.stdout.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise DataError(reason.replace(str(path.absolute()), str(path)) or f"{path}: cannot be read")
    if done.returncode == -_TOO_LONG:
        raise DataError(f"{path}: reading does not come to an end; the file is damaged")
    if done.returncode < 0:
        raise DataError(f"{path}: reading it stops the program (signal {-done.returncode}); the file is damaged")


def _main(path: str, format: str, dataset: str, shape: str) -> int:
    import numpy as np

    from ptycho.io.empad_g2_maps import read_calibration
    from ptycho.io.formats import FORMATS
    from ptycho.io.scan import read_positions

    _limit()
    try:
        if format == "positions":
            read_positions(path if not dataset else f"{path}::{dataset}", guarded=True)
            return 0
        if format == "calibration":
            read_calibration(Path(path))
            return 0
        slow, _, fast = shape.partition(",")
        source = FORMATS[format](Path(path), Options(dataset=dataset or None, scan_shape=(int(slow), int(fast)) if shape else None))
        n = source.header.n_frames
        if source.header.frame_bytes < 1 << 28:
            source.read(np.unique([0, n // 2, n - 1]))
    except DataError as error:
        print(" ".join(str(error).split()))
        return _REFUSED
    except MemoryError:
        print(f"{path}: it asks for more than {_MEMORY_BYTES >> 30} GB of memory; the file is damaged, or its chunks are too large")
        return _REFUSED
    return 0


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    # What it took to import is counted too.
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = int(used.ru_utime + used.ru_stime) + _PROCESSOR_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.exit(_main(*sys.argv[1:]))
