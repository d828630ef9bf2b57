"""The gate file: a calibrated gate, the model and sampling that it holds for, its data and its promise, as TOML.

`read_gate` reads one, `text_of` makes the text of one, `differences` compares a run with it. A file names no code to
run: remote code is allowed on the command line alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmgate.config import SERVER, SamplingConfig
from vlmgate.errors import GateError, one_line, plain
from vlmgate.gate.drift import COLUMNS, FEWEST, QUANTILES, Kept
from vlmgate.gate.rules import HIGHER_IS_WORSE, Gate, Limit, never, parse_limit

VERSION = 1
FOLDER = "folder"  # kind of a checkpoint that is identified by its content
_NEVER = "never"
# What a calibrated score depends on; the batch size and the seed are the user's own.
SAMPLING = (
    *("prompt", "num_samples", "temperature", "top_p", "top_k", "max_new_tokens"),
    *("question", "choices", "abstain", "max_answer_tokens", "views", "view_noise", "answers"),
    "terms",
)


@dataclass(frozen=True, slots=True)
class GateFile:
    """What a gate file says."""

    gate: Gate
    kernel: str
    model: str  # as it was named: "builtin", a folder, or a hub id
    revision: str | None
    checkpoint: Mapping[str, str]  # identifies the weights, whatever folder they lie in
    sampling: Mapping[str, Any]  # the keys of `SAMPLING`
    pages: str = "first"
    data: Mapping[str, Any] = field(default_factory=dict)  # what it was calibrated on
    promise: Mapping[str, Any] = field(default_factory=dict)  # empty = none
    drift: Mapping[str, Kept] = field(default_factory=dict)  # column → distribution on the calibration set
    features: str | None = None  # file in the same folder with the vision features' reference
    features_sha256: str | None = None
    own_novelty: bool = False  # the model's own limit on novelty held when it was calibrated
    measures_novelty: bool = False  # novelty is measured from that reference, not from the checkpoint's own
    edited: bool = False  # since it was calibrated, so that it promises nothing
    folder: Path | None = None  # that the file lies in; null for one that lies nowhere yet

    @property
    def model_here(self) -> str:
        """Return the model as it is found from here: as it was named, or by that path beside the gate.

        A model that was somewhere else when it was calibrated is not found by its path as it was typed. Whether it is
        the same is asked of its content, not of its path; see `differences`.
        """
        if self.checkpoint.get("model") != FOLDER or self.folder is None or Path(self.model).expanduser().is_dir():
            return self.model
        places = [self.folder / self.model, Path(str(self.data.get("model_folder", "")) or self.model)]
        return next((str(place) for place in places if place.is_dir()), self.model)

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that a scan must have for the gate to hold, by their names on the command line."""
        said = {key: value for key, value in self.sampling.items() if key not in ("choices", "abstain")}
        said |= {"choices": ",".join(self.sampling["choices"]) or None, "no_abstain": not self.sampling["abstain"]}
        said |= {"model": self.model_here, "revision": self.revision, "pages": self.pages}
        said |= {"max_side": self.checkpoint.get("max_side")}  # this and the next of a model server alone
        said |= {"structured_answers": True if "structured_answers" in self.checkpoint else None}
        said |= {"score": self.gate.score, "kernel": self.kernel}
        return {key: value for key, value in said.items() if value is not None}


def sampling_of(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a calibrated score depends on."""
    return {key: _back(key, sampling) for key in SAMPLING} | {"choices": list(sampling["choices"])}


# --- reading ----------------------------------------------------------------------------------------------------------


def is_gate(path: Path) -> bool:
    """Say whether a file is a gate, of whatever version, whole or damaged."""
    try:
        return "vlmgate_gate" in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def read_gate(path: Path) -> GateFile:
    """Read a gate file; raises `GateError` for one that is missing, damaged, or of another version."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GateError(f"{path}: cannot read the gate ({error.strerror}); vlmgate calibrate writes one.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GateError(f"{path}: is not valid TOML: {error}.") from error
    if tree.get("vlmgate_gate") != VERSION:
        raise GateError(f"{path}: is no gate file of this version; calibrate again.")
    try:
        return _read(tree, path)
    except GateError as error:
        raise GateError(f"{path}: {error}") from error
    except Exception as error:
        raise GateError(f"{path}: is damaged ({one_line(error, 120)}); calibrate again.") from error


def _read(tree: Mapping[str, Any], path: Path) -> GateFile:
    gate, reads = tree["gate"], tree["reads"]
    samples = int(reads["num_samples"])
    SamplingConfig(**{key: _back(key, reads) for key in SAMPLING})  # raises where one is out of range
    score, threshold = str(gate["score"]), float(gate["threshold"])
    if score not in HIGHER_IS_WORSE or not math.isfinite(threshold):
        raise GateError("needs a known score and a finite threshold.")
    limits = [parse_limit(text, samples) for text in gate.get("limits", ())]
    for one in gate.get("by_answer", ()):
        limit, answer = one["limit"], str(one["answer"])
        limits.append(never(score, answer) if limit == _NEVER else replace(parse_limit(limit, samples), answer=answer))
    choices = reads.get("choices") or ()
    for limit in limits:
        if choices and limit.answer is not None and limit.answer not in choices:
            raise GateError(f"limits the answer {limit.answer!r}, which is none of its choices ({', '.join(choices)}).")
    features = tree.get("features", {})
    name = features.get("file")
    if name is not None and Path(name).name != name:
        raise GateError("features must be a file beside the gate.")
    date = str(tree["data"].get("date", "no date"))[:10]
    promise = _promise(tree.get("promise", {}))
    read = GateFile(
        gate=Gate(score=score, threshold=threshold, limits=tuple(limits), origin=f"{path.name}, {date}"),
        kernel=str(gate["kernel"]),
        model=str(reads["model"]),
        revision=reads.get("revision"),
        checkpoint={str(key): str(value) for key, value in reads.get("checkpoint", {}).items()},
        sampling={key: _back(key, reads) for key in SAMPLING},
        pages=str(reads["pages"]),
        data=tree["data"],
        promise=promise,
        drift={name: _kept(name, kept) for name, kept in tree["drift"].items()},
        features=name,
        features_sha256=features.get("sha256"),
        own_novelty=bool(gate.get("own_novelty", False)),
        measures_novelty=bool(features.get("measures_novelty", False)),
        folder=path.parent,
    )
    same = promise.get("of_gate") == _fingerprint(read)
    return read if not promise or same else replace(read, promise={}, edited=True)


def _promise(promise: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a promise that can be shown; raises `GateError` for what is none."""
    if promise:
        rates = [float(promise[key]) for key in ("target_risk", "confidence")]
        if promise["target"] not in ("risk", "escapes") or not all(0 < rate < 1 for rate in rates):
            raise GateError("its promise is none.")
    return promise


def _kept(column: str, stored: Mapping[str, Any]) -> Kept:
    kept = Kept(int(stored["images"]), tuple(map(float, stored["quantiles"])))
    rising = all(a <= b for a, b in itertools.pairwise(kept.quantiles))
    sound = len(kept.quantiles) == QUANTILES and all(map(math.isfinite, kept.quantiles))
    if column not in COLUMNS or kept.count < FEWEST or not rising or not sound:
        raise GateError(f"its distribution of {column} is damaged.")
    return kept


def _fingerprint(gate: GateFile) -> str:
    """Return a hash of all that a promise is about: limits, settings, weights and images."""
    rule = asdict(replace(gate.gate, origin=None))
    about: list[Any] = [rule, gate.kernel, gate.model, dict(gate.checkpoint), _told(gate.sampling)]
    about += [gate.pages, gate.data.get("sha256"), gate.features_sha256, gate.measures_novelty]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=list).encode()).hexdigest()


def _told(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as a file holds them: nothing of answers unless they are exact, nor of terms without any."""
    later = {"answers": "drawn", "terms": None}
    return {key: value for key, value in sampling.items() if key not in later or value != later[key]}


def _back(key: str, reads: Mapping[str, Any]) -> Any:
    value = reads.get(key)
    if key == "answers":  # before there was a choice they were drawn
        return "exact" if value == "exact" else "drawn"
    return tuple(value or ()) if key == "choices" else value


def feature_file(gate: GateFile, path: Path) -> Path | None:
    """Return the file of features next to a gate file, checked; raises `GateError` where it is needed and not there."""
    if gate.features is None:
        return None
    found = path.parent / gate.features
    try:
        same = hashlib.sha256(found.read_bytes()).hexdigest() == gate.features_sha256
    except OSError:
        same = False
    if same:
        return found
    if gate.measures_novelty:
        raise GateError(
            f"{path}: needs {found.name} beside it, as it was written with it; copy both, or calibrate again."
        )
    return None


# --- comparing --------------------------------------------------------------------------------------------------------


def differences(gate: GateFile, sampling: SamplingConfig, checkpoint: Mapping[str, str], pages: str) -> list[str]:
    """Return what is not as it was calibrated, in words; empty where the gate may be used."""
    found = []
    for key in SAMPLING:
        now, then = getattr(sampling, key), _back(key, gate.sampling)
        if now != then and not _is_idle(key, sampling, gate):
            found.append(f"{key.replace('_', '-')} {_short(now)} (calibrated with {_short(then)})")
    if pages != gate.pages:
        found.append(f"pages {pages} (calibrated with {gate.pages})")
    if dict(checkpoint) != dict(gate.checkpoint):
        found.append(_other_model(checkpoint, gate.checkpoint))
    return found


def _other_model(now: Mapping[str, str], then: Mapping[str, str]) -> str:
    if now.get("model") == then.get("model") == SERVER:
        changed = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
        words = {"name": "model", "max_side": "max-side", "structured_answers": "structured-answers"}
        return ", ".join(
            f"{words.get(key, key)} {_short(now.get(key))} (calibrated with {_short(then.get(key))})" for key in changed
        )
    return "another model or other weights"


def _is_idle(key: str, sampling: SamplingConfig, gate: GateFile) -> bool:
    """Say whether a setting has no effect on either side."""
    if key == "answers" and sampling.answers == "auto":
        return True  # a run takes them as the gate has them
    if key in ("abstain", "max_answer_tokens", "choices", "answers"):
        return sampling.question is None and gate.sampling["question"] is None
    return key == "view_noise" and sampling.views == 1 and gate.sampling["views"] == 1


def _short(value: object) -> str:
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"'{text[:40]}…'" if len(text) > 40 else f"'{text}'"


# --- writing ----------------------------------------------------------------------------------------------------------


def text_of(gate: GateFile, about: Sequence[str], path: Path) -> str:
    """Return the text of a gate file, with a comment on every part; `path` is where it will lie."""
    if gate.promise:
        gate = replace(gate, promise=dict(gate.promise) | {"of_gate": _fingerprint(gate)})
    text = _text_of(gate, about)
    _read(tomllib.loads(text), path)  # what is written can be read
    return text


def _text_of(gate: GateFile, about: Sequence[str]) -> str:
    limits = [limit for limit in gate.gate.limits if limit.answer is None]
    by_answer = [limit for limit in gate.gate.limits if limit.answer is not None]
    assert gate.gate.threshold is not None
    side = "<=" if HIGHER_IS_WORSE[gate.gate.score] else ">="
    lines = [
        "# A gate of vlmgate: `vlmgate scan FOLDER --gate THIS_FILE` splits a folder by it.",
        *(f"# {plain(' '.join(line.split()))}" for line in about),
        "",
        f"vlmgate_gate = {VERSION}  # version of this file's form",
        "",
        f"[gate]  # accepted is what has {gate.gate.score} {side} threshold, and keeps every limit",
        f"score = {_toml(gate.gate.score)}",
        f"kernel = {_toml(gate.kernel)}",
        f"threshold = {_toml(float(gate.gate.threshold))}",
        f"limits = {_toml([_rule(limit) for limit in limits])}",
        *(["own_novelty = true  # the model's own limit on novelty held, too"] if gate.own_novelty else []),
    ]
    for limit in by_answer:
        lines += ["", "[[gate.by_answer]]  # stricter where the answer is this"]
        lines += [f"answer = {_toml(limit.answer)}", f"limit = {_toml(_rule(limit))}"]
    reads = {"model": gate.model, "revision": gate.revision, **_told(gate.sampling), "pages": gate.pages}
    lines += ["", "[reads]  # what was calibrated; a scan that differs is refused", *_pairs(reads)]
    lines += ["", "[reads.checkpoint]  # identifies the weights", *_pairs(gate.checkpoint)]
    lines += ["", "[data]  # what it was calibrated on", *_pairs(gate.data)]
    if gate.promise:
        lines += ["", "[promise]  # for images drawn like those above, and for no others", *_pairs(gate.promise)]
    if gate.features is not None:
        lines += ["", "[features]  # what the model saw in those images, for `novelty` and drift"]
        features = {"file": gate.features, "sha256": gate.features_sha256}
        lines += _pairs(features | {"measures_novelty": gate.measures_novelty})
    lines += [
        "",
        "[drift]  # how the columns were distributed there, in hundredths: from the least value to the greatest",
    ]
    for column, kept in gate.drift.items():
        lines += [f"[drift.{column}]", *_pairs({"images": kept.count, "quantiles": kept.quantiles})]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """Return lines of TOML; what is None has none."""
    return [f"{_key(key)} = {_toml(value)}" for key, value in values.items() if value is not None]


def _rule(limit: Limit) -> str:
    if math.isinf(limit.value) and not limit.is_none:
        return _NEVER
    return f"{limit.column} {limit.side} {'inf' if limit.is_none else _decimal(limit.value)}"


def _decimal(value: float) -> str:
    """Return a number without an exponent, so that it can be read back as a limit."""
    text = f"{value:.12f}".rstrip("0").rstrip(".")
    return text or "0"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) else _toml(name)


def _toml(value: Any) -> str:
    """Return a value as TOML: its strings are those of JSON, but for one character."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(_toml(one) for one in value) + "]"
