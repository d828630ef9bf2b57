"""`vlmgate calibrate`: from labelled images to a gate with a stated risk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vlmgate.cli.options import Format, Given, Quiet, command
from vlmgate.config.calibrate import CALIBRATE, calibrate_configs
from vlmgate.config.options import Opt
from vlmgate.report.terminal import complain, console, crashes_to, reader_may_leave, say

if TYPE_CHECKING:
    from vlmgate.run.outcome import ScanResult


@command(CALIBRATE, toml=True, short_help="Choose a gate from labelled images.")
def calibrate(
    given: Given,
    source: Annotated[
        Path, typer.Argument(metavar="LABELLED", help="Labelled folder, or a result with --labels.", show_default=False)
    ],
    out: Annotated[Path, Opt("Gate file to write.", short="-o")] = Path("gate.toml"),
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Choose a gate from labelled images: how well each score works, how many samples it takes, what can be promised.

    Reads LABELLED once, through a journal that resumes, and writes the gate file, the readings (GATE.parquet) and a
    page (GATE_calibration/index.html). `vlmgate scan FOLDER --gate GATE` then splits by it. Exit codes: 0 a gate was
    written (a later try on the same labels promises nothing), 1 fatal, 2 usage, or the labels cannot support what was
    asked, 130 Ctrl-C.
    """
    settings, reading, costs, question = calibrate_configs(source, out, given)
    from vlmgate.calibration.run import Stopped
    from vlmgate.calibration.run import calibrate as run
    from vlmgate.calibration.text import CalibrationProgress, print_study, study_json

    progress = CalibrationProgress(console(stderr=True), quiet=quiet)
    with crashes_to(out.with_suffix(".log")):
        done = run(settings, reading, costs, progress, question=question)
    if isinstance(done, Stopped):
        stopped(done.result)
    code = 0 if done.gate is not None else 2
    with reader_may_leave():
        if format == "json":
            print(study_json(done.found, done.labels, done.seconds, done.written, code))
        else:
            print_study(done.found, done.labels, done.seconds, done.written, console())
    if done.unpromised:
        say(f"vlmgate: {out} promises nothing: {done.unpromised}")
    if code:
        former = f" {out} is still the former gate." if out.exists() else ""
        complain(f"no gate was written: {done.why_none} The readings stay in {done.result}.{former}")
    raise typer.Exit(code)


def stopped(result: ScanResult) -> NoReturn:
    """End after readings that were not completed."""
    if result.error is not None:
        raise result.error
    say("Stopped. The same command goes on where it was.")
    raise typer.Exit(128 + (result.interrupted or 0))
