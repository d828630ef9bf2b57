"""The line over a folder: nothing missing, nothing accepted that was not read, nothing lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from vlmgate.config import ImageConfig
from vlmgate.data import Caption, ImageFile, Picture, Reason, Record, Route, Sampled
from vlmgate.errors import ModelError, NoImagesError, OutputError, ResumeError
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult
from vlmgate.run.reader import MAX_FAILURES_IN_A_ROW
from vlmgate.scores.diversity import Matrix
from vlmgate.scores.encoders import as_kernel
from vlmgate.store.result import read_result
from vlmgate.store.rows import content_of

NAMES = tuple(f"part_{i:02d}.png" for i in range(10))


def by_name(result: ScanResult) -> dict[str, Record]:
    return {r.file_name: r for r in result.records}


def timeless(path: Path) -> list[Record]:
    return [replace(r, seconds=None) for r in read_result(path)[0]]


def test_a_folder_is_split_and_every_image_has_a_row(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES, "sub/part_00.png")
    fake = FakeCaptioner(lambda name: DISAGREE if name.endswith("3.png") else AGREE)
    progress = SilentProgress()
    result = scan(config_for(folder, tmp_path / "r.parquet"), progress, load=fake.load)
    rows, provenance = read_result(tmp_path / "r.parquet")
    assert rows == list(result.records)
    assert [r.file_name for r in rows] == sorted([*NAMES, "sub/part_00.png"])
    assert {r.file_name for r in rows if r.route == Route.HUMAN_REVIEW} == {"part_03.png"}
    assert by_name(result)["part_03.png"].reason == Reason.DISAGREED
    assert by_name(result)["part_00.png"].caption == AGREE[0]
    assert provenance["complete"] and provenance["model"]["model"] == "builtin"
    assert progress.advanced == len(rows)
    assert [len(batch) for batch in fake.history] == [4, 4, 3]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ((" ",), Reason.EMPTY_CAPTION),
        (("I'm sorry, I can't help with that.",), Reason.REFUSED),
        ((Caption("a steel washer without", "length", -0.1, 8),), Reason.CUT_OFF),
        ((Caption("a steel washer", "non-finite", None, 8),), Reason.NON_FINITE),
        ((*AGREE, *AGREE, *AGREE, ""), Reason.EMPTY_CAPTION),
    ],
)
@pytest.mark.parametrize("gate", [{"threshold": 4.0}, {"review_budget": "0"}])
def test_equal_captions_that_are_no_readings_are_never_accepted(
    tmp_path: Path, said: Sequence[str], reason: Reason, gate: dict[str, object]
) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    fake = FakeCaptioner(lambda _: said)
    (row,) = scan(config_for(folder, tmp_path / "r.parquet", **gate), SilentProgress(), load=fake.load).records
    assert (row.route, row.reason, row.vendi_score) == (Route.HUMAN_REVIEW, reason, None)


def test_what_cannot_be_opened_is_a_row_for_a_person(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    result = scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=FakeCaptioner().load)
    rows = by_name(result)
    assert set(rows) == {"a.png", "b.png", "empty.jpg"}
    for name in ("a.png", "empty.jpg"):
        assert rows[name].route == Route.HUMAN_REVIEW and rows[name].reason == Reason.UNREADABLE and rows[name].error
    assert result.provenance["ignored"] == 1


def test_the_same_command_reads_nothing_twice_and_needs_no_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)
    config = config_for(folder, tmp_path / "r.parquet")
    scan(config, SilentProgress(), load=FakeCaptioner().load)
    first = timeless(tmp_path / "r.parquet")
    again = FakeCaptioner()
    scan(config, SilentProgress(), load=again.load)
    assert not again.history and again.num_samples == 0
    assert timeless(tmp_path / "r.parquet") == first
    picture_file(folder / "part_10.png")
    picture_file(folder / "part_02.png", salt="changed")
    scan(config, SilentProgress(), load=again.load)
    assert again.read_names == ["part_02.png", "part_10.png"]
    (folder / "part_05.png").unlink()
    assert len(scan(config, SilentProgress(), load=again.load).records) == 10


def test_another_limit_needs_no_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)
    fake = FakeCaptioner(lambda name: DISAGREE if name.endswith("3.png") else AGREE)
    scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=fake.load)
    asked = len(fake.history)
    result = scan(config_for(folder, tmp_path / "r.parquet", threshold=4.0), SilentProgress(), load=fake.load)
    assert len(fake.history) == asked
    assert all(r.route == Route.AUTO_ACCEPT for r in result.records)


def test_other_settings_are_refused_and_restart_reads_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)
    scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=FakeCaptioner().load)
    other = config_for(folder, tmp_path / "r.parquet", num_samples=5)
    with pytest.raises(ResumeError, match="num_samples"):
        scan(other, SilentProgress(), load=FakeCaptioner().load)
    fake = FakeCaptioner()
    scan(replace(other, restart=True), SilentProgress(), load=fake.load)
    assert sorted(fake.read_names) == list(NAMES)
    assert (tmp_path / "r.old.parquet").exists() and (tmp_path / "r.journal.old.jsonl").exists()


def test_exact_duplicates_are_read_once_and_share_the_reading(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES[:3])
    for copy in ("part_00_copy.png", "z/part_00.png"):
        (folder / copy).parent.mkdir(exist_ok=True)
        (folder / copy).write_bytes((folder / "part_00.png").read_bytes())
    fake = FakeCaptioner()
    config = config_for(folder, tmp_path / "r.parquet", batch_size=1)
    rows = by_name(scan(config, SilentProgress(), load=fake.load))
    assert fake.read_names == list(NAMES[:3])
    assert {n: r.duplicate_of for n, r in rows.items() if r.duplicate_of} == {
        "part_00_copy.png": "part_00.png",
        "z/part_00.png": "part_00.png",
    }
    assert rows["z/part_00.png"].captions == rows["part_00.png"].captions
    (folder / "part_00.png").unlink()  # the reading outlives the file that it was made of
    rows = by_name(scan(config, SilentProgress(), load=fake.load))
    assert rows["z/part_00.png"].duplicate_of == "part_00_copy.png" and len(fake.read_names) == 3


class _Stopping(FakeCaptioner):
    """Sends this process a signal in the middle of the n-th batch."""

    def __init__(self, signum: int, batch: int) -> None:
        super().__init__()
        self.signum, self.batch = signum, batch

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        if len(self.history) == self.batch:
            os.kill(os.getpid(), self.signum)
        return super().read(pictures)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_result_and_the_same_command_goes_on(tmp_path: Path, signum: int) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)
    config = config_for(folder, tmp_path / "r.parquet")
    stopped = scan(config, SilentProgress(), load=_Stopping(signum, 1).load)
    assert stopped.interrupted == signum
    rows, provenance = read_result(tmp_path / "r.parquet")
    assert [r.file_name for r in rows] == list(NAMES) and provenance["complete"] is False
    assert [r.reason for r in rows].count(Reason.NOT_READ) == 6
    assert all(r.route == Route.HUMAN_REVIEW for r in rows if r.reason == Reason.NOT_READ)
    fake = FakeCaptioner()
    assert scan(config, SilentProgress(), load=fake.load).interrupted is None
    assert fake.history == [list(NAMES[4:8]), list(NAMES[8:])]
    whole = config_for(folder, tmp_path / "whole.parquet")
    scan(whole, SilentProgress(), load=FakeCaptioner().load)
    assert timeless(tmp_path / "r.parquet") == timeless(tmp_path / "whole.parquet")


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = scan(
            config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=_Stopping(signal.SIGHUP, 1).load
        )
        assert result.interrupted is None and result.provenance["complete"]
    finally:
        signal.signal(signal.SIGHUP, former)


class _Picky(FakeCaptioner):
    """Raises whenever one of the named images is in the batch."""

    def __init__(self, *poison: str) -> None:
        super().__init__()
        self.poison = set(poison)

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        if self.poison & {p.file.file_name for p in pictures}:
            raise RuntimeError("height and width must be\nlarger than factor")
        return super().read(pictures)


def test_an_image_that_the_model_cannot_take_costs_nobody_else(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)
    config = config_for(folder, tmp_path / "r.parquet")
    result = scan(config, SilentProgress(), load=_Picky("part_02.png").load)
    rows = by_name(result)
    assert rows["part_02.png"].reason == Reason.MODEL_FAILED and rows["part_02.png"].route == Route.HUMAN_REVIEW
    assert rows["part_02.png"].error == "RuntimeError: height and width must be larger than factor"
    assert sum(r.route == Route.AUTO_ACCEPT for r in result.records) == 9 and result.error is None
    fake = FakeCaptioner()  # tried again the next time
    assert by_name(scan(config, SilentProgress(), load=fake.load))["part_02.png"].reason == Reason.AGREED
    assert fake.read_names == ["part_02.png"]


class _Dying(FakeCaptioner):
    """Reads a few batches and then nothing any more."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        if len(self.history) >= self.batches:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().read(pictures)


def test_many_images_that_the_model_cannot_take_do_not_stop_the_others(tmp_path: Path) -> None:
    bad = [f"a{i:02d}.png" for i in range(2 * MAX_FAILURES_IN_A_ROW)]
    good = [f"b{i:02d}.png" for i in range(20)]
    folder = folder_of(tmp_path / "in", *bad, *good)
    result = scan(config_for(folder, tmp_path / "r.parquet", batch_size=32), SilentProgress(), load=_Picky(*bad).load)
    rows = by_name(result)
    assert result.error is None
    assert {n for n, r in rows.items() if r.reason == Reason.MODEL_FAILED} == set(bad)
    assert all(rows[name].reason == Reason.AGREED for name in good)


def test_a_model_that_fails_on_everything_ends_the_run_with_what_it_has(tmp_path: Path) -> None:
    names = [f"part_{i:02d}.png" for i in range(MAX_FAILURES_IN_A_ROW + 20)]
    folder = folder_of(tmp_path / "in", *names)
    result = scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=_Dying(1).load)
    assert result.error is not None and "in a row and on a test image" in str(result.error)
    rows = read_result(tmp_path / "r.parquet")[0]
    assert [r.file_name for r in rows] == names
    assert [r.route for r in rows].count(Route.AUTO_ACCEPT) == 4
    few = folder_of(tmp_path / "few", "a.png")
    result = scan(config_for(few, tmp_path / "few.parquet"), SilentProgress(), load=_Picky("a.png").load)
    assert result.error is not None and "every image" in str(result.error)


def test_short_answers_are_no_readings(tmp_path: Path) -> None:
    class Short(FakeCaptioner):
        def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
            return [replace(one, captions=one.captions[:-1]) for one in super().read(pictures)]

    folder = folder_of(tmp_path / "in", "a.png")
    (row,) = scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=Short().load).records
    assert row.reason == Reason.MODEL_FAILED


def test_a_bug_in_mid_run_still_leaves_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vlmgate.run.batches

    folder = folder_of(tmp_path / "in", *NAMES)
    seen: list[str] = []

    def bug(image: ImageFile) -> tuple[str, int]:
        seen.append(image.file_name)
        if image.file_name == NAMES[6]:
            raise ZeroDivisionError("a bug")
        return content_of(image)

    with monkeypatch.context() as patched:
        patched.setattr(vlmgate.run.batches, "content_of", bug)
        result = scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=FakeCaptioner().load)
    assert "internal error (ZeroDivisionError: a bug)" in str(result.error)
    assert [r.reason for r in read_result(tmp_path / "r.parquet")[0]].count(Reason.AGREED) == 4
    assert "Traceback" in (tmp_path / "r.log").read_text()


def test_a_model_that_cannot_be_loaded_leaves_no_result(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)

    def load(*_: object) -> FakeCaptioner:
        raise ModelError("no such model")

    with pytest.raises(ModelError):
        scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=load)
    assert not (tmp_path / "r.parquet").exists() and "Traceback" in (tmp_path / "r.log").read_text()


def test_a_full_disk_ends_the_run_in_one_line_and_it_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "in", *NAMES)
    config = config_for(folder, tmp_path / "r.parquet")
    synced = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:  # header, model, first batch, then this one
            raise OSError(28, "No space left on device")
        synced(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        result = scan(config, SilentProgress(), load=FakeCaptioner().load)
    assert "No space left" in str(result.error) and "resumes" in str(result.error)
    fake = FakeCaptioner()
    scan(config, SilentProgress(), load=fake.load)
    assert set(NAMES) - set(fake.read_names) >= set(NAMES[:4])
    assert all(r.reason == Reason.AGREED for r in read_result(tmp_path / "r.parquet")[0])


def test_a_disk_that_is_too_small_is_found_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = folder_of(tmp_path / "in", "a.png")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    fake = FakeCaptioner()
    with pytest.raises(OutputError, match="MB free"):
        scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=fake.load)
    assert fake.num_samples == 0


def test_two_scans_do_not_share_an_output(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    config = config_for(folder, tmp_path / "r.parquet")

    class Nosy(FakeCaptioner):
        def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
            with pytest.raises(OutputError, match="another scan"):
                scan(config, SilentProgress(), load=FakeCaptioner().load)
            return super().read(pictures)

    assert scan(config, SilentProgress(), load=Nosy().load).error is None


def test_a_folder_without_images_is_said_so_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("none")
    with pytest.raises(NoImagesError, match=r"1 other files.*notes\.txt"):
        scan(config_for(tmp_path / "in", tmp_path / "r.parquet"), SilentProgress(), load=FakeCaptioner().load)


def test_every_page_has_a_row_when_asked(tmp_path: Path) -> None:
    from PIL import Image

    folder = folder_of(tmp_path / "in", "a.png")
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
    fake = FakeCaptioner()
    first = by_name(scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=fake.load))
    assert first["stack.tif"].num_pages == 3 and len(first) == 2
    config = config_for(folder, tmp_path / "all.parquet", images=ImageConfig(pages="all"), batch_size=2)
    result = scan(config, SilentProgress(), load=_Stopping(signal.SIGTERM, 1).load)
    assert [(r.file_name, r.page) for r in result.records] == [
        ("a.png", 1),
        ("stack.tif", 1),
        ("stack.tif", 2),
        ("stack.tif", 3),
    ]
    assert [r.reason == Reason.NOT_READ for r in result.records] == [False, False, True, True]
    result = scan(config, SilentProgress(), load=fake.load)
    assert all(r.reason == Reason.AGREED for r in result.records) and len(result.records) == 4


def test_a_caption_that_is_no_text_is_stored_all_the_same(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    fake = FakeCaptioner(lambda _: (Caption("a \ud800 dent \x00", "stop", float("nan"), 3),))
    (row,) = scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=fake.load).records
    assert row.captions is not None and row.captions[0] == "a ? dent \x00" and row.mean_logprob is None


class OddKernel:
    """A kernel that cannot compare some captions, nor all at once."""

    same = 0.9

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        raise MemoryError("too many at once")

    def __call__(self, texts: Sequence[str]) -> Matrix:
        return as_kernel(np.full((len(texts), len(texts)), np.nan if "odd" in texts[0] else 1.0))


def test_captions_that_a_kernel_cannot_compare_cost_nothing_but_their_own_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "in", *NAMES[:3])
    fake = FakeCaptioner(lambda name: ("an odd washer",) if "01" in name else AGREE)
    monkeypatch.setattr("vlmgate.run.plan.load_kernel", lambda _: OddKernel())
    result = scan(config_for(folder, tmp_path / "r.parquet", threshold=4.0), SilentProgress(), load=fake.load)
    assert result.error is None and len(read_result(tmp_path / "r.parquet")[0]) == 3
    odd = by_name(result)["part_01.png"]
    assert (odd.route, odd.reason, odd.vendi_score) == (Route.HUMAN_REVIEW, Reason.NO_SCORE, None)
    assert [r.route for r in result.records].count(Route.AUTO_ACCEPT) == 2
