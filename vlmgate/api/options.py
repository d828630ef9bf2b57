"""From options, by the names that they have on the command line, to configurations.

Knows names and what they come to; knows nothing of where they were typed or of what is done with them. Both the command
line and the Python API go through here, so that both mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from vlmgate.config import (
    DEFAULT_QUESTION,
    CalibrateConfig,
    ClusterConfig,
    EndpointConfig,
    ImageConfig,
    ModelConfig,
    Pages,
    SamplingConfig,
    ScanConfig,
    Shard,
    WatchConfig,
    parse_duration,
)
from vlmgate.errors import ConfigError, UsageError
from vlmgate.scores.answers import check_choices

if TYPE_CHECKING:
    from vlmgate.calibration.cost import Costs
    from vlmgate.gate.file import GateFile

Texts = str | Sequence[str]


class ReadingOptions(TypedDict, total=False):
    """How images are read: what `scan` and `calibrate` have in common. What is not given is as on the command line."""

    model: str  # "builtin", a checkpoint folder, or a hub id
    revision: str | None
    device: str
    dtype: str
    trust_remote_code: bool
    endpoint: str | None  # URL of a model server; what follows is for one alone
    max_side: int
    concurrency: int
    timeout: float
    retries: int
    prompt: str
    question: str | None
    choices: Texts | None  # several, or one text with commas
    no_abstain: bool
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
    workers: int
    restart: bool


class ScanOptions(ReadingOptions, total=False):
    """The options of `scan`."""

    samples: str | None  # "4..16"
    views: int
    view_noise: float
    score: str
    kernel: str
    threshold: float | None
    review_budget: str | int | None  # "10%", or 200
    limit: Texts | None  # rules such as "novelty <= 1"
    reference: Path | str | None
    gate: Path | str | None
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
    good: str | None
    target: Literal["risk", "escapes"]
    target_risk: str | float  # "1%" or 0.01
    confidence: str | float
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


_MODEL = ("model", "revision", "device", "dtype", "trust_remote_code")
_SERVER = ("max_side", "concurrency", "timeout", "retries")
_SAMPLING = (
    *("prompt", "num_samples", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "batch_size"),
    *("max_answer_tokens", "views", "view_noise", "first_samples"),
)
_IMAGES = ("pages", "max_pixels", "workers")
_COSTS = ("escape", "overkill", "review", "overhead")
_REVIEWER = ("reviewer_miss", "reviewer_false_alarm")
CALIBRATE_SAMPLES = 16  # drawn to choose from, unless told otherwise


def scan_config(source: Path | Sequence[Path], out: Path | None, options: ScanOptions) -> ScanConfig:
    """Return the configuration of a scan of a folder, or of a list of files.

    Options with the value None are as if they had not been given. Without `out` the result lies in the working folder
    under the name of what is read. Raises `ConfigError` for a value out of range.
    """
    told = _given(options)
    if "samples" in told:
        usual = SamplingConfig().num_samples
        told["first_samples"], told["num_samples"] = split_samples(told["samples"], told.get("num_samples", usual))
    asked = split_choices(told.get("choices"))
    _check_together(source, told)
    shard = Shard.parse(told["shard"]) if "shard" in told else None
    return ScanConfig(
        folder=source if isinstance(source, Path) else Path.cwd(),
        out=out or default_output(source, shard.suffix if shard else ""),
        files=None if isinstance(source, Path) else tuple(source),
        model=_model(told),
        sampling=_sampling(told, question=DEFAULT_QUESTION if asked else None, choices=asked),
        images=_images(told),
        score=told.get("score", "vendi_score"),
        threshold=told.get("threshold"),
        review_budget=None if told.get("review_budget") is None else str(told["review_budget"]),
        limits=_texts(told.get("limit")),
        kernel=told.get("kernel", "words"),
        reference=_path(told.get("reference")),
        gate=_path(told.get("gate")),
        restart=told.get("restart", False),
        watch=_watch(source, told),
        shard=shard,
        cluster=_cluster(told),
    )


def calibrate_configs(
    source: Path, out: Path, options: CalibrateOptions
) -> tuple[CalibrateConfig, ScanConfig, Costs | None, str | None]:
    """Return what a calibration is told: its own configuration, how images are read, costs, and the question.

    Raises `ConfigError` for a value out of range, `UsageError` where the rule of least cost has no costs.
    """
    told = _given(options)
    rate = told.get("defect_rate")
    settings = CalibrateConfig(
        source=source,
        out=out,
        labels=_path(told.get("labels")),
        label_column=told.get("label_column"),
        label_map=_texts(told.get("label_map")),
        good=told.get("good"),
        kernels=tuple(dict.fromkeys(_texts(told.get("kernel")) or ("words",))),
        score=told.get("score"),
        gate_samples=told.get("gate_samples"),
        target=told.get("target", "risk"),
        target_risk=share(told.get("target_risk", "10%"), "--target-risk"),
        confidence=share(told.get("confidence", "95%"), "--confidence"),
        per_answer=told.get("per_answer", False),
        rule=told.get("rule", "guarantee"),
        limits=_texts(told.get("limit")),
        novelty_limit=told.get("novelty_limit", 1.0),
        defect_rate=None if rate is None else share(rate, "--defect-rate"),
        page=not told.get("no_page", False),
    )
    question = told.get("question")
    reading = labelled_reading(source, out.with_suffix(".parquet"), told)
    return settings, reading, costs_of(told, needed=settings.rule == "cost"), question


def labelled_reading(source: Path, out: Path, told: dict[str, Any]) -> ScanConfig:
    """Return how labelled images are read: a question needs choices, which may come from the labels later."""
    asked = split_choices(told.get("choices") or None)
    question = told.get("question") if asked else None
    told = {"num_samples": CALIBRATE_SAMPLES} | told | {"question": question}
    return ScanConfig(
        folder=source,
        out=out,
        model=_model(told),
        sampling=_sampling(told, question=DEFAULT_QUESTION if asked else None, choices=asked),
        images=_images(told),
        restart=told.get("restart", False),
    )


def costs_of(told: dict[str, Any], *, needed: bool = False) -> Costs | None:
    """Return the plant's costs; None where none was given, for nobody else's are worth anything."""
    from vlmgate.calibration.cost import Costs

    names = {f"cost_{name}": name for name in _COSTS} | {name: name for name in _REVIEWER}
    given = {to: told[name] for name, to in names.items() if told.get(name) is not None}
    if not given and needed:
        raise UsageError("--rule cost needs costs: --cost-escape, --cost-overkill, --cost-review and the like.")
    return Costs(**given) if given else None


def is_there(source: Path) -> bool:
    """Say whether there is something of this name."""
    try:
        return source.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def default_output(source: Path | Sequence[Path], suffix: str = "") -> Path:
    """Return where a result lies unless told otherwise: in the working folder, under the name of what was read."""
    if not isinstance(source, Path):
        return Path("listed.parquet")
    name = source.resolve().stem if source.is_file() else source.resolve().name
    return Path(f"{name or 'root'}{suffix}.parquet")


def gate_options(path: Path) -> dict[str, Any]:
    """Return all that a scan must have in common with what a gate file was calibrated for; raises `GateError`."""
    from vlmgate.gate.file import read_gate

    return options_of(read_gate(path))


def options_of(gate: GateFile) -> dict[str, Any]:
    """Return the options of what a gate was calibrated for."""
    sampling = dict(gate.sampling)
    told = {key: value for key, value in sampling.items() if value is not None and key != "abstain"}
    told |= {"choices": ",".join(sampling["choices"]) or None, "no_abstain": not sampling["abstain"]}
    told |= {"model": gate.model, "revision": gate.revision, "pages": gate.pages}
    told |= {"max_side": gate.checkpoint.get("max_side")}  # of a model server alone
    told |= {"score": gate.gate.score, "kernel": gate.kernel}
    return {key: value for key, value in told.items() if value is not None}


def server_of(told: Mapping[str, Any]) -> EndpointConfig | None:
    """Return how a model server is asked, from the options of `scan`; None where none is named.

    Raises `UsageError` for an option of servers that would then be ignored; a gate made with one brings `max_side`.
    """
    if told.get("endpoint") is None:
        usual = {field.name: field.default for field in fields(EndpointConfig)}
        idle = [name for name in _SERVER if told.get(name, usual[name]) != usual[name]]
        if idle and told.get("gate") is None:
            raise UsageError(f"--{idle[0].replace('_', '-')} is of model servers; name one with --endpoint.")
        return None
    return EndpointConfig(told["endpoint"], **{name: told[name] for name in _SERVER if name in told})


def split_choices(choices: Texts | None) -> tuple[str, ...]:
    """Return what stands between the commas of a text; several texts as they are."""
    if choices is None:
        return ()
    return tuple(choice.strip() for choice in (choices.split(",") if isinstance(choices, str) else choices))


def split_samples(samples: str, num_samples: int) -> tuple[int, int]:
    """Return the fewest and the most of "4..16"; raises `UsageError`, also where K was given as well, and differs."""
    match = re.fullmatch(r"\s*(\d{1,4})\s*\.\.\s*(\d{1,4})\s*", samples, re.ASCII)
    if match is None:
        raise UsageError(f"--samples is '{samples}'; give the fewest and the most, such as 4..16.")
    first, most = int(match[1]), int(match[2])
    if num_samples not in (SamplingConfig().num_samples, most):
        raise UsageError(f"--samples {samples} and --num-samples {num_samples} do not agree; leave one out.")
    return first, most


def share(value: str | float, option: str, within: tuple[float, float] | None = None) -> float:
    """Read "1%" and 0.01 alike; raises `ConfigError` for what is no number, or not between the ends of `within`."""
    text = str(value).strip()
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ConfigError(f"{option} is '{value}'; give a share such as 1% or 0.01.") from error
    if within is not None and not within[0] < found < within[1]:
        raise ConfigError(f"{option} is '{value}'; allowed: between {within[0]:.0%} and {within[1]:.0%}.")
    return found


def label_pairs(texts: Sequence[str] | None) -> dict[str, str]:
    """Return a label map; raises `ConfigError` for what is no pair."""
    return CalibrateConfig(Path(), Path(), label_map=tuple(texts or ())).mapped()


def _watch(source: Path | Sequence[Path], told: dict[str, Any]) -> WatchConfig | None:
    """Return how a folder is watched; None where it is not."""
    names = ("settle", "publish_every", "idle", "until")
    if not told.get("watch", False):
        for name in names:
            if name in told:
                raise UsageError(f"--{name.replace('_', '-')} is for --watch; add that, or leave it out.")
        return None
    if not isinstance(source, Path) or not source.is_dir():
        raise UsageError("--watch takes a folder, which may be empty as yet; leave it out for a file or a list.")
    times = {n: parse_duration(told[n], f"--{n.replace('_', '-')}") for n in names[:3] if n in told}
    return WatchConfig(**times, until=told.get("until"))


def _check_together(source: Path | Sequence[Path], told: Mapping[str, Any]) -> None:
    """Raise `UsageError` for what one run cannot do at once."""
    for option in ("shard", "ray"):
        if option in told and not isinstance(source, Path):
            raise UsageError(f"--{option} takes a folder; split the list instead, or leave it out.")
        if option in told and told.get("watch", False):
            raise UsageError(f"--{option} and --watch exclude each other; leave one out.")
    if "ray" in told and "endpoint" in told:
        raise UsageError("--ray and --endpoint exclude each other: a model server has workers of its own.")
    if "ray" in told and "samples" in told:
        raise UsageError("--ray draws all samples of every image; say --num-samples in the place of --samples.")


def _cluster(told: Mapping[str, Any]) -> ClusterConfig | None:
    """Return which Ray cluster reads; None where this process does."""
    workers, gpus, device = told.get("ray_workers", 0), told.get("gpus_per_worker"), told.get("device", "auto")
    if "ray" not in told:
        if workers or gpus is not None:
            raise UsageError("--ray-workers and --gpus-per-worker are for --ray; say --ray auto, or leave them out.")
        return None
    if ":" in device:
        raise UsageError(f"--device {device}: Ray chooses the GPU of each worker; say --device cuda, or leave it out.")
    return ClusterConfig(told["ray"], workers, gpus)


def _given(options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _model(told: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**{name: told[name] for name in _MODEL if name in told}, endpoint=server_of(told))


def _images(told: dict[str, Any]) -> ImageConfig:
    return ImageConfig(**{name: told[name] for name in _IMAGES if name in told})


def _sampling(told: dict[str, Any], *, question: str | None, choices: tuple[str, ...]) -> SamplingConfig:
    sampling = SamplingConfig(
        **{name: told[name] for name in _SAMPLING if name in told},
        question=told["question"] if told.get("question") is not None else question,
        choices=choices,
        abstain=not told.get("no_abstain", False),
    )
    check_choices(sampling.choices)
    return sampling


def _texts(value: Texts | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)
