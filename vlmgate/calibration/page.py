"""The calibration page: one file that opens from any disk, without a network. Call `write_page`.

What comes from labels, file names or captions is escaped by the template, and pictures are images, in which no script
runs.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmgate.calibration import charts, statements, text
from vlmgate.calibration.cost import bill, line_weights
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.study import Study, outcomes_of
from vlmgate.data import Record
from vlmgate.errors import OutputError, UsageError, plain
from vlmgate.export.imagefolder import Pictures
from vlmgate.store.result import write_file
from vlmgate.version import __version__

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_STYLE = Path(__file__).with_name("sheet.css")  # of this page and of the comparison's
_WORST = 10
_PREVIEW = 560  # pixels, longest side


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
    html = environment.from_string(source).render({"style": style, **content})
    try:
        page.parent.mkdir(exist_ok=True)
        write_file(page, html.encode("utf-8", "backslashreplace"))
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
        "first": statements.first_lines(found),
        "promise": [*statements.promise_lines(found), *statements.passed_lines(found)[:1]],
        "passed": statements.passed_lines(found)[1:],
        "holds": found.promised,
        "model": (provenance["model"] or {}).get("model", ""),
        "prompt": provenance["sampling"]["prompt"],
        "question": provenance["sampling"].get("question"),
        "labels": [f"{labels.source}: {labels.form}.", *text.label_lines(found, labels)],
        "quality_titles": text.SCORE_TITLES,
        "quality_note": text.score_note(found),
        "quality": text.score_rows(found),
        "choice": text.choice_lines(found),
        "counts": text.count_rows(found, seconds),
        "counts_why": text.count_lines(found),
        "costs": _costs(found),
        "agreement": None if found.agreement is None else statements.agreement_lines(found.agreement, found.repeats),
        "confusion": _confusion(found),
        "mistakes": _mistakes(found, provenance),
        "certified": None if found.promise is None else int((~found.design).sum()),
        "charts": _charts(found, seconds, None if split is None else split.threshold),
    }


def _costs(found: Study) -> dict[str, Any] | None:
    if found.bills is None or found.costs is None:
        return None
    return {
        "given": text.costs_line(found.costs, found.config.defect_rate),
        "titles": text.COST_TITLES,
        "rows": text.cost_rows(found.bills),
        "notes": text.cost_lines(found.bills),
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
        outcomes = outcomes_of(found.labelled, final, known)
        weights = line_weights(outcomes.bad, found.config.defect_rate)
        marked = {p.name: (p.reviewed / 1000, p.cost) for p in found.bills.policies if "gate" in p.name}
        drawn["cost"] = charts.cost_curve(bill(gated[known], outcomes, found.costs, weights), marked)
    return {name: data_uri(svg) for name, svg in drawn.items()}


def data_uri(content: bytes, kind: str = "svg+xml") -> str:
    """Return a picture as a page holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _confusion(found: Study) -> dict[str, Any] | None:
    """Return the table of labels against answers, with the share of each row that is in a cell."""
    held = found.labelled
    if held.kind != "class":
        return None
    counted = Counter(zip(held.labels, found.final.answers, strict=True))
    rows = []
    for label in held.choices:
        numbers = {answer: counted[label, answer] for answer in (*held.choices, None)}
        total = sum(numbers.values())
        if total:
            cells = [{"number": n, "share": n / total, "right": answer == label} for answer, n in numbers.items()]
            rows.append({"label": label, "cells": cells})
    return {"columns": [*held.choices, "no answer"], "rows": rows}


def _mistakes(found: Study, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the wrong readings that the gate accepts, the surest first; captions are merged, with their numbers."""
    try:
        pictures = Pictures.of(None, provenance)
    except UsageError:  # their folder is gone
        pictures = Pictures({})
    gated = found.final.gated(found.score)
    wrong = np.flatnonzero(found.final.wrong & found.accepted)
    made = []
    for i in sorted(wrong, key=lambda i: float(gated[i]))[:_WORST]:
        record = found.labelled.records[i]
        captions = Counter((record.captions or ())[: found.final.num_samples])
        picture, size = _preview(pictures, record)
        mistake = {
            "name": record.file_name,
            "label": found.labelled.labels[i],
            "answer": found.final.answers[i] or "no answer",
            "score": f"{found.score} {abs(float(gated[i])):.3f}",
            "captions": [(n, caption) for caption, n in captions.most_common()],
            "picture": picture,
            "size": size,
        }
        made.append(mistake)
    return made


def _preview(pictures: Pictures, record: Record) -> tuple[str | None, tuple[int, int]]:
    """Return a small upright JPEG as a data URI, and its size; none where the file is gone or has changed."""
    opened = pictures.opened({"file_name": record.file_name, "page": record.page, "sha256": record.sha256})
    if opened is None:
        return None, (0, 0)
    image = opened.copy()
    image.thumbnail((_PREVIEW, _PREVIEW))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return data_uri(file.getvalue(), "jpeg"), image.size
