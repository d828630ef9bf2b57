"""Every knob, as frozen dataclasses, and the fingerprint of those that change what a model says.

Knows names, ranges and defaults; knows nothing of how a knob acts.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from vlmgate.errors import ConfigError

BUILTIN = "builtin"
SERVER = "a model server"  # in the place of a checkpoint; no hub id can be spelt so
DEFAULT_QUESTION = "Which of these does the part show?"
ABSTENTION = "unsure"  # the word that the prompt offers
DEFAULT_PROMPT = "Describe the part in this inspection image and any defect in one short sentence."

# Raised when the way from a file to RGB, or from RGB to a caption, changes: old readings are not mixed with new ones.
IMAGE_PIPELINE = 1
CAPTION_PIPELINE = 1
USUAL_BATCH = 8  # images
MOST_SHARDS = 10_000  # every part lists all of them

Pages = Literal["first", "all"]


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """A model server that speaks OpenAI's chat protocol, and how it is asked. Its key comes from the environment."""

    url: str  # e.g. "http://gpu1:8000/v1"
    max_side: int = 2048  # pixels; larger images are shrunk before they are sent
    concurrency: int = 16  # requests under way at once
    timeout: float = 300.0  # seconds that one request may take
    retries: int = 8  # of a request, with growing pauses of a minute at most: two to three minutes in all

    def __post_init__(self) -> None:
        _check_url(self.url)
        _require(28 <= self.max_side <= 65_536, "max_side", self.max_side, "28 to 65536 pixels")
        _require(1 <= self.concurrency <= 1024, "concurrency", self.concurrency, "1 to 1024")
        _require(0 < self.timeout <= 86_400, "timeout", self.timeout, "above 0 and at most 86400 seconds")
        _require(0 <= self.retries <= 100, "retries", self.retries, "0 to 100")


def question_prompt(question: str, choices: Sequence[str], *, abstain: bool) -> str:
    """Return the prompt that asks for one of `choices`; with `abstain` it offers to be unsure as well."""
    offer = f", or {ABSTENTION} if you cannot tell" if abstain else ""
    return f"{question.strip()} Answer with one of: {', '.join(choices)}{offer}."


def _check_url(url: str) -> None:
    """Raise `ConfigError` for what is no plain URL; one that may hold a password is not repeated."""
    allowed = "a URL such as http://host:8000/v1"
    try:
        parts = urlsplit(url)
        plain = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigError(f"endpoint is no URL; allowed: {allowed}.") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"endpoint has a user, a query or a fragment; allowed: {allowed}. A key goes into VLMGATE_API_KEY."
        )
    printable = url.isascii() and url.isprintable() and " " not in url
    _require(parts.scheme in ("http", "https") and plain and printable, "endpoint", url, allowed)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, and where it runs: here, or behind `endpoint`."""

    model: str = BUILTIN  # "builtin", a local folder, or a hub id; the name that a model server knows it by
    revision: str | None = None  # branch, tag or commit of a hub id
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    trust_remote_code: bool = False
    endpoint: EndpointConfig | None = None  # None = the model runs here

    def __post_init__(self) -> None:
        dtypes = ("auto", "float32", "bfloat16", "float16")
        _require(self.dtype in dtypes, "dtype", self.dtype, ", ".join(dtypes))
        known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device, re.ASCII)
        _require(known is not None, "device", self.device, "auto, cpu, cuda, cuda:N, mps")
        _require(bool(self.model.strip()), "model", self.model, "'builtin', a checkpoint folder or a hub id")
        if self.endpoint is not None:
            self._check_server()

    def _check_server(self) -> None:
        if self.model == BUILTIN:
            raise ConfigError("--endpoint needs --model NAME, the name by which the server knows its model.")
        local = {"revision": None, "device": "auto", "dtype": "auto", "trust_remote_code": False}
        for name, usual in local.items():
            if getattr(self, name) != usual:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is of a model that runs here; leave it out beside --endpoint.")


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How captions are drawn; every value is explicit, nothing comes from a checkpoint's generation_config."""

    prompt: str = DEFAULT_PROMPT
    num_samples: int = 8  # K, captions per image
    first_samples: int | None = None  # drawn before it is looked whether more are needed; None = K at once
    temperature: float = 1.0  # > 0
    top_p: float = 1.0  # (0, 1], 1 = off
    top_k: int = 0  # 0 = off
    max_new_tokens: int = 64
    seed: int = 0
    batch_size: int | None = None  # images per batch; changes speed, captions only by rounding; None = see `batch`
    question: str | None = None  # asked beside the captions, K times; None = none
    choices: tuple[str, ...] = ()  # what may be answered
    abstain: bool = True  # the prompt offers to be unsure
    max_answer_tokens: int = 16
    views: int = 1  # V noised copies of each image, K / V samples from each; 1 = the image alone
    view_noise: float = 20.0  # sigma of the noise, of 255

    @property
    def batch(self) -> int:
        """Return how many images a batch has, unless the captioner knows better and nothing was asked for."""
        return self.batch_size or USUAL_BATCH

    @property
    def at_once(self) -> int:
        """Return how many images are read at once: more where few samples are drawn first, for as many rows."""
        return self.batch * (1 if self.first_samples is None else self.num_samples // self.first_samples)

    @property
    def question_prompt(self) -> str | None:
        """Return the question as the model is asked it, with the choices; None where no question is asked.

        >>> SamplingConfig(question="What is it?", choices=("a crack", "a dent")).question_prompt
        'What is it? Answer with one of: a crack, a dent, or unsure if you cannot tell.'
        """
        return None if self.question is None else question_prompt(self.question, self.choices, abstain=self.abstain)

    def __post_init__(self) -> None:
        _require(
            2 <= self.num_samples <= 1024, "num_samples", self.num_samples, "2 to 1024 (one caption cannot disagree)"
        )
        _require(math.isfinite(self.temperature) and self.temperature > 0, "temperature", self.temperature, "above 0")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _require(1 <= self.max_new_tokens <= 32768, "max_new_tokens", self.max_new_tokens, "1 to 32768")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        _require(1 <= self.batch <= 4096 and self.batch_size != 0, "batch_size", self.batch_size, "1 to 4096")
        _require(bool(self.prompt.strip()), "prompt", self.prompt, "a non-empty text")
        if self.first_samples is not None:
            _require(
                2 <= self.first_samples < self.num_samples,
                "samples",
                f"{self.first_samples}..{self.num_samples}",
                "FEWEST..MOST, 2 or more, such as 4..16",
            )
            _require(self.views == 1, "views", self.views, "1 with --samples")
        self._check_question()
        _require(
            self.views >= 1 and self.num_samples % self.views == 0,
            "views",
            self.views,
            f"1 or more that divides num_samples ({self.num_samples})",
        )
        _require(0 < self.view_noise <= 255, "view_noise", self.view_noise, "above 0 and at most 255")

    def _check_question(self) -> None:
        """A question without choices has no answer that can be counted, and choices without a question none at all."""
        if self.question is None:
            _require(not self.choices, "choices", self.choices, "none without a question")
        else:
            _require(bool(self.question.strip()), "question", self.question, "a non-empty text")
            different = {choice.strip().casefold() for choice in self.choices}
            _require(
                len(different) == len(self.choices) >= 2 and "" not in different,
                "choices",
                self.choices,
                "two or more different ones",
            )
        _require(1 <= self.max_answer_tokens <= 32768, "max_answer_tokens", self.max_answer_tokens, "1 to 32768")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How files become pixels."""

    pages: Pages = "first"
    max_pixels: int = 500_000_000  # width × height of a page; above it the file is refused as a decompression bomb
    workers: int = 0  # decoding threads; 0 = from the number of cores
    least_side: int = 0  # large JPEGs are decoded smaller, down to sides of so many pixels; 0 = never

    def __post_init__(self) -> None:
        _require(self.pages in ("first", "all"), "pages", self.pages, "'first' or 'all'")
        _require(self.max_pixels >= 1, "max_pixels", self.max_pixels, "1 or more")
        _require(self.least_side >= 0, "least_side", self.least_side, "0 or more")
        _require(0 <= self.workers <= 256, "workers", self.workers, "0 (automatic) to 256")


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """How a folder is watched while it fills; times in seconds."""

    settle: float = 5.0  # a file is read once its size and time have not changed for so long
    publish_every: float = 600.0  # the result is written anew so often; 0 = at the end alone
    until: str | None = None  # "06:00", local time: then it ends by itself
    idle: float | None = None  # it ends when nothing has come for so long

    def __post_init__(self) -> None:
        _require(0 < self.settle <= 86_400, "settle", self.settle, "above 0 and at most a day")
        _require(self.publish_every >= 0, "publish-every", self.publish_every, "0 (at the end alone) or more")
        _require(self.idle is None or self.idle > 0, "idle", self.idle, "above 0")
        time = self.until is None or re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", self.until, re.ASCII) is not None
        _require(time, "until", self.until, "a time of day such as 06:00")


def parse_duration(text: str | float, option: str) -> float:
    """Return seconds for "5s", "500ms", "30m", "1.5h" or a number of seconds; raises `ConfigError`."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|min|h)?\s*", str(text), re.ASCII)
    if match is None:
        raise ConfigError(f"{option} is '{text}'; give a time such as 5s, 30m or 2h.")
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Which Ray cluster reads, and with how many workers."""

    address: str  # "auto", "local" or host:port
    workers: int = 0  # 0 = as many as there is room for
    gpus_per_worker: float | None = None  # None = one where the cluster has any; a fraction shares one

    def __post_init__(self) -> None:
        _require(bool(self.address.strip()), "ray", self.address, "auto, local or the address of a cluster")
        _require(0 <= self.workers <= 4096, "ray_workers", self.workers, "0 (automatic) to 4096")
        gpus = self.gpus_per_worker
        sound = gpus is None or 0 <= gpus <= 1 or (1 <= gpus <= 64 and gpus == int(gpus))
        _require(sound, "gpus_per_worker", gpus, "0, a fraction of one, or a whole number")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shares of a folder."""

    index: int  # counted from 1
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MOST_SHARDS:
            raise ConfigError(f"--shard is '{self}'; give one of N as 1/N to N/N, with N up to {MOST_SHARDS:,}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
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
    score: str = "vendi_score"
    threshold: float | None = None
    review_budget: str | None = None  # "10%" or "200"
    limits: tuple[str, ...] = ()  # rules such as "abstain_rate <= 0.25", beside the threshold or budget
    kernel: str = "words"  # how captions are compared
    reference: Path | None = None  # folder of images that the model is meant for
    gate: Path | None = None  # file that `vlmgate calibrate` wrote; takes the place of the six above
    restart: bool = False
    watch: WatchConfig | None = None  # go on as the folder fills
    shard: Shard | None = None  # the share of the folder that is read; None = all of it
    cluster: ClusterConfig | None = None  # None = this process reads


@dataclass(frozen=True, slots=True)
class CalibrateConfig:
    """Everything that a calibration needs to know beside how images are read."""

    source: Path  # labelled folder, or a result
    out: Path  # gate file
    labels: Path | None = None  # folder or table; None = the source itself, or the folder of the result
    label_column: str | None = None
    label_map: tuple[str, ...] = ()  # "NAME=CHOICE"
    good: str | None = None  # the class that passes a part; None = the one that is called so
    kernels: tuple[str, ...] = ("words",)
    score: str | None = None  # None = the best on the design part
    gate_samples: int | None = None  # samples that the gate draws; None = the fewest that will do
    target: Literal["risk", "escapes"] = "risk"
    target_risk: float = 0.1  # (0, 1)
    confidence: float = 0.95  # (0, 1)
    per_answer: bool = False
    rule: Literal["guarantee", "cost"] = "guarantee"
    limits: tuple[str, ...] = ()  # rules that hold beside the calibrated one
    novelty_limit: float = 1.0  # of novelty measured from the calibration set; infinite = none
    defect_rate: float | None = None  # of the line, (0, 1); None = that of the labelled images
    page: bool = True

    def __post_init__(self) -> None:
        for name, value in (("target_risk", self.target_risk), ("confidence", self.confidence)):
            _require(0 < value < 1, name, value, "between 0 and 1, or 0% and 100%")
        _require(self.confidence >= 0.5, "confidence", self.confidence, "0.5 or more")
        if self.defect_rate is not None:
            _require(0 < self.defect_rate < 1, "defect_rate", self.defect_rate, "between 0% and 100%")
        sound = 0 < self.novelty_limit <= 1e6 or math.isinf(self.novelty_limit)
        _require(sound, "novelty_limit", self.novelty_limit, "above 0; inf = none")
        _require(self.gate_samples is None or self.gate_samples >= 2, "gate_samples", self.gate_samples, "2 or more")
        _require(bool(self.kernels), "kernel", self.kernels, "at least one")

    def mapped(self) -> dict[str, str]:
        """Return the label map; raises `ConfigError` for what is no pair."""
        pairs = [text.partition("=") for text in self.label_map]
        for name, sign, choice in pairs:
            _require(bool(sign and name.strip()), "label-map", f"{name}{sign}{choice}", "NAME=CHOICE, or NAME= to drop")
        return {name.strip(): choice.strip() for name, _, choice in pairs}


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


# --- TOML -------------------------------------------------------------------------------------------------------------


def load_toml(path: Path, allowed: Collection[str], several: Collection[str] = ("limit",)) -> dict[str, Any]:
    """Return the options that a TOML file sets, by their long names with "_" or "-"; those in `several` as lists.

    Raises `ConfigError` for a file that is missing, no TOML, or that names an option that does not exist.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}.") from error
    options = {key.replace("-", "_"): value for key, value in table.items()}
    for key, value in options.items():
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(allowed))}."
            raise ConfigError(f"{path}: unknown key '{key}'; {hint}")
        if key in several and isinstance(value, str | int | float):
            options[key] = [value]
        elif key in several and isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
            options[key] = value
        elif key == "choices" and isinstance(value, list) and all(isinstance(one, str) for one in value):
            if any("," in one for one in value):
                raise ConfigError(f"{path}: a comma parts one of 'choices' from the next; name a choice without one.")
            options[key] = ",".join(value)
        elif isinstance(value, dict | list):
            raise ConfigError(f"{path}: '{key}' must be a single value.")
    return options


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")
