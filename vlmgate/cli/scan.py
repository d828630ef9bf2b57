"""`vlmgate scan`: read a folder and split it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vlmgate.cli.options import Given, MaxRouted, Quiet, ScanFormat, command
from vlmgate.config.options import Opt, Panel
from vlmgate.config.scan import SCAN, scan_config
from vlmgate.errors import DriftError, UsageError
from vlmgate.report.terminal import TerminalProgress, complain, console, crashes_to, reader_may_leave

if TYPE_CHECKING:
    from vlmgate.data import Record
    from vlmgate.run.outcome import ScanResult

_STDOUT = _STDIN = Path("-")


@command(SCAN, toml=True, short_help="Read a folder of images and split it.")
def scan(
    given: Given,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of images (searched to the bottom), one image, or - for a list of files from stdin.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        Opt(
            "Parquet file to write; - with --format csv: rows to stdout.",
            short="-o",
            usual="FOLDER's name.parquet, here; of a list, listed.parquet",
        ),
    ] = None,
    null: Annotated[
        bool,
        Opt("The list on stdin is separated by NUL, as find -print0 does.", panel=Panel.READ, short="-0", rare=True),
    ] = False,
    max_routed: MaxRouted = None,
    format: ScanFormat = "table",
    quiet: Quiet = False,
    verbose: Annotated[bool, Opt("Show the log on stderr, too.", short="-v", rare=True)] = False,
) -> None:
    """Read every image of FOLDER K times and split them into auto-accepted and routed to human.

    Writes FOLDER.parquet (listed.parquet of a list), a log and a journal. The same command resumes where it was
    stopped. Exit codes: 0 done, 1 fatal, 2 usage, 3 done but some images could not be read (they are routed to a
    person), 4 more than --max-routed, 5 images unlike those that the gate was calibrated on, 130 Ctrl-C.
    """
    source = _listed(null) if folder == _STDIN else folder
    if folder != _STDIN and null:
        raise UsageError("--null is for a list on stdin; give - in the place of FOLDER, or leave it out.")
    if out == _STDOUT and format != "csv":
        raise UsageError("-o - writes rows to stdout; say --format csv with it, or give -o a Parquet file.")
    settings = scan_config(source, None if out == _STDOUT else out, given)
    most = max_routed_of(max_routed)
    if verbose:
        _log_to_stderr()
    from vlmgate.run.control import Aside
    from vlmgate.run.loop import scan as run

    told = Aside(TerminalProgress(console(stderr=True), quiet=quiet))
    with crashes_to(settings.out.with_suffix(".log")), told as progress:
        result = run(settings, progress)
    code = _exit_code(result, most)
    with reader_may_leave():
        error = str(result.error) if result.error else None
        if format == "json" or not isinstance(result.error, DriftError):  # then there is no result
            print_result(result.decided, result.provenance, result.outputs.parquet, format, code, error, result.whole)
    if result.error:
        complain(str(result.error))
    end(code, max_routed)


def end(code: int, max_routed: str | None) -> NoReturn:
    """Leave with an exit code, and say what 4 means."""
    if code == 4:
        complain(f"more images were routed to a person than --max-routed {max_routed} allows.")
    raise typer.Exit(code)


def _log_to_stderr() -> None:
    from vlmgate.run.plan import PlainFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.raiseExceptions = False  # a closed stderr is no reason to fail


def _listed(null: bool) -> tuple[Path, ...]:
    """Return the files that stdin names."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- takes a list of files from stdin; pipe one in: find . -name '*.jpg' | vlmgate scan -")
    from vlmgate.images import read_list

    return read_list(sys.stdin.buffer.read(), null=null)


def max_routed_of(text: str | None) -> tuple[float | None, int | None]:
    """Return --max-routed as a share and a number, one of which is None."""
    from vlmgate.gate.rules import parse_share_or_count

    return (None, None) if text is None else parse_share_or_count(text, "--max-routed")


def _exit_code(result: ScanResult, limit: tuple[float | None, int | None]) -> int:
    if result.interrupted is not None:
        return 128 + result.interrupted
    if result.error is not None:
        return result.error.exit_code
    return code_of(result.decided, limit, result.provenance)


def code_of(records: Sequence[Record], limit: tuple[float | None, int | None], provenance: Mapping[str, Any]) -> int:
    """Return the exit code of a result, the first that holds.

    5 where the images do not look like those that the gate was calibrated on, 4 beyond --max-routed, 3 where images are
    missing or could not be read.
    """
    from vlmgate.data import Route
    from vlmgate.gate.drift import has_alarm
    from vlmgate.gate.reasons import UNREAD

    if has_alarm(provenance.get("drift")):
        return 5
    routed = sum(r.route == Route.HUMAN_REVIEW for r in records)
    share, count = limit
    if (share is not None and routed > share * len(records)) or (count is not None and routed > count):
        return 4
    return 3 if not provenance["complete"] or any(r.reason in UNREAD for r in records) else 0


def print_result(
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    out: Path,
    format: str,
    code: int = 0,
    error: str | None = None,
    whole: Iterable[Record] | None = None,
) -> None:
    """Print what `--format` asks for; `whole` are the rows with their captions, where `records` have none."""
    from vlmgate.export.export import print_csv
    from vlmgate.report.summary import print_summary, summary_json

    if format == "csv":
        print_csv(records if whole is None else whole)
    elif format == "json":
        print(summary_json(records, provenance, out, code, error))
    else:
        print_summary(records, provenance, out, console())
