"""`vlmgate rescore`, `show` and `info`: what is asked of a result that is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmgate.cli.options import Format, Given, ResultArgument, command
from vlmgate.cli.scan import end, print_result
from vlmgate.config import BUILTIN, SamplingConfig
from vlmgate.config.options import Opt, Panel
from vlmgate.config.scan import SCAN
from vlmgate.errors import UsageError
from vlmgate.report.terminal import console, reader_may_leave

if TYPE_CHECKING:
    from vlmgate.calibration.guarantee import Audit
    from vlmgate.data import Record


_RESCORE = {name: SCAN[name] for name in ("score", "threshold", "review_budget", "limit")} | {
    "kernel": replace(SCAN["kernel"], kind=str | None, default=None, usual="that of RESULT")
}


@command(_RESCORE, short_help="Score and split a result anew, without the model.")
def rescore(
    given: Given,
    result: ResultArgument,
    out: Annotated[Path | None, Opt("Parquet file to write.", short="-o", usual="RESULT.rescored.parquet")] = None,
    format: Format = "table",
) -> None:
    """Score and split a result anew, from what is stored in it: no model reads and no image is opened.

    The gate is that of the options, as for scan; RESULT itself stays as it is.
    """
    from vlmgate.gate.drift import has_alarm
    from vlmgate.gate.rules import make_gate
    from vlmgate.run.rescore import check_columns, check_output
    from vlmgate.run.rescore import rescore as run
    from vlmgate.scores.diversity import check_kernel, load_kernel
    from vlmgate.store.result import read_result, write_result

    target = out or result.with_suffix(".rescored.parquet")
    check_output(target, result)
    records, provenance = read_result(result)
    sampling, name = provenance["sampling"], given["kernel"] or provenance["kernel"]
    check_kernel(name, folder=True)
    gate = make_gate(
        num_samples=sampling["num_samples"],
        score=given["score"],
        threshold=given["threshold"],
        review_budget=given["review_budget"],
        limits=given["limit"] or (),
        answered=sampling.get("question") is not None,
        kernel=name,
        own=_own_limits(records, provenance, name),
    )
    check_columns(records, gate)
    done = run(records, provenance, gate, load_kernel(name), kernel_name=name, source=result)
    write_result(target, done.records, done.provenance)
    code = 5 if has_alarm(done.provenance["drift"]) else 0
    with reader_may_leave():
        print_result(done.records, done.provenance, target, format, code)
    end(code, None)


def _own_limits(records: list[Record], provenance: dict[str, Any], kernel: str) -> tuple[str, ...]:
    """Return the limits of the model that made a result, where it has some and the result what they compare."""
    from vlmgate.captioner.location import OWN_NOVELTY, own_limits

    measured, sampling = provenance.get("reference") or {}, provenance["sampling"]
    if all(record.novelty is None for record in records):
        return ()
    novelty = OWN_NOVELTY if "checkpoint" in (measured.get("folder"), measured.get("also")) else ()
    if (provenance["model"] or {}).get("model") != BUILTIN:
        return novelty
    drawn = SamplingConfig(**sampling | {"choices": tuple(sampling.get("choices", ()))})
    return (*own_limits(drawn, kernel), *novelty)


@command(short_help="Show a result, or one image's captions and why.")
def show(
    result: ResultArgument,
    name: Annotated[
        str | None, typer.Argument(help="file_name of one image, or the end of it. Without: the summary.")
    ] = None,
    page: Annotated[int, Opt("Page of a file with several.", panel=Panel.READ)] = 1,
    routed: Annotated[bool, Opt("List the images routed to a human, the worst first.", panel=Panel.READ)] = False,
    format: Format = "table",
) -> None:
    """Show one image's K captions and why it goes where it goes; without a name, the summary of the run or --routed."""
    from vlmgate.gate.rules import Gate
    from vlmgate.report.image import print_record
    from vlmgate.report.summary import print_routed, routed_worst_first
    from vlmgate.store.result import SCHEMA_VERSION, read_result

    records, provenance = read_result(result, features=False)
    if routed and name is not None:
        raise UsageError("--routed lists every routed image; leave out the name, or --routed.")
    if routed and format == "json":
        rows = [_as_dict(r) for r in routed_worst_first(records, Gate.of(provenance["gate"]))]
        print(json.dumps({"schema_version": SCHEMA_VERSION, "routed": rows}, indent=2))
    elif routed:
        print_routed(records, provenance, console())
    elif name is None:
        print_result(records, provenance, result, format)
    elif format == "json":
        print(json.dumps({"schema_version": SCHEMA_VERSION} | _as_dict(_find(records, name, page, result)), indent=2))
    else:
        print_record(_find(records, name, page, result), provenance, console())


def _as_dict(record: Record) -> dict[str, Any]:
    """Return a row for JSON, without the vision features, which no person reads; an infinite limit is null."""
    import math
    from dataclasses import asdict

    row = {key: value for key, value in asdict(record).items() if key != "vision_features"}
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in row.items()}


def _find(records: list[Record], name: str, page: int, result: Path) -> Record:
    """Return the row that the user means: the exact file_name, else the only one that ends in it."""
    import difflib

    from vlmgate.errors import plain
    from vlmgate.images import composed, spelt_as

    names = {r.file_name for r in records}
    matches = [name] if name in names else sorted(n for n in names if n.endswith(name) or plain(n).endswith(name))
    if not matches:  # a name from a keyboard may be composed where that of the file is not
        spelt = spelt_as([name], names)
        matches = [*spelt.values()] or sorted(n for n in names if composed(n).endswith(composed(name)))
    if len(matches) > 1:
        raise UsageError(
            f"{result}: {len(matches):,} images end in '{name}', first {matches[:2]}; give more of the name."
        )
    if not matches:
        near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.3)
        raise UsageError(f"{result}: holds no image '{name}'" + (f"; did you mean '{near[0]}'?" if near else "."))
    rows = [r for r in records if r.file_name == matches[0]]
    for row in rows:
        if row.page == page:
            return row
    raise UsageError(f"{result}: '{matches[0]}' has no page {page} in this result; it has {[r.page for r in rows]}.")


@command(short_help="Tell how a result was made.")
def info(
    result: ResultArgument,
    verdicts: Annotated[
        list[Path] | None,
        Opt("Table of verdicts to tally. Repeatable.", panel=Panel.READ, usual="RESULT_review/verdicts.csv, if there"),
    ] = None,
    format: Format = "table",
) -> None:
    """Tell how a result was made: model, prompt, sampling, gate, versions, dates; and what people found in it."""
    from vlmgate.report.image import print_provenance
    from vlmgate.store.result import read_provenance

    provenance = read_provenance(result)
    kept = result.with_name(f"{result.stem}_review") / "verdicts.csv"
    tables = verdicts or ([kept] if kept.is_file() else [])
    found = _audited(result, tables) if tables else None
    if format == "json":
        from dataclasses import asdict

        print(json.dumps(provenance | ({"audit": asdict(found)} if found else {}), indent=2))
        return
    print_provenance(provenance, console())
    if found:
        from vlmgate.calibration.guarantee import lines

        for line in lines(found):
            print(line)


def _audited(result: Path, tables: list[Path]) -> Audit:
    """Return the tally of verdicts on a result; raises `UsageError` for tables of something else."""
    from vlmgate.calibration.guarantee import audit
    from vlmgate.calibration.labels import read_labels
    from vlmgate.store.result import read_result

    several = [read_labels(table) for table in tables]
    for table, labels in zip(tables, several, strict=True):
        if labels.kind != "verdict":
            raise UsageError(f"{table}: holds no verdicts (correct, wrong, unusable); vlmgate calibrate takes classes.")
    return audit(read_result(result, features=False)[0], several)
