"""The end of a run: the table that splits the folder, what was accepted, what to do next; and the list of the routed.

Call `print_summary`, `print_routed` or `summary_json`. What comes from an image, a caption, an answer or a file name is
never read as markup.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from vlmgate.config import BUILTIN
from vlmgate.data import Quality, Reason, Record, Route
from vlmgate.errors import DriftError, count
from vlmgate.gate.drift import alarm_of, has_alarm
from vlmgate.gate.reasons import REASON_WORDS, no_probability
from vlmgate.gate.rules import HIGHER_IS_WORSE, Gate
from vlmgate.images import NO_END, sort_of
from vlmgate.report.one_caption import note_on_one_caption, one_caption
from vlmgate.report.terminal import BUILTIN_NOTICE, header_line, print_line
from vlmgate.scores.claims import summed_up, vocabulary_of
from vlmgate.scores.diversity import BY_FINDINGS
from vlmgate.scores.findings import Vocabulary
from vlmgate.scores.words import content_words
from vlmgate.store.result import SCHEMA_VERSION

_UNREAD = (Reason.UNREADABLE, Reason.MODEL_FAILED)
_MOST_SORTS = 6  # reasons why images could not be read that are named
_NARROW = 56  # characters; a narrower terminal gets the title "median vendi" in two lines, and less between columns
_NAMES_COLUMN = (Reason.BEYOND_LIMIT, Reason.NO_SCORE)  # these say which column it was


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of the summary: counts, shares and median Vendi scores by route and reason.

    held_back: the reason that routed most images, how many, and of how many; None where nothing is routed.
    one_caption: the caption that is that of most images, how many, and of how many; None where there is none.
    """
    total = len(records)

    def group(rows: Sequence[Record]) -> dict[str, Any]:
        scores = [row.vendi_score for row in rows if row.vendi_score is not None]
        median = round(statistics.median(scores), 6) if scores else None
        return {"images": len(rows), "share": len(rows) / total if total else 0.0, "median_vendi_score": median}

    routes = {}
    for route in Route:
        rows = [row for row in records if row.route == route]
        by_reason: dict[str, list[Record]] = {}
        for row in rows:
            by_reason.setdefault(reason_of(row), []).append(row)
        ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
        answers = Counter(row.answer for row in rows if row.answer is not None)
        reasons = {reason: group(members) for reason, members in ordered}
        routes[route.value] = group(rows) | {"reasons": reasons, "answers": dict(answers.most_common())}
    return {
        "images": total,
        "held_back": _held_back(routes[Route.HUMAN_REVIEW.value]["reasons"]),
        "one_caption": one_caption(records),
        "duplicates": sum(r.duplicate_of is not None for r in records),
        "unreadable": sum(r.reason == Reason.UNREADABLE for r in records),
        "unreadable_reasons": _sorts(records, Reason.UNREADABLE),
        "model_failed": sum(r.reason == Reason.MODEL_FAILED for r in records),
        **routes,
    }


def _sorts(records: Sequence[Record], *reasons: Reason) -> dict[str, int]:
    """Return why images could not be read, and how many for each, the most frequent first."""
    sorts = Counter(sort_of(record.error or "unknown") for record in records if record.reason in reasons)
    return dict(sorted(sorts.items(), key=lambda item: (-item[1], item[0])))


def _held_back(reasons: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what routed most of the images that had their turn; `reasons` are in order, the most frequent first."""
    counted = {reason: group["images"] for reason, group in reasons.items() if reason != Reason.NOT_READ}
    most = next(iter(counted), None)
    return None if most is None else {"reason": most, "images": counted[most], "of": sum(counted.values())}


def reason_of(record: Record) -> str:
    """Return the reason; where it is a limit on one of several columns, with that column: "beyond_limit:novelty"."""
    named = record.decided_by is not None and record.reason in _NAMES_COLUMN
    return f"{Reason(record.reason)}:{record.decided_by}" if named else str(Reason(record.reason))


def in_words(reason: str) -> str:
    """Return what `reason_of` says, for people: "novelty beyond limit"."""
    name, _, column = reason.partition(":")
    words = REASON_WORDS[Reason(name)].short
    return f"{column} {words}" if name == Reason.BEYOND_LIMIT else f"{words}: {column}" if column else words


def print_summary(records: Sequence[Record], provenance: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the table that splits the folder, and what to do next."""
    gate, sampling = Gate.of(provenance["gate"]), provenance["sampling"]
    fewest, most = sampling.get("first_samples"), sampling["num_samples"]
    print_line(console, header_line(provenance["model"], gate, most, fewest))
    console.print()
    if alarm := alarm_of(provenance.get("drift")):
        print_line(console, alarm, style="bold red")
        console.print()
    figures = summarise(records)
    console.print(_summary_table(figures, narrow=console.width < _NARROW))
    console.print()
    for line in _summary_notes(records, provenance, gate, out, figures):
        print_line(console, line)


def _summary_table(figures: Mapping[str, Any], *, narrow: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 3, 0, 0))
    table.add_column("", overflow="fold")  # reasons are long, and figures must be whole
    for title in ("images", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("median vendi", justify="right", no_wrap=not narrow, width=6 if narrow else None)
    for route, title, style in (
        (Route.AUTO_ACCEPT, "auto-accepted", "bold green"),
        (Route.HUMAN_REVIEW, "routed to human", "bold yellow"),
    ):
        table.add_row(*_cells(title, figures[route]), style=style)
        if route is Route.HUMAN_REVIEW:
            for reason, group in figures[route]["reasons"].items():
                title, *cells = _cells(in_words(reason), group)
                table.add_row(Padding(title, (0, 0, 0, 2)), *cells)
    return table


def _cells(title: str, group: Mapping[str, Any]) -> tuple[str, str, str, str]:
    median = group["median_vendi_score"]
    return title, f"{group['images']:,}", f"{group['share']:.1%}", "–" if median is None else f"{median:.2f}"


def _summary_notes(
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    gate: Gate,
    out: Path,
    figures: Mapping[str, Any],
) -> list[str]:
    held_back = figures["held_back"]
    accepted = [r for r in records if r.route == Route.AUTO_ACCEPT]
    headline = alarm_of(provenance.get("drift"))
    notes = [line for line in provenance.get("warnings") or () if line != headline]
    if accepted:
        vocabulary = vocabulary_of(provenance["sampling"]) if provenance["kernel"] in BY_FINDINGS else None
        often = [pair for pair in accepted_readings(accepted, vocabulary) if pair[1] > 1]
        meaning = "Auto-accepted means: the reading is taken for true, be it 'no defect' or 'a crack'."
        notes.append(meaning + (" Most often:" if often else ""))
        notes += [f"  {times:>6,}  {reading}" for reading, times in often]
        notes += _notes_on_answers(accepted, provenance)
    notes += note_on_one_caption(figures["one_caption"])
    if unknown := no_probability(records):
        notes.append(f"{unknown}.")
    if (provenance["model"] or {}).get("model") == BUILTIN:
        notes.append(BUILTIN_NOTICE)
    if gate.by_model or any(limit.by_model for limit in gate.limits):
        notes.append(
            "The limits marked so are the model's own, measured on what it is meant for; they hold for no other."
        )
    if gate.default or any(limit.default for limit in gate.limits):
        notes.append(f"The limit is an uncalibrated default: nobody has measured what it lets through. {_BY_LABELS}")
    notes += _notes_on_promise(provenance)
    if len(records) >= 10 and len(accepted) == len(records):
        notes.append(
            "All of the images were accepted, so this limit does not separate them. "
            f"Look at some: vlmgate review {_quoted(str(out))} --accepted 50"
        )
    notes += _note_on_held_back(held_back, gate, provenance["sampling"])
    notes.append(f"Wrote {out} ({count(len(records), 'row')}).")
    notes += _notes_on_files(records, provenance, held_back)
    worst = worst_routed(records, gate)
    if worst:
        notes.append(f"Next: vlmgate review {_quoted(str(out))}")
        notes.append(f"      vlmgate show {_quoted(str(out))} --routed")
        notes.append(f"      vlmgate show {_quoted(str(out))} {_quoted(worst.file_name)}")
    return notes


_BY_LABELS = "Which limit is safe, only labelled images can say: see `vlmgate help calibrate`."
_SEE_WHAT_WAS_SAID = "`vlmgate show` prints what was said; another prompt may help."
_WHAT_HELPS = {
    Reason.CUT_OFF: "A larger --max-new-tokens (now {new}) lets captions end.",
    Reason.ANSWER_CUT_OFF: "A larger --max-answer-tokens (now {answer}) lets answers end.",
    Reason.NO_CLAIM: "Ask a question with --choices, or name what your model says with --terms.",
    Reason.UNKNOWN_LANGUAGE: "Which languages are known, and what else helps: see `vlmgate help languages`.",
    Reason.REFUSED: _SEE_WHAT_WAS_SAID,
    Reason.EMPTY_CAPTION: _SEE_WHAT_WAS_SAID,
    Reason.EMPTY_ANSWER: _SEE_WHAT_WAS_SAID,
    Reason.DISAGREED: _BY_LABELS,
    Reason.CONTRADICTED: _BY_LABELS,
    Reason.NO_ANSWER: _BY_LABELS,
    Reason.BEYOND_LIMIT: _BY_LABELS,
}
_READ_ANEW = (Reason.CUT_OFF, Reason.ANSWER_CUT_OFF, Reason.NO_CLAIM, Reason.UNKNOWN_LANGUAGE)


def _note_on_held_back(held_back: Mapping[str, Any] | None, gate: Gate, sampling: Mapping[str, Any]) -> list[str]:
    """Say what routed most images, and what helps without letting anything through that was not measured.

    A limit is not to be loosened on a guess, a calibrated one not at all, and no budget is proposed: what it accepts,
    nobody has measured. A review budget routes what it was asked to.
    """
    if held_back is None or held_back["of"] < 2 or held_back["reason"] == Reason.MOST_UNCERTAIN:
        return []
    reason, images, of = held_back["reason"], held_back["images"], held_back["of"]
    most = "Most were held back because" if 2 * images > of else "Held back most often because"
    kind, _, column = reason.partition(":")
    helps = _WHAT_HELPS.get(Reason(kind), "")
    if kind == Reason.BEYOND_LIMIT and column in Quality.__dataclass_fields__:
        helps = "Look at the camera, the light and the focus."
    elif kind == Reason.BEYOND_LIMIT and column == "novelty":
        helps = "They are unlike the images that the model is meant for."
    elif gate.origin is not None:
        helps = "" if helps == _BY_LABELS else helps
        helps += " Then calibrate again: a gate holds for its own settings alone." if kind in _READ_ANEW else ""
    helps = helps.format(new=sampling["max_new_tokens"], answer=sampling.get("max_answer_tokens"))
    return [f"{most}: {in_words(reason)} ({images:,} of {of:,}). {helps}".rstrip()]


def _notes_on_answers(accepted: Sequence[Record], provenance: Mapping[str, Any]) -> list[str]:
    """Say which answers were accepted, every choice with its number, so that a choice never given is seen."""
    question, choices = provenance["sampling"].get("question"), provenance["sampling"].get("choices", ())
    if not question:
        return []
    counted = Counter(r.answer for r in accepted)
    return [f"Auto-accepted by answer to '{question}':", *(f"  {counted[choice]:>6,}  {choice}" for choice in choices)]


def _notes_on_promise(provenance: Mapping[str, Any]) -> list[str]:
    """Say what the gate promises, and whether tonight's images are such that it holds."""
    promise, drift = provenance.get("promise"), provenance.get("drift")
    notes = []
    if promise and not has_alarm(drift):
        what = "accepted readings are wrong" if promise["target"] == "risk" else "defective parts pass as good"
        notes.append(
            f"The gate promises, with {100 * promise['confidence']:.6g}% confidence, that at most "
            f"{100 * promise['target_risk']:.6g}% of {what}, on images like those that it was calibrated on."
        )
        if provenance.get("adaptive"):
            notes.append(
                f"The promise is for {provenance['adaptive']['most']} samples of each image; where fewer were drawn, "
                "the others were not expected to change the decision (see `vlmgate help samples`)."
            )
    elif provenance.get("gate_edited"):
        notes.append("The gate file was edited since it was calibrated, so it promises nothing.")
    if not drift:
        return notes
    moved = [column for column in drift["columns"] if column["alarm"]]
    if moved:
        medians = "; ".join(f"{c['column']} {c['before']:.4g} → {c['now']:.4g} (gap {c['gap']:.2f})" for c in moved)
        notes.append(f"What differs, in medians: {medians}.")
        if drift["most_unlike"]:
            notes.append("Most unlike: " + ", ".join(f"{name} ({far:.2f})" for name, far in drift["most_unlike"]))
        notes.append(
            "Calibrate again with images of today, or look at what changed: camera, light, parts, share of defects."
        )
    elif not drift["columns"] and not has_alarm(drift):
        notes.append("Too few images to tell whether they look like those that the gate was calibrated on.")
    return notes


def _notes_on_files(
    records: Sequence[Record], provenance: Mapping[str, Any], held_back: Mapping[str, Any] | None
) -> list[str]:
    sampling, first_page = provenance["sampling"], provenance["image_config"]["pages"] == "first"
    reasons = Counter(r.reason for r in records)
    if held_back and held_back["of"] > 1:  # which has been said
        reasons.pop(held_back["reason"], None)
    copies = sum(r.duplicate_of is not None for r in records)
    broken = [f"{r.file_name} ({r.error})" for r in records if r.reason in _UNREAD]
    sorts = [f"{number:,} {sort}" for sort, number in _sorts(records, *_UNREAD).items()]
    why = f" ({', '.join([*sorts[:_MOST_SORTS], *(['…'] if len(sorts) > _MOST_SORTS else [])])})" if broken[1:] else ""
    unended = [r.file_name for r in records if NO_END in (r.conversion or "")]
    several = [r.file_name for r in records if first_page and (r.num_pages or 1) > 1]
    which = "the first" if all(r.page == 1 for r in records) else "one"
    converted = [f"{r.file_name} ({r.conversion})" for r in records if r.conversion]
    excluded: Mapping[str, int] = provenance.get("excluded") or {}
    ignored, gone = (provenance.get(name) or () for name in ("ignored_first", "gone_first"))
    captions = f"with captions cut off at {sampling['max_new_tokens']} tokens; --max-new-tokens lets them end."
    answers = f"with answers cut off at {sampling.get('max_answer_tokens')} tokens; --max-answer-tokens lets them end."
    exact = sampling.get("answers") == "exact"
    drawn = sum(exact and r.answer_share is not None for r in records)
    counts = (
        (drawn, "image", "whose answers were drawn, for the usual ways to write a choice do not cover them."),
        (len(broken), "image", f"could not be read{why}, first: {_first(broken)}"),
        (reasons[Reason.CUT_OFF], "image", captions),
        (reasons[Reason.ANSWER_CUT_OFF], "image", answers),
        (len(several), "file", f"with several pages, of which {which} was read, e.g. {_first(several)}; --pages all"),
        (len(converted), "image", f"converted to 8-bit RGB, see the column conversion, e.g. {_first(converted)}"),
        (len(unended), "JPEG", f"without an end marker, though all of the picture is there, e.g. {_first(unended)}"),
        (copies, "exact duplicate", "sharing the reading of another file."),
        (provenance["ignored"], "file", f"ignored, being no image, first: {_first(ignored)}"),
        (provenance["gone"], "file", f"read before and gone from the folder, first: {_first(gone)}"),
    )
    notes = [f"{count(number, noun)} {rest}" for number, noun, rest in counts if number]
    notes += [_left_out(excluded)] if sum(excluded.values()) else []
    if waiting := reasons[Reason.NOT_READ]:
        merged = provenance.get("merged")
        on = "Run their shards, then merge again." if merged else "The same command goes on where it stopped."
        notes.append(f"Not complete: {count(waiting, 'image')} not read yet. {on}")
    if shard := provenance.get("shard"):
        notes.append(
            f"This is shard {shard['index']} of {shard['count']}; a review budget and copies are those of the shard "
            "alone until `vlmgate merge` joins all of them."
        )
    adaptive = provenance.get("adaptive")
    if adaptive and adaptive["images"]:
        notes.append(
            f"{adaptive['mean_samples']:.1f} of {adaptive['most']} samples were drawn of an image; "
            f"{adaptive['stopped_early']:,} of {adaptive['images']:,} images stopped early, which took "
            f"{adaptive['tokens_of_all'] / max(1, adaptive['tokens']):.2f} times fewer tokens."
        )
    seconds = [r.seconds for r in records if r.seconds is not None]
    if seconds:
        went = _where_time_went(provenance.get("time"))
        each = statistics.fmean(seconds)
        notes.append(f"The model took {each:.2g} s an image, {sum(seconds) / 60:,.1f} min in all.{went}")
    return notes


def _left_out(excluded: Mapping[str, int]) -> str:
    """Return how many files and folders a scan left out by name, with the patterns that did so."""
    number, counts = sum(excluded.values()), {name: each for name, each in excluded.items() if each}
    if number == 1:
        return f"1 file or folder was left out because of its name ({', '.join(counts)}); see --exclude."
    patterns = ", ".join(f"{name}: {each:,}" for name, each in counts.items())
    return f"{number:,} files or folders were left out because of their names ({patterns}); see --exclude."


def _first(names: Sequence[str]) -> str:
    return names[0] if names else ""


def _where_time_went(time: Mapping[str, Any] | None) -> str:
    """Return where the time of this run went, as shares; nothing where it read nothing."""
    if not time or not time["seconds"]:
        return ""
    names = {
        "reading": "waiting for images",
        "vision_and_prefill": "vision and prompt",
        "decoding": "decoding",
        "scoring": "scoring",
        "writing": "writing",
    }
    parts = [f"{time[key] / time['seconds']:.0%} {name}" for key, name in names.items() if key in time]
    return f" This run read {time['images_per_second']:.3g} images/s: {', '.join(parts)}."


def accepted_readings(
    accepted: Sequence[Record], vocabulary: Vocabulary | None = None, most: int = 5
) -> list[tuple[str, int]]:
    """Return what was accepted most often, with counts: claims in words, where there is a vocabulary.

    A reading without a claim stands for itself; those that assert the same words count as one.
    """
    said: dict[str | frozenset[str], list[str]] = {}
    for caption in (record.caption for record in accepted if record.caption is not None):
        claimed = None if vocabulary is None else summed_up(caption, vocabulary)
        said.setdefault(content_words(caption) if claimed is None else claimed, []).append(claimed or caption)
    ordered = sorted(said.values(), key=lambda readings: (-len(readings), readings[0]))
    return [(readings[0], len(readings)) for readings in ordered[:most]]


def routed_worst_first(records: Sequence[Record], gate: Gate) -> list[Record]:
    """Return the routed images: those without a score first, then by score, of equals the least likely answer first."""
    sign = 1 if HIGHER_IS_WORSE[gate.score] else -1

    def key(record: Record) -> tuple[float, float, str, int]:
        value, likely = _score_of(record, gate), record.answer_probability
        worst = -math.inf
        return (
            worst if value is None else -sign * value,
            worst if likely is None else likely,
            record.file_name,
            record.page,
        )

    return sorted((r for r in records if r.route == Route.HUMAN_REVIEW), key=key)


def _score_of(record: Record, gate: Gate) -> float | None:
    """Return the score; null, too, where the captions are no reading, however good its answers or its light are."""
    score: float | None = None if record.vendi_score is None else getattr(record, gate.score)
    return score


def worst_routed(records: Sequence[Record], gate: Gate) -> Record | None:
    """Return the routed image with the worst score, or the first routed one where none has a score."""
    routed = routed_worst_first(records, gate)
    return next((r for r in routed if _score_of(r, gate) is not None), next(iter(routed), None))


def print_routed(records: Sequence[Record], provenance: Mapping[str, Any], console: Console) -> None:
    """Print the routed images, one a line, the worst first: score, reason, name."""
    gate = Gate.of(provenance["gate"])
    routed = routed_worst_first(records, gate)
    width = max((len(in_words(reason_of(record))) for record in routed), default=0)
    for record in routed:
        value = _score_of(record, gate)
        page = f" (page {record.page})" if (record.num_pages or 1) > 1 else ""
        figure = "–" if value is None else f"{value:.3f}"
        print_line(console, f"{figure:>8}  {in_words(reason_of(record)):<{width}}  {record.file_name}{page}")


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
            "output": None if error and exit_code == DriftError.exit_code else str(out),
            "complete": provenance["complete"],
            "gate": provenance["gate"],
            "promise": provenance.get("promise"),
            "drift": provenance.get("drift"),
            "warnings": provenance.get("warnings") or [],
            "model": provenance["model"],
            "time": provenance.get("time"),
            "adaptive": provenance.get("adaptive"),
            "summary": summarise(records),
        },
        indent=2,
    )
