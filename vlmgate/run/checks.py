"""What a scan makes sure of before a model is loaded.

Knows folders, disks, locks and what a processor wants; knows nothing of how anything is read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from vlmgate.captioner.location import picture_side
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.errors import OutputError
from vlmgate.images import STANDARD
from vlmgate.store.result import Outputs


def least_side(model: ModelConfig) -> int:
    """Return the sides, in pixels, below which no JPEG may be decoded smaller; 0 = none may be.

    Twice what the processor shrinks to leaves its own filter all that it can use, and twice what sharpness is measured
    at does the same for that.
    """
    side = picture_side(model)
    return 0 if side is None else 2 * max(side, STANDARD)


def check_space(outputs: Outputs, images: int, sampling: SamplingConfig) -> None:
    """Raise `OutputError` where the disk would fill up before the run ends."""
    tokens = sampling.max_new_tokens + (sampling.max_answer_tokens if sampling.question else 0)
    per_image = 8000 + sampling.num_samples * (400 + 8 * tokens)  # bytes, journal and result, generous
    needed = 20_000_000 + images * per_image
    free = shutil.disk_usage(outputs.parquet.parent).free
    if free < needed:
        megabytes = f"{free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB may be needed"
        raise OutputError(f"{outputs.parquet.parent}: {megabytes}; make room or give another -o.")


@contextmanager
def locked(outputs: Outputs) -> Iterator[None]:
    """Hold the output for this run alone."""
    from filelock import FileLock, Timeout

    lock = FileLock(outputs.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{outputs.parquet}: another scan is writing it; wait for it or give another -o.") from error
    try:
        yield
    finally:
        lock.release()
