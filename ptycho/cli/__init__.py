"""The command line: one thin function per verb. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer

from ptycho import __version__
from ptycho.cli.benchmark import benchmark
from ptycho.cli.calibrate import calibrate
from ptycho.cli.check import check
from ptycho.cli.convert import convert
from ptycho.cli.doctor import doctor
from ptycho.cli.exchange import export, import_
from ptycho.cli.image import image
from ptycho.cli.info import info
from ptycho.cli.new import new
from ptycho.cli.reconstruct import reconstruct
from ptycho.cli.report import report
from ptycho.cli.simulate import simulate
from ptycho.cli.status import status
from ptycho.cli.submit import submit
from ptycho.cli.tune import tune
from ptycho.cli.watch import watch
from ptycho.errors import OutOfMemoryError, PtychoError, Stopped

#: Exit code of a command that Ctrl-C ended, as shells have it: 128 + SIGINT.
INTERRUPTED = 130

# The class is not public, and typer has moved it between its versions.
_UsageError: Any = typer.BadParameter.__base__

# No rich markup: boxes drawn round an error make it ten lines that no log file can hold.
app = typer.Typer(
    name="ptycho",
    help="4D-STEM ptychography: from a pixelated-detector file to a phase image. Try: ptycho reconstruct demo, ptycho new FILE",
    epilog="Exit codes: 0 ok, 1 bug, 2 usage, 3 recipe, 4 input data, 5 output, 6 memory, 7 diverged, 75 stopped: start it again, 130 interrupted.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command(short_help="Reconstruct a recipe, a data file, or the demo.")(reconstruct)
app.command(short_help="Write a commented recipe by asking a file.")(new)
app.command(short_help="What is in a file, and what is missing.")(info)
app.command(short_help="Find flips, rotation, defocus and pixel from the data.")(calibrate)
app.command(short_help="Is all well with a run, before it begins?")(check)
app.command(short_help="Search for a recipe's best values.")(tune)
app.command(short_help="A live page about a run.")(watch)
app.command(short_help="The page about a run, made again.")(report)
app.command(short_help="Virtual detectors, CoM, DPC and iDPC as pictures.")(image)
app.command(short_help="Write a data set as one HDF5 file.")(convert)
app.command(short_help="Write a result as another program's file.")(export)
app.command("import", short_help="Another program's parameters or result as ours.")(import_)
app.command(short_help="Write a data set with known truth.")(simulate)
app.command(short_help="Queue runs: Slurm jobs, arrays, or here.")(submit)
app.command(short_help="How runs stand: state, epoch, loss, time left.")(status)
app.command(short_help="Versions, devices, speed, and what is wrong here.")(doctor)
app.command(short_help="How fast this machine is: passes, transforms, memory.")(benchmark)


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """What holds for all verbs."""
    if version:
        typer.echo(f"ptycho {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main() -> None:
    """Entry point: errors become one line on stderr and their exit code; a traceback appears only with --debug."""
    # Before torch loads: OpenMP threads that spin while they wait make every other process, and themselves, 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "MASTER_ADDR" in os.environ and "--debug" not in sys.argv:
        # Of several processes: where torch's own words about a lost connection are a page of addresses, ours are one line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no "Å" must not stop a run
    # It may stand anywhere on the line; the group's option alone would have to come before the verb.
    debug = "--debug" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        code = app(words, prog_name="ptycho", standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        where = "ptycho" if error.ctx is None else error.ctx.command_path
        _fail(f"{error.format_message().rstrip('.')}; see {where} --help", 2)
    except PtychoError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code, "" if isinstance(error, Stopped) else "error: ")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever reads this has seen enough (ptycho info FILE | head); the interpreter's own flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError as error:
        if debug:
            raise
        _fail(f"out of memory: {error}; bin or crop the patterns, or use a machine with more memory", OutOfMemoryError.exit_code)
    except Exception as error:
        if debug:
            raise
        _fail(f"this is a bug, please report it: {type(error).__name__}: {error} (run again with --debug for the place)", 1)
    if code == INTERRUPTED:  # newer typers make Ctrl-C an exit code themselves
        _fail("interrupted; there is no result of this run", INTERRUPTED)
    if code:
        sys.exit(code)


def _fail(message: str, code: int, kind: str = "error: ") -> None:
    print(f"ptycho: {kind}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
