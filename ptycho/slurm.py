"""What a Slurm job asks for, and the batch script of one job or of an array of them.

Nothing that comes from a recipe stands in the script: it lies in the job folder (:mod:`ptycho.jobfolder`), Slurm starts it there, and it reads
the names of its runs, which are plain letters, from ``points.txt``. What a person gives for the job itself is checked, or is shell on
purpose (``setup``).
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ptycho import __version__
from ptycho.errors import SubmitError

#: What the values of a job may look like, and an example.
_PATTERNS = {
    "gpus": (r"([A-Za-z0-9_.-]+:)?[0-9]{1,3}", "1, 0 or a100:1"),
    "time": (r"([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}|UNLIMITED", "04:00:00, 1-12 or minutes"),
    "partition": (r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", "gpu"),
    "account": (r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", "my-project"),
    "memory": (r"[0-9]{1,9}[KMGT]?", "16G"),
}


@dataclass(frozen=True)
class Resources:
    """What a job asks for. ``gpus`` are those of a node ("1", "a100:1", "0" for none), ``time`` is "hh:mm:ss" or minutes (None: the site's).

    ``setup`` are lines of shell that prepare the node (modules, an environment); ``sbatch`` are further options, one "--name=value" each;
    ``python`` is the interpreter (None: the present one). Raises SubmitError naming what is wrong.
    """

    gpus: str = "1"
    nodes: int = 1
    cpus: int = 4
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    memory: str | None = None
    setup: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()
    python: str | None = None

    def __post_init__(self) -> None:
        for name, (pattern, example) in _PATTERNS.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value):
                raise SubmitError(f"{name} = {value!r}: write it as in {example}")
        for name in ("nodes", "cpus"):
            if getattr(self, name) < 1:
                raise SubmitError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        for option in self.sbatch:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[ -~]*)?", option):
                raise SubmitError(f"sbatch = {option!r}: write it as --name=value, on one line")

    @property
    def gpus_per_node(self) -> int:
        """Their number, whatever their kind."""
        return int(self.gpus.rpartition(":")[2])

    @property
    def processes_per_node(self) -> int:
        """One for each GPU, or one that uses all the cores."""
        return max(1, self.gpus_per_node)

    def replaced(self, given: dict[str, Any], source: str) -> Resources:
        """With the values that are given; ``source`` is named when one is unknown or of the wrong kind."""
        kinds: dict[str, type] = {f.name: {"nodes": int, "cpus": int, "setup": list, "sbatch": list}.get(f.name, str) for f in fields(self)}
        for name, value in given.items():
            if name not in kinds:
                raise SubmitError(f"{source}: {name}: unknown; known are {', '.join(kinds)}")
            if type(value) is not kinds[name] or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
                wanted = {list: "a list of texts", str: "a text", int: "a whole number"}[kinds[name]]
                raise SubmitError(f"{source}: {name} = {value!r}: {wanted} is needed")
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return replace(self, **values)


def load_site(path: Path) -> Resources:
    """What a site's jobs ask for, from a TOML file with the names of :class:`Resources`. Raises SubmitError."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SubmitError(f"{path}: {error.strerror or error}; give the path of a TOML file with --site") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SubmitError(f"{path}: not a TOML file: {error}") from None
    return Resources().replaced(given, str(path))


@dataclass(frozen=True)
class Course:
    """How a job goes on: seconds from the signal to the time limit, restarts at most, tasks of an array at a time (None: all)."""

    lead_s: int = 180
    requeues: int = 100
    at_once: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.lead_s <= 65535:
            raise SubmitError(f"lead = {self.lead_s} s: 1 to 65535 is what Slurm takes")
        if self.at_once is not None and self.at_once < 1:
            raise SubmitError(f"at once = {self.at_once}: at least 1 is needed")


def script(name: str, resources: Resources, course: Course, tasks: Sequence[int] | None) -> str:
    """The batch script of the lines ``tasks`` of ``points.txt``, counted from 0; None: of its only line, and no array.

    ``name`` (letters, digits, "._-") is what ``squeue`` shows.
    """
    r = resources
    array = None if tasks is None else _ranges(tasks) + (f"%{course.at_once}" if course.at_once else "")
    asked = {
        "job-name": name, "array": array, "nodes": r.nodes, "ntasks-per-node": r.processes_per_node, "cpus-per-task": r.cpus, "mem": r.memory,
        "gres": f"gpu:{r.gpus}" if r.gpus_per_node else None, "time": r.time, "partition": r.partition, "account": r.account,
        "output": "%x-%j.out" if tasks is None else "%x-%A_%a.out", "open-mode": "append", "requeue": "", "signal": f"USR2@{course.lead_s}",
    }  # fmt: skip
    options = [f"--{key}={value}" if value != "" else f"--{key}" for key, value in asked.items() if value is not None]
    header = "\n".join(f"#SBATCH {option}" for option in (*options, *r.sbatch))
    setup = "".join(line.rstrip("\n") + "\n" for line in r.setup) or "# (none: --setup 'module load ...' puts lines here)\n"
    several = r.nodes * r.processes_per_node > 1
    return _SCRIPT.format(
        version=__version__,
        header=header,
        setup=setup,
        python=shlex.quote(r.python or sys.executable),
        distributed=_DISTRIBUTED if several else "",
        ranked=_RANKED if several else "",
        device="cuda" if r.gpus_per_node else "cpu",
        requeues=course.requeues,
    )


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


_SCRIPT = """\
#!/bin/bash
{header}

# Written by ptycho {version} submit. Runs in this folder: each line of points.txt is the name of a run, NAME.toml its complete recipe.
# By hand: cd to this folder, sbatch job.sbatch.
# Slurm signals the step before the time limit and at pre-emption: it writes a checkpoint and exits with 75; the job then goes back
# to the queue and continues from there. Every other exit code is the job's own.

# The environment of the node:
{setup}
python={python}
job="${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
mapfile -t points <points.txt
point="${{points[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
echo "job $job, restart ${{SLURM_RESTART_COUNT:-0}}: $point on $SLURM_JOB_NODELIST"
{distributed}
trap : TERM USR2  # meant for the step, which this shell waits for
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 {ranked}"$python" -m ptycho \\
    reconstruct "$point.toml" --resume --device {device} --threads "$SLURM_CPUS_PER_TASK"
code=$?

case "$code" in
75) ;; # stopped, with a checkpoint
140 | 143) ;; # USR2 or TERM came before the run could listen; nothing is lost
*) exit "$code" ;;
esac
# Who was cancelled is no longer "RUNNING", and stays away.
[ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ] || exit 75
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {requeues} ]; then
    echo "job $job: restarted {requeues} times, not again" >&2
    exit 75
fi
scontrol requeue "$job" || exit 75
trap - TERM
sleep 600  # until Slurm ends this shell; to exit first would look like a failure
"""

# The names that torch.distributed reads; RANK and LOCAL_RANK differ from process to process and are set by each. The environment may know better.
_DISTRIBUTED = """\
MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export MASTER_ADDR MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))" WORLD_SIZE="$SLURM_NTASKS"
"""
_RANKED = "bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec \"$@\"' rank "
