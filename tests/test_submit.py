"""Submission: the script, names and quoting, what is queued again and what is not, the queue on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptycho.errors import RecipeError, SubmitError
from ptycho.jobfolder import JobFolder, plain_name
from ptycho.local_queue import Workers, run_here, visible_gpus, worst
from ptycho.recipe import Recipe
from ptycho.slurm import Course, Resources, load_site, script
from ptycho.sweep import points_of

#: What a shell, a batch system or TOML would trip over.
NASTY = "a b'\"$(touch evil)`touch evil`;#&\\\n#SBATCH --wrap=x ü"

RECIPE = """
[data]
path = "scan.npy"
[microscope]
voltage_kV = 80
semiangle_mrad = 24.9
defocus_A = 20
[scan]
step_A = 0.4
[[solve]]
kind = "gradient"
epochs = 2
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_patterns: NDArray[np.float32]) -> Path:
    """A recipe with its small scan in the current folder."""
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", disk_patterns)
    Path("recipe.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands named as Slurm's: sbatch gives ids and keeps all it was given; squeue says what is in the file "queue"."""
    folder = tmp_path / "fake"
    folder.mkdir()
    sbatch = "n=$(ls -d job.* 2>/dev/null | wc -l)\necho $((100 + n))\nmkdir job.$n\n"
    for name, text in {"sbatch": f'cd "{folder}"\n{sbatch}', "squeue": f'cat "{folder}/queue"\n'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def options(text: str) -> dict[str, str]:
    """The #SBATCH lines."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def finish(folder: Path, **said: Any) -> None:
    """As a run that has ended leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    status = {"state": "finished", "pid": 1, "host": "elsewhere", "started": 0.0, "updated": 0.0, "epoch": 2, "epochs": 2, "loss": 1.0} | said
    (folder / "status.json").write_text(json.dumps(status))


def checked_by_bash(text: str) -> None:
    """The script is one that bash can read."""
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_says_what_was_asked() -> None:
    asked = Resources(gpus="a100:1", cpus=8, time="1-12:00:00", partition="gpu,long", account="p_1", memory="32G", setup=("module load cuda",))
    text = script("my-run", asked, Course(lead_s=240, requeues=7, at_once=2), [0, 1, 2, 5])
    assert options(text) == {
        "job-name": "my-run", "array": "0-2,5%2", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "8", "mem": "32G", "gres": "gpu:a100:1",
        "time": "1-12:00:00", "partition": "gpu,long", "account": "p_1", "output": "%x-%A_%a.out", "open-mode": "append", "requeue": "",
        "signal": "USR2@240",
    }  # fmt: skip
    lines = text.splitlines()
    assert lines.index("module load cuda") < next(number for number, line in enumerate(lines) if line.startswith("srun"))
    assert "--device cuda" in text and "-ge 7 ]" in text
    checked_by_bash(text)


def test_one_run_is_no_array_and_no_gpu_means_the_cpu() -> None:
    text = script("run", Resources(gpus="0"), Course(), None)
    assert not {"array", "gres", "time", "partition", "account", "mem"} & options(text).keys()
    assert options(text)["output"] == "%x-%j.out" and "--device cpu" in text and "MASTER_ADDR" not in text
    checked_by_bash(text)


def test_several_processes_get_the_names_that_torch_reads() -> None:
    text = script("run", Resources(gpus="4", nodes=2), Course(), None)
    assert (options(text)["nodes"], options(text)["ntasks-per-node"]) == ("2", "4")
    assert all(name in text for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK=$SLURM_PROCID", "LOCAL_RANK=$SLURM_LOCALID"))
    checked_by_bash(text)


@pytest.mark.parametrize(
    ("code", "state", "restarts", "calls"),
    [
        (0, "RUNNING", 0, []),
        (7, "RUNNING", 0, []),
        (75, "RUNNING", 0, ["requeue 9_0"]),
        (140, "RUNNING", 0, ["requeue 9_0"]),
        (75, "COMPLETING", 0, []),
        (75, "RUNNING", 3, []),
    ],
)
def test_only_what_can_go_on_is_requeued(tmp_path: Path, code: int, state: str, restarts: int, calls: list[str]) -> None:
    """The script with commands that only tell: exit codes are passed on, and who was cancelled stays away."""
    for name, text in {
        "srun": f"exit {code}", "squeue": f"echo {state}", "scontrol": f'echo "$@" >>"{tmp_path}/calls"', "sleep": "exit 0",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "points.txt").write_text("run\n")
    given = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NODELIST": "n"}
    environment = os.environ | given | {"SLURM_RESTART_COUNT": str(restarts), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    text = script("run", Resources(), Course(requeues=3), [0])
    done = subprocess.run(["bash"], input=text, text=True, cwd=tmp_path, env=environment, capture_output=True, timeout=30)
    assert done.returncode == (0 if calls else code), done.stderr
    assert ((tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []) == calls


@pytest.mark.parametrize(
    "given",
    [
        {"gpus": "one"}, {"gpus": "1\n#SBATCH --x"}, {"gpus": "$(touch evil)"}, {"time": "soon"}, {"time": "1:00\n"}, {"partition": "a b"},
        {"partition": "a;b"}, {"account": "a'b"}, {"memory": "16 G"}, {"nodes": 0}, {"cpus": -1},
        {"sbatch": ("--a=b\nrm x",)}, {"sbatch": ("qos=low",)},
    ],
)  # fmt: skip
def test_values_that_do_not_look_like_it_are_refused(given: dict[str, Any]) -> None:
    name = next(iter(given))
    with pytest.raises(SubmitError, match=f"^{name} = "):
        Resources(**given)


def test_a_python_with_any_name() -> None:
    text = script("run", Resources(python=f"/opt/{NASTY}/python"), Course(), None)
    checked_by_bash(text)
    assert options(text)["job-name"] == "run" and f"python={shlex.quote(f'/opt/{NASTY}/python')}\n" in text


def test_a_site_has_its_own_values(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('partition = "gpu"\ncpus = 8\nsetup = ["module load a", "module load b"]\n')
    assert load_site(path) == Resources(partition="gpu", cpus=8, setup=("module load a", "module load b"))
    for text, said in {"cpu = 8": "cpu: unknown; known are gpus, nodes", 'cpus = "8"': "a whole number is needed", "setup = 1": "a list of texts",
                       "partition": "not a TOML file", 'memory = "much"': "memory = 'much'"}.items():  # fmt: skip
        path.write_text(text)
        with pytest.raises(SubmitError, match=said):
            load_site(path)
    with pytest.raises(SubmitError, match="No such file"):
        load_site(tmp_path / "none.toml")


@given(st.text(max_size=200))
def test_names_need_no_quotes(text: str) -> None:
    name = plain_name(text)
    assert shlex.quote(name) == name and name[0].isalnum() and len(name) <= 80


def test_a_run_for_each_value(here: Path) -> None:
    folder, points = points_of(["recipe.toml"], ["model.seed=3"], ["model.slices=1,2", "scan.step_A=[0.4,0.5],0.4"], Path("sweep"))
    assert folder == here / "sweep"
    assert list(points) == ["slices-1_step_A-0.4_0.5", "slices-1_step_A-0.4", "slices-2_step_A-0.4_0.5", "slices-2_step_A-0.4"]
    last = points["slices-2_step_A-0.4"]
    assert (last.model.slices, last.scan.step_A, last.model.seed, last.data.path) == (2, 0.4, 3, str(here / "scan.npy"))
    assert last.output.directory == str(here / "sweep" / "slices-2_step_A-0.4")
    _, points = points_of(["recipe.toml"], [], ["data.format=numpy,hdf5", "solve.0.constraints={},{pure_phase={}}"], None)
    assert list(points) == ["format-numpy_constraints", "format-numpy_constraints-pure_phase", "format-hdf5_constraints",
                            "format-hdf5_constraints-pure_phase"]  # fmt: skip
    with pytest.raises(RecipeError, match=r"write it as section\.key=value,value"):
        points_of(["recipe.toml"], [], ["model.slices"], None)


def test_a_recipe_for_many_files(here: Path) -> None:
    Path("recipe.toml").write_text(RECIPE.replace('path = "scan.npy"', "flip_rows = false"))
    _, points = points_of(["recipe.toml", "a.npy", "b.h5::/entry/data", "old/a.npy"], [], [], Path("all"))
    assert {name: recipe.data.path for name, recipe in points.items()} == {
        "a": str(here / "a.npy"), "b": str(here / "b.h5::/entry/data"), "a-2": str(here / "old" / "a.npy"),
    }  # fmt: skip
    _, points = points_of(["x.npy"], ["scan.step_A=1"], [], Path("one"))
    assert list(points) == ["one"] and points["one"].output.directory == str(here / "one")


def test_print_shows_the_script_and_does_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    before = sorted(here.iterdir())
    code, out, err = run("submit", "recipe.toml", "--print", "--partition", "gpu", "--time", "4:00:00", "--sbatch=--qos=low")
    assert (code, err) == (0, "") and sorted(here.iterdir()) == before
    assert (options(out)["partition"], options(out)["time"], options(out)["qos"]) == ("gpu", "4:00:00", "low")


@pytest.mark.parametrize(
    ("words", "expected", "said"),
    [
        ([], 2, "there is no Slurm on this machine; submit on a login node, or run here with --local 1"),
        (["--gpus", "$(x)"], 2, "gpus = '$(x)': write it as in 1, 0 or a100:1"),
        (["--set", "model.slicez=1"], 3, "slicez"),
        (["--vary", "model.slices=1,none"], 3, "slices"),
        (["--set", "data.path=none.npy"], 4, "none.npy"),
        (["other.toml"], 2, "several recipes or files need a folder"),
        (["--lead", "0"], 2, "lead = 0 s"),
    ],
)
def test_what_cannot_be_is_told_at_once(here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: int, said: str) -> None:
    monkeypatch.setenv("PATH", "")
    before = sorted(here.iterdir())
    code, out, err = run("submit", "recipe.toml", *words)
    assert (code, out, err.count("\n")) == (expected, "", 1) and err.startswith("ptycho: error: ") and said in err
    assert sorted(here.iterdir()) == before


def test_what_lies_in_the_folder_is_told_at_once(here: Path, slurm: Path) -> None:
    Path("run").mkdir()
    Path("run/notes.txt").touch()
    code, _, err = run("submit", "recipe.toml")
    assert code == 5 and "run" in err and err.count("\n") == 1 and not Path("run.job").exists()


def test_nothing_of_a_recipe_reaches_the_script(here: Path, slurm: Path) -> None:
    """Paths and values are in the recipe's TOML beside the script, which is the same for all names."""
    data = here / NASTY.replace("\\", "")
    data.mkdir()
    os.rename("scan.npy", data / "scan.npy")
    code, out, err = run("submit", "recipe.toml", "--set", f"data.path={data / 'scan.npy'}", "-o", data / "out", "--gpus", "0")
    assert (code, out) == (0, "100\n"), err
    job = data / "out.job"
    text = (job / "job.sbatch").read_text()
    assert "evil" not in text and options(text)["job-name"] == "out" and not Path("evil").exists()
    assert (job / "points.txt").read_text() == "out\n"
    assert Recipe.load(job / "out.toml").data.path == str(data / "scan.npy")


def test_slurm_would_change_some_names(here: Path, slurm: Path) -> None:
    code, _, err = run("submit", "recipe.toml", "-o", "100%j")
    assert code == 2 and 'Slurm reads "%"' in err


def test_the_same_again_queues_the_rest(here: Path, slurm: Path) -> None:
    words = ("submit", "recipe.toml", "-o", "sweep", "--gpus", "0", "--vary")
    code, out, err = run(*words, "model.seed=1,2,3")
    assert (code, out) == (0, "100\n") and "3 run(s) queued" in err
    job, sweep = JobFolder(here / "sweep"), here / "sweep"
    assert options((job.path / "job.sbatch").read_text())["array"] == "0-2"

    (slurm / "queue").write_text("100_0\n100_1\n100_2\n77\n")
    code, out, err = run(*words, "model.seed=1,2,3")
    assert (code, out) == (0, "") and "seed-2: queued as job 100_1, left alone" in err and "nothing to do" in err

    # One has finished, one runs elsewhere, one failed; a fourth is new.
    (slurm / "queue").write_text("100_1\n")
    finish(sweep / "seed-1")
    finish(sweep / "seed-2", state="running", updated=time.time())
    finish(sweep / "seed-3", state="failed", code=4, message="DataError: scan.npy: away")
    code, out, err = run(*words, "model.seed=1,2,3,4")
    assert (code, out) == (0, "101\n") and "seed-1: finished, left alone" in err and "seed-2: running as job 100_1" in err
    assert options((job.path / "job.sbatch").read_text())["array"] == "2-3"
    assert job.tasks() == {"100_0": "seed-1", "100_1": "seed-2", "100_2": "seed-3", "101_2": "seed-3", "101_3": "seed-4"}
    found = {entry["folder"]: (entry["state"], entry["job"]) for entry in json.loads(run("status", "sweep", "--json").out)}
    assert found == {"sweep/seed-1": ("finished", "100_0"), "sweep/seed-2": ("running", "100_1"), "sweep/seed-3": ("failed", "101_2"),
                     "sweep/seed-4": ("waiting", "101_3")}  # fmt: skip


def test_what_has_begun_keeps_its_recipe(here: Path, slurm: Path) -> None:
    run("submit", "recipe.toml", "--gpus", "0")
    assert run("submit", "recipe.toml", "--gpus", "0", "--set", "model.seed=5").code == 0  # it had not begun, nor waits
    assert Recipe.load("run.job/run.toml").model.seed == 5
    finish(here / "run")
    code, out, err = run("submit", "recipe.toml", "--gpus", "0")
    assert (code, out) == (3, "") and "run: is finished with another recipe" in err and "model.seed was 5 and is 0" in err
    again = ("submit", "recipe.toml", "--gpus", "0", "--set", "model.seed=5", "--set", "output.checkpoint_minutes=1")
    assert run(*again).code == 0  # how often the state is kept is no matter


def test_slurm_has_the_last_word(here: Path, slurm: Path) -> None:
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition\nspecified: x' >&2; exit 1\n")
    code, out, err = run("submit", "recipe.toml")
    assert (code, out, err.count("\n")) == (2, "", 1) and "invalid partition specified: x; change the job's options" in err
    assert JobFolder(here / "run").tasks() == {}


@pytest.mark.parametrize(("codes", "code"), [([], 0), ([0, 0], 0), ([0, 75], 75), ([75, 3, 0], 3), ([4, 75, 5], 5)])
def test_the_worst_code(codes: list[int], code: int) -> None:
    assert worst(codes) == code


def test_the_same_queue_here(here: Path) -> None:
    """Two workers; one of the runs cannot be, and its code and its words are those of the command."""
    np.save("none.npy", np.zeros_like(np.load("scan.npy")))
    words = ("submit", "recipe.toml", "scan.npy", "none.npy", "-o", "all", "--local", "2", "--device", "cpu")
    code, out, err = run(*words)
    ends = dict(line.split(": ", 1) for line in out.splitlines())
    assert ends["scan"].startswith("finished (") and ends["none"].startswith(f"failed with code {code}: "), out + err
    assert code == 4
    states = {entry["folder"]: entry["state"] for entry in json.loads(run("status", "all", "--json").out)}
    assert states["all/scan"] == "finished" and "scan: finished, left alone" in run(*words).err


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    """Runs that a small program plays: "again-N" stops N times before it ends, "long-N" waits to be stopped, "bad-N" ends with code N."""
    program = tmp_path / "toy"
    program.write_text("""#!/bin/sh
name=${4%.toml}; number=${name#*-}; echo $$ "gpu $CUDA_VISIBLE_DEVICES" >>$name.began
case $name in
again-*) [ $(wc -l <$name.began) -gt $number ] || exit 75 ;;
long-*) trap 'exit 75' TERM; while :; do sleep 0.05; done ;;
bad-*) echo "ptycho: error: this is bad" >&2; exit $number ;;
esac
""")
    program.chmod(0o755)
    monkeypatch.setattr("ptycho.local_queue.sys.executable", str(program))
    job = JobFolder(tmp_path / "toys")
    job.path.mkdir()
    return job


def test_a_stopped_run_begins_again(toys: JobFolder) -> None:
    told: list[str] = []
    assert run_here(toys, ["again-2", "bad-3", "again-9", "bad-1"], Workers(2, restarts=4), told.append) == 3
    ends = {line.split(":")[0]: line.split(": ", 1)[1] for line in told}
    assert ends["again-2"].startswith("finished (") and ends["again-2"].endswith("started 3 times)")
    assert ends["bad-3"].startswith("failed with code 3: this is bad (")
    assert ends["again-9"].startswith("stopped, can go on (") and ends["again-9"].endswith("started 5 times)")


def test_workers_have_a_gpu_each(toys: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"again-{number}" for number in range(4)]
    assert run_here(toys, names, Workers(2, gpus=("5", "7")), lambda _: None) == 0
    used = [{line.split()[-1] for line in (toys.path / f"{name}.began").read_text().splitlines()} for name in names]
    assert all(len(gpus) == 1 for gpus in used) and set().union(*used) == {"5", "7"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert visible_gpus(2) == ("3", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert (visible_gpus(2), visible_gpus(0)) == (("0", "1"), ())


def test_a_signal_stops_all_and_begins_no_other(toys: JobFolder) -> None:
    def stop_soon() -> None:
        while not all((toys.path / f"long-{number}.began").exists() for number in (1, 2)):
            time.sleep(0.01)
        time.sleep(0.2)  # until both listen
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_soon).start()
    told: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    assert run_here(toys, ["long-1", "long-2", "long-3"], Workers(2), told.append) == 75
    assert sorted(line.split(" (")[0] for line in told) == ["long-1: stopped, can go on", "long-2: stopped, can go on"]
    assert not (toys.path / "long-3.began").exists() and signal.getsignal(signal.SIGTERM) == before


def test_cores_are_shared_out() -> None:
    assert Workers(1).threads >= Workers(2).threads >= 1 and Workers(10**6).threads == 1


def test_status_of_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("status", "none")
    assert (code, out, err) == (4, "", "ptycho: error: none: no such folder; name run folders, or folders that hold some\n")
    code, out, err = run("status")
    assert (code, out, err) == (0, "", "no runs in .\n") and run("status", "--json").out == "[]\n"


def test_status_tells_the_dead_from_the_living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    finish(tmp_path / "a" / "done", held_out=1.25)
    finish(tmp_path / "a" / "lost", state="running", epoch=1)
    finish(tmp_path / "a" / "live", state="running", epoch=10, epochs=70, updated=time.time())
    (tmp_path / "a" / "live" / "metrics.jsonl").write_text("".join(f'{{"seconds": {s}}}\n' for s in [50] + [61] * 10) + '{"sec')
    (tmp_path / "a" / "odd").mkdir()
    (tmp_path / "a" / "odd" / "status.json").write_text("{")
    found = {entry["folder"]: entry for entry in json.loads(run("status", "--json").out)}
    assert {name: entry["state"] for name, entry in found.items()} == {
        "a/done": "finished", "a/lost": "dead", "a/live": "running", "a/odd": "unreadable",
    }  # fmt: skip
    assert found["a/live"]["seconds_left"] == 60 * 61
    rows = {line.split()[0]: line.split() for line in run("status", "a").out.splitlines()}
    assert rows["run"] == ["run", "state", "epoch", "loss", "held", "out", "left", "job"]
    assert rows["a/done"] == ["a/done", "finished", "2/2", "1.00000", "1.25000"] and rows["a/live"][2:] == ["10/70", "1.00000", "1:01:00"]
    assert run("status", "a/done").out.splitlines()[1].split()[0] == "a/done"


def test_status_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys\nfrom ptycho.cli import main\nsys.argv = ['ptycho', 'status', sys.argv[1]]\n"
    code += "try: main()\nfinally: print(sorted({'torch', 'scipy', 'numpy'} & set(sys.modules)))"
    finish(tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
