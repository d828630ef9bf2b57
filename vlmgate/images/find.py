"""Find images: `find_images` walks a folder, `find_listed` takes the paths of a list (`read_list`).

Nothing is hidden: whatever might be an image, and whatever a list names, is a `Source` or an `Unreadable`.
A name in the result never leads out of a folder: it is relative to what was walked or to the base of the list, or, for
what a list names elsewhere, the whole path without its root.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain, count
from pathlib import Path
from typing import Any, overload

from vlmgate.data import Source, Unreadable
from vlmgate.errors import NoImagesError, UsageError
from vlmgate.images.formats import HEAD_BYTES, NOT_OPENABLE, OPENABLE, RefusedError, explain, extension_of, sniff
from vlmgate.images.names import USUAL, Exclusion, patterns_of, spelt_as

_APPLE_DOUBLE = b"\x00\x05\x16\x07"  # "._name" files that macOS leaves on foreign disks: metadata, not the image


class _SpecialError(RefusedError):
    """Not a file: a pipe, a socket, a device."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a folder holds."""

    sources: Sequence[Source]  # sorted by file_name
    unreadable: tuple[Unreadable, ...]  # folders that could not be listed, pipes, links to nothing; sorted
    ignored: tuple[str, ...]  # names of files that are no images, and more names of folders ("line2/"); sorted
    repeated: tuple[str, ...] = ()  # of a list: paths that it names once more than it need
    excluded: Mapping[str, int] = field(default_factory=dict)  # pattern → files and folders that it left out


@dataclass(slots=True)
class _Found:
    """The walk so far; names are still as the file system gave them."""

    root: str  # where what is found lies under its name
    exclusion: Exclusion = field(default_factory=lambda: Exclusion(()))
    images: list[str] = field(default_factory=list)  # names
    elsewhere: dict[str, str] = field(default_factory=dict)  # paths of images that lie elsewhere, or get another name
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def take(self, name: str, path: str, mode: int) -> None:
        """Note what was named by hand: a file is an image then, whatever it is called."""
        if stat.S_ISREG(mode):
            self.add(name, path)
        else:
            self.unreadable.append((name, _special(mode)))

    def add(self, name: str, path: str) -> None:
        """Note an image, by its name and its path."""
        self.images.append(name)
        if path != path_in(self.root, name) or not _is_utf8(name):
            self.elsewhere[name] = path


# --- a folder --------------------------------------------------------------------------------------------------------


def find_images(folder: Path, exclude: Sequence[str] = USUAL) -> Walk:
    """Find every image under a folder, hidden files, hidden folders and linked folders included, or take one file.

    What a pattern of `exclude` matches is left out and counted (see `Exclusion`); the folder itself never is.
    An extension of an image makes a file an image; without one, its first bytes do. A folder that several names lead
    to is walked under one of them; the others are among `ignored`, ending in a slash. Raises NoImagesError if the
    folder itself is missing or cannot be listed.
    """
    found = _Found(os.fspath(folder), Exclusion(tuple(exclude)))
    try:
        status = folder.stat()
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(folder):  # a root that cannot be listed is a wrong command, not a broken image
                pass
            _walk(folder, found)
        else:
            found.take(folder.name, os.fspath(folder), status.st_mode)
    except OSError as error:
        raise NoImagesError(f"{folder}: {_reason(error)}. Give a folder of images, or an image file.") from error
    return _named(found)


def _walk(root: Path, found: _Found) -> None:
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


def _walk_tree(path: str, prefix: str, entered: set[str], found: _Found, links: list[tuple[str, str]]) -> None:
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
                    if found.exclusion.holds(name):
                        continue
                    if not _answer(entry.is_dir, otherwise=False):
                        _look_at_entry(entry, name, found)
                    elif _answer(entry.is_symlink, otherwise=True):  # its path is resolved then, which is never wrong
                        links.append((entry.path, name + "/"))
                    else:
                        folders.append((entry.path, name + "/", os.path.join(real, entry.name)))  # noqa: PTH118 - as it is
        except OSError as error:  # what was listed before is kept
            found.unreadable.append((prefix.rstrip("/") or ".", f"folder cannot be listed: {_reason(error)}"))


def _answer(question: Callable[[], bool], *, otherwise: bool) -> bool:
    try:
        return question()
    except OSError:
        return otherwise


def _look_at_entry(entry: os.DirEntry[str], name: str, found: _Found) -> None:
    """Put a file where it belongs; whatever is odd about it is noted, and ends nothing."""
    extension = extension_of(entry.name)
    by_name = extension in OPENABLE or extension in NOT_OPENABLE
    try:
        if _is_image(entry, by_name):
            found.add(name, entry.path)
            return
    except Exception as error:
        # Without an extension it might be an image, or a folder of images on a disk that is not mounted.
        if by_name or not (extension or isinstance(error, _SpecialError)):
            found.unreadable.append((name, _reason(error)))
            return
    found.ignored.append(name)


def _is_image(entry: os.DirEntry[str], by_name: bool) -> bool:
    """Decide whether a file is an image: by its extension, or else by its first bytes."""
    if not entry.is_file(follow_symlinks=False):
        mode = os.stat(entry.path).st_mode  # noqa: PTH116 - a Path per entry is slow in large folders
        if not stat.S_ISREG(mode):
            raise _SpecialError(_special(mode))
    if by_name and not entry.name.startswith("._"):
        return True
    with opened(Path(entry.path)) as file:
        head: bytes | None = file.read(HEAD_BYTES)
    if head is None:  # from files that are not what they say, such as some in /proc
        raise RefusedError("cannot be read without waiting")
    return not head.startswith(_APPLE_DOUBLE) if by_name else sniff(head) is not None


# --- a list ----------------------------------------------------------------------------------------------------------


def read_list(data: bytes, *, null: bool = False) -> tuple[Path, ...]:
    """Return the paths of a list: a line each, or with `null` ended by NUL, so that a name may hold a line break.

    Blank lines, a byte order mark and the carriage returns of Windows are no part of a name; UTF-16, which Windows
    PowerShell writes into a pipe, is read by its mark. Raises `UsageError` for what is ended the other way.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16").encode("utf-8", "surrogateescape")
        except UnicodeError as error:
            raise UsageError("the list is UTF-16 and damaged; write it as UTF-8, a file name a line.") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if null:
        if b"\n" in data and b"\0" not in data:
            raise UsageError("the list has lines and no NUL; leave out --null, or make it with find -print0.")
        names = [name for name in data.split(b"\0") if name]
    else:
        if b"\0" in data:
            raise UsageError("the list has NUL between its names; add --null (-0).")
        names = [line.removesuffix(b"\r") for line in data.split(b"\n") if line.strip()]
    return tuple(Path(os.fsdecode(name)) for name in names)


def find_listed(paths: Iterable[Path], base: Path) -> Walk:
    """Return what a list of paths, relative to `base` where they are relative, names: every path once.

    A path that is named again is among `repeated`. Raises `NoImagesError` for a list that is empty.
    """
    places = [_as_on_disk(_absolute(path, base)) for path in paths]
    if not places:
        raise NoImagesError("the list names no file; give one image file a line.")
    here = os.path.abspath(base)  # noqa: PTH100 - lexical: links in it are the user's own name for the place
    found = _Found(here)
    taken: set[str] = set()
    once = dict.fromkeys(places)
    # What lies under the base goes first, so that no path from elsewhere takes its name away.
    for place in sorted(once, key=lambda place: (_name_under(here, place) is None, place)):
        name = _free(_name_under(here, place) or _name_elsewhere(place), taken)
        try:
            found.take(name, place, os.stat(place).st_mode)  # noqa: PTH116 - a text is at hand
        except Exception as error:  # a name that no file can have raises `ValueError`
            found.unreadable.append((name, _reason(error)))
    seen: set[str] = set()
    again = [place for place in places if place in seen or seen.add(place)]  # type: ignore[func-returns-value]
    return _named(found, repeated=tuple(map(_escaped, again)))


def _as_on_disk(place: str) -> str:
    """Return a path, or where it leads nowhere that of what is there under the one name that reads alike, if any."""
    head, tail = os.path.split(place)
    if place.isascii() or not tail or _is_there(place):
        return place
    if not os.path.isdir(head):  # noqa: PTH112 - a text is at hand
        head = _as_on_disk(head)
    try:
        names = os.listdir(head)  # noqa: PTH208 - likewise
    except OSError:
        return place
    return os.path.join(head, spelt_as([tail], names).get(tail, tail))  # noqa: PTH118


def _is_there(place: str) -> bool:
    try:
        return os.path.lexists(place)
    except ValueError:  # a name that no file can have
        return True


def folders_of(walk: Walk) -> list[str]:
    """Return the folders that hold what a list named, so that the images can be found again for people to look at."""
    return sorted(map(_escaped, {os.fspath(source.path.parent) for source in walk.sources}))


def sources_of(provenance: Mapping[str, Any], folder: Path | None = None) -> Sequence[Source]:
    """Return the images that a result was made from, found by listing folders, never by a name in the result.

    They are those of `folder`, or of where the result says that they were. Raises `NoImagesError` where that is gone.
    """
    listed = provenance.get("listed")
    if folder is not None or not isinstance(listed, Mapping):
        return find_again(provenance, folder).sources
    paths: list[Path] = []
    for place in listed.get("folders") or ():
        try:
            with os.scandir(place) as entries:
                paths += [Path(entry.path) for entry in entries if entry.is_file()]
        except (OSError, TypeError, ValueError):  # its images are missing, those of others are not
            continue
    return find_listed(paths, Path(provenance["folder"])).sources if paths else ()


def find_again(provenance: Mapping[str, Any], folder: Path | None = None) -> Walk:
    """Return what the folder of a result, or another one, holds, less what the scan left out by name."""
    given = provenance.get("exclude")  # null where nothing was, before there was a choice
    return find_images(folder or Path(provenance.get("folder") or "."), () if given is None else patterns_of(given))


def _absolute(path: Path, base: Path) -> str:
    """Return a path from the root, without "..": what that leads to is asked of the disk, for links change it."""
    whole = os.path.join(base, path)  # noqa: PTH118 - a Path would not keep what follows
    if ".." in path.parts:
        head, tail = os.path.split(whole)
        whole = os.path.realpath(whole) if tail == ".." else os.path.join(os.path.realpath(head), tail)  # noqa: PTH118
    return os.path.abspath(whole)  # noqa: PTH100 - lexical


def _name_under(here: str, place: str) -> str | None:
    """Return the name of what lies under the base; None for all else."""
    if place == here:
        return "."
    prefix = here if here.endswith(os.sep) else here + os.sep
    return place[len(prefix) :].replace(os.sep, "/") if place.startswith(prefix) else None


def _name_elsewhere(place: str) -> str:
    """Return a path without its root: "/data/a.png" → "data/a.png", "C:\\\\a.png" → "C/a.png"."""
    drive, rest = os.path.splitdrive(place)
    parts = f"{drive.replace(':', '')}{os.sep}{rest}".replace(os.sep, "/").split("/")
    return "/".join(part for part in parts if part) or "."


# --- both ------------------------------------------------------------------------------------------------------------


def _named(found: _Found, repeated: tuple[str, ...] = ()) -> Walk:
    """Give every finding a valid UTF-8 name of its own; a name that is valid already is kept as it is."""
    names = _printable([*found.images, *(name for name, _ in found.unreadable)])
    elsewhere = {names.get(name, name): path for name, path in found.elsewhere.items()}
    unreadable = (Unreadable(names.get(name, name), why) for name, why in found.unreadable)
    return Walk(
        Sources(found.root, sorted(names.get(name, name) for name in found.images), elsewhere),
        tuple(sorted(unreadable, key=lambda one: one.file_name)),
        tuple(sorted(map(_escaped, found.ignored))),
        repeated,
        dict(sorted(found.exclusion.counts.items())),
    )


def _printable(raw: Sequence[str]) -> dict[str, str]:
    """Return a name that no other file has for each name that is no UTF-8."""
    odd = {name for name in raw if not _is_utf8(name)}
    taken = {name for name in raw if name not in odd} if odd else set()
    return {name: _free(_escaped(name), taken) for name in sorted(odd)}


def _escaped(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _free(name: str, taken: set[str]) -> str:
    """Return a name, or where it is taken the first of name~2, name~3, … that is not; and note it as taken."""
    free = next(one for one in chain([name], (f"{name}~{number}" for number in count(2))) if one not in taken)
    taken.add(free)
    return free


def turned_of(walk: Walk, names: Collection[str]) -> list[Unreadable]:
    """Return those of the names, which were images once, that the walk took for files that are none."""
    ignored = set(walk.ignored)
    return [Unreadable(name, "is no image any more, as it was when it was read") for name in names if name in ignored]


def _is_utf8(name: str) -> bool:
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def _special(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a link that leads in circles"
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        name = error.filename
        return "a link to nothing" if isinstance(name, str | os.PathLike) and Path(name).is_symlink() else "not found"
    return explain(error)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; never waits, not even for a pipe that has taken the file's place."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no Path
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise RefusedError(_special(mode))
        yield file


# --- many files in little memory --------------------------------------------------------------------------------------


class Files(Sequence[Source]):
    """The files that numbers stand for, each made when it is looked at; two are equal only where they are the same."""

    def __init__(self, at: Callable[[int], Source], numbers: Sequence[int]) -> None:
        self._at, self._numbers = at, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Source]:
        return map(self._at, self._numbers)  # what a sequence has otherwise takes an IndexError for the end

    @overload
    def __getitem__(self, index: int) -> Source: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...

    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        numbers = self._numbers[index]
        return self._at(numbers) if isinstance(numbers, int) else Files(self._at, numbers)


class Sources(Files):
    """The files of a folder: one text of all names, and where each of them ends.

    A name takes its letters and 8 bytes, where a list of `Source` takes 300 for each; one that lies elsewhere more.
    """

    def __init__(self, root: str, names: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> None:
        """Hold names, valid UTF-8, in the order given; `elsewhere` has the paths of those that are not root/name."""
        self._root, self._elsewhere = root, dict(elsewhere or {})
        text, self._ends = bytearray(), array("Q", [0])
        for name in names:
            text += name.encode()
            self._ends.append(len(text))
        self._text = bytes(text)
        super().__init__(self._named, range(len(self._ends) - 1))

    def _named(self, number: int) -> Source:
        name = self._text[self._ends[number] : self._ends[number + 1]].decode()
        return Source(name, self._elsewhere.get(name) or path_in(self._root, name))


def chosen(sources: Sequence[Source], wanted: Callable[[Source], bool]) -> Sequence[Source]:
    """Return the files that are wanted, in their order; each is asked after once, and now. All stay in memory."""
    numbers = array("Q", (number for number, source in enumerate(sources) if wanted(source)))
    return Files(sources.__getitem__, numbers)


def path_in(root: str, name: str) -> str:
    """Return the path of what a folder holds under a name in POSIX form."""
    return os.path.join(root, name.replace("/", os.sep))  # noqa: PTH118 - a text is wanted
