"""What `scan` costs beside the engine that it runs: the whole command, the engine alone, and the other parts alone.

    python -m tests.bench.command [--images 208] [--rounds 5] [--num-samples 8] [--json FILE]

The built-in model on the labelled sample images. "engine" reads the same pictures, opened before, in the same batches;
"scan" is the whole command in this process, the model loaded before; "opening", "scoring" and "journal and result" are
done alone, one after the other. All take turns. A scan that never waits costs what its engine costs, and less than the
sum of the parts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench._timing import interleaved, ratios, spread, table, write
from tests.support.fakes import SilentProgress
from vlmgate.captioner import load_captioner
from vlmgate.config import ImageConfig, ModelConfig, SamplingConfig, ScanConfig
from vlmgate.data import Picture, Reading, Sampled
from vlmgate.images import find_images, read_ahead
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult
from vlmgate.scores.score import Scorer
from vlmgate.store.journal import Journal
from vlmgate.store.result import write_result

SAMPLES = Path(__file__).parent.parent.parent / "sample_images" / "labelled"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.command", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=208, help="of the sample images, at most 208")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    sampling = SamplingConfig(num_samples=options.num_samples, batch_size=options.batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _some(Path(scratch) / "in", options.images)
        _bench(folder, Path(scratch), sampling, options)


def _some(folder: Path, images: int) -> Path:
    """Copy the first images of each kind, as evenly as can be."""
    found = sorted(SAMPLES.rglob("*.*"), key=lambda path: (path.stem[-3:], path))
    for path in [one for one in found if one.suffix != ".csv"][:images]:
        target = folder / path.relative_to(SAMPLES)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def _bench(folder: Path, scratch: Path, sampling: SamplingConfig, options: argparse.Namespace) -> None:
    engine, sources = load_captioner(ModelConfig(), sampling), find_images(folder).sources
    pictures = [one.result for one in read_ahead(sources, ImageConfig()) if isinstance(one.result, Picture)]
    size, results = sampling.batch, list[ScanResult]()
    sampled = _read(engine.read, pictures, size)
    readings = [Reading(p.file, one.captions, quality=p.quality) for p, one in zip(pictures, sampled, strict=True)]
    scorer = Scorer(sampling.prompt)

    def command() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            config = ScanConfig(folder=folder, out=Path(out) / "r.parquet", sampling=sampling)
            results.append(scan(config, SilentProgress(), load=lambda *_: engine))
            assert results[-1].records  # read back now, for the journal goes with its folder

    def record() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            journal = Journal.open(Path(out) / "r.journal.jsonl", {"num_samples": sampling.num_samples})
            for start in range(0, len(readings), size):
                journal.append(readings[start : start + size], 0.1)
            journal.close()
            write_result(Path(out) / "r.parquet", results[-1].records, results[-1].provenance)

    ways = {
        "scan": command,
        "engine": lambda: _read(engine.read, pictures, size),
        "opening": lambda: sum(1 for _ in read_ahead(sources, ImageConfig())),
        "scoring": lambda: [scorer.score(Sampled(one.captions)) for one in readings],
        "journal and result": record,
    }
    taken = interleaved(ways, options.rounds)
    parts = [sum(values) for values in zip(*(taken[name] for name in ways if name != "scan"), strict=True)]
    count = len(pictures)
    rows = [[name, spread([count / t for t in values], 1), spread(values)] for name, values in taken.items()]
    print(
        table(
            ["", "images/s", "seconds"],
            [*rows, ["sum of the parts", spread([count / t for t in parts], 1), spread(parts)]],
        )
    )
    over = {
        "engine": ratios(taken, "scan", "engine"),
        "parts": [a / b for a, b in zip(taken["scan"], parts, strict=True)],
    }
    times = [result.provenance["time"] for result in results[1:]]
    beside = [(time["scoring"] + time["writing"]) / time["seconds"] for time in times]
    waited = [time["reading"] / time["seconds"] for time in times]
    print(
        f"\nscan takes {spread(over['engine'], 3)} times the engine alone, {spread(over['parts'], 3)} times the parts."
    )
    print(f"Scoring and writing take {spread([100 * b for b in beside], 1)} % of a scan, beside the model;")
    print(f"the model waits for images {spread([100 * w for w in waited], 1)} %.")
    figures = {"seconds": taken, "over_engine": over["engine"], "over_parts": over["parts"], "time": times}
    middle = {"over_engine": statistics.median(over["engine"]), "beside": statistics.median(beside)}
    write(options.json, "command", vars(options), figures | {"median": middle})


def _read(read: object, pictures: Sequence[Picture], size: int) -> list[Sampled]:
    assert callable(read)
    return [one for start in range(0, len(pictures), size) for one in read(pictures[start : start + size])]


if __name__ == "__main__":
    main()
