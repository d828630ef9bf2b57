"""Run a calibration: read the labelled images or take a result, study it, write the gate and the page.

Call `calibrate`. A comparison of models uses `completed` and `read_labelled` as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmgate.calibration.choose import SUBSETS
from vlmgate.calibration.cost import Costs
from vlmgate.calibration.labels import Labels, read_labels
from vlmgate.calibration.page import write_page
from vlmgate.calibration.parts import check_all, part_in
from vlmgate.calibration.readings import folded, join
from vlmgate.calibration.statements import first_lines, tries_declared
from vlmgate.calibration.study import Study, study
from vlmgate.calibration.tries import look_back, remember, wait
from vlmgate.captioner import Captioner, load_captioner
from vlmgate.captioner.machine import begin_peak, end_peak
from vlmgate.config import (
    BUILTIN,
    DEFAULT_PROMPT,
    DEFAULT_QUESTION,
    CalibrateConfig,
    ModelConfig,
    SamplingConfig,
    ScanConfig,
    caption_prompt,
)
from vlmgate.data import Entry, Picture, Reading
from vlmgate.errors import LabelError, OutputError, StoreError, UsageError
from vlmgate.gate.file import GateFile, is_gate, sampling_of
from vlmgate.images import find_images, open_pages
from vlmgate.run.control import Progress
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult
from vlmgate.run.reader import Load
from vlmgate.scores.answers import check_choices
from vlmgate.scores.diversity import check_kernel, load_kernel
from vlmgate.scores.score import Scorer
from vlmgate.store.result import check_folder, read_provenance, read_result, write_file, write_gate, write_result
from vlmgate.version import __version__

log = logging.getLogger(__name__)

TIMED = "seconds_by_samples"  # keys of a result's provenance
MEMORY = "peak_memory_bytes"
_PICTURES = 8  # that are read to measure the time
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration left behind."""

    found: Study
    labels: Labels
    seconds: Mapping[int, float]  # an image, by number of samples
    gate: Path | None  # None where no gate could be written
    result: Path  # with the readings
    page: Path | None  # None where none was asked for

    @property
    def written(self) -> dict[str, str | None]:
        """Return what lies where."""
        paths = {"gate": self.gate, "readings": self.result, "page": self.page}
        return {name: None if path is None else str(path) for name, path in paths.items()}

    @property
    def unpromised(self) -> str | None:
        """Say why a gate that was to promise something does not; null where it does, or where none was to."""
        tried = self.found.tried
        if self.gate is None or tried is None or tried.holds:
            return None
        return f"this is try {tried.number} on the same labels, and {tries_declared(tried.declared)} at the first."

    @property
    def why_none(self) -> str:
        """Say why there is no gate, in one sentence."""
        if self.found.blindness is not None:
            return "the model sees nothing of what the labels say."
        if self.found.promise is None:
            return "reviewing everything is cheapest."
        needed = self.found.promise.needed
        if needed is None:
            return "the readings are wrong too often for this --target-risk, whatever the number of labels."
        what = "parts" if self.found.labelled.grouped else "images"
        return f"the promise takes about {needed:,} new labelled {what}; add them, and the same command goes on."


@dataclass(frozen=True, slots=True)
class Stopped:
    """A calibration whose readings are not complete; the same command goes on."""

    result: ScanResult


def calibrate(
    config: CalibrateConfig,
    reading: ScanConfig,
    costs: Costs | None,
    progress: Progress,
    *,
    question: str | None = None,
    load: Load = load_captioner,
) -> Calibrated | Stopped:
    """Do all of it; raises `UsageError` for what the user can put right.

    `reading` says how the labelled images are read where `config.source` is a folder; its folder is filled in from the
    labels, and so are the choices where it has none, with `question` in the place of the usual one.
    """
    _check(config, reading)
    label_map = config.mapped()
    path = config.source
    if path.is_file():
        provenance = read_provenance(path)
        if not provenance.get("complete", True):
            raise UsageError(
                f"{path}: that run was not finished, and half of a folder stands for nothing; finish it first."
            )
        labels = read_labels(config.labels or labelled_folder(path, provenance), config.label_column, config.group)
    else:
        labels = read_labels(config.labels or path, config.label_column, config.group)
        check_names(config.pattern, labels)
        reading = answering(reading, (config.score or "", *config.limits))
        wanted = completed(reading, labels, path, label_map, question)
        done = read_labelled(wanted, labels, progress, load)
        if done.interrupted is not None or done.error is not None:
            return Stopped(done)
        path = done.outputs.parquet
    records, provenance = read_result(path)
    labelled = join(records, provenance, labels, label_map=label_map, good=config.good, pattern=config.pattern)
    progress.message(f"Comparing {len(labelled.records):,} readings with their labels …")
    tried = look_back(labelled, labels, provenance, config, path)
    if config.rule == "guarantee":
        labelled, tried = wait(tried, labelled, labels, provenance, config, path)
    mine = tried if config.rule == "guarantee" else None  # least cost promises nothing, and is a try: it shows scores
    found = study(labelled, {name: load_kernel(name) for name in config.kernels}, config, costs, mine)
    found = replace(found, builtin=(provenance["model"] or {}).get("model") == BUILTIN)
    if (elsewhere := remember(tried, labels, config, path)) is not None:
        found = replace(found, notes=(*found.notes, elsewhere))  # before the gate is there: a kill forgets no try
    seconds = seconds_of(provenance)
    gate = _write(found, config, labels, provenance)
    page = None
    if config.page:
        progress.message("Drawing the page …")
        page = write_page(found, labels, seconds, provenance, gate, config.out)
    return Calibrated(found, labels, seconds, gate, path, page)


def _check(config: CalibrateConfig, reading: ScanConfig) -> None:
    """Raise `UsageError` for what is wrong before anything is read."""
    if config.out.suffix != ".toml":
        raise OutputError(f"{config.out}: a gate file must end in .toml; give another -o.")
    check_folder(config.out)
    if config.out.exists() and not is_gate(config.out):
        raise OutputError(f"{config.out}: exists and is no gate; give another -o.")
    for name in config.kernels:
        check_kernel(name)
    check_choices(reading.sampling.choices)


def check_names(pattern: re.Pattern[str] | None, labels: Labels) -> None:
    """Raise `LabelError` before anything is read where a labelled image's name does not say which part it shows."""
    if pattern is not None:
        check_all(((name, part_in(name, pattern)) for name, _ in labels.by_name), "--group-pattern")


def seconds_of(provenance: Mapping[str, Any]) -> dict[int, float]:
    """Return the seconds that an image takes, by number of samples, as far as a result knows."""
    return {int(k): float(v) for k, v in (provenance.get(TIMED) or {}).items()}


def labelled_folder(path: Path, provenance: Mapping[str, Any]) -> Path:
    """Return the folder that a result was read from, which may be labelled itself."""
    folder = Path(provenance["folder"])
    if not folder.is_dir():
        raise UsageError(f"{path}: says nothing of labels; give --labels FOLDER or TABLE.")
    # `test` of MVTec AD was read alone; the folder above says what its labels are.
    return folder.parent if folder.name == "test" and (folder / "good").is_dir() else folder


def completed(
    reading: ScanConfig, labels: Labels, source: Path, label_map: Mapping[str, str], question: str | None
) -> ScanConfig:
    """Return how the images are read: those of the labels, and, for classes, asked which of them it is."""
    sampling = reading.sampling
    if labels.folder is not None and not labels.folder.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--labels {labels.folder} is another folder of images; calibrate that one, or give a table.")
    if labels.kind == "class" and not sampling.choices:
        renamed = {folded(name): to for name, to in label_map.items()}
        names = {renamed.get(folded(label), label) for label in labels.counts()} - {""}
        if odd := next((name for name in sorted(names) if "," in name), None):
            raise LabelError(
                f"the class '{odd}' has a comma, which parts choices; --label-map '{odd}=NAME' renames it."
            )
        choices = tuple(sorted({" ".join(name.replace("_", " ").split()) for name in names}, key=str.casefold))
        if len(choices) < 2:
            raise LabelError(
                f"{labels.source}: all labels are '{choices[0]}'; it takes images of two classes at least."
            )
        check_choices(choices)
        sampling = replace(sampling, question=question or DEFAULT_QUESTION, choices=choices)
    if sampling.prompt == DEFAULT_PROMPT:
        sampling = replace(sampling, prompt=caption_prompt(reading.model, sampling.choices, sampling.terms))
    return replace(reading, folder=labels.folder or source, sampling=sampling)


def answering(reading: ScanConfig, rules: Sequence[str]) -> ScanConfig:
    """Return how images are read such that scores and limits have what they compare: shares are of drawn answers."""
    if reading.sampling.answers != "auto" or not any("answer_share" in rule for rule in rules):
        return reading
    return replace(reading, sampling=replace(reading.sampling, answers="drawn"))


def read_labelled(reading: ScanConfig, labels: Labels, progress: Progress, load: Load) -> ScanResult:
    """Read the labelled images through the journal of a scan; measure what more samples cost, and memory."""
    loaded: list[Captioner] = []

    def keep(model: ModelConfig, sampling: SamplingConfig) -> Captioner:
        loaded.append(load(model, sampling))
        return loaded[0]

    only = {name for name, _ in labels.by_name} or None
    before: dict[str, Any] = {}
    if reading.out.exists():
        with contextlib.suppress(StoreError):
            former = read_provenance(reading.out)
            before = {key: former[key] for key in (TIMED, MEMORY) if former.get(key) is not None}
    begin_peak()
    done = scan(reading, progress, load=keep, only=only, look=_FirstLook(reading.sampling, progress.message).at)
    measured = {} if loaded else before  # where nothing was read this time, what was measured then still holds
    timed = reading.model.endpoint is None  # a server's time is shared, and every request may cost money
    if timed and done.interrupted is None and done.error is None and not measured:
        if not loaded:  # what was read before was not timed
            answers = done.provenance["sampling"]["answers"]
            keep(reading.model, replace(reading.sampling, answers=answers))
        progress.message("Measuring the time that samples take …")
        measured = {TIMED: measure_seconds(loaded[0], reading), MEMORY: end_peak(loaded[0].info.device)}
    if any(measured.values()):
        write_result(done.outputs.parquet, done.records, done.provenance | measured)
    return done


@dataclass
class _FirstLook:
    """Says after the first images that the model answers with none of the names, before it has read all of them."""

    sampling: SamplingConfig
    say: Callable[[str], None]
    images: int = 0  # that were looked at
    over: bool = False

    def at(self, entries: Sequence[Entry]) -> None:
        """Look at what was read."""
        if self.over or not self.sampling.choices:
            return
        scorer = Scorer(self.sampling.prompt, self.sampling.choices, terms=self.sampling.terms)
        for entry in entries:
            if isinstance(entry, Reading) and entry.answers:
                self.images += 1
                self.over |= scorer.answer(entry.answers) is not None
        if not self.over and self.images >= _PICTURES:
            self.over = True
            name, names = self.sampling.choices[0], ", ".join(self.sampling.choices)
            self.say(
                f"Warning: none of the first {self.images:,} images was answered with one of {names}. Ctrl-C "
                f"stops here; --label-map '{name}=NAME' gives a class a name that the model answers with."
            )


def measure_seconds(captioner: Captioner, reading: ScanConfig) -> dict[str, float]:
    """Return the seconds that an image takes by number of samples: medians of interleaved rounds over one batch."""
    pictures: list[Picture] = []
    for source in find_images(reading.folder).sources[: 4 * _PICTURES]:
        pictures += [
            one for one in open_pages(source, replace(reading.images, pages="first")) if isinstance(one, Picture)
        ]
        if len(pictures) >= _PICTURES:
            break
    views = reading.sampling.views
    counts = [k for k in SUBSETS if k <= reading.sampling.num_samples and k % views == 0]
    if not pictures or not counts:
        return {}
    rounds: dict[int, list[float]] = {k: [] for k in counts}
    try:
        for _ in range(_ROUNDS):
            for k in counts:
                reader = captioner.with_samples(k)
                begun = time.perf_counter()
                reader.read(pictures)
                rounds[k].append((time.perf_counter() - begun) / len(pictures))
    except Exception as error:  # a figure less, and no reason to lose the rest
        log.warning("the time that samples take could not be measured", exc_info=error)
        return {}
    return {str(k): round(statistics.median(times), 5) for k, times in rounds.items()}


def _write(found: Study, config: CalibrateConfig, labels: Labels, provenance: Mapping[str, Any]) -> Path | None:
    """Write the gate, and the features that novelty is measured from, next to it; None where there is no gate."""
    gate = found.gate()
    if gate is None:
        return None
    features = digest = None
    if found.reference is not None:
        content = found.reference.to_npz()
        digest = hashlib.sha256(content).hexdigest()  # in the name, so that a former gate keeps its own
        features = config.out.with_name(f"{config.out.stem}.{digest[:8]}.features.npz")
        try:
            write_file(features, content)
        except OSError as error:
            what = f"cannot write the features beside it ({error.strerror})"
            raise OutputError(f"{config.out}: {what}; make room.") from error
    model, prefix = provenance["model"] or {}, "checkpoint."
    identity = {key: value for key, value in provenance["fingerprint"].items() if key.startswith(prefix)}
    checkpoint = {key.removeprefix(prefix): value for key, value in identity.items()}
    if model.get("revision") and "revision" in checkpoint:
        checkpoint["revision"] = model["revision"]  # the commit, for a branch moves
    file = GateFile(
        gate=gate,
        kernel=found.final.kernel,
        model=model.get("model", "builtin"),
        revision=model.get("revision"),
        checkpoint=checkpoint,
        sampling=sampling_of(provenance["sampling"] | {"num_samples": found.proposed}),
        pages=provenance["image_config"]["pages"],
        data=_data(found, labels, provenance) | {"warnings": [*first_lines(found), *found.notes]},
        promise=_promise(found),
        drift=found.drift(),
        features=features.name if features else None,
        features_sha256=digest,
        own_novelty=any(novelty is not None for novelty in found.labelled.novelties),
        measures_novelty=features is not None,
    )
    write_gate(config.out, file, [_about(found)])
    return config.out


def _data(found: Study, labels: Labels, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the gate file says of the images that it was calibrated on."""
    held, model = found.labelled, provenance["model"] or {}
    contents = sorted(f"{r.sha256}:{r.page}:{label}" for r, label in zip(held.records, held.labels, strict=True))
    data = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "vlmgate_version": __version__,
        "labels": labels.source.as_posix().encode("utf-8", "backslashreplace").decode(),
        "form": labels.form,
        "images": len(held.records),
        "wrong": int(found.final.wrong.sum()),
        "classes": dict(Counter(held.labels).most_common()),
        "good": held.good or "",
        "sha256": hashlib.sha256("\n".join(contents).encode()).hexdigest(),
        "seed": provenance["sampling"]["seed"],
        "device": model.get("device", ""),
        "dtype": model.get("dtype", ""),
    }
    if server := model.get("server"):
        data["endpoint"] = server["url"]
    elif (folder := Path(model.get("model", "")).expanduser()).is_dir() and model.get("model") != BUILTIN:
        data["model_folder"] = folder.resolve().as_posix().encode("utf-8", "backslashreplace").decode()
    if held.grouped:
        data["parts"] = int(held.stands.sum())  # one part is one trial
    if held.good is not None and held.known.all():
        data["share_defective"] = float(held.bad.mean())
    return data


def _promise(found: Study) -> dict[str, Any]:
    """Return what the gate file says of its promise; nothing where there is none."""
    made = found.promise
    if made is None or not found.promised:
        return {}
    shared = {} if found.tried is None else {"try": found.tried.number, "tries": found.tried.declared}
    return {
        "target": made.target_kind,
        "target_risk": made.target,
        "confidence": found.config.confidence,  # of all declared tries together
        **(shared if shared.get("tries", 1) > 1 else {}),
        "chosen_on": int(found.design.sum()),
        "tested_on": int((~found.design).sum()),
        "errors": made.errors,
        "of": made.count,
        "upper_bound": made.bound,
        "coverage": made.coverage,
    }


def _about(found: Study) -> str:
    """Return the comment at the head of a gate file."""
    made = found.promise
    if made is None:
        return "The gate of least expected cost. It promises nothing of its risk."
    if not found.promised:
        return "A later try on labels that were tried before. It promises nothing of its risk."
    of = "accepted readings are wrong" if made.target_kind == "risk" else "defective parts pass as good"
    confidence = f"{found.config.confidence:.6g}"
    return f"With {confidence} confidence at most {made.target:.6g} of {of}, on images drawn like those below."
