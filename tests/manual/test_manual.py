"""`vlmgate help`, and that README and manual say what the commands do."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.support.documents import DOCUMENTS, commands, texts
from tests.support.paths import README, ROOT
from vlmgate.cli import app
from vlmgate.cli.help import with_option_tables
from vlmgate.cli.options import option_table
from vlmgate.data import Record
from vlmgate.manual import ALSO, SECTIONS, page, topics

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FOLDER = ROOT / "vlmgate" / "manual"


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["help", *arguments])
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result.stdout, result.stderr


def test_help_lists_every_page_with_its_purpose_in_80_columns() -> None:
    out, _ = run()
    assert set(topics()) == {path.stem for path in FOLDER.glob("*.md")}
    for topic, line in topics().items():
        assert re.search(rf"^  {topic} +{re.escape(line.replace('`', ''))}$", out, re.MULTILINE)
    assert all(section in out for section in SECTIONS) and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("topic", topics())
def test_a_page_has_a_title_and_a_line_that_says_what_it_is_for(topic: str) -> None:
    title, empty, line, after, *_ = page(topic).split("\n")
    assert title.startswith("# ") and empty == after == "" and line.endswith((".", "?"))


def test_every_command_has_a_page_and_every_other_word_leads_to_one() -> None:
    assert {*COMMANDS} <= {*topics(), *ALSO}
    assert {*ALSO.values()} <= {*topics()} and not {*ALSO} & {*topics()}
    assert page("merge") == page("clusters")


def test_piped_a_page_is_plain_text_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    out, _ = run("scan")
    assert "\x1b" not in out and "<!--" not in out
    assert "vlmgate scan ./images --review-budget 200      # tonight, people can look at 200 images" in out
    assert "| `--num-samples`, `-k` | 8 | " in out


def test_on_a_narrow_terminal_a_page_is_rendered_and_no_word_is_cut() -> None:
    """The options with the longest names, in 40 columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "40", "PYTHONIOENCODING": "utf-8"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "vlmgate", "help", "options", "scan"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    said = b""
    while True:
        try:
            some = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not some:
            break
        said += some
    os.close(ours)
    assert process.wait() == 0
    text = said.decode()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b[" in text and "|---|" not in plain
    expected = option_table("scan")
    assert plain.count("…") == expected.count("…")
    letters = re.sub(r"[^a-z]", "", plain)
    assert all(letters.count(letter) >= re.sub(r"[^a-z]", "", expected).count(letter) for letter in "aeimnoprst")


def test_what_is_no_topic_is_refused_with_the_nearest_one() -> None:
    assert run("scoers", code=2)[1] == "vlmgate: error: help: there is no topic 'scoers'; did you mean 'scores'?\n"
    assert "`vlmgate help` lists the topics" in run("xyzzy", code=2)[1]
    assert "no command 'scn'; did you mean 'scan'?" in run("options", "scn", code=2)[1]
    assert "one topic at a time" in run("scan", "merge", code=2)[1]


def test_the_options_of_one_command() -> None:
    out, _ = run("options", "merge")
    assert (
        out.startswith("# Options of vlmgate merge\n") and "| `--incomplete` |" in out and "Merge what is there" in out
    )
    assert "--temperature" not in out


def test_the_options_page_says_how_the_environment_names_an_option() -> None:
    assert "`VLMGATE_SCAN_NUM_SAMPLES=16`" in page("options") and "VLMGATE_" in COMMANDS["scan"].epilog


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"help"}))  # which has none
def test_every_option_of_every_command_is_in_the_manual(name: str) -> None:
    assert f"<!-- options: {name} -->" in page("options")
    table = option_table(name)
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            assert not option.startswith("-") or f"`{option}`" in table, f"{name} {option}"


def test_every_option_table_is_of_a_command() -> None:
    for text in texts().values():
        assert "<!-- options" not in with_option_tables(text)


def test_every_column_is_in_the_manual() -> None:
    named = page("columns") + page("scores") + page("findings") + page("questions")
    assert not [column for column in Record.__dataclass_fields__ if f"`{column}`" not in named]


def test_commands_in_readme_and_manual_have_the_options_that_they_are_given() -> None:
    shown = commands()
    assert len(shown) > 80
    for words in shown:
        if words[0].startswith("-"):
            assert words[0] in ("--version", "--help")
            continue
        known = [option for parameter in COMMANDS[words[0]].params for option in parameter.opts]
        for word in words[1:]:
            if re.match(r"-[a-z0-9-]", word):
                assert word.partition("=")[0] in [*known, "--help", "-h"], words


TOPICS = re.compile(r"vlmgate help ([a-z-]+)`?((?:(?:,|,? and)\s+`[a-z-]+`)*)")


def test_every_topic_that_is_named_exists() -> None:
    """In README, manual, help texts and messages."""
    code = [path.read_text(encoding="utf-8") for path in (ROOT / "vlmgate").rglob("*.py")]
    found = [m for text in [*texts().values(), *code] for m in TOPICS.finditer(text)]
    named = {name for m in found for name in (m[1], *re.findall(r"`([a-z-]+)`", m[2]))}
    assert len(named) > 10 and named <= {*topics(), *ALSO}, named - {*topics(), *ALSO}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


def test_the_readme_is_for_a_first_hour() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_pages_are_in_the_wheel() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    files = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"vlmgate/manual/{topic}.md" for topic in topics()} <= files
