"""Many files, each a `Source` only while it is looked at.

Knows names and where they lie; knows nothing of how they were found, or what is in them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import overload

from vlmgate.records import Source


class Sources(Sequence[Source]):
    """The files of a folder, in the order of their names: one text of all names, and where each of them ends.

    A name takes its letters and 8 bytes, where a list of `Source` has 300 for each.
    """

    def __init__(self, root: str, names: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> None:
        """Hold names that are valid UTF-8; those that do not lie under them in `root` lie `elsewhere`."""
        self._root, self._elsewhere = root, dict(elsewhere or {})
        text, self._ends = bytearray(), array("Q", [0])
        for name in names:
            text += name.encode()
            self._ends.append(len(text))
        self._text = bytes(text)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Source: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...

    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        if isinstance(index, slice):
            return Chosen(self, range(len(self))[index])
        at = range(len(self))[index]  # counts from the end where it is negative, and raises IndexError
        name = self._text[self._ends[at] : self._ends[at + 1]].decode()
        return Source(name, self._elsewhere.get(name) or path_in(self._root, name))


class Chosen(Sequence[Source]):
    """Some of the files of another sequence, by their numbers in it."""

    def __init__(self, among: Sequence[Source], numbers: Iterable[int]) -> None:
        self._among, self._numbers = among, array("Q", numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Source: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...

    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        if isinstance(index, slice):
            return Chosen(self._among, self._numbers[index])
        return self._among[self._numbers[index]]


def chosen(sources: Sequence[Source], wanted: Callable[[Source], bool]) -> Sequence[Source]:
    """Return the files that are wanted, in their order."""
    return Chosen(sources, (number for number, source in enumerate(sources) if wanted(source)))


def path_in(root: str, name: str) -> str:
    """Return the path of what a folder holds under a name in POSIX form."""
    return os.path.join(root, name if os.sep == "/" else name.replace("/", os.sep))  # noqa: PTH118 - a text is wanted
