"""Long runs: a folder that is watched while it fills, a share of a folder, the workers of a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from vlmgate.config.options import Panel, check, opt, require
from vlmgate.errors import ConfigError

MOST_SHARDS = 10_000  # every part lists all of them


def parse_duration(text: str | float, option: str) -> float:
    """Return seconds for "5s", "500ms", "30m", "1.5h" or a number of seconds; raises `ConfigError`."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|min|h)?\s*", str(text), re.ASCII)
    if match is None:
        raise ConfigError(f"{option} is '{text}'; give a time such as 5s, 30m or 2h.")
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


_watch, _machines = partial(opt, panel=Panel.READ, rare=True), partial(opt, panel=Panel.MACHINES, rare=True)
_duration = partial(_watch, kind=str, parse=parse_duration)


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
        ge=0,
        le=4096,
        note="(0 = automatic)",
    )
    gpus_per_worker: float | None = _machines(
        None,
        "GPUs for each worker; a fraction shares one.",
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
