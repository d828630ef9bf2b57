"""Results that nothing was scanned for: rows with what a test is about, all else null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmgate.config import SamplingConfig
from vlmgate.data import Record, Route
from vlmgate.store.result import write_result


def row(file_name: str, **known: Any) -> Record:
    """Return a row that is routed to a human unless `known` says otherwise."""
    unknown = dict.fromkeys(Record.__dataclass_fields__)
    told = {"file_name": file_name, "page": 1, "route": Route.HUMAN_REVIEW, "reason": "disagreed", "seed": 0}
    return Record(**unknown | told | known)


def result_of(path: Path, rows: Sequence[Record], **provenance: Any) -> Path:
    """Write a result of these rows; return where it is."""
    told = {"run_id": "1", "complete": True, "model": {"model": "fake"}, "sampling": asdict(SamplingConfig())}
    told |= {"gate": {}, "image_config": {}, "fingerprint": {}, "kernel": "words", "folder": str(path.parent)}
    write_result(path, rows, told | provenance)
    return path
