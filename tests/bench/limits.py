"""What limits on the Vendi score accept of the built-in model's readings, and how many of those are wrong.

    python -m tests.bench.limits --seed 2026 [--clean 600] [--each 60] [--anomalies 100] [--cache FILE] [--json FILE]

By captions alone, under both kernels that have limits of the model's own, with its limit on novelty. Wrong is a reading
whose majority of captions names another condition than the part has.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import _builtin as measure
from tests.bench._common import Drawing, Read, Source, readings
from tests.bench._timing import table, write
from vlmgate.config import SamplingConfig
from vlmgate.data import Route, Sampled
from vlmgate.gate.rules import Candidate, decide, make_gate
from vlmgate.scores.diversity import FINDINGS, WORDS, load_kernel
from vlmgate.scores.score import Scorer

# Kernel, limit on the Vendi score, limit on the contradiction (0.5 = none, as in the first release).
TRIED = (
    (WORDS, 2.0, 0.5),
    (WORDS, 2.0, 0.0),
    *((FINDINGS, limit, 0.0) for limit in (1.25, 1.5, 1.75, 2.0, 2.5)),
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a gate lets through."""

    parts: int
    wrong: int  # of those accepted
    accepted: int  # parts
    strange: int  # images accepted that are no parts


def accepted(reads: Sequence[Read], kernel: str, vendi_score: float, contradiction: float) -> Accepted:
    """Return what limits accept of the readings, each by its captions alone."""
    scorer = Scorer("", (), load_kernel(kernel))
    limits = (f"vendi_score <= {vendi_score:g}", "novelty <= 1", f"contradiction <= {contradiction:g}")
    gate = make_gate(num_samples=len(reads[0].said.captions), own=limits)
    candidates = [
        Candidate.of("", *scorer.score(Sampled(read.said.captions), read.novelty), read.quality, read.novelty)
        for read in reads
    ]
    passed = [
        read
        for read, decision in zip(reads, decide(candidates, gate), strict=True)
        if decision.route is Route.AUTO_ACCEPT
    ]
    parts = [read for read in passed if read.truth is not None]
    return Accepted(
        parts=sum(read.truth is not None for read in reads),
        wrong=sum(read.wrong for read in parts),
        accepted=len(parts),
        strange=len(passed) - len(parts),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=__doc__.splitlines()[0])
    usual = Drawing(0)
    parser.add_argument("--seed", type=int, required=True, help="of the drawn images")
    parser.add_argument("--clean", type=int, default=usual.clean)
    parser.add_argument("--each", type=int, default=usual.each, help="of each degradation")
    parser.add_argument("--anomalies", type=int, default=usual.anomalies, help="of each kind")
    parser.add_argument("--samples", type=int, default=8, help="captions that are scored")
    parser.add_argument("--drawn", type=int, help="captions that are drawn; the others are left out")
    parser.add_argument("--cache", type=Path, help="file that keeps the readings")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    sampling = measure.asked(SamplingConfig(num_samples=options.drawn or options.samples))
    source = Source(Drawing(options.seed, options.clean, options.each, options.anomalies), sampling=sampling)
    reads = [read.first(options.samples) for read in readings(source, options.cache)]
    rows, figures = [], {}
    for kernel, limit, contradiction in TRIED:
        found = accepted(reads, kernel, limit, contradiction)
        share = f"{100 * found.wrong / max(1, found.accepted):.2f}"
        rows.append([f"{kernel}, vendi_score ≤ {limit:g}, contradiction ≤ {contradiction:g}", found.parts])
        rows[-1] += [found.accepted, found.wrong, share, found.strange]
        figures[f"{kernel} {limit:g} {contradiction:g}"] = {
            "parts": found.parts,
            "accepted": found.accepted,
            "wrong": found.wrong,
            "strange": found.strange,
        }
    print(table(["limits", "parts", "accepted", "wrong", "% wrong", "no parts"], rows))
    write(options.json, "limits", vars(options), figures)


if __name__ == "__main__":
    main()
