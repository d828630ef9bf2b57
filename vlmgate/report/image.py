"""What a person sees of a run and of one image: header, progress, captions and answers, where a result comes from.

Call `TerminalProgress` during a run, `print_record` for one image, `print_provenance` for a result. Nothing that comes
from an image, a caption or a file name is ever read as markup, and control characters are shown, not sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vlmgate.config import BUILTIN, ScanConfig
from vlmgate.data import ModelInfo, Reason, Record, Route
from vlmgate.errors import plain
from vlmgate.gate.reasons import REASON_WORDS
from vlmgate.gate.rules import COLUMNS, Gate
from vlmgate.scores.words import content_words
from vlmgate.version import __version__

BUILTIN_NOTICE = (
    "The built-in model knows rendered sample parts only; of your own images it says nothing worth having. "
    "Name a real one: --model FOLDER or --model HUB_ID (see `vlmgate help models`)."
)


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
            self.console.print(Text(plain(text)), soft_wrap=True)

    def start(self, total: int, done: int) -> None:
        self._begun = time.monotonic()
        if not self._total:  # a folder that is watched begins again and again
            self._last = self._begun
        self._total, self._done, self._done_before = total, done, done
        if self.quiet or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("reading"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
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


# --- one image, one result --------------------------------------------------------------------------------------------


def print_record(record: Record, provenance: Mapping[str, Any], console: Console) -> None:
    """Print one image's captions and answers, its scores, where it goes and why."""
    page = f" (page {record.page} of {record.num_pages})" if (record.num_pages or 1) > 1 else ""
    print_line(console, record.file_name + page, style="bold")
    if record.width:
        converted = f"; {record.conversion}" if record.conversion else ""
        print_line(console, f"{record.width} × {record.height} pixels, {record.mode}{converted}")
    if record.duplicate_of:
        print_line(console, f"the same bytes as {record.duplicate_of}, whose reading it shares")
    routed = record.route == Route.HUMAN_REVIEW
    console.print(
        Text("routed to human" if routed else "auto-accepted", style="bold yellow" if routed else "bold green")
        + Text(plain(f": {why(record, provenance)}"), style="none"),
        soft_wrap=True,
    )
    if record.captions:
        console.print()
        console.print(_table_of("caption", record.captions, record.caption_finishes))
        if differ := _differences(record.captions):
            print_line(console, f"They differ on: {differ}")
    if record.answers:
        console.print()
        console.print(_table_of("answer", record.answers, record.answer_finishes))
        answer = f"They come to: {record.answer}" if record.answer is not None else "They come to no answer."
        print_line(console, answer)
    console.print()
    for name, column in COLUMNS.items():
        value = getattr(record, name)
        if value is not None or name in ("vendi_score", "agreement", "mean_dissimilarity", "mean_logprob"):
            worse = {True: "higher = worse", False: "lower = worse", None: "both ends = worse"}[column.higher_is_worse]
            console.print(Text(f"{name:<20}{'–' if value is None else format(value, '.3f'):>9}   {worse}"))


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a text that is never read as markup, and never cut at the edge of the terminal."""
    console.print(Text(plain(text), style=style), soft_wrap=True)


def why(record: Record, provenance: Mapping[str, Any]) -> str:
    """Return the reason in a plain sentence, with the figures that decided."""
    sentence = REASON_WORDS[Reason(record.reason)].why
    if record.error:
        sentence += f" ({record.error})"
    column = record.decided_by or provenance["gate"]["score"]
    value = getattr(record, column)
    if record.threshold is not None and value is not None:
        sentence += f": {column} {value:.3f}, limit {record.threshold:.3f}"
    elif record.reason == Reason.NO_SCORE:
        sentence += f": {column}"
    return sentence


def _table_of(title: str, said: Sequence[str], finishes: Sequence[str] | None) -> Table:
    """Return what was sampled, the same texts merged with their count."""
    counted = Counter(zip(said, finishes or (), strict=True))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("times", justify="right")
    table.add_column(title, overflow="fold")
    for (text, finish), times in counted.most_common():
        shown = Text(plain(text)) if text else Text("(empty)", style="dim")
        table.add_row(str(times), shown if finish == "stop" else shown + Text(f"  [{finish}]", style="dim"))
    return table


def _differences(captions: Sequence[str], most: int = 12) -> str:
    """Return the content words that some captions assert and others do not, with the number that do."""
    counted = Counter(word for caption in captions for word in content_words(caption))
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    split = [(word, n) for word, n in ordered if n < len(captions)]
    shown = ", ".join(f"{word.replace('¬', 'no ')} ({n} of {len(captions)})" for word, n in split[:most])
    return shown + (", …" if len(split) > most else "")


def print_provenance(provenance: Mapping[str, Any], console: Console) -> None:
    """Print what a result says of its making, one key a line; what is unset or said elsewhere is left out."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in flatten(provenance):
        if value is not None and not key.startswith("fingerprint.") and key != "shard.seen":
            table.add_row(Text(plain(key)), Text(plain(str(value))))
    console.print(table)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) pairs of a nested mapping, in order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs
