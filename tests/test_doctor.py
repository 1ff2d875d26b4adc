"""What the doctor says of this machine, and that it names what is wrong with its remedy."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from command import run

import ptycho
from ptycho.doctor import examine


def test_for_people_and_for_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("doctor")
    assert code == 0 and f"ptycho {ptycho.__version__}" in out and "GFLOP/s; a pass of 10000 patterns" in out, err
    facts = json.loads(run("doctor", "--json").out)
    cpu = facts["devices"][0]
    # 5 N log2 N operations for each of the 19 transforms that a pattern takes: two measurements of one machine, which may be busy.
    passes = 10_000 * 19.2 * 5 * 128**2 * 14 / (cpu["gflops"] * 1e9)
    assert cpu["kind"] == "cpu" and 0.1 < cpu["pass_s"] / passes < 10
    assert facts["cores"] >= 1 and facts["disk_free_GB"] > 0 and dict(facts["versions"])["torch"]


def test_trouble_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *more: Any) -> Any:
        if name == "hdf5plugin":
            raise ImportError("no such module")
        return real(name, *more)

    monkeypatch.setattr("ptycho.doctor.importlib.import_module", without)
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "TRUE")
    monkeypatch.setattr("ptycho.doctor.cores", lambda: 0)
    said = {t.what: t.remedy for t in examine(tmp_path / "absent").troubles}
    for words in ("hdf5plugin cannot be loaded", "KMP_DUPLICATE_LIB_OK", "threads for 0 cores", "nothing can be written here"):
        assert any(words in what for what in said), said
    assert all(said.values())
