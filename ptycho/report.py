"""report.html: one page that says what a run did and how far to trust it, from its result alone."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from ptycho.io.result_file import load_result
from ptycho.report_page import page
from ptycho.report_sections import all_sections
from ptycho.result import Result

REPORT = "report.html"
#: A line of log.txt: date, time, level, message.
_WARNING = re.compile(r"\S+ \S+ WARNING (.+)")


def report(result: Result, warnings: Sequence[str] = ()) -> str:
    """The page about ``result`` as self-contained HTML; ``warnings`` stand in for those of a result that has no account."""
    told = warnings if result.account is None else result.account.warnings
    sections = [section for section in all_sections(result, told) if section is not None]
    version = result.versions.get("ptycho", "")
    return page(data_name(result), f"Reconstructed by ptycho {version}".strip(), sections)


def report_of(run: Path) -> str:
    """The page about a finished run, from its folder or its result.h5. Raises DataError when there is no sound result."""
    result = load_result(run)
    folder = run if run.is_dir() else run.parent
    if result.account is not None:
        return report(result)
    try:
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        log = ""
    return report(result, logged_warnings(log))


def data_name(result: Result) -> str:
    """The name of the data file, from the recipe."""
    try:
        path = str(tomllib.loads(result.recipe)["data"]["path"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return "reconstruction"
    # Written on Windows, read elsewhere: both separators count.
    return PureWindowsPath(path.partition("::")[0]).name or "reconstruction"


def logged_warnings(log: str) -> list[str]:
    """The warnings in a log, each once."""
    return list(dict.fromkeys(match[1] for match in map(_WARNING.fullmatch, log.splitlines()) if match))
