"""`vlmgate calibrate`: from labelled images to a gate with a stated risk."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmgate.api.options import calibrate_configs, is_there
from vlmgate.cli.options import (
    AnswerTokensOption,
    BatchSizeOption,
    ConcurrencyOption,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    EndpointOption,
    Format,
    FormatOption,
    MaxPixelsOption,
    MaxSideOption,
    ModelOption,
    NewTokensOption,
    NoAbstainOption,
    PagesChoice,
    PagesOption,
    PromptOption,
    QuietOption,
    RestartOption,
    RetriesOption,
    RevisionOption,
    SeedOption,
    TemperatureOption,
    TimeoutOption,
    TopKOption,
    TopPOption,
    TrustOption,
    WorkersOption,
    app,
)
from vlmgate.config import BUILTIN, DEFAULT_PROMPT, DEFAULT_QUESTION
from vlmgate.errors import UsageError
from vlmgate.report.terminal import complain, console, crashes_to, errors_in_one_line, reader_may_leave, say

if TYPE_CHECKING:
    from vlmgate.calibration.run import Calibrated


class TargetChoice(StrEnum):
    RISK = "risk"
    ESCAPES = "escapes"


class RuleChoice(StrEnum):
    GUARANTEE = "guarantee"
    COST = "cost"


@app.command(short_help="Choose a gate from labelled images.")
def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="LABELLED", help="Labelled folder, or a result with --labels.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Gate file to write.")] = Path("gate.toml"),
    labels: Annotated[
        Path | None, typer.Option(help="Labelled folder or table of labels or verdicts. [default: LABELLED]")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the table with the labels.")] = None,
    label_map: Annotated[
        list[str] | None, typer.Option(help="'NAME=CHOICE': another name for a label; 'NAME=' drops it. Repeatable.")
    ] = None,
    good: Annotated[
        str | None, typer.Option(help="Class that passes a part. [default: the one called good, ok, none, …]")
    ] = None,
    target: Annotated[
        TargetChoice, typer.Option(help="risk: of accepted readings, wrong. escapes: of defective parts, passed.")
    ] = TargetChoice.RISK,
    target_risk: Annotated[str, typer.Option(help="What is promised at most: 1% or 0.01.")] = "10%",
    confidence: Annotated[str, typer.Option(help="With which confidence.")] = "95%",
    per_answer: Annotated[
        bool, typer.Option("--per-answer", help="Let the good answer have a limit of its own, where it gains.")
    ] = False,
    rule: Annotated[
        RuleChoice, typer.Option(help="Which gate is written: the guaranteed one, or that of least cost.")
    ] = RuleChoice.GUARANTEE,
    cost_escape: Annotated[float | None, typer.Option(help="Cost of a bad part that passes.")] = None,
    cost_overkill: Annotated[float | None, typer.Option(help="Cost of a good part that is rejected.")] = None,
    cost_review: Annotated[float | None, typer.Option(help="Cost of a person's look at one image.")] = None,
    reviewer_miss: Annotated[float | None, typer.Option(help="Share of bad parts that a person passes.")] = None,
    reviewer_false_alarm: Annotated[
        float | None, typer.Option(help="Share of good parts that a person rejects.")
    ] = None,
    cost_overhead: Annotated[
        float | None, typer.Option(help="Upkeep and running cost of the model, per 1,000 images.")
    ] = None,
    defect_rate: Annotated[
        str | None, typer.Option(help="Share of bad parts on the line, for costs. [default: as labelled]")
    ] = None,
    score: Annotated[str | None, typer.Option(help="Column that the gate goes by. [default: the best]")] = None,
    kernel: Annotated[
        list[str] | None, typer.Option(help="How captions are compared, as for scan. Repeatable. [default: words]")
    ] = None,
    gate_samples: Annotated[
        int | None, typer.Option(help="K of the gate. [default: the fewest samples that will do]")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="Limit that holds beside, as for scan. Repeatable.")
    ] = None,
    novelty_limit: Annotated[
        float,
        typer.Option(help="Route images more unlike the labelled ones; 1 = their strangest hundredth, inf = off."),
    ] = 1.0,
    model: ModelOption = BUILTIN,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    endpoint: EndpointOption = None,
    max_side: MaxSideOption = 2048,
    concurrency: ConcurrencyOption = 16,
    timeout: TimeoutOption = 300.0,
    retries: RetriesOption = 8,
    prompt: PromptOption = DEFAULT_PROMPT,
    question: Annotated[
        str | None, typer.Option(help=f"Closed question asked beside. [with classes: {DEFAULT_QUESTION}]")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="What may be answered, separated by commas. [default: the classes]")
    ] = None,
    no_abstain: NoAbstainOption = False,
    max_answer_tokens: AnswerTokensOption = 16,
    num_samples: Annotated[int, typer.Option("--num-samples", "-k", help="Most captions per image.")] = 16,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    max_new_tokens: NewTokensOption = 64,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = None,
    pages: PagesOption = PagesChoice.FIRST,
    max_pixels: MaxPixelsOption = 500_000_000,
    workers: WorkersOption = 0,
    no_page: Annotated[bool, typer.Option("--no-page", help="Write no calibration page.")] = False,
    restart: RestartOption = False,
    config: ConfigOption = None,
    format: FormatOption = Format.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Choose a gate from labelled images: how well each score works, how many samples it takes, what can be promised.

    Reads LABELLED once, through a journal that resumes, and writes the gate file, the readings (GATE.parquet) and a
    page (GATE_calibration/index.html). `vlmgate scan FOLDER --gate GATE` then splits by it. Exit codes: 0 a gate was
    written, 1 fatal, 2 usage, or the labels cannot support what was asked, 130 Ctrl-C.
    """
    with errors_in_one_line():
        if not is_there(source):
            raise UsageError(f"{source}: no such folder or result; name a labelled folder.")
        settings, reading, costs, question = calibrate_configs(
            source,
            out,
            {
                "labels": labels,
                "label_column": label_column,
                "label_map": label_map,
                "good": good,
                "target": target.value,
                "target_risk": target_risk,
                "confidence": confidence,
                "per_answer": per_answer,
                "rule": rule.value,
                "cost_escape": cost_escape,
                "cost_overkill": cost_overkill,
                "cost_review": cost_review,
                "reviewer_miss": reviewer_miss,
                "reviewer_false_alarm": reviewer_false_alarm,
                "cost_overhead": cost_overhead,
                "defect_rate": defect_rate,
                "score": score,
                "kernel": kernel,
                "gate_samples": gate_samples,
                "limit": limit,
                "novelty_limit": novelty_limit,
                "model": model,
                "revision": revision,
                "device": device,
                "dtype": dtype,
                "trust_remote_code": trust_remote_code,
                "endpoint": endpoint,
                "max_side": max_side,
                "concurrency": concurrency,
                "timeout": timeout,
                "retries": retries,
                "prompt": prompt,
                "question": question,
                "choices": choices,
                "no_abstain": no_abstain,
                "max_answer_tokens": max_answer_tokens,
                "num_samples": num_samples,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "max_new_tokens": max_new_tokens,
                "seed": seed,
                "batch_size": batch_size,
                "pages": pages.value,
                "max_pixels": max_pixels,
                "workers": workers,
                "no_page": no_page,
                "restart": restart,
            },
        )
        from vlmgate.calibration.run import Stopped
        from vlmgate.calibration.run import calibrate as run
        from vlmgate.calibration.text import CalibrationProgress

        progress = CalibrationProgress(console(stderr=True), quiet=quiet)
        with crashes_to(out.with_suffix(".log")):
            done = run(settings, reading, costs, progress, question=question)
        if isinstance(done, Stopped):
            if done.result.error is not None:
                raise done.result.error
            say("Stopped. The same command goes on where it was.")
            raise typer.Exit(128 + (done.result.interrupted or 0))
    code = 0 if done.gate is not None else 2
    with reader_may_leave():
        _print(done, format, code)
    if code:
        former = f" {out} is still the former gate." if out.exists() else ""
        complain(f"no gate was written: {done.why_none} The readings stay in {done.result}.{former}")
    raise typer.Exit(code)


def _print(done: Calibrated, format: Format, code: int) -> None:
    from vlmgate.calibration.text import print_study, study_json

    if format is Format.JSON:
        print(study_json(done.found, done.labels, done.seconds, done.written, code))
    else:
        print_study(done.found, done.labels, done.seconds, done.written, console())
