"""Which files of a folder belong to which share of it, so that several machines can read one folder.

Knows names and their hashes; knows nothing of what is inside a file or of what is done with a share.

The hash of a file's name decides. Where a file stands in the sorted folder would not do: one file that is added moves
all behind it to other shares, and what stands on the border is read twice or never. Nor would its content: every
machine would have to read all files before it could begin, and a file that is replaced between two runs could fall
between them. A name stays in its share whatever comes or goes around it; all pages of a file are in one share. Copies
of one image under two names may be read twice, which costs time and nothing else: readings follow from the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmgate.config import Shard

if TYPE_CHECKING:
    from vlmgate.images import Walk

_MOST_SKEW = timedelta(hours=1)  # between the clocks of two machines

Seen = tuple[int, str]  # how many names, and a digest of them


def place_of(file_name: str, count: int) -> int:
    """Return the share, 1 to `count`, that a file is in."""
    digest = hashlib.sha256(file_name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % count + 1


def holds(shard: Shard, file_name: str) -> bool:
    """Say whether a file is in this share."""
    return place_of(file_name, shard.count) == shard.index


def share_of(walk: Walk, shard: Shard) -> Walk:
    """Return what one machine reads, of images and of folders that could not be listed."""
    from vlmgate.images import chosen  # with Pillow, which the command line should not wait for

    sources = chosen(walk.sources, lambda one: holds(shard, one.file_name))
    unreadable = tuple(one for one in walk.unreadable if holds(shard, one.file_name))
    return replace(walk, sources=sources, unreadable=unreadable)


def names_of(walk: Walk) -> list[str]:
    """Return the names that get a row."""
    return [source.file_name for source in walk.sources] + [one.file_name for one in walk.unreadable]


def seen(file_names: Iterable[str], count: int) -> tuple[Seen, ...]:
    """Return how many of the names are in each share, and a digest of them."""
    shares: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(file_names):
        shares[place_of(name, count) - 1].append(name)
    return tuple((len(names), _digest(names)) for names in shares)


def _digest(names: Sequence[str]) -> str:
    text = "".join(f"{name}\0" for name in names)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def now() -> str:
    """Return the time of day as a `Listing` keeps it, such that later is greater."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class Listing:
    """What one shard's walk over the whole folder found in every share: what came or went between two is noticed."""

    shard: Shard
    begun: str  # before the folder was looked at
    ended: str
    seen: tuple[Seen, ...]  # one for each share
    gate_file: str | None = None  # where the limits came from
    reference: str | None = None  # what novelty is measured from

    @classmethod
    def of(cls, walk: Walk, shard: Shard, begun: str) -> Listing:
        """Return what a walk that was begun then, and has just ended, found."""
        return cls(shard, begun, now(), seen(names_of(walk), shard.count))

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Listing:
        """Return what `told` wrote; raises `ValueError`, `TypeError`, `KeyError` or `ConfigError` for anything else."""
        shard = Shard(int(told["index"]), int(told["count"]))
        shares = tuple((int(number), str(digest)) for number, digest in told["seen"])
        if len(shares) != shard.count:
            raise ValueError(f"{len(shares)} shares are told of instead of {shard.count}")
        return cls(shard, str(told["begun"]), str(told["ended"]), shares, told.get("gate_file"), told.get("reference"))

    def told(self, gate: Path | None, reference: str | None) -> dict[str, Any]:
        """Return what `merge` has to know of a part, for its provenance."""
        path = gate.resolve().as_posix().encode("utf-8", "backslashreplace").decode() if gate else None
        return asdict(self.shard) | {
            "begun": self.begun,
            "ended": self.ended,
            "seen": self.seen,
            "gate_file": path,
            "reference": reference,
        }

    @property
    def own(self) -> Seen:
        """Return what was found for this shard itself."""
        return self.seen[self.shard.index - 1]

    def describe(self) -> str:
        """Return the share in one line."""
        total = sum(number for number, _ in self.seen)
        return f"Shard {self.shard}: {self.own[0]:,} of {total:,} images."

    def is_outdated_by(self, other: Listing) -> bool:
        """Say whether the share was different for a walk that did not end before this one began."""
        return other.ended >= self.begun and other.seen[self.shard.index - 1] != self.own

    def is_doubtful_beside(self, other: Listing) -> bool:
        """Say whether a walk found no less in the share, and other things, and only the clock says that it was before.

        Clocks of two machines may differ, by an hour at most.
        """
        theirs = other.seen[self.shard.index - 1]
        shortly = (datetime.fromisoformat(self.begun) - _MOST_SKEW).isoformat(timespec="microseconds")
        return theirs != self.own and theirs[0] >= self.own[0] and other.ended >= shortly
