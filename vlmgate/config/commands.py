"""Which options a command takes, where it shares them with others: by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlmgate.config.calibrate import CalibrateConfig, CompareConfig, Costs
from vlmgate.config.options import Opt, options_of
from vlmgate.config.reading import DEFAULT_QUESTION, EndpointConfig, ImageConfig, ModelConfig, SamplingConfig
from vlmgate.config.review import ReviewConfig
from vlmgate.config.scan import ScanConfig

Options = Mapping[str, Opt]


def _without(options: Options, *names: str) -> Options:
    return {name: opt for name, opt in options.items() if name not in names}


def _changed(options: Options, name: str, **changes: Any) -> Options:
    return {name: replace(options[name], **changes)}


SCAN: Options = options_of(ScanConfig)
DOCTOR: Options = options_of(ModelConfig)
REVIEW: Options = options_of(ReviewConfig)
SERVERS: Options = options_of(EndpointConfig)
RESCORE: Options = {
    **{name: SCAN[name] for name in ("score", "threshold", "review_budget", "limit")},
    **_changed(SCAN, "kernel", kind=str | None, default=None, usual="that of RESULT"),
}
_LABELLED: Options = {
    **_without(options_of(ModelConfig, SamplingConfig, ImageConfig), "samples", "views", "view_noise"),
    **_changed(SCAN, "num_samples", default=16, help="Most captions per image."),
    **_changed(SCAN, "question", usual=DEFAULT_QUESTION),
    **_changed(SCAN, "choices", usual="the classes"),
    "restart": SCAN["restart"],
}
CALIBRATE: Options = {**_LABELLED, **options_of(CalibrateConfig, Costs)}
COMPARE: Options = {
    **_without(_LABELLED, "revision", "endpoint", *SERVERS),
    **options_of(CompareConfig, Costs),
    **_changed(
        CALIBRATE,
        "cost_overhead",
        kind=list[float] | None,
        help="Running cost per 1,000 images: once for all models, or once each, results first.",
    ),
}
