"""Whether a model server's readings come to the scores of the local engine: the same model on both sides.

    python -m tests.bench.endpoint [--samples 32] [--json FILE] [--markdown FILE] [--limit N] [--no-question]

Starts `transformers serve` with the built-in model on loopback, reads `sample_images/labelled` there and here with the
same settings, and compares how both order the images: Spearman's rank correlation of each score, with a 95% interval of
resampled images. What limits it is chance, for both draw their samples independently; so the local engine is also
compared with itself under another seed, which is the ceiling. Fewer samples are the first of the many: no further
calls.

Knows scores and correlations; knows nothing of how images are read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tests.bench._common import tell
from tests.serving import model_server, what_is_missing
from vlmgate.answers import DEFAULT_QUESTION
from vlmgate.builtin import weights_folder
from vlmgate.captioner import load_captioner
from vlmgate.config import EndpointConfig, ImageConfig, ModelConfig, SamplingConfig
from vlmgate.images import find_images, open_pages
from vlmgate.records import Picture, Sampled
from vlmgate.scoring import Said, Scorer

LABELLED = Path(__file__).parent.parent.parent / "sample_images" / "labelled"
COUNTS = (8, 16, 32, 64)
SCORES = ("vendi_score", "mean_dissimilarity", "semantic_entropy", "answer_entropy", "abstain_rate")
BATCH = 16
RESAMPLES = 1000

Values = NDArray[np.float64]


def main() -> None:
    """Print the table of correlations."""
    options = _options()
    missing = what_is_missing()
    if missing:
        raise SystemExit(missing)
    pictures = _pictures(options.limit)
    sampling = SamplingConfig(num_samples=options.samples, batch_size=BATCH, seed=1)
    if not options.no_question:
        choices = tuple(sorted(path.name.replace("_", " ") for path in LABELLED.iterdir() if path.is_dir()))
        sampling = replace(sampling, question=DEFAULT_QUESTION, choices=choices)
    folder = Path(weights_folder())
    with tempfile.TemporaryDirectory() as logs, model_server(folder, Path(logs) / "server.log") as url:
        server = ModelConfig(model=str(folder), endpoint=EndpointConfig(url))
        told = _read("server", server, sampling, pictures)
    here = _read("here", ModelConfig(), sampling, pictures)
    again = _read("here, another seed", ModelConfig(), replace(sampling, seed=2), pictures)
    rows = []
    for count in (k for k in COUNTS if k <= options.samples):
        first, second, third = (_scores(one, count, sampling) for one in (told, here, again))
        for name in first:
            rows.append(
                {
                    "samples": count,
                    "score": name,
                    "server_against_here": correlation(first[name], second[name]),
                    "here_against_itself": correlation(second[name], third[name]),
                }
            )
    text = _table(rows, len(pictures))
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"images": len(pictures), "rows": rows}, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


def correlation(a: Values, b: Values) -> tuple[float, float, float]:
    """Return Spearman's rank correlation of (N,) and (N,), and a 95% percentile interval of resampled images.

    Not a number where one side has no spread.
    """
    draws = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    found = [_spearman(a[draw], b[draw]) for draw in draws]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return _spearman(a, b), float(low), float(high)


def _spearman(a: Values, b: Values) -> float:
    ranks = rankdata(a), rankdata(b)
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _pictures(limit: int | None) -> list[Picture]:
    found = [page for source in find_images(LABELLED).sources for page in open_pages(source, ImageConfig())]
    return [page for page in found if isinstance(page, Picture)][:limit]


def _read(name: str, model: ModelConfig, sampling: SamplingConfig, pictures: Sequence[Picture]) -> list[Sampled]:
    captioner = load_captioner(model, sampling)
    begun = time.perf_counter()
    sampled = [one for i in range(0, len(pictures), BATCH) for one in captioner.read(pictures[i : i + BATCH])]
    seconds = (time.perf_counter() - begun) / len(pictures)
    tell(f"{name}: {len(pictures)} images with {sampling.num_samples} samples, {seconds:.3f} s an image")
    return sampled


def _scores(sampled: Sequence[Sampled], count: int, sampling: SamplingConfig) -> dict[str, Values]:
    """Return (N,) of each score from the first `count` samples; readings that are none rank as the worst."""
    scorer = Scorer(sampling.prompt, sampling.choices)
    said = [Said(one.captions[:count], None if one.answers is None else one.answers[:count], None) for one in sampled]
    scorer.prepare(said)
    scores = [scorer.score(one, None)[0] for one in said]
    found = {}
    for name in SCORES:
        values = [None if one is None else getattr(one, name) for one in scores]
        if any(value is not None for value in values):
            found[name] = np.array([np.inf if value is None else value for value in values])
    return found


def _table(rows: Sequence[dict[str, object]], images: int) -> str:
    lines = [
        f"Spearman's rank correlation over {images} images, with a 95% interval",
        "",
        "| samples | score | server against here | here against itself |",
        "| ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        figures = [
            "{:.3f} ({:.3f} to {:.3f})".format(*row[key]) for key in ("server_against_here", "here_against_itself")
        ]  # type: ignore[misc]
        lines.append(f"| {row['samples']} | {row['score']} | {figures[0]} | {figures[1]} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=32, help="K, the most that are drawn (default 32)")
    parser.add_argument("--limit", type=int, help="images, the first ones (default: all)")
    parser.add_argument("--no-question", action="store_true", help="captions only")
    parser.add_argument("--json", type=Path, help="file that takes the figures as JSON")
    parser.add_argument("--markdown", type=Path, help="file that takes the table as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
