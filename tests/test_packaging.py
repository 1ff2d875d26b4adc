"""What is written down twice for others' tools says the same as pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Where conda-forge has another name for a package.
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def test_the_conda_recipe_has_the_same_dependencies() -> None:
    text = (ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    run = re.findall(r"^    - (.+)$", text.partition("\n  run:\n")[2].partition("\n\n")[0], re.MULTILINE)
    wanted = set()
    for dependency in PROJECT["dependencies"]:
        name, limit = re.fullmatch(r"([\w-]+)(.*)", dependency).groups()
        wanted.add(f"{CONDA.get(name, name)} {limit}".strip())
    assert set(run) == wanted | {"python >=${{ python_min }}"}
    oldest = re.search(r"python_min: .([\d.]+)", text)
    assert f'version: "{PROJECT["version"]}"' in text and oldest is not None and f">={oldest[1]}" == PROJECT["requires-python"]


def test_the_citation_names_this_version_and_its_authors_and_no_doi() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in text and "doi" not in text.lower()
    assert re.findall(r'- name: "(.+)"', text) == [author["name"] for author in PROJECT["authors"]]
