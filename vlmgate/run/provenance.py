"""What a result says of how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from vlmgate.data import Record
from vlmgate.gate.run_gate import drift_of
from vlmgate.images import Walk, folders_of
from vlmgate.run.plan import Plan
from vlmgate.scores.novelty import Reference, told_of_reference
from vlmgate.version import __version__


def provenance(
    plan: Plan,
    records: Sequence[Record],
    walk: Walk,
    gone: Sequence[str],
    reference: Reference | None,
    started: datetime,
    time: Mapping[str, Any] | None,
    complete: bool,
) -> dict[str, Any]:
    """Return it; `gone` are files that were read before and are not there now, `time` is where the time went."""
    config, journal, gate = plan.config, plan.journal, plan.gate
    repeated = {"entries": len(config.files), "repeated": len(walk.repeated)} if config.files is not None else None
    return {
        "vlmgate_version": __version__,
        "run_id": journal.run_id,
        "complete": complete,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": config.folder.resolve().as_posix().encode("utf-8", "backslashreplace").decode(),
        "listed": repeated and repeated | {"folders": folders_of(walk)},
        "images": len(records),
        "ignored": len(walk.ignored),
        "ignored_first": list(walk.ignored[:5]),
        "gone": len(gone),
        "gone_first": list(gone[:5]),
        "model": journal.model,
        "sampling": asdict(config.sampling),
        "image_config": asdict(config.images),
        "kernel": config.kernel,
        "reference": told_of_reference(reference, config.reference, calibrated=gate.reference is not None),
        "gate": gate.gate.told(),
        "adaptive": _saving(plan, records),
        "promise": dict(gate.file.promise) if gate.file else None,
        "gate_edited": gate.file.edited if gate.file else None,
        "drift": drift_of(gate, records, journal.readings),
        "time": time,
        "fingerprint": journal.fingerprint,
        "shard": plan.listing and plan.listing.told(config.gate, reference.note if reference else None),
    }


def _saving(plan: Plan, records: Sequence[Record]) -> dict[str, Any] | None:
    """Return what the provenance says of samples that were not drawn; None where all were to be."""
    if plan.config.sampling.first_samples is None:
        return None
    from vlmgate.gate.early_stop import saving_of

    return saving_of(records, plan.journal.readings, plan.config.sampling)
