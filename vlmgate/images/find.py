"""Find the images of a folder; hide nothing.

Knows folders and names; knows nothing of pixels. Whatever might be an image is a `Source` or an `Unreadable`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vlmgate.data import Source, Unreadable
from vlmgate.errors import NoImagesError
from vlmgate.images.formats import HEAD_BYTES, NOT_OPENABLE, OPENABLE, RefusedError, explain, extension_of, sniff
from vlmgate.images.sources import Sources, path_in

_APPLE_DOUBLE = b"\x00\x05\x16\x07"  # "._name" files that macOS leaves on foreign disks: metadata, not the image


class _SpecialError(Exception):
    """Not a file: a pipe, a socket, a device."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a folder holds."""

    sources: Sequence[Source]  # sorted by file_name
    unreadable: tuple[Unreadable, ...]  # folders that could not be listed, pipes, links to nothing; sorted
    ignored: tuple[str, ...]  # names of files that are no images, and more names of folders ("line2/"); sorted
    repeated: tuple[str, ...] = ()  # of a list: paths that it names once more than it need


@dataclass(slots=True)
class Found:
    """The walk so far; names are still as the file system gave them."""

    root: str  # where what is found lies under its name
    images: list[str] = field(default_factory=list)  # names
    elsewhere: dict[str, str] = field(default_factory=dict)  # paths of images that lie elsewhere, or get another name
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def add(self, name: str, path: str) -> None:
        """Note an image, by its name and its path."""
        self.images.append(name)
        if path != path_in(self.root, name) or not _is_utf8(name):
            self.elsewhere[name] = path


def find_images(folder: Path) -> Walk:
    """Find every image under a folder, hidden files, hidden folders and linked folders included, or take one file.

    An extension of an image makes a file an image; without one, its first bytes do. A folder that several names lead
    to is walked under one of them; the others are among `ignored`, ending in a slash. Raises NoImagesError if the
    folder itself is missing or cannot be listed.
    """
    found = Found(os.fspath(folder))
    try:
        status = folder.stat()
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(folder):  # a root that cannot be listed is a wrong command, not a broken image
                pass
            _walk(folder, found)
        elif stat.S_ISREG(status.st_mode):  # named by hand: an image, whatever it is called
            found.add(folder.name, os.fspath(folder))
        else:
            found.unreadable.append((folder.name, special(status.st_mode)))
    except OSError as error:
        raise NoImagesError(f"{folder}: {os_reason(error)}. Give a folder of images, or an image file.") from error
    return named(found)


def _walk(root: Path, found: Found) -> None:
    """Walk every folder once, however many links lead to it: first all that no link leads to, under their own names.

    Then links, those nearest to the root first and by name, so that the listing order of the file system decides
    nothing. A folder is known by its resolved path: some network disks give every folder the same number.
    """
    entered: set[str] = set()
    links = [(os.fspath(root), "")]
    while links:
        found_links: list[tuple[str, str]] = []
        for path, prefix in sorted(links, key=lambda link: link[1]):
            _walk_tree(path, prefix, entered, found, found_links)
        links = found_links


def _walk_tree(path: str, prefix: str, entered: set[str], found: Found, links: list[tuple[str, str]]) -> None:
    """Walk a folder and the folders in it; linked ones are put on the list."""
    folders = [(path, prefix, os.path.realpath(path))]
    while folders:
        path, prefix, real = folders.pop()
        if real in entered:
            found.ignored.append(prefix)  # its images have another name already
            continue
        entered.add(real)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not _is_folder(entry):
                        _look_at(entry, name, found)
                    elif _is_link(entry):
                        links.append((entry.path, name + "/"))
                    else:
                        folders.append((entry.path, name + "/", os.path.join(real, entry.name)))  # noqa: PTH118 - as it is
        except OSError as error:  # what was listed before is kept
            found.unreadable.append((prefix.rstrip("/") or ".", f"folder cannot be listed: {os_reason(error)}"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink()
    except OSError:
        return True  # then its path is resolved, which is never wrong


def _look_at(entry: os.DirEntry[str], name: str, found: Found) -> None:
    """Put a file where it belongs; whatever is odd about it is told, and ends nothing."""
    extension = extension_of(entry.name)
    by_name = extension in OPENABLE or extension in NOT_OPENABLE
    try:
        if _is_image(entry, by_name):
            found.add(name, entry.path)
        else:
            found.ignored.append(name)
    except _SpecialError as error:
        if by_name:
            found.unreadable.append((name, str(error)))
        else:
            found.ignored.append(name)
    except Exception as error:
        if by_name or not extension:  # might be an image, or a folder of images on a disk that is not mounted
            found.unreadable.append((name, os_reason(error) if isinstance(error, OSError) else explain(error)))
        else:
            found.ignored.append(name)


def _is_image(entry: os.DirEntry[str], by_name: bool) -> bool:
    """Decide whether a file is an image: by its extension, or else by its first bytes."""
    if not entry.is_file(follow_symlinks=False):
        mode = os.stat(entry.path).st_mode  # noqa: PTH116 - a Path per entry is slow in large folders
        if not stat.S_ISREG(mode):
            raise _SpecialError(special(mode))
    if by_name and not entry.name.startswith("._"):
        return True
    with opened(Path(entry.path)) as file:
        head: bytes | None = file.read(HEAD_BYTES)
    if head is None:  # from files that are not what they say, such as some in /proc
        raise RefusedError("cannot be read without waiting")
    return not head.startswith(_APPLE_DOUBLE) if by_name else sniff(head) is not None


def named(found: Found, repeated: tuple[str, ...] = ()) -> Walk:
    """Give every finding a valid UTF-8 name of its own; a name that is valid already is kept as it is."""
    names = _printable([*found.images, *(name for name, _ in found.unreadable)])
    elsewhere = {names.get(name, name): path for name, path in found.elsewhere.items()}
    unreadable = (Unreadable(names.get(name, name), why) for name, why in found.unreadable)
    return Walk(
        Sources(found.root, sorted(names.get(name, name) for name in found.images), elsewhere),
        tuple(sorted(unreadable, key=lambda one: one.file_name)),
        tuple(sorted(os.fsencode(name).decode("utf-8", "backslashreplace") for name in found.ignored)),
        repeated,
    )


def _printable(raw: Sequence[str]) -> dict[str, str]:
    """Return a name that no other file has for each name that is no UTF-8."""
    odd = {name for name in raw if not _is_utf8(name)}
    taken = {name for name in raw if name not in odd} if odd else set()
    names = {}
    for name in sorted(odd):
        stem = printable = os.fsencode(name).decode("utf-8", "backslashreplace")
        number = 1
        while printable in taken:
            number += 1
            printable = f"{stem}~{number}"
        names[name] = printable
        taken.add(printable)
    return names


def turned_of(walk: Walk, names: Collection[str]) -> list[Unreadable]:
    """Return those of the names, which were images once, that the walk took for files that are none."""
    ignored = set(walk.ignored)
    return [Unreadable(name, "is no image any more, as it was when it was read") for name in names if name in ignored]


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
