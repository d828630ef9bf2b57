"""What is asked of labelled images: a gate with a promise, or which model is worth it; and what the plant pays.

Call `calibrate_configs` or `compare_configs` for what a run needs to know, from options by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlmgate.config.images import ImageConfig
from vlmgate.config.model import ModelConfig
from vlmgate.config.options import Opt, Panel, build, check, opt, options_of, require
from vlmgate.config.scan import (
    DEFAULT_QUESTION,
    SCAN,
    SERVERS,
    SamplingConfig,
    ScanConfig,
    check_there,
    given_of,
)
from vlmgate.errors import ConfigError, UsageError

_labels, _promise = partial(opt, panel=Panel.READ), partial(opt, panel=Panel.SPLIT)
_cost = partial(opt, panel=Panel.COSTS, kind=float | None, ge=0)
_rate = partial(_cost, le=1)


def share(value: str | float, option: str) -> float:
    """Read "1%" and 0.01 alike; raises `ConfigError` for what is no number."""
    text = str(value).strip()
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ConfigError(f"{option} is '{value}'; give a share such as 1% or 0.01.") from error


_share = partial(_promise, kind=str, parse=share, gt=0, lt=1, allowed="between 0% and 100%")


@dataclass(frozen=True, slots=True)
class Costs:
    """What the plant pays; raises `ConfigError` for a negative cost or a rate outside [0, 1]."""

    escape: float = _cost(200.0, "Cost of a bad part that passes.", name="cost_escape")
    overkill: float = _cost(20.0, "Cost of a good part that is rejected.", name="cost_overkill")
    review: float = _cost(1.5, "Cost of a person's look at one image.", name="cost_review")
    reviewer_miss: float = _rate(0.1, "Share of bad parts that a person passes.", rare=True, label="reviewer-miss")
    reviewer_false_alarm: float = _rate(
        0.02, "Share of good parts that a person rejects.", rare=True, label="reviewer-false-alarm"
    )
    overhead: float = _cost(
        0.0, "Upkeep and running cost of the model, per 1,000 images.", name="cost_overhead", rare=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class LabelledConfig:
    """What a calibration and a comparison have in common."""

    _: KW_ONLY
    labels: Path | None = _labels(
        None, "Labelled folder or table of labels or verdicts.", usual="LABELLED, or the folder of the result"
    )  # None = the folder that is read, or that of the result
    label_column: str | None = _labels(None, "Column of the table with the labels.", rare=True)
    label_map: tuple[str, ...] = _labels(
        (), "'NAME=CHOICE': another name for a label; 'NAME=' drops it. Repeatable.", rare=True
    )
    group: str | None = _labels(
        None,
        "Column of metadata.csv that says which images show one part.",
        usual="near copies count as one part",
        excludes={"group_pattern": "; give one of them."},
    )
    group_pattern: str | None = _labels(
        None,
        "Regular expression with a group named part, looked for in file names: '(?P<part>.+)_frame'.",
        usual="near copies count as one part",
        rare=True,
    )
    good: str | None = _labels(None, "Class that passes a part.", usual="the one called good, ok, none, …")
    score: str | None = _promise(None, "Column that the gate goes by.", usual="the best")
    target_risk: float = _share(0.1, "What is promised at most: 1% or 0.01.", typed="10%")
    confidence: float = _share(0.95, "With which confidence.", typed="95%", ge=0.5, allowed="between 50% and 100%")
    defect_rate: float | None = _share(
        None, "Share of bad parts on the line, for costs.", panel=Panel.COSTS, rare=True, usual="as labelled"
    )
    page: bool = opt(True, "Write no page.", rare=True, name="no_page", typed=False, parse=lambda no, _: not no)

    def __post_init__(self) -> None:
        check(self)
        self.mapped()
        _ = self.pattern

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """Return `group_pattern`, ready for use; raises `ConfigError` for what is none, or names no `part`."""
        if self.group_pattern is None:
            return None
        try:
            found = re.compile(self.group_pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"--group-pattern '{self.group_pattern}' is no regular expression: {error}.") from error
        require("part" in found.groupindex, "group-pattern", self.group_pattern, "a pattern with (?P<part>…)")
        return found

    def mapped(self) -> dict[str, str]:
        """Return the label map; raises `ConfigError` for what is no pair."""
        pairs = [text.partition("=") for text in self.label_map]
        for name, sign, choice in pairs:
            require(bool(sign and name.strip()), "label-map", f"{name}{sign}{choice}", "NAME=CHOICE, or NAME= to drop")
        return {name.strip(): choice.strip() for name, _, choice in pairs}


def _kernels(names: str | Sequence[str], _: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([names] if isinstance(names, str) else names)) or ("findings",)


@dataclass(frozen=True, slots=True)
class CalibrateConfig(LabelledConfig):
    """Everything that a calibration needs to know besides how images are read."""

    source: Path  # labelled folder, or a result
    out: Path  # gate file
    kernels: tuple[str, ...] = _promise(
        ("findings",),
        "How captions are compared, as for scan. Repeatable.",
        name="kernel",
        rare=True,
        usual="findings",
        parse=_kernels,
        test=bool,
        allowed="at least one",
    )
    gate_samples: int | None = _promise(
        None, "K of the gate.", rare=True, usual="the fewest samples that will do", ge=2
    )
    target: Literal["risk", "escapes"] = _promise(
        "risk", "risk: of accepted readings, wrong. escapes: of defective parts, passed."
    )
    tries: int = _promise(
        1,
        "How many tries with other options will share the chance of being wrong; declared at the first.",
        rare=True,
        ge=1,
        le=100,
    )
    per_answer: bool = _promise(False, "Let the good answer have its own limit, where it gains.", rare=True)
    rule: Literal["guarantee", "cost"] = _promise(
        "guarantee", "Which gate is written: the guaranteed one, or that of least cost."
    )
    limits: tuple[str, ...] = _promise(
        (), "Limit that holds besides, as for scan. Repeatable.", name="limit", rare=True
    )
    novelty_limit: float = _promise(
        1.0,
        "Route images more unlike the labelled ones; 1 = their strangest hundredth, inf = off.",
        rare=True,
        test=lambda limit: 0 < limit <= 1e6 or math.isinf(limit),
        allowed="above 0; inf = none",
    )  # of novelty measured from the calibration set


@dataclass(frozen=True, slots=True)
class CompareConfig(LabelledConfig):
    """What a comparison needs to know besides how images are read."""

    sources: tuple[Path, ...]  # one labelled folder, results, or both
    out: Path  # the page; readings lie beside it
    models: tuple[str, ...] = opt(
        (),
        "Model that reads LABELLED, as for scan. Repeatable; results go before.",
        panel=Panel.MODEL,
        name="model",
        short="-m",
    )
    costs: tuple[Costs, ...] = ()  # none, one for all models, or one each


def _without(options: Mapping[str, Opt], *names: str) -> Mapping[str, Opt]:
    return {name: opt for name, opt in options.items() if name not in names}


_LABELLED: Mapping[str, Opt] = {
    **_without(options_of(ModelConfig, SamplingConfig, ImageConfig), "samples", "views", "view_noise"),
    "num_samples": replace(SCAN["num_samples"], default=16, help="Most captions per image."),
    "question": replace(SCAN["question"], usual=DEFAULT_QUESTION),
    "choices": replace(SCAN["choices"], usual="the classes"),
    "restart": SCAN["restart"],
}
CALIBRATE: Mapping[str, Opt] = {**_LABELLED, **options_of(CalibrateConfig, Costs)}
COMPARE: Mapping[str, Opt] = {
    **_without(_LABELLED, "revision", "endpoint", *SERVERS),
    **options_of(CompareConfig, Costs),
    "cost_overhead": replace(
        CALIBRATE["cost_overhead"],
        kind=list[float] | None,
        help="Running cost per 1,000 images: once for all models, or once each, results first.",
    ),
}


def calibrate_configs(
    source: Path, out: Path, options: Mapping[str, Any]
) -> tuple[CalibrateConfig, ScanConfig, Costs | None, str | None]:
    """Return what a calibration needs to know: its own config, how images are read, costs, and the question.

    Raises `ConfigError` for a value out of range, `UsageError` where there is no LABELLED or the rule of least cost has
    no costs.
    """
    check_there(source, "result; name a labelled folder")
    given = given_of(options)
    settings, costs = build(CalibrateConfig, given, source=source, out=out), _costs(given)
    if settings.rule == "cost" and costs is None:
        raise UsageError("--rule cost needs costs: --cost-escape, --cost-overkill, --cost-review and the like.")
    return settings, _labelled(source, out, given), costs, given.get("question")


def compare_configs(
    sources: Sequence[Path], out: Path, options: Mapping[str, Any]
) -> tuple[CompareConfig, ScanConfig, str | None]:
    """Return what a comparison needs to know: its own config, how images are read, and the question.

    Raises `ConfigError` for a value out of range, `UsageError` where a source or the costs to be weighed are missing.
    """
    for source in sources:
        check_there(source, "result; name a labelled folder, or a result")
    given = given_of(options)
    overheads = given.pop("cost_overhead", None) or [None]
    several = [_costs(given | {"cost_overhead": each}) for each in overheads]
    costs = tuple(one for one in several if one is not None)
    settings = build(CompareConfig, given, sources=tuple(sources), out=out, costs=costs)
    given.pop("model", None)  # one after the other
    return settings, _labelled(sources[0], out, given), given.get("question")


def _labelled(source: Path, out: Path, given: dict[str, Any]) -> ScanConfig:
    """Return how labelled images are read: a question needs choices, which may come from the labels later."""
    asked = given.get("choices")
    question = given.get("question", DEFAULT_QUESTION) if asked else None
    given = {"num_samples": CALIBRATE["num_samples"].default} | given | {"question": question}
    kept = {name: given[name] for name in _LABELLED if name in given}
    return build(ScanConfig, kept, folder=source, out=out.with_suffix(".parquet"))


def _costs(given: Mapping[str, Any]) -> Costs | None:
    """Return the plant's costs; None where none was given, for nobody else's are worth anything.

    Raises `UsageError` for a --defect-rate without costs, which it would weigh.
    """
    if any(given.get(name) is not None for name in options_of(Costs)):
        return build(Costs, given)
    if "defect_rate" in given:
        raise UsageError(
            "--defect-rate weighs costs, and none is given; add --cost-escape, --cost-review and the like."
        )
    return None
