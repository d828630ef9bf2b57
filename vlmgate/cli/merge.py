"""`vlmgate merge`: one result of the results of all shards of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmgate.cli.options import MaxRoutedOption, QuietOption, ScanFormat, ScanFormatOption, app
from vlmgate.cli.scan import code_of, max_routed_of, print_result
from vlmgate.report.terminal import complain, errors_in_one_line, reader_may_leave, say


@app.command(short_help="Make one result of the shards of a folder.")
def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(metavar="PART...", help="Parquet files that `vlmgate scan --shard` wrote.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.", show_default=False)],
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Merge what is there; images that are missing are marked unread.")
    ] = False,
    gate: Annotated[
        Path | None, typer.Option(help="Where the gate file of the parts is now. [default: where it was]")
    ] = None,
    max_routed: MaxRoutedOption = None,
    format: ScanFormatOption = ScanFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Make one result of the results of all shards of a folder, as one scan of it would have written.

    No model reads and no image is opened. Budgets, copies and drift are those of the whole folder. Exit codes: 0 done,
    1 fatal, 2 usage or parts that do not belong together, 3 done but some images were not or could not be read, 4 more
    than --max-routed.
    """
    with errors_in_one_line():
        from vlmgate.run.merge import merge as run
        from vlmgate.run.rescore import check_output
        from vlmgate.store.result import write_result

        most = max_routed_of(max_routed)
        for part in parts:
            check_output(out, part)
        done = run(parts, incomplete=incomplete, gate_file=gate)
        write_result(out, done.records, done.provenance)
    if not quiet:
        for note in done.notes:
            say(note)
    code = code_of(done.records, most, complete=done.provenance["complete"])
    with reader_may_leave():
        print_result(done.records, done.provenance, out, format, code)
    if code == 4:
        complain(f"more images were routed to a person than --max-routed {max_routed} allows.")
    raise typer.Exit(code)
