"""Which images show the same part: one part is one trial, however many pictures it has.

`groups_in` reads a column that names parts, `part_in` takes the part from a file name. `parts_of` then gives every
image the number of its part, and says what was found; without names it finds near copies by vision features (`alike`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vlmgate.data import Key
from vlmgate.errors import LabelError
from vlmgate.export.sheet import read_rows
from vlmgate.export.text_formats import undefused
from vlmgate.scores.novelty import unpack

Numbers = NDArray[np.int64]
Matrix = NDArray[np.float64]

# Cosine of standardised features; a higher one is a near copy. Of 208 different rendered parts the most alike come to
# .9924, and ten frames a part with sensor noise and flicker hang together in single linkage up to .995.
NEAR = 0.994
_SAMPLE = 1000  # images that features are standardised by, spread over all
_ALIKE = 0.2  # of the greatest distance from the mean
_FLOOR = 0.1  # of the median deviation
_CHUNK = 512  # rows that are compared with all others at once
_LEAST = 1e-6  # a feature that varies less is the same for all


def parts_of(packed: Sequence[bytes | None], named: Sequence[Collection[str]]) -> tuple[tuple[int, ...], list[str]]:
    """Return the number of each image's part, from 0, and what is to be said of it; no numbers where all are apart.

    `packed` are the vision features of N images. `named` are the parts that their copies show, or empty where nobody
    has named any: near copies count as one part then.
    """
    similar, count = alike(packed), len(packed)
    looks = None if similar is None else len(set(similar.tolist()))
    if named:
        parts = numbered(named)
        number = len(set(parts.tolist()))
        notes = [f"{count:,} images show {number:,} parts, as they are grouped; one part is one trial"]
        if looks is not None and looks < number:
            notes.append(f"they look like {looks:,} parts, fewer than the groups say; see `vlmgate help labels`")
        return tuple(parts.tolist()), notes
    if similar is None:
        return (), [
            "whether some images are near copies was not checked, for the readings hold no vision features; "
            "--group or --group-pattern says which images show one part"
        ]
    if looks == count:
        return (), []
    return tuple(similar.tolist()), [
        f"{count:,} images look like {looks:,} parts: near copies count as one trial; --group or --group-pattern says "
        "which images show one part"
    ]


# --- parts that the user names ----------------------------------------------------------------------------------------


def groups_in(path: Path, column: str) -> tuple[dict[Key, str], dict[Key, str]]:
    """Return what a column of a table says, by (file_name, page) and by (sha256, page); both empty without the column.

    Raises `LabelError` for an image with two groups.
    """
    by_name: dict[Key, str] = {}
    by_content: dict[Key, str] = {}
    for number, row in read_rows(path):
        group = text_of(row.get(column))
        if not group:
            continue
        try:
            page = int(float(text_of(row.get("page")) or "1"))
        except (ValueError, OverflowError) as error:
            raise LabelError(f"{path}: row {number} has a page that is no number.") from error
        name = PurePosixPath(undefused(text_of(row.get("file_name")))).as_posix()
        for key, found in ((name, by_name), (text_of(row.get("sha256")).casefold(), by_content)):
            if key not in ("", ".") and found.setdefault((key, page), group) != group:
                raise LabelError(f"{path}: row {number}: {key} is of two groups, '{found[key, page]}' and '{group}'.")
    # A \\ parts folders on Windows; which of the two a name means, the images tell.
    slashed = {(PurePosixPath(name.replace("\\", "/")).as_posix(), page): to for (name, page), to in by_name.items()}
    return slashed | by_name, by_content


def within(found: Mapping[Key, str], table: Path, folder: Path) -> dict[Key, str]:
    """Return what a table in the folder `table` says of names, by the names that images have in `folder`."""
    longer = shorter = ""
    if table.is_relative_to(folder):
        longer = f"{table.relative_to(folder).as_posix()}/".removeprefix("./")
    elif folder.is_relative_to(table):
        shorter = f"{folder.relative_to(table).as_posix()}/"
    return {(longer + name.removeprefix(shorter), page): value for (name, page), value in found.items()}


def part_in(name: str, pattern: re.Pattern[str]) -> str | None:
    """Return the part that a file name says by the pattern's group `part`; null where the pattern is not found."""
    found = pattern.search(name)
    return None if found is None else found["part"]


def check_all(named: Iterable[tuple[str, str | None]], where: str) -> None:
    """Raise `LabelError` unless every one of (file name, part) has a part."""
    without = [name for name, part in named if not part]
    if without:
        raise LabelError(
            f"{where} says nothing of {len(without):,} labelled images, first '{without[0]}'; every one must have a "
            "part, for one part is one trial."
        )


def text_of(value: object) -> str:
    """Return what a cell of a table says, without blanks around it."""
    return "" if value is None else str(value).strip()


# --- near copies ------------------------------------------------------------------------------------------------------


def alike(packed: Sequence[bytes | None]) -> Numbers | None:
    """Return (N,) the number of the part that each image shows by its looks, from 0; null without any features.

    `packed` are vision features (float16), standardised over images that are not much alike. Two images are near copies
    where the cosine of theirs exceeds `NEAR`, and so are the copies of a copy (single linkage). An image without
    features is like no other.
    """
    lengths = [len(one) for one in packed if one]
    if not lengths:
        return None
    length = max(set(lengths), key=lengths.count)
    there = [i for i, one in enumerate(packed) if one is not None and len(one) == length]
    table = unpack([packed[i] or b"" for i in there]).astype(np.float64)
    points = _standardised(table, _unlike(table[:: -(-len(table) // _SAMPLE)]))
    sizes = np.linalg.norm(points, axis=1)
    sizes[sizes == 0] = 1.0
    points = (points / sizes[:, None]).astype(np.float32)
    part = np.arange(len(packed))
    of = part[there]  # the least number of all that hang together so far
    for start in range(0, len(points), _CHUNK):
        for near in points[start : start + _CHUNK] @ points.T > NEAR:
            linked = np.unique(of[near])
            if len(linked) > 1:
                of[np.isin(of, linked)] = linked[0]
    part[there] = of
    return np.unique(part, return_inverse=True)[1].astype(np.int64)


def _standardised(table: Matrix, by: Matrix) -> Matrix:
    """Return rows less the mean of others, by their deviation; features that are the same for all are left out."""
    deviations = by.std(axis=0)
    varying = deviations > _LEAST * np.maximum(1.0, np.abs(by).max(axis=0))
    if varying.any():  # where few parts hardly differ, noise is all there is
        deviations = np.maximum(deviations, _FLOOR * float(np.median(deviations[varying])))
    found: Matrix = (table - by.mean(axis=0))[:, varying] / deviations[varying]
    return found


def _unlike(table: Matrix) -> Matrix:
    """Return rows that are not much alike: what is standardised by hundreds of frames of one part sees their noise."""
    points = _standardised(table, table)
    radius = _ALIKE * float(np.linalg.norm(points, axis=1).max(initial=0.0))
    kept: list[int] = []
    for i, point in enumerate(points):
        if not kept or float(np.linalg.norm(points[kept] - point, axis=1).min()) > radius:
            kept.append(i)
    return table[kept]


def joined(count: int, pairs: Iterable[tuple[int, int]]) -> Numbers:
    """Return (N,) numbers from 0 that are the same for images that pairs link, directly or in steps."""
    first = list(range(count))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    for a, b in pairs:
        a, b = root(a), root(b)
        first[max(a, b)] = min(a, b)
    return np.unique([root(i) for i in range(count)], return_inverse=True)[1].astype(np.int64)


def numbered(named: Sequence[Collection[Hashable]]) -> Numbers:
    """Return (N,) the number of each image's part; copies of one image may name several parts, which are one then."""
    first: dict[Hashable, int] = {}
    pairs = [(first.setdefault(name, i), i) for i, names in enumerate(named) for name in names]
    return joined(len(named), pairs)
