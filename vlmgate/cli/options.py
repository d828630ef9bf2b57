"""The program `vlmgate`, and how its commands are made from the options that `vlmgate.config` declares.

Call `command` to register a function as a command, `option_table` for all its options in Markdown, `main` to run.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from vlmgate.config.options import PREFIX, REQUIRED, Opt, Panel, check_environment, check_together, load_toml, resolved
from vlmgate.report.terminal import errors_in_one_line, in_plain_letters, reader_may_leave
from vlmgate.version import __version__

# As they are needed, one after the other.
ORDER = ("scan", "merge", "calibrate", "compare", "review", "export", "show", "info", "rescore", "doctor", "help")

Given = dict[str, Any]  # every option that a command shares with others, by its name
ResultArgument = Annotated[
    Path, typer.Argument(metavar="RESULT", help="Parquet file that `vlmgate scan` wrote.", show_default=False)
]
Quiet = Annotated[bool, Opt("Only errors on stderr.", short="-q")]
Format = Annotated[Literal["table", "json"], Opt("How stdout is written.")]
ScanFormat = Annotated[
    Literal["table", "json", "csv"], Opt("How stdout is written; csv = the rows, when the run ends.")
]
MaxRouted = Annotated[str | None, Opt("Exit with 4 when more than this goes to people: 20% or 500.")]

_commands: dict[str, dict[str, Opt]] = {}  # the options of each


def _not_from_environment(parameters: list[Any], name: str) -> list[Any]:
    """Return parameters of which that name, or with "*" none, is set by an environment variable.

    A plant may keep its own `VLMGATE_VERSION`; it must not end every command with exit code 0 and nothing read.
    """
    for parameter in parameters:
        if name in ("*", parameter.name):
            parameter.allow_from_autoenv = False
    return parameters


class _InOrder(TyperGroup):
    """The commands in `ORDER`, whichever module was imported first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=ORDER.index)

    def get_params(self, ctx: Any) -> Any:
        return _not_from_environment(super().get_params(ctx), "*")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.get_params(ctx):
            parameter.show_envvar = False
        super().format_options(ctx, formatter)


class _Command(TyperCommand):
    """A command whose help lists the everyday options, panel by panel."""

    def get_params(self, ctx: Any) -> Any:
        return _not_from_environment(super().get_params(ctx), "help")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{panel: [] for panel in Panel}}
        for parameter in self.get_params(ctx):
            opt = _commands[str(self.name)].get(str(parameter.name))
            record = parameter.get_help_record(ctx)
            if record is not None and not (opt is not None and opt.rare):
                argument = parameter.param_type_name == "argument"
                panels["Arguments" if argument else opt.panel if opt else Panel.OUTPUT].append(record)
        widths = [len(name) for records in panels.values() for name, _ in records]
        width = max(width for width in widths if width <= 28)  # longer ones stand alone in their line
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl([(name.ljust(width), text) for name, text in records])


app = typer.Typer(
    name="vlmgate",
    cls=_InOrder,
    help="Sampled vision-language inspection: readings that agree are auto-accepted, the others go to a person.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": PREFIX.rstrip("_")},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"vlmgate {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; what a terminal cannot show is put in other words, or escaped, rather than raised."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=in_plain_letters())
    with reader_may_leave():
        app()


def _read_toml(context: typer.Context, path: Path | None) -> None:
    if path is not None:
        with errors_in_one_line():
            known = {name: opt for name, opt in _commands[str(context.command.name)].items() if name != "config"}
            context.default_map = {**(context.default_map or {}), **load_toml(path, known)}


def _read_gate(context: typer.Context, path: Path | None) -> Path | None:
    """Let a gate file say all that a scan must have in common with what was calibrated."""
    if path is not None:
        from vlmgate.gate.file import read_gate

        with errors_in_one_line():
            context.default_map = read_gate(path).options | {**(context.default_map or {})}
    return path


_CONFIG = Opt("TOML file with any of these options.", name="config", kind=Path | None, eager=True)
_CALLBACKS = {"config": _read_toml, "gate": _read_gate}  # of eager options


def _parameter(opt: Opt) -> inspect.Parameter:
    """Return an option as a parameter that typer reads."""
    option = typer.Option(
        opt.flag,
        *([opt.short] if opt.short else []),
        help=opt.help + (f" [default: {opt.shown}]" if opt.shown else ""),
        rich_help_panel=opt.panel,
        metavar=opt.metavar or ("<str>" if opt.kind == list[str] | None else None),
        is_eager=opt.eager,
        callback=_CALLBACKS[opt.name] if opt.eager else None,
        show_default=False,
        show_envvar=False,
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(opt.name, keyword, default=opt.default, annotation=Annotated[opt.kind, option])


def command(
    options: Mapping[str, Opt] | None = None, *, short_help: str, toml: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the command of its name: with its own options, and with `options`.

    A parameter whose annotation holds an `Opt` is an option; `given` takes the values of all `options` by their names.
    What goes wrong is told in one line. With `toml` there is `--config`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own: dict[str, Opt] = {}
        parameters = dict(inspect.signature(function, eval_str=True).parameters)
        for name, parameter in parameters.items():
            for opt in getattr(parameter.annotation, "__metadata__", ()):
                if isinstance(opt, Opt):
                    own[name] = resolved(name, get_args(parameter.annotation)[0], parameter.default, opt)
        known = {**({"config": _CONFIG} if toml else {}), **own, **(options or {})}
        name = function.__name__
        _commands[name] = known

        def run(**values: Any) -> None:
            with errors_in_one_line():
                check_environment(name, ORDER, known, os.environ)
                check_together(known, values)
                for each, opt in own.items():
                    if values[each] is not None:
                        opt.check(values[each])
                mine = {each: values[each] for each in parameters if each != "given"}
                given = {each: values[each] for each in options or {}}
                function(**mine, **({} if options is None else {"given": given}))

        arguments = [p for each, p in parameters.items() if each not in own and each != "given"]
        keyword = inspect.Parameter.KEYWORD_ONLY
        signature = [*(p.replace(kind=keyword) for p in arguments), *map(_parameter, known.values())]
        run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        example = f"{PREFIX}{name}_{next(iter(own))}=…".upper()
        file = " or in --config" if toml else ""
        epilog = f"All options: vlmgate help options. Each can also be set in the environment ({example}){file}."
        return app.command(name, cls=_Command, short_help=short_help, epilog=epilog)(run)

    return decorate


def option_table(command: str) -> str:
    """Return all options of a command in Markdown: a table for each panel, with defaults and choices."""
    tables = []
    for panel in Panel:
        options = [opt for opt in _commands.get(command, {}).values() if opt.panel is panel]
        if options:
            rows = ["| option | default | what it does |", "|---|---|---|", *map(_row, options)]
            tables.append("\n".join([f"**{panel}**", "", *rows]))
    return "\n\n".join(tables) or "It takes no options."


def _row(opt: Opt) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (opt.flag, opt.short) if flag)
    usual = "required" if opt.default is REQUIRED else opt.shown
    text = opt.help + (f" One of {', '.join(opt.choices)}." if opt.choices else "")
    cells = [flags, *(cell.replace("|", "\\|") for cell in (usual, text))]
    return f"| {' | '.join(cells)} |"
