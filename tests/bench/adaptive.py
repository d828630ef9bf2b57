"""What `--samples 4..16` saves, and how often it decides otherwise than all samples would.

    python -m tests.bench.adaptive --seed 5 [--clean 300] [--each 30] [--anomalies 15] [--samples 4..16] [--json FILE]

The built-in model reads the sample images and freshly drawn ones K times; what a scan would have drawn of each, and how
it would have decided, follows from those, for the first k samples are the same. Thresholds other than the model's own
tell what another limit would do. Captions alone; a share that differs comes with its 95 % interval (Clopper & Pearson).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import beta

from tests.bench import _builtin as measure
from tests.bench._timing import table, write
from vlmgate.captioner import load_captioner
from vlmgate.captioner.location import weights_folder
from vlmgate.config import ImageConfig, ModelConfig, SamplingConfig
from vlmgate.config.scan import split_samples
from vlmgate.data import Picture, Route, Sampled
from vlmgate.gate.early_stop import Foresight, looks
from vlmgate.gate.rules import Candidate, Gate, decide, make_gate
from vlmgate.images import find_images, read_ahead
from vlmgate.scores.novelty import Reference
from vlmgate.scores.score import Scorer

ROOT = Path(__file__).parent.parent.parent / "sample_images"
THRESHOLDS = (1.5, 2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of some images."""

    images: int
    differ: int
    accepted_wrongly: int  # where all samples would have sent the image to a person
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


def outcome(reads: Sequence[tuple[Sampled, float | None]], gate: Gate, first: int, most: int) -> Outcome:
    """Return what a scan would have made of images with K captions each."""
    foresight = Foresight(gate, Scorer(""), SamplingConfig(num_samples=most))
    differ = wrongly = tokens = whole = stopped = 0
    for said, novelty in reads:
        for look in looks(first, most):
            part = Sampled(said.captions[:look])
            if look == most or foresight.is_certain(part, None, novelty):
                break
        routes = [_route(one, novelty, gate, most) for one in (part, said)]
        differ += routes[0] is not routes[1]
        wrongly += routes == [Route.AUTO_ACCEPT, Route.HUMAN_REVIEW]
        tokens += sum(caption.num_tokens for caption in part.captions)
        whole += sum(caption.num_tokens for caption in said.captions)
        stopped += look < most
    return Outcome(len(reads), differ, wrongly, tokens, whole, stopped)


def _route(said: Sampled, novelty: float | None, gate: Gate, most: int) -> Route:
    return decide([Candidate.of("", *Scorer("").score(said, novelty, most), None, novelty)], gate)[0].route


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.adaptive", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="of the drawn images")
    parser.add_argument("--clean", type=int, default=300)
    parser.add_argument("--each", type=int, default=30, help="of each degradation")
    parser.add_argument("--anomalies", type=int, default=15, help="of each kind")
    parser.add_argument("--samples", default="4..16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    first, most = split_samples(options.samples)
    groups = _read(options, SamplingConfig(num_samples=most))
    rows, figures = [], {}
    for threshold in THRESHOLDS:
        gate = make_gate(num_samples=most, threshold=threshold, limits=("novelty <= 1",))
        for name, reads in groups.items():
            found = outcome(reads, gate, first, most)
            low, high = found.interval
            share = f"{100 * found.differ / max(1, found.images):.2f} ({100 * low:.2f} to {100 * high:.2f})"
            rows.append(
                [f"≤ {threshold:g}, {name}", found.images, share, found.accepted_wrongly, f"{found.saving:.2f}"]
            )
            figures[f"{threshold:g} {name}"] = {
                "images": found.images,
                "differ": found.differ,
                "accepted_wrongly": found.accepted_wrongly,
                "saving": round(found.saving, 4),
                "stopped": found.stopped,
            }
    print(table(["vendi_score", "images", "% differ", "accepted for it", "× fewer tokens"], rows))
    write(options.json, "adaptive", vars(options), figures)


def _read(options: argparse.Namespace, sampling: SamplingConfig) -> dict[str, list[tuple[Sampled, float | None]]]:
    engine, reference = load_captioner(ModelConfig(), sampling), Reference.load(weights_folder() / "novelty.npz")
    drawn = measure.pictures(list(measure.draw(options.seed, options.clean, options.each, options.anomalies)))
    found = {}
    for name, pictures in {"samples": _samples(), "drawn": drawn}.items():
        sampled = [one for i in range(0, len(pictures), 8) for one in engine.read(pictures[i : i + 8])]
        found[name] = [
            (Sampled(s.captions), float(reference.novelty([s.features])[0]) if s.features else None) for s in sampled
        ]
    return {**found, "both": [one for reads in found.values() for one in reads]}


def _samples() -> list[Picture]:
    """Return the sample images, copies once."""
    opened = [
        one.result
        for folder in ("inbox", "labelled")
        for one in read_ahead(find_images(ROOT / folder).sources, ImageConfig())
    ]
    return list({p.file.sha256: p for p in opened if isinstance(p, Picture)}.values())


if __name__ == "__main__":
    main()
