"""Names of files that read alike: macOS and some network disks write "é" as two characters, tables as one.

Call `spelt_as` where names come from a table, a list or a keyboard, and are compared with those of files.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable


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
