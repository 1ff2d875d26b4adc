"""Free memory is the least of what the machine and the job's control groups leave."""

from pathlib import Path

import torch

from ptycho import memory


def group(folder: Path, limit: str, used: int, inactive: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    return folder


def test_the_smallest_limit_counts(tmp_path: Path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   7000 kB\nHugePages_Total: 0\n")
    assert memory._available(meminfo) == 7000 << 10
    job = group(tmp_path / "job", "5000000", 3000000, 1000000)
    assert memory._left_in_group(job) == 3000000
    assert memory._left_in_group(group(tmp_path / "free", "max", 1, 1)) is None
    assert memory._left_in_group(tmp_path / "none") is None and memory._available(tmp_path / "none") is None
    monkeypatch.setattr(memory, "_groups", lambda: [job, tmp_path / "free"])
    assert memory.free_bytes(torch.device("cpu")) == 3000000


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path):
    assert memory._left_in_group(group(tmp_path / "job", "100", 300, 0)) == 0
