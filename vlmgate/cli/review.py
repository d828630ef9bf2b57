"""`vlmgate review`: the page on which people look at what was routed to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmgate.cli.options import Given, Quiet, ResultArgument, command
from vlmgate.config import ReviewConfig
from vlmgate.config.options import Opt, build, options_of
from vlmgate.errors import count, plain
from vlmgate.report.terminal import TerminalProgress, console, reader_may_leave

if TYPE_CHECKING:
    from vlmgate.review import Made


@command(options_of(ReviewConfig), short_help="Write a page to look at the routed images.")
def review(
    given: Given,
    result: ResultArgument,
    serve: Annotated[bool, Opt("Serve the page on this machine; verdicts are written to disk at once.")] = False,
    port: Annotated[int, Opt("For --serve; 0 = any that is free.", ge=0, le=65535)] = 0,
    quiet: Quiet = False,
) -> None:
    """Write a page to look at the routed images, the worst first, and to say of each reading whether it is true.

    The folder RESULT_review opens from disk without a network: open its index.html. Verdicts are downloaded from the
    page as verdicts.csv, or with --serve written into the folder as they are made. Exit codes: 0 done, 1 fatal, 2
    usage, 3 done but some images are missing or have changed since they were read.
    """
    options = build(ReviewConfig, given)
    from vlmgate.review import make_review
    from vlmgate.review.make import held, output_of
    from vlmgate.store.result import read_provenance

    read_provenance(result)  # before anything is left beside it
    progress = TerminalProgress(console(stderr=True), quiet=quiet)
    with held(output_of(result, options)):
        try:
            made = make_review(
                result, options, reuse=serve, begin=lambda total: progress.start(total, 0), advance=progress.advance
            )
        finally:
            progress.stop()
        with reader_may_leave():
            _tell(made, options.accepted, options.seed)
        if serve:
            _serve(made, port)
            return
    with reader_may_leave():
        print(f"Next: open {_address(made.out)} in a browser.")
    raise typer.Exit(3 if any(one.kind != "unreadable" for _, one in made.lacking) else 0)


def _tell(made: Made, wanted: int, seed: int) -> None:
    audits = sum(item.audit for item in made.items)
    print(f"{count(len(made.items) - audits, 'image')} routed to human, the worst first.")
    if audits:
        print(f"{count(audits, 'image')} of {made.accepted:,} auto-accepted, drawn at random (seed {seed}).")
    if audits < wanted:
        print(f"No more than {made.accepted:,} were auto-accepted, so the audit is smaller than --accepted {wanted:,}.")
    for kind, words in (
        ("missing", "not in the image folder any more"),
        ("changed", "changed since they were read, and not shown"),
    ):
        lacking = [item.record.file_name for item, one in made.lacking if one.kind == kind]
        if lacking:
            print(plain(f"{count(len(lacking), 'image')} {words}, first: {lacking[0]}"))
    told = f"{made.out} ({count(len(made.items), 'image')}, {made.size_bytes / 1e6:,.1f} MB)"
    print(plain(f"Using {told}, which was made of this result." if made.reused else f"Wrote {told}."))


def _address(out: Path) -> str:
    return (out if out.suffix == ".html" else out / "index.html").resolve().as_uri()


def _serve(made: Made, port: int) -> None:
    """Serve until Ctrl-C, SIGTERM or a closed terminal; every verdict that was acknowledged is on disk by then."""
    from vlmgate.review.server import ReviewServer
    from vlmgate.run.control import Interrupted, Signals

    server = ReviewServer(made, port)
    path, before = server.verdicts.path, len(server.verdicts.given)
    with reader_may_leave():
        if before:
            print(f"{count(before, 'verdict')} given before, in {path}.")
        print(f"Open {server.address}")
        print(f"Verdicts go to {path}. Ctrl-C ends it; the same command goes on where it stopped.", flush=True)
    try:
        with Signals().installed():
            server.serve_forever()
    except Interrupted:
        pass
    finally:
        with server.lock:  # let the verdict in hand arrive
            server.server_close()
    with reader_may_leave():
        print(f"Stopped. {count(len(server.verdicts.given), 'verdict')} in {path}.")
