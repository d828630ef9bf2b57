"""Find the images that a list names, instead of walking a folder.

Knows lists and names; knows nothing of pixels. Whatever a list names has a row: what is missing, or no file, is an
`Unreadable`. A name in the result never leads out of a folder, whatever the list says: it is relative to the base, or,
for what lies elsewhere, the whole path without its root.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmgate.data import Source
from vlmgate.errors import NoImagesError, UsageError
from vlmgate.images.find import Found, Walk, find_images, named, os_reason, special
from vlmgate.images.formats import explain


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
    places = [_absolute(path, base) for path in paths]
    if not places:
        raise NoImagesError("the list names no file; give one image file a line.")
    here = os.path.abspath(base)  # noqa: PTH100 - lexical: links in it are the user's own name for the place
    found = Found(here)
    taken: set[str] = set()
    once = dict.fromkeys(places)
    # What lies under the base goes first, so that no path from elsewhere takes its name away.
    for place in sorted(once, key=lambda place: (_name_under(here, place) is None, place)):
        stem = name = _name_under(here, place) or _name_elsewhere(place)
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}~{number}"
        taken.add(name)
        _look_at(name, Path(place), found)
    seen: set[str] = set()
    again = [place for place in places if place in seen or seen.add(place)]  # type: ignore[func-returns-value]
    return named(found, repeated=tuple(os.fsencode(place).decode("utf-8", "backslashreplace") for place in again))


def folders_of(walk: Walk) -> list[str]:
    """Return the folders that hold what a list named, so that the images can be found again for people to look at."""
    folders = {os.fspath(source.path.parent) for source in walk.sources}
    return sorted(os.fsencode(folder).decode("utf-8", "backslashreplace") for folder in folders)


def sources_of(provenance: Mapping[str, Any], folder: Path | None = None) -> Sequence[Source]:
    """Return the images that a result was made from, found by listing folders, never by a name in the result.

    They are those of `folder`, or of where the result says that they were. Raises `NoImagesError` where that is gone.
    """
    listed = provenance.get("listed")
    if folder is not None or not isinstance(listed, Mapping):
        return find_images(folder or Path(provenance.get("folder") or ".")).sources
    paths: list[Path] = []
    for place in listed.get("folders") or ():
        try:
            with os.scandir(place) as entries:
                paths += [Path(entry.path) for entry in entries if entry.is_file()]
        except (OSError, TypeError, ValueError):  # its images are missing, those of others are not
            continue
    return find_listed(paths, Path(provenance["folder"])).sources if paths else ()


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
    return _posix(place[len(prefix) :]) if place.startswith(prefix) else None


def _name_elsewhere(place: str) -> str:
    """Return a path without its root: "/data/a.png" → "data/a.png", "C:\\\\a.png" → "C/a.png"."""
    drive, rest = os.path.splitdrive(place)
    parts = [part for part in _posix(drive).replace(":", "").split("/") if part]
    return "/".join([*parts, *(part for part in _posix(rest).split("/") if part)]) or "."


def _posix(path: str) -> str:
    return path.replace(os.sep, "/") if os.sep != "/" else path


def _look_at(name: str, path: Path, found: Found) -> None:
    """Put one path where it belongs. It was named by hand: it is an image, whatever it is called."""
    try:
        mode = path.stat().st_mode
    except Exception as error:  # a name that no file can have raises `ValueError`
        reason = os_reason(error) if isinstance(error, OSError) else explain(error)
        found.unreadable.append((name, reason))
        return
    if stat.S_ISREG(mode):
        found.add(name, os.fspath(path))
    else:
        found.unreadable.append((name, special(mode)))
