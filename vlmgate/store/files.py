"""Write files in one step: whoever reads sees the former file or the new one, never a part.

Call `write_file` with the bytes, or write into `new_file`. Both force the content and the name to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vlmgate.errors import OutputError

if TYPE_CHECKING:
    from vlmgate.gate.file import GateFile


@contextlib.contextmanager
def new_file(path: Path, before: Callable[[], object] | None = None) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` when the block ends well; else `path` stays as it is.

    `before` runs once all is on the disk, just before the file takes its name; it may move a former file away. Raises
    `OSError`.
    """
    temporary = temporary_for(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before()
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes, before: Callable[[], object] | None = None) -> None:
    """Write bytes in one step, as `new_file` does. Raises `OSError`."""
    with new_file(path, before) as file:
        file.write(content)


def write_gate(path: Path, gate: GateFile, about: Sequence[str] = ()) -> None:
    """Write a gate file, with a comment on every part; a former one is kept as STEM.old. Raises `OutputError`."""
    from vlmgate.gate.file import text_of

    def keep_former() -> None:
        if path.exists():
            os.replace(path, path.with_name(f"{path.stem}.old{path.suffix}"))

    text = text_of(gate, about, path)
    try:
        write_file(path, text.encode("utf-8"), keep_former)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the gate ({error.strerror}); give another -o.") from error


def check_folder(path: Path) -> None:
    """Raise `OutputError` where the folder that a file is to be written to is not there."""
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; make it, or give another -o.")


def temporary_for(path: Path) -> Path:
    """Return a name in the same folder that no other writer has, even where all have the same process number."""
    return path.with_name(f".vlmgate.{os.getpid()}.{uuid.uuid4().hex[:12]}.tmp")


def unused(path: Path) -> Path:
    """Return the path, or the first `stem.N.suffix` in its folder that does not exist."""
    candidate, n = path, 1
    while candidate.exists():
        candidate, n = path.with_name(f"{path.stem}.{n}{path.suffix}"), n + 1
    return candidate


def sync_folder(folder: Path) -> None:
    """Force names to the disk, not only contents, where the system can. Raises `OSError`."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network disks cannot
                raise
        finally:
            os.close(descriptor)
