"""From options, by the names that they have on the command line, to configs.

`scan_config`, `calibrate_configs` and `compare_configs` serve the command line and the Python API alike, so that both
mean the same. What an option is called, may be and defaults to is declared in `vlmgate.config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from vlmgate.config import (
    DEFAULT_QUESTION,
    CalibrateConfig,
    CompareConfig,
    Costs,
    ImageConfig,
    ModelConfig,
    Pages,
    SamplingConfig,
    ScanConfig,
    Shard,
    split_samples,
)
from vlmgate.config.commands import CALIBRATE, SCAN, SERVERS
from vlmgate.config.options import build, check_together, options_of
from vlmgate.errors import UsageError
from vlmgate.scores.answers import check_choices

if TYPE_CHECKING:
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


def scan_config(source: Path | Sequence[Path], out: Path | None, options: Mapping[str, Any]) -> ScanConfig:
    """Return the config of a scan of a folder, or of a list of files.

    Options with the value None are as if they had not been given. Without `out` the result lies in the working folder
    under the name of what is read. Raises `ConfigError` for a value out of range, `UsageError` for options that do not
    go together.
    """
    given = given_of(options)
    check_together(SCAN, given)
    if "samples" in given:
        _, most = split_samples(given["samples"])
        if given.get("num_samples", most) not in (SCAN["num_samples"].default, most):
            raise UsageError(
                f"--samples {given['samples']} and --num-samples {given['num_samples']} do not agree; leave one out."
            )
        given["num_samples"] = most
    if "gate" in given and "endpoint" not in given:  # the gate brings max_side where a server read its images
        given = {name: value for name, value in given.items() if name not in SERVERS}
    if given.get("choices"):
        given.setdefault("question", DEFAULT_QUESTION)
    for option in ("shard", "ray"):
        if option in given and not isinstance(source, Path):
            raise UsageError(f"--{option} takes a folder; split the list instead, or leave it out.")
    if given.get("watch") and not (isinstance(source, Path) and source.is_dir()):
        raise UsageError("--watch takes a folder, which may be empty as yet; leave it out for a file or a list.")
    if "ray" in given and ":" in (device := given.get("device", "")):
        raise UsageError(f"--device {device}: Ray chooses the GPU of each worker; say --device cuda, or leave it out.")
    config = build(
        ScanConfig,
        given,
        folder=source if isinstance(source, Path) else Path.cwd(),
        out=out or default_output(source, Shard.parse(given["shard"]).suffix if "shard" in given else ""),
        files=None if isinstance(source, Path) else tuple(source),
    )
    if config.sampling.choices:
        check_choices(config.sampling.choices)
    return config


def calibrate_configs(
    source: Path, out: Path, options: Mapping[str, Any]
) -> tuple[CalibrateConfig, ScanConfig, Costs | None, str | None]:
    """Return what a calibration needs to know: its own config, how images are read, costs, and the question.

    Raises `ConfigError` for a value out of range, `UsageError` where the rule of least cost has no costs.
    """
    given = given_of(options)
    settings = build(CalibrateConfig, given, source=source, out=out)
    costs = _costs(given)
    if settings.rule == "cost" and costs is None:
        raise UsageError("--rule cost needs costs: --cost-escape, --cost-overkill, --cost-review and the like.")
    return settings, _labelled(source, out, given), costs, given.get("question")


def compare_configs(
    sources: Sequence[Path], out: Path, options: Mapping[str, Any]
) -> tuple[CompareConfig, ScanConfig, str | None]:
    """Return what a comparison needs to know: its own config, how images are read, and the question.

    Raises `ConfigError` for a value out of range, `UsageError` where costs are to be weighed and none is given.
    """
    given = given_of(options)
    overheads = given.pop("cost_overhead", None) or [None]
    several = [_costs(given | {"cost_overhead": each}) for each in overheads]
    if "defect_rate" in given and None in several:
        raise UsageError(
            "--defect-rate weighs costs, and none is given; add --cost-escape, --cost-review and the like."
        )
    given = {"model": ()} | given
    costs = tuple(one for one in several if one is not None)
    settings = build(CompareConfig, given, sources=tuple(sources), out=out, costs=costs)
    del given["model"]  # one after the other
    return settings, _labelled(sources[0], out, given), given.get("question")


def _labelled(source: Path, out: Path, given: dict[str, Any]) -> ScanConfig:
    """Return how labelled images are read: a question needs choices, which may come from the labels later."""
    asked = given.get("choices")
    question = given.get("question", DEFAULT_QUESTION) if asked else None
    given = {"num_samples": CALIBRATE["num_samples"].default} | given | {"question": question}
    sampling = build(SamplingConfig, given)
    check_choices(sampling.choices)
    return ScanConfig(
        source,
        out.with_suffix(".parquet"),
        model=build(ModelConfig, given),
        sampling=sampling,
        images=build(ImageConfig, given),
        restart=given.get("restart", False),
    )


def _costs(given: Mapping[str, Any]) -> Costs | None:
    """Return the plant's costs; None where none was given, for nobody else's are worth anything."""
    return build(Costs, given) if any(given.get(name) is not None for name in options_of(Costs)) else None


def given_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


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

    return options_of_gate(read_gate(path))


def options_of_gate(gate: GateFile) -> dict[str, Any]:
    """Return the options of what a gate was calibrated for."""
    sampling = dict(gate.sampling)
    told = {key: value for key, value in sampling.items() if value is not None and key != "abstain"}
    told |= {"choices": ",".join(sampling["choices"]) or None, "no_abstain": not sampling["abstain"]}
    told |= {"model": gate.model, "revision": gate.revision, "pages": gate.pages}
    told |= {"max_side": gate.checkpoint.get("max_side")}  # of a model server alone
    told |= {"score": gate.gate.score, "kernel": gate.kernel}
    return {key: value for key, value in told.items() if value is not None}
