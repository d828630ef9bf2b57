"""Write the calibration page: one file that opens from any disk, without a network.

Knows what was found and how a page is put together; knows nothing of how it was found. What comes from labels, file
names or captions is escaped by the template, and pictures are images, in which no script runs.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmgate.calibration import charts, report
from vlmgate.calibration.cost import Outcomes, bill
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.study import Study
from vlmgate.data import Record
from vlmgate.errors import OutputError, UsageError, plain
from vlmgate.export.imagefolder import Pictures
from vlmgate.store.files import write_file
from vlmgate.version import __version__

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_STYLE = Path(__file__).with_name("sheet.css")  # of this page and of the comparison's
_WORST = 10
_PREVIEW = 560  # pixels, longest side


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong reading that the gate accepts."""

    name: str
    label: str
    answer: str
    score: str
    captions: tuple[tuple[int, str], ...]  # merged, with their numbers
    picture: str | None  # data URI; null where the file is not there any more
    size: tuple[int, int]


def write_page(
    found: Study,
    labels: Labels,
    seconds: Mapping[int, float],
    provenance: Mapping[str, Any],
    gate: Path | None,
    out: Path,
) -> Path:
    """Write `OUT_calibration/index.html` and return it; raises `OutputError`."""
    page = out.with_name(f"{out.stem}_calibration") / "index.html"
    return write_html(page, _TEMPLATE, _content(found, labels, seconds, provenance, gate))


def write_html(page: Path, template: Path, content: Mapping[str, Any]) -> Path:
    """Write a page of one file, in one step, and return it; its folder is made. Raises `OutputError`."""
    import jinja2
    from markupsafe import Markup

    source = template.read_text(encoding="utf-8")
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["plain"] = plain
    text = environment.from_string(source).render({"style": style, **content})
    try:
        page.parent.mkdir(exist_ok=True)
        write_file(page, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(
            f"{page}: cannot write the page ({error.strerror}); make room, or give another -o."
        ) from error
    return page


def _content(
    found: Study, labels: Labels, seconds: Mapping[int, float], provenance: Mapping[str, Any], gate: Path | None
) -> dict[str, Any]:
    split = found.gate()
    return {
        "version": __version__,
        "title": f"{len(found.labelled.records):,} labelled images",
        "gate_name": None if gate is None else gate.name,
        "rule": None if split is None else split.describe(),
        "promise": report.on_promise(found),
        "holds": found.promise is not None and found.promise.holds,
        "model": (provenance["model"] or {}).get("model", ""),
        "prompt": provenance["sampling"]["prompt"],
        "question": provenance["sampling"].get("question"),
        "labels": [f"{labels.source}: {labels.form}.", *report.label_lines(found, labels)],
        "quality_titles": report.QUALITY_TITLES,
        "quality_note": report.QUALITY_NOTE,
        "quality": report.quality_rows(found),
        "choice": report.on_choice(found),
        "counts": report.counts_rows(found, seconds),
        "counts_why": report.on_counts(found),
        "costs": _costs(found),
        "agreement": None if found.agreement is None else report.agreement_lines(found.agreement, found.repeats),
        "confusion": _confusion(found),
        "mistakes": _mistakes(found, provenance),
        "certified": None if found.promise is None else int((~found.design).sum()),
        "charts": _charts(found, seconds, None if split is None else split.threshold),
    }


def _costs(found: Study) -> dict[str, Any] | None:
    if found.bills is None or found.costs is None:
        return None
    return {
        "given": report.costs_line(found.costs, found.config.defect_rate),
        "titles": report.COST_TITLES,
        "rows": report.cost_rows(found.bills),
        "notes": report.on_costs(found.bills),
    }


def _charts(found: Study, seconds: Mapping[int, float], threshold: float | None) -> dict[str, str]:
    final, score = found.final, found.score
    gated = final.gated(score)
    certified = ~found.design if found.promise is not None else np.ones(len(gated), bool)
    target = found.config.target_risk if found.config.target == "risk" and found.config.rule == "guarantee" else None
    coverage = None if threshold is None else float(found.accepted[certified].mean())
    drawn = {
        "risk": charts.risk_coverage(gated[certified], final.wrong[certified], target=target, coverage=coverage),
        "distribution": charts.distribution(final.scores[score], final.wrong, score, threshold),
        "samples": charts.samples(
            {row.num_samples: (row.aurc, row.error) for row in found.counts.rows},
            {k: s for k, s in seconds.items() if k <= found.labelled.num_samples},
            found.proposed,
        ),
    }
    if found.bills is not None and found.costs is not None:
        known = found.labelled.known
        bad = found.labelled.bad[known]
        outcomes = Outcomes(bad, ~final.says(found.labelled.good)[known])
        weights = None
        if found.config.defect_rate is not None:
            rate = found.config.defect_rate
            weights = np.where(bad, rate / bad.sum(), (1 - rate) / (~bad).sum())
        policies = {p.name: (p.reviewed / 1000, p.cost) for p in found.bills.policies if "gate" in p.name}
        marked = {name: point for name, point in policies.items() if not name.startswith("random")}
        drawn["cost"] = charts.cost_curve(bill(gated[known], outcomes, found.costs, weights), marked)
    return {name: data_uri(svg) for name, svg in drawn.items()}


def data_uri(svg: bytes) -> str:
    """Return a picture as a page holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _confusion(found: Study) -> dict[str, Any] | None:
    """Return the table of labels against answers, with the share of each row that is in a cell."""
    held = found.labelled
    if held.kind != "class":
        return None
    counted = Counter(zip(held.labels, found.final.answers, strict=True))
    columns = [*held.choices, None]
    rows = []
    for label in held.choices:
        numbers = [counted[label, answer] for answer in columns]
        total = sum(numbers)
        if total:
            cells = [
                {"number": n, "share": n / total, "right": answer == label}
                for n, answer in zip(numbers, columns, strict=True)
            ]
            rows.append({"label": label, "cells": cells})
    return {"columns": [*held.choices, "no answer"], "rows": rows}


def _mistakes(found: Study, provenance: Mapping[str, Any]) -> list[Mistake]:
    """Return the wrong readings that the gate accepts, the surest first."""
    pictures = _pictures(provenance)
    gated = found.final.gated(found.score)
    wrong = np.flatnonzero(found.final.wrong & found.accepted)
    made = []
    for i in sorted(wrong, key=lambda i: float(gated[i]))[:_WORST]:
        record = found.labelled.records[i]
        captions = (record.captions or ())[: found.final.num_samples]
        picture, size = _preview(pictures, record)
        made.append(
            Mistake(
                record.file_name,
                found.labelled.labels[i],
                found.final.answers[i] or "no answer",
                f"{found.score} {abs(float(gated[i])):.3f}",
                tuple((count, text) for text, count in Counter(captions).most_common()),
                picture,
                size,
            )
        )
    return made


def _pictures(provenance: Mapping[str, Any]) -> Pictures:
    """Return the images that were read, found by walking their folder; none where it is gone."""
    try:
        return Pictures.of(None, provenance)
    except UsageError:
        return Pictures({})


def _preview(pictures: Pictures, record: Record) -> tuple[str | None, tuple[int, int]]:
    """Return a small upright JPEG as a data URI, and its size; none where the file is gone or has changed."""
    opened = pictures.opened({"file_name": record.file_name, "page": record.page, "sha256": record.sha256})
    if opened is None:
        return None, (0, 0)
    image = opened.copy()
    image.thumbnail((_PREVIEW, _PREVIEW))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", image.size
