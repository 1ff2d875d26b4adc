"""The notebooks run from beginning to end, end with what they promise, and are clean in the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import environment

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: What each promises of its last cells: least and most of every score.
PROMISED: dict[str, dict[str, tuple[float, float]]] = {
    "1_look_and_calibrate": {"defocus_error_A": (0, 12), "rotation_error_deg": (0, 1.0)},
    "2_first_reconstruction": {"correlation": (0.98, 1), "slope": (0.85, 1.1)},
    "3_thick_crystal_and_depth": {"correlation": (0.98, 1), "one_slice": (0, 0.96), "below_over_above": (1.15, 3)},
    "4_low_dose_modes_positions": {"correlation": (0.92, 1), "plain": (0, 0.87), "position_error_A": (0, 0.12)},
    "5_from_notebook_to_cluster": {"best_defocus_A": (350, 350), "resumed_is_the_same": (1, 1), "correlation": (0.9, 1)},
}
#: Code cells one after the other in one namespace, as a notebook has them; the value at the end of each is shown, as there.
RUN = """
import ast, json, sys
import matplotlib
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(sys.stdin)):
    tree = ast.parse(cell)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    shown = [getattr(value, name)() for name in ("_repr_png_", "_repr_html_") if hasattr(value, name)]
    assert any(shown) or not shown, type(value)
print("SCORE " + json.dumps({name: float(value) for name, value in names["score"].items()}))
"""

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the notebooks are not part of this copy")


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    """All cells of a kind."""
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_all_of_them_are_there() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == sorted(PROMISED)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_clean_and_valid(notebook: Path) -> None:
    tree = json.loads(notebook.read_text(encoding="utf-8"))
    assert (tree["nbformat"], tree["nbformat_minor"]) == (4, 5) and set(tree) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert tree["metadata"]["language_info"] == {"name": "python"} and tree["metadata"]["kernelspec"]["name"] == "python3"
    names = [cell["id"] for cell in tree["cells"]]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
    for cell in tree["cells"]:
        assert cell["metadata"] == {} and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert set(cell) == {"cell_type", "id", "metadata", "source", "execution_count", "outputs"}
            assert cell["outputs"] == [] and cell["execution_count"] is None
            assert not any(line.startswith(("%", "!")) for line in cell["source"]), "plain Python, no magics"
        else:
            assert set(cell) == {"cell_type", "id", "metadata", "source"} and cell["cell_type"] == "markdown"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_keeps_its_promise(notebook: Path, tmp_path: Path) -> None:
    sources = ["".join(cell["source"]) for cell in cells(notebook, "code")]
    settings = environment() | {"MPLBACKEND": "Agg", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-c", RUN], input=json.dumps(sources), capture_output=True, encoding="utf-8",
        timeout=900, cwd=tmp_path, env=settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    score = json.loads(done.stdout.rpartition("SCORE ")[2])
    assert score.keys() == PROMISED[notebook.stem].keys()
    for name, (least, most) in PROMISED[notebook.stem].items():
        assert least <= score[name] <= most, f"{name} = {score[name]:.4g}, promised is {least} to {most}"
