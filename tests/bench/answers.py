"""Time of captions and answers against captions alone; what answers are worth, drawn and scored.

    python -m tests.bench.answers [--model FOLDER_OR_HUB_ID] [--device auto] [--images 16] [--repeats 5]
    python -m tests.bench.answers --renders 480 [--seed 2027]

Every way is timed once per round, in turn, so that a busy machine slows all of them; the medians are compared. A model
whose prefill cannot be shared has one way less.

With `--renders` the built-in model answers for so many fresh renders, half of them or more clean; an answer is wrong
that names no defect of the part. AURC (lower is better) and AUROC (higher is better) of the probability of exact
answers are set against those of the share and the probability of 16, 8 and 4 drawn ones, with 95 % intervals of the
paired difference over resampled images. An image without an answer is wrong, and the least to be trusted: that alone
raises the AUROC of what finds fewer answers, so AURC is the one to go by.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench import _builtin
from tests.bench._builtin import Drawn
from tests.bench._sentences import right
from tests.bench.engine import picture
from vlmgate.calibration.figures import Ladder
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.config import DEFAULT_QUESTION, ModelConfig, SamplingConfig
from vlmgate.data import Caption, Picture, Sampled, Scores
from vlmgate.factory.world import DEGRADATIONS
from vlmgate.scores.answer_probability import is_scored
from vlmgate.scores.score import Scorer

Values = NDArray[Any]

CHOICES = ("no defect", "scratch", "crack", "dent", "stain", "rust", "chipped edge", "missing hole")


def main() -> None:
    """Print seconds an image, and ratios to captions alone."""
    options = _options()
    if options.renders:
        return quality(options.seed, options.renders)
    model = ModelConfig(model=options.model, device=options.device)
    base = SamplingConfig(num_samples=options.samples, batch_size=options.batch, max_new_tokens=options.tokens)
    pictures = [picture(i, options.size) for i in range(options.images)]
    alone = _loaded(model, base)
    shared = _loaded(
        model, replace(base, question=DEFAULT_QUESTION, choices=CHOICES, max_answer_tokens=options.answer_tokens)
    )
    ways: dict[str, TransformersCaptioner] = {"captions alone": alone}
    if shared._tails is not None:
        ways["captions + answers, one prefill"] = shared
    ways["captions + answers, two prefills"] = _apart(shared)
    exact = _loaded(model, replace(shared._runner.sampling, answers="exact"))
    if exact._scoring is not None:
        ways["captions + scored choices"] = exact
    seconds = {name: _timer(engine, pictures) for name, engine in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for timer in seconds.values():
        timer()  # warm up
    for _ in range(options.repeats):
        for name, timer in seconds.items():
            taken[name].append(timer())
    _report(alone, options, taken)


def quality(seed: int, renders: int) -> None:
    """Print what exact and drawn answers of fresh renders are worth."""
    each = renders // 3 // len(DEGRADATIONS)
    drawn = list(_builtin.draw(seed, renders - each * len(DEGRADATIONS), each, 0))
    asked = replace(_builtin.asked(SamplingConfig(num_samples=16)), max_new_tokens=1)  # nobody looks at the captions
    said = {way: _builtin.sample(drawn, ModelConfig(), replace(asked, answers=way)) for way in ("exact", "drawn")}
    scored = [is_scored(one.answers) for one in said["exact"]]
    mass = [1 - _scores(one, 0).unparsable_rate for one, it_is in zip(said["exact"], scored, strict=True) if it_is]
    print(f"{len(drawn)} renders, seed {seed}; {sum(scored)} scored; the forms hold {np.mean(mass):.5f}", end=" ")
    print(f"of an image, {min(mass):.5f} at least")
    ways = {("exact", "answer_probability"): _judged(drawn, said["exact"], "answer_probability", 0)}
    for k, column in itertools.product((16, 8, 4), ("answer_probability", "answer_share")):
        ways[f"{k} drawn", column] = _judged(drawn, said["drawn"], column, k)
    first = ways["exact", "answer_probability"]
    samples = np.random.default_rng(0).multinomial(len(drawn), np.full(len(drawn), 1 / len(drawn)), size=1000)
    reference = Ladder.of(*first, samples).aurc()
    for (way, column), (score, wrong) in ways.items():
        whole, more = Ladder.of(score, wrong), Ladder.of(score, wrong, samples).aurc() - reference
        low, high = np.quantile(more, (0.025, 0.975))
        print(
            f"{way:9s} {column:19s} wrong {wrong.mean():.3f}, none {np.isinf(score).mean():.3f}, "
            f"AUROC {float(whole.auroc()[0]):.4f}, AURC {float(whole.aurc()[0]):.4f}, "
            f"more than exact {more.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        )


def _judged(drawn: Sequence[Drawn], said: Sequence[Sampled], column: str, k: int) -> tuple[Values, Values]:
    """Return (N,) scores turned so that higher is worse, infinite without an answer, and where the answer is wrong."""
    scores, wrong = [], []
    for image, one in zip(drawn, said, strict=True):
        found = _scores(one, k)
        value = getattr(found, column) if found.answer is not None else None
        tie = column == "answer_share" and value is not None and value <= 0.5 and _is_tie(one, k)
        value = None if tie else value
        answer = None if value is None else found.answer
        truth = [defect.condition for defect in image.made.truth.defects] if image.made else []
        scores.append(math.inf if value is None else -value)
        wrong.append(not right(answer, truth, _builtin.CHOICES))
    return np.array(scores), np.array(wrong, float)


def _scores(one: Sampled, k: int) -> Scores:
    answers = one.answers if is_scored(one.answers) else (one.answers or ())[:k]
    caption = Caption("a steel washer with a scratch", "stop", -0.1, 6)
    return Scorer("", _builtin.CHOICES).score(Sampled((caption,) * 2, answers))[0]


def _is_tie(one: Sampled, k: int) -> bool:
    return Scorer("", _builtin.CHOICES).answer((one.answers or ())[:k]) is None


def _report(engine: TransformersCaptioner, options: argparse.Namespace, taken: dict[str, list[float]]) -> None:
    info = engine.info
    print(
        f"{info.model} ({info.architecture}, {info.num_parameters / 1e6:.1f} M) · {info.device} {info.dtype} · "
        f"K = {options.samples}, at most {options.tokens} and {options.answer_tokens} tokens, "
        f"batches of {options.batch}, {options.repeats} rounds"
    )
    first = statistics.median(next(iter(taken.values())))
    for name, values in taken.items():
        middle = statistics.median(values)
        spread = f"{min(values) / options.images:.4f} to {max(values) / options.images:.4f}"
        print(f"{name:34s} {middle / options.images:8.4f} s/image ({spread})  ratio {middle / first:.3f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--device", default="auto")
    numbers = {
        "renders": 0,
        "seed": 2027,
        "images": 16,
        "batch": 8,
        "samples": 8,
        "tokens": 64,
        "answer-tokens": 16,
        "size": 160,
        "repeats": 5,
    }
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def _loaded(model: ModelConfig, sampling: SamplingConfig) -> TransformersCaptioner:
    engine = load_captioner(model, sampling)
    assert isinstance(engine, TransformersCaptioner)
    return engine


def _apart(engine: TransformersCaptioner) -> TransformersCaptioner:
    other = copy.copy(engine)
    other._tails = None
    return other


def _timer(engine: TransformersCaptioner, pictures: list[Picture]) -> Callable[[], float]:
    def run() -> float:
        begun = time.perf_counter()
        engine.read(pictures)
        return time.perf_counter() - begun

    return run


if __name__ == "__main__":
    main()
