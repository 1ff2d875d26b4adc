"""Jobs in a real Slurm of two nodes: they finish, in arrays too, and come back after a time limit and after pre-emption."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import environment

import ptycho
from ptycho.slurm import Course, Resources, script

#: The real program, whose batches take a second each until it has been stopped once: an hour's run in little.
SLOWLY = """#!{python}
import sys, time, tomllib
from pathlib import Path
from ptycho.cli import main
from ptycho.solvers.gradient import Nesterov
folder = Path(tomllib.loads(Path(sys.argv[4]).read_text())["output"]["directory"])
batch = Nesterov.batch
def slowly(self, *given):
    time.sleep(1)
    return batch(self, *given)
if not (folder / "checkpoints").exists():
    Nesterov.batch = slowly
sys.argv = ["ptycho", *sys.argv[3:]]
main()
"""

#: Epochs of a run that outlives its time limit, as long as its batches take a second.
EPOCHS = 150
LONG = ("--set", f"solve.0.epochs={EPOCHS}")

#: How long anything may take on a machine that has other things to do.
PATIENCE_S = 240


class Cluster:
    """A folder with a recipe, and a Slurm to run it."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder, self.variables = folder, variables
        self.slowly = folder / "slowly"
        self.slowly.write_text(SLOWLY.format(python=sys.executable))
        self.slowly.chmod(0o755)

    def run(self, *words: object) -> str:
        """A command that ends well; what it prints."""
        done = subprocess.run([*map(str, words)], cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *words: object) -> str:
        """``ptycho submit`` for the CPU, one core each; the job's id."""
        return self.run(sys.executable, "-m", "ptycho", "submit", "recipe.toml", "--gpus", 0, "--cpus", 1, *words)

    def works(self, name: str) -> bool:
        """Whether a run is in its second epoch at least."""
        try:
            said = json.loads((self.folder / name / "status.json").read_text())
        except FileNotFoundError:
            return False
        return bool(said["state"] == "running" and said["epoch"] > 0)

    def states(self, folder: str) -> dict[str, str]:
        """Of the runs there."""
        found = json.loads(self.run(sys.executable, "-m", "ptycho", "status", folder, "--json"))
        return {Path(entry["folder"]).name: entry["state"] for entry in found}

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(word.split("=", 1) for word in self.run("scontrol", "show", "job", "-o", number).split() if "=" in word)

    def wait(self, what: Callable[[], bool]) -> None:
        """Until it is so."""
        end = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < end, self.run("squeue", "--array")
            time.sleep(0.5)

    def gone(self, *jobs: str) -> bool:
        """Whether they are in the queue no more."""
        here = {task.partition("_")[0] for task in self.run("squeue", "-h", "-o", "%i").split()}
        return not here & set(jobs)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, slurm: dict[str, str]) -> Cluster:
    folder = tmp_path_factory.mktemp("cluster")
    y, x = np.indices((32, 32)) - 16
    mean = 20.0 * (np.hypot(y, x) < 7.3) + 0.05
    np.save(folder / "scan.npy", np.random.default_rng(1).poisson(mean, (4, 4, 32, 32)).astype(np.float32))
    (folder / "recipe.toml").write_text(
        '[data]\npath = "scan.npy"\n[microscope]\nvoltage_kV = 80\nsemiangle_mrad = 24.9\ndefocus_A = 20\n'
        '[scan]\nstep_A = 0.4\n[[solve]]\nkind = "gradient"\nepochs = 2\n'
    )
    wanted = {key: slurm[key] for key in ("LD_LIBRARY_PATH", "PATH", "SLURM_CONF")}
    return Cluster(folder, environment() | wanted | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def limited(cluster: Cluster) -> str:
    """A run with a limit of one minute; Slurm looks at the limits twice a minute. It goes on while the others are tested."""
    return cluster.submit("-o", "limited", "--time", "1", "--lead", "20", *LONG, "--python", cluster.slowly)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> ptycho.Result:
    """What the long runs have to give."""
    recipe = ptycho.Recipe.load(cluster.folder / "recipe.toml", [f"solve.0.epochs={EPOCHS}"])
    return ptycho.reconstruct(recipe, device="cpu")


def assert_as_if_undisturbed(cluster: Cluster, name: str, whole: ptycho.Result) -> None:
    """It was stopped with a checkpoint, went on from it in another job's start, and its bits are those of a run in peace."""
    log, found = (cluster.folder / name / "log.txt").read_text(), ptycho.load(cluster.folder / name)
    assert "ERROR Stopped: stopped in epoch" in log and "going on from checkpoints/" in log
    assert found.object.tobytes() == whole.object.tobytes() and found.probe.tobytes() == whole.probe.tobytes()
    assert [(record.epoch, record.loss) for record in found.history] == [(record.epoch, record.loss) for record in whole.history]


def test_an_array(cluster: Cluster, limited: str) -> None:
    job = cluster.submit("-o", "it's a $(sweep)", "--vary", "model.seed=1,2,3,4")
    assert set(cluster.states("it's a $(sweep)").values()) <= {"queued", "running"}
    assert cluster.submit("-o", "it's a $(sweep)", "--vary", "model.seed=1,2,3,4") == ""  # all are on their way
    cluster.wait(lambda: cluster.gone(job))
    assert cluster.states("it's a $(sweep)") == {f"seed-{n}": "finished" for n in (1, 2, 3, 4)}
    result = ptycho.load(cluster.folder / "it's a $(sweep)" / "seed-3")
    assert "seed = 3" in result.recipe and np.isfinite(result.phase).all()
    assert cluster.submit("-o", "it's a $(sweep)", "--vary", "model.seed=1,2,3,4") == ""


def test_preempted_and_finished(cluster: Cluster, undisturbed: ptycho.Result) -> None:
    job = cluster.submit("-o", "low", *LONG, "--python", cluster.slowly, "--sbatch=--nodelist=n2", "--partition", "low")
    cluster.wait(lambda: cluster.works("low"))
    other = cluster.run("sbatch", "--parsable", "--partition=high", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    cluster.wait(lambda: cluster.gone(job, other))
    assert cluster.states("low") == {"low": "finished"}
    assert_as_if_undisturbed(cluster, "low", undisturbed)
    assert int(cluster.job(job)["Restarts"]) >= 1


def test_a_failure_is_passed_on(cluster: Cluster) -> None:
    np.save(cluster.folder / "none.npy", np.zeros((4, 4, 32, 32), dtype=np.float32))
    job = cluster.submit("none.npy", "-o", "none")
    cluster.wait(lambda: cluster.gone(job))
    found = cluster.job(job)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "4:0", "0")


def test_a_job_that_is_cancelled_stays_away(cluster: Cluster) -> None:
    job = cluster.submit("-o", "away", *LONG, "--python", cluster.slowly)
    cluster.wait(lambda: cluster.works("away"))
    cluster.run("scancel", job)
    cluster.wait(lambda: cluster.gone(job))
    assert cluster.job(job)["JobState"] == "CANCELLED" and cluster.states("away") == {"away": "stopped"}


def test_each_process_of_two_nodes_knows_its_rank(cluster: Cluster, tmp_path: Path) -> None:
    """As far as the script goes: what torch.distributed reads."""
    tell = tmp_path / "tell"
    tell.write_text("#!/bin/sh\necho rank $RANK of $WORLD_SIZE, $LOCAL_RANK here, to $MASTER_ADDR:$MASTER_PORT, $3\n")
    tell.chmod(0o755)
    (tmp_path / "points.txt").write_text("both\n")
    asked = Resources(gpus="0", nodes=2, cpus=1, python=str(tell), sbatch=("--wait",))
    (tmp_path / "job.sbatch").write_text(script("both", asked, Course(), None))
    job = cluster.run("sbatch", "--parsable", "--chdir", tmp_path, tmp_path / "job.sbatch")
    said = sorted(line for line in (tmp_path / f"both-{job}.out").read_text().splitlines() if line.startswith("rank"))
    port = 20000 + int(job) % 20000
    assert said == [f"rank {rank} of 2, 0 here, to n1:{port}, reconstruct" for rank in (0, 1)]


def test_two_nodes_compute_one_run(cluster: Cluster) -> None:
    # Here the nodes have names that only Slurm knows.
    words = ("--nodes", 2, "--setup", "export MASTER_ADDR=127.0.0.1", "--set", "solve.0.batch=8", "--set", "solve.0.epochs=5")
    job = cluster.submit("-o", "two", *words)
    cluster.wait(lambda: cluster.gone(job))
    assert cluster.states("two") == {"two": "finished"}, next((cluster.folder / "two.job").glob("*.out")).read_text()
    cluster.run(sys.executable, "-m", "ptycho", "reconstruct", "two.job/two.toml", "-o", "one", "--device", "cpu")
    two, one = ptycho.load(cluster.folder / "two"), ptycho.load(cluster.folder / "one")
    for name in ("object", "probe"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=0, atol=1e-5 * np.abs(getattr(one, name)).max())
    said = next((cluster.folder / "two.job").glob("*.out")).read_text()
    assert "2 processes, the first with 8 of 16 patterns" in said and said.count("epoch 5 of 5") == 1


def test_a_time_limit_is_no_end(cluster: Cluster, limited: str, undisturbed: ptycho.Result) -> None:
    cluster.wait(lambda: cluster.gone(limited))
    found = cluster.job(limited)
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0") and int(found["Restarts"]) >= 1
    assert cluster.states("limited") == {"limited": "finished"}
    assert_as_if_undisturbed(cluster, "limited", undisturbed)
