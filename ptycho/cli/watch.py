"""``ptycho watch``: a page that shows a run while it goes on."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, here or mounted from elsewhere.")],
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="On 127.0.0.1 (default: a free one).")] = 0,
) -> None:
    """Serve one page with the run's phase, probe and loss, which keeps itself up to date; on this machine alone, until Ctrl-C."""
    from ptycho.errors import DataError
    from ptycho.watch import HOST, Watch

    if not run.is_dir():
        raise DataError(f"{run}: {'this is a file' if run.exists() else 'no such folder'}; name a run's folder, as in ptycho watch run")
    try:
        page = Watch(run, port)
    except OSError as error:
        message = f"port {port} of {HOST}: {error.strerror or error}; take another, or leave --port out"
        raise typer.BadParameter(message, param_hint="--port") from None
    # A script's background jobs are started with the interrupt ignored; TERM ends it as well as Ctrl-C does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    typer.echo(f"live: {page.url}  (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        page.serve()
