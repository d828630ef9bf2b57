"""`vlmgate merge`: one result of the results of all shards of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmgate.cli.options import MaxRouted, Quiet, ScanFormat, command
from vlmgate.cli.scan import code_of, end, max_routed_of, print_result
from vlmgate.config import OnDrift
from vlmgate.config.options import Opt, Panel
from vlmgate.report.terminal import reader_may_leave, say


@command(short_help="Make one result of the shards of a folder.")
def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(metavar="PART...", help="Parquet files that `vlmgate scan --shard` wrote.", show_default=False),
    ],
    out: Annotated[Path, Opt("Parquet file to write.", short="-o")],
    incomplete: Annotated[
        bool, Opt("Merge what is there; images that are missing are marked unread.", panel=Panel.READ)
    ] = False,
    gate: Annotated[
        Path | None, Opt("Where the gate file of the parts is now.", panel=Panel.READ, usual="where it was")
    ] = None,
    on_drift: Annotated[
        OnDrift | None,
        Opt("As for scan, of the whole folder.", panel=Panel.SPLIT, rare=True, usual="as the parts were made"),
    ] = None,
    max_routed: MaxRouted = None,
    format: ScanFormat = "table",
    quiet: Quiet = False,
) -> None:
    """Make one result of the results of all shards of a folder, as one scan of it would have written.

    No model reads and no image is opened. Budgets, copies and drift are those of the whole folder. Exit codes: 0 done,
    1 fatal, 2 usage or parts that do not belong together, 3 done but some images were not or could not be read, 4 more
    than --max-routed, 5 images unlike those that the gate was calibrated on.
    """
    from vlmgate.run.merge import merge as run
    from vlmgate.run.rescore import check_output
    from vlmgate.store.result import write_result

    most = max_routed_of(max_routed)
    for part in parts:
        check_output(out, part)
    done = run(parts, incomplete=incomplete, gate_file=gate, on_drift=on_drift)
    write_result(out, done.records, done.provenance)
    if not quiet:
        for note in done.notes:
            say(note)
    code = code_of(done.records, most, done.provenance)
    with reader_may_leave():
        print_result(done.records, done.provenance, out, format, code)
    end(code, max_routed)
