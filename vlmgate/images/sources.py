"""Sequences of many files, each made into a `Source` only while it is looked at.

`Sources` are the files of a folder; `chosen` returns some of them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import overload

from vlmgate.data import Source


class _Files(Sequence[Source]):
    """The files that numbers stand for. Two sequences are equal only where they are the same one."""

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
        return self._at(numbers) if isinstance(numbers, int) else _Files(self._at, numbers)


class Sources(_Files):
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


class Chosen(_Files):
    """Some of the files of another sequence, by their numbers in it; all of that one stays in memory."""

    def __init__(self, among: Sequence[Source], numbers: Iterable[int]) -> None:
        super().__init__(among.__getitem__, array("Q", numbers))


def chosen(sources: Sequence[Source], wanted: Callable[[Source], bool]) -> Sequence[Source]:
    """Return the files that are wanted, in their order; each is asked after once, and now."""
    return Chosen(sources, (number for number, source in enumerate(sources) if wanted(source)))


def path_in(root: str, name: str) -> str:
    """Return the path of what a folder holds under a name in POSIX form."""
    return os.path.join(root, name if os.sep == "/" else name.replace("/", os.sep))  # noqa: PTH118 - a text is wanted
