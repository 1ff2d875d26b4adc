"""report.html: all that a run is about in one file that needs no other, the same when it is made again."""

from __future__ import annotations

import base64
import dataclasses
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from command import GIVEN, run, write_npy
from test_result import PNG, make, quality, residual

import ptycho
from ptycho.account import Account
from ptycho.examples import Examples
from ptycho.plot import Page as Figure
from ptycho.report import data_name, report
from ptycho.result import EpochRecord

VOID = ("meta", "img", "input")
ALWAYS = {"summary", "phase", "amplitude", "probe", "positions", "recipe", "effort"}


class Page(HTMLParser):
    """Tags, attributes and text; fails when a tag is left open or an anchor leads nowhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {str(a["href"]) for _, a in self.tags if "href" in a} == {f"#{name}" for name in self.sections}
        assert all(a["for"] in ids for tag, a in self.tags if tag == "label")

    @property
    def sections(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section"]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def account(moved: bool = True, **changes: object) -> Account:
    moved_A = np.random.default_rng(3).normal(0, 0.1, (20, 2)) if moved else np.zeros((0, 2))
    rows = (("voltage_kV", "80 kV", "scan.xml: high_voltage"), ("defocus_A", "350 Å", "user"))
    values = {"calibration": rows, "warnings": ("2 hot pixels masked",), "moved_A": moved_A, "device": "one core", "seconds": 75.0}
    return Account(**(values | {"peak_memory_GB": 1.25, "gpu_memory_GB": float("nan")} | changes))  # type: ignore[arg-type]


def examples() -> Examples:
    pairs = np.random.default_rng(4).poisson(3, (2, 3, 16, 16)).astype(float)
    pairs[:, :, 0, 0] = np.nan
    return Examples.of(pairs, np.array([7, 3]), np.array([1.01, 1.9]), 2.5)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn but not turned into pixels, which takes most of the time."""
    monkeypatch.setattr(Figure, "png", lambda _: PNG)
    monkeypatch.setattr(Figure, "webp", lambda _: b"RIFF")


def full():
    return make(residual=residual(), quality=quality(), examples=examples(), account=account())


def test_all_of_it_is_in_one_file():
    result = full()
    text = report(result)
    page = Page(text)
    assert set(page.sections) == ALWAYS | {"warnings", "slices", "depth", "quality", "convergence", "patterns", "angles", "tilt", "calibration"}
    for said in (
        "WS₂ 0.7 Å.raw",
        "2 hot pixels masked",
        "80 kV, 24.9 mrad",
        "after 4 epochs",
        result.quality.summary(),
        result.recipe,
        "C10 = -350 Å",
        "torch 2.6",
        "scan.xml: high_voltage",
        "75 s",
        "1.25 GB of the machine",
        "Slice 3 of 3: depth 11 to 18.5 Å",
        "position 3, χ² 1.9",
        "They were learned: moved by",
    ):
        assert said in page.text, said
    assert "nan" not in page.text.lower()
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    # phase, 3 slices, 2 sections, amplitude, 2 of quality, loss, 3 patterns, 2 by angle, 2 modes, positions, 2 tilts
    assert len(images) == 20
    for attributes in images:
        kind, _, data = str(attributes["src"]).partition(",")
        content = base64.b64decode(data)
        assert attributes["alt"]
        if kind == "data:image/png;base64":
            assert content.startswith(PNG)
        else:
            assert kind == "data:image/webp;base64" and content[:4] == b"RIFF" and content[8:12] == b"WEBP"


@pytest.mark.usefixtures("unrendered")
def test_nothing_is_fetched_and_nothing_runs():
    text = report(full())
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags} and not any(name.startswith("on") for _, a in page.tags for name in a)
    assert all(str(a["src"]).startswith("data:image/") for _, a in page.tags if "src" in a)
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    bare = re.sub(r"data:image/\w+;base64,[^\"]+", "", text)
    assert "://" not in bare and "url(" not in bare and "@import" not in bare
    assert ("http-equiv", "Content-Security-Policy") in {item for tag, a in page.tags if tag == "meta" for item in a.items()}


@pytest.mark.parametrize(
    ("section", "without"),
    [
        ("quality", {"quality": None}),
        ("angles", {"residual": None}),
        ("patterns", {"examples": None}),
        ("calibration", {"account": None}),
        ("tilt", {"tilt_mrad": np.zeros((1, 2))}),
        ("convergence", {"history": ()}),
        ("warnings", {"account": account(warnings=())}),
        ("recipe", {"recipe": ""}),
    ],
)
@pytest.mark.usefixtures("unrendered")
def test_what_is_not_known_is_left_out(section, without):
    have, lack = full(), dataclasses.replace(full(), **without)
    gone = {"warnings", "calibration"} if section == "calibration" else {section}
    assert set(Page(report(have)).sections) - set(Page(report(lack)).sections) == gone


@pytest.mark.usefixtures("unrendered")
def test_one_slice_of_a_pure_phase_object_needs_few_pictures():
    result = make(states=1, slices=1, epochs=0, tilt_mrad=np.zeros((1, 2)), object=np.exp(1j * np.ones((1, 1, 30, 34))).astype(np.complex64))
    page = Page(report(result))
    assert set(page.sections) == ALWAYS and "pure phase" in page.text
    assert [tag for tag, _ in page.tags].count("img") == 4  # phase, two modes, positions


@pytest.mark.usefixtures("unrendered")
def test_many_slices_do_not_make_a_large_page():
    waves = np.exp(1j * np.random.default_rng(0).normal(0, 0.1, (1, 60, 30, 34))).astype(np.complex64)
    page = Page(report(make(states=1, object=waves, slice_thickness_A=np.full(60, 3.0))))
    choices = [attributes for tag, attributes in page.tags if tag == "input"]
    assert len(choices) == 24 and sum("checked" in a for a in choices) == 1 and {"slice1", "slice60"} & {str(a["id"]) for a in choices} == {"slice1"}
    assert "Slice 1 of 60" in page.text and "Slice 60 of 60" in page.text


@pytest.mark.usefixtures("unrendered")
def test_why_it_ended_is_said():
    notes = ("", "the beam drifts; say opr_modes = 1", "at rest")
    history = tuple(EpochRecord(0, "gradient", i + 1, 1.0, 0.1, 1.2 - i / 100, note) for i, note in enumerate(notes))
    text = Page(report(make(history=history))).text
    assert "held out 1.18" in text and "at rest" in text and "epoch 2: the beam drifts; say opr_modes = 1" in text


@pytest.mark.usefixtures("unrendered")
def test_positions_that_were_not_learned_have_no_shift():
    assert "learned" not in Page(report(dataclasses.replace(full(), account=account(moved=False)))).text


@pytest.mark.usefixtures("unrendered")
def test_foreign_text_is_text():
    evil = "<script>alert(1)</script>"
    rows = ((evil, evil, '"><img src=x>'),)
    told = account(calibration=rows, warnings=('"<img src=x>"',), device=evil)
    history = (EpochRecord(0, evil, 1, 1.0, 0.1, None, evil),)
    result = make(recipe=f'[data]\npath = "<b>scan.raw" # {evil}', history=history, account=told, versions={"ptycho": evil})
    page = Page(report(result))
    assert {"script", "b"}.isdisjoint(tag for tag, _ in page.tags) and page.text.count(evil) > 4 and '"<img src=x>"' in page.text
    assert all(str(a["src"]).startswith("data:") for _, a in page.tags if "src" in a)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ('[data]\npath = "/data/run.h5::/entry/data"', "run.h5"),
        ("[data]\npath = 'C:\\data\\run.raw'", "run.raw"),
        ("", "reconstruction"),
        ("not toml", "reconstruction"),
        ("[data]\n", "reconstruction"),
    ],
)
def test_the_page_is_named_after_the_data(recipe, name):
    assert data_name(make(recipe=recipe)) == name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run whose positions are learned."""
    folder = tmp_path_factory.mktemp("report")
    counts = np.random.default_rng(0).poisson(20, (6, 8, 32, 32)).astype(np.float32)
    counts *= np.hypot(*(np.indices((32, 32)) - 16)) < 9
    path = write_npy(folder, counts)
    code, _, err = run("reconstruct", path, *GIVEN, "--set", "solve.0.update.positions=1", "-o", folder / "run")
    assert code == 0, err
    return folder / "run"


def test_made_again_it_is_the_same(finished: Path, tmp_path: Path):
    written = (finished / "report.html").read_bytes()
    code, out, _ = run("report", finished, "-o", tmp_path / "again.html")
    assert (code, out) == (0, f"report: {tmp_path / 'again.html'}\n") and (tmp_path / "again.html").read_bytes() == written
    (finished / "report.html").unlink()
    assert run("report", finished / "result.h5").code == 0 and (finished / "report.html").read_bytes() == written


def test_a_run_keeps_what_the_page_needs(finished: Path):
    result = ptycho.load(finished)
    told = result.account
    assert told is not None and result.examples is not None
    sources = {name: source for name, _, source in told.calibration}
    assert sources["voltage_kV"].startswith("user") and sources["pixel_invA"].startswith("estimate")
    assert told.seconds > 0 and told.moved_A.shape == result.positions_A.shape and np.abs(told.moved_A).max() < 1
    assert all(warning in (finished / "log.txt").read_text() for warning in told.warnings)
    assert result.examples.measured_e.shape == (3, 32, 32) and result.examples.chi_squared[1] >= result.examples.chi_squared[0]
    assert result.examples.measured_e[0].sum() == pytest.approx(result.examples.modelled_e[0].sum(), rel=0.2)


@pytest.mark.usefixtures("unrendered")
def test_the_warnings_of_an_older_run_are_those_of_its_log(tmp_path: Path):
    ptycho.save(make(), tmp_path)
    (tmp_path / "log.txt").write_text("2026-11-27 04:57:18,030 WARNING too thin\n2026-11-27 04:57:18,031 INFO fine\n" * 2)
    assert run("report", tmp_path).code == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("too thin") == 1 and "fine" not in page.text


def test_without_a_result_there_is_no_page(tmp_path: Path):
    for where in (tmp_path, tmp_path / "nothing"):
        code, out, err = run("report", where)
        assert (code, out, err.count("\n")) == (4, "", 1) and str(where) in err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unrendered")
def test_where_nothing_can_be_written_it_says_so(finished: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "a.html", tmp_path / "none" / "a.html", tmp_path):
        code, out, err = run("report", finished, "-o", target)
        assert (code, out, err.count("\n")) == (5, "", 1) and str(target) in err, err
    assert sorted(os.listdir(tmp_path)) == ["file"]
