"""What is looked at before a scan begins, so that no night is spent in vain.

Knows configurations, folders and disks; knows nothing of what is read or how.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from vlmgate.config import SamplingConfig
from vlmgate.errors import OutputError
from vlmgate.store import Outputs


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
