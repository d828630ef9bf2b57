"""One image's captions, answers, scores and route: `print_record`. Where a result comes from: `print_provenance`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmgate.data import Reason, Record, Route
from vlmgate.errors import plain
from vlmgate.gate.reasons import REASON_WORDS
from vlmgate.gate.rules import COLUMNS
from vlmgate.report.terminal import print_line
from vlmgate.scores.answer_probability import probabilities_of
from vlmgate.scores.claims import claims_line, dispute, vocabulary_of
from vlmgate.scores.diversity import BY_FINDINGS
from vlmgate.scores.words import content_words


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
        if provenance["kernel"] in BY_FINDINGS:
            claims = claims_line(record.captions, vocabulary_of(provenance["sampling"]))
            print_line(console, f"Claims: {claims}")
        elif differ := _differences(record.captions):
            print_line(console, f"They differ on: {differ}")
    if record.answers:
        console.print()
        scored = probabilities_of(record)
        console.print(_scored(scored) if scored else _table_of("answer", record.answers, record.answer_finishes))
        answer = f"They come to: {record.answer}" if record.answer is not None else "They come to no answer."
        print_line(console, answer)
    console.print()
    for name, column in COLUMNS.items():
        value = getattr(record, name)
        if value is not None or name in ("vendi_score", "agreement", "mean_dissimilarity", "mean_logprob"):
            worse = {True: "higher = worse", False: "lower = worse", None: "both ends = worse"}[column.higher_is_worse]
            console.print(Text(f"{name:<20}{'–' if value is None else format(value, '.3f'):>9}   {worse}"))


def why(record: Record, provenance: Mapping[str, Any]) -> str:
    """Return the reason in a plain sentence, with the figures that decided."""
    sentence = REASON_WORDS[Reason(record.reason)].why
    if record.error:
        sentence += f" ({record.error})"
    if record.reason == Reason.CONTRADICTED and record.captions:
        sentence = dispute(record.captions, record.answer, sentence, vocabulary_of(provenance["sampling"]))
    column = record.decided_by or provenance["gate"]["score"]
    value = getattr(record, column)
    if record.threshold is not None and value is not None:
        figures = f"{column} {value:.3f}, limit {record.threshold:.3f}"
        sentence += f" ({figures})" if record.reason == Reason.CONTRADICTED else f": {figures}"
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


def _scored(answers: Sequence[tuple[str, float]], most: int = 8) -> Table:
    """Return the likeliest of the answers that nobody drew, with their probabilities."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("probability", justify="right")
    table.add_column("answer", overflow="fold")
    for text, probability in answers[:most]:
        table.add_row(f"{probability:.4f}", Text(plain(text)))
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
        has_value = value is not None and value not in ([], ())
        if has_value and not key.startswith("fingerprint.") and key != "shard.seen":
            table.add_row(Text(plain(key)), Text(plain(str(value))))
    console.print(table)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) pairs of a nested mapping, in order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs
