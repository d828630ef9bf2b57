"""`vlmgate scan`: read a folder and split it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmgate.api.options import is_there, scan_config
from vlmgate.cli.options import (
    AnswerTokensOption,
    BatchSizeOption,
    BudgetOption,
    ConcurrencyOption,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    EndpointOption,
    GpusOption,
    KernelOption,
    LimitOption,
    MaxPixelsOption,
    MaxRoutedOption,
    MaxSideOption,
    ModelOption,
    NewTokensOption,
    NoAbstainOption,
    PagesChoice,
    PagesOption,
    PromptOption,
    QuietOption,
    RayOption,
    RayWorkersOption,
    RestartOption,
    RetriesOption,
    RevisionOption,
    ScanFormat,
    ScanFormatOption,
    ScoreOption,
    SeedOption,
    ShardOption,
    TemperatureOption,
    ThresholdOption,
    TimeoutOption,
    TopKOption,
    TopPOption,
    TrustOption,
    WorkersOption,
    app,
    read_gate_options,
)
from vlmgate.config import BUILTIN, DEFAULT_PROMPT, DEFAULT_QUESTION
from vlmgate.errors import UsageError
from vlmgate.report.terminal import complain, console, crashes_to, errors_in_one_line, reader_may_leave

if TYPE_CHECKING:
    from vlmgate.data import Record
    from vlmgate.run.outcome import ScanResult

_STDOUT = _STDIN = Path("-")


@app.command(short_help="Read a folder of images and split it.")
def scan(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of images (searched to the bottom), one image, or - for a list of files from stdin.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Parquet file to write; - with --format csv: rows to stdout. "
            "[default: FOLDER's name.parquet, here; of a list, listed.parquet]",
            show_default=False,
        ),
    ] = None,
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
        str | None, typer.Option(help=f"Closed question asked beside. [with --choices: {DEFAULT_QUESTION}]")
    ] = None,
    choices: Annotated[str | None, typer.Option(help="What may be answered, separated by commas.")] = None,
    no_abstain: NoAbstainOption = False,
    max_answer_tokens: AnswerTokensOption = 16,
    num_samples: Annotated[int, typer.Option("--num-samples", "-k", help="K, captions per image.")] = 8,
    samples: Annotated[
        str | None,
        typer.Option(
            metavar="FEWEST..MOST", help="Draw the fewest, and go on to K = the most where they do not decide: 4..16."
        ),
    ] = None,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    max_new_tokens: NewTokensOption = 64,
    views: Annotated[int, typer.Option(help="Sample from so many noised copies of each image; divides K.")] = 1,
    view_noise: Annotated[float, typer.Option(help="Standard deviation of their noise, of 255.")] = 20.0,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = None,
    pages: PagesOption = PagesChoice.FIRST,
    max_pixels: MaxPixelsOption = 500_000_000,
    workers: WorkersOption = 0,
    score: ScoreOption = "vendi_score",
    kernel: KernelOption = "words",
    threshold: ThresholdOption = None,
    review_budget: BudgetOption = None,
    limit: LimitOption = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of images that the model is meant for; others are novel.")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="The list on stdin is parted by NUL, as find -print0 does.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on reading as the folder fills; Ctrl-C ends it and writes the result.")
    ] = False,
    settle: Annotated[
        str | None, typer.Option(help="With --watch: a file is read once it has not changed for so long. [default: 5s]")
    ] = None,
    until: Annotated[str | None, typer.Option(help="With --watch: end at this time of day, such as 06:00.")] = None,
    idle: Annotated[
        str | None, typer.Option(help="With --watch: end when nothing has come for so long, such as 30m.")
    ] = None,
    publish_every: Annotated[
        str | None, typer.Option(help="With --watch: write the result so often; 0 = at the end alone. [default: 10m]")
    ] = None,
    max_routed: MaxRoutedOption = None,
    shard: ShardOption = None,
    ray: RayOption = None,
    ray_workers: RayWorkersOption = 0,
    gpus_per_worker: GpusOption = None,
    restart: RestartOption = False,
    config: ConfigOption = None,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="Gate file of `vlmgate calibrate`: model, prompt, sampling and limits are its.",
            is_eager=True,
            callback=read_gate_options,
        ),
    ] = None,
    format: ScanFormatOption = ScanFormat.TABLE,
    quiet: QuietOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on stderr, too.")] = False,
) -> None:
    """Read every image of FOLDER K times and split them into auto-accepted and routed to human.

    Writes FOLDER.parquet (listed.parquet of a list), a log and a journal. The same command resumes where it was
    stopped. Exit codes: 0 done, 1 fatal, 2 usage, 3 done but some images could not be read (they are routed to a
    person), 4 more than --max-routed, 130 Ctrl-C. Every option can also be set in the environment
    (VLMGATE_SCAN_NUM_SAMPLES=16) or in --config.
    """
    with errors_in_one_line():
        source = _listed(null) if folder == _STDIN else folder
        if folder != _STDIN and null:
            raise UsageError("--null is for a list on stdin; give - in the place of FOLDER, or leave it out.")
        if isinstance(source, Path) and not is_there(source):
            raise UsageError(f"{folder}: no such folder or image; name a folder of images.")
        if out == _STDOUT and format is not ScanFormat.CSV:
            raise UsageError("-o - writes rows to stdout; say --format csv with it, or give -o a Parquet file.")
        settings = scan_config(
            source,
            None if out == _STDOUT else out,
            {
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
                "samples": samples,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "max_new_tokens": max_new_tokens,
                "views": views,
                "view_noise": view_noise,
                "seed": seed,
                "batch_size": batch_size,
                "pages": pages.value,
                "max_pixels": max_pixels,
                "workers": workers,
                "score": score,
                "kernel": kernel,
                "threshold": threshold,
                "review_budget": review_budget,
                "limit": limit,
                "reference": reference,
                "gate": gate,
                "watch": watch,
                "settle": settle,
                "until": until,
                "idle": idle,
                "publish_every": publish_every,
                "shard": shard,
                "ray": ray,
                "ray_workers": ray_workers,
                "gpus_per_worker": gpus_per_worker,
                "restart": restart,
            },
        )
        most = max_routed_of(max_routed)
        if verbose:
            _log_to_stderr()
        from vlmgate.report.image import TerminalProgress
        from vlmgate.run.loop import scan as run
        from vlmgate.run.progress import Aside

        told = Aside(TerminalProgress(console(stderr=True), quiet=quiet))
        with crashes_to(settings.out.with_suffix(".log")), told as progress:
            result = run(settings, progress)
    code = _exit_code(result, most)
    with reader_may_leave():
        error = str(result.error) if result.error else None
        print_result(result.decided, result.provenance, result.outputs.parquet, format, code, error, result.whole)
    if result.error:
        complain(str(result.error))
    if code == 4:
        complain(f"more images were routed to a person than --max-routed {max_routed} allows.")
    raise typer.Exit(code)


def _log_to_stderr() -> None:
    from vlmgate.run.log import PlainFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.raiseExceptions = False  # a closed stderr is no reason to fail


def _listed(null: bool) -> tuple[Path, ...]:
    """Return the files that stdin names."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- takes a list of files from stdin; pipe one in: find . -name '*.jpg' | vlmgate scan -")
    from vlmgate.images import read_list

    return read_list(sys.stdin.buffer.read(), null=null)


def max_routed_of(text: str | None) -> tuple[float | None, int | None]:
    """Return --max-routed as a share and a number, one of which is None."""
    from vlmgate.gate.rules import parse_share_or_count

    return (None, None) if text is None else parse_share_or_count(text, "--max-routed")


def _exit_code(result: ScanResult, limit: tuple[float | None, int | None]) -> int:
    if result.interrupted is not None:
        return 128 + result.interrupted
    if result.error is not None:
        return result.error.exit_code
    return code_of(result.decided, limit)


def code_of(records: Sequence[Record], limit: tuple[float | None, int | None], *, complete: bool = True) -> int:
    """Return the exit code of a result: 4 beyond --max-routed, 3 where images are missing or could not be read."""
    from vlmgate.data import UNREAD, Route

    routed = sum(r.route == Route.HUMAN_REVIEW for r in records)
    share, count = limit
    if (share is not None and routed > share * len(records)) or (count is not None and routed > count):
        return 4
    return 3 if not complete or any(r.reason in UNREAD for r in records) else 0


def print_result(
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    out: Path,
    format: ScanFormat,
    code: int,
    error: str | None = None,
    whole: Collection[Record] | None = None,
) -> None:
    """Print what `--format` asks for; `whole` are the rows with their captions, where `records` have none."""
    from vlmgate.export.export import print_csv
    from vlmgate.report.summary import print_summary, summary_json

    if format is ScanFormat.CSV:
        print_csv(records if whole is None else whole)
    elif format is ScanFormat.JSON:
        print(summary_json(records, provenance, out, code, error))
    else:
        print_summary(records, provenance, out, console())
