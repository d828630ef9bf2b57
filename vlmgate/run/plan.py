"""Everything that a run needs to know before it begins, checked before a model is loaded. Start with `prepare`."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vlmgate.captioner.location import model_fingerprint, picture_side
from vlmgate.config import DEFAULT_PROMPT, FORMER, ModelConfig, SamplingConfig, ScanConfig, fingerprint
from vlmgate.data import MODEL_KEYS, ModelInfo
from vlmgate.errors import ModelError, NoImagesError, OutputError, UsageError, VlmgateError, count, plain
from vlmgate.gate.early_stop import Foresight, check_gate
from vlmgate.gate.run_gate import RunGate, check_same, gate_of
from vlmgate.images import STANDARD, Walk, chosen, find_images, find_listed, own_patterns, patterns_of, spelt_as
from vlmgate.run.control import Progress
from vlmgate.run.moved import same_images
from vlmgate.run.shards import Listing, now, share_of
from vlmgate.scores.answers import check_choices
from vlmgate.scores.diversity import AT_ONCE, Kernel, check_kernel, load_kernel
from vlmgate.scores.novelty import Reference
from vlmgate.scores.reference import ReferenceFolder
from vlmgate.scores.score import Scorer
from vlmgate.store.journal import Journal, begun_with, is_journal
from vlmgate.store.result import Outputs, locked, write_file
from vlmgate.store.rows import scorer_of

log = logging.getLogger(__name__)

# What the readings of one journal, and the workers of one cluster, must have in common.
_OF_A_MODEL = (*MODEL_KEYS, "device_kind", "structured_answers")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be read, with what, and how it is decided."""

    config: ScanConfig
    outputs: Outputs
    gate: RunGate  # how images are split, and where that comes from
    walk: Walk  # the images; with --watch, those that are there at the beginning
    journal: Journal
    kernel: Kernel  # compares captions
    scorer: Scorer | None  # scores while the model reads on; None where its kernel would take the model's time
    foresight: Foresight | None  # ends the sampling of an image early; None where all samples are drawn
    folder: ReferenceFolder | None  # of --reference
    reference: (
        Reference | None
    )  # what novelty is measured against; None where there is none, or `folder` is yet to be read
    listing: Listing | None  # of the whole folder, where `walk` is a share of it
    checkpoint: dict[str, str]  # identifies the weights

    def look(self) -> Walk:
        """Return what the folder holds now; raises `NoImagesError` where it cannot be listed."""
        return _look(self.config, self.outputs)

    def check_space(self, images: int) -> None:
        """Raise `OutputError` where the disk would fill up before so many images are read."""
        sampling = self.config.sampling
        tokens = sampling.max_new_tokens + (sampling.max_answer_tokens if sampling.question else 0)
        per_image = 8000 + sampling.num_samples * (400 + 8 * tokens)  # bytes, journal and result, generous
        needed = 20_000_000 + images * per_image
        folder = self.outputs.parquet.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            megabytes = f"{free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB may be needed"
            raise OutputError(f"{folder}: {megabytes}; make room or give another -o.")

    def meet_model(self, info: ModelInfo) -> None:
        """Record what the loaded model says of itself; raises `ResumeError` where another one read before."""
        self.journal.check_model(_described(info), _OF_A_MODEL)

    def check_model(self, info: ModelInfo) -> None:
        """Raise `ModelError` where the model of one worker is not that of the others."""
        known: Mapping[str, Any] | None = self.journal.model
        told = _described(info)
        other = [key for key in _OF_A_MODEL if known is not None and told[key] != known.get(key)]
        if known is not None and other:
            raise ModelError(
                f"the machines of the cluster are not alike: {other[0]} is {told[other[0]]!r} on one, "
                f"{known.get(other[0])!r} on another; say --device and --dtype, or leave some out."
            )


def _described(info: ModelInfo) -> dict[str, Any]:
    """Return what a model says of itself; how a server keeps to the choices is found out anew by each run."""
    way = (info.server or {}).get("structured_answers")
    return asdict(info) | {"device_kind": info.device.split(":")[0], "structured_answers": way}


@contextmanager
def prepare(config: ScanConfig, progress: Progress, only: Collection[str] | None = None) -> Iterator[Plan]:
    """Yield the plan of a run; hold its outputs, its log and its journal until the run ends.

    `only` names the files of the folder that count, by file_name; without it all do. Raises `UsageError` for what the
    user can put right.
    """
    outputs = Outputs(config.out.resolve() if config.out.is_symlink() else config.out)
    _check_exclude(config)
    check_kernel(config.kernel)
    if config.sampling.choices:
        check_choices(config.sampling.choices)
    gate = gate_of(config)
    config = with_answers(config, gate, outputs.journal)
    if config.sampling.first_samples is not None:
        check_gate(gate.gate, config.kernel)
    outputs.check()
    if outputs.journal.exists() and not is_journal(outputs.journal):
        raise OutputError(f"{outputs.journal}: is no journal of vlmgate; move it away or give another -o.")
    taken = "another scan is writing it; wait for it or give another -o."
    with locked(outputs.parquet, outputs.lock, taken), logging_to(outputs.log):
        begun = now() if config.shard else ""
        walk = _find(config, outputs, progress, only)
        listing = None
        if config.shard is not None:
            listing = Listing.of(walk, config.shard, begun)
            walk = share_of(walk, config.shard)
            progress.message(listing.describe())
        config = replace(config, images=replace(config.images, least_side=_least_side(config.model)))
        checkpoint = model_fingerprint(config.model)
        check_same(gate, config, checkpoint)
        if not config.restart:
            config = _as_begun(config, begun_with(outputs.journal), progress)
        wanted = fingerprint(config, checkpoint)
        if not config.restart:
            wanted = _of_a_copy(wanted, outputs.journal, walk, progress)
        folder = ReferenceFolder(config.reference, outputs.reference, wanted, write_file) if config.reference else None
        kernel = load_kernel(config.kernel)
        journal = Journal.open(outputs.journal, wanted, restart=config.restart)
        try:
            early = config.sampling.first_samples is not None
            scorer = scorer_of(journal, kernel) if config.kernel in AT_ONCE else None
            yield Plan(
                config=config,
                outputs=outputs,
                gate=gate,
                walk=walk,
                journal=journal,
                kernel=kernel,
                scorer=scorer,
                foresight=Foresight(gate.gate, scorer, config.sampling) if scorer and early else None,
                folder=folder,
                reference=_reference(gate, folder),
                listing=listing,
                checkpoint=checkpoint,
            )
        finally:
            journal.close()


def _reference(gate: RunGate, folder: ReferenceFolder | None) -> Reference | None:
    if folder is None:
        return gate.reference()
    kept = folder.load()
    return None if kept is None else gate.reference(kept)


def _as_begun(config: ScanConfig, begun: Mapping[str, Any], progress: Progress) -> ScanConfig:
    """Return the config with the defaults of the version that began the journal, where nothing else was asked for."""
    sampling, usual = config.sampling, SamplingConfig()
    kept: dict[str, Any] = {key: value for key, value in FORMER.items() if begun.get(key) == value}
    kept = {key: value for key, value in kept.items() if getattr(sampling, key) == getattr(usual, key)}
    if begun.get("prompt") == DEFAULT_PROMPT and sampling.prompt.startswith(DEFAULT_PROMPT):
        kept["prompt"] = DEFAULT_PROMPT
    if kept.get("prompt", sampling.prompt) == sampling.prompt:
        kept.pop("prompt", None)
    for key, value in kept.items():
        progress.message(f"the journal began with --{key.replace('_', '-')} {value}; this run goes on with that.")
    return replace(config, sampling=replace(sampling, **kept)) if kept else config


def _of_a_copy(wanted: dict[str, Any], journal: Path, walk: Walk, progress: Progress) -> dict[str, Any]:
    """Return the fingerprint with the folder that a journal began with, where this one holds the same images."""
    begun, now = dict(begun_with(journal)), json.loads(json.dumps(wanted))
    if not begun or begun.get("folder") == now["folder"] or begun | {"folder": now["folder"]} != now:
        return wanted
    same = same_images(journal, walk.sources)
    if same is None:
        return wanted
    progress.message(
        f"The journal is of {begun['folder']}; of {count(same[1], 'file')} tried here it knows {same[0]} by their "
        "bytes, so its readings are used."
    )
    return wanted | {"folder": begun["folder"]}


def with_answers(config: ScanConfig, gate: RunGate, journal: Path) -> ScanConfig:
    """Return the config with its answers exact or drawn; raises `UsageError` where the gate asks for the other.

    Where that is open: as the gate file was calibrated, or as the journal holds them already; else exact, but for model
    servers, and for gates that compare `answer_share`, which drawn answers have alone.
    """
    sampling, asked = config.sampling, config.sampling.question is not None
    exact = asked and sampling.answers == "exact"
    if sampling.answers == "auto" and asked and config.model.endpoint is None:
        calibrated = None if gate.file is None else gate.file.sampling["answers"]
        exact = (calibrated or _answers_in(journal, restart=config.restart) or "exact") == "exact"
        exact = exact and not gate.gate.compares("answer_share")
    if exact and config.model.endpoint is not None:
        raise UsageError("--answers exact scores choices with a model that runs here; leave it out beside --endpoint.")
    if exact and gate.file is None and gate.gate.compares("answer_share"):
        raise UsageError(
            "answer_share is of drawn answers, and --answers exact draws none; limit answer_probability in its place, "
            "or leave --answers out."
        )
    return replace(config, sampling=replace(sampling, answers="exact" if exact else "drawn"))


def _answers_in(journal: Path, *, restart: bool) -> str | None:
    """Return how the answers of a journal were come by; None where there are none yet."""
    told = {} if restart else begun_with(journal)
    if not told or len(journal.read_bytes().splitlines()[:2]) < 2:
        return None
    return "exact" if told.get("answers") == "exact" else "drawn"


def _find(config: ScanConfig, outputs: Outputs, progress: Progress, only: Collection[str] | None) -> Walk:
    """Return the images; raises `NoImagesError` where there are none, unless they are still to come."""
    if config.files is None:
        progress.message(f"Looking for images in {config.folder} …")
        walk = _look(config, outputs)
        if idle := _idle(config, walk):
            progress.message(f"--exclude leaves out nothing of this name: {', '.join(map(repr, idle))}.")
    else:
        progress.message(f"Looking for the {len(config.files):,} files of the list …")
        walk = find_listed(config.files, config.folder)
    if again := len(walk.repeated):
        files = count(again, "file")
        progress.message(f"the list names {files} again, which has one row all the same: {walk.repeated[0]}")
    if only is not None:
        there = {source.file_name for source in walk.sources}
        wanted = {*only, *spelt_as(only, there).values()}
        if there and not wanted & there:
            raise NoImagesError(
                f"{config.folder}: none of the {len(only):,} files that are asked for is among its {len(there):,} "
                f"images: {min(only)!r} is asked for, {min(there)!r} is there. Names are relative to the folder."
            )
        walk = replace(walk, sources=chosen(walk.sources, lambda source: source.file_name in wanted))
    if not walk.sources and not walk.unreadable and config.watch is None:
        first = f", among them {walk.ignored[0]!r}" if walk.ignored else ""
        others = f"{len(walk.ignored)} other files{first}"
        if walk.excluded:
            others += f"; {sum(walk.excluded.values()):,} left out by name: {', '.join(walk.excluded)}"
        raise NoImagesError(f"{config.folder}: no image found ({others}); name a folder that holds images.")
    return walk


def _check_exclude(config: ScanConfig) -> None:
    """Raise `UsageError` where names are to be left out of a list, of which every name has a row."""
    if config.files is not None and (own := own_patterns(config.exclude)):
        raise UsageError(
            f"--exclude {own[0]!r} is for a folder, and a list of files is read whole; leave the names out of the "
            "list, and --exclude out of the command, the settings and the environment."
        )


def _idle(config: ScanConfig, walk: Walk) -> list[str]:
    """Return the patterns of the user that left nothing out; none with --watch, where more is to come."""
    own = () if config.watch is not None else own_patterns(config.exclude)
    return [pattern for pattern in dict.fromkeys(own) if not walk.excluded.get(pattern)]


def _look(config: ScanConfig, outputs: Outputs) -> Walk:
    walk = find_images(config.folder, patterns_of(config.exclude))  # our own files do not count as ignored ones
    return replace(walk, ignored=tuple(name for name in walk.ignored if Path(name).name not in outputs.names()))


def _least_side(model: ModelConfig) -> int:
    """Return the sides, in pixels, below which no JPEG may be decoded smaller; 0 = none may be.

    Twice what the processor shrinks to leaves its own filter all that it can use, and twice what sharpness is measured
    at does the same for that.
    """
    side = picture_side(model)
    return 0 if side is None else 2 * max(side, STANDARD)


# --- the log of a run ---


class PlainFormatter(logging.Formatter):
    """Writes each record without characters that could steer a terminal; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(plain(line) for line in super().format(record).split("\n"))


class _LogFile(logging.FileHandler):
    """A log that may fill a disk: what it has no room for is lost, and nobody's terminal is."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging looks for
        """Keep silent; logging itself would print the stack, for every line that it cannot write."""


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send everything that is logged, by us and by the libraries, to a file for the duration of a run."""
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); give another -o.") from error
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    ours = logging.getLogger("vlmgate")
    former = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    except VlmgateError as error:
        log.error("%s", error, exc_info=error)
        raise
    except Exception:
        log.exception("internal error")
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        ours.setLevel(former)
        with contextlib.suppress(OSError):  # a full disk: the run has its result all the same
            handler.close()
