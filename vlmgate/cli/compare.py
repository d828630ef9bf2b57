"""`vlmgate compare`: is the larger model worth it on our images?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmgate.cli.calibrate import stopped
from vlmgate.cli.options import Format, Given, Quiet, command
from vlmgate.config.calibrate import COMPARE, compare_configs
from vlmgate.config.options import Opt
from vlmgate.report.terminal import console, crashes_to, reader_may_leave


@command(COMPARE, toml=True, short_help="Set models side by side on labelled images.")
def compare(
    given: Given,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="LABELLED|RESULT...", help="Labelled folder, results, or both.", show_default=False),
    ],
    out: Annotated[Path, Opt("Page to write; the readings lie next to it.", short="-o")] = Path("comparison.html"),
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Set models side by side on labelled images: accuracy, risk, cost, speed, memory; and whether one can tell.

    Every --model reads LABELLED in turn, with the same seed and options, through a journal that resumes; results of
    earlier runs (the readings of `vlmgate calibrate`, scans with --choices) are taken as they are. Differences are from
    the first model. Exit codes: 0 done, 1 fatal, 2 usage, 130 Ctrl-C.
    """
    settings, reading, question = compare_configs(sources, out, given)
    from vlmgate.calibration.compare.run import run_comparison
    from vlmgate.calibration.compare.text import comparison_json, print_comparison
    from vlmgate.calibration.run import Stopped
    from vlmgate.calibration.text import CalibrationProgress

    progress = CalibrationProgress(console(stderr=True), quiet=quiet)
    with crashes_to(out.with_suffix(".log")):
        done = run_comparison(settings, reading, progress, question=question)
    if isinstance(done, Stopped):
        stopped(done.result)
    with reader_may_leave():
        if format == "json":
            print(comparison_json(done.found, done.labels, done.results, done.page))
        else:
            print_comparison(done.found, done.labels, done.results, done.page, console())
