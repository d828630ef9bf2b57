"""`vlmgate help`: the manual in the terminal. Tables of options are made from what the commands declare."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from vlmgate.cli.options import ORDER, app, option_table
from vlmgate.errors import UsageError
from vlmgate.manual import SECTIONS, page, topics
from vlmgate.report.terminal import console, errors_in_one_line

_OPTIONS = re.compile(r"<!-- options: (\S+) -->")
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)  # marks that the tests look for
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
            if command not in ORDER:
                import difflib

                near = difflib.get_close_matches(command, ORDER, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(ORDER))}."
                raise UsageError(f"help: there is no command '{command}'; {hint}")
            _show(f"# Options of vlmgate {command}\n\n{option_table(command)}\n")
        else:
            _show(with_option_tables(page(topic)))


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
