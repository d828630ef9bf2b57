"""`vlmgate help`: the manual in the terminal. Tables of options are made from what the commands declare."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any

import typer

from vlmgate.cli.options import app
from vlmgate.errors import UsageError
from vlmgate.manual import SECTIONS, page, topics
from vlmgate.report.terminal import console, errors_in_one_line

_OPTIONS = re.compile(r"<!-- options: (\S+) -->")
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)  # marks that the tests look for
_DEFAULT = re.compile(r" ?\[((?:default|with) ?[^\]]*)\]$")  # what a help text says of its default
_CHOICES = re.compile(r"[<\[]([\w-]+(?:\|[\w-]+)+)[>\]]")
_WIDEST = 120  # columns


@app.command("help", short_help="Show the manual, by topic.")
def help_(
    topic: Annotated[str, typer.Argument(metavar="[TOPIC]", help="As `vlmgate help` lists them.")] = "",
    command: Annotated[str, typer.Argument(metavar="[COMMAND]", help="With `options`: those of one command.")] = "",
) -> None:
    """Show a page of the manual: `vlmgate help scores`. Without a topic: the list of them."""
    with errors_in_one_line():
        if command and topic != "options":
            raise UsageError(f"help: one topic at a time, '{topic}' or '{command}'.")
        if not topic:
            print(contents())
        elif command:
            if command not in _commands():
                import difflib

                near = difflib.get_close_matches(command, _commands(), n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(_commands()))}."
                raise UsageError(f"help: there is no command '{command}'; {hint}")
            _show(f"# Options of vlmgate {command}\n\n{option_table(command)}\n")
        else:
            _show(with_option_tables(page(topic)))


def _commands() -> dict[str, Any]:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return commands


def contents() -> str:
    """Return the list of topics as text of at most 80 columns."""
    lines = topics()
    width = max(map(len, lines))
    listed = ["vlmgate help TOPIC shows a page; vlmgate help options COMMAND, all its options."]
    for section, names in SECTIONS.items():
        listed.append("\n".join([section, *(f"  {name:<{width}}  {lines[name].replace('`', '')}" for name in names)]))
    return "\n\n".join(listed)


def with_option_tables(text: str) -> str:
    """Return a page of the manual with its tables of options, and without comments."""
    return _COMMENT.sub("", _OPTIONS.sub(lambda m: option_table(m[1]), text))


def option_table(command: str) -> str:
    """Return all options of a command as Markdown, a table for each group."""
    commands = _commands()
    context = typer.Context(commands[command])
    options = [one for one in commands[command].params if one.param_type_name == "option"]
    tables = []
    for panel, group in groupby(options, key=lambda one: getattr(one, "rich_help_panel", None)):
        rows = ["| option | default | what it does |", "|---|---|---|", *(_row(one, context) for one in group)]
        tables.append("\n".join([f"**{panel}**\n", *rows] if panel else rows))
    return "\n\n".join(tables) or "It takes no options."


def _row(option: Any, context: typer.Context) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    text, default = option.help or "", ""
    if found := _DEFAULT.search(text):
        text, default = text[: found.start()], found[1].removeprefix("default: ")
    elif isinstance(option.show_default, str):
        default = option.show_default
    elif isinstance(option.default, bool):
        default = "on" if option.default else "off"
    elif isinstance(option.default, int | float):
        default = f"{option.default:,}" if option.default >= 10_000 else f"{option.default:g}"
    elif option.default is not None and not callable(option.default):
        default = str(getattr(option.default, "value", option.default))
    if found := _CHOICES.search((option.get_help_record(context) or ("",))[0]):
        text += f" One of {', '.join(found[1].split('|'))}."
    return f"| {names} | {_cell(default)} | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _show(text: str) -> None:
    """Print Markdown: rendered on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.markdown import Markdown, TableElement
    from rich.theme import Theme

    class WholeWords(TableElement):
        """A table that folds what is too long for its column; the usual one cuts it."""

        def __rich_console__(self, *arguments: Any) -> Iterator[Any]:
            for table in super().__rich_console__(*arguments):
                for column in getattr(table, "columns", ()):
                    column.overflow = "fold"
                yield table

    class Page(Markdown):
        elements = Markdown.elements | {"table_open": WholeWords}

    screen = console()
    screen.width = min(screen.width, _WIDEST)
    with screen.use_theme(Theme({"markdown.code": "cyan", "markdown.code_block": "cyan"})):
        screen.print(Page(text, code_theme="ansi_dark"))
