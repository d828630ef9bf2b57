"""The journal survives what a night can do to it; the result is whole or absent."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmgate.data import Caption, Duplicate, Failure, Found, ImageFile, Quality, Read, Reading, Record, Unreadable
from vlmgate.errors import OutputError, ResumeError, StoreError
from vlmgate.run.plan import logging_to
from vlmgate.scores.novelty import pack
from vlmgate.store.journal import Journal
from vlmgate.store.lines import question_id, sealed
from vlmgate.store.result import Outputs, opened, read_provenance, read_result, read_table, sync_folder, write_result

FINGERPRINT = {"prompt": "Describe.", "num_samples": 2, "pages": "first"}


def image(name: str, sha: str = "0" * 64, page: int = 1) -> ImageFile:
    return ImageFile(name, Path("/images") / name, sha, page, 1, 8, 6, "RGB", None, 100, 5)


def reading(name: str, *texts: str) -> Reading:
    return Reading(image(name, name * 8), tuple(Caption(t, "stop", -0.5, 3) for t in texts or ("a dent", "a crack")))


def full_reading(name: str) -> Reading:
    return Reading(
        image(name, name * 8),
        captions=(Caption("a dent", "stop", -0.5, 3), Caption("a crack", "stop", -0.7, 3)),
        answers=(Caption("dent", "stop", None, 2), Caption("", "length", -0.25, 16)),
        features=pack([0.5, -1.25, 3.0]),
        views=(0, 1),
        quality=Quality(12.5, 0.4, 0.1, None, 0.0, 0.25),
    )


def told(run_id: str) -> dict[str, object]:
    """Return a provenance with what every reader takes for granted."""
    parts: dict[str, object] = {key: {} for key in ("sampling", "gate", "image_config", "fingerprint")}
    return parts | {"run_id": run_id, "complete": True, "kernel": "words", "folder": "/images"}


def record(name: str, **changes: object) -> Record:
    values: dict[str, object] = {f.name: None for f in dataclasses.fields(Record)}
    values |= {"file_name": name, "page": 1, "route": "human_review", "reason": "disagreed", "seed": 0} | changes
    return Record(**values)  # type: ignore[arg-type]


def written(path: Path) -> Journal:
    journal = Journal.open(path, FINGERPRINT)
    journal.append([reading("a"), reading("b")], 0.5)
    journal.append(
        [reading("c"), Unreadable("d", "truncated"), Duplicate(image("e")), Failure(image("f"), "boom")], 0.5
    )
    journal.close()
    return journal


def test_answers_features_views_and_quality_come_back(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    journal = Journal.open(path, FINGERPRINT)
    journal.append([full_reading("a"), reading("b")], 0.5)
    journal.close()
    assert reopened(path) == {("a", 1): full_reading("a"), ("b", 1): reading("b")}
    line = json.loads(path.read_bytes().splitlines()[2])
    assert not {"answers", "features", "views", "quality"} & set(line), "a reading without them is as before"


@pytest.mark.parametrize("change", [{"answers": ()}, {"views": (0,)}])
def test_a_reading_with_too_few_answers_or_views_is_read_again(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "r.journal.jsonl"
    journal = Journal.open(path, FINGERPRINT)
    journal.append([dataclasses.replace(full_reading("a"), **change)])  # type: ignore[arg-type]
    journal.close()
    assert not reopened(path)


def entries(journal: Journal) -> dict[tuple[str, int], Found | Reading]:
    """Return what is known by name and page; a reading for the image that it was made of."""
    found: dict[tuple[str, int], Found | Reading] = {}
    for name in journal.file_names():
        for entry in journal.entries_of(name):
            page = entry.page if isinstance(entry, Unreadable) else entry.image.page
            own = None if isinstance(entry, Unreadable) else journal.readings.get((entry.image.sha256, page, ""))
            found[name, page] = own if own is not None and own.image.file_name == name else entry
    return found


def reopened(path: Path) -> dict[tuple[str, int], Found | Reading]:
    journal = Journal.open(path, FINGERPRINT)
    known = entries(journal)
    journal.close()
    return known


def test_what_was_appended_comes_back(tmp_path: Path) -> None:
    journal = written(tmp_path / "r.journal.jsonl")
    again = Journal.open(journal.path, FINGERPRINT)
    assert entries(again) == {
        ("a", 1): reading("a"),
        ("b", 1): reading("b"),
        ("c", 1): reading("c"),
        ("d", 1): Unreadable("d", "truncated"),
        ("e", 1): Read(image("e")),
        ("f", 1): Failure(image("f"), "boom"),
    }
    assert again.entries_of("a") == [Read(image("a", "a" * 8), 0.5)]
    assert again.failures() == {("0" * 64, 1, ""): Failure(image("f"), "boom")}
    assert again.run_id == journal.run_id
    again.close()


def test_cut_at_any_byte_the_journal_opens_with_the_images_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    written(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        names = "".join(name for name, _ in reopened(path))
        assert names == "abcdef"[: max(0, sum(end <= length for end in ends) - 1)], length
        assert path.read_bytes().endswith(b"\n")


def paged(name: str, page: int) -> Reading:
    return dataclasses.replace(reading(name), image=image(name, name * 8, page))


def test_the_pages_of_an_image_that_came_together_are_there_together_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    journal = Journal.open(path, FINGERPRINT)
    journal.append([reading("a"), paged("b", 1), reading("c"), paged("b", 2), paged("b", 3)])
    journal.close()
    whole = path.read_bytes()
    pages = {("b", 1), ("b", 2), ("b", 3)}
    assert {*reopened(path)} == pages | {("a", 1), ("c", 1)}
    lines = whole.splitlines(keepends=True)
    for length in range(len(lines[0]), len(whole)):
        path.write_bytes(whole[:length])
        assert not pages & {*reopened(path)} or pages <= {*reopened(path)}, length
    for number in (i for i, line in enumerate(lines) if b'"file_name":"b"' in line):
        path.write_bytes(b"".join([*lines[:number], b"broken\n", *lines[number + 1 :]]))
        assert {*reopened(path)} == {("a", 1), ("c", 1)}
        path.write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))
        assert {*reopened(path)} == {("a", 1), ("c", 1)}, "a line that is gone altogether"


def test_a_resumed_journal_goes_on_after_what_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    written(path)
    path.write_bytes(path.read_bytes()[:-7])
    journal = Journal.open(path, FINGERPRINT)
    assert journal.dropped == 1
    journal.append([reading("g")], 0.1)
    journal.close()
    assert {name for name, _ in reopened(path)} == {"a", "b", "c", "d", "e", "g"}


def test_a_damaged_line_in_the_middle_costs_its_image_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (b"\x00\xff garbage\n", b"[]\n", b"{}\n", b'{"kind":"reading","item":[0,2]}\n'):
        path.write_bytes(b"".join([lines[0], broken, *lines[2:]]))
        assert {name for name, _ in reopened(path)} == {"b", "c", "d", "e", "f"}


def test_a_line_names_the_region_and_keeps_answers_by_their_question(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    asked = FINGERPRINT | {"question": "Which?"}
    journal = Journal.open(path, asked)
    journal.append([full_reading("a")], 0.5)
    journal.close()
    header, line = map(json.loads, path.read_bytes().splitlines())
    assert header["vlmgate_journal"] == 2 and line["region"] == "" and "item" not in line
    assert {key: [one["num_tokens"] for one in said] for key, said in line["answers"].items()} == {
        question_id("Which?"): [2, 16]
    }
    for change in ({"region": "lid"}, {"answers": {question_id("Another?"): line["answers"][question_id("Which?")]}}):
        told = {key: value for key, value in (line | change).items() if key != "crc"}
        path.write_text(json.dumps(header) + "\n" + sealed(told) + "\n")
        journal = Journal.open(path, asked)
        assert not journal.readings and journal.dropped == 1, "what this version does not know is not mistaken"
        journal.close()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    written(path)
    with pytest.raises(ResumeError, match=r"num_samples \(2 then, 4 now\).*--restart"):
        Journal.open(path, FINGERPRINT | {"num_samples": 4})
    journal = Journal.open(path, FINGERPRINT)
    journal.check_model({"dtype": "float32", "device": "cpu"}, ["dtype"])
    journal.check_model({"dtype": "float32", "device": "cuda:0"}, ["dtype"])
    with pytest.raises(ResumeError, match="dtype"):
        journal.check_model({"dtype": "bfloat16", "device": "cpu"}, ["dtype"])
    journal.close()


def test_restart_keeps_the_old_journal(tmp_path: Path) -> None:
    path = tmp_path / "r.journal.jsonl"
    written(path)
    for _ in range(2):
        journal = Journal.open(path, FINGERPRINT | {"num_samples": 4}, restart=True)
        assert not entries(journal) and not journal.readings
        journal.close()
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["r.journal.jsonl", "r.journal.old.1.jsonl", "r.journal.old.jsonl"]


@pytest.mark.parametrize("content", [b"my notes\nmore\n", b"my notes", b'{"vlmgate_journal": 99}\n', b"[1]\n"])
def test_somebody_elses_file_is_never_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(OutputError):
        Journal.open(path, FINGERPRINT)
    assert path.read_bytes() == content


def test_a_result_reads_back_equal_and_unknown_is_null(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = [
        record("a\nb.png", captions=("x", "y"), caption_logprobs=(-0.5, None), caption_finishes=("stop", "length")),
        record("c.png", vendi_score=1.25, threshold=1.5, error="truncated"),
    ]
    path = tmp_path / "r.parquet"
    write_result(path, rows, told("1"))
    assert read_result(path) == (rows, {"schema_version": 1, "readings": 1} | told("1"))
    table = pq.read_table(path)
    assert table["vendi_score"].null_count == 1
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_features_are_lists_of_floats_in_the_file_and_need_not_be_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = [record("a", vision_features=pack([0.5, -1.0])), record("b"), record("c", vision_features=pack([1e9]))]
    path = tmp_path / "r.parquet"
    write_result(path, rows, told("1"))
    assert pq.read_table(path)["vision_features"].to_pylist() == [[0.5, -1.0], None, [65504.0]]
    assert read_result(path)[0] == rows
    assert [r.vision_features for r in read_result(path, features=False)[0]] == [None] * 3


def test_a_result_of_before_there_were_answers_is_read_with_nulls(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "r.parquet"
    write_result(path, [record("a", vendi_score=1.25)], told("1"))
    table = pq.read_table(path)
    later = [
        "caption_tokens",
        "answer_tokens",
        "answers",
        "answer",
        "novelty",
        "sharpness",
        "decided_by",
        "vision_features",
        "caption_views",
    ]
    pq.write_table(table.drop_columns(later), path)
    assert read_result(path)[0] == [record("a", vendi_score=1.25)]


def test_the_result_of_another_run_is_kept_and_that_of_the_same_run_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_result(path, [record("a")], told("1"))
    write_result(path, [record("a"), record("b")], told("1"))
    assert len(read_result(path)[0]) == 2 and len(list(tmp_path.iterdir())) == 1
    write_result(path, [record("z")], told("2"))
    assert read_provenance(tmp_path / "r.old.parquet")["run_id"] == "1"


def test_a_failed_write_leaves_the_former_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "r.parquet"
    write_result(path, [record("a")], told("1"))

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda *_, **__: full())
    with pytest.raises(StoreError, match="No space left"):
        write_result(path, [record("b")], told("1"))
    assert [r.file_name for r in read_result(path)[0]] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_outputs_that_cannot_be_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 of somebody else")
    (tmp_path / "folder.parquet").mkdir()
    for name, words in {
        "r.csv": "must end in .parquet",
        "no/r.parquet": "no such folder",
        "mine.parquet": "no result of vlmgate",
        "folder.parquet": "in the way",
    }.items():
        with pytest.raises(OutputError, match=words):
            Outputs(tmp_path / name).check()


def test_journal_lines_are_one_json_object_each(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "r.journal.jsonl", FINGERPRINT)
    journal.append([reading("line\nbreak\u2028.png", 'quote " and \x00', "é")])
    journal.close()
    lines = journal.path.read_text(encoding="ascii").splitlines()
    assert len(lines) == 2 and json.loads(lines[1])["captions"][0]["text"] == 'quote " and \x00'
    assert reopened(journal.path) == entries(journal) and len(entries(journal)) == 1


def test_a_result_that_was_tampered_with_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_result(path, [record("a")], told("1"))
    table = pq.read_table(path)
    for change, said in (
        (lambda t: t.set_column(t.schema.get_field_index("page"), "page", [["one"]]), "the column page holds string"),
        (lambda t: t.set_column(t.schema.get_field_index("route"), "route", [["home"]]), "route or reason"),
        (lambda t: t.drop_columns(["reason"]), "lacks the column reason"),
        (lambda t: t.replace_schema_metadata({"vlmgate": json.dumps({"schema_version": 1})}), "damaged"),
    ):
        changed = change(table)
        metadata = changed.schema.metadata or table.schema.metadata
        pq.write_table(changed.replace_schema_metadata(metadata), path)
        with pytest.raises(StoreError, match=said) as caught:
            read_result(path)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_result_of_any_name_is_opened_by_arrow_itself(tmp_path: Path) -> None:
    """A file object of Python, read by Arrow's threads, aborts the process now and then as it ends."""
    path = tmp_path / os.fsdecode(b"n\xff\n\xf0\x9f\x98\x80.parquet")
    write_result(path, [record("a")], told("1"))
    with opened(path) as file:
        assert isinstance(file, pa.OSFile)
    assert read_result(path)[0] == [record("a")] and read_table(path).num_rows == 1
    with pytest.raises(StoreError, match="no such file"):
        read_provenance(tmp_path / "none.parquet")
    for odd in (tmp_path, Path(f"{path}\0.parquet")):
        with pytest.raises(StoreError, match="is no result of vlmgate"):
            read_provenance(odd)


def test_two_writers_with_one_process_number_do_not_meet(tmp_path: Path) -> None:
    """As in containers, where every command is process 1, and in threads."""
    rows = {name: record(f"{name}.png") for name in "abcd"}
    failed: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for _ in range(20):
                write_result(tmp_path / f"{name}.parquet", [rows[name]], told(name))
                assert [one.file_name for one in read_result(tmp_path / f"{name}.parquet")[0]] == [f"{name}.png"]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.parquet" for name in rows]


def test_a_disk_that_cannot_force_names_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> None:
        def fsync(_: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    sync_folder(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_a_log_that_cannot_be_closed_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = logging.FileHandler.close

    def full(handler: logging.FileHandler) -> None:
        close(handler)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logging.FileHandler, "close", full)
    with logging_to(tmp_path / "r.log"):
        pass
