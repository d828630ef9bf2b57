"""What a model said of images, joined with what people say of them, and scored for any number of samples.

`join` matches a result with labels; `evidence` scores the first K samples of every image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlmgate.calibration.figures import Mask, Vector
from vlmgate.calibration.labels import Kind, Labels, respelt
from vlmgate.calibration.parts import Numbers, check_all, part_in, parts_of
from vlmgate.data import Decision, Key, Reason, Record, Route, Sampled, columns_of
from vlmgate.errors import LabelError
from vlmgate.gate.reasons import UNREAD, no_probability
from vlmgate.gate.rules import HIGHER_IS_WORSE, PROBABILITY, Candidate, Limit, bars
from vlmgate.run.rescore import said_of
from vlmgate.scores.answer_probability import is_scored
from vlmgate.scores.diversity import FINDINGS, Kernel
from vlmgate.scores.score import Scorer

GOOD = frozenset(
    ("good", "ok", "okay", "none", "normal", "pass", "passed", "clean", "fine", "intact", "no defect", "defect free")
)
OF_KERNEL = ("vendi_score", "mean_dissimilarity", "semantic_entropy", "cocoa", "support", "doubt", "view_contrast")
# What a gate may go by; columns that order images as another one does are left out. Of equals the first is taken: with
# few labels many are equal, and of 400 calibrations on the built-in model 337 gates at 10 % risk came out of this order
# against 261 with those of the captions first.
SCORES = (
    *("answer_probability", "answer_share"),
    *OF_KERNEL,
    *("verdict_share", "mean_logprob", "answer_entropy", "abstain_rate", "novelty"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """N images that were read and that a person has labelled, each content once."""

    kind: Kind
    records: tuple[Record, ...]  # N
    labels: tuple[str, ...]  # N; the class in the words of the choices, or the verdict
    choices: tuple[str, ...]
    good: str | None  # the choice that passes a part
    prompt: str
    terms: str | None  # the text of a `--terms` file
    num_samples: int
    views: int
    truths: tuple[str | None, ...]  # N; the class of the part, as far as the labels tell
    novelties: tuple[float | None, ...]  # N; from what the checkpoint carries, for a scan would measure from that
    notes: tuple[str, ...] = ()  # what was left out, in words
    parts: tuple[int, ...] = ()  # N; which images show the same part, in numbers from 0; empty = each shows another

    @property
    def part_of(self) -> Numbers:
        """Return (N,): the number of the part that each image shows, from 0. One part is one trial."""
        return np.array(self.parts if self.parts else range(len(self.records)), np.int64)

    def only(self, kept: Sequence[int]) -> Labelled:
        """Return the readings at these places; their parts are numbered anew."""
        held: dict[str, Any] = {
            n: tuple(getattr(self, n)[i] for i in kept) for n in ("records", "labels", "truths", "novelties")
        }
        parts = np.unique(self.part_of[list(kept)], return_inverse=True)[1].tolist() if self.parts else ()
        return replace(self, **held, parts=tuple(parts))

    @property
    def grouped(self) -> bool:
        """Say whether some part has several images."""
        return len(set(self.parts)) < len(self.parts)

    @property
    def stands(self) -> Mask:
        """Return (N,): the one image that stands for its part, drawn by the hashes of their bytes alone."""
        if not self.grouped:
            return np.ones(len(self.records), bool)
        first: dict[int, int] = {}
        order = sorted(range(len(self.records)), key=lambda i: drawn(self.records[i], "part"))
        for i in order:
            first.setdefault(self.parts[i], i)
        found = np.zeros(len(self.records), bool)
        found[list(first.values())] = True
        return found

    @property
    def word(self) -> str:
        """Return what a reading is that should not be trusted."""
        return "ambiguous" if self.kind == "ambiguity" else "wrong"

    @property
    def bad(self) -> Mask:
        """Return (N,): the part is known to have a defect."""
        return np.array([truth is not None and truth != self.good for truth in self.truths])

    @property
    def known(self) -> Mask:
        """Return (N,): it is known whether the part has a defect."""
        return np.array([truth is not None for truth in self.truths])


def join(
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    labels: Labels,
    *,
    label_map: Mapping[str, str] | None = None,
    good: str | None = None,
    pattern: re.Pattern[str] | None = None,
) -> Labelled:
    """Return the labelled readings; raises `LabelError` where there are none, or of one kind only.

    Which images show one part is said by the labels, or by the group `part` of a `pattern` that is looked for in file
    names; where neither says it, near copies count as one part.
    """
    sampling = provenance["sampling"]
    if sampling.get("first_samples") is not None:
        raise LabelError(
            "the result holds as many samples of each image as its own limits needed, and a calibration needs the same "
            "number of all; scan with --num-samples, or calibrate the labelled folder itself."
        )
    choices = tuple(sampling.get("choices") or ())
    found, named, notes = _matched(records, provenance, labels, pattern)
    if labels.kind == "class":
        if not choices:
            raise LabelError(
                "the result holds no answers, so nothing can be compared with class labels; calibrate the labelled "
                "folder itself, scan with --choices, or give verdicts."
            )
        found, left = _mapped(found, choices, label_map or {})
        notes += left
    if labels.kind == "verdict":
        found, left = _evened(found, records)
        notes += left
    if unknown := no_probability([record for record, _ in found]):
        notes.append(unknown)
    good = good_class(choices, good)
    _check([label for _, label in found], labels)
    packed = [record.vision_features for record, _ in found]
    names = [named[str(record.sha256), record.page] for record, _ in found] if named else []
    parts, said = parts_of(packed, names)
    notes += said
    carried = (provenance.get("reference") or {}).get("folder") == "checkpoint"
    return Labelled(
        kind=labels.kind,
        records=tuple(record for record, _ in found),
        labels=tuple(label for _, label in found),
        choices=choices,
        good=good,
        prompt=sampling["prompt"],
        terms=sampling.get("terms"),
        num_samples=sampling["num_samples"],
        views=sampling.get("views", 1),
        truths=tuple(_truth(record, label, labels, choices, good) for record, label in found),
        novelties=tuple(record.novelty if carried else None for record, _ in found),
        notes=tuple(notes),
        parts=parts,
    )


def good_class(choices: Sequence[str], named: str | None) -> str | None:
    """Return the choice that passes a part: the one named, or the only one that is called so; raises `LabelError`."""
    if named is not None:
        same = [choice for choice in choices if folded(choice) == folded(named)]
        if not same:
            raise LabelError(f"--good '{named}' is none of the classes {', '.join(choices)}.")
        return same[0]
    found = [choice for choice in choices if folded(choice) in GOOD]
    return found[0] if len(found) == 1 else None


def folded(label: str) -> str:
    """Return a class name such that "Missing_Hole" and "missing hole" are one."""
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()


def _matched(
    records: Sequence[Record], provenance: Mapping[str, Any], labels: Labels, pattern: re.Pattern[str] | None
) -> tuple[list[tuple[Record, str]], dict[Key, set[str]], list[str]]:
    """Return rows with their labels, each content once, the parts that each content shows, and what was left out."""
    names = {record.file_name for record in records}
    own = labels.for_images(names)
    by_name = respelt(_names_in_result(own, own.by_name, provenance), names)
    parts = respelt(_names_in_result(own, own.parts, provenance), names)
    named: dict[Key, set[str]] = {}
    told: list[tuple[str, str | None]] = []
    found: dict[Key, tuple[Record, set[str]]] = {}
    unread = matched = 0
    for record in records:
        label = labels.by_content.get((record.sha256, record.page)) if record.sha256 else None
        label = label or by_name.get((record.file_name, record.page))
        if label is None:
            continue
        matched += 1
        if record.captions is None or record.sha256 is None or record.reason in UNREAD:
            unread += 1
        else:
            found.setdefault((record.sha256, record.page), (record, set()))[1].add(label)
            part = parts.get((record.file_name, record.page))
            part = part or labels.parts_by_content.get((record.sha256, record.page))
            told.append((record.file_name, part_in(record.file_name, pattern) if pattern else part))
            named.setdefault((record.sha256, record.page), set()).add(told[-1][1] or "")
    if not matched:
        first = next(iter(by_name or labels.by_content), ("", 1))[0]
        first_row = records[0].file_name if records else "no image"
        raise LabelError(
            f"{labels.source}: none of its {len(labels):,} labels matches an image of the result, first '{first}' "
            f"beside '{first_row}'; file_name must be relative to the scanned folder."
        )
    kept = [(record, next(iter(said))) for record, said in found.values() if len(said) == 1]
    torn = len(found) - len(kept)
    copies = matched - unread - len(found)
    notes = []
    if len(labels) > matched:
        notes.append(f"{len(labels) - matched:,} labels of images that are not in the result")
    if matched < len(records):
        notes.append(f"{len(records) - matched:,} images of the result without a label")
    if unread:
        notes.append(f"{unread:,} labelled images that could not be read; they always go to a person")
    if copies:
        notes.append(f"{copies:,} exact copies; counted twice they would promise too much")
    if torn:
        notes.append(f"{torn:,} images whose copies have different labels")
    grouping = pattern is not None or bool(labels.parts or labels.parts_by_content)
    if grouping:
        check_all(told, "--group-pattern" if pattern else "--group")
    return kept, named if grouping else {}, notes


def _names_in_result(labels: Labels, said: Mapping[Key, str], provenance: Mapping[str, Any]) -> dict[Key, str]:
    """Return what labels say of names by the result's own, where one of the two folders lies in the other."""
    scanned = Path(provenance["folder"])
    if labels.folder is None or not scanned.is_absolute():
        return dict(said)
    folder, longer, shorter = labels.folder.resolve(), "", ""
    if folder.is_relative_to(scanned):
        longer = f"{folder.relative_to(scanned).as_posix()}/".removeprefix("./")
    elif scanned.is_relative_to(folder):
        shorter = f"{scanned.relative_to(folder).as_posix()}/"
    return {(longer + name.removeprefix(shorter), page): label for (name, page), label in said.items()}


def _mapped(
    found: Sequence[tuple[Record, str]], choices: Sequence[str], label_map: Mapping[str, str]
) -> tuple[list[tuple[Record, str]], list[str]]:
    """Return the labels in the words of the choices; raises `LabelError` for one that is none of them."""
    renamed = {folded(name): to for name, to in label_map.items()}
    known = {folded(choice): choice for choice in choices}
    kept, dropped = [], 0
    unknown: Counter[str] = Counter()
    for record, label in found:
        to = renamed.get(folded(label), label)
        if not to.strip():
            dropped += 1
        elif (choice := known.get(folded(to))) is None:
            unknown[label] += 1
        else:
            kept.append((record, choice))
    if unknown:
        label, number = unknown.most_common(1)[0]
        raise LabelError(
            f"the label '{label}' ({number:,} images) is none of the choices {', '.join(choices)}; "
            f"--label-map '{label}=CHOICE' names it, --label-map '{label}=' leaves it out."
        )
    return kept, [f"{dropped:,} images whose label is mapped to nothing"] if dropped else []


def _evened(
    found: Sequence[tuple[Record, str]], records: Sequence[Record]
) -> tuple[list[tuple[Record, str]], list[str]]:
    """Thin verdicts so that accepted and routed images were judged equally often.

    A promise holds for what was drawn like the images that made it. Whoever judges all routed images and an audit of
    the accepted ones has drawn the routed ones more often. Which of them stay follows from their hashes alone.
    """
    judged = Counter(record.route for record, _ in found)
    there = Counter(r.route for r in records if r.captions is not None)
    rates = {route: judged[route] / there[route] for route in (Route.AUTO_ACCEPT, Route.HUMAN_REVIEW) if there[route]}
    least = min(rates.values(), default=1.0)
    if least == 0:
        missing = "auto-accepted" if not judged[Route.AUTO_ACCEPT] else "routed"
        raise LabelError(
            f"none of the {missing} images has a verdict, so nothing is known of them; "
            "judge a random sample of them, too (vlmgate review --accepted 50)."
        )
    if max(rates.values()) - least <= 0.02:
        return list(found), []
    kept = [(r, label) for r, label in found if drawn(r, "even") < least / rates[Route(r.route)]]
    routed, accepted = Route.HUMAN_REVIEW, Route.AUTO_ACCEPT
    note = (
        f"{len(found) - len(kept):,} verdicts set aside: {judged[routed]:,} of {there[routed]:,} routed and "
        f"{judged[accepted]:,} of {there[accepted]:,} accepted images were judged, and a promise needs both alike"
    )
    return kept, [note]


def drawn(record: Record, purpose: str) -> float:
    """Return a number in [0, 1) that follows from an image's bytes and a purpose alone."""
    import hashlib

    digest = hashlib.sha256(f"{purpose}:{record.sha256}:{record.page}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _check(found: Sequence[str], labels: Labels) -> None:
    """Raise `LabelError` where no image or only one class is left."""
    if not found:
        raise LabelError(
            f"{labels.source}: no labelled image has a reading; see the log for why they could not be read."
        )
    if len(set(found)) == 1 and labels.kind != "verdict":
        raise LabelError(
            f"{labels.source}: all {len(found):,} labels are '{found[0]}'; it takes images of two classes at least."
        )


def _truth(record: Record, label: str, labels: Labels, choices: Sequence[str], good: str | None) -> str | None:
    """Return the class of the part; null where the labels do not tell."""
    if labels.kind == "class":
        return label
    if labels.kind == "ambiguity" or record.answer is None or label == "unusable":
        return None
    if label == "correct":
        return record.answer
    read = labels.readings.get((record.file_name, record.page))
    same = [choice for choice in choices if read is not None and folded(choice) == folded(read)]
    if same:
        return same[0]
    others = [choice for choice in choices if choice != good]
    return others[0] if record.answer == good and others else None  # a wrong "good" is a defect, whichever


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the first K samples of N images say under one kernel, and where that is wrong."""

    num_samples: int  # K
    kernel: str
    scores: Mapping[str, Vector]  # column → (N,), turned so that higher is worse; infinite = always routed
    wrong: Mask  # (N,) also where two choices were named equally often, whichever is the likelier
    answers: tuple[str | None, ...]  # N
    usable: Mask  # (N,) captions and answers are readings, and every limit holds
    barred: Mapping[str, int]  # why others are not usable, with numbers
    tied: Mask | None = None  # (N,) besides, for `answer_probability` alone: two choices were named equally often

    @property
    def within(self) -> Mask:
        """Return (N,): what some gate might accept."""
        return self.usable if self.tied is None else self.usable | self.tied

    def gated(self, column: str) -> Vector:
        """Return (N,): the scores of a column, infinite for what a gate would never accept."""
        usable = self.usable
        if self.tied is not None and column == PROBABILITY:
            usable = usable | self.tied
        found: Vector = np.where(usable, self.scores[column], np.inf)
        return found

    def says(self, choice: str | None) -> Mask:
        """Return (N,): the answer is this choice."""
        return np.array([answer is not None and answer == choice for answer in self.answers])


def evidence(
    labelled: Labelled,
    num_samples: int,
    kernel: Kernel | None = None,
    *,
    name: str = FINDINGS,
    limits: Sequence[Limit] = (),
    novelty: Sequence[float | None] | None = None,
) -> Evidence:
    """Score the first `num_samples` of every image; raises `ValueError` where fewer were drawn.

    `novelty` (N,) takes the place of the result's own column.
    """
    if not 2 <= num_samples <= labelled.num_samples:
        raise ValueError(f"{num_samples} samples of {labelled.num_samples}.")
    scorer = Scorer(labelled.prompt, labelled.choices, kernel, labelled.terms)
    said = [_first(said_of(record), num_samples) for record in labelled.records]
    scorer.prepare(said)
    novelty = labelled.novelties if novelty is None else novelty
    scored = [scorer.score(one, far) for one, far in zip(said, novelty, strict=True)]
    candidates = [
        Candidate(replace(record, **columns_of(scores), novelty=far), reason)
        for record, (scores, reason), far in zip(labelled.records, scored, novelty, strict=True)
    ]
    answers = tuple(scores.answer for scores, _ in scored)
    wrong = _wrong(labelled, answers)
    if labelled.kind != "ambiguity":  # ties, which only some scores break, too: so all are graded by the same readings
        wrong |= np.array([reason is Reason.NO_ANSWER for _, reason in scored])
    decisions = [bars(candidate, limits) for candidate in candidates]
    usable = np.array([decision is None for decision in decisions])
    by_probability = np.array([bars(candidate, limits, PROBABILITY) is None for candidate in candidates])
    return Evidence(
        num_samples=num_samples,
        kernel=name,
        scores={column: _turned(candidates, column) for column in SCORES},
        wrong=wrong,
        answers=answers,
        usable=usable,
        tied=by_probability & ~usable,
        barred=Counter(_why(decision) for decision in decisions if decision is not None),
    )


def _why(decision: Decision) -> str:
    words = str(decision.reason).replace("_", " ")
    return words if decision.column is None else f"{words} ({decision.column})"


def _first(said: Sampled, num_samples: int) -> Sampled:
    return replace(
        said,
        captions=said.captions[:num_samples],
        answers=said.answers if is_scored(said.answers) else said.answers and said.answers[:num_samples],
        views=None if said.views is None else said.views[:num_samples],
    )


def _turned(candidates: Sequence[Candidate], column: str) -> Vector:
    sign = 1.0 if HIGHER_IS_WORSE[column] else -1.0
    values = [None if c.reason is not None and c.reason != Reason.NO_ANSWER else c.value(column) for c in candidates]
    return np.array([np.inf if value is None else sign * value for value in values])


def _wrong(labelled: Labelled, answers: Sequence[str | None]) -> Mask:
    if labelled.kind == "class":
        return np.array([answer != label for answer, label in zip(answers, labelled.labels, strict=True)])
    if labelled.kind == "ambiguity":
        return np.array([label != "clear" for label in labelled.labels])
    # A verdict is on what the person saw. Where fewer samples come to another answer, nobody has judged that.
    judged = [record.answer for record in labelled.records]
    return np.array([v != "correct" or a != j for v, a, j in zip(labelled.labels, answers, judged, strict=True)])


def columns_there(evidence: Evidence) -> list[str]:
    """Return the columns that have a value for some image."""
    return [column for column, values in evidence.scores.items() if np.isfinite(values).any()]


def in_own_units(score: str, threshold: float) -> float:
    """Return a threshold on a turned score in the units of its column."""
    return threshold if HIGHER_IS_WORSE[score] else -threshold + 0.0
