"""Run a comparison: let every model read the labelled images, or take results; compare them; write the page."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmgate.calibration.charts import quality_and_time
from vlmgate.calibration.compare import text
from vlmgate.calibration.compare.compare import Comparison, Contestant, compare
from vlmgate.calibration.labels import Labels, read_labels
from vlmgate.calibration.page import data_uri, write_html
from vlmgate.calibration.readings import Labelled, join
from vlmgate.calibration.run import (
    MEMORY,
    Stopped,
    answering,
    check_names,
    completed,
    labelled_folder,
    read_labelled,
    seconds_of,
)
from vlmgate.captioner import load_captioner
from vlmgate.config import BUILTIN, CompareConfig, ScanConfig
from vlmgate.errors import LabelError, OutputError, UsageError
from vlmgate.report.terminal import short_model
from vlmgate.run.control import Progress
from vlmgate.run.reader import Load
from vlmgate.scores.answers import check_choices
from vlmgate.store.result import check_folder, read_result
from vlmgate.version import __version__

_PAGE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison left behind."""

    found: Comparison
    labels: Labels
    results: tuple[Path, ...]  # one for each model
    page: Path | None


def run_comparison(
    config: CompareConfig,
    reading: ScanConfig,
    progress: Progress,
    *,
    question: str | None = None,
    load: Load = load_captioner,
) -> Compared | Stopped:
    """Do all of it; raises `UsageError` for what the user can put right.

    `reading` says how images are read, with one model as with another; its folder, model and output are filled in.
    """
    folder, results = _sources(config)
    if config.page and config.out.suffix != ".html":
        raise OutputError(f"{config.out}: a page must end in .html; give another -o.")
    check_folder(config.out)
    if config.page and config.out.exists() and not _is_page(config.out):
        raise OutputError(f"{config.out}: exists and is no comparison of vlmgate; give another -o.")
    check_choices(reading.sampling.choices)
    labels = read_labels(config.labels or folder or _folder_of(results[0]), config.label_column, config.group)
    if labels.kind != "class":
        raise LabelError(
            f"{labels.source}: holds {labels.kind} labels, which tell of one model's readings or of the picture; "
            "comparing models takes the class of every part."
        )
    read = []
    if folder is not None:
        check_names(config.pattern, labels)
        reading = answering(reading, (config.score or "",))
        wanted = completed(reading, labels, folder, config.mapped(), question)
        for model in config.models:
            out = _readings_of(config.out, model)
            progress.message(f"Reading with {short_model(model)} …")
            one = replace(wanted, model=replace(wanted.model, model=model), out=out)
            done = read_labelled(one, labels, progress, load)
            if done.interrupted is not None or done.error is not None:
                return Stopped(done)
            read.append(done.outputs.parquet)
    paths = [*results, *read]
    contestants = _contestants(paths, labels, config)
    progress.message("Comparing …")
    found = compare(
        contestants,
        target_risk=config.target_risk,
        confidence=config.confidence,
        score=config.score,
        costs=config.costs * (len(paths) if len(config.costs) == 1 else 1) or None,
        defect_rate=config.defect_rate,
    )
    page = _write_page(found, labels, config.out) if config.page else None
    return Compared(found, labels, tuple(paths), page)


def _sources(config: CompareConfig) -> tuple[Path | None, list[Path]]:
    """Return the labelled folder, if there is one, and the results; raises `UsageError` where they compare nothing."""
    folders = [source for source in config.sources if source.is_dir()]
    results = [source for source in config.sources if not source.is_dir()]
    if len(folders) > 1:
        raise UsageError(f"{folders[1]}: a second folder; models are compared on the images of one.")
    if config.models and not folders:
        raise UsageError("--model reads a labelled folder, and none is named; name one, or leave --model out.")
    if folders and not config.models:
        raise UsageError(f"{folders[0]}: name the models that read it, --model A --model B; results need no folder.")
    if len(set(config.models)) < len(config.models):
        raise UsageError("--model names one twice; of one model there is nothing to compare.")
    if len(config.models) + len(results) < 2:
        raise UsageError("comparing takes two: --model A --model B, or two results.")
    if config.costs and len(config.costs) not in (1, len(config.models) + len(results)):
        raise UsageError("--cost-overhead is given once for all models, or once for each, results first.")
    return next(iter(folders), None), results


def _folder_of(result: Path) -> Path:
    return labelled_folder(result, read_result(result, features=False)[1])


def _readings_of(out: Path, model: str) -> Path:
    """Return where the readings of a model lie: under a name that follows from its own, and leads nowhere."""
    name = model
    if model != BUILTIN:
        short = re.sub(r"[^A-Za-z0-9.-]+", "_", short_model(model)).strip("._")[:40]
        name = f"{short}-{hashlib.sha256(model.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"
    return out.with_name(f"{out.stem}.{name}.parquet")


def _contestants(paths: Sequence[Path], labels: Labels, config: CompareConfig) -> list[Contestant]:
    results = [read_result(path) for path in paths]
    for path, (_, provenance) in zip(paths, results, strict=True):
        if not provenance.get("complete", True):
            raise UsageError(f"{path}: that run was not finished; finish it first, the same command goes on.")
    models = [short_model((provenance.get("model") or {}).get("model", "?")) for _, provenance in results]
    names = [m if models.count(m) == 1 else path.stem for m, path in zip(models, paths, strict=True)]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [
        _contestant(
            name,
            join(
                records,
                provenance,
                labels,
                label_map=config.mapped(),
                good=config.good,
                pattern=config.pattern,
            ),
            provenance,
        )
        for name, (records, provenance) in zip(names, results, strict=True)
    ]


def _contestant(name: str, labelled: Labelled, provenance: Mapping[str, Any]) -> Contestant:
    seconds = seconds_of(provenance)
    if not seconds:  # a scan times whole batches with all its samples
        timed = [record.seconds for record in labelled.records if record.seconds is not None]
        seconds = {labelled.num_samples: sum(timed) / len(timed)} if timed else {}
    memory = provenance.get(MEMORY)
    return Contestant(name, labelled, provenance, seconds, memory if isinstance(memory, int) else None)


def _write_page(found: Comparison, labels: Labels, out: Path) -> Path:
    """Write the page, one file that opens from any disk without a network, and return it; raises `OutputError`."""
    content = {
        "version": __version__,
        "title": f"{len(found.standings)} models on {found.images:,} labelled images",
        "answers": text.verdicts(found),
        "labels": f"{labels.source}: {labels.form}.",
        "names": text.names(found),
        "titles": text.titles(found),
        "rows": text.rows(found),
        "notes": text.notes(found),
        "picture": data_uri(quality_and_time(found.standings)),
    }
    return write_html(out, _PAGE, content)


def _is_page(path: Path) -> bool:
    """Say whether a file is such a page, which may be replaced."""
    try:
        return "<title>vlmgate comparison: " in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
