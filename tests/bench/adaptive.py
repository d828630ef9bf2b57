"""What `--samples 4..16` saves, and how often it decides otherwise than all samples would.

    python -m tests.bench.adaptive --seed 5 [--clean 300] [--each 30] [--samples 4..16] [--cache FILE] [--json FILE]

The built-in model reads freshly drawn images K times; what a scan would have drawn of each, and how it would have
decided, follows from those, for the first k samples are the same. Beside the rule, which decides by exact bounds alone,
stands one that also accepts after so many samples that all say the same; it is not in use, and the figures say why. A
share that differs comes with its 95 % interval (Clopper & Pearson).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import beta

from tests.bench import _builtin as measure
from tests.bench._common import Drawing, Read, Source, readings
from tests.bench._timing import table, write
from vlmgate.captioner.location import OWN_LIMITS, OWN_NOVELTY
from vlmgate.config import SamplingConfig
from vlmgate.config.scan import split_samples
from vlmgate.data import Route, Sampled
from vlmgate.gate.early_stop import Foresight, looks
from vlmgate.gate.rules import Candidate, Gate, decide, make_gate
from vlmgate.scores.diversity import FINDINGS, load_kernel
from vlmgate.scores.score import Scorer

VENDI_SCORES = (1.5, 3.0)  # other limits that a user might set
ACCEPT = Route.AUTO_ACCEPT
EQUAL = (4, 8, 12)  # samples that all say the same


@dataclass(frozen=True, slots=True)
class Split:
    """A gate, how captions are compared, and whether a question is asked."""

    name: str
    gate: Gate
    kernel: str = FINDINGS
    answered: bool = False

    @property
    def scorer(self) -> Scorer:
        """Return what scores the images."""
        return Scorer("", measure.CHOICES if self.answered else (), load_kernel(self.kernel))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of some images."""

    images: int
    differ: int
    accepted_wrongly: int  # where all samples would have sent the image to a person
    samples: int
    samples_of_all: int
    tokens: int
    tokens_of_all: int
    stopped: int

    @property
    def saving(self) -> float:
        """Return how many times fewer tokens were drawn."""
        return self.tokens_of_all / max(1, self.tokens)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the share that differs."""
        n, x = self.images, self.differ
        low = float(beta.ppf(0.025, x, n - x + 1)) if x else 0.0
        return low, float(beta.ppf(0.975, x + 1, n - x)) if x < n else 1.0

    @property
    def share(self) -> str:
        """Return the share that differs, in percent, with its interval."""
        low, high = self.interval
        return f"{100 * self.differ / max(1, self.images):.2f} ({100 * low:.2f} to {100 * high:.2f})"


def splits(most: int) -> list[Split]:
    """Return the splits that are tried: those of the built-in model, the default of any other, and other limits."""
    novel = ("novelty <= 1",)
    return [
        Split("built-in model's own", make_gate(num_samples=most, own=(*OWN_LIMITS[FINDINGS], *OWN_NOVELTY))),
        Split("vendi_score ≤ 1.25", make_gate(num_samples=most)),
        *(Split(f"vendi_score ≤ {v:g}", make_gate(num_samples=most, threshold=v, limits=novel)) for v in VENDI_SCORES),
        Split(
            "with --choices, own",
            make_gate(num_samples=most, answered=True, own=(*OWN_LIMITS[FINDINGS], *OWN_NOVELTY)),
            answered=True,
        ),
        Split("with --choices", make_gate(num_samples=most, answered=True), answered=True),
    ]


def outcome(
    reads: Sequence[tuple[Sampled, float | None]],
    gate: Gate,
    first: int,
    most: int,
    scorer: Scorer | None = None,
    equal: int | None = None,
) -> Outcome:
    """Return what a scan would have made of images with K captions each.

    With `equal` it would also accept after so many samples that all say the same.
    """
    scorer = scorer or Scorer("")
    foresight = Foresight(gate, scorer, SamplingConfig(num_samples=most))

    def route(said: Sampled, novelty: float | None) -> Route:
        return decide([Candidate.of("", *scorer.score(said, novelty, most), None, novelty)], gate)[0].route

    differ = wrongly = samples = tokens = whole = stopped = 0
    for said, novelty in reads:
        for look in looks(first, most):
            part = Sampled(said.captions[:look], None if said.answers is None else said.answers[:look])
            if look == most or foresight.is_certain(part, None, novelty):
                break
            if equal is not None and look >= equal and _alike(part, scorer) and route(part, novelty) is ACCEPT:
                break
        routes = [route(one, novelty) for one in (part, said)]
        differ += routes[0] is not routes[1]
        wrongly += routes == [ACCEPT, Route.HUMAN_REVIEW]
        samples += look
        tokens += _tokens(part)
        whole += _tokens(said)
        stopped += look < most
    return Outcome(len(reads), differ, wrongly, samples, most * len(reads), tokens, whole, stopped)


def _alike(said: Sampled, scorer: Scorer) -> bool:
    """Tell whether all captions, and all answers, say the same."""
    kernel = scorer.kernel([caption.text for caption in said.captions])
    counted = [*scorer.counts(said).values()]
    return bool((kernel >= scorer.kernel.same - 1e-9).all()) and counted in ([], [len(said.answers or ())])


def _tokens(said: Sampled) -> int:
    return sum(caption.num_tokens for caption in (*said.captions, *(said.answers or ())))


def measured(reads: Sequence[Read], first: int, most: int) -> dict[str, dict[str, Outcome]]:
    """Return the outcome of every split, of the rule and of accepting equal samples, on all images and clean ones."""
    found: dict[str, dict[str, Outcome]] = {}
    for split in splits(most):
        scorer = split.scorer

        def tried(
            some: Sequence[Read], equal: int | None = None, split: Split = split, scorer: Scorer = scorer
        ) -> Outcome:
            said = [(one.said if split.answered else Sampled(one.said.captions), one.novelty) for one in some]
            return outcome(said, split.gate, first, most, scorer, equal)

        found[split.name] = {"the rule": tried(reads), "clean parts": tried([r for r in reads if r.group == "clean"])}
        found[split.name] |= {f"and {equal} equal": tried(reads, equal) for equal in EQUAL if first <= equal < most}
    return found


def sheet(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return a table in Markdown."""
    head = ["split", "how", "images", "% differ", "of them accepted", "stopped early", "× fewer samples", "× tokens"]
    rows = [
        [
            *(split, how, one.images, one.share, one.accepted_wrongly, one.stopped),
            *(f"{one.samples_of_all / max(1, one.samples):.2f}", f"{one.saving:.2f}"),
        ]
        for split, ways in found.items()
        for how, one in ways.items()
    ]
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.adaptive", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="of the drawn images")
    parser.add_argument("--clean", type=int, default=300)
    parser.add_argument("--each", type=int, default=30, help="of each degradation")
    parser.add_argument("--anomalies", type=int, default=15, help="of each kind")
    parser.add_argument("--samples", default="4..16")
    parser.add_argument("--cache", type=Path, help="file that keeps the readings")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    first, most = split_samples(options.samples)
    sampling = measure.asked(SamplingConfig(num_samples=most, batch_size=8))
    drawing = Drawing(options.seed, options.clean, options.each, options.anomalies)
    found = measured(readings(Source(drawing, sampling=sampling), options.cache), first, most)
    print(sheet(found))
    told = {
        f"{split}, {how}": {
            "images": one.images,
            "differ": one.differ,
            "accepted_wrongly": one.accepted_wrongly,
            "stopped": one.stopped,
            "samples": one.samples,
            "saving": round(one.saving, 4),
        }
        for split, ways in found.items()
        for how, one in ways.items()
    }
    write(options.json, "adaptive", vars(options), told)


if __name__ == "__main__":
    main()
