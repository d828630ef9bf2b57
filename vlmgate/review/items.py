"""Which images are looked at, in which order, and what the page is told of each.

Knows rows, gates and what a reviewer has to know; knows nothing of files, pixels or HTML.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmgate.data import Reason, Record, Route
from vlmgate.errors import UsageError, plain
from vlmgate.gate.rules import COLUMNS, HIGHER_IS_WORSE, Gate
from vlmgate.report.summary import reason_of, routed_worst_first
from vlmgate.review.marks import differing, pieces, shown
from vlmgate.review.sentences import sentence
from vlmgate.scores.words import content_words

LONGEST = 4000  # characters of a caption or an answer that the page is told
MOST_TEXTS = 64  # different captions or answers of one image that the page is told
_SIDES = {True: "<=", False: ">="}


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


def facts_of(item: Item, gate: Gate) -> dict[str, Any]:
    """Return what the page is told of one image, but for its preview; what is absent is left out.

    name: file name as it is shown, raw: as it is, where that differs; key; why: sentence; captions and answers: see
    `_said`; typical: index of the caption that was taken for the reading; scale: see `_scale`.
    """
    row = item.record
    captions, typical = _captions(row)
    facts: dict[str, Any] = {
        "name": plain(row.file_name),
        "raw": row.file_name if plain(row.file_name) != row.file_name else None,
        "key": item.key,
        "sha": row.sha256,
        "page": row.page,
        "pages": row.num_pages if (row.num_pages or 1) > 1 else None,
        "reason": item.reason,
        "audit": item.audit or None,
        "why": sentence(row, gate.score, audit=item.audit),
        "captions": captions,
        "typical": typical,
        "answers": _said(row.answers, row.answer_finishes, None, marked=False),
        "answer": None if row.answer is None else shown(row.answer),
        "scale": _scale(row, gate),
        "about": _about(row),
        "copy": plain(row.duplicate_of) if row.duplicate_of else None,
    }
    return {name: value for name, value in facts.items() if value is not None and value != []}


def _about(row: Record) -> str | None:
    if not row.width:
        return None
    return plain(
        f"{row.width:,} × {row.height:,} pixels, {row.mode}" + (f"; {row.conversion}" if row.conversion else "")
    )


def _captions(row: Record) -> tuple[list[dict[str, Any]], int | None]:
    """Return the captions, the typical one first, and its index: that of what the machine takes for the reading."""
    said = _said(row.captions, row.caption_finishes, row.caption, marked=True)
    reading = shown(row.caption[:LONGEST]) if row.caption else None
    if reading is None:  # no reading was settled on; what was said most often stands in for it
        reading = next((text for one in said if (text := "".join(one["text"])).strip()), None)
    index = next((i for i, one in enumerate(said) if "".join(one["text"]) == reading), None)
    if index is None or reading is None:
        return said, None
    said.insert(0, said.pop(index))
    asserted = content_words(reading)
    for one in said:
        if content_words("".join(one["text"])) == asserted:
            one["same"] = True
    return said, 0


def _said(
    texts: Sequence[str] | None, finishes: Sequence[str] | None, reading: str | None, *, marked: bool
) -> list[dict[str, Any]]:
    """Return what was sampled, the same texts merged, the most frequent first.

    times: how often; text: pieces, the second, fourth … of which others disagree with; finish, where the model did not
    end it; same: asserts what the reading does.
    """
    ends = finishes or ("stop",) * len(texts or ())
    counted = Counter((text[:LONGEST], finish) for text, finish in zip(texts or (), ends, strict=True))
    told = counted.most_common(MOST_TEXTS)
    if reading is not None and all(text != reading[:LONGEST] for (text, _), _ in told):
        told[-1] = next(one for one in counted.items() if one[0][0] == reading[:LONGEST])
    ranges = differing([text for (text, _), _ in told]) if marked else [[] for _ in told]
    return [
        {"times": times, "text": pieces(text, where)} | ({} if finish == "stop" else {"finish": finish})
        for ((text, finish), times), where in zip(told, ranges, strict=True)
    ]


def _scale(row: Record, gate: Gate) -> list[Any] | None:
    """Return [column, value, limit or None, side that is accepted] of the column that decided, or the gate's score."""
    column = row.decided_by or gate.score
    value: float | None = getattr(row, column)
    if value is None or not math.isfinite(value) or row.captions is None:
        return None
    limit = row.threshold if row.decided_by or row.reason == Reason.DISAGREED else gate.threshold
    if limit is None or not math.isfinite(limit):
        return [column, value, None, _SIDES[HIGHER_IS_WORSE.get(column, True)]]
    upper = HIGHER_IS_WORSE.get(column, True)
    if row.reason == Reason.BEYOND_LIMIT:
        upper = value > limit
    return [column, value, limit, _SIDES[upper]]


def scales(items: Sequence[Item], told: Sequence[Mapping[str, Any]], num_samples: int) -> dict[str, list[float]]:
    """Return the ends of each column's scale; where it has none, what is seen and the limits, with a margin."""
    ends: dict[str, list[float]] = {}
    for facts in told:
        if "scale" not in facts:
            continue
        column, value, limit, _ = facts["scale"]
        low, high = COLUMNS[column].low, COLUMNS[column].high
        here = [value, limit if limit is not None else value]
        seen = ends.setdefault(column, [min(here), max(here)])
        ends[column] = [
            low if math.isfinite(low) else min(seen[0], 1.1 * min(here)),
            float(num_samples) if high is None else high if math.isfinite(high) else max(seen[1], 1.1 * max(here)),
        ]
    return ends
