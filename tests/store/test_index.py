"""What an index holds is what was put there, in order, and takes no memory of the run."""

from __future__ import annotations

import gc
import os
import sqlite3
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.test_journal_and_result import FINGERPRINT, told
from tests.support.fakes import DISAGREE
from vlmgate.data import (
    Caption,
    Failure,
    Found,
    ImageFile,
    Read,
    Reading,
    Reason,
    Record,
    Route,
    Unreadable,
    content_of,
)
from vlmgate.errors import StoreError
from vlmgate.gate.rules import decide_rows
from vlmgate.images import find_images
from vlmgate.run.writer import Recorder
from vlmgate.scores.novelty import pack
from vlmgate.store import index
from vlmgate.store.index import Index, Table
from vlmgate.store.journal import Journal
from vlmgate.store.lines import found_as_text, found_of_text
from vlmgate.store.result import read_result, write_result
from vlmgate.store.rows import build_rows, completed

PROMPTED = FINGERPRINT | {"choices": [], "num_samples": 4, "seed": 5}


Kept = Table[tuple[str, int], int]


def table(decode: Callable[[str], int] = int) -> Kept:
    return Table(Index(), "kept", 2, str, decode)


def test_a_table_is_a_mapping_in_the_order_of_its_keys() -> None:
    kept = table()
    assert not kept and len(kept) == 0 and [*kept] == [] and not [*kept.under("a")]
    slots = [("b", 1), ("a/b", 1), ("a", 10), ("a", 2), ("ä\n'; DROP TABLE kept", 1), ("😀", 1), ("\uffff", 1)]
    for value, slot in enumerate(slots):
        kept[slot] = value
    assert [*kept] == sorted(slots) and len(kept) == 7 and kept
    assert kept["a", 10] == 2 and ("a", 3) not in kept and "a" not in kept
    assert [*kept.under("a")] == [(2, 3), (10, 2)] and [*kept.names()] == sorted({name for name, _ in slots})
    kept["a", 2] = 7
    assert kept.pop(("a", 2)) == 7 and kept.get(("a", 2)) is None
    for missing in (lambda: kept["a", 2], lambda: kept.pop(("a", 2))):
        with pytest.raises(KeyError):
            missing()


def test_what_is_under_a_name_comes_one_by_one() -> None:
    decoded = []
    kept = table(lambda text: (decoded.append(text), int(text))[1])
    for i in range(2500):  # more than are fetched at once
        kept["x", i - 1] = i
    assert next(kept.under("x")) == (-1, 0) and decoded == ["0"]
    assert [v for _, v in kept.under("x")] == [*range(2500)] and [*kept.under("y")] == []


def test_a_table_may_be_written_to_while_it_is_read() -> None:
    kept = table()
    for i in range(2500):  # more than are fetched at once
        kept["x", i] = i
    seen = []
    for slot in kept:
        seen.append(slot)
        del kept[slot]
    assert seen == [("x", i) for i in range(2500)] and not kept


def test_threads_share_a_table() -> None:
    kept, names = table(), "abcd"

    def put(name: str) -> None:
        for i in range(300):
            kept[name, i] = i
            assert kept[name, i] == i

    threads = [threading.Thread(target=put, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 1200 and all(dict(kept.under(name)) == {i: i for i in range(300)} for name in names)


def fill(kept: Kept, first: int, last: int) -> None:
    for i in range(first, last):
        kept["name " * 20, i] = i


def test_where_the_room_ends_a_table_goes_on_in_memory() -> None:
    """The folder for temporary files fills up in the middle of a night: nothing that was kept is lost."""
    kept = table()
    fill(kept, 0, 5000)
    pages = kept.index.run("PRAGMA page_count")[0][0]
    kept.index.run(f"PRAGMA max_page_count = {pages}")
    fill(kept, 5000, 10_000)
    assert dict(kept.under("name " * 20)) == {i: i for i in range(10_000)}
    assert kept.index._in_memory


def test_a_table_whose_file_is_lost_never_passes_for_one_that_holds_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Index) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Index, "_move", fails)
    kept = table()
    fill(kept, 0, 100)
    kept.index.run("PRAGMA max_page_count = 3")
    told = r"folder for temporary files cannot be used.*disk I/O error.*the same command resumes"
    with pytest.raises(StoreError, match=told):
        fill(kept, 100, 10_000)
    for use in (lambda: kept.get(("name " * 20, 1)), lambda: ("a", 1) in kept, lambda: [*kept], lambda: bool(kept)):
        with pytest.raises(StoreError, match=told):
            use()


@pytest.mark.skipif(os.name != "posix", reason="files of a limited size are of POSIX")
def test_a_disk_that_is_full_in_the_midst_of_a_write_costs_nothing() -> None:
    """What lies in the file must be readable after a write for which there was no room."""
    import resource

    kept = table()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, usual[1]))
    try:
        fill(kept, 0, 40_000)  # several megabytes, more than are kept in memory
        assert kept.index._in_memory
        assert dict(kept.under("name " * 20)) == {i: i for i in range(40_000)}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_folder_for_temporary_files_that_cannot_hold_an_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A network disk without locks, say: the index is in memory."""
    monkeypatch.setattr("vlmgate.store.index._new_file", lambda: str(tmp_path / "no such folder" / "x"))
    kept = table()
    kept["a", 1] = 1
    assert dict(kept.under("a")) == {1: 1} and kept.index._in_memory


@pytest.mark.parametrize("trouble", ["no room", "no folder"])
def test_without_room_an_index_is_in_memory(trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if trouble == "no room":
        monkeypatch.setattr("vlmgate.store.index.ROOM", 2**80)
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    kept = table()
    kept["a", 1] = 1
    assert [row[2] for row in kept.index.run("PRAGMA database_list")] == [""] and dict(kept.under("a")) == {1: 1}


@pytest.mark.skipif(os.name != "posix", reason="elsewhere an open file keeps its name")
def test_the_file_of_an_index_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = table()
    for i in range(40_000):  # more than are kept in memory
        kept["name " * 20, i] = i
    assert not [*tmp_path.iterdir()] and kept["name " * 20, 39_999] == 39_999 and not kept.index._in_memory
    (path,) = [row[2] for row in kept.index.run("PRAGMA database_list")]
    assert path.startswith(str(tmp_path))


def test_a_round_knows_what_was_read_and_what_is_under_way_and_copies_neither(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "r.journal.jsonl", PROMPTED)
    for i in range(3):
        journal.append([reading(i)], 0.1)
    contents = [content_of(reading(i).image) for i in range(5)]
    seen = journal.seen()
    for content in contents[2:4]:
        seen.add(content)
        seen.add(content)
    assert [content in seen for content in contents] == [True, True, True, True, False]
    assert len(seen) == 4 and [*seen] == contents[:4] and ("a", 1) not in seen
    journal.append([reading(4)], 0.1)
    assert contents[4] in seen and not journal.index.run("SELECT * FROM rounds WHERE k0 = ?", (contents[4][0],))
    later = journal.seen()
    assert [content in later for content in contents] == [True, True, True, False, True], "what failed is tried again"
    later.add(contents[3])
    later.discard(contents[3])
    later.discard(contents[3])
    assert contents[3] not in later
    journal.close()


def test_one_file_holds_all_that_a_run_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str | None] = []
    opened = index._opened
    monkeypatch.setattr(index, "_opened", lambda file: (made.append(file), opened(file))[1])
    journal = Journal.open(tmp_path / "r.journal.jsonl", PROMPTED)
    recorder = Recorder(journal, None)
    build_rows(find_images(folder_of(tmp_path, ["a.png"])), journal, scored_before=recorder.scored)
    journal.seen().add(("a", 1, ""))
    journal.close()
    assert len(made) == 1


def picture(name: str, sha: str = "0" * 64) -> ImageFile:
    return ImageFile(name, Path("/images") / name, sha, 1, 2, 8, 6, "RGB", "EXIF 3", 100, 5, 7)


@pytest.mark.parametrize(
    "found",
    [
        Read(picture("a\n.png"), 0.25),
        Read(picture("\udcff.png")),
        Failure(picture("b.png"), 'boom "\x00'),
        Unreadable("c.png", "truncated", 3),
    ],
)
def test_what_is_remembered_comes_back(found: Found) -> None:
    assert found_of_text(found_as_text(found)) == found


def reading(i: int, texts: tuple[str, ...] = (DISAGREE * 2)[:4]) -> Reading:
    captions = tuple(Caption(text, "stop", -0.5, 9) for text in texts)
    return Reading(picture(f"{i:05}.png", f"{i:064x}"), captions, features=pack([0.5] * 384))


def test_a_page_costs_as_much_as_the_pages_before_it(tmp_path: Path) -> None:
    """A file of ten thousand pages is journalled in seconds, not in minutes: few other pages are looked at."""
    journal, looked = Journal.open(tmp_path / "r.journal.jsonl", PROMPTED), []
    decode = journal._found._decode
    journal._found._decode = lambda text: (looked.append(text), decode(text))[1]
    said = reading(1)
    pages = [replace(said, image=replace(said.image, page=page, num_pages=200)) for page in range(1, 201)]
    for page in pages:
        journal.append([page], 0.1)
    journal.close()
    assert len(looked) < 2 * len(pages) and len(journal.entries_of(said.image.file_name)) == 200


def test_what_was_read_stays_in_the_file(tmp_path: Path) -> None:
    """Python's own memory grows by less than the bytes of a file name for each image; before, it was four thousand."""
    journal = Journal.open(tmp_path / "r.journal.jsonl", PROMPTED)
    for i in range(100):
        journal.append([reading(i)], 0.1)
    tracemalloc.start()
    try:
        for i in range(100, 600):
            journal.append([reading(i)], 0.1)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown / 500 < 50  # bytes
    assert journal.readings[f"{333:064x}", 1, ""] == reading(333) and len(journal.readings) == 600
    journal.close()
    assert journal.readings[f"{334:064x}", 1, ""] == reading(334), "even after it was closed"


def folder_of(tmp_path: Path, names: list[str]) -> Path:
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"any")
    return tmp_path / "in"


def test_a_reading_that_was_damaged_meanwhile_is_accepted_by_nobody(tmp_path: Path) -> None:
    from vlmgate.gate.rules import make_gate

    walk = find_images(folder_of(tmp_path, [f"{i:05}.png" for i in range(3)]))
    journal = Journal.open(tmp_path / "r.journal.jsonl", PROMPTED)
    same = ("a dent in the rim",) * 4
    journal.append([reading(i, same) for i in range(3)], 0.1)
    records = decide_rows(build_rows(walk, journal), make_gate(num_samples=4, threshold=2.0))
    assert [r.route for r in records] == [Route.AUTO_ACCEPT] * 3
    assert [(r.captions, r.num_samples, r.seed) for r in records] == [(None, 4, 5)] * 3
    data = journal.path.read_bytes()
    journal.path.write_bytes(data.replace(f"{1:064x}".encode(), b"f" * 64))
    assert [content[0] for content, _ in journal.readings.items()] == [f"{i:064x}" for i in (0, 2)]
    whole: list[Record] = [*completed(records, journal.readings)]
    assert [r.route for r in whole] == [Route.AUTO_ACCEPT, Route.HUMAN_REVIEW, Route.AUTO_ACCEPT]
    assert (whole[1].reason, whole[1].captions, whole[1].vendi_score) == (Reason.NOT_READ, None, None)
    assert whole[0].captions == same and whole[0].vision_features == pack([0.5] * 384)
    assert [r.route for r in decide_rows(build_rows(walk, journal), make_gate(num_samples=4, threshold=2.0))] == [
        r.route for r in whole
    ]
    journal.close()


def test_a_copy_of_what_the_model_failed_on_has_failed_too(tmp_path: Path) -> None:
    from vlmgate.data import Duplicate

    walk = find_images(folder_of(tmp_path, ["a.png", "b.png"]))
    journal = Journal.open(tmp_path / "r.journal.jsonl", PROMPTED)
    journal.append([Failure(picture("b.png"), "boom"), Duplicate(picture("a.png"))])
    rows = build_rows(walk, journal)
    assert [(row.reason, row.record.error, row.record.duplicate_of) for row in rows] == [
        (Reason.MODEL_FAILED, "boom", None),
        (Reason.MODEL_FAILED, "boom", "a.png"),
    ]
    journal.close()


def test_a_result_of_several_row_groups_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.store.test_journal_and_result import record
    from vlmgate.store import result as store

    monkeypatch.setattr(store, "_ROWS", 2)
    rows = [record(f"{i}", captions=("x",) if i % 2 else None, vision_features=pack([float(i)])) for i in range(5)]
    path = tmp_path / "r.parquet"
    write_result(path, iter(rows), told("1"), 2)
    assert read_result(path) == (rows, {"schema_version": 1, "readings": 2} | told("1"))
    write_result(path, [], told("1"))
    assert read_result(path)[0] == [] and (tmp_path / "r.old.parquet").exists()
