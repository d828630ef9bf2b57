"""What a terminal shows of any command: the header and progress of a run, messages, and how the command ends.

Call `errors_in_one_line` around a command, `console` for its terminal, and `TerminalProgress` during a run. What comes
from an image, a caption or a file name is never read as markup, and control characters are shown, not sent.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from vlmgate.config import BUILTIN, ScanConfig
from vlmgate.errors import VlmgateError, one_line, plain, shorten
from vlmgate.version import __version__

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from vlmgate.data import ModelInfo
    from vlmgate.gate.rules import Gate

BUILTIN_NOTICE = (
    "The built-in model knows rendered sample parts only; of your own images it says nothing worth having. "
    "Name a real one: --model FOLDER or --model HUB_ID (see `vlmgate help models`)."
)


def notices(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what whoever looks at a result must know of its model, wherever they look at it."""
    return (BUILTIN_NOTICE,) if (provenance.get("model") or {}).get("model") == BUILTIN else ()


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


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a text that is never read as markup, and never cut at the edge of the terminal."""
    from rich.text import Text

    console.print(Text(plain(text), style=style), soft_wrap=True)


def header_line(model: Mapping[str, Any] | None, gate: Gate, num_samples: int, first_samples: int | None = None) -> str:
    """Return the line that opens a run and its summary."""
    fewest = "" if first_samples is None else f"{first_samples} to "
    parts = [f"vlmgate {__version__}"]
    if model:
        revision = f"@{model['revision'][:7]}" if model.get("revision") else ""
        where = "model server" if model.get("server") else f"{model['device']} {model['dtype']}"
        parts += [f"{short_model(model['model'])}{revision}", where]
    parts += [f"{fewest}{num_samples} samples", gate.describe()]
    return plain(" · ".join(parts))


def short_model(model: str) -> str:
    return "built-in model" if model == BUILTIN else Path(model).name or model


class TerminalProgress:
    """Header, messages and a bar on stderr; where stderr is no terminal, one plain line a minute instead of the bar."""

    def __init__(self, console: Console, *, quiet: bool = False, every: float = 60.0) -> None:
        self.console, self.quiet, self.every = console, quiet, every
        self._bar: Progress | None = None
        self._total = self._done = self._done_before = 0
        self._begun = self._last = time.monotonic()

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None:
        sampling, facts = config.sampling, asdict(model) if model else None
        self.message(header_line(facts, gate, sampling.num_samples, sampling.first_samples))
        if config.model.model == BUILTIN:
            self.message(BUILTIN_NOTICE)

    def message(self, text: str) -> None:
        if not self.quiet:
            print_line(self.console, text)

    def start(self, total: int, done: int) -> None:
        self._begun = time.monotonic()
        if not self._total:  # a folder that is watched begins again and again
            self._last = self._begun
        self._total, self._done, self._done_before = total, done, done
        if self.quiet or not self.console.is_terminal:
            return
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("reading"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=900,  # seconds; a shorter memory shows no estimate between slow batches
            transient=True,
            redirect_stdout=False,  # or stdout would be what it was when the bar began, whatever became of it since
            redirect_stderr=False,
        )
        self._bar.add_task("reading", total=total, completed=done)
        self._bar.start()

    def advance(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], images)
        elif now - self._last >= self.every:
            self._last = now
            rate = (self._done - self._done_before) / max(1e-9, now - self._begun)
            left = (self._total - self._done) / rate / 60 if rate else float("inf")
            self.message(f"{self._done:,} of {self._total:,} files, {rate:.2f} files/s, about {left:,.0f} min left")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


# --- messages, and how a command ends ---------------------------------------------------------------------------------


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
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = shorten(os.path.basename(os.fsdecode(error.filename or "")), 60)  # noqa: PTH119 - it may be bytes
        fail(f"{name}: the name is longer than this disk allows; give shorter names, such as another -o.", 2)


@contextlib.contextmanager
def crashes_to(log: Path) -> Iterator[None]:
    """Turn what nobody expected into one line that names the log, where the traceback is."""
    try:
        yield
    except (VlmgateError, typer.Exit):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise  # it is the user's, see `errors_in_one_line`
        fail(f"internal error ({one_line(error)}). The traceback is in {log}; the same command resumes.", 1)


def fail(text: str, code: int) -> NoReturn:
    complain(text)
    raise typer.Exit(code)
