"""The command line: one thin function per verb. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys

import typer

from ptycho.cli.info import info
from ptycho.cli.reconstruct import reconstruct
from ptycho.cli.simulate import simulate
from ptycho.errors import PtychoError

app = typer.Typer(
    name="ptycho",
    help="4D-STEM ptychography: from a pixelated-detector file to a phase image. Try: ptycho reconstruct demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(reconstruct)
app.command()(info)
app.command()(simulate)


@app.callback()
def common(debug: bool = typer.Option(False, "--debug", help="Show a traceback when something fails.")) -> None:
    """What holds for all verbs."""


def main() -> None:
    """Entry point: errors become one line on stderr and their exit code; a traceback appears only with --debug."""
    # Before torch loads: OpenMP threads that spin while they wait make every other process, and themselves, 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    # It may stand anywhere on the line; the group's option alone would have to come before the verb.
    sys.argv = [sys.argv[0], *(["--debug"] if debug else []), *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        app()
    except PtychoError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if debug:
            raise
        _fail(f"this is a bug, please report it: {type(error).__name__}: {error} (run again with --debug for the place)", 1)


def _fail(message: str, code: int) -> None:
    print("ptycho: error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
