"""`vlmgate export`: hand a result on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vlmgate.cli.options import Given, Quiet, ResultArgument, command
from vlmgate.config.options import Opt, build, options_of
from vlmgate.errors import StoreError, count
from vlmgate.export.targets import Options, Target
from vlmgate.report.terminal import give_up_stdout, say


@command(options_of(Options), short_help="Write a result for a spreadsheet or a program.")
def export(
    given: Given,
    result: ResultArgument,
    to: Annotated[Target, Opt("What is to read it.")],
    out: Annotated[
        Path | None, Opt("File to write, - for stdout.", short="-o", usual="stdout; RESULT.xlsx; RESULT.imagefolder")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a result for a spreadsheet, a program, a labelling tool or a training set: to a file or stdout."""
    from vlmgate.export.export import export as run
    from vlmgate.export.export import place_of

    options = build(Options, given)
    try:
        done = run(result, to, place_of(result, to, out), options)
    except BrokenPipeError:  # the reader has what it wanted
        return
    except OSError as error:
        give_up_stdout()
        raise StoreError(f"stdout: cannot be written ({error.strerror}); make room, or give -o FILE.") from error
    if not quiet:
        for note in done.notes:
            say(note)
        if done.written:
            say(f"Wrote {' and '.join(map(str, done.written))} from {count(done.rows, 'row')}.")
