"""The house stays as it was drawn: who may import whom, and what a bare import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlmgate

PACKAGE = Path(vlmgate.__file__).parent
EVERYTHING = {"*"}
PIXELS = {"PIL", "numpy"}

# Module → (what it may import from vlmgate, which third-party packages). Both hold inside functions, too.
HOUSE: dict[str, tuple[set[str], set[str]]] = {
    "__init__": ({"records", "errors", "api", "version"}, set()),
    "api": (
        {
            *("config", "errors", "records", "settings", "gate", "gatefile", "judge", "novelty", "calibration"),
            *("outcome", "scanning", "store", "summary"),
        },
        {"pyarrow"},
    ),
    "finding": ({"config", "errors", "images", "progress", "store"}, set()),
    "watch": ({"config", "errors", "images", "records"}, set()),
    "judge": ({"degenerate", "gate", "gatefile", "novelty", "records", "scoring"}, set()),
    "settings": ({"answers", "shards", "calibration", "config", "errors", "gatefile"}, set()),
    "__main__": ({"cli"}, set()),
    "cli": (EVERYTHING, {"typer", "rich"}),
    "config": ({"errors", "answers", "shards"}, set()),
    "shards": ({"errors", "images"}, set()),
    "asking": ({"adaptive", "captioner", "config", "entries", "errors", "novelty", "records"}, set()),
    "cluster": (
        {
            *("asking", "captioner", "cluster", "config", "entries", "errors", "images", "journal", "records"),
            "reference",
            *("progress", "signals"),
        },
        {"ray"},
    ),
    "merge": ({"adaptive", "records", "errors", "gate", "images", "rescore", "shards", "store", "tonight"}, set()),
    "errors": (set(), set()),
    "records": (set(), {"PIL"}),
    "images": ({"records", "errors", "config", "images"}, PIXELS),
    "captioner": (
        {"records", "errors", "config", "captioner", "builtin", "answers"},
        {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors", "tokenizers", "openai"},
    ),
    "diversity": ({"records", "errors", "words"}, {"numpy"}),
    "words": (set(), set()),
    "answers": ({"degenerate", "words"}, set()),
    "degenerate": ({"records"}, set()),
    "novelty": ({"errors"}, {"numpy"}),
    "gate": ({"records", "errors"}, set()),
    "store": ({"records", "errors"}, {"pyarrow", "numpy"}),
    "entries": ({"records"}, set()),
    "shelf": ({"errors"}, set()),
    "journal": ({"records", "entries", "errors", "shelf", "store"}, set()),
    "kernels": ({"errors", "diversity", "encoders"}, set()),
    "encoders": ({"errors", "diversity", "captioner"}, {"numpy", "torch", "transformers"}),
    "scoring": ({"records", "answers", "degenerate", "diversity", "kernels"}, set()),
    "rows": (
        {"entries", "errors", "records", "images", "gate", "journal", "kernels", "novelty", "scoring", "shelf"},
        set(),
    ),
    "outcome": ({"entries", "errors", "gate", "records", "rows", "store"}, set()),
    "rescore": ({"records", "errors", "gate", "kernels", "scoring", "store"}, set()),
    "terminal": ({"errors", "text"}, {"typer", "rich"}),
    "reference": ({"records", "errors", "config", "images", "captioner", "novelty"}, set()),
    "progress": ({"records", "errors", "config", "gate"}, set()),
    "signals": (set(), set()),
    "preflight": ({"captioner", "config", "errors", "images", "store"}, {"filelock"}),
    "pending": ({"entries", "images", "journal", "records"}, set()),
    "urn": ({"diversity"}, {"numpy"}),
    "adaptive": ({"config", "entries", "records", "errors", "diversity", "gate", "novelty", "scoring", "urn"}, set()),
    "supply": ({"asking", "records", "config", "entries", "images", "captioner"}, set()),
    "recorder": ({"records", "entries", "journal", "scoring", "shelf"}, set()),
    "spent": ({"captioner", "recorder", "records"}, set()),
    "text": (set(), set()),
    "logfile": ({"errors", "text"}, set()),
    "drift": (set(), {"numpy", "scipy"}),
    "gatefile": ({"config", "drift", "errors", "gate", "text"}, set()),
    "tonight": (
        {"builtin", "config", "drift", "errors", "gate", "gatefile", "novelty", "records", "reference"},
        {"numpy"},
    ),
    "scanning": (
        {
            *("records", "errors", "config", "images", "captioner", "gate", "tonight", "finding", "watch"),
            *("asking", "cluster", "pending", "shards"),
            *(
                "entries",
                "outcome",
                "shelf",
                "store",
                "journal",
                "kernels",
                "novelty",
                "reference",
                "rows",
                "logfile",
                "progress",
                "signals",
            ),
            *("adaptive", "preflight", "recorder", "scoring", "spent", "supply"),
        },
        set(),
    ),
    "calibration": (
        {
            *(
                "calibration",
                "records",
                "errors",
                "export",
                "config",
                "answers",
                "captioner",
                "drift",
                "gate",
                "gatefile",
                "images",
            ),
            *("kernels", "novelty", "outcome", "progress", "report", "rescore", "scanning", "scoring", "store"),
            "text",
        },
        {"numpy", "scipy", "rich", "jinja2", "markupsafe", "matplotlib", "openpyxl", "pyarrow"},
    ),
    "comparison": (
        {
            *("captioner", "calibration", "comparison", "config", "errors", "progress"),
            *("outcome", "report", "scanning", "store", "text"),
        },
        {"numpy", "rich"},
    ),
    "report": ({"records", "config", "gate", "words", "text"}, {"rich"}),
    "summary": ({"records", "config", "store", "gate", "report", "words", "text"}, {"rich"}),
    "review": (
        {
            *("records", "errors", "config", "gate", "images", "words", "text", "store", "report", "summary"),
            "review",
        },
        {"PIL", "jinja2", "markupsafe", "filelock"},
    ),
    "export": (
        {"export", "records", "errors", "config", "images", "store", "text"},
        {"pyarrow", "xlsxwriter", "openpyxl", "PIL"},
    ),
    "builtin": ({"builtin", "config"}, PIXELS),
    "builtin.checkpoint": ({"builtin", "answers"}, {"torch", "transformers", "tokenizers"}),
    "builtin.questions": ({"builtin", "answers"}, {"numpy"}),
    "builtin.dataset": ({"builtin"}, {"torch", "numpy"}),
    "builtin.objectives": ({"builtin"}, {"torch", "numpy"}),
    "builtin.muon": (set(), {"torch"}),
    "builtin.train": ({"builtin"}, {"torch", "numpy", "rich"}),
    "builtin.measure": (
        {"builtin", "config", "records", "captioner", "answers", "gate", "images", "novelty", "scoring"},
        PIXELS,
    ),
    "builtin.evaluate": ({"builtin", "config", "records", "gate", "novelty"}, {"numpy", "rich"}),
    "builtin.reference": ({"builtin", "novelty"}, set()),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """Return (modules of vlmgate, third-party packages) that a file imports anywhere."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "vlmgate":
                names = [f"vlmgate.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "vlmgate":
                ours |= {rest.split(".")[0]} if rest else set()
            elif head not in sys.stdlib_module_names:
                others.add(head)
    return ours, others


def room_of(path: Path) -> tuple[set[str], set[str]]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    dotted = ".".join(parts)
    return HOUSE.get(dotted) or HOUSE[parts[0]]


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_match_the_table(path: Path) -> None:
    ours, others = imports_of(path)
    may_ours, may_others = room_of(path)
    if may_ours != EVERYTHING:
        assert ours - {"__version__"} <= may_ours, f"{path.name} imports {ours - may_ours} from vlmgate"
    assert others <= may_others, f"{path.name} imports {others - may_others}"


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    heavy = ("torch", "transformers", "pyarrow", "matplotlib", "numpy", "PIL")
    code = f"import sys, vlmgate.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    assert all(hasattr(vlmgate, name) for name in vlmgate.__all__)


def test_no_module_has_outgrown_its_room() -> None:
    long = {p.name: n for p in modules() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 450}
    assert not long
