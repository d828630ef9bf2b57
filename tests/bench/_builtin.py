"""What the built-in model says of freshly drawn images, read as a scan reads them, with what is true of each.

Start with `draw` and `read`; `judged` says which parts of the captions are right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from tests.bench._anomalies import KINDS, draw_anomaly
from tests.bench._sentences import majority, named, read_sentence, right
from vlmgate.captioner import load_captioner
from vlmgate.config import DEFAULT_QUESTION, ModelConfig, SamplingConfig
from vlmgate.data import Caption, Picture, Sampled
from vlmgate.factory.captions import FULL
from vlmgate.factory.checkpoint import picture_of
from vlmgate.factory.render import Render, Wanted, render
from vlmgate.factory.world import CLEAN, DEGRADATIONS, Truth
from vlmgate.gate.rules import HIGHER_IS_WORSE, Candidate
from vlmgate.images.quality import measure
from vlmgate.scores.answers import Parsed, parse
from vlmgate.scores.novelty import Reference
from vlmgate.scores.score import Scorer

STREAM = 4  # first word of every seed drawn here; training and the sample images use others
STRONG = 0.7  # severity from which a degradation counts as strong
ASPECTS = ("part", "finish", "condition", "position", "all defects")
PHOTOGRAPH = "photograph"
CHOICES = FULL.choices
TOLD = 32  # further answers without the offer, which tell how often an answer comes


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """An image, what is true of it, and what was said of it."""

    group: str  # "clean", a degradation, or a kind of anomaly
    made: Render | None  # None for an anomaly, of which nothing that can be said is true
    right: Mapping[str, bool]  # by majority of the captions; a position only where there is a defect
    candidate: Candidate  # what a gate would be shown
    scores: Mapping[str, float]  # all turned so that higher = less to be trusted; without a value it is not at all
    offered: tuple[Parsed, ...]  # K answers where "unsure" was offered
    forced: tuple[Parsed, ...]  # K answers where it was not
    told: tuple[Parsed, ...]  # `TOLD` more of those

    @property
    def strong(self) -> bool:
        """Say whether the image is strongly degraded."""
        return self.made is not None and self.made.severity >= STRONG

    def is_right(self, answer: str | None) -> bool:
        """Say whether an answer names a defect that the part has, or none where it has none."""
        return self.made is not None and right(
            answer, [defect.condition for defect in self.made.truth.defects], CHOICES
        )


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """An image that is to be read."""

    group: str
    image: Image.Image
    made: Render | None = None


def draw(seed: int, clean: int, each: int, anomalies: int) -> Iterator[Drawn]:
    """Draw `clean` clean images, `each` of every degradation, half of those strong, and `anomalies` of every kind."""
    for i in range(clean):
        made = render((STREAM, seed, 0, i), Wanted(degradation=CLEAN))
        yield Drawn("clean", made.image, made)
    for k, kind in enumerate(DEGRADATIONS, start=1):
        for i in range(each):
            share = (i // 2 + 0.5) / max(1, each // 2)
            severity = STRONG + (1 - STRONG) * share if i % 2 else 0.1 + (STRONG - 0.1) * share
            made = render((STREAM, seed, k, i), Wanted(degradation=kind, severity=min(severity, 1.0)))
            yield Drawn(kind, made.image, made)
    for k, kind in enumerate(KINDS, start=100):
        for i in range(anomalies):
            yield Drawn(kind, draw_anomaly(kind, (STREAM, seed, k, i)))


def photographs(folder: Path) -> Iterator[Drawn]:
    """Open the images of a folder as what the model was never shown; raises `OSError` for what is none."""
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            yield Drawn(PHOTOGRAPH, image.convert("RGB"))


def read(
    drawn: Sequence[Drawn],
    model: ModelConfig,
    sampling: SamplingConfig,
    reference: Reference,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Reading]:
    """Return what the model says of each image: captions, and answers with and without the offer to be unsure."""
    asking = asked(sampling)
    tell(f"reading {len(drawn):,} images, offering to be unsure")
    offered = sample(drawn, model, asking)
    tell("asking again, without the offer")
    short = replace(asking, abstain=False, max_new_tokens=1, num_samples=sampling.num_samples + TOLD)
    forced = sample(drawn, model, short)
    scorer = Scorer(asking.prompt, CHOICES)
    return [_judge(*three, scorer, reference) for three in zip(drawn, offered, forced, strict=True)]


def asked(sampling: SamplingConfig) -> SamplingConfig:
    """Return the sampling with the question for the condition, and the offer to be unsure."""
    return replace(sampling, question=DEFAULT_QUESTION, choices=CHOICES, abstain=True)


def sample(drawn: Sequence[Drawn], model: ModelConfig, sampling: SamplingConfig) -> list[Sampled]:
    """Return what the model says of each image, under any sampling."""
    captioner, batch = load_captioner(model, sampling), sampling.batch
    shown = pictures(drawn)
    return [one for start in range(0, len(shown), batch) for one in captioner.read(shown[start : start + batch])]


def mixed(groups: Sequence[str]) -> list[int]:
    """Return which images, told by their groups, are the mixed set: all the degraded and at most as many clean ones."""
    degraded = [i for kind in DEGRADATIONS for i, group in enumerate(groups) if group == kind]
    return [i for i, group in enumerate(groups) if group == "clean"][: len(degraded)] + degraded


def seconds_per_image(drawn: Sequence[Drawn], model: ModelConfig, sampling: SamplingConfig) -> float:
    """Return how long K captions of an image take in batches, the median of five batches."""
    captioner = load_captioner(model, sampling)
    batch = pictures(drawn[: sampling.batch])
    captioner.read(batch)  # warm up
    taken = []
    for _ in range(5):
        begin = time.monotonic()
        captioner.read(batch)
        taken.append((time.monotonic() - begin) / len(batch))
    return sorted(taken)[2]


def pictures(drawn: Sequence[Drawn]) -> list[Picture]:
    """Return the images as a captioner takes them."""
    return [picture_of(i, one.image) for i, one in enumerate(drawn)]


def _judge(drawn: Drawn, offered: Sampled, forced: Sampled, scorer: Scorer, reference: Reference) -> Reading:
    novelty = float(reference.novelty([offered.features or ()])[0])
    scores, reason = scorer.score(offered, novelty)
    candidate = Candidate.of(drawn.group, scores, reason, measure(drawn.image), novelty)
    return Reading(
        group=drawn.group,
        made=drawn.made,
        right=judged(drawn.made.truth if drawn.made else None, offered.captions),
        candidate=candidate,
        scores={name: untrusted(candidate, name) for name in HIGHER_IS_WORSE if name != "view_contrast"},
        offered=_parsed(offered),
        forced=_parsed(forced)[: len(offered.captions)],
        told=_parsed(forced)[len(offered.captions) :],
    )


def _parsed(sampled: Sampled) -> tuple[Parsed, ...]:
    return tuple(parse(answer.text, CHOICES) for answer in sampled.answers or ())


def untrusted(candidate: Candidate, name: str) -> float:
    """Return a score turned so that higher = less to be trusted; infinite for an image without a value."""
    value = candidate.value(name)
    return math.inf if value is None else value if HIGHER_IS_WORSE[name] else -value


def judged(truth: Truth | None, captions: Sequence[Caption]) -> dict[str, bool]:
    """Return what is right by majority of the captions; nothing of what is no part."""
    if truth is None:
        return {}
    said = [read_sentence(caption.text) for caption in captions]
    right = {
        "part": majority([one.part for one in said]) == truth.part,
        "finish": majority([one.finish for one in said]) == truth.finish,
        "condition": majority([named(one.conditions) for one in said]) == truth.condition,
        "all defects": majority([one.conditions for one in said])
        == frozenset(defect.condition for defect in truth.defects),
    }
    if truth.position is not None:
        right["position"] = majority([one.position for one in said]) == truth.position
    return right
