"""The command line: options → configurations, results → exit codes. With its edges, the only package that exits.

Knows what a user may type and what they are told; knows nothing of how any of it is done. Heavy imports stay inside the
commands, so that `vlmgate --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vlmgate.cli import (  # registers their commands
    calibrate,
    compare,
    doctor,
    export,
    help,
    merge,
    results,
    review,
    scan,
)
from vlmgate.cli.options import app
from vlmgate.report.terminal import in_plain_letters, reader_may_leave
from vlmgate.version import __version__

__all__ = ["app", "calibrate", "compare", "doctor", "export", "help", "main", "merge", "results", "review", "scan"]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"vlmgate {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; what a terminal cannot show is put in other words, or escaped, rather than raised."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=in_plain_letters())
    with reader_may_leave():
        app()
