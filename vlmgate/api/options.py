"""The options of `scan` and `calibrate` for Python programs and their editors: the names and the types.

What an option may be and defaults to is declared in `vlmgate.config`; the tests compare the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from vlmgate.config import OnDrift, Pages

Texts = str | Sequence[str]


class ReadingOptions(TypedDict, total=False):
    """How images are read: what `scan` and `calibrate` have in common. What is not given is as on the command line."""

    model: str  # "builtin", a checkpoint folder, or a hub id
    revision: str | None
    device: str
    dtype: str
    trust_remote_code: bool
    trust_vision: bool
    endpoint: str | None  # URL of a model server; what follows is for one alone
    max_side: int
    concurrency: int
    timeout: float
    retries: int
    structured_answers: bool
    prompt: str
    question: str | None
    choices: Texts | None  # several, or one text with commas
    terms: Path | str | None
    no_abstain: bool
    answers: Literal["auto", "exact", "drawn"]
    max_answer_tokens: int
    num_samples: int  # 8; of `calibrate`, 16
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int
    batch_size: int | None
    pages: Pages
    max_pixels: int
    image_memory: float | None  # GB
    workers: int
    restart: bool


class ScanOptions(ReadingOptions, total=False):
    """The options of `scan`."""

    exclude: Texts | None  # globs
    samples: str | None  # "4..16"
    views: int
    view_noise: float
    score: str | None
    kernel: str
    threshold: float | None
    review_budget: str | int | None  # "10%", or 200
    limit: Texts | None  # rules such as "novelty <= 1"
    reference: Path | str | None
    gate: Path | str | None
    on_drift: OnDrift
    watch: bool
    settle: str | float | None  # "5s", or seconds; likewise the two after next
    until: str | None  # "06:00"
    idle: str | float | None
    publish_every: str | float | None
    shard: str | None  # "3/16"
    ray: str | None  # "auto", "local" or host:port
    ray_workers: int
    gpus_per_worker: float | None


class CalibrateOptions(ReadingOptions, total=False):
    """The options of `calibrate`."""

    labels: Path | str | None
    label_column: str | None
    label_map: Texts | None
    group: str | None
    group_pattern: str | None
    good: str | None
    target: Literal["risk", "escapes"]
    target_risk: str | float  # "1%" or 0.01
    confidence: str | float
    tries: int
    per_answer: bool
    rule: Literal["guarantee", "cost"]
    cost_escape: float | None
    cost_overkill: float | None
    cost_review: float | None
    reviewer_miss: float | None
    reviewer_false_alarm: float | None
    cost_overhead: float | None
    defect_rate: str | float | None
    score: str | None
    kernel: Texts | None
    gate_samples: int | None
    limit: Texts | None
    novelty_limit: float
    no_page: bool
