"""Journal what workers hand back, each image once.

Knows batches and the journal; knows nothing of Ray, or of how a batch came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlmgate.data import Duplicate, Entry, Failure, ModelInfo, Reading, content_of
from vlmgate.errors import ModelError
from vlmgate.run.progress import Progress
from vlmgate.run.ray.worker import Batch
from vlmgate.run.signals import Signals
from vlmgate.store.journal import Journal


def take(batches: Iterable[Batch], journal: Journal, signals: Signals, progress: Progress) -> Iterable[Batch]:
    """Journal every batch as it comes, whole, and pass it on to be looked at before the next one is taken."""
    for batch in batches:
        yield batch
        if batch.entries:
            with signals.held():
                journal.append([_once(entry, journal) for entry in batch.entries], batch.seconds)
        for file_name, pages in batch.finished:
            journal.end(file_name, pages)
        progress.advance(len(batch.finished))


def last_failure(batch: Batch) -> str | None:
    """Return why the model failed on the last image on which it did."""
    return next((entry.error for entry in reversed(batch.entries) if isinstance(entry, Failure)), None)


def _once(entry: Entry, journal: Journal) -> Entry:
    """Return what two workers have read at the same time as a copy of what is there."""
    if isinstance(entry, Reading) and content_of(entry.image) in journal.readings:
        return Duplicate(entry.image)
    return entry


def described(info: ModelInfo) -> dict[str, Any]:
    """Return what is kept of a model's description of itself."""
    return asdict(info) | {"device_kind": info.device.split(":")[0]}


def check_alike(info: ModelInfo, known: Mapping[str, Any] | None, keys: Sequence[str]) -> None:
    """Raise `ModelError` where a worker's model is not that of the others."""
    told = described(info)
    other = [key for key in keys if known is not None and told[key] != known.get(key)]
    if known is not None and other:
        raise ModelError(
            f"the machines of the cluster are not alike: {other[0]} is {told[other[0]]!r} on one, "
            f"{known.get(other[0])!r} on another; say --device and --dtype, or leave some out."
        )
