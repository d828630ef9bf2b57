"""The edges of the program: what it says on stderr, and how it ends. Call `errors_in_one_line` around a command."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from vlmgate.errors import VlmgateError, one_line, plain

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    class PatientConsole(Console):
        """A console whose closed pipe is an error like any other; rich's own would end the program."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError("the reader has gone")

    console = PatientConsole(stderr=stderr, markup=False, highlight=False, emoji=False)
    console.width = max(console.width, 40)
    return console


_IN_PLAIN_LETTERS = {
    **dict.fromkeys("–—·•━─", "-"),
    **{"≤": "<=", "≥": ">=", "→": "->", "←": "<-", "…": "...", "×": "x", "±": "+-", "α": "alpha", "≈": "~"},
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("’‘", "'"),
}


def in_plain_letters() -> str:
    """Return the name of an error handler that writes our own signs in letters that every code page has.

    What comes from a file name or a caption, and a code page does not have, is escaped.
    """

    def replaced(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        lacking = error.object[error.start : error.end]
        escaped = (c.encode("ascii", "backslashreplace").decode("ascii") for c in lacking)
        return "".join(_IN_PLAIN_LETTERS.get(c, e) for c, e in zip(lacking, escaped, strict=True)), error.end

    codecs.register_error("vlmgate", replaced)
    return "vlmgate"


def complain(text: str) -> None:
    """Print one line on stderr for an error, whatever a path or an exception put into it."""
    say(f"vlmgate: error: {' '.join(text.split())}")


def say(text: str) -> None:
    """Print one line on stderr, whatever a file name put into it, if there is anybody to read it."""
    with contextlib.suppress(OSError):
        print(plain(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Go on where stdout cannot be written (`| head`, a full disk): the exit code tells what was done."""
    try:
        yield
        if sys.stdout is not None:  # closed by whoever started it (`>&-`)
            sys.stdout.flush()
    except OSError:
        give_up_stdout()


def give_up_stdout() -> None:
    """Let what is still to be written to stdout go nowhere, so that the interpreter does not fail on it as it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except VlmgateError as error:
        fail(str(error), error.exit_code)


@contextlib.contextmanager
def crashes_to(log: Path) -> Iterator[None]:
    """Turn what nobody expected into one line that names the log, where the traceback is."""
    try:
        yield
    except (VlmgateError, typer.Exit):
        raise
    except Exception as error:
        fail(f"internal error ({one_line(error)}). The traceback is in {log}; the same command resumes.", 1)


def fail(text: str, code: int) -> NoReturn:
    complain(text)
    raise typer.Exit(code)
