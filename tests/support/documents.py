"""What users read: the README and the pages of the manual, and the marked blocks in them that tests run.

A mark is a comment in the line before a block: `<!-- shard lines -->`. Call `marked` or `only`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.support.paths import README, ROOT

DOCUMENTS = [README, *sorted((ROOT / "vlmgate" / "manual").glob("*.md"))]


def texts() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}


def marked(mark: str) -> list[str]:
    """Return the blocks under a mark, the README's first."""
    block = re.compile(rf"<!-- {mark} -->\n```\w+\n(.*?)```", re.DOTALL)
    return [found for text in texts().values() for found in block.findall(text)]


def only(mark: str) -> str:
    """Return the one block under a mark."""
    (block,) = marked(mark)
    return block


def commands() -> list[list[str]]:
    """Return the words after `vlmgate` of every command in a shell block or between backticks."""
    found = []
    for text in texts().values():
        lines = [
            line
            for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
            for line in block.replace("\\\n", " ").splitlines()
            if re.match(r"[^#\"]*\bvlmgate \w", line)
        ]
        for line in [*lines, *re.findall(r"`(vlmgate [a-z-][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]:
            command = re.split(r"\bvlmgate (?=[\w-])", line, maxsplit=1)[1]
            words = shlex.split(command.rstrip("'"), comments=True)
            found.append(words[: words.index("|")] if "|" in words else words)
    return found
