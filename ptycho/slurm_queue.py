"""Slurm's commands: put a script into the queue, and ask what is in it. No accounting data base is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ptycho.errors import SubmitError

#: A controller that does not answer must not keep a person waiting for ever.
_PATIENCE_S = 120


def has_slurm() -> bool:
    """Whether there is a Slurm to submit to."""
    return shutil.which("sbatch") is not None


def check_slurm() -> None:
    """Raise SubmitError when there is none."""
    if not has_slurm():
        raise SubmitError("sbatch: there is no Slurm on this machine; submit on a login node, or run here with --local 1, or look with --print")


def submit(folder: Path, script: str = "job.sbatch") -> str:
    """Put ``script`` of a job folder into the queue; the job's id. Raises SubmitError with what Slurm says."""
    if any(sign in str(folder) for sign in "%\\"):
        raise SubmitError(f'{folder}: Slurm reads "%" and "\\" in its files\' names as its own; give another folder with -o')
    return _run(["sbatch", "--parsable", script], folder).partition(";")[0].strip()


def queued() -> set[str]:
    """Ids ("12345", "12345_7" in an array) of one's jobs that wait or run. Raises SubmitError with what Slurm says."""
    return set(_run(["squeue", "--me", "--noheader", "--array", "--format=%i"], None).split())


def _run(command: list[str], folder: Path | None) -> str:
    # Submitted from inside of a job, its numbers of tasks and memory would be taken for those of the new one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=_PATIENCE_S)
    except OSError as error:
        raise SubmitError(f"{command[0]}: {error.strerror or error}; is Slurm installed here?") from None
    except subprocess.TimeoutExpired:
        raise SubmitError(f"{command[0]}: no answer in {_PATIENCE_S} s; is Slurm's controller up?") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"it ended with code {done.returncode}"
        raise SubmitError(f"{said}; change the job's options (--partition, --account, --time, --gpus, ...)")
    return done.stdout
