"""What a second run makes of the first: files that changed, moved, came or went, and settings that did."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from vlmgate.config import ImageConfig, ModelConfig, SamplingConfig, ScanConfig, fingerprint
from vlmgate.data import Caption, Picture, Reason, Route, Sampled
from vlmgate.errors import ModelError, ResumeError
from vlmgate.gate.run_gate import drift_of
from vlmgate.images import Walk
from vlmgate.images.find import Sources
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult
from vlmgate.run.resume import gone
from vlmgate.store.journal import Journal
from vlmgate.store.lines import sealed
from vlmgate.store.result import read_result

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
PAGES = ImageConfig(pages="all")


def run(config: ScanConfig, fake: FakeCaptioner) -> ScanResult:
    return scan(config, SilentProgress(), load=fake.load)


def stack(path: Path, pages: int, seed: int = 0) -> Path:
    """Write a TIFF of several pages, no two alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(pages)]
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


class Stopping(FakeCaptioner):
    """Asks this process to end after a number of batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        sampled = super().read(pictures)
        if len(self.history) == self.batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return sampled


def test_a_file_in_the_place_of_another_of_its_size_and_time_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in (("a.bmp", "red"), ("b.bmp", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / name)
        os.utime(folder / name, (315532800, 315532800))
    config = config_for(folder, tmp_path / "r.parquet")
    run(config, FakeCaptioner())
    other = tmp_path / "other.bmp"
    Image.new("RGB", (8, 8), "green").save(other)
    os.utime(other, (315532800, 315532800))
    other.replace(folder / "a.bmp")
    fake = FakeCaptioner(lambda _: DISAGREE)
    result = run(config, fake)
    assert fake.read_names == ["a.bmp"]
    assert [r.route for r in result.records] == [Route.HUMAN_REVIEW, Route.AUTO_ACCEPT]


def test_touched_moved_and_copied_files_cost_no_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png", "c.png")
    config = config_for(folder, tmp_path / "r.parquet")
    run(config, FakeCaptioner())
    os.utime(folder / "a.png", (1, 1))
    (folder / "b.png").rename(folder / "moved.png")
    (folder / "copy.png").write_bytes((folder / "c.png").read_bytes())
    fake = FakeCaptioner()
    result = run(config, fake)
    assert not fake.history and result.provenance["complete"]
    assert [r.file_name for r in result.records] == ["a.png", "c.png", "copy.png", "moved.png"]
    assert all(r.reason == Reason.AGREED for r in result.records)


def test_a_duplicate_outlives_the_change_of_its_original(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    config = config_for(folder, tmp_path / "r.parquet")
    run(config, FakeCaptioner())
    picture_file(folder / "a.png", salt="changed")
    fake = FakeCaptioner()
    result = run(config, fake)
    assert fake.read_names == ["a.png"]
    assert result.provenance["complete"] and all(r.reason == Reason.AGREED for r in result.records)


def test_a_new_limit_needs_no_model_even_where_a_file_cannot_be_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:60])
    run(config_for(folder, tmp_path / "r.parquet"), FakeCaptioner())
    fake = FakeCaptioner()
    result = run(config_for(folder, tmp_path / "r.parquet", threshold=4.0), fake)
    assert fake.num_samples == 0, "the model was loaded"
    assert [r.threshold for r in result.records] == [4.0, 4.0, None]


def test_a_stack_stopped_in_its_middle_goes_on_there(tmp_path: Path) -> None:
    stack(tmp_path / "in" / "s.tif", 20)
    config = config_for(tmp_path / "in", tmp_path / "r.parquet", images=PAGES)
    first = run(config, Stopping(3))  # the batch in hand is lost
    second = run(config, Stopping(2))
    counts = [[r.reason for r in result.records].count(Reason.AGREED) for result in (first, second)]
    assert counts[0] < counts[1] and len(first.records) == len(second.records) == 20
    fake = FakeCaptioner()
    result = run(config, fake)
    assert len(fake.read_names) == 20 - counts[1]
    assert all(r.reason == Reason.AGREED for r in result.records)


def test_a_stack_with_a_broken_page_is_not_read_again(tmp_path: Path) -> None:
    path = stack(tmp_path / "in" / "s.tif", 4)
    path.write_bytes(path.read_bytes()[:-40])
    config = config_for(tmp_path / "in", tmp_path / "r.parquet", images=PAGES)
    first = run(config, FakeCaptioner())
    fake = FakeCaptioner()
    second = run(config, fake)
    assert not fake.history and {r.reason for r in first.records} >= {Reason.UNREADABLE}
    assert [(r.page, r.reason) for r in second.records] == [(r.page, r.reason) for r in first.records]


def test_a_stack_that_lost_pages_has_rows_for_those_it_has(tmp_path: Path) -> None:
    path = stack(tmp_path / "in" / "s.tif", 5)
    config = config_for(tmp_path / "in", tmp_path / "r.parquet", images=PAGES)
    run(config, FakeCaptioner())
    stack(path, 3, seed=1)
    for expected in (3, 0, 0):
        fake = FakeCaptioner()
        assert len(run(config, fake).records) == 3 and len(fake.read_names) == expected


@given(st.sets(NAMES), st.sets(NAMES), st.sets(NAMES))
def test_what_is_gone_was_read_and_is_not_there(stays: set[str], goes: set[str], comes: set[str]) -> None:
    walk = Walk(Sources("in", sorted(stays | comes)), (), ())
    journal: Any = SimpleNamespace(file_names=lambda: iter(sorted(stays | goes)))
    assert gone(walk, journal) == sorted(goes - stays - comes)


def test_pages_of_a_file_that_is_gone_do_not_come_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "z.png")
    path = stack(folder / "a.tif", 3)
    config = config_for(folder, tmp_path / "r.parquet", images=PAGES)
    run(config, FakeCaptioner())
    path.write_bytes(b"garbage")
    run(config, FakeCaptioner())
    path = tmp_path / "r.journal.jsonl"
    journal = Journal.open(path, json.loads(path.read_text().splitlines()[0])["fingerprint"])
    assert [*journal.pages_of("a.tif")] == [1] and journal.dropped == 0
    journal.close()


@pytest.mark.parametrize("text", [None, 7])
def test_a_reading_that_is_none_costs_its_image_and_no_more(tmp_path: Path, text: Any) -> None:
    bad = Caption(text, "stop", -0.1, 3)
    config = config_for(folder_of(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "r.parquet")
    result = run(config, FakeCaptioner(lambda name: (bad,) if name == "b.png" else AGREE))
    assert [str(record.reason) for record in result.decided] == ["agreed", "model_failed", "agreed"]


def test_a_stop_before_the_files_were_looked_at_accepts_none_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(folder_of(tmp_path / "in", "a.png", "b.png"), tmp_path / "r.parquet")
    run(config, FakeCaptioner())
    (config.folder / "a.png").write_bytes(b"cut")
    with monkeypatch.context() as patch:
        patch.setattr("vlmgate.run.resume.chosen", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        result = run(config, FakeCaptioner())
    assert [str(record.reason) for record in result.decided] == ["not_read", "agreed"]
    assert result.interrupted == signal.SIGTERM and result.provenance["complete"] is False


def test_a_stop_that_somebody_swallowed_stops_all_the_same(tmp_path: Path) -> None:
    names = [f"{i:02}.png" for i in range(20)]

    def say(name: str) -> Sequence[str]:
        if name == "03.png":
            with suppress(BaseException):  # as a finaliser of a library would
                os.kill(os.getpid(), signal.SIGTERM)
        return AGREE

    config = config_for(folder_of(tmp_path / "in", *names), tmp_path / "r.parquet", batch_size=1)
    fake = FakeCaptioner(say)
    assert run(config, fake).interrupted == signal.SIGTERM
    assert len(fake.read_names) < 6


def test_rows_of_what_cannot_be_read_stand_among_the_others(tmp_path: Path) -> None:
    config = config_for(folder_of(tmp_path / "in", "b.png", "d.png"), tmp_path / "r.parquet")
    for name in ("e.png", "c.png", "a.png"):
        (config.folder / name).symlink_to(tmp_path / "nowhere")
    run(config, FakeCaptioner())
    assert [record.file_name for record in read_result(config.out)[0]] == [f"{c}.png" for c in "abcde"]


def test_what_is_gone_is_told_and_the_larger_result_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "disk2/b.png", "disk2/c.png")
    config = config_for(folder, tmp_path / "r.parquet")
    run(config, FakeCaptioner())
    for name in ("b.png", "c.png"):
        (folder / "disk2" / name).unlink()
    progress = SilentProgress()
    result = scan(config, progress, load=FakeCaptioner().load)
    assert any("2 files that were read before are not in the folder any more" in m for m in progress.messages)
    assert result.provenance["gone"] == 2 and result.provenance["gone_first"] == ["disk2/b.png", "disk2/c.png"]
    assert len(read_result(tmp_path / "r.old.parquet")[0]) == 3


def test_a_first_try_that_read_nothing_binds_nobody(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")

    def load(*_: object) -> FakeCaptioner:
        raise ModelError("no such model")

    with pytest.raises(ModelError):
        scan(config_for(folder, tmp_path / "r.parquet", num_samples=3), SilentProgress(), load=load)
    assert run(config_for(folder, tmp_path / "r.parquet"), FakeCaptioner()).error is None


ASKED: dict[str, object] = {"question": "Is it ok?", "choices": ("ok", "scratch")}
CHANGES: dict[str, object] = {
    "prompt": "What is this?",
    "terms": '[[finding]]\nid = "flow_mark"\nen = ["flow mark"]\n',
    "num_samples": 5,
    "first_samples": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "max_new_tokens": 32,
    "seed": 1,
    "question": "Is it good?",
    "choices": ("ok", "dent"),
    "abstain": False,
    "max_answer_tokens": 8,
    "answers": "drawn",  # exact where nobody says
    "views": 2,
    "view_noise": 10.0,
}


def test_every_sampling_setting_is_tried_below() -> None:
    assert {*CHANGES, "batch_size"} == set(SamplingConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_that_changes_readings_is_refused_on_resume(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    config = config_for(folder, tmp_path / "r.parquet")
    config = replace(config, sampling=replace(config.sampling, **ASKED))
    run(config, FakeCaptioner())
    changed = replace(config, sampling=replace(config.sampling, **{name: CHANGES[name]}))
    with pytest.raises(ResumeError, match=name):
        run(changed, FakeCaptioner())


def test_a_journal_of_before_there_were_questions_still_resumes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    config = config_for(folder, tmp_path / "r.parquet")
    run(config, FakeCaptioner())
    lines = (tmp_path / "r.journal.jsonl").read_bytes().splitlines()
    assert not {"question", "choices", "views"} & set(json.loads(lines[0])["fingerprint"])
    del (reading := json.loads(lines[-1]))["quality"]
    del reading["crc"]
    lines[-1] = sealed(reading).encode()
    (tmp_path / "r.journal.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    fake = FakeCaptioner()
    (row,) = run(config, fake).records
    assert not fake.history and row.reason == Reason.AGREED
    assert row.sharpness is None and row.answers is None and row.vision_features is None
    asked = replace(config, sampling=replace(config.sampling, **ASKED))
    with pytest.raises(ResumeError, match="question"):
        run(asked, FakeCaptioner())


def test_other_weights_pages_or_dtype_are_refused_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vlmgate.run.plan

    folder = folder_of(tmp_path / "in", "a.png")
    config = config_for(folder, tmp_path / "r.parquet")
    run(config, FakeCaptioner())
    for changed in (replace(config, images=PAGES), replace(config, model=ModelConfig(dtype="bfloat16"))):
        with pytest.raises(ResumeError):
            run(changed, FakeCaptioner())
    picture_file(folder / "b.png")
    result = run(config, FakeCaptioner(dtype="bfloat16"))  # "auto" came to something else than before
    assert isinstance(result.error, ResumeError) and "dtype" in str(result.error)
    assert [r.reason for r in result.records] == [Reason.AGREED, Reason.NOT_READ]
    monkeypatch.setattr(vlmgate.run.plan, "model_fingerprint", lambda _: {"content": "other"})
    with pytest.raises(ResumeError, match="checkpoint"):
        run(config, FakeCaptioner())


def test_settings_of_later_versions_leave_old_journals_alone_until_they_are_used(tmp_path: Path) -> None:
    """A fingerprint without them is what a journal holds that was begun before there was a question to ask."""
    config = config_for(tmp_path, tmp_path / "r.parquet")
    plain = fingerprint(config, {})
    assert not {"question", "choices", "abstain", "max_answer_tokens", "views", "view_noise"} & plain.keys()
    for changes in ({"question": "Which?", "choices": ("ok", "dent")}, {"views": 2}, {"view_noise": 10.0}):
        changed = fingerprint(replace(config, sampling=replace(config.sampling, **changes)), {})
        assert changed == plain | changes


class Deaf(SilentProgress):
    """A terminal that was closed."""

    def __init__(self, error: BaseException, deaf_from: str) -> None:
        super().__init__()
        self.error, self.deaf_from = error, deaf_from

    def __getattribute__(self, name: str) -> object:
        if name in ("header", "message", "start", "advance", "stop") and name == self.deaf_from:
            raise self.error
        return super().__getattribute__(name)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "EIO"), SystemExit(1)])
@pytest.mark.parametrize("where", ["header", "message", "start", "advance", "stop"])
def test_a_closed_terminal_ends_nothing(tmp_path: Path, error: BaseException, where: str) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(9)))
    result = scan(config_for(folder, tmp_path / "r.parquet"), Deaf(error, where), load=FakeCaptioner().load)
    assert result.error is None and all(r.reason == Reason.AGREED for r in result.records)
    assert AGREE[0] == result.records[0].caption


def test_a_second_signal_takes_nothing_away(tmp_path: Path) -> None:
    class Impatient(SilentProgress):
        def stop(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(9)))
    result = scan(config_for(folder, tmp_path / "r.parquet"), Impatient(), load=Stopping(1).load)
    assert result.interrupted in (signal.SIGTERM, signal.SIGINT)
    assert len(read_result(tmp_path / "r.parquet")[0]) == 9


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a file that is open keeps its name")
@pytest.mark.parametrize("way", ["removed", "renamed", "replaced"])
def test_a_journal_that_loses_its_name_costs_no_reading(way: str, tmp_path: Path) -> None:
    """Somebody tidies the folder while the run lasts: what was read is in the result all the same."""
    folder, journal = folder_of(tmp_path / "in", *(f"{i:02}.png" for i in range(20))), tmp_path / "r.journal.jsonl"

    class Tidied(FakeCaptioner):
        def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
            if len(self.history) == 1:
                if way == "replaced":
                    (tmp_path / "other").write_bytes(b"something else\n" * 99)
                    (tmp_path / "other").replace(journal)
                else:
                    journal.unlink() if way == "removed" else journal.rename(tmp_path / "mine")
            return super().read(pictures)

    result = run(config_for(folder, tmp_path / "r.parquet"), Tidied())
    rows, provenance = read_result(tmp_path / "r.parquet")
    assert result.error is None and provenance["complete"]
    assert [row.reason for row in rows] == [Reason.AGREED] * 20 and all(row.captions for row in rows)


def test_a_page_that_is_opened_again_keeps_the_time_its_reading_took(tmp_path: Path) -> None:
    """Of a file with a broken page the others are opened again at every run, and are known by then."""
    path = stack(tmp_path / "in" / "a.tif", 3)
    path.write_bytes(path.read_bytes()[:-40])
    config = replace(config_for(path.parent, tmp_path / "r.parquet"), images=PAGES)
    first = run(config, FakeCaptioner())
    assert {r.reason for r in first.records} == {Reason.AGREED, Reason.UNREADABLE}
    for _ in range(2):
        assert [r.seconds for r in run(config, FakeCaptioner()).records] == [r.seconds for r in first.records]
    assert any(r.seconds is not None for r in first.records)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a file that is open cannot be moved away")
def test_a_result_keeps_its_own_captions_when_a_later_run_writes_to_its_place(tmp_path: Path) -> None:
    """They are taken from the journal when they are asked for, and by then another journal may have its name."""
    config = config_for(folder_of(tmp_path / "in", "a.png", "b.png"), tmp_path / "r.parquet")
    first = run(config, FakeCaptioner(lambda _: ["a red part"]))
    later = run(replace(config, restart=True), FakeCaptioner(lambda _: ["a big part"]))  # of the same length
    assert {r.captions[0] for r in later.records if r.captions} == {"a big part"}
    assert [r.captions[0] if r.captions else None for r in first.records] == ["a red part"] * 2


def test_what_is_lost_while_the_result_is_written_counts_as_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is cut off after the decision: no row is left accepted on it, and nothing calls the result whole."""
    folder, journal = folder_of(tmp_path / "in", *(f"{i:02}.png" for i in range(12))), tmp_path / "r.journal.jsonl"
    config, whole = config_for(folder, tmp_path / "r.parquet"), drift_of
    cut: list[int] = []

    def cuts(*told: object) -> None:
        if not cut:
            cut.append(journal.stat().st_size // 2)
            os.truncate(journal, cut[0])
        return whole(*told)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr("vlmgate.run.outcome.drift_of", cuts)
    result = run(config, FakeCaptioner())
    rows, provenance = read_result(tmp_path / "r.parquet")
    reasons = [row.reason for row in rows]
    assert set(reasons) == {Reason.AGREED, Reason.NOT_READ} and [r.reason for r in result.decided] == reasons
    assert not provenance["complete"] and provenance["readings"] == reasons.count(Reason.AGREED)
    assert {r.route for r in rows if r.captions is None} == {Route.HUMAN_REVIEW}
    assert {path.name for path in tmp_path.glob("*.parquet")} == {"r.parquet"}
    again = run(config, FakeCaptioner())
    assert {r.reason for r in again.records} == {Reason.AGREED} and again.provenance["complete"]


class TestCopiedFolders:
    """A folder that was copied or moved needs no model: readings belong to bytes."""

    @pytest.mark.parametrize("how", ["copied", "moved", "renamed within", "grown"])
    def test_all_is_known(self, tmp_path: Path, how: str) -> None:
        folder = folder_of(tmp_path / "in", *(f"{i:02}.png" for i in range(20)))
        out = tmp_path / "r.parquet"
        before = run(config_for(folder, out), FakeCaptioner())
        if how == "moved":
            other = folder.rename(tmp_path / "there")
        else:
            other = Path(shutil.copytree(folder, tmp_path / "there", copy_function=shutil.copyfile))
        if how == "renamed within":
            for path in sorted(other.iterdir()):
                path.rename(other / f"new_{path.name}")
        fake, progress = FakeCaptioner(), SilentProgress()
        if how == "grown":
            folder_of(other, "more.png")
        after = scan(config_for(other, out), progress, load=fake.load)
        assert fake.read_names == (["more.png"] if how == "grown" else [])
        assert after.provenance["run_id"] == before.provenance["run_id"]
        assert after.provenance["folder"] == other.resolve().as_posix()
        assert {row.reason for row in after.records} == {Reason.AGREED} and len(after.records) == 20 + (how == "grown")
        assert any("by their bytes, so its readings are used" in message for message in progress.messages)
        again = FakeCaptioner()
        assert len(run(config_for(other, out), again).records) == len(after.records) and not again.history

    def test_a_file_that_was_changed_in_the_copy_is_read(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png", "b.png", "c.png")
        out = tmp_path / "r.parquet"
        run(config_for(folder, out), FakeCaptioner())
        other = Path(shutil.copytree(folder, tmp_path / "there"))
        picture_file(other / "b.png", salt="changed")
        stamp = (folder / "b.png").stat()
        os.utime(other / "b.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        fake = FakeCaptioner()
        run(config_for(other, out), fake)
        assert fake.read_names == ["b.png"]

    @pytest.mark.parametrize("names", [("x.png", "y.png", "z.png"), ("a.png", "x.png", "y.png")])
    def test_other_images_do_not_take_the_place_of_a_result(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        folder = folder_of(tmp_path / "in", "a.png", "b.png", "c.png")
        out = tmp_path / "r.parquet"
        run(config_for(folder, out), FakeCaptioner())
        other = folder_of(tmp_path / "there", *names)
        if "a.png" in names:
            shutil.copyfile(folder / "a.png", other / "a.png")
        with pytest.raises(ResumeError, match="folder"):
            run(config_for(other, out), FakeCaptioner())

    def test_other_settings_are_still_other_settings(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png")
        out = tmp_path / "r.parquet"
        run(config_for(folder, out), FakeCaptioner())
        other = Path(shutil.copytree(folder, tmp_path / "there"))
        with pytest.raises(ResumeError, match="num_samples"):
            run(config_for(other, out, num_samples=5), FakeCaptioner())
