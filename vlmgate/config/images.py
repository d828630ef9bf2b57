"""How image files become pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from vlmgate.config.options import Panel, check, opt, require

Pages = Literal["first", "all"]
_files = partial(opt, panel=Panel.READ)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How files become pixels."""

    pages: Pages = _files("first", "Of files with several pages: the first, or a row for every page.")
    max_pixels: int = _files(
        500_000_000, "Refuse larger images (a guard against decompression bombs).", rare=True, ge=1
    )  # width x height of a page
    image_memory: float | None = _files(
        None,
        "Memory for images that are decoded or wait, in GB; one that needs more is refused.",
        rare=True,
        usual="a quarter of what is free, at least 1",
        gt=0,
        note="GB",
    )
    workers: int = _files(
        0, "Decoding threads; 0 = from the number of cores.", rare=True, ge=0, le=256, note="(0 = automatic)"
    )
    least_side: int = 0  # large JPEGs and line scans come out smaller, down to sides of so many pixels; 0 = never

    def __post_init__(self) -> None:
        check(self)
        require(self.least_side >= 0, "least_side", self.least_side, "0 or more")
