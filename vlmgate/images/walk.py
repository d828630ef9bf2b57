"""Find the images of a folder; hide nothing.

Knows folders and names; knows nothing of pixels. Whatever might be an image is a `Source` or an `Unreadable`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vlmgate.errors import NoImagesError
from vlmgate.images.formats import HEAD_BYTES, NOT_OPENABLE, OPENABLE, RefusedError, explain, extension_of, sniff
from vlmgate.records import Source, Unreadable

_APPLE_DOUBLE = b"\x00\x05\x16\x07"  # "._name" files that macOS leaves on foreign disks: metadata, not the image


@dataclass(frozen=True, slots=True)
class Walk:
    """What a folder holds."""

    sources: tuple[Source, ...]  # sorted by file_name
    unreadable: tuple[Unreadable, ...]  # folders that could not be listed, pipes, links to nothing; sorted
    ignored: tuple[str, ...]  # names of files that are no images; sorted


@dataclass(slots=True)
class _Found:
    """The walk so far; names are still as the file system gave them."""

    sources: list[tuple[str, Path]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find_images(folder: Path) -> Walk:
    """Find every image under a folder, hidden files, hidden folders and linked folders included, or take one file.

    An extension of an image makes a file an image; without one, its first bytes do. A linked folder that leads back to
    a folder above it is not entered again. Raises NoImagesError if the folder itself is missing or cannot be listed.
    """
    found = _Found()
    try:
        status = folder.stat()
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(folder):  # a root that cannot be listed is a wrong command, not a broken image
                pass
            _walk(folder, found)
        elif stat.S_ISREG(status.st_mode):  # named by hand: an image, whatever it is called
            found.sources.append((folder.name, folder))
        else:
            found.unreadable.append((folder.name, special(status.st_mode)))
    except OSError as error:
        raise NoImagesError(f"{folder}: {os_reason(error)}. Give a folder of images, or an image file.") from error
    return _named(found)


def _walk(root: Path, found: _Found) -> None:
    folders = [(os.fspath(root), "", False, frozenset[tuple[int, int]]())]
    while folders:
        path, prefix, linked, above = folders.pop()
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path per entry is slow in large folders
            here = (status.st_dev, status.st_ino)
            if linked and here in above:  # links only: some network disks give every folder the same number
                found.ignored.append(prefix)
                continue
            with os.scandir(path) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if _is_folder(entry):
                        folders.append((entry.path, name + "/", entry.is_symlink(), above | {here}))
                    else:
                        _look_at(entry, name, found)
        except OSError as error:  # what was listed before is kept
            found.unreadable.append((prefix.rstrip("/") or ".", f"folder cannot be listed: {os_reason(error)}"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _look_at(entry: os.DirEntry[str], name: str, found: _Found) -> None:
    """Decide whether a file is an image: by its extension, or else by its first bytes."""
    extension = extension_of(entry.name)
    by_name = extension in OPENABLE or extension in NOT_OPENABLE
    try:
        regular = entry.is_file(follow_symlinks=False)
        if not regular:
            mode = os.stat(entry.path).st_mode  # noqa: PTH116 - as above
            if not stat.S_ISREG(mode):
                if by_name:
                    found.unreadable.append((name, special(mode)))
                else:
                    found.ignored.append(name)
                return
        if by_name and not entry.name.startswith("._"):
            found.sources.append((name, Path(entry.path)))
            return
        with opened(Path(entry.path)) as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        if by_name or not extension:  # might be an image, or a folder of images on a disk that is not mounted
            found.unreadable.append((name, os_reason(error)))
        else:
            found.ignored.append(name)
        return
    is_image = not head.startswith(_APPLE_DOUBLE) if by_name else sniff(head) is not None
    if is_image:
        found.sources.append((name, Path(entry.path)))
    else:
        found.ignored.append(name)


def _named(found: _Found) -> Walk:
    """Give every finding a valid UTF-8 name of its own; a name that is valid already is kept as it is."""
    raw = sorted([name for name, _ in found.sources] + [name for name, _ in found.unreadable])
    names = {name: name for name in raw if _is_utf8(name)}
    taken = set(names)
    for name in raw:
        if name not in names:
            stem = printable = os.fsencode(name).decode("utf-8", "backslashreplace")
            number = 1
            while printable in taken:
                number += 1
                printable = f"{stem}~{number}"
            names[name] = printable
            taken.add(printable)
    return Walk(
        tuple(sorted((Source(names[name], path) for name, path in found.sources), key=lambda s: s.file_name)),
        tuple(sorted((Unreadable(names[name], why) for name, why in found.unreadable), key=lambda u: u.file_name)),
        tuple(sorted(os.fsencode(name).decode("utf-8", "backslashreplace") for name in found.ignored)),
    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a named pipe, not a file"
    if stat.S_ISSOCK(mode):
        return "a socket, not a file"
    if stat.S_ISDIR(mode):
        return "a folder, not a file"
    return "a device, not a file"


def os_reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a link that leads in circles"
    if error.errno == errno.ENOENT:
        name = error.filename
        return "a link to nothing" if isinstance(name, str | os.PathLike) and Path(name).is_symlink() else "not found"
    return explain(error)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; never waits, not even for a pipe that has taken the file's place."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no Path
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise RefusedError(special(mode))
        yield file
