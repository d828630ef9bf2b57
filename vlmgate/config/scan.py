"""How images are read and what `vlmgate scan` does with the readings: model, sampling, files, limits, machines.

Call `scan_config` for the config of a scan from options by name, `fingerprint` for what decides its readings.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlmgate.config.images import ImageConfig
from vlmgate.config.long_runs import ClusterConfig, Shard, WatchConfig
from vlmgate.config.model import BUILTIN, EndpointConfig, ModelConfig
from vlmgate.config.options import Opt, Panel, build, check, check_together, opt, options_of, require
from vlmgate.errors import ConfigError, UsageError

DEFAULT_QUESTION = "Which of these does the part show?"
ABSTENTION = "unsure"  # the word that the prompt offers
DEFAULT_PROMPT = "Describe the part in this inspection image and any defect in one short sentence."
USUAL_BATCH = 8  # images
MOST_NAME = 255 - len(".journal.old.999.jsonl")  # bytes of a result's name, less .parquet
# Defaults of before. A journal or gate that began with them goes on with them.
FORMER = {"max_new_tokens": 64}
# Raised when the way from a file to RGB, or from RGB to a caption, changes: old readings are not mixed with new ones.
IMAGE_PIPELINE = 1
CAPTION_PIPELINE = 1

_model, _sampling = partial(opt, panel=Panel.MODEL), partial(opt, panel=Panel.SAMPLING)
_reading = partial(opt, panel=Panel.READ)
OnDrift = Literal["warn", "route", "stop"]  # what becomes of a run whose images do not look like the calibrated ones
_limit, _machines = partial(opt, panel=Panel.SPLIT), partial(opt, panel=Panel.MACHINES)


def question_prompt(question: str, choices: Sequence[str], *, abstain: bool) -> str:
    """Return the prompt that asks for one of `choices`; with `abstain` it offers to be unsure as well."""
    offer = f", or {ABSTENTION} if you cannot tell" if abstain else ""
    return f"{question.strip()} Answer with one of: {', '.join(choices)}{offer}."


def caption_prompt(model: ModelConfig, choices: Sequence[str], terms: str | None) -> str:
    """Return the usual caption prompt, which names the words that captions are compared by where the user gave some.

    The built-in model knows one prompt only.
    """
    words = [*choices, *(one["id"].replace("_", " ") for one in (tomllib.loads(terms)["finding"] if terms else ()))]
    if not words or model.model == BUILTIN:
        return DEFAULT_PROMPT
    return f"{DEFAULT_PROMPT} Use these words where they fit: {', '.join(dict.fromkeys(words))}."


def _terms(given: str | Path, flag: str) -> str:
    """Return the text of a file of terms, or a text that is one; raises `ConfigError`."""
    if isinstance(given, str) and "\n" in given:
        return given
    try:
        text = Path(given).read_text("utf-8")
        tomllib.loads(text)["finding"][0]["id"]
    except OSError as error:
        raise ConfigError(f"{flag} {given}: cannot read the file ({error.strerror}).") from error
    except (ValueError, LookupError, TypeError) as error:
        what = (
            "holds no [[finding]] with an id" if isinstance(error, LookupError | TypeError) else f"is no TOML: {error}"
        )
        raise ConfigError(f"{flag} {given}: {what}; see `vlmgate help findings`.") from error
    return f"{text.rstrip()}\n"


def split_samples(text: str) -> tuple[int, int]:
    """Return the fewest and the most of "4..16"; raises `ConfigError`."""
    match = re.fullmatch(r"\s*(\d{1,4})\s*\.\.\s*(\d{1,4})\s*", text, re.ASCII)
    if match is None:
        raise ConfigError(f"--samples is '{text}'; give the fewest and the most, such as 4..16.")
    return int(match[1]), int(match[2])


def _split(choices: str | Sequence[str], _: str) -> tuple[str, ...]:
    """Return what stands between the commas of a text; several texts as they are."""
    return tuple(choice.strip() for choice in (choices.split(",") if isinstance(choices, str) else choices))


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How captions are drawn; every value is explicit, nothing comes from a checkpoint's generation_config."""

    prompt: str = _model(
        DEFAULT_PROMPT, "What the model is asked about each image.", test=str.strip, allowed="a non-empty text"
    )
    num_samples: int = _sampling(
        8, "K, captions per image.", short="-k", ge=2, le=1024, note="(one caption cannot disagree)"
    )  # K
    first_samples: int | None = _sampling(
        None,
        "Draw the fewest, and go on to K = the most where they do not decide: 4..16.",
        name="samples",
        kind=str,
        metavar="FEWEST..MOST",
        parse=lambda text, _: split_samples(text)[0],
    )  # drawn before it is looked whether more are needed; None = K at once
    temperature: float = _sampling(1.0, "Sampling temperature; 0.8 to 1 separates best.", gt=0)
    top_p: float = _sampling(1.0, "Nucleus sampling; 1 = off.", rare=True, gt=0, le=1)
    top_k: int = _sampling(0, "Sample from the K likeliest tokens only; 0 = off.", rare=True, ge=0)
    max_new_tokens: int = _sampling(
        192, "A caption is cut off here, and its image goes to a person.", rare=True, ge=1, le=32768
    )
    seed: int = _sampling(0, "Same seed, same captions.", ge=0, le=2**63 - 1, allowed="0 to 2^63 - 1")
    batch_size: int | None = _sampling(
        None,
        "Images per batch; changes speed, not captions.",
        rare=True,
        usual="8; on a GPU as many as fit, up to 32; of a server twice --concurrency",
        ge=1,
        le=4096,
    )  # changes captions only by rounding; None = see `batch`
    question: str | None = _model(
        None,
        "Closed question, asked besides the captions.",
        usual=f"{DEFAULT_QUESTION} (with --choices)",
        test=str.strip,
        allowed="a non-empty text",
    )  # asked K times
    choices: tuple[str, ...] = _model(
        (), "What may be answered, separated by commas.", kind=str, parse=_split, commas=True
    )
    abstain: bool = _model(
        True, "Do not offer to be unsure.", rare=True, name="no_abstain", typed=False, parse=lambda no, _: not no
    )  # the prompt offers to be unsure
    answers: Literal["auto", "exact", "drawn"] = _sampling(
        "auto",
        "exact: score the choices in place of K drawn answers; auto: where that can be.",
        rare=True,
    )  # an engine draws unless this is "exact"
    max_answer_tokens: int = _sampling(
        16, "An answer is cut off here, and its image goes to a person.", rare=True, ge=1, le=32768
    )
    terms: str | None = _model(
        None,
        "TOML file of findings and their words, in the place of the shipped ones; see `vlmgate help findings`.",
        rare=True,
        kind=str,
        metavar="FILE",
        parse=_terms,
    )  # its text
    views: int = _sampling(
        1, "Sample from so many noised copies of each image; divides K.", rare=True
    )  # K / V samples from each; 1 = the image alone
    view_noise: float = _sampling(20.0, "Standard deviation of their noise, of 255.", rare=True, gt=0, le=255)

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
        check(self)
        first, most = self.first_samples, self.num_samples
        if first is not None:
            require(2 <= first < most, "samples", f"{first}..{most}", "FEWEST..MOST, 2 or more, such as 4..16")
            require(self.views == 1, "views", self.views, "1 with --samples")
        if self.question is None:
            require(not self.choices, "choices", self.choices, "none without a question")
        else:  # without choices no answer could be counted
            different = {choice.strip().casefold() for choice in self.choices} - {""}
            require(len(different) == len(self.choices) >= 2, "choices", self.choices, "two or more different ones")
        divides = self.views >= 1 and most % self.views == 0
        require(divides, "views", self.views, f"1 or more that divides num_samples ({most})")


@dataclass(frozen=True, slots=True)
class ScanConfig:
    """Everything that `vlmgate scan` needs to know."""

    folder: Path  # with `files`, where their relative paths begin
    out: Path
    files: tuple[Path, ...] | None = None  # these instead of all that the folder holds
    exclude: tuple[str, ...] = _reading(
        (),
        "Leave out files and folders of this name or path: 'old', '*.tmp.png', 'line2/*'. Repeatable; 'none' takes "
        "what is left out as a rule (@eaDir, .snapshot, …).",
        rare=True,
        metavar="GLOB",
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    score: str | None = _limit(
        None,
        "Column that images are ordered by; see `vlmgate help scores`.",
        usual="vendi_score; answer_probability with --choices",
    )
    threshold: float | None = _limit(None, "Accept up to this score (from it, where lower is worse).")
    review_budget: str | None = _limit(
        None, "Route the most uncertain: a share (10%) or a number (200).", parse=lambda text, _: str(text)
    )
    limits: tuple[str, ...] = _limit(
        (), "Accept only within this, too: 'abstain_rate <= 0.25'. Repeatable.", name="limit"
    )
    kernel: str = _limit(
        "findings", "How captions are compared: findings, words, minilm, embedding:FOLDER or nli:FOLDER.", rare=True
    )
    reference: Path | None = _limit(None, "Folder of images that the model is meant for; others are novel.", rare=True)
    gate: Path | None = _limit(
        None, "Gate file of `vlmgate calibrate`: model, prompt, sampling and limits are its.", eager=True
    )  # takes the place of the six above
    on_drift: OnDrift = _limit(
        "warn",
        "Images unlike the calibrated ones: warn (exit code 5), route (all to people) or stop (no result is written).",
        rare=True,
    )
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


# Left out of the fingerprint where they are as before there was a choice, so that a journal from then still resumes;
# `answers` likewise, unless they are exact.
_LATER_KEYS = ("first_samples", "terms", "question", "choices", "abstain", "max_answer_tokens", "views", "view_noise")


def fingerprint(config: ScanConfig, checkpoint: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides the readings of a scan, key by key; two scans with equal fingerprints may share a journal.

    `checkpoint` identifies the weights. Batch size, worker count, device and every limit are left out: they change when
    readings are made or what is done with them, not what they are. (The device is compared once the model is loaded.)
    """
    sampling = {key: value for key, value in asdict(config.sampling).items() if key != "batch_size"}
    for option in fields(SamplingConfig):
        if option.name in _LATER_KEYS and sampling[option.name] == option.default:
            del sampling[option.name]
    if sampling["answers"] != "exact" or config.sampling.question is None:
        del sampling["answers"]
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


SCAN: Mapping[str, Opt] = options_of(ScanConfig)
SERVERS: Mapping[str, Opt] = options_of(EndpointConfig)


def scan_config(source: Path | Sequence[Path], out: Path | None, options: Mapping[str, Any]) -> ScanConfig:
    """Return the config of a scan of a folder, or of a list of files.

    Options with the value None are as if they had not been given. Without `out` the result lies in the working folder
    under the name of what is read. Raises `ConfigError` for a value out of range, `UsageError` where there is nothing
    to read or options do not go together.
    """
    if isinstance(source, Path):
        check_there(source, "image; name a folder of images")
    given = given_of(options)
    check_together(SCAN, given)
    if "samples" in given:
        _, most = split_samples(given["samples"])
        if given.get("num_samples", most) not in (SCAN["num_samples"].default, most):
            raise UsageError(
                f"--samples {given['samples']} and --num-samples {given['num_samples']} do not agree; leave one out."
            )
        given["num_samples"] = most
    if given.get("on_drift", "warn") != "warn":
        if "gate" not in given:
            raise UsageError("--on-drift is for --gate, which knows the images that it was calibrated on; add that.")
        if given["on_drift"] == "stop" and "shard" in given:
            raise UsageError("--on-drift stop is of a whole folder; leave it out here, and give it to `vlmgate merge`.")
    if "gate" in given and "endpoint" not in given:  # the gate brings max_side where a server read its images
        given = {name: value for name, value in given.items() if name not in SERVERS}
    if given.get("choices"):
        given.setdefault("question", DEFAULT_QUESTION)
    if "prompt" not in given and (given.get("choices") or given.get("terms")):
        made = build(ScanConfig, given, folder=Path(), out=Path())
        given["prompt"] = caption_prompt(made.model, made.sampling.choices, made.sampling.terms)
    for option in ("shard", "ray"):
        if option in given and not isinstance(source, Path):
            raise UsageError(f"--{option} takes a folder; split the list instead, or leave it out.")
    if given.get("watch") and not (isinstance(source, Path) and source.is_dir()):
        raise UsageError("--watch takes a folder, which may be empty as yet; leave it out for a file or a list.")
    if "ray" in given and ":" in (device := given.get("device", "")):
        raise UsageError(f"--device {device}: Ray chooses the GPU of each worker; say --device cuda, or leave it out.")
    return build(
        ScanConfig,
        given,
        folder=source if isinstance(source, Path) else Path.cwd(),
        out=out or default_output(source, Shard.parse(given["shard"]).suffix if "shard" in given else ""),
        files=None if isinstance(source, Path) else tuple(source),
    )


def check_there(source: Path, other: str) -> None:
    """Raise `UsageError` where there is nothing of this name; `other` is what else than a folder it may be."""
    try:
        there = source.exists()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise UsageError(f"{source}: no such folder or {other}.")


def given_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def default_output(source: Path | Sequence[Path], suffix: str = "") -> Path:
    """Return where a result lies unless told otherwise: in the working folder, under the name of what was read."""
    if not isinstance(source, Path):
        return Path("listed.parquet")
    name = source.resolve().stem if source.is_file() else source.resolve().name
    whole = os.fsencode(name)
    if len(whole) + len(suffix) > MOST_NAME:  # its journal and log have longer names
        mark = f"~{hashlib.sha256(whole).hexdigest()[:8]}"  # two long names that begin alike keep two results
        name = whole[: MOST_NAME - len(suffix) - len(mark)].decode("utf-8", "ignore") + mark
    return Path(f"{name or 'root'}{suffix}.parquet")
