"""The benchmark counts what it says it counts, and its record holds what a reader of it needs. No timings are judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import run
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.benchmark import SETS, Bench, Case, cases_of, standard, synthetic
from ptycho.differentiable import likelihood
from ptycho.errors import RecipeError
from ptycho.loss import Loss
from ptycho.start import ModelOptions, start

TINY = Case(scan=6, size=32, modes=2, slices=3, batch=8)


def count_fields(monkeypatch: pytest.MonkeyPatch, size: int, work: Callable[[], object]) -> dict[str, int]:
    """How many fields of ``size`` x ``size`` pass through each transform while ``work`` works."""
    fields = {"fft2": 0, "ifft2": 0}

    def counted(name: str, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def transform(wave: Tensor, **options: str) -> Tensor:
            fields[name] += wave.numel() // size**2
            return real(wave, **options)

        return transform

    with monkeypatch.context() as patch:
        for name in fields:
            patch.setattr(torch.fft, name, counted(name, getattr(torch.fft, name)))
        work()
    return fields


def test_the_transforms_alone_are_those_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 per mode, slice and pattern, half of them inverse: what the likelihood and its gradient need, no more and no fewer."""
    data = synthetic(TINY, TINY.scan)
    model = start(data.geometry, ModelOptions(probe_modes=2, slices=3, slice_thickness_A=2.0, pad=0), 100.0, data.mask)
    engine, index, counts = Likelihood(model, Loss(), chunk=6), torch.arange(36), torch.from_numpy(data.patterns())
    needed = count_fields(monkeypatch, TINY.size, lambda: likelihood(engine, index, counts))
    bench = Bench(torch.device("cpu"), workers=1, repeats=1)
    alone = count_fields(monkeypatch, TINY.size, lambda: bench._transforms(TINY, 36, group=6))
    # Beside them: the spectrum of the probe, once in a batch; one group before the clock starts.
    needed["fft2"] -= TINY.modes
    assert needed == {name: n - 6 * TINY.modes * 2 * TINY.slices for name, n in alone.items()} == dict.fromkeys(alone, 36 * 2 * 2 * 3)


def test_synthetic_patterns_carry_the_electrons_of_the_probe() -> None:
    data = synthetic(TINY, TINY.scan)
    patterns = data.patterns()
    assert patterns.shape == (36, 32, 32) and patterns.sum((1, 2)).mean() == pytest.approx(1e4, rel=0.01)
    assert len({pattern.tobytes() for pattern in patterns}) == 36
    disk = data.geometry.disk_radius_px
    assert 2 < disk < 16


def test_table_and_record(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    code, out, err = run("benchmark", "--quick", "--device", "cpu", "--threads", "1", "--case", "8/32/2/2/16", "--json", file)
    assert code == 0, err
    assert "x FFT" in out and "8^2" in out
    facts = json.loads(file.read_text())
    assert facts["threads"] == 1 and facts["versions"]["torch"] == torch.__version__ and facts["device"] and facts["copy_GB_per_s"] > 0
    (case,) = facts["cases"]
    assert case["name"] == "8/32/2/2/16" and case["case"]["slices"] == 2 and case["patterns"] == 64 and len(case["passes_s"]) == 3
    assert case["pass_s"] == pytest.approx(case["per_pattern_us"] * 64e-6)
    assert case["of_transforms"] > 1 and case["of_copy"] > 0 and case["memory_GB"] > case["data_GB"] > 0


def test_fewer_patterns_are_scaled_to_the_whole_scan() -> None:
    bench = Bench(torch.device("cpu"), workers=1, repeats=1, patterns=16)
    (figures,) = bench.run([TINY])
    assert figures.patterns == 16 and figures.pass_s == pytest.approx(figures.per_pattern_us * 36e-6)


def test_cases_by_name() -> None:
    assert Case.parse("128/128/6/6") == Case(128, 128, 6, 6, 32) and Case.parse(TINY.name) == TINY
    assert cases_of(["small", "32/64/2/1/32"]) == SETS["small"]
    assert cases_of(["8/32/1/1", "large"])[1:] == SETS["large"]
    for name in ("smal", "1/2/3", "32/64/two/1", "32/64/0/1", "32/8/1/1", "1/2/3/4/5/6"):
        with pytest.raises(RecipeError, match=f'case = "{name}"'):
            cases_of([name])
    assert "large" in SETS and len(standard(torch.device("cpu"), quick=True)) == 2
    assert run("benchmark", "--case", "smal").err.startswith('ptycho: error: case = "smal"')
