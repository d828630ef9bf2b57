"""The command line: options → configurations, results → exit codes. With its edges, the only module that exits.

Knows what a user may type and what they are told; knows nothing of how any of it is done. Heavy imports stay inside the
commands, so that `vlmgate --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlmgate
from vlmgate.answers import DEFAULT_QUESTION
from vlmgate.config import BUILTIN, DEFAULT_PROMPT, ImageConfig, ModelConfig, SamplingConfig, ScanConfig, load_toml
from vlmgate.errors import UsageError, VlmgateError
from vlmgate.terminal import complain, console, crashes_to, errors_in_one_line, reader_may_leave

if TYPE_CHECKING:
    from vlmgate.records import Record
    from vlmgate.scan import ScanResult

app = typer.Typer(
    name="vlmgate",
    help="Sampled vision-language inspection: readings that agree are auto-accepted, the others go to a person.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VLMGATE"},
)


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


class PagesChoice(StrEnum):
    FIRST = "first"
    ALL = "all"


FormatOption = Annotated[Format, typer.Option("--format", help="How stdout is written.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="'builtin', a checkpoint folder, or a hub id.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
]
ScoreOption = Annotated[str, typer.Option(help="Column that images are ordered by; see README, 'The scores'.")]
KernelOption = Annotated[
    str, typer.Option(help="How captions are compared: words, minilm, embedding:FOLDER or nli:FOLDER.")
]
ThresholdOption = Annotated[float | None, typer.Option(help="Accept up to this score (from it, where lower is worse).")]
BudgetOption = Annotated[str | None, typer.Option(help="Route the most uncertain: a share (10%) or a number (200).")]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", help="Accept only within this, too: 'abstain_rate <= 0.25'. Repeatable.")
]


def _read_toml(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        with errors_in_one_line():
            options = {p.name: p for p in context.command.params if p.name and p.name not in ("folder", "config")}
            values = load_toml(path, options)
            for name, value in values.items():
                if isinstance(value, bool) != bool(getattr(options[name], "is_flag", False)):
                    raise UsageError(f"{path}: {name} = {value!r} is no value for this option.")
            context.default_map = {**(context.default_map or {}), **values}
    return path


@app.command()
def scan(
    folder: Annotated[
        Path, typer.Argument(help="Folder of images (searched to the bottom), or one image.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Parquet file to write. [default: FOLDER's name.parquet, here]", show_default=False
        ),
    ] = None,
    model: ModelOption = BUILTIN,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    prompt: Annotated[str, typer.Option(help="What the model is asked about each image.")] = DEFAULT_PROMPT,
    question: Annotated[
        str | None, typer.Option(help=f"Closed question asked beside. [with --choices: {DEFAULT_QUESTION}]")
    ] = None,
    choices: Annotated[str | None, typer.Option(help="What may be answered, separated by commas.")] = None,
    no_abstain: Annotated[bool, typer.Option("--no-abstain", help="Do not offer to be unsure.")] = False,
    max_answer_tokens: Annotated[
        int, typer.Option(help="An answer is cut off here, and its image goes to a person.")
    ] = 16,
    num_samples: Annotated[int, typer.Option("--num-samples", "-k", help="K, captions per image.")] = 8,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0.8 to 1 separates best.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling; 1 = off.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from the K likeliest tokens only; 0 = off.")] = 0,
    max_new_tokens: Annotated[
        int, typer.Option(help="A caption is cut off here, and its image goes to a person.")
    ] = 64,
    views: Annotated[int, typer.Option(help="Sample from so many noised copies of each image; divides K.")] = 1,
    view_noise: Annotated[float, typer.Option(help="Standard deviation of their noise, of 255.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Same seed, same captions.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per batch; changes speed, not captions.")] = 8,
    pages: Annotated[
        PagesChoice, typer.Option(help="Of files with several pages: the first, or a row for every page.")
    ] = PagesChoice.FIRST,
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images (a guard against decompression bombs).")
    ] = 500_000_000,
    workers: Annotated[int, typer.Option(help="Decoding threads; 0 = from the number of cores.")] = 0,
    score: ScoreOption = "vendi_score",
    kernel: KernelOption = "words",
    threshold: ThresholdOption = None,
    review_budget: BudgetOption = None,
    limit: LimitOption = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of images that the model is meant for; others are novel.")
    ] = None,
    max_routed: Annotated[
        str | None, typer.Option(help="Exit with 4 when more than this goes to people: 20% or 500.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Read everything again; the old journal is kept aside.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file with any of these options.", is_eager=True, callback=_read_toml),
    ] = None,
    format: FormatOption = Format.TABLE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on stderr, too.")] = False,
) -> None:
    """Read every image of FOLDER K times and split them into auto-accepted and routed to human.

    Writes FOLDER.parquet, a log and a journal. The same command resumes where it was stopped. Exit codes: 0 done, 1
    fatal, 2 usage, 3 done but some images could not be read (they are routed to a person), 4 more than --max-routed,
    130 Ctrl-C. Every option can also be set in the environment (VLMGATE_SCAN_NUM_SAMPLES=16) or in --config.
    """
    with errors_in_one_line():
        if not _exists(folder):
            raise UsageError(f"{folder}: no such folder or image; name a folder of images.")
        parquet = out or Path(
            f"{folder.resolve().stem if folder.is_file() else folder.resolve().name or 'root'}.parquet"
        )
        settings = ScanConfig(
            folder=folder,
            out=parquet,
            model=ModelConfig(model, revision, device, dtype, trust_remote_code),
            sampling=SamplingConfig(
                prompt=prompt,
                num_samples=num_samples,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_new_tokens=max_new_tokens,
                seed=seed,
                batch_size=batch_size,
                question=DEFAULT_QUESTION if question is None and choices is not None else question,
                choices=_split(choices),
                abstain=not no_abstain,
                max_answer_tokens=max_answer_tokens,
                views=views,
                view_noise=view_noise,
            ),
            images=ImageConfig(pages.value, max_pixels, workers),
            score=score,
            threshold=threshold,
            review_budget=review_budget,
            limits=tuple(limit or ()),
            kernel=kernel,
            reference=reference,
            restart=restart,
        )
        most = _max_routed(max_routed)
        if verbose:
            _log_to_stderr()
        from vlmgate.report import TerminalProgress
        from vlmgate.scan import scan as run

        progress = TerminalProgress(console(stderr=True), quiet=quiet)
        with crashes_to(parquet.with_suffix(".log")):
            result = run(settings, progress)
    code = _exit_code(result, most)
    with reader_may_leave():
        _print_result(result, format, code)
    if result.error:
        complain(str(result.error))
    if code == 4:
        complain(f"more images were routed to a person than --max-routed {max_routed} allows.")
    raise typer.Exit(code)


def _split(choices: str | None) -> tuple[str, ...]:
    return () if choices is None else tuple(choice.strip() for choice in choices.split(","))


def _log_to_stderr() -> None:
    from vlmgate.logfile import PlainFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.raiseExceptions = False  # a closed stderr is no reason to fail


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def _max_routed(text: str | None) -> tuple[float | None, int | None]:
    from vlmgate.gate import parse_share_or_count

    return (None, None) if text is None else parse_share_or_count(text, "--max-routed")


def _exit_code(result: ScanResult, limit: tuple[float | None, int | None]) -> int:
    from vlmgate.records import Reason, Route

    if result.interrupted is not None:
        return 128 + result.interrupted
    if result.error is not None:
        return result.error.exit_code
    routed = sum(r.route == Route.HUMAN_REVIEW for r in result.records)
    share, count = limit
    if (share is not None and routed > share * len(result.records)) or (count is not None and routed > count):
        return 4
    lacking = (Reason.UNREADABLE, Reason.MODEL_FAILED, Reason.NOT_READ)
    return 3 if any(r.reason in lacking for r in result.records) else 0


def _print_result(result: ScanResult, format: Format, code: int) -> None:
    from vlmgate.summary import print_summary, summary_json

    if format is Format.JSON:
        error = str(result.error) if result.error else None
        print(summary_json(result.records, result.provenance, result.outputs.parquet, code, error))
    else:
        print_summary(result.records, result.provenance, result.outputs.parquet, console())


ResultArgument = Annotated[
    Path, typer.Argument(metavar="RESULT", help="Parquet file that `vlmgate scan` wrote.", show_default=False)
]


@app.command()
def rescore(
    result: ResultArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Parquet file to write. [default: RESULT.rescored.parquet]"),
    ] = None,
    score: ScoreOption = "vendi_score",
    kernel: Annotated[str | None, typer.Option(help="As for scan. [default: that of RESULT]")] = None,
    threshold: ThresholdOption = None,
    review_budget: BudgetOption = None,
    limit: LimitOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Score and split a result anew, from what is stored in it: no model reads and no image is opened.

    The gate is that of the options, as for scan; RESULT itself stays as it is.
    """
    with errors_in_one_line():
        from vlmgate.gate import make_gate
        from vlmgate.kernels import check_kernel, load_kernel
        from vlmgate.rescore import check_columns, check_output
        from vlmgate.rescore import rescore as run
        from vlmgate.store import read_result, write_result
        from vlmgate.summary import print_summary, summary_json

        target = out or result.with_suffix(".rescored.parquet")
        check_output(target, result)
        records, provenance = read_result(result)
        sampling, name = provenance["sampling"], kernel or provenance["kernel"]
        check_kernel(name)
        gate = make_gate(
            num_samples=sampling["num_samples"],
            score=score,
            threshold=threshold,
            review_budget=review_budget,
            limits=limit or (),
            answered=sampling.get("question") is not None,
            kernel=name,
            own=_own_limits(records, provenance),
        )
        check_columns(records, gate)
        done = run(records, provenance, gate, load_kernel(name), kernel_name=name, source=result)
        write_result(target, done.records, done.provenance)
    with reader_may_leave():
        if format is Format.JSON:
            print(summary_json(done.records, done.provenance, target, 0, None))
        else:
            print_summary(done.records, done.provenance, target, console())


def _own_limits(records: list[Record], provenance: dict[str, Any]) -> tuple[str, ...]:
    """Return the limits of the model that made a result, where it has some and the result what they compare."""
    from vlmgate.builtin import own_limits

    named = (provenance["model"] or {}).get("model")
    if named != BUILTIN or all(record.novelty is None for record in records):
        return ()
    sampling = provenance["sampling"]
    return own_limits(SamplingConfig(**sampling | {"choices": tuple(sampling.get("choices", ()))}))


@app.command()
def show(
    result: ResultArgument,
    name: Annotated[
        str | None, typer.Argument(help="file_name of one image, or the end of it. Without: the summary.")
    ] = None,
    page: Annotated[int, typer.Option(help="Page of a file with several.")] = 1,
    routed: Annotated[
        bool, typer.Option("--routed", help="List the images routed to a human, the worst first.")
    ] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show one image's K captions and why it goes where it goes; without a name, the summary of the run or --routed."""
    with errors_in_one_line():
        from vlmgate.gate import Gate
        from vlmgate.report import print_record
        from vlmgate.store import SCHEMA_VERSION, read_result
        from vlmgate.summary import print_routed, print_summary, routed_worst_first, summary_json

        records, provenance = read_result(result, features=False)
        if routed and name is not None:
            raise UsageError("--routed lists every routed image; leave out the name, or --routed.")
        if routed and format is Format.JSON:
            rows = [_as_dict(r) for r in routed_worst_first(records, Gate.of(provenance["gate"]))]
            print(json.dumps({"schema_version": SCHEMA_VERSION, "routed": rows}, indent=2))
        elif routed:
            print_routed(records, provenance, console())
        elif name is None and format is Format.JSON:
            print(summary_json(records, provenance, result, 0, None))
        elif name is None:
            print_summary(records, provenance, result, console())
        elif format is Format.JSON:
            print(
                json.dumps({"schema_version": SCHEMA_VERSION} | _as_dict(_find(records, name, page, result)), indent=2)
            )
        else:
            print_record(_find(records, name, page, result), provenance, console())


def _as_dict(record: Record) -> dict[str, Any]:
    """Return a row for JSON, without the vision features, which no person reads."""
    from dataclasses import asdict

    return {key: value for key, value in asdict(record).items() if key != "vision_features"}


def _find(records: list[Record], name: str, page: int, result: Path) -> Record:
    """Return the row that the user means: the exact file_name, else the only one that ends in it."""
    import difflib

    from vlmgate.text import plain

    names = {r.file_name for r in records}
    matches = [name] if name in names else sorted(n for n in names if n.endswith(name) or plain(n).endswith(name))
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


@app.command()
def info(result: ResultArgument, format: FormatOption = Format.TABLE) -> None:
    """Tell how a result was made: model, prompt, sampling, gate, versions, dates."""
    with errors_in_one_line():
        from vlmgate.report import print_provenance
        from vlmgate.store import read_provenance

        provenance = read_provenance(result)
        if format is Format.JSON:
            print(json.dumps(provenance, indent=2))
        else:
            print_provenance(provenance, console())


@app.command()
def doctor(
    model: ModelOption = BUILTIN,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Tell what this machine offers, and whether the model can be loaded here and reads a test image."""
    with errors_in_one_line():
        from vlmgate.captioner.machine import describe_machine
        from vlmgate.captioner.trial import try_model
        from vlmgate.report import print_provenance

        facts: dict[str, Any] = {"vlmgate": vlmgate.__version__} | describe_machine()
        problem: VlmgateError | None = None
        try:
            facts["model"] = try_model(ModelConfig(model, revision, device, dtype, trust_remote_code))
        except VlmgateError as error:
            problem, facts["model"] = error, {"loads": "no", "why": str(error)}
        if format is Format.JSON:
            print(json.dumps({"schema_version": 1} | facts, indent=2))
        else:
            print_provenance(facts, console())
        if problem:
            raise problem


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"vlmgate {vlmgate.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; what a terminal cannot show is escaped rather than raised."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with reader_may_leave():
        app()
