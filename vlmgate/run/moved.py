"""Say whether a folder is a copy of the one that a journal is of, so that its readings are used. Call `same_images`.

Readings belong to bytes, not to places: each file of a copy is opened and hashed again before its reading counts. What
is asked here is only whether the journal is that of other images, whose result must not be overwritten.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from vlmgate.data import Source

TRIED = 16  # files, evenly spaced over the folder
SHARE = 0.5  # of those that the journal must know; a copy may have grown since
_NAME = re.compile(rb'"file_name":"(?:[^"\\]|\\.)*"')
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def same_images(journal: Path, sources: Sequence[Source]) -> tuple[int, int] | None:
    """Return how many of how many files of a folder the journal holds by their bytes; None where those are too few.

    None, too, where the folder lacks most files that the journal names: a copy may grow, and loses little. Its files
    may have other names if the journal knows all that are tried, no two of them alike, and there are enough of them.
    """
    step = max(1, -(-len(sources) // TRIED))
    tried = [digest for source in sources[::step][:TRIED] if (digest := _digest(source)) is not None]
    known = _known(journal, set(tried))
    found = sum(digest in known for digest in tried)
    if not tried or found < SHARE * len(tried):
        return None
    named = _named(journal)
    there = sum(name in named for name in {source.file_name for source in sources})
    if found == len(tried) == len(set(tried)):  # blank frames that are all alike would say nothing
        there = max(there, len(sources))
    return (found, len(tried)) if there >= SHARE * len(named) else None


def _named(journal: Path) -> set[str]:
    """Return the file names that a journal names."""
    with journal.open("rb") as file:
        matches = (match for line in file if (match := _NAME.search(line)) is not None)
        return {str(json.loads(match[0].partition(b":")[2])) for match in matches}


def _digest(source: Source) -> str | None:
    try:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def _known(journal: Path, wanted: set[str]) -> set[str]:
    """Return those digests that a journal names."""
    found: set[str] = set()
    with journal.open("rb") as file:
        for line in file:
            found |= {match.decode() for match in _DIGEST.findall(line)} & wanted
            if found == wanted:
                break
    return found
