"""Names of files: which read alike, and which are left out.

macOS and some network disks write "é" as two characters, tables as one: call `spelt_as` where names come from a table,
a list or a keyboard, and are compared with those of files. `Exclusion` says which names a walk leaves out.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

# Names under which disks and systems keep copies, bins and previews of what lies elsewhere.
USUAL = (
    *("@eaDir", "#recycle", "#snapshot", ".snapshot", ".snapshots", "~snapshot", "@Recycle", ".@__thumb"),
    *("$RECYCLE.BIN", ".thumbnails", ".Trash-*", ".Trashes", "__MACOSX", ".DS_Store", "._*"),
)
NONE = "none"  # in the place of a pattern: the usual names are not left out


_OF_A_SYSTEM = re.compile(
    "(?:^|/)(?:{})(?:/|$)".format("|".join(re.escape(name).replace(r"\*", "[^/]*") for name in USUAL))
)


@dataclass(slots=True)
class Exclusion:
    """What a walk leaves out by name, and how much that was.

    A pattern without a slash is compared with the name of each file and folder, one with a slash with the whole path
    relative to the folder that is walked. Of a folder that is left out, nothing is looked at.
    """

    patterns: tuple[str, ...]
    counts: Counter[str] = field(default_factory=Counter)  # pattern → files and folders that it left out

    def holds(self, name: str) -> bool:
        """Say whether a file or folder is left out, and count it; `name` is its path in the folder, with slashes."""
        path = composed(name)
        last = path.rpartition("/")[2]
        if not _any_of(self.patterns).match(f"{last}\0{path}"):
            return False
        self.counts[next(one for one in self.patterns if _any_of((one,)).match(f"{last}\0{path}"))] += 1
        return True


@cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return what matches a name, a NUL and a path, of which a pattern is meant for the one or the other."""
    forms = [re.sub(r"\\[zZ]$", "", fnmatch.translate(composed(one))) for one in patterns]
    sides = [f"[^\0]*\0{form}" if "/" in one else f"{form}\0.*" for one, form in zip(patterns, forms, strict=True)]
    return re.compile(rf"(?:{'|'.join(sides)})\Z" if sides else r"(?!)", re.DOTALL)


def patterns_of(given: Sequence[str]) -> tuple[str, ...]:
    """Return all patterns of a scan: those that were given, and the usual ones unless `none` is among them."""
    own = own_patterns(given)
    return own if NONE in given else (*own, *USUAL)


def own_patterns(given: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns of the user alone, as they count in `Exclusion`."""
    return tuple(pattern.removeprefix("./").strip("/") for pattern in given if pattern != NONE)


def is_of_a_system(name: str) -> bool:
    """Say whether a path leads through a folder that a disk or a system keeps for itself.

    >>> is_of_a_system(".snapshot/hourly.1/a.jpg"), is_of_a_system("line2/a.jpg")
    (True, False)
    """
    return _OF_A_SYSTEM.search(name) is not None


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which those that read alike are equal."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def spelt_as(wanted: Iterable[str], there: Collection[str]) -> dict[str, str]:
    """Return, for names that are not there as they are written, the one name there that reads alike.

    A name that several others read like is left out, for nothing says which of them is meant; so is one that is there.
    """
    lacking = {name for name in wanted if name not in there}
    alike: dict[str, list[str]] = {}
    if lacking:
        forms = {composed(name) for name in lacking}
        for name in there:
            if not name.isascii() and (form := composed(name)) in forms:
                alike.setdefault(form, []).append(name)
    found = ((name, alike.get(composed(name), [])) for name in lacking)
    return {name: names[0] for name, names in found if len(names) == 1}
