"""Time of captions and answers against captions alone.

    python -m tests.bench.answers [--model FOLDER_OR_HUB_ID] [--device auto] [--images 16] [--repeats 5]

Every way is timed once per round, in turn, so that a busy machine slows all of them; the medians are compared. A model
whose prefill cannot be shared has one way less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from tests.bench.engine import picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.config import DEFAULT_QUESTION, ModelConfig, SamplingConfig
from vlmgate.data import Picture

CHOICES = ("no defect", "scratch", "crack", "dent", "stain", "rust", "chipped edge", "missing hole")


def main() -> None:
    """Print seconds an image, and ratios to captions alone."""
    options = _options()
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
    seconds = {name: _timer(engine, pictures) for name, engine in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for timer in seconds.values():
        timer()  # warm up
    for _ in range(options.repeats):
        for name, timer in seconds.items():
            taken[name].append(timer())
    _report(alone, options, taken)


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
    numbers = {"images": 16, "batch": 8, "samples": 8, "tokens": 64, "answer-tokens": 16, "size": 160, "repeats": 5}
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
