"""What a person sees of a run: header, progress, the summary table, one image, a result's provenance.

Knows rows and how to show them on a terminal; knows nothing of how they were made. Nothing that comes from an image, a
caption or a file name is ever read as markup, and control characters are shown, not sent.
"""

from __future__ import annotations

import json
import math
import statistics
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

import vlmgate
from vlmgate.config import BUILTIN, ScanConfig
from vlmgate.gate import HIGHER_IS_WORSE, Gate
from vlmgate.records import ModelInfo, Reason, Record, Route
from vlmgate.store import SCHEMA_VERSION
from vlmgate.text import plain
from vlmgate.words import content_words

BUILTIN_NOTICE = (
    "The built-in model knows rendered sample parts only; of your own images it says nothing worth having. "
    "Name a real one: --model FOLDER or --model HUB_ID (see README, 'Choosing a model')."
)
_WORDS = {
    Reason.UNREADABLE: "unreadable",
    Reason.NOT_READ: "not read yet",
    Reason.MODEL_FAILED: "model failed",
    Reason.NON_FINITE: "model overflowed",
    Reason.EMPTY_CAPTION: "empty caption",
    Reason.REFUSED: "refused",
    Reason.CUT_OFF: "caption cut off",
    Reason.NO_SCORE: "no score",
    Reason.DISAGREED: "disagreed",
    Reason.MOST_UNCERTAIN: "most uncertain",
    Reason.AGREED: "agreed",
    Reason.LEAST_UNCERTAIN: "least uncertain",
}
_WHY = {
    Reason.UNREADABLE: "the file could not be read as an image",
    Reason.NOT_READ: "the run ended before its turn; the same command goes on",
    Reason.MODEL_FAILED: "the model raised an error on it",
    Reason.NON_FINITE: "the model's numbers overflowed",
    Reason.EMPTY_CAPTION: "at least one caption says nothing",
    Reason.REFUSED: "at least one caption declines to answer",
    Reason.CUT_OFF: "at least one caption was cut off at --max-new-tokens",
    Reason.NO_SCORE: "the score cannot be computed",
    Reason.DISAGREED: "the captions differ more than the limit allows",
    Reason.MOST_UNCERTAIN: "it is among the most uncertain images, which fill the review budget",
    Reason.AGREED: "the captions agree within the limit",
    Reason.LEAST_UNCERTAIN: "it is not more uncertain than the images that fill the review budget",
}
_UNREAD = (Reason.UNREADABLE, Reason.MODEL_FAILED)


def header_line(model: Mapping[str, Any] | None, gate: Gate, num_samples: int) -> str:
    """Return the line that opens a run and its summary."""
    parts = [f"vlmgate {vlmgate.__version__}"]
    if model:
        revision = f"@{model['revision'][:7]}" if model.get("revision") else ""
        parts += [f"{short_model(model['model'])}{revision}", f"{model['device']} {model['dtype']}"]
    parts += [f"{num_samples} samples", gate.describe() + (" (uncalibrated default)" if gate.default else "")]
    return plain(" · ".join(parts))


def short_model(model: str) -> str:
    return "built-in model" if model == BUILTIN else Path(model).name or model


class TerminalProgress:
    """Header, messages and a bar on stderr; where stderr is no terminal, one plain line a minute instead of the bar."""

    def __init__(self, console: Console, *, quiet: bool = False, every: float = 60.0) -> None:
        self.console, self.quiet, self.every = console, quiet, every
        self._bar: Progress | None = None
        self._total = self._done = self._begun_with = 0
        self._begun = self._told = time.monotonic()

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None:
        self.message(header_line(asdict(model) if model else None, gate, config.sampling.num_samples))
        if config.model.model == BUILTIN:
            self.message(BUILTIN_NOTICE)

    def message(self, text: str) -> None:
        if not self.quiet:
            self.console.print(Text(plain(text)), soft_wrap=True)

    def start(self, total: int, done: int) -> None:
        self._total, self._done, self._begun_with = total, done, done
        self._begun = self._told = time.monotonic()
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
        )
        self._bar.add_task("reading", total=total, completed=done)
        self._bar.start()

    def advance(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], images)
        elif now - self._told >= self.every:
            self._told = now
            rate = (self._done - self._begun_with) / max(1e-9, now - self._begun)
            left = (self._total - self._done) / rate / 60 if rate else float("inf")
            self.message(f"{self._done:,} of {self._total:,} files, {rate:.2f} files/s, about {left:,.0f} min left")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


# --- the end of a run -------------------------------------------------------------------------------------------------


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of the summary: counts, shares and median Vendi scores by route and reason."""
    total = len(records)

    def group(rows: Sequence[Record]) -> dict[str, Any]:
        scores = [row.vendi_score for row in rows if row.vendi_score is not None]
        median = round(statistics.median(scores), 6) if scores else None
        return {"images": len(rows), "share": len(rows) / total if total else 0.0, "median_vendi_score": median}

    routes = {
        route.value: group(rows := [r for r in records if r.route == route])
        | {"reasons": {str(reason): group([r for r in rows if r.reason == reason]) for reason in _reasons(rows)}}
        for route in Route
    }
    return {
        "images": total,
        "duplicates": sum(r.duplicate_of is not None for r in records),
        "unreadable": sum(r.reason == Reason.UNREADABLE for r in records),
        "model_failed": sum(r.reason == Reason.MODEL_FAILED for r in records),
        **routes,
    }


def _reasons(rows: Sequence[Record]) -> list[str]:
    return [
        reason
        for reason, _ in sorted(Counter(row.reason for row in rows).items(), key=lambda item: (-item[1], item[0]))
    ]


def print_summary(records: Sequence[Record], provenance: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the table that splits the folder, and what to do next."""
    gate, sampling = Gate(**provenance["gate"]), provenance["sampling"]
    console.print(Text(header_line(provenance["model"], gate, sampling["num_samples"])), soft_wrap=True)
    console.print()
    console.print(_summary_table(summarise(records)))
    console.print()
    for line in _summary_notes(records, provenance, gate, out):
        console.print(Text(plain(line)), soft_wrap=True)


def _summary_table(figures: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", no_wrap=True)
    for title in ("images", "share", "median vendi"):
        table.add_column(title, justify="right", no_wrap=True)
    for route, title, style in (
        (Route.AUTO_ACCEPT, "auto-accepted", "bold green"),
        (Route.HUMAN_REVIEW, "routed to human", "bold yellow"),
    ):
        table.add_row(*_cells(title, figures[route]), style=style)
        if route is Route.HUMAN_REVIEW:
            for reason, group in figures[route]["reasons"].items():
                table.add_row(*_cells(f"  {_WORDS[Reason(reason)]}", group))
    return table


def _cells(title: str, group: Mapping[str, Any]) -> tuple[str, str, str, str]:
    median = group["median_vendi_score"]
    return title, f"{group['images']:,}", f"{group['share']:.1%}", "–" if median is None else f"{median:.2f}"


def _summary_notes(records: Sequence[Record], provenance: Mapping[str, Any], gate: Gate, out: Path) -> list[str]:
    accepted = [r for r in records if r.route == Route.AUTO_ACCEPT]
    notes = []
    if accepted:
        often = [pair for pair in accepted_readings(accepted) if pair[1] > 1]
        meaning = "Auto-accepted means: the reading is taken for true, be it 'no defect' or 'a crack'."
        notes.append(meaning + (" Most often:" if often else ""))
        notes += [f"  {count:>6,}  {caption}" for caption, count in often]
    if (provenance["model"] or {}).get("model") == BUILTIN:
        notes.append(BUILTIN_NOTICE)
    if gate.default:
        notes.append(
            "The limit is an uncalibrated default: nobody has measured what it lets through. "
            "--threshold or --review-budget set your own; neither needs the model again."
        )
    if len(records) >= 10 and len(accepted) in (0, len(records)):
        notes.append(
            f"{'All' if accepted else 'None'} of the images were accepted, so this limit does not separate them. "
            "--review-budget 10% sends the most uncertain to people, whatever the model's wording."
        )
    notes.append(f"Wrote {out} ({_count(len(records), 'row')}).")
    notes += _notes_on_files(records, provenance)
    worst = worst_routed(records, gate)
    if worst:
        notes.append(f"Next: vlmgate show {_quoted(str(out))} --routed")
        notes.append(f"      vlmgate show {_quoted(str(out))} {_quoted(worst.file_name)}")
    return notes


def _notes_on_files(records: Sequence[Record], provenance: Mapping[str, Any]) -> list[str]:
    notes = []
    broken = [r for r in records if r.reason in _UNREAD]
    if broken:
        first = f"{broken[0].file_name} ({broken[0].error})"
        notes.append(f"{_count(len(broken), 'image')} could not be read, first: {first}")
    cut = sum(r.reason == Reason.CUT_OFF for r in records)
    if cut:
        limit = provenance["sampling"]["max_new_tokens"]
        notes.append(f"{_count(cut, 'image')} with captions cut off at {limit} tokens; --max-new-tokens lets them end.")
    several = [r for r in records if (r.num_pages or 1) > 1]
    if several and provenance["image_config"]["pages"] == "first":
        first = several[0].file_name
        notes.append(
            f"{_count(len(several), 'file')} with several pages, of which the first was read, e.g. {first}; --pages all"
        )
    converted = [r for r in records if r.conversion]
    if converted:
        example = f"{converted[0].file_name} ({converted[0].conversion})"
        notes.append(
            f"{_count(len(converted), 'image')} converted to 8-bit RGB, see the column conversion, e.g. {example}"
        )
    copies = sum(r.duplicate_of is not None for r in records)
    if copies:
        notes.append(f"{_count(copies, 'exact duplicate')} sharing the reading of another file.")
    if provenance["ignored"]:
        first = provenance["ignored_first"][0]
        notes.append(f"{_count(provenance['ignored'], 'file')} ignored, being no image, first: {first}")
    if provenance["gone"]:
        first = provenance["gone_first"][0]
        notes.append(f"{_count(provenance['gone'], 'file')} read before and gone from the folder, first: {first}")
    waiting = sum(r.reason == Reason.NOT_READ for r in records)
    if waiting:
        notes.append(
            f"Not complete: {_count(waiting, 'image')} not read yet. The same command goes on where it stopped."
        )
    seconds = [r.seconds for r in records if r.seconds is not None]
    if seconds:
        notes.append(f"The model took {statistics.fmean(seconds):.2f} s an image, {sum(seconds) / 60:,.1f} min in all.")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def accepted_readings(accepted: Sequence[Record], most: int = 5) -> list[tuple[str, int]]:
    """Return what was accepted most often, with counts; captions that assert the same words count as one."""
    said: dict[frozenset[str], list[str]] = {}
    for record in accepted:
        if record.caption is not None:
            said.setdefault(content_words(record.caption), []).append(record.caption)
    ordered = sorted(said.values(), key=lambda captions: (-len(captions), captions[0]))
    return [(captions[0], len(captions)) for captions in ordered[:most]]


def routed_worst_first(records: Sequence[Record], gate: Gate) -> list[Record]:
    """Return the routed images: those without a score first, then by score, the worst first."""
    sign = 1 if HIGHER_IS_WORSE[gate.score] else -1

    def key(record: Record) -> tuple[float, str, int]:
        value = getattr(record, gate.score)
        return (-math.inf if value is None else -sign * value, record.file_name, record.page)

    return sorted((r for r in records if r.route == Route.HUMAN_REVIEW), key=key)


def worst_routed(records: Sequence[Record], gate: Gate) -> Record | None:
    """Return the routed image with the worst score, or the first routed one where none has a score."""
    routed = routed_worst_first(records, gate)
    return next((r for r in routed if getattr(r, gate.score) is not None), next(iter(routed), None))


def print_routed(records: Sequence[Record], provenance: Mapping[str, Any], console: Console) -> None:
    """Print the routed images, one a line, the worst first: score, reason, name."""
    gate = Gate(**provenance["gate"])
    for record in routed_worst_first(records, gate):
        value = getattr(record, gate.score)
        page = f" (page {record.page})" if (record.num_pages or 1) > 1 else ""
        figure = "–" if value is None else f"{value:.3f}"
        line = f"{figure:>8}  {_WORDS[Reason(record.reason)]:<16}  {plain(record.file_name)}{page}"
        console.print(Text(line), soft_wrap=True)


def _quoted(text: str) -> str:
    simple = text and all(c.isalnum() or c in "._-/\\:" for c in text)
    dashes = "-- " if text.startswith("-") else ""
    return dashes + (text if simple else "'" + text.replace("'", "'\\''") + "'")


def summary_json(
    records: Sequence[Record], provenance: Mapping[str, Any], out: Path, exit_code: int, error: str | None
) -> str:
    """Return the summary as one JSON object with a `schema_version`."""
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "exit_code": exit_code,
            "error": error,
            "output": str(out),
            "complete": provenance["complete"],
            "gate": provenance["gate"],
            "model": provenance["model"],
            "summary": summarise(records),
        },
        indent=2,
    )


# --- one image, one result --------------------------------------------------------------------------------------------


def print_record(record: Record, provenance: Mapping[str, Any], console: Console) -> None:
    """Print one image's captions, identical ones merged with their count, its scores, where it goes and why."""
    page = f" (page {record.page} of {record.num_pages})" if (record.num_pages or 1) > 1 else ""
    console.print(Text(plain(record.file_name) + page, style="bold"), soft_wrap=True)
    if record.width:
        facts = f"{record.width} × {record.height} pixels, {record.mode}"
        console.print(Text(plain(facts + (f"; {record.conversion}" if record.conversion else ""))), soft_wrap=True)
    if record.duplicate_of:
        console.print(Text(plain(f"the same bytes as {record.duplicate_of}, whose reading it shares")), soft_wrap=True)
    routed = record.route == Route.HUMAN_REVIEW
    console.print(
        Text("routed to human" if routed else "auto-accepted", style="bold yellow" if routed else "bold green")
        + Text(plain(f": {why(record, provenance)}"), style="none"),
        soft_wrap=True,
    )
    if record.captions:
        console.print()
        console.print(_caption_table(record))
        if differ := _differences(record.captions):
            console.print(Text(plain(f"They differ on: {differ}")), soft_wrap=True)
    console.print()
    for name in ("vendi_score", "agreement", "mean_dissimilarity", "mean_logprob"):
        value = getattr(record, name)
        worse = "higher = worse" if HIGHER_IS_WORSE[name] else "lower = worse"
        console.print(Text(f"{name:<20}{'–' if value is None else format(value, '.3f'):>8}   {worse}"))


def why(record: Record, provenance: Mapping[str, Any]) -> str:
    """Return the reason in a plain sentence, with the figures that decided."""
    sentence = _WHY[Reason(record.reason)]
    if record.error:
        sentence += f" ({record.error})"
    score = provenance["gate"]["score"]
    value = getattr(record, score)
    if record.threshold is not None and value is not None:
        sentence += f": {score} {value:.3f}, limit {record.threshold:.3f}"
    return sentence


def _caption_table(record: Record) -> Table:
    counted = Counter(zip(record.captions or (), record.caption_finishes or (), strict=True))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("times", justify="right")
    table.add_column("caption", overflow="fold")
    for (text, finish), times in counted.most_common():
        shown = Text(plain(text)) if text else Text("(empty)", style="dim")
        table.add_row(str(times), shown if finish == "stop" else shown + Text(f"  [{finish}]", style="dim"))
    return table


def _differences(captions: Sequence[str], most: int = 12) -> str:
    """Return the content words that some captions assert and others do not, with the number that do."""
    counted = Counter(word for caption in captions for word in content_words(caption))
    split = [
        (word, n) for word, n in sorted(counted.items(), key=lambda item: (-item[1], item[0])) if n < len(captions)
    ]
    shown = ", ".join(f"{word.replace('¬', 'no ')} ({n} of {len(captions)})" for word, n in split[:most])
    return shown + (", …" if len(split) > most else "")


def print_provenance(provenance: Mapping[str, Any], console: Console) -> None:
    """Print what a result says of its making, one key a line; what is unset or said elsewhere is left out."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in flatten(provenance):
        if value is not None and not key.startswith("fingerprint."):
            table.add_row(Text(plain(key)), Text(plain(str(value))))
    console.print(table)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) pairs of a nested mapping, in order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs
