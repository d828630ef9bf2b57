"""What `vlmgate scan` does with what it reads, and the fingerprint of what decides the readings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from vlmgate.config.options import Panel, check, opt, require
from vlmgate.config.reading import ImageConfig, ModelConfig, SamplingConfig
from vlmgate.errors import ConfigError

# Raised when the way from a file to RGB, or from RGB to a caption, changes: old readings are not mixed with new ones.
IMAGE_PIPELINE = 1
CAPTION_PIPELINE = 1
MOST_SHARDS = 10_000  # every part lists all of them


def parse_duration(text: str | float, option: str) -> float:
    """Return seconds for "5s", "500ms", "30m", "1.5h" or a number of seconds; raises `ConfigError`."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|min|h)?\s*", str(text), re.ASCII)
    if match is None:
        raise ConfigError(f"{option} is '{text}'; give a time such as 5s, 30m or 2h.")
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


_watch = partial(opt, panel=Panel.READ, rare=True)
_duration = partial(_watch, kind=str, parse=parse_duration)
_split, _machines = partial(opt, panel=Panel.SPLIT), partial(opt, panel=Panel.MACHINES)


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """How a folder is watched while it fills; times in seconds."""

    settle: float = _duration(
        5.0,
        "With --watch: a file is read once it has not changed for so long.",
        usual="5s",
        gt=0,
        le=86_400,
        allowed="above 0 and at most a day",
    )
    publish_every: float = _duration(
        600.0, "With --watch: write the result so often; 0 = at the end alone.", usual="10m", ge=0
    )
    until: str | None = _watch(
        None,
        "With --watch: end at this time of day, such as 06:00.",
        test=re.compile(r"([01]?\d|2[0-3]):[0-5]\d", re.ASCII).fullmatch,
        allowed="a time of day such as 06:00",
    )  # local time
    idle: float | None = _duration(None, "With --watch: end when nothing has come for so long, such as 30m.", gt=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Which Ray cluster reads, and with how many workers."""

    address: str  # "auto", "local" or host:port
    workers: int = _machines(
        0,
        "Workers, each with a model; 0 = as many as there is room for.",
        name="ray_workers",
        rare=True,
        ge=0,
        le=4096,
        note="(0 = automatic)",
    )
    gpus_per_worker: float | None = _machines(
        None,
        "GPUs for each worker; a fraction shares one.",
        rare=True,
        usual="1 where there are any",
        test=lambda gpus: 0 <= gpus <= 1 or (1 <= gpus <= 64 and gpus == int(gpus)),
        allowed="0, a fraction of one, or a whole number",
    )

    def __post_init__(self) -> None:
        require(bool(self.address.strip()), "ray", self.address, "auto, local or the address of a cluster")
        check(self)


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shares of a folder."""

    index: int  # counted from 1
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MOST_SHARDS:
            raise ConfigError(f"--shard is '{self}'; give one of N as 1/N to N/N, with N up to {MOST_SHARDS:,}.")

    @classmethod
    def parse(cls, text: str, _: str = "") -> Shard:
        """Read "3/16"; raises `ConfigError` for anything else."""
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        if match is None:
            raise ConfigError(f"--shard is '{text}'; give one of N, such as 3/16.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """Return what tells the outputs of the shards apart, such that they sort: ".03-of-16"."""
        return f".{self.index:0{len(str(self.count))}}-of-{self.count}"


@dataclass(frozen=True, slots=True)
class ScanConfig:
    """Everything that `vlmgate scan` needs to know."""

    folder: Path  # with `files`, where their relative paths begin
    out: Path
    files: tuple[Path, ...] | None = None  # these instead of all that the folder holds
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    score: str = _split("vendi_score", "Column that images are ordered by; see `vlmgate help scores`.")
    threshold: float | None = _split(None, "Accept up to this score (from it, where lower is worse).")
    review_budget: str | None = _split(
        None, "Route the most uncertain: a share (10%) or a number (200).", parse=lambda text, _: str(text)
    )
    limits: tuple[str, ...] = _split(
        (), "Accept only within this, too: 'abstain_rate <= 0.25'. Repeatable.", name="limit"
    )
    kernel: str = _split(
        "words", "How captions are compared: words, minilm, embedding:FOLDER or nli:FOLDER.", rare=True
    )
    reference: Path | None = _split(None, "Folder of images that the model is meant for; others are novel.", rare=True)
    gate: Path | None = _split(
        None, "Gate file of `vlmgate calibrate`: model, prompt, sampling and limits are its.", eager=True
    )  # takes the place of the six above
    restart: bool = opt(False, "Read everything again; the old journal is kept aside.")
    watch: WatchConfig | None = opt(
        None,
        "Go on reading as the folder fills; Ctrl-C ends it and writes the result.",
        panel=Panel.READ,
        kind=bool,
        alone="is for --watch; add that, or leave it out.",
    )
    shard: Shard | None = _machines(
        None,
        "Read one share of the folder, such as 3/16; `vlmgate merge` joins them.",
        kind=str,
        parse=Shard.parse,
        excludes={"watch": "; leave one out."},
    )  # None = all of the folder
    cluster: ClusterConfig | None = _machines(
        None,
        "Read with the workers of a Ray cluster: auto, local or host:port; see `vlmgate help clusters`.",
        name="ray",
        kind=str,
        into="address",
        alone="is for --ray; say --ray auto, or leave it out.",
        excludes={
            "watch": "; leave one out.",
            "endpoint": ": a model server has workers of its own.",
            "samples": ": Ray draws all samples of every image; say --num-samples.",
        },
    )  # None = this process reads


# Left out of the fingerprint where they are as before there was a choice, so that a journal from then still resumes.
_LATER_KEYS = ("first_samples", "question", "choices", "abstain", "max_answer_tokens", "views", "view_noise")


def fingerprint(config: ScanConfig, checkpoint: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides the readings of a scan, key by key; two scans with equal fingerprints may share a journal.

    `checkpoint` identifies the weights. Batch size, worker count, device and every limit are left out: they change when
    readings are made or what is done with them, not what they are. (The device is compared once the model is loaded.)
    """
    sampling = {key: value for key, value in asdict(config.sampling).items() if key != "batch_size"}
    for option in fields(SamplingConfig):
        if option.name in _LATER_KEYS and sampling[option.name] == option.default:
            del sampling[option.name]
    return {
        "folder": os.fsdecode(config.folder.resolve()),
        "dtype": config.model.dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "pages": config.images.pages,
        "max_pixels": config.images.max_pixels,
        "image_pipeline": IMAGE_PIPELINE,
        "caption_pipeline": CAPTION_PIPELINE,
        **({"least_side": config.images.least_side} if config.images.least_side else {}),
        **sampling,
        **({} if config.shard is None else {"shard": str(config.shard)}),
        **{f"checkpoint.{key}": value for key, value in checkpoint.items()},
    }
