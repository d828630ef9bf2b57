"""Which images a person looks at, in which order, and what the page says of each. Call `choose`, then `facts_of`."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vlmgate.data import Reason, Record, Route
from vlmgate.errors import UsageError, plain
from vlmgate.gate.reasons import REASON_WORDS
from vlmgate.gate.rules import ANSWER_COLUMNS, COLUMNS, HIGHER_IS_WORSE, Gate
from vlmgate.report.summary import reason_of, routed_worst_first
from vlmgate.scores import claims
from vlmgate.scores.answer_probability import probabilities_of
from vlmgate.scores.diversity import BY_FINDINGS, readings
from vlmgate.scores.findings import Vocabulary
from vlmgate.scores.words import NEGATION, content_words, places

LONGEST = 4000  # characters of a caption or an answer that the page shows
MOST_TEXTS = 64  # different captions or answers of one image that the page shows
_NUMBERS = frozenset("two three four five six seven eight nine ten eleven twelve dozen".split())
_JOINED = re.compile(r"[\s-]?")  # what two marked words may have between them and still be one mark
# Column → what its value says; {k} = number of readings or answers, {v} = the value, {c} = value × number.
# True = a share, shown in per cent.
_STATEMENTS: dict[str, tuple[str, bool]] = {
    "vendi_score": ("The model read this {k} times and gave about {v} different readings", False),
    "agreement": ("The model's {k} readings agree by {v}", True),
    "mean_dissimilarity": ("Any two of the model's {k} readings differ by {v} on average", True),
    "mean_logprob": ("The model's own words had a mean log-probability of {v}", False),
    "semantic_entropy": ("The model's {k} readings mean different things (semantic entropy {v})", False),
    "predictive_entropy": ("The model was not sure of its own words (predictive entropy {v})", False),
    "cocoa": ("Doubt about single words times difference between the {k} readings comes to {v} (cocoa)", False),
    "support": ("{v} of the model's readings, {c} of {k}, back the least backed claim of the typical one", True),
    "verdict_share": ("{v} of the model's readings, {c} of {k}, agree on whether there is a defect", True),
    "contradiction": ("{v} of the model's readings, {c} of {k}, contradict the others on one claim", True),
    "view_contrast": ("A little noise in the picture changes the reading by {v}", True),
    "answer_share": ("{v} of the model's answers, {c} of {k}, name the same choice", True),
    "answer_probability": ("The model gives its answer with a probability of {v}", True),
    "answer_entropy": ("The model's {k} answers are divided (answer entropy {v})", False),
    "abstain_rate": ("The model was unsure in {v} of its answers, {c} of {k}", True),
    "unparsable_rate": ("{v} of the model's answers, {c} of {k}, could not be understood", True),
    "doubt": ("Differing readings and a strange image come to a doubt of {v}", False),
    "novelty": ("The distance of this image from what the model is meant for (novelty) is {v}", False),
    "sharpness": ("The sharpness of the picture is {v}", False),
    "exposure": ("The mean brightness of the picture is {v}", True),
    "contrast": ("The contrast of the picture is {v}", False),
    "noise": ("The noise in the picture is {v} grey levels", False),
    "clipped_dark": ("{v} of the picture is black", True),
    "clipped_bright": ("{v} of the picture is white", True),
    "flat_rows": ("{v} of the picture's rows or columns are one value from end to end", True),
}
_OF_SCORED = {  # of answers that nobody drew
    "answer_entropy": "The model is divided between its answers (answer entropy {v})",
    "abstain_rate": "The model is unsure with a probability of {v}",
    "unparsable_rate": "The model answers something else with a probability of {v}",
}
_ANSWER_REASONS = (Reason.EMPTY_ANSWER, Reason.ANSWER_CUT_OFF, Reason.NO_ANSWER)


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be looked at."""

    number: int  # from 1, in the order of the page; previews are numbered by it
    record: Record
    audit: bool  # auto-accepted, and drawn at random

    @property
    def key(self) -> str:
        """What a verdict belongs to: a copy with the same bytes shares it."""
        row = self.record
        return f"{row.sha256}:{row.page}" if row.sha256 else f"name:{row.file_name}:{row.page}"

    @property
    def reason(self) -> str:
        return "audit" if self.audit else reason_of(self.record)


def choose(records: Sequence[Record], gate: Gate, *, accepted: int = 0, seed: int = 0) -> list[Item]:
    """Return all that is routed, the worst first, then a random sample of what was accepted.

    The sample is drawn without regard to any score, so that what it finds holds for all that was accepted. Raises
    `UsageError` where there is nothing to look at.
    """
    passed = [record for record in records if record.route == Route.AUTO_ACCEPT]
    drawn = random.Random(seed).sample(passed, min(accepted, len(passed)))
    routed = routed_worst_first(records, gate)
    if not routed and not drawn:
        raise UsageError(
            "nothing to review: no image is routed to a human. --accepted 50 shows some that were accepted."
            if passed
            else "nothing to review: the result holds no image."
        )
    rows = [(record, False) for record in routed] + [(record, True) for record in drawn]
    return [Item(number, record, audit) for number, (record, audit) in enumerate(rows, start=1)]


def facts_of(item: Item, gate: Gate, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page knows of one image, without its preview; what is absent is left out.

    name: file name as shown; raw: as it is, where that differs; why: sentence; claims: [words, captions that claim it],
    under the kernel `findings`; captions and answers: see `_said`; typical: index of the caption that was taken for the
    reading; scale: see `_scale`.
    """
    row, vocabulary = item.record, claims.vocabulary_of(provenance["sampling"])
    by_findings = provenance["kernel"] in BY_FINDINGS
    captions, typical = _captions(row, vocabulary if by_findings else None)
    claimed = claims.groups(row.captions, vocabulary) if by_findings and row.captions else []
    facts: dict[str, Any] = {
        "name": plain(row.file_name),
        "raw": row.file_name if plain(row.file_name) != row.file_name else None,
        "key": item.key,
        "sha": row.sha256,
        "page": row.page,
        "pages": row.num_pages if (row.num_pages or 1) > 1 else None,
        "reason": item.reason,
        "audit": item.audit or None,
        "why": sentence(row, gate.score, audit=item.audit, vocabulary=vocabulary),
        "claims": [[plain(words), times] for words, times in claimed],
        "captions": captions,
        "typical": typical,
        "answers": _scored(row) or _said(row.answers, row.answer_finishes, None, None)[1],
        "answer": None if row.answer is None else shown(row.answer),
        "scale": _scale(row, gate),
        "about": _about(row),
        "copy": plain(row.duplicate_of) if row.duplicate_of else None,
    }
    return {name: value for name, value in facts.items() if value is not None and value != []}


def _about(row: Record) -> str | None:
    converted = f"; {row.conversion}" if row.conversion else ""
    return plain(f"{row.width:,} × {row.height:,} pixels, {row.mode}{converted}") if row.width else None


Mark = Callable[[Sequence[str]], list[list[tuple[int, int]]]]  # texts → for each the places to be marked


def _captions(row: Record, vocabulary: Vocabulary | None) -> tuple[list[dict[str, Any]], int | None]:
    """Return the captions, the typical one first, and its index: that of what the machine takes for the reading.

    same: says what the reading does. They are compared by what they claim, or without a vocabulary by their words.
    """
    mark: Mark = differing if vocabulary is None else lambda texts: claims.places(texts, vocabulary)
    texts, said = _said(row.captions, row.caption_finishes, row.caption, mark)
    # Where no reading was settled on, what was said most often stands in for it.
    typical = (row.caption or next((text for text in texts if text.strip()), ""))[:LONGEST]
    if typical not in texts:
        return said, None
    index = texts.index(typical)
    for one, same in zip(said, _same(texts, index, vocabulary), strict=True):
        if same:
            one["same"] = True
    said.insert(0, said.pop(index))
    return said, 0


def _same(texts: Sequence[str], typical: int, vocabulary: Vocabulary | None) -> list[bool]:
    """Say of each caption whether it says the same as the typical one.

    One that hedges, or claims nothing, says the same as its equal alone.
    """
    if vocabulary is None:
        by_words = [content_words(text) for text in texts]
        return [one == by_words[typical] for one in by_words]
    by_claims = readings([vocabulary.claims(text) for text in texts])
    reading = by_claims[typical]
    return [
        text == texts[typical] or (reading is not None and one == reading)
        for text, one in zip(texts, by_claims, strict=True)
    ]


def _said(
    texts: Sequence[str] | None, finishes: Sequence[str] | None, typical: str | None, mark: Mark | None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return what was sampled, the same texts merged, the most frequent first: as it is, and as the page shows it.

    times: how often; text: pieces, the second, fourth … of which others disagree with, as `mark` finds them; finish:
    where the model did not end it. The typical one is never left out.
    """
    ends = finishes or ("stop",) * len(texts or ())
    counted = Counter((text[:LONGEST], finish) for text, finish in zip(texts or (), ends, strict=True))
    kept = counted.most_common(MOST_TEXTS)
    if typical is not None and all(text != typical[:LONGEST] for (text, _), _ in kept):
        kept[-1] = next(one for one in counted.items() if one[0][0] == typical[:LONGEST])
    different = [text for (text, _), _ in kept]
    ranges = [[] for _ in kept] if mark is None else mark(different)
    return different, [
        {"times": times, "text": pieces(text, where)} | ({} if finish == "stop" else {"finish": finish})
        for ((text, finish), times), where in zip(kept, ranges, strict=True)
    ]


def _scored(row: Record, least: float = 0.001) -> list[dict[str, Any]]:
    """Return the answers that nobody drew, the likeliest first; none of drawn ones. share: probability, in [0, 1]."""
    return [{"share": round(p, 4), "text": [shown(text)]} for text, p in probabilities_of(row) if p >= least]


def _scale(row: Record, gate: Gate) -> list[Any] | None:
    """Return [column, value, limit or None, side that is accepted] of the column that decided, or the gate's score."""
    column = row.decided_by or gate.score
    value: float | None = getattr(row, column)
    if value is None or not math.isfinite(value) or row.captions is None:
        return None
    limit = row.threshold if row.decided_by or row.reason == Reason.DISAGREED else gate.threshold
    if limit is not None and not math.isfinite(limit):
        limit = None
    upper = HIGHER_IS_WORSE.get(column, True)
    if limit is not None and row.reason == Reason.BEYOND_LIMIT:
        upper = value > limit
    return [column, value, limit, "<=" if upper else ">="]


def scales(all_facts: Sequence[Mapping[str, Any]], num_samples: int) -> dict[str, list[float]]:
    """Return the ends of each column's scale; where it has none, what is seen and the limits, with a margin."""
    ends: dict[str, list[float]] = {}
    for column, value, limit, _ in (facts["scale"] for facts in all_facts if "scale" in facts):
        low, high = COLUMNS[column].low, COLUMNS[column].high
        here = [value, limit if limit is not None else value]
        seen = ends.setdefault(column, [min(here), max(here)])
        ends[column] = [
            low if math.isfinite(low) else min(seen[0], 1.1 * min(here)),
            float(num_samples) if high is None else high if math.isfinite(high) else max(seen[1], 1.1 * max(here)),
        ]
    return ends


# --- why an image is on the page, in words that need no knowledge of scores -------------------------------------------


def sentence(record: Record, score: str, *, audit: bool = False, vocabulary: Vocabulary | None = None) -> str:
    """Return why an image is looked at; `score` is the gate's, which decided where no other column is named.

    With a vocabulary it names the claim that captions contradict each other on.
    """
    why = _of_reason(record, Reason(record.reason), record.decided_by or score)
    if record.reason == Reason.CONTRADICTED and record.captions and vocabulary is not None:
        why = plain(claims.dispute(record.captions, record.answer, why.removesuffix("."), vocabulary)) + "."
    return ("Accepted without a person, and drawn at random for this audit. " if audit else "") + why


def _of_reason(record: Record, reason: Reason, column: str) -> str:
    if words := REASON_WORDS[reason].page:
        if reason is Reason.NO_ANSWER and probabilities_of(record):
            return "No choice is clearly more probable than every other."
        number = len((record.answers if reason in _ANSWER_REASONS else record.captions) or ())
        error = f": {plain(record.error)}" if record.error else ""
        return words.format(k=number) + error + "."
    value: float | None = getattr(record, column)
    if reason is Reason.NO_SCORE or value is None:
        return f"There is no {column} for this image, and a limit asks for it."
    limit = record.threshold
    statement, share = _STATEMENTS[column]
    if probabilities_of(record):
        statement = _OF_SCORED.get(column, statement)
    told, limited = apart(value, limit, share=share)
    number = len((record.answers if column in ANSWER_COLUMNS else record.captions) or ())
    statement = statement.format(k=number, v=told, c=round(value * number) if share else None)
    if reason is Reason.MOST_UNCERTAIN:
        return f"{statement}; it is among the most uncertain images, which fill the review budget."
    if reason is Reason.LEAST_UNCERTAIN or limit is None:
        return f"{statement}; the images that fill the review budget are more uncertain."
    upper = HIGHER_IS_WORSE.get(column, True) if value == limit else (value < limit) == (reason is Reason.AGREED)
    verb = "are" if column == "vendi_score" else "is"
    return f"{statement}; {'up to' if upper else 'at least'} {limited} {verb} accepted."


def apart(value: float, limit: float | None, *, share: bool) -> tuple[str, str]:
    """Return both in as few digits as tell them apart, at least two."""
    write: Callable[[float, int], str] = _per_cent if share else _significant
    for digits in range(2, 8):
        told = write(value, digits), "" if limit is None else write(limit, digits)
        if limit is None or value == limit or told[0] != told[1]:
            break
    return told


def _significant(value: float, digits: int) -> str:
    if 1 <= abs(value) < 10:
        return f"{value:,.{max(0, digits - 1)}f}"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _per_cent(value: float, digits: int) -> str:
    return f"{value * 100:.{digits - 2}f}%"


# --- which words several readings of one image disagree on ------------------------------------------------------------


def differing(texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Return for each text the ranges of characters (start, end) of the words that not every text asserts.

    A word counts as it is bound: "scratch" in "no scratch" is another word than in "a scratch", and the negator is part
    of the difference. Numbers count; function words and filler do not. Texts without a word are not compared with.
    """
    sets = [content_words(text) for text in texts]
    spoken = [words for words in sets if words]
    common = frozenset.intersection(*spoken) if spoken else frozenset()
    counted = any(_is_number(word.lstrip("¬")) for words in sets for word in words - common)
    return [_ranges(text, words - common, counted) for text, words in zip(texts, sets, strict=True)]


def _is_number(word: str) -> bool:
    return word in _NUMBERS or word[:1].isdecimal()


def _ranges(text: str, unshared: frozenset[str], counted: bool) -> list[tuple[int, int]]:
    negated = any(word.startswith("¬") for word in unshared)
    found: list[tuple[int, int]] = []
    for start, end, words in places(text):
        marked = (
            (negated and NEGATION in words)
            or (counted and "one" in words)
            or any(word in unshared or f"¬{word}" in unshared for word in words)
        )
        if not marked:
            continue
        if found and (start <= found[-1][1] or _JOINED.fullmatch(text, found[-1][1], start)):
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def pieces(text: str, ranges: Sequence[tuple[int, int]]) -> list[str]:
    """Return a text cut at the ranges: what is not marked and what is, in turn, fit to be shown."""
    cuts = [0, *(place for pair in ranges for place in pair), len(text)]
    return [shown(text[a:b]) for a, b in pairwise(cuts)]


def shown(text: str) -> str:
    """Return a text as a page shows it: lines stay lines, all else that could steer a display is escaped."""
    lines = text.replace("\r\n", "\n").replace("\t", " ").split("\n")
    return "\n".join(plain(line) for line in lines)
