"""Which columns, and in what order.

Knows names of columns; knows nothing of what is in them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from vlmgate.data import Record
from vlmgate.errors import UsageError
from vlmgate.export.targets import FILL_IN, SHEETS, Target

KEY = ("file_name", "page", "sha256")  # what a row is found by when a sheet comes back
# As a person reads a sheet: which image, where it goes, what to fill in, what was said, how sure, how well taken.
_SHEET = (
    *("file_name", "page", "route", "reason", "verdict", "caption", "captions", "answer", "answer_share"),
    *("vendi_score", "agreement", "novelty", "decided_by", "threshold", "sharpness", "exposure", "noise"),
    *("width", "height", "conversion", "error", "duplicate_of", "sha256"),
)
_BESIDE = ("page", "sha256", "route", "reason", "decided_by", "answer", "vendi_score", "agreement", "novelty")
_EVERYTHING = tuple(name for name in Record.__dataclass_fields__ if name != "vision_features")
_DEFAULT: dict[Target, tuple[str, ...]] = {
    **dict.fromkeys(SHEETS, _SHEET),
    Target.JSONL: _EVERYTHING,
    Target.LABEL_STUDIO: ("file_name", *_BESIDE, "caption", "error"),
    Target.COCO: _BESIDE,
    Target.IMAGEFOLDER: (*_BESIDE, "caption", "captions"),
}
# What a writer looks at besides, whether it is a column or not.
_LOOKED_AT: dict[Target, tuple[str, ...]] = {
    Target.XLSX: KEY,
    Target.LABEL_STUDIO: (*KEY, "captions", "agreement", "answer"),
    Target.COCO: ("file_name", "width", "height", "captions"),
    Target.IMAGEFOLDER: (*KEY, "width"),
}


def to_read(target: Target, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the file that a writer needs for these columns of its own."""
    wanted = dict.fromkeys((*columns, *_LOOKED_AT.get(target, ())))
    return tuple(name for name in wanted if name not in FILL_IN)


def choose(target: Target, wanted: str | None, held: Collection[str]) -> tuple[str, ...]:
    """Return the columns that were asked for by name, or those that this target usually gets.

    `held` are those of the file. Raises `UsageError` for a column that there is not, or not here.
    """
    if wanted is None:
        return _DEFAULT[target]
    names = [name.strip() for name in wanted.split(",")]
    known = [*dict.fromkeys((*Record.__dataclass_fields__, *held)), *(FILL_IN if target in SHEETS else ())]
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
