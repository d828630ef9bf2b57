"""Which columns of a result are written, and in what order. Call `choose`, then `to_read`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from vlmgate.data import Record
from vlmgate.errors import UsageError
from vlmgate.export.rows import Writer
from vlmgate.export.targets import FILL_IN


def to_read(writer: type[Writer], columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the result that a writer needs, to write these columns."""
    wanted = dict.fromkeys((*columns, *writer.looks_at))
    return tuple(name for name in wanted if name not in FILL_IN)


def choose(writer: type[Writer], wanted: str | None, held: Collection[str]) -> tuple[str, ...]:
    """Return the columns that were asked for by name, or those that this format usually gets.

    `held` are those of the result. Raises `UsageError` for a column that there is not, or not in this format.
    """
    if wanted is None:
        return writer.usual
    names = [name.strip() for name in wanted.split(",")]
    known = [*dict.fromkeys((*Record.__dataclass_fields__, *held)), *(FILL_IN if writer.fill_in else ())]
    for name in names:
        if name not in known:
            raise UsageError(f"--columns: there is no column '{name}'{_near(name, known)}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"--columns: '{twice[0]}' stands there twice; once is enough.")
    return tuple(names)


def _near(name: str, known: Sequence[str]) -> str:
    if name in FILL_IN:
        return " in this format; csv, excel-csv, tsv and xlsx have it, for a person to fill in."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}."
