"""`vlmgate compare`: is the larger model worth it on our images?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmgate.api.options import costs_of, is_there, label_pairs, labelled_reading, share
from vlmgate.cli.options import (
    AnswerTokensOption,
    BatchSizeOption,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    Format,
    FormatOption,
    MaxPixelsOption,
    NewTokensOption,
    NoAbstainOption,
    PagesChoice,
    PagesOption,
    PromptOption,
    QuietOption,
    RestartOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TrustOption,
    WorkersOption,
    app,
)
from vlmgate.config import DEFAULT_PROMPT, DEFAULT_QUESTION
from vlmgate.errors import UsageError
from vlmgate.report.terminal import console, crashes_to, errors_in_one_line, reader_may_leave, say


@app.command(short_help="Set models side by side on labelled images.")
def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="LABELLED|RESULT...", help="Labelled folder, results, or both.", show_default=False),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model that reads LABELLED, as for scan. Repeatable; results go before."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write; the readings lie beside it.")] = Path(
        "comparison.html"
    ),
    labels: Annotated[
        Path | None, typer.Option(help="Labelled folder or table of classes. [default: LABELLED, or RESULT's folder]")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the table with the labels.")] = None,
    label_map: Annotated[
        list[str] | None, typer.Option(help="'NAME=CHOICE': another name for a label; 'NAME=' drops it. Repeatable.")
    ] = None,
    good: Annotated[
        str | None, typer.Option(help="Class that passes a part. [default: the one called good, ok, none, …]")
    ] = None,
    target_risk: Annotated[str, typer.Option(help="Share of accepted readings that may be wrong.")] = "10%",
    confidence: Annotated[str, typer.Option(help="Of what a gate could promise.")] = "95%",
    score: Annotated[
        str | None, typer.Option(help="Column to order images by. [default: the best over all models]")
    ] = None,
    cost_escape: Annotated[float | None, typer.Option(help="Cost of a bad part that passes.")] = None,
    cost_overkill: Annotated[float | None, typer.Option(help="Cost of a good part that is rejected.")] = None,
    cost_review: Annotated[float | None, typer.Option(help="Cost of a person's look at one image.")] = None,
    reviewer_miss: Annotated[float | None, typer.Option(help="Share of bad parts that a person passes.")] = None,
    reviewer_false_alarm: Annotated[
        float | None, typer.Option(help="Share of good parts that a person rejects.")
    ] = None,
    cost_overhead: Annotated[
        list[float] | None,
        typer.Option(help="Running cost per 1,000 images: once for all models, or once each, results first."),
    ] = None,
    defect_rate: Annotated[
        str | None, typer.Option(help="Share of bad parts on the line, for costs. [default: as labelled]")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    prompt: PromptOption = DEFAULT_PROMPT,
    question: Annotated[
        str | None, typer.Option(help=f"Closed question asked beside. [default: {DEFAULT_QUESTION}]")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="What may be answered, separated by commas. [default: the classes]")
    ] = None,
    no_abstain: NoAbstainOption = False,
    max_answer_tokens: AnswerTokensOption = 16,
    num_samples: Annotated[int, typer.Option("--num-samples", "-k", help="Captions per image.")] = 16,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    max_new_tokens: NewTokensOption = 64,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = None,
    pages: PagesOption = PagesChoice.FIRST,
    max_pixels: MaxPixelsOption = 500_000_000,
    workers: WorkersOption = 0,
    no_page: Annotated[bool, typer.Option("--no-page", help="Write no page.")] = False,
    restart: RestartOption = False,
    config: ConfigOption = None,
    format: FormatOption = Format.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Set models side by side on labelled images: accuracy, risk, cost, speed, memory; and whether one can tell.

    Every --model reads LABELLED in turn, with the same seed and options, through a journal that resumes; results of
    earlier runs (the readings of `vlmgate calibrate`, scans with --choices) are taken as they are. Differences are from
    the first model. Exit codes: 0 done, 1 fatal, 2 usage, 130 Ctrl-C.
    """
    with errors_in_one_line():
        for source in sources:
            if not is_there(source):
                raise UsageError(f"{source}: no such folder or result; name a labelled folder, or a result.")
        told: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
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
            "restart": restart,
            "cost_escape": cost_escape,
            "cost_overkill": cost_overkill,
            "cost_review": cost_review,
            "reviewer_miss": reviewer_miss,
            "reviewer_false_alarm": reviewer_false_alarm,
        }
        reading = labelled_reading(sources[0], out.with_suffix(".parquet"), told)
        overheads: list[float | None] = [*cost_overhead] if cost_overhead else [None]
        several = [costs_of(told | {"cost_overhead": each}) for each in overheads]
        if defect_rate is not None and None in several:
            raise UsageError(
                "--defect-rate weighs costs, and none is given; add --cost-escape, --cost-review and the like."
            )
        from vlmgate.calibration.compare.run import CompareConfig, run_comparison
        from vlmgate.calibration.run import Stopped
        from vlmgate.calibration.text import CalibrationProgress

        settings = CompareConfig(
            sources=tuple(sources),
            models=tuple(model or ()),
            out=out,
            labels=labels,
            label_column=label_column,
            label_map=label_pairs(label_map),
            good=good,
            score=score,
            target_risk=share(target_risk, "--target-risk", within=(0, 1)),
            confidence=share(confidence, "--confidence", within=(0.5, 1)),
            costs=tuple(one for one in several if one is not None),
            defect_rate=None if defect_rate is None else share(defect_rate, "--defect-rate", within=(0, 1)),
            page=not no_page,
        )
        progress = CalibrationProgress(console(stderr=True), quiet=quiet)
        with crashes_to(out.with_suffix(".log")):
            done = run_comparison(settings, reading, progress, question=question)
        if isinstance(done, Stopped):
            if done.result.error is not None:
                raise done.result.error
            say("Stopped. The same command goes on where it was.")
            raise typer.Exit(128 + (done.result.interrupted or 0))
    from vlmgate.calibration.compare.text import comparison_json, print_comparison

    with reader_may_leave():
        if format is Format.JSON:
            print(comparison_json(done.found, done.labels, done.results, done.page))
        else:
            print_comparison(done.found, done.labels, done.results, done.page, console())
