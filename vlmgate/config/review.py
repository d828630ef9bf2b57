"""What a person may ask of a review page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlmgate.config.options import Panel, check, opt

_read = partial(opt, panel=Panel.READ)


@dataclass(frozen=True, slots=True)
class ReviewConfig:
    """What a person may ask of a review."""

    out: Path | None = opt(None, "Folder to write.", short="-o", usual="RESULT_review")
    images: Path | None = _read(None, "Where the scanned images are now.", usual="where they were")
    accepted: int = _read(0, "Show so many auto-accepted images, too, drawn at random: an audit.", ge=0)
    seed: int = _read(0, "Same seed, same sample of accepted images.", ge=0)
    single_file: bool = opt(
        False,
        "One .html file with the pictures inside, for up to 500 images.",
        excludes={"serve": "; give one of them."},
    )
    workers: int = _read(0, "Threads; 0 = from the number of cores.", ge=0, le=256)

    def __post_init__(self) -> None:
        check(self)
