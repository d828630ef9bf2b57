"""Results to be reviewed: a folder of small images, read by a fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of
from vlmgate.data import Record
from vlmgate.gate.rules import Gate
from vlmgate.review import Made, Options, make_review
from vlmgate.review.items import Item, choose, facts_of
from vlmgate.run.loop import scan
from vlmgate.store.result import read_result

Say = Callable[[str], Sequence[str]]
FIVE = ("part_1.png", "part_2.png", "part_3.png", "part_4.png", "part_5.png")


def result_of(
    root: Path,
    names: Sequence[str],
    say: Say,
    *,
    answer: Say | None = None,
    num_samples: int = 4,
    broken: bool = False,
    kernel: str = "findings",
) -> Path:
    """Scan a folder of images with these names; with `broken`, one more that is none."""
    folder = folder_of(root / "in", *names)
    if broken:
        (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config = replace(config_for(folder, root / "r.parquet", num_samples=num_samples), kernel=kernel)
    if answer is not None:
        config = replace(config, sampling=replace(config.sampling, question="Is it ok?", choices=("ok", "scratch")))
    fake = FakeCaptioner(say, answer=answer or (lambda _: ("unsure",)))
    scan(config, SilentProgress(), load=fake.load)
    return root / "r.parquet"


def five(root: Path) -> Path:
    """Two images accepted, three routed: the worst is part_3, then part_4, then part_5."""
    said = {"part_3.png": DISAGREE[:4], "part_4.png": DISAGREE[:3], "part_5.png": DISAGREE[:2]}
    return result_of(root, FIVE, lambda name: said.get(name, AGREE))


def reviewed(result: Path, **options: object) -> Made:
    return make_review(result, Options(**options))  # type: ignore[arg-type]


def facts_in(result: Path, **options: int) -> list[dict[str, Any]]:
    """Return what the page knows of each image."""
    items, _, gate = items_of(result, **options)
    provenance = read_result(result, features=False)[1]
    return [facts_of(item, gate, provenance) for item in items]


def items_of(result: Path, **options: int) -> tuple[list[Item], list[Record], Gate]:
    records, provenance = read_result(result, features=False)
    gate = Gate.of(provenance["gate"])
    return choose(records, gate, **options), records, gate
