"""Whether a model server's readings come to the scores of the local engine: the same model on both sides.

    python -m tests.bench.endpoint [--samples 32] [--keep FOLDER] [--question] [--json FILE] [--markdown FILE]

Starts `transformers serve` with the built-in model on loopback, scans `sample_images/labelled` there and here with the
same settings, and compares how both order the images: Spearman's rank correlation of each score, with a 95% interval of
resampled images. What limits it is chance, for both draw their samples independently; so the local engine is also
compared with itself under another seed, which is the ceiling. Fewer samples are the first of the many: no further
calls. With --keep, a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import rankdata

from tests.bench._common import tell
from tests.support.serving import model_server, what_is_missing
from vlmgate.captioner.location import weights_folder
from vlmgate.config import DEFAULT_QUESTION, EndpointConfig, ModelConfig, SamplingConfig, ScanConfig
from vlmgate.data import Record
from vlmgate.report.terminal import TerminalProgress
from vlmgate.run.loop import scan
from vlmgate.run.rescore import said_of
from vlmgate.scores.score import Scorer

LABELLED = Path(__file__).parent.parent.parent / "sample_images" / "labelled"
COUNTS = (8, 16, 32, 64)
SCORES = ("vendi_score", "mean_dissimilarity", "semantic_entropy", "answer_entropy", "abstain_rate")
RESAMPLES = 1000

Values = NDArray[np.float64]
Figure = tuple[float, float, float]  # value, and the ends of its interval


def main() -> None:
    """Print the table of correlations."""
    options = _options()
    if missing := what_is_missing():
        sys.exit(missing)
    sampling = SamplingConfig(num_samples=options.samples, seed=1)
    if options.question:
        choices = tuple(sorted(path.name.replace("_", " ") for path in LABELLED.iterdir() if path.is_dir()))
        sampling = replace(sampling, question=DEFAULT_QUESTION, choices=choices)
    with tempfile.TemporaryDirectory() as temporary:
        keep = options.keep or Path(temporary)
        keep.mkdir(parents=True, exist_ok=True)
        here = _scanned(keep / "here.parquet", ModelConfig(), sampling)
        again = _scanned(keep / "again.parquet", ModelConfig(), replace(sampling, seed=2))
        folder = Path(weights_folder())
        with model_server(folder, keep / "server.log") as url:
            # The built-in model knows one prompt, and no word for a colour.
            server = ModelConfig(model=str(folder), trust_vision=True, endpoint=EndpointConfig(url))
            there = _scanned(keep / "there.parquet", server, sampling)
    rows = []
    for count in (k for k in COUNTS if k <= options.samples):
        scores = [_scores(records, count, sampling) for records in (there, here, again)]
        for name in scores[1]:
            served, own, other = (one[name] for one in scores)
            figures = {"server_against_here": correlation(served, own), "here_against_itself": correlation(own, other)}
            rows.append({"samples": count, "score": name} | figures)
    text = _table(rows, len(here))
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"images": len(here), "rows": rows}, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


def correlation(a: Values, b: Values) -> Figure:
    """Return Spearman's rank correlation of (N,) and (N,), and a 95% percentile interval of resampled images.

    Images without a score on either side are left out: one caption of many that is cut off is chance, and no rank. Not
    a number where one side has no spread.
    """
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    draws = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    low, high = np.nanpercentile([_spearman(a[draw], b[draw]) for draw in draws], [2.5, 97.5])
    return _spearman(a, b), float(low), float(high)


def _spearman(a: Values, b: Values) -> float:
    ranks = rankdata(a), rankdata(b)
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _scanned(out: Path, model: ModelConfig, sampling: SamplingConfig) -> list[Record]:
    """Return the rows of a scan, in the order of their names, each content once."""
    result = scan(ScanConfig(LABELLED, out, model=model, sampling=sampling), TerminalProgress(Console(stderr=True)))
    if result.interrupted or result.error:
        sys.exit(f"{out.stem}: not finished; with --keep the same command goes on.")
    records = sorted((r for r in result.records if r.duplicate_of is None), key=lambda r: r.file_name)
    seconds = statistics.median([r.seconds for r in records if r.seconds is not None])
    tell(f"{out.stem}: {len(records)} images with {sampling.num_samples} samples, {seconds:.3f} s an image (median)")
    return records


def _scores(records: Sequence[Record], count: int, sampling: SamplingConfig) -> dict[str, Values]:
    """Return (N,) of each score from the first `count` samples; infinite where a reading is none."""
    scorer = Scorer(sampling.prompt, sampling.choices)
    said = [said_of(record) for record in records]
    first = [
        replace(one, captions=one.captions[:count], answers=None if one.answers is None else one.answers[:count])
        for one in said
    ]
    scorer.prepare(first)
    scores = [scorer.score(one)[0] for one in first]
    found = {}
    for name in SCORES:
        values = [getattr(one, name) for one in scores]
        if any(value is not None for value in values):
            found[name] = np.array([np.inf if value is None else value for value in values])
    return found


def _table(rows: Sequence[dict[str, Any]], images: int) -> str:
    lines = [
        f"Spearman's rank correlation over {images} images, with 95% intervals",
        "",
        "| samples | score | server against here | here against itself |",
        "| ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        served, itself = (_text(row[key]) for key in ("server_against_here", "here_against_itself"))
        lines.append(f"| {row['samples']} | {row['score']} | {served} | {itself} |")
    return "\n".join(lines)


def _text(figure: Figure) -> str:
    value, low, high = figure
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=32, help="K, the most that are drawn (default 32)")
    parser.add_argument("--question", action="store_true", help="ask for the class, too")
    parser.add_argument("--keep", type=Path, help="folder for readings; with it a stopped run goes on")
    parser.add_argument("--json", type=Path, help="file that takes the figures as JSON")
    parser.add_argument("--markdown", type=Path, help="file that takes the table as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
