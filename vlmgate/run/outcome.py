"""What a run left behind.

Knows rows, readings and files; knows nothing of how a run goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlmgate.data import Content, Reading, Record
from vlmgate.errors import VlmgateError
from vlmgate.gate.rules import Gate
from vlmgate.store.result import Outputs
from vlmgate.store.rows import completed


@dataclass(frozen=True, slots=True)
class Whole(Collection[Record]):
    """The rows with all that was said and seen, as they are in the file; each is made when its turn comes."""

    decided: tuple[Record, ...]
    readings: Mapping[Content, Reading]

    def __iter__(self) -> Iterator[Record]:
        return completed(self.decided, self.readings)

    def __len__(self) -> int:
        return len(self.decided)

    def __contains__(self, record: object) -> bool:
        return any(one == record for one in self)


@dataclass(frozen=True)
class ScanResult:
    """What a run left behind."""

    decided: tuple[Record, ...]  # the rows, less captions, answers and features, which fill a memory
    readings: Mapping[Content, Reading]  # where those are
    provenance: dict[str, Any]
    gate: Gate
    outputs: Outputs
    interrupted: int | None  # signal number
    error: VlmgateError | None  # what ended the run before its time; the result is written all the same

    @property
    def whole(self) -> Whole:
        """Return the rows as they are in the file, one at a time."""
        return Whole(self.decided, self.readings)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Return the rows as they are in the file, all in memory."""
        return tuple(self.whole)
