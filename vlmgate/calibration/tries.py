"""Tries on the same labels: whoever tries until one holds has no promise, so tries are remembered next to the labels.

Call `look_back` before anything is tested and `remember` once it was. The record is `TRIES_FILE` in the folders of the
labels, of the readings and of the output: one line of JSON for each try, which names the images by their digests.
Copies of a folder take their record along. Who looks at a part or a copy of the labels finds the try at the readings.

The chance of being wrong is shared: of N tries that were declared at the first, each is tested at 1/N of it, so that
all of them hold together with the confidence asked for (Bonferroni). That is exact where the options of all N are
settled before the first result is seen. What no try has seen may certify again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlmgate.calibration.figures import Mask
from vlmgate.calibration.guarantee import images_needed
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.readings import Labelled
from vlmgate.config import CalibrateConfig
from vlmgate.data import Record
from vlmgate.errors import OutputError, count
from vlmgate.gate.file import sampling_of
from vlmgate.store.result import TRIES_FILE

_DIGITS = 16  # of each digest; enough to tell images apart
_ABOVE = 2  # folders above the labels that are looked at
_MOST_DECLARED = 100  # as --tries allows
_ANY = "*"  # in the place of images: a line that cannot be read may have been about any
_OPTIONS = (
    *("rule", "target", "target_risk", "confidence", "per_answer", "score", "kernels", "gate_samples", "limits"),
    "novelty_limit",
)
_SAID = (
    *("captions", "caption_finishes", "caption_logprobs", "answers", "answer_finishes", "answer_logprobs"),
    "vision_features",
)


@dataclass(frozen=True, slots=True)
class _Line:
    """One try of a record."""

    identity: str
    declared: int
    images: tuple[str, ...]
    damage: str | None = None  # in words


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """What earlier tries leave of a promise."""

    identity: str  # equal for the identical command on the same labels and readings
    images: tuple[str, ...]  # N digests
    number: int  # of this try, from 1
    declared: int  # tries that share the chance of being wrong
    touched: Mask  # (N,) in a try before, or of a part that was
    usable: Mask  # (N,) may certify; the others have been looked at too often, and choose
    holds: bool  # enough may certify for a promise to be possible
    fresh: int  # parts that may certify
    enough: int  # the fewest that certify anything, without an error among them
    again: bool  # the identical command ran before, which is no new try
    waits: Mask  # (N,) new, and too few to certify; `wait` leaves them out, so that they can when there are more
    known: frozenset[str]  # identities of the tries that were on record
    notes: tuple[str, ...] = ()

    def confidence(self, asked: float) -> float:
        """Return the confidence that this try is tested at."""
        return 1 - (1 - asked) / self.declared


def look_back(
    labelled: Labelled, labels: Labels, provenance: Mapping[str, Any], config: CalibrateConfig, result: Path
) -> Tried:
    """Return which try this is, going by the records next to the labels, to the readings (`result`) and the output."""
    images = tuple(f"{str(r.sha256)[:_DIGITS]}:{r.page}" for r in labelled.records)
    identity = _identity(labelled, images, provenance, config)
    records = [_read(place) for place in _to_read(labels, config, result)]
    earlier = [one for record in records for one in record]
    same = [one for one in earlier if one.identity == identity]
    before = list(_before(records, identity).values())
    times, declared = np.zeros(len(images), int), np.zeros(len(images), int)
    for one in before:
        seen = set(one.images)
        here = np.array([_ANY in seen or image in seen for image in images])
        declared[here & (times == 0)] = one.declared
        times += here
    usable = (times == 0) | (times < declared)
    # Who looks at what was looked at shares what was declared then; where nothing of it may certify, that is told.
    begun = declared[(usable if usable.any() else ~usable) & (times > 0)]
    shared = int(begun.max()) if len(begun) else same[0].declared if same else config.tries
    notes = []
    if damaged := [one.damage for one in earlier if one.damage is not None]:
        notes.append(f"{damaged[0]}, so it counts as a try on every image")
    if config.tries not in (1, shared):
        notes.append(f"--tries {config.tries} comes too late: it is declared at the first try on the same labels")
    spoilt = np.unique(labelled.part_of[~usable])  # a part certifies whole, or not at all
    usable = ~np.isin(labelled.part_of, spoilt)
    fresh = int((usable & labelled.stands).sum())
    enough = images_needed(config.target_risk, 1 - (1 - config.confidence) / shared)
    touched = np.isin(labelled.part_of, labelled.part_of[times > 0])
    holds = bool(usable.all()) or fresh >= enough
    if holds and not usable.all():
        notes.append(
            f"{int((~usable).sum()):,} images were in a try before, so they choose; the {int(usable.sum()):,} that are "
            "new certify"
        )
    return Tried(
        identity=identity,
        images=images,
        number=int(times.max()) + 1,
        declared=shared,
        touched=touched,
        usable=usable,
        holds=holds,
        fresh=fresh,
        enough=enough,
        again=bool(same),
        waits=~touched if touched.any() and not holds else np.zeros(len(images), bool),
        known=frozenset(one.identity for one in earlier),
        notes=tuple(notes),
    )


def wait(
    tried: Tried,
    labelled: Labelled,
    labels: Labels,
    provenance: Mapping[str, Any],
    config: CalibrateConfig,
    result: Path,
) -> tuple[Labelled, Tried]:
    """Return the labelled images without those that wait, which are neither tested nor remembered, and the try of it.

    Else whoever adds new images in lots that are too small uses up one after the other.
    """
    if not tried.waits.any():
        return labelled, tried
    rest = labelled.only(np.flatnonzero(~tried.waits).tolist())
    there = look_back(rest, labels, provenance, config, result)
    number = int((tried.waits & labelled.stands).sum())
    what = "part" if labelled.grouped else "image"
    note = f"{count(number, f'new {what}')} {'is' if number == 1 else 'are'} kept until there are {tried.enough:,}"
    return rest, replace(there, fresh=number, notes=(*there.notes, note))


def remember(tried: Tried, labels: Labels, config: CalibrateConfig, result: Path) -> str | None:
    """Add a try to the records, unless it is there; return what is to be said where it does not lie next to the labels.

    Raises `OutputError` where it can be written nowhere, and where another process was quicker with another try.
    """
    if tried.again:
        return None
    options = {name: getattr(config, name) for name in _OPTIONS}
    line = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": tried.identity,
        "declared": tried.declared,
        "options": options,
        "images": tried.images,
    }
    text = json.dumps(line, default=str)
    written, failed = [], []
    for place in _places(labels, config, result):
        try:
            _append(place, text)
        except OSError as error:
            failed.append((place, error.strerror))
            continue
        written.append(place)
        _check_first(place, tried)
    if not written:
        place, why = failed[-1]
        raise OutputError(
            f"{place}: cannot remember this try on the labels ({why}); a promise needs that, so make room."
        )
    home = _places(labels, config, result)[0]
    if home in written:
        return None
    return f"{home} cannot be written ({failed[0][1]}), so this try on the labels is remembered in {written[0]}"


def _check_first(place: Path, tried: Tried) -> None:
    """Raise `OutputError` where another try came between looking back and writing: only one of the two is the first."""
    for one in _read(place):
        if one.identity == tried.identity:
            return
        if one.identity not in tried.known and not {_ANY, *tried.images}.isdisjoint(one.images):
            break
    raise OutputError(
        f"{place}: another calibration tried these labels at the same time; the same command goes on, and counts it."
    )


def _places(labels: Labels, config: CalibrateConfig, result: Path) -> tuple[Path, ...]:
    """Return where tries are remembered: next to the labels, the readings and the output; each place once."""
    home = labels.source if labels.source.is_dir() else labels.source.parent
    return _once(home, result.parent, config.out.parent)


def _to_read(labels: Labels, config: CalibrateConfig, result: Path) -> tuple[Path, ...]:
    """Return these places, and the folders above the labels, which may have been tried as a whole."""
    places = _places(labels, config, result)
    above = places[0].parent.resolve().parents[:_ABOVE]
    return _once(*(place.parent for place in places), *above)


def _once(*folders: Path) -> tuple[Path, ...]:
    """Return the records in folders, each once, by the name that comes first."""
    found: dict[Path, Path] = {}
    for folder in folders:
        found.setdefault(folder.resolve(), folder / TRIES_FILE)
    return tuple(found.values())


def _before(records: Sequence[Sequence[_Line]], identity: str) -> dict[str, _Line]:
    """Return the tries before one, each where it came first; those that a record has after it came later."""
    before: dict[str, _Line] = {}
    elsewhere: dict[str, _Line] = {}  # in records that do not have it
    later = {identity}
    for record in records:
        names = [one.identity for one in record]
        end = names.index(identity) if identity in names else None
        into = elsewhere if end is None else before
        for one in record[:end]:
            into.setdefault(one.identity, one)
        if end is not None:
            later.update(names[end:])
    return before | {name: one for name, one in elsewhere.items() if name not in later and name not in before}


def _append(path: Path, text: str) -> None:
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            text = text if file.read(1) == b"\n" else f"\n{text}"  # after a line that was cut off
        file.write(f"{text}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _opened(path: Path, flags: int) -> BinaryIO:
    """Open a record; raises `OSError` for a link, which may lead anywhere, and for what is no file, which may hang."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        return os.fdopen(number, "r+b" if flags & os.O_RDWR else "rb")
    except BaseException:
        os.close(number)
        raise


def _read(path: Path) -> list[_Line]:
    """Return the tries of a record, the first one first; a damaged line is a try on who knows what."""
    try:
        with _opened(path, os.O_RDONLY) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}), and it says what was tried before.") from error
    return [_parsed(line, f"line {i} of {path} is damaged") for i, line in enumerate(lines, 1) if line.strip()]


def _parsed(line: bytes, otherwise: str) -> _Line:
    try:
        read = json.loads(line)
        declared = int(read["declared"])
        if not isinstance(read["images"], list) or not 1 <= declared <= _MOST_DECLARED:
            raise ValueError
        return _Line(str(read["identity"]), declared, tuple(map(str, read["images"])))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return _Line(hashlib.sha256(line).hexdigest(), 1, (_ANY,), otherwise)


def _identity(labelled: Labelled, images: Sequence[str], provenance: Mapping[str, Any], config: CalibrateConfig) -> str:
    """Return a hash of all that decides what is tested: images, labels, parts, readings and options."""
    least: dict[int, str] = {}
    for part, image in zip(labelled.part_of.tolist(), images, strict=True):
        least[part] = min(image, least.get(part, image))
    parts = [least[part] for part in labelled.part_of.tolist()]
    model = {k: v for k, v in provenance["fingerprint"].items() if k.startswith("checkpoint.")}
    sampling = sampling_of(provenance["sampling"]) | {"seed": provenance["sampling"].get("seed")}
    readings = [_digest_of(record) for record in labelled.records]  # read again, they are other data
    about = [sorted(zip(images, labelled.labels, parts, readings, strict=True)), labelled.good, model, sampling]
    about.append({name: getattr(config, name) for name in _OPTIONS})
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _digest_of(record: Record) -> str:
    """Return a hash of what the model said of an image, and of its features, which decide distances."""
    said = [repr(getattr(record, name)) for name in _SAID]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:_DIGITS]
