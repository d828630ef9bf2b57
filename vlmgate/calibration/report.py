"""Show a calibration on the terminal, and as JSON.

Knows what was found and how to say it; knows nothing of how it was found. Class names and file names are never markup.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmgate.calibration.agreement import CUSTOMARY, Agreement
from vlmgate.calibration.choose import DESIGN_SHARE
from vlmgate.calibration.cost import FEW, Bills, Costs
from vlmgate.calibration.figures import FIGURES, Estimate
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.study import Study
from vlmgate.config import ScanConfig
from vlmgate.data import ModelInfo
from vlmgate.errors import plain
from vlmgate.gate.rules import Gate
from vlmgate.report.image import TerminalProgress, short_model

SCHEMA_VERSION = 1


def print_study(
    found: Study,
    labels: Labels,
    seconds: Mapping[int, float],
    written: Mapping[str, str | None],
    console: Console,
) -> None:
    """Print all that was found; `seconds` are per image by number of samples, as far as they were measured."""
    say = Speaker(console)
    _print_labels(found, labels, say)
    say()
    console.print(_quality_table(found))
    for line in _on_quality(found):
        say(line)
    say()
    console.print(_counts_table(found, seconds))
    for line in on_counts(found):
        say(line)
    say()
    for line in on_promise(found):
        say(line)
    if found.bills is not None and found.costs is not None:
        say()
        say(costs_line(found.costs, found.config.defect_rate))
        console.print(_cost_table(found.bills))
        for line in on_costs(found.bills):
            say(line)
    if found.agreement is not None:
        say()
        for line in agreement_lines(found.agreement, found.repeats):
            say(line)
    say()
    _print_written(written, say)


def _print_written(written: Mapping[str, str | None], say: Speaker) -> None:
    told = [f"{name}: {path}" for name, path in written.items() if path is not None]
    say(f"Wrote {', '.join(told)}." if told else "Wrote nothing.")
    if written.get("gate"):
        say(f"Next: vlmgate scan FOLDER --gate {written['gate']}")


class CalibrationProgress(TerminalProgress):
    """Says what reads, and nothing of a gate: there is none yet."""

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None:
        """Say which model reads, with how many samples."""
        if model is not None:
            self.message(
                f"{short_model(model.model)} · {model.device} {model.dtype} · {config.sampling.num_samples} samples"
            )


class Speaker:
    """Prints lines that cannot steer the terminal; a terminal gets them broken between words, a file as they are."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, line: str = "") -> None:
        self.console.print(Text(plain(line)), soft_wrap=not self.console.is_terminal)


def _print_labels(found: Study, labels: Labels, say: Speaker) -> None:
    say(f"Labels: {labels.source}, {labels.form}.")
    for line in label_lines(found, labels):
        say(line)


def label_lines(found: Study, labels: Labels) -> list[str]:
    """Return what the labels hold, and what was left out."""
    held = found.labelled
    counts = ", ".join(f"{name} {count:,}" for name, count in Counter(held.labels).most_common())
    lines = [f"{len(held.records):,} labelled readings: {counts}."]
    wrong = int(found.final.wrong.sum())
    lines.append(f"With {found.proposed} samples each, {wrong:,} are {held.word} ({share(wrong, len(held.records))}).")
    if held.kind == "class":
        lines.append(
            f"'{held.good}' passes a part (--good)."
            if held.good is not None
            else "No class is known to pass a part, so nothing is said of escapes and costs; name it with --good."
        )
    lines += [f"Left out: {text}." for text in labels.ignored]
    lines += [f"Note: {text}." for text in found.notes]
    return lines


# --- tables -----------------------------------------------------------------------------------------------------------

QUALITY_TITLES = ("score", "kernel", "AUROC", "AURC", "AUGRC", "risk@80%", "cov@5%")


QUALITY_NOTE = (
    "Of all labelled images, with 95% intervals of resampled images. risk@80%: wrong among the surest 80%; cov@5%: the "
    "most that could be accepted with 5% wrong, in hindsight. Higher AUROC and cov@5%, lower others are better."
)


def _quality_table(found: Study) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, title in enumerate(QUALITY_TITLES):
        table.add_column(title, justify="left" if i < 2 else "right", no_wrap=i != 1)
    for cells, used in quality_rows(found, 1):  # all seven intervals would not fit into 80 columns
        table.add_row(*[Text(plain(cell)) for cell in cells], style="bold" if used else "")
    return table


def quality_rows(found: Study, intervals: int = len(FIGURES)) -> list[tuple[list[str], bool]]:
    """Return the cells of each score, and whether the gate goes by it; so many of the figures with their intervals."""
    rows = []
    for row in found.quality:
        used = row.score == found.score and row.kernel in (None, found.final.kernel)
        figures = [row.figures[name] for name in FIGURES]
        cells = [row.score + (" *" if used else ""), row.kernel or "–"]
        cells += [with_interval(f) for f in figures[:intervals]] + [decimal(f.value) for f in figures[intervals:]]
        rows.append((cells, used))
    return rows


def _on_quality(found: Study) -> list[str]:
    return [
        QUALITY_NOTE,
        *on_choice(found),
    ]


def on_choice(found: Study) -> list[str]:
    """Return which score is best, which the gate goes by, and what that is worth on images it was not chosen on."""
    lines = [
        f"Best, cross-validated: {found.best.name}; on held-out folds {_figures(found.best.held_out)}.",
    ]
    mine = found.chosen.name
    design, rest = int(found.design.sum()), int((~found.design).sum())
    if found.config.score is not None:
        lines.append(f"* The gate goes by {mine}, as asked (--score).")
    elif found.config.rule == "cost":
        lines.append(f"* The gate goes by {mine}.")
    else:
        lines.append(
            f"* The gate goes by {mine}, chosen on {design:,} images alone, so that the other {rest:,} can say what it "
            f"is worth: {_figures({k: v.value for k, v in found.held_out.items()})}."
        )
    return lines


def _figures(values: Mapping[str, float | None]) -> str:
    return f"AUROC {decimal(values.get('auroc'))}, AURC {decimal(values.get('aurc'))}"


def _counts_table(found: Study, seconds: Mapping[int, float]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("samples", "AURC", "behind the best", "s an image"):
        table.add_column(title, justify="right")
    table.add_column("")
    for cells, used in counts_rows(found, seconds):
        table.add_row(*cells, style="bold" if used else "")
    return table


def counts_rows(found: Study, seconds: Mapping[int, float]) -> list[tuple[list[str], bool]]:
    """Return the cells of each number of samples, and whether the gate draws so many."""
    rows = []
    for row in found.counts.rows:
        used = row.num_samples == found.proposed
        marks = [text for text, on in (("gate", used), ("best", row.num_samples == found.counts.best)) if on]
        behind = "–" if row.num_samples == found.counts.best else f"{row.behind:.4f} ± {row.error:.4f}"
        time = f"{seconds[row.num_samples]:.3f}" if row.num_samples in seconds else "–"
        rows.append(([str(row.num_samples), f"{row.aurc:.4f}", behind, time, ", ".join(marks)], used))
    return rows


def on_counts(found: Study) -> list[str]:
    """Say why the gate draws as many samples as it does."""
    if len(found.counts.rows) == 1:
        return ["The samples come from several views, so fewer of them cannot be told apart."]
    text = (
        f"On all images {found.counts.proposed} samples are the fewest that are at most one standard error behind "
        f"{found.counts.best}."
    )
    if found.config.gate_samples is not None:
        return [text, f"The gate draws {found.proposed}, as asked (--gate-samples)."]
    if found.proposed != found.counts.proposed:
        text += f" The gate draws {found.proposed}, which the same rule gives on the images that it was chosen on."
    return [text]


def on_promise(found: Study) -> list[str]:
    """Return what is promised, or why nothing is and what it would take."""
    made, config = found.promise, found.config
    if made is None:
        return ["The gate written is that of least expected cost (--rule cost). It promises nothing of its risk."]
    word = found.labelled.word
    rate = (
        f"at most {percent(config.target_risk)} of accepted readings are {word}"
        if config.target == "risk"
        else f"at most {percent(config.target_risk)} of defective parts pass as good"
    )
    if not made.holds:
        lines = [f"No promise: these labels cannot support that {rate}, with {percent(config.confidence)} confidence."]
        if made.needed is None:
            lines.append(
                "No number of labels would: even the safest readings are wrong too often. Ask for a higher "
                "--target-risk, or use a better model."
            )
        else:
            lines.append(
                f"It takes about {made.needed:,} labelled images like these, of {len(found.labelled.records):,} now, "
                "going by the errors seen; a third of them chooses, two thirds certify."
            )
        return lines
    assert made.bound is not None
    of = "accepted images" if config.target == "risk" else "defective parts"
    what = word if config.target == "risk" else "passed as good"
    lines = [
        f"Promise: {rate}, with {percent(config.confidence)} confidence. On images that had no part in choosing it: "
        f"{made.errors:,} of {made.count:,} {of} {what}, upper bound {made.bound:.2%}.",
        f"Coverage: {made.coverage:.1%} of them are accepted.",
    ]
    held = found.labelled
    if config.target == "risk" and config.defect_rate is not None and held.good is not None:
        lines.append(
            f"These labels hold {held.bad.mean():.1%} defective parts, the line {percent(config.defect_rate)}: the "
            "promise is for the former mix. --target escapes does not hang on it."
        )
    if made.per_answer:
        lines.append("Limits differ by answer (--per-answer): each group was tested at half the chance of being wrong.")
    elif config.per_answer:
        lines.append("One limit for every answer accepts as much, so --per-answer was not used.")
    if made.overkill is not None and found.labelled.kind != "ambiguity":
        lines.append(f"Overkill: {made.overkill[0]:,} of {made.overkill[1]:,} good parts are accepted as defective.")
    lines.append(
        "It holds for images drawn like these (one a part), read by the same model with the same prompt, and for no "
        "others; and once: whoever tries other options on the same labels until one holds has no promise."
    )
    return lines


def costs_line(costs: Costs, defect_rate: float | None) -> str:
    """Return the costs that the table goes by."""
    told = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(costs).items())
    mix = "as in the labelled images" if defect_rate is None else f"{percent(defect_rate)} (--defect-rate)"
    return f"Costs per 1,000 images ({told}); share of defective parts {mix}:"


COST_TITLES = ("", "cost", "95% interval", "looked at", "escapes", "overkill")


def _cost_table(bills: Bills) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in COST_TITLES:
        table.add_column(title, justify="right" if title else "left", no_wrap=not title)
    for cells in cost_rows(bills):
        table.add_row(*cells)
    return table


def cost_rows(bills: Bills) -> list[list[str]]:
    """Return the cells of each policy."""
    return [
        [p.name, f"{p.cost:,.0f}", f"{p.low:,.0f}–{p.high:,.0f}", *_thousandths(p.reviewed, p.escapes, p.overkill)]
        for p in bills.policies
    ]


def _thousandths(*values: float) -> list[str]:
    return [f"{value:,.1f}" for value in values]


def on_costs(bills: Bills) -> list[str]:
    """Return the break-even costs, and a warning where the cheapest gate is chance."""
    lines = []
    if bills.cheapest is None:
        lines.append("Reviewing everything is cheapest: no threshold saves more than its errors cost.")
    elif bills.cheapest_errors < FEW:
        lines.append(
            f"Warning: the cheapest gate accepts {counted(bills.cheapest_errors, 'error')}; what rests on fewer than "
            f"{FEW} is chance. Label more images."
        )
    told = ", ".join(f"{name} {'none' if v is None else format(v, ',.2f')}" for name, v in bills.break_even.items())
    if told:
        lines.append(f"The {bills.gate} costs as much as reviewing all at: {told} (each alone).")
    return lines


def agreement_lines(told: Agreement, repeats: tuple[int, int]) -> list[str]:
    """Return the figures of agreement beside the limits that are customary."""
    figures = {"effectiveness": told.effectiveness, "miss rate": told.misses, "false-alarm rate": told.false_alarms}
    lines = ["Agreement of all readings with the labels (in brackets the limits that are customary in AIAG's manual):"]
    for name, (part, whole) in figures.items():
        sign, limit = CUSTOMARY[name]
        lines.append(f"  {name:<17}{share(part, whole):>7}  {part:,} of {whole:,}  [{sign} {limit:.0%}]")
    lines.append(f"  {'kappa':<17}{decimal(told.kappa):>7}")
    part, whole = told.repeatability
    lines.append(
        f"  {'repeatability':<17}{share(part, whole):>7}  {part:,} of {whole:,} images are read alike by {repeats[0]} "
        f"readings of {repeats[1]} samples"
    )
    return lines


# --- words ------------------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """Return a share in per cent with as many digits as it has, such as "0.1%"."""
    return f"{100 * value:.6g}%"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def decimal(value: float | None) -> str:
    """Return a figure with three decimals, a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def with_interval(figure: Estimate) -> str:
    """Return a figure with the ends of its interval."""
    if figure.value is None or figure.low is None or figure.high is None:
        return decimal(figure.value)
    return f"{figure.value:.3f} ({figure.low:.2f}–{figure.high:.2f})"


def share(part: int, whole: int) -> str:
    """Return a share in per cent, a dash where there is nothing."""
    return f"{part / whole:.1%}" if whole else "–"


# --- JSON -------------------------------------------------------------------------------------------------------------


def study_json(
    found: Study, labels: Labels, seconds: Mapping[int, float], written: Mapping[str, str | None], exit_code: int
) -> str:
    """Return all that was found as one JSON object with a `schema_version`."""
    gate = found.gate()
    tree: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": exit_code,
        "labels": {"source": str(labels.source), "form": labels.form, "kind": labels.kind}
        | {"counts": dict(Counter(found.labelled.labels)), "ignored": list(labels.ignored), "notes": list(found.notes)},
        "images": len(found.labelled.records),
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
        "promise": _promise_tree(found),
        "costs": None if found.bills is None else _bills_tree(found.bills, found.costs),
        "agreement": None if found.agreement is None else asdict(found.agreement),
        "gate": None if gate is None else asdict(gate),
        "written": dict(written),
    }
    return json.dumps(_numbers(tree), indent=2, allow_nan=False)


def _promise_tree(found: Study) -> dict[str, Any] | None:
    made = found.promise
    if made is None:
        return None
    keys = ("target_kind", "target", "confidence", "errors", "count", "bound", "coverage", "overkill", "needed")
    return {"holds": made.holds, "per_answer": made.per_answer} | {key: getattr(made, key) for key in keys}


def _bills_tree(bills: Bills, costs: Costs | None) -> dict[str, Any]:
    return {
        "given": None if costs is None else asdict(costs),
        "per_1000_images": [asdict(policy) for policy in bills.policies],
        "cheapest_threshold": bills.cheapest,
        "cheapest_errors": bills.cheapest_errors,
        "break_even": bills.break_even,
        "break_even_of": bills.gate,
    }


def _numbers(tree: Any) -> Any:
    """Return a tree in which what is no finite number is null."""
    if isinstance(tree, Mapping):
        return {str(key): _numbers(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_numbers(value) for value in tree]
    if isinstance(tree, float) and (tree != tree or abs(tree) == float("inf")):
        return None
    return tree
