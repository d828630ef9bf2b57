"""Where an export goes: a file or a folder that appears in one step, or stdout. Call `check` first."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from vlmgate.errors import OutputError, StoreError, plain
from vlmgate.store.result import check_other, new_file, temporary_for


def check(out: Path, source: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` unless this may be written; what is there may hold verdicts that somebody filled in."""
    check_other(out, source)
    if out.is_file() and not overwrite:
        raise OutputError(f"{out}: is there already, perhaps with verdicts in it; give another -o, or --overwrite.")


def check_outside(out: Path, images: Path | None, what: str) -> None:
    """Raise `OutputError` where pictures would be written into the folder that is scanned; `what` they are.

    The next scan would read them as images of parts.
    """
    if images is not None and images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise OutputError(f"{out}: lies in the image folder, whose next scan would read the {what}; give another -o.")


@contextlib.contextmanager
def file_at(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when all is written: who reads sees the former one or the new one, no part.

    A device or a pipe is written as it is. Raises `OutputError` for a folder, `StoreError` where the disk will not.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give -o a file name.")
    with _errors_in_one_line(path):
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        with new_file(path.resolve() if path.is_symlink() else path) as file:
            yield file


@contextlib.contextmanager
def _errors_in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"{path}: cannot be written ({why}); make room or give another -o.") from error


@contextlib.contextmanager
def folder_at(path: Path) -> Iterator[Path]:
    """Make a folder that takes its name when all is in it; never in the place of one that holds something."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"{path}: is there and not empty; give another -o, or move it away yourself.")
    target = path.resolve()
    temporary = temporary_for(target)
    with _errors_in_one_line(path):
        temporary.mkdir()
        try:
            yield temporary
            if target.exists():
                target.rmdir()
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def standard_output(*, binary: bool) -> Iterator[BinaryIO]:
    """Give stdout for bytes; on a terminal, text whose control characters are shown, not sent."""
    sys.stdout.flush()
    if not sys.stdout.isatty():
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if binary:
        raise OutputError("this format is none to look at; give -o FILE, or pipe it.")
    yield cast(BinaryIO, _Screen())


class _Screen:
    """A terminal that a file name or a caption cannot steer."""

    def __init__(self) -> None:
        self._part = b""  # of a line

    def write(self, data: bytes) -> int:
        *lines, self._part = (self._part + data).split(b"\n")
        for line in lines:
            print("\t".join(plain(cell) for cell in line.decode("utf-8", "replace").split("\t")))
        return len(data)
