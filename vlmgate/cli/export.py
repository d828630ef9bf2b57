"""`vlmgate export`: hand a result on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmgate.cli.options import ResultArgument, app
from vlmgate.errors import StoreError
from vlmgate.export.targets import Only, Options, Target
from vlmgate.report.terminal import errors_in_one_line, give_up_stdout, say


@app.command(short_help="Write a result for a spreadsheet or a program.")
def export(
    result: ResultArgument,
    to: Annotated[Target, typer.Option("--to", help="What is to read it.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write, - for stdout. [default: stdout; RESULT.xlsx; RESULT.imagefolder]",
            show_default=False,
        ),
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Leave out the rest.")] = None,
    columns: Annotated[str | None, typer.Option(help="Which columns, in this order, separated by commas.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that was scanned, for thumbnails and imagefolder. [default: as RESULT says]"),
    ] = None,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="xlsx: a small picture in each row.")] = False,
    image_root: Annotated[
        str | None, typer.Option(help="label-studio: what comes before file names. [default: /data/local-files/?d=]")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="imagefolder: hard links instead of copies.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Write a result for a spreadsheet, a program, a labelling tool or a training set: to a file or stdout."""
    with errors_in_one_line():
        from vlmgate.export.export import export as run
        from vlmgate.export.export import place_of

        options = Options(only, columns, images, thumbnails, image_root, link, overwrite)
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
            say(f"Wrote {' and '.join(map(str, done.written))} from {done.rows:,} row{'s' * (done.rows != 1)}.")
