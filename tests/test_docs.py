"""What README and documentation show: Python runs, commands exist and the cheap ones run, recipes are valid, every key is explained."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import command
import pytest
import typer

from ptycho.cli import app
from ptycho.errors import RecipeError
from ptycho.recipe import Recipe, load_simulation
from ptycho.simulated_files import write_simulation
from ptycho.simulation import Simulation, simulate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
#: The scan of the pages, and the small one that stands in for it.
SHOWN, SMALL = "scan_x48_y48.raw", "scan_x8_y8.raw"
#: Commands that are quick enough to be run where their files are there.
CHEAP = ("info", "check", "convert", "export")

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of this copy")


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language, without their indentation."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, kind, text in found if kind == language]


def commands(page: Path) -> list[list[str]]:
    """The words behind ``ptycho`` of each command line."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.removeprefix("$ ").split("&&")]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("ptycho ")]


def pages_with(language: str) -> list[Any]:
    """The pages that have such blocks, as parameters of a test."""
    return [pytest.param(page, id=name) for page, name in zip(PAGES, NAMES, strict=True) if blocks(page, language)]


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """docs/generated.py, which makes the references."""
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of: a small EMPAD scan, its recipe, a finished run."""
    folder = tmp_path_factory.mktemp("scan")
    write_simulation(simulate(Simulation(scan_shape=(8, 8), step_A=0.7)), folder)
    ran = command.run("reconstruct", folder / "recipe.toml", "-o", folder / "run", "--epochs", "1", "--device", "cpu")
    assert ran.code == 0, ran.err
    return folder


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_of_a_page_runs_in_order(page: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scan)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block.replace(SHOWN, SMALL), str(page), "exec"), names)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_the_commands_of_a_page_are_the_programs(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for verb, *words in commands(page):
        assert verb in group.commands, f"ptycho {verb}: there is no such command"
        group.commands[verb].make_context(verb, list(words))


@pytest.mark.parametrize("page", pages_with("bash"))
def test_cheap_commands_run(page: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scan)
    for words in commands(page):
        here = [word.replace(SHOWN, SMALL) for word in words]
        if here[0] in CHEAP and Path(here[1]).exists():
            there = ["--overwrite"] if here[0] in ("convert", "export") else []
            ran = command.run(*here, *there)
            assert ran.code == 0, f"{here}: {ran.err}"


@pytest.mark.parametrize("page", pages_with("toml"))
def test_the_recipes_of_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        tree = tomllib.loads(block)
        if "specimen" in tree:
            (tmp_path / "simulation.toml").write_text(block, encoding="utf-8")
            load_simulation(tmp_path / "simulation.toml")
            continue
        tree.setdefault("data", {}).setdefault("path", "scan.h5")
        Recipe.parse(tree, name=str(page))


def test_a_recipe_with_an_unknown_key_would_be_found() -> None:
    with pytest.raises(RecipeError, match="slice"):
        Recipe.parse({"data": {"path": "x"}, "model": {"slice": 3}})


def test_every_key_of_a_recipe_is_explained(generated: ModuleType) -> None:
    page = generated.recipe_page()
    for section, keys in generated.sections().items():
        for key in keys:
            if not section.startswith("solve.constraints."):
                assert key.meaning, f"docs/keys.toml says nothing of {section}.{key.name}"
            if key.name not in ("start", "stop", "every"):
                assert f"`{key.name}`" in page, f"{section}.{key.name}"


def test_every_key_of_a_simulation_is_explained(generated: ModuleType) -> None:
    page = generated.simulation_page()
    for key in generated.simulation_keys():
        assert key.meaning, f"docs/keys.toml says nothing of simulation.{key.name}"
        assert f"`{key.name}`" in page


def test_nothing_is_explained_that_is_not_there(generated: ModuleType) -> None:
    known = {f"{section}.{key.name}" for section, keys in generated.sections().items() for key in keys}
    known |= {f"simulation.{key.name}" for key in generated.simulation_keys()}
    assert set(generated.meanings()) - known <= {"solve.kind"}


def test_sections_are_those_of_the_schema(generated: ModuleType) -> None:
    assert set(Recipe.model_fields) == {section.partition(".")[0] for section in generated.sections()}


def test_every_verb_option_and_exit_code_is_listed(generated: ModuleType) -> None:
    page, group = generated.commands_page(), typer.main.get_command(app)
    for verb, one in vars(group)["commands"].items():
        assert f"## {verb}\n" in page
        for parameter in one.params:
            assert all(name in page for name in parameter.opts if name.startswith("-"))
    assert dict(generated.exit_codes()).keys() >= {"0", "1", "2", "3", "4", "5", "6", "7"}


def test_the_drawing_has_every_layer(generated: ModuleType) -> None:
    drawing = generated.layers_page()
    assert all(f">{module}</text>" in drawing for layer in generated.layers() for module in layer)
    assert generated.layers()[0] == ["cli"]
