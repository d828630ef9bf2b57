"""Text that is safe to print.

Knows characters; knows nothing of where a text comes from.
"""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # invisible, but several scripts need them


def plain(text: str) -> str:
    """Return text with every character that could steer a terminal or reorder a line shown as an escape."""
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _is_harmless(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
