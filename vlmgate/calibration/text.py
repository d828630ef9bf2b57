"""A calibration in words: lines and table cells for the terminal and the page, and all of it as JSON.

`print_study` and `study_json` show everything; the page calls what they are made of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmgate.calibration.choose import DESIGN_SHARE
from vlmgate.calibration.cost import FEW_ERRORS, Bills, Costs
from vlmgate.calibration.figures import FIGURES
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.numbers import decimal, percent, share, with_interval
from vlmgate.calibration.statements import agreement_lines, first_lines, passed_lines, promise_lines
from vlmgate.calibration.study import Study
from vlmgate.config import ScanConfig
from vlmgate.data import ModelInfo
from vlmgate.errors import count, plain
from vlmgate.gate.rules import Gate
from vlmgate.report.terminal import TerminalProgress, short_model

SCHEMA_VERSION = 1
SCORE_TITLES = ("score", "kernel", "AUROC", "AURC", "AUGRC", "risk@80%", "cov@5%")
COUNT_TITLES = ("samples", "AURC", "behind the best", "s an image", "")
COST_TITLES = ("", "cost", "95% interval", "looked at", "escapes", "overkill")
_SCORE_NOTE = (
    "Of the {within:,} labelled images that keep to all limits ({beyond:,} do not), with {most} samples, with 95% "
    "intervals of resampled parts. risk@80%: wrong among the surest 80%; cov@5%: the most that could be "
    "accepted with 5% wrong, in hindsight. Higher AUROC and cov@5%, lower others are better."
)

MarkedRow = tuple[list[str], bool]  # cells, and whether the gate goes by them


# --- on the terminal --------------------------------------------------------------------------------------------------


class CalibrationProgress(TerminalProgress):
    """Says what reads, and nothing of a gate: there is none yet."""

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None:
        """Say which model reads, with how many samples."""
        if model is not None:
            self.message(
                f"{short_model(model.model)} · {model.device} {model.dtype} · {config.sampling.num_samples} samples"
            )


class Speaker:
    """Prints lines and tables that cannot steer the terminal. Lines are broken between words on a terminal only."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, *lines: str) -> None:
        """Print lines; an empty one without any."""
        for line in lines or ("",):
            self.console.print(Text(plain(line)), soft_wrap=not self.console.is_terminal)

    def table(
        self,
        titles: Sequence[str],
        rows: Iterable[MarkedRow],
        *,
        left: Container[int] = (0,),
        wrap: Container[int] = (),
        gap: int = 2,
    ) -> None:
        """Print a table; `left` are the columns that are set to the left, `wrap` those that may be broken."""
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
        for i, title in enumerate(titles):
            table.add_column(title, justify="left" if i in left else "right", no_wrap=i not in wrap)
        for cells, used in rows:
            table.add_row(*[Text(plain(cell)) for cell in cells], style="bold" if used else "")
        self.console.print(table)


def print_study(
    found: Study, labels: Labels, seconds: Mapping[int, float], written: Mapping[str, str | None], console: Console
) -> None:
    """Print all that was found; `seconds` are per image by number of samples, as far as they were measured."""
    say = Speaker(console)
    say(*first_lines(found), f"Labels: {labels.source}, {labels.form}.", *label_lines(found, labels), "")
    # All seven intervals would not fit into 80 columns.
    say.table(SCORE_TITLES, score_rows(found, intervals=1), left=(0, 1), wrap=(1,), gap=1)
    say(score_note(found), *choice_lines(found), "")
    say.table(COUNT_TITLES, count_rows(found, seconds), left=(4,), wrap=range(5))
    say(*count_lines(found), "", *promise_lines(found), *passed_lines(found))
    if found.bills is not None and found.costs is not None:
        say("", costs_line(found.costs, found.config.defect_rate))
        say.table(COST_TITLES, [(cells, False) for cells in cost_rows(found.bills)], wrap=range(1, 6))
        say(*cost_lines(found.bills))
    if found.agreement is not None:
        say("", *agreement_lines(found.agreement, found.repeats))
    paths = [f"{name}: {path}" for name, path in written.items() if path is not None]
    say("", f"Wrote {', '.join(paths)}." if paths else "Wrote nothing.")
    if written["gate"] is not None:
        say(f"Next: vlmgate scan FOLDER --gate {written['gate']}")


# --- lines and cells --------------------------------------------------------------------------------------------------


def label_lines(found: Study, labels: Labels) -> list[str]:
    """Return what the labels hold, and what was left out."""
    held, wrong = found.labelled, int(found.final.wrong.sum())
    counts = ", ".join(f"{name} {number:,}" for name, number in Counter(held.labels).most_common())
    lines = [
        f"{len(held.records):,} labelled readings: {counts}.",
        f"With {found.proposed} samples each, {wrong:,} are {held.word} ({share(wrong, len(held.records))}).",
    ]
    if held.kind == "class":
        lines.append(
            f"'{held.good}' passes a part (--good)."
            if held.good is not None
            else "No class is known to pass a part, so nothing is said of escapes and costs; name it with --good."
        )
    return [*lines, *(f"Left out: {text}." for text in labels.ignored), *(f"Note: {text}." for text in found.notes)]


def score_rows(found: Study, intervals: int = len(FIGURES)) -> list[MarkedRow]:
    """Return the cells of each score; the first `intervals` of its figures have their intervals."""
    rows = []
    for row in found.quality:
        used = row.score == found.score and row.kernel in (None, found.final.kernel)
        figures = [row.figures[name] for name in FIGURES]
        cells = [row.score + (" *" if used else ""), row.kernel or "–"]
        cells += [with_interval(f) for f in figures[:intervals]] + [decimal(f.value) for f in figures[intervals:]]
        rows.append((cells, used))
    return rows


def score_note(found: Study) -> str:
    """Return what the figures of the scores are of."""
    held = found.labelled
    beyond = len(held.records) - found.within
    return _SCORE_NOTE.format(most=held.num_samples, within=found.within, beyond=beyond)


def choice_lines(found: Study) -> list[str]:
    """Return which score is best, which the gate goes by, and what that is worth on images it was not chosen on."""

    def figures(values: Mapping[str, float | None]) -> str:
        return f"AUROC {decimal(values.get('auroc'))}, AURC {decimal(values.get('aurc'))}"

    best = found.best
    words = (
        f"Best by AURC on all {len(found.design):,} images, those beyond a limit last: {best.name}; on held-out folds "
        f"{figures(best.held_out)}."
    )
    mine = f"* The gate goes by {found.chosen.name}"
    if found.config.score is not None:
        return [words, f"{mine}, as asked (--score)."]
    if found.config.rule == "cost":
        return [words, f"{mine}."]
    design = int(found.design.sum())
    return [
        words,
        f"{mine}, chosen on {design:,} images alone, so that the other {len(found.design) - design:,} can say what it "
        f"is worth: {figures({name: estimate.value for name, estimate in found.held_out.items()})}.",
    ]


def count_rows(found: Study, seconds: Mapping[int, float]) -> list[MarkedRow]:
    """Return the cells of each number of samples."""
    rows = []
    for row in found.counts.rows:
        k, best = row.num_samples, row.num_samples == found.counts.best
        marks = [text for text, on in (("gate", k == found.proposed), ("best", best)) if on]
        behind = "–" if best else f"{row.behind:.4f} ± {row.error:.4f}"
        time = f"{seconds[k]:.3f}" if k in seconds else "–"
        rows.append(([str(k), f"{row.aurc:.4f}", behind, time, ", ".join(marks)], k == found.proposed))
    return rows


def count_lines(found: Study) -> list[str]:
    """Say why the gate draws as many samples as it does."""
    if len(found.counts.rows) == 1:
        if found.labelled.views > 1:
            return ["The samples come from several views, so fewer of them cannot be told apart."]
        if found.labelled.kind == "verdict" and not found.labelled.choices:
            return ["A verdict is on all samples of an image, so nobody has judged what fewer of them say."]
        return [f"{count(found.proposed, 'sample')} an image were drawn; one alone cannot disagree."]
    fewest, best = found.counts.proposed, found.counts.best
    text = f"On all images {fewest} samples are "
    text += "best." if fewest == best else f"the fewest that are at most one standard error behind {best}."
    if found.config.gate_samples is not None:
        return [text, f"The gate draws {found.proposed}, as asked (--gate-samples)."]
    if found.proposed != found.counts.proposed:
        text += f" The gate draws {found.proposed}, which the same rule gives on the images that it was chosen on."
    return [text]


def costs_line(costs: Costs, defect_rate: float | None) -> str:
    """Return the costs that the table goes by."""
    given = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(costs).items())
    mix = "as in the labelled images" if defect_rate is None else f"{percent(defect_rate)} (--defect-rate)"
    return f"Costs per 1,000 images ({given}); share of defective parts {mix}:"


def cost_rows(bills: Bills) -> list[list[str]]:
    """Return the cells of each policy."""
    return [
        [p.name, f"{p.cost:,.0f}", f"{p.low:,.0f}–{p.high:,.0f}"]
        + [f"{number:,.1f}" for number in (p.reviewed, p.escapes, p.overkill)]
        for p in bills.policies
    ]


def cost_lines(bills: Bills) -> list[str]:
    """Return the break-even costs, and a warning where the cheapest gate is chance."""
    lines = []
    if bills.cheapest is None:
        lines.append("Reviewing everything is cheapest: no threshold saves more than its errors cost.")
    elif bills.cheapest_errors < FEW_ERRORS:
        lines.append(
            f"Warning: the cheapest gate accepts {count(bills.cheapest_errors, 'error')}; what rests on fewer than "
            f"{FEW_ERRORS} is chance. Label more images."
        )
    costs = ", ".join(f"{name} {'none' if v is None else format(v, ',.2f')}" for name, v in bills.break_even.items())
    if costs:
        lines.append(f"The {bills.gate} costs as much as reviewing all at: {costs} (each alone).")
    return lines


# --- JSON -------------------------------------------------------------------------------------------------------------


def study_json(
    found: Study, labels: Labels, seconds: Mapping[int, float], written: Mapping[str, str | None], exit_code: int
) -> str:
    """Return all that was found as one JSON object with a `schema_version`."""
    gate, made, bills = found.gate(), found.promise, found.bills
    promised = (
        "holds per_answer target_kind target confidence errors count bound coverage overkill escapes needed".split()
    )
    tree: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": exit_code,
        "warnings": [*first_lines(found), *found.notes],
        "labels": {"source": str(labels.source), "form": labels.form, "kind": labels.kind}
        | {"counts": dict(Counter(found.labelled.labels)), "ignored": list(labels.ignored), "notes": list(found.notes)},
        "images": len(found.labelled.records),
        "parts": int(found.labelled.stands.sum()),
        "chosen_on": int(found.design.sum()),
        "design_share": DESIGN_SHARE,
        "quality": [
            {"score": row.score, "kernel": row.kernel} | {name: asdict(e) for name, e in row.figures.items()}
            for row in found.quality
        ],
        "best": asdict(found.best),
        "chosen": {"score": found.score, "kernel": found.final.kernel, "num_samples": found.proposed},
        "held_out": {name: asdict(estimate) for name, estimate in found.held_out.items()},
        "samples": [asdict(row) | {"seconds_per_image": seconds.get(row.num_samples)} for row in found.counts.rows],
        "promise": made and ({key: getattr(made, key) for key in promised} | {"holds": found.promised}),
        "tries": found.tried and {"number": found.tried.number, "declared": found.tried.declared},
        "costs": bills
        and {
            "given": found.costs and asdict(found.costs),
            "per_1000_images": [asdict(policy) for policy in bills.policies],
            "cheapest_threshold": bills.cheapest,
            "cheapest_errors": bills.cheapest_errors,
            "break_even": bills.break_even,
            "break_even_of": bills.gate,
        },
        "agreement": found.agreement and asdict(found.agreement),
        "accepted": found.passed and asdict(found.passed),
        "gate": gate and asdict(gate),
        "written": dict(written),
    }
    return json.dumps(_finite(tree), indent=2, allow_nan=False)


def _finite(tree: Any) -> Any:
    """Return a tree in which what is no finite number is null."""
    if isinstance(tree, Mapping):
        return {str(key): _finite(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_finite(value) for value in tree]
    if isinstance(tree, float) and (tree != tree or abs(tree) == float("inf")):
        return None
    return tree
