"""What commit c310165 wrote is read: its journal goes on without a model, its result has nulls where it says nothing.

`data/version_1.jsonl` and `data/version_1.pq` are the journal and the result of one scan of seven small files by that
commit, with a question and two views; the model failed on d.bmp, f.bmp is no image, c.bmp is a copy of a.bmp.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.fakes import FakeCaptioner, SilentProgress, config_for
from vlmgate.captioner.location import model_fingerprint
from vlmgate.config import ScanConfig
from vlmgate.data import Record
from vlmgate.errors import OutputError, ResumeError
from vlmgate.run.loop import scan
from vlmgate.store.journal import Journal
from vlmgate.store.lines import question_id
from vlmgate.store.result import read_result

DATA = Path(__file__).parent / "data"
COLOURS = {"a": "red", "b": "green", "c": "red", "d": "blue", "e": "white", "g": "black"}
READ = ("a.bmp", "b.bmp", "c.bmp", "e.bmp", "g.bmp")


@pytest.fixture
def old(tmp_path: Path) -> ScanConfig:
    """The folder that was scanned, and its journal of version 1."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 6), colour).save(folder / f"{name}.bmp")
    (folder / "f.bmp").write_bytes(b"BM none")
    config = config_for(folder, tmp_path / "r.parquet", batch_size=2)
    asked = replace(config.sampling, question="Which?", choices=("dent", "crack"), views=2)
    header, *lines = (DATA / "version_1.jsonl").read_bytes().splitlines(keepends=True)
    told = json.loads(header)  # all else is as today, or the scan below is refused
    told["fingerprint"] |= {"folder": str(folder), "checkpoint.content": model_fingerprint(config.model)["content"]}
    (tmp_path / "r.journal.jsonl").write_bytes(json.dumps(told).encode() + b"\n" + b"".join(lines))
    as_then: dict[str, Any] = {"kernel": "words", "score": "vendi_score", "threshold": 1.25}
    return replace(config, sampling=asked, limits=("answer_share >= 0.75",), **as_then)


def fingerprint_of(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_bytes().splitlines()[0])["fingerprint"]
    return found


def compared(records: list[Record]) -> list[Record]:
    new = ("caption_tokens", "answer_tokens", "answer_probability", "support", "verdict_share", "contradiction")
    return [replace(record, **dict.fromkeys(new)) for record in records]


def test_a_journal_of_version_1_goes_on_without_reading_again(old: ScanConfig) -> None:
    fake = FakeCaptioner()
    run_id = json.loads((old.out.parent / "r.journal.jsonl").read_bytes().splitlines()[0])["run_id"]
    for _ in range(2):  # the second time it is of version 2
        result = scan(old, SilentProgress(), load=fake.load)
        assert result.error is None and {*fake.read_names} <= {"d.bmp"}, "only what the model had failed on"
        assert json.loads((old.out.parent / "r.journal.jsonl").read_bytes().splitlines()[0])["vlmgate_journal"] == 2
    rows, provenance = read_result(old.out)
    before, _ = read_result(DATA / "version_1.pq")
    assert [r for r in compared(rows) if r.file_name in READ] == [r for r in before if r.file_name in READ]
    assert rows[0].caption_tokens == (6,) * 4 and rows[0].answer_tokens == (2,) * 4
    assert rows[0].answer_probability == 0.553265, "of two views; the journal has the token counts"
    assert rows[5].reason == "unreadable" and rows[5].caption_tokens is None and provenance["run_id"] == run_id


def test_a_result_of_before_there_were_token_counts_is_read(tmp_path: Path) -> None:
    rows, provenance = read_result(DATA / "version_1.pq")
    assert [r.file_name for r in rows] == [f"{name}.bmp" for name in "abcdefg"] and provenance["readings"] == 5
    assert {(r.caption_tokens, r.answer_tokens) for r in rows} == {(None, None)}
    assert rows[0].captions == ("a dent in the rim",) * 4 and rows[0].vision_features is not None


def test_a_torn_or_damaged_journal_of_version_1_loses_what_is_hit_and_no_more(old: ScanConfig) -> None:
    path = old.out.parent / "r.journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"dent", b"bent", 1)  # b.bmp
    path.write_bytes(b"".join(lines)[:-9])  # f.bmp, which is no image
    journal = Journal.open(path, fingerprint_of(path))
    assert journal.dropped == 2 and len(journal.readings) == 3
    assert [*journal.file_names()] == ["a.bmp", "c.bmp", "d.bmp", "e.bmp", "g.bmp"]
    journal.close()
    again = Journal.open(path, fingerprint_of(path))
    assert again.dropped == 0 and len(again.readings) == 3 and again.run_id == journal.run_id
    again.close()
    kept = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert {*kept[2]["answers"]} == {question_id("Which?")}


@pytest.mark.parametrize("at", ["write", "replace"])
def test_stopped_while_it_is_rewritten_the_old_journal_is_as_it_was(
    old: ScanConfig, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old.out.parent / "r.journal.jsonl"
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync" if at == "write" else "replace", full)
        with pytest.raises(OutputError, match="No space left"):
            Journal.open(path, fingerprint_of(path))
    assert path.read_bytes() == before and not [*path.parent.glob(".vlmgate.*")]
    journal = Journal.open(path, fingerprint_of(path))
    assert len(journal.readings) == 4
    journal.close()


def test_a_journal_of_version_1_with_other_settings_is_refused_and_left_as_it_is(old: ScanConfig) -> None:
    path = old.out.parent / "r.journal.jsonl"
    before = path.read_bytes()
    with pytest.raises(ResumeError, match="num_samples"):
        Journal.open(path, fingerprint_of(path) | {"num_samples": 8})
    assert path.read_bytes() == before
    journal = Journal.open(path, fingerprint_of(path) | {"num_samples": 8}, restart=True)
    assert not journal.readings and (path.parent / "r.journal.old.jsonl").read_bytes() == before
    journal.close()
