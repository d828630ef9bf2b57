"""A file is the former one or the new one, on the disk, and nothing else is left in its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmgate.store.result import new_file, unused, write_file


def test_a_file_appears_in_one_step_and_is_forced_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, forced, fsync = tmp_path / "a.txt", [], os.fsync

    def note(descriptor: int) -> None:
        forced.append(path.read_bytes() if path.exists() else None)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert forced == [None, b"one", b"one", b"two"], "its content before it has the name, then the name"


def test_a_write_that_fails_leaves_the_former_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_file(path, b"one")
    with pytest.raises(ZeroDivisionError), new_file(path) as file:
        file.write(b"tw")
        raise ZeroDivisionError
    moved: list[bool] = []

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"two", lambda: moved.append(True))
    assert path.read_bytes() == b"one" and not moved and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_former_file_can_be_moved_away_once_the_new_one_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"one", b"two", b"three"):
        write_file(path, content, lambda: path.exists() and os.replace(path, unused(tmp_path / "a.old.txt")))
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert kept == {"a.txt": b"three", "a.old.txt": b"one", "a.old.1.txt": b"two"}
