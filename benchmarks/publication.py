"""Publication-grade tests on simulated data, numbered as in the physics notes: figures for docs/results.md.

    python benchmarks/publication.py T01 T07 --table docs/results.md

Without names all run, in one to two hours on two cores, none for more than about ten minutes. Each prints its rows and puts them into the
table, in place of earlier rows of the same test. "twin" cases have the wrong model and must fail: their threshold is the other way
round. Exit code 1 when a row does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import publication_direct as direct
import publication_thick as thick
import publication_thin as thin
from publication_rows import Row, series


def t08() -> Iterator[Row]:
    """Iterative, then direct."""
    yield from thin.t08()
    yield from direct.t08()


TESTS: dict[str, Callable[[], Iterator[Row]]] = {
    "T01": thin.t01, "T02": thin.t02, "T03": thick.t03, "T04": thick.t04, "T05": thick.t05, "T06": thick.t06, "T07": thin.t07, "T08": t08,
    "T10": thick.t10, "T12": thick.t12, "T15": direct.t15, "T16": direct.t16, "T17": thin.t17, "T22": thick.t22,
}  # fmt: skip
HEADER = ("| test | case | metric | value | asked | holds | seconds |", "|---|---|---|---|---|---|---|")


def put(table: Path, test: str, rows: list[Row]) -> None:
    """Put the rows of a test into the table, tests in order; the text around the table stays."""
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    if HEADER[0] not in lines:
        lines += [*([""] if lines else []), *HEADER]
    first = lines.index(HEADER[0]) + 2
    last = first
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    kept = [line for line in lines[first:last] if not line.startswith(f"| {test} ")]
    kept += ["| " + " | ".join(row.cells) + " |" for row in rows]
    lines[first:last] = sorted(kept, key=lambda line: line.split("|")[1].strip())  # stable: rows of one test stay as they came
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", choices=[*TESTS, []], metavar="TEST", help=", ".join(TESTS))
    parser.add_argument("--table", type=Path, help="markdown file whose table takes the rows")
    a = parser.parse_args()
    wrong = 0
    for test in a.tests or TESTS:
        began = time.perf_counter()
        try:
            rows = series(TESTS[test]())
        except Exception as error:  # one test that fails must not take the others with it
            print(f"{test}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            wrong += 1
            continue
        print(f"{test}: {time.perf_counter() - began:.0f} s with the simulation", file=sys.stderr, flush=True)
        wrong += sum(not row.holds for row in rows)
        if a.table is not None:
            put(a.table, test, rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
