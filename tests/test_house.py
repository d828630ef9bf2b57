"""The house stays as it was drawn: rooms in one order, imports only downwards, no circles, cheap bare imports.

A room is a folder or a file directly in vlmgate/. It may import from the rooms below it in `ROOMS` and from itself.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vlmgate

PACKAGE = Path(vlmgate.__file__).parent
MOST_ROOMS, MOST_FLOORS, MOST_LINES = 18, 12, 450

# From the top down, each with the packages that it may import besides the standard library and the rooms below.
ROOMS: dict[str, set[str]] = {
    "__main__": set(),
    "cli": {"typer", "rich"},
    "factory": {"numpy", "PIL", "torch", "transformers", "tokenizers", "rich"},  # in no wheel: nothing may import it
    "__init__": set(),  # the public names
    "api": {"pyarrow"},
    "calibration": {"numpy", "scipy", "rich", "jinja2", "markupsafe", "matplotlib", "openpyxl", "pyarrow"},
    "review": {"PIL", "jinja2", "markupsafe"},
    "export": {"pyarrow", "xlsxwriter", "openpyxl", "PIL"},
    "report": {"typer", "rich"},
    "run": {"ray"},
    "store": {"pyarrow", "numpy", "filelock"},
    "gate": {"numpy", "scipy"},
    "scores": {"numpy", "torch", "transformers"},
    "captioner": {
        *("torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors", "tokenizers", "openai"),
    },
    "images": {"PIL", "numpy", "simplejpeg", "tifffile", "imagecodecs", "pillow_heif", "pydicom", "rawpy"},
    "manual": set(),
    "config": set(),
    "data": {"PIL"},
    "errors": set(),
    "version": set(),
}
ORDER = list(ROOMS)


def files() -> dict[str, Path]:
    """Return every file of the package by its dotted name, without the leading `vlmgate.`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """Return (files of vlmgate, other packages) that a file imports anywhere, inside of functions too."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "vlmgate":
                while rest not in FILES and "." in rest:
                    rest = rest.rpartition(".")[0]
                ours.add(rest if rest in FILES else "__init__")
            elif head not in sys.stdlib_module_names:
                others.add(head)
    return ours, others


def room_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", FILES)
def test_imports_go_downwards(name: str) -> None:
    ours, others = imports_of(FILES[name])
    room = room_of(name)
    upwards = {one for one in ours if ORDER.index(room_of(one)) < ORDER.index(room)}
    assert not upwards, f"{name} stands below {upwards}"
    assert others <= ROOMS[room], f"{name} imports {others - ROOMS[room]}"


def test_what_is_not_in_the_wheel_is_imported_by_nothing_in_it() -> None:
    assert not {
        name
        for name in FILES
        if room_of(name) != "factory" and any(room_of(one) == "factory" for one in imports_of(FILES[name])[0])
    }


def test_there_are_no_circles_among_files() -> None:
    try:
        list(TopologicalSorter({name: imports_of(path)[0] - {name} for name, path in FILES.items()}).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_house_is_small() -> None:
    rooms = {room_of(name) for name in FILES} - {"__init__", "__main__"}
    assert rooms <= set(ORDER) and len(rooms) <= MOST_ROOMS
    floors = dict.fromkeys(ORDER, 1)
    for room in reversed(ORDER):
        for name, path in FILES.items():
            if room_of(name) == room:
                below = {room_of(one) for one in imports_of(path)[0]} - {room}
                floors[room] = max([floors[room], *(floors[one] + 1 for one in below)])
    assert max(floors[room] for room in rooms) <= MOST_FLOORS


def test_no_file_has_outgrown_its_room() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: number for name, number in lines.items() if number > MOST_LINES}


def test_every_room_says_what_it_is_for() -> None:
    silent = [name for name in FILES if "." not in name and not ast.get_docstring(ast.parse(FILES[name].read_text()))]
    assert silent in ([], ["__main__"])


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    heavy = ("torch", "transformers", "pyarrow", "matplotlib", "numpy", "PIL")
    code = f"import sys, vlmgate.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    assert all(hasattr(vlmgate, name) for name in vlmgate.__all__)
