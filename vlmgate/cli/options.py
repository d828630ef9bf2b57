"""What several commands may be told, and how a command is begun.

Knows option names and their help; knows nothing of what is done with them.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlmgate.api.options import gate_options
from vlmgate.config import load_toml
from vlmgate.errors import UsageError
from vlmgate.report.terminal import errors_in_one_line

# As they are needed, one after the other.
ORDER = ("scan", "merge", "calibrate", "compare", "review", "export", "show", "info", "rescore", "doctor")


class _InOrder(TyperGroup):
    """The commands in `ORDER`, whichever module was imported first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="vlmgate",
    cls=_InOrder,
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


class ScanFormat(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class PagesChoice(StrEnum):
    FIRST = "first"
    ALL = "all"


PromptOption = Annotated[str, typer.Option(help="What the model is asked about each image.")]
NoAbstainOption = Annotated[bool, typer.Option("--no-abstain", help="Do not offer to be unsure.")]
AnswerTokensOption = Annotated[int, typer.Option(help="An answer is cut off here, and its image goes to a person.")]
TemperatureOption = Annotated[float, typer.Option(help="Sampling temperature; 0.8 to 1 separates best.")]
TopPOption = Annotated[float, typer.Option(help="Nucleus sampling; 1 = off.")]
TopKOption = Annotated[int, typer.Option(help="Sample from the K likeliest tokens only; 0 = off.")]
NewTokensOption = Annotated[int, typer.Option(help="A caption is cut off here, and its image goes to a person.")]
SeedOption = Annotated[int, typer.Option(help="Same seed, same captions.")]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Images per batch; changes speed, not captions.",
        show_default="8; on a GPU as many as fit, up to 32; of a server twice --concurrency",
    ),
]
PagesOption = Annotated[
    PagesChoice, typer.Option(help="Of files with several pages: the first, or a row for every page.")
]
MaxPixelsOption = Annotated[int, typer.Option(help="Refuse larger images (a guard against decompression bombs).")]
WorkersOption = Annotated[int, typer.Option(help="Decoding threads; 0 = from the number of cores.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Read everything again; the old journal is kept aside.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How stdout is written.")]
ScanFormatOption = Annotated[
    ScanFormat, typer.Option("--format", help="How stdout is written; csv = the rows, when the run ends.")
]
MaxRoutedOption = Annotated[
    str | None, typer.Option(help="Exit with 4 when more than this goes to people: 20% or 500.")
]
RayOption = Annotated[
    str | None,
    typer.Option(help="Read with the workers of a Ray cluster: auto, local or host:port; see README, 'Many machines'."),
]
RayWorkersOption = Annotated[int, typer.Option(help="Workers, each with a model; 0 = as many as there is room for.")]
GpusOption = Annotated[
    float | None, typer.Option(help="GPUs for each worker; a fraction shares one. [default: 1 where there are any]")
]
ShardOption = Annotated[
    str | None, typer.Option(help="Read one share of the folder, such as 3/16; `vlmgate merge` joins them.")
]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="'builtin', a checkpoint folder, or a hub id.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
]
EndpointOption = Annotated[
    str | None, typer.Option(metavar="URL", help="OpenAI-compatible server of --model NAME: http://host:8000/v1.")
]
MaxSideOption = Annotated[int, typer.Option(help="With --endpoint: shrink images to this many pixels a side.")]
ConcurrencyOption = Annotated[int, typer.Option(help="With --endpoint: requests at once.")]
TimeoutOption = Annotated[float, typer.Option(help="With --endpoint: seconds that a request may take.")]
RetriesOption = Annotated[int, typer.Option(help="With --endpoint: how often a request is tried again.")]
ScoreOption = Annotated[str, typer.Option(help="Column that images are ordered by; see README, 'The scores'.")]
KernelOption = Annotated[
    str, typer.Option(help="How captions are compared: words, minilm, embedding:FOLDER or nli:FOLDER.")
]
ThresholdOption = Annotated[float | None, typer.Option(help="Accept up to this score (from it, where lower is worse).")]
BudgetOption = Annotated[str | None, typer.Option(help="Route the most uncertain: a share (10%) or a number (200).")]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", help="Accept only within this, too: 'abstain_rate <= 0.25'. Repeatable.")
]

ResultArgument = Annotated[
    Path, typer.Argument(metavar="RESULT", help="Parquet file that `vlmgate scan` wrote.", show_default=False)
]


def option_table(command: str) -> str:
    """Return the options of a command as a Markdown table: option, default, environment name, what it is for."""
    rows = ["| option | default | environment | what it is for |", "|---|---|---|---|"]
    for option in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        if option.param_type_name != "option" or not option.name:
            continue
        text, _, usual = str(option.help or "").removesuffix("]").partition(" [default: ")
        shown = option.show_default if isinstance(option.show_default, str) else option.default
        value = usual or (
            "" if shown is None or shown is False or option.required else str(getattr(shown, "value", shown))
        )
        flags = ", ".join(f"`{flag}`" for flag in option.opts)
        cells = (flags, value, f"`VLMGATE_{command}_{option.name}`".upper(), text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def read_gate_options(context: typer.Context, path: Path | None) -> Path | None:
    """Let a gate file say all that a scan must have in common with what was calibrated."""
    if path is not None:
        with errors_in_one_line():
            context.default_map = gate_options(path) | {**(context.default_map or {})}
    return path


def read_toml(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        with errors_in_one_line():
            own = ("folder", "source", "sources", "config")  # of the command line alone
            options = {p.name: p for p in context.command.params if p.name and p.name not in own}
            several = [name for name, option in options.items() if getattr(option, "multiple", False)]
            values = load_toml(path, options, several)
            for name, value in values.items():
                if isinstance(value, bool) != bool(getattr(options[name], "is_flag", False)):
                    raise UsageError(f"{path}: {name} = {value!r} is no value for this option.")
            context.default_map = {**(context.default_map or {}), **values}
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with any of these options.", is_eager=True, callback=read_toml),
]
