"""Batches ahead of the model, and the journal behind it: full, in order, nothing lost when either side fails."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from vlmgate.config import ImageConfig
from vlmgate.data import Caption, Duplicate, ImageFile, Picture, Reading, Reason, Sampled, Unreadable
from vlmgate.errors import StoreError
from vlmgate.images import find_images, read_ahead
from vlmgate.run.batches import Batch, BatchMaker, ModelWanted, _Making
from vlmgate.run.loop import scan
from vlmgate.run.writer import Recorder
from vlmgate.scores.score import Scorer
from vlmgate.store.journal import Journal
from vlmgate.store.result import read_result


class Preparing(FakeCaptioner):
    """A fake that is given pictures ahead, in another thread, and whose prompts are as long as pictures are wide."""

    def __init__(self, *arguments: Any, fails: bool = False, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.fails = fails
        self.prepared: list[tuple[list[str], int]] = []
        self.used = 0

    def prompt_key(self, picture: Picture) -> int:
        return picture.rgb.width

    def prepare(self, pictures: Sequence[Picture]) -> list[str]:
        if self.fails:
            raise RuntimeError("no")
        names = [picture.file.file_name for picture in pictures]
        self.prepared.append((names, threading.get_ident()))
        return names

    def read_prepared(self, pictures: Sequence[Picture], prepared: list[str]) -> list[Sampled]:
        assert prepared == [picture.file.file_name for picture in pictures]
        self.used += 1
        return self.read(pictures)


def batches_of(folder: Path, captioner: FakeCaptioner, size: int = 3) -> list[Batch]:
    found = []
    supply = BatchMaker(find_images(folder).sources, ImageConfig(workers=2), size, set())
    for batch in supply:
        if isinstance(batch, ModelWanted):
            supply.provide(captioner)
        else:
            found.append(batch)
    return found


class Knowing(FakeCaptioner):
    """Tells how many pictures at once suit it."""

    at_once = 5


@pytest.mark.parametrize(("asked", "sizes"), [(None, [5, 5, 2]), (8, [8, 4])])
def test_a_captioner_says_how_many_at_once_unless_a_person_did(
    tmp_path: Path, asked: int | None, sizes: list[int]
) -> None:
    folder_of(tmp_path / "in", *(f"{i:02}.png" for i in range(12)))
    config = config_for(tmp_path / "in", tmp_path / "r.parquet")
    captioner = Knowing()
    result = scan(
        replace(config, sampling=replace(config.sampling, batch_size=asked)), SilentProgress(), load=captioner.load
    )
    assert [len(batch) for batch in captioner.history] == sizes and len(result.records) == 12
    assert result.provenance["time"]["batch"] == sizes[0]


def names(batch: Batch) -> list[str]:
    return [picture.file.file_name for picture in batch.pictures]


def test_batches_are_full_and_in_order_and_files_are_counted_when_nothing_of_them_is_to_come(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{i}.png" for i in range(7)))
    (folder / "7.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "8.png").write_bytes(b"none")
    found = batches_of(folder, FakeCaptioner())
    assert [names(batch) for batch in found] == [["0.png", "1.png", "2.png"], ["3.png", "4.png", "5.png"], ["6.png"]]
    assert [len(batch.finished) for batch in found] == [3, 3, 3]
    assert [type(entry) for entry in found[-1].entries] == [Duplicate, Unreadable]
    assert {name for batch in found for name, _ in batch.ended} == {f"{i}.png" for i in range(9)}


def test_no_model_is_wanted_where_there_is_nothing_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    found = list(BatchMaker(find_images(tmp_path).sources, ImageConfig(), 3, set()))
    assert [type(batch) for batch in found] == [Batch]


def test_pictures_with_prompts_of_one_length_come_together(tmp_path: Path) -> None:
    for i in range(8):
        picture_file(tmp_path / f"{i}.png", size=(8 + 8 * (i % 2), 8))
    fake = Preparing()
    found = batches_of(tmp_path, fake)
    assert [names(batch) for batch in found[:2]] == [["0.png", "2.png", "4.png"], ["1.png", "3.png", "5.png"]]
    assert sorted(name for batch in found[2:] for name in names(batch)) == ["6.png", "7.png"]
    assert sum(len(batch.finished) for batch in found) == 8
    assert all(thread != threading.get_ident() for _, thread in fake.prepared) and len(fake.prepared) == len(found)


@pytest.mark.parametrize("memory", [None, 0.000_004])
def test_large_pictures_come_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float | None
) -> None:
    for i in range(7):
        picture_file(tmp_path / f"{i}.png", size=(20, 20))
    if memory is None:
        monkeypatch.setattr("vlmgate.run.batches._PIXELS_WAITING", 1000)
    maker = BatchMaker(find_images(tmp_path).sources, ImageConfig(image_memory=memory), 64, set())
    maker.close()
    making = _Making()
    pictures = [one.result for one in read_ahead(find_images(tmp_path).sources, ImageConfig())]
    sizes = []
    for picture in pictures:
        assert isinstance(picture, Picture)
        making.buckets.setdefault(None, []).append(picture)
        if full := maker._full(making):
            sizes.append(len(full))
            making.buckets = {}
    assert sizes == [3, 3]  # 1,200 pixels each


def test_no_picture_of_a_smaller_batch_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmgate.run.batches._PIXELS_WAITING", 1000)
    for i in range(7):
        picture_file(tmp_path / f"{i}.png", size=(20, 20 + i % 2))
    for captioner in (FakeCaptioner(), Preparing()):
        found = batches_of(tmp_path, captioner, size=64)
        assert sorted(name for batch in found for name in names(batch)) == [f"{i}.png" for i in range(7)]
        assert [len(batch.pictures) for batch in found] == [3, 3, 1]
        assert sum(len(batch.finished) for batch in found) == 7


def test_lonely_shapes_do_not_wait_for_ever(tmp_path: Path) -> None:
    for i in range(30):
        picture_file(tmp_path / f"{i:02d}.png", size=(8 + i, 8))
    found = batches_of(tmp_path, Preparing(), size=2)
    assert [len(batch.pictures) for batch in found] == [2] * 15 and names(found[0]) == ["00.png", "01.png"]


def test_large_pictures_do_not_wait_in_large_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a shape of its own; a batch goes as soon as too many pixels wait, full or not."""
    monkeypatch.setattr("vlmgate.run.batches._PIXELS_WAITING", 3 * 8 * 8)
    for i in range(12):
        picture_file(tmp_path / f"{i:02d}.png", size=(8 + i, 8))
    held: list[int] = []
    full = BatchMaker._full

    def counted(self: BatchMaker, making: Any) -> list[Picture]:
        held.append(making.waiting())
        return full(self, making)

    monkeypatch.setattr(BatchMaker, "_full", counted)
    found = batches_of(tmp_path, Preparing(), size=3)
    assert [len(batch.pictures) for batch in found] == [3, 3, 2, 2, 2] and max(held) == 3


def test_what_the_thread_raises_comes_where_its_batch_would_have_come(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")

    def sources() -> Any:
        yield from find_images(folder).sources
        raise ZeroDivisionError("a bug")

    supply = BatchMaker(sources(), ImageConfig(), 1, set())
    with pytest.raises(ZeroDivisionError):
        for batch in supply:
            if isinstance(batch, ModelWanted):
                supply.provide(FakeCaptioner())


@pytest.mark.parametrize("fails", [False, True])
def test_a_captioner_that_is_given_pictures_ahead_says_the_same(tmp_path: Path, fails: bool) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(9)))
    fake = Preparing(lambda name: (name, "a dent"), fails=fails)
    plain = FakeCaptioner(lambda name: (name, "a dent"))
    for name, captioner in (("a", fake), ("b", plain)):
        scan(config_for(folder, tmp_path / f"{name}.parquet"), SilentProgress(), load=captioner.load)
    told = [[(r.file_name, r.captions, r.route) for r in read_result(tmp_path / f"{n}.parquet")[0]] for n in "ab"]
    assert told[0] == told[1] and fake.used == (0 if fails else 3)


def test_a_result_says_where_the_time_went(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(9)))
    config = config_for(folder, tmp_path / "r.parquet")
    time = scan(config, SilentProgress(), load=FakeCaptioner().load).provenance["time"]
    assert time["images"] == 9 and "decoding" not in time
    assert time["seconds"] == pytest.approx(
        time["reading"] + time["captioning"] + time["waiting_for_journal"], abs=1e-3
    )
    assert scan(config, SilentProgress(), load=FakeCaptioner().load).provenance["time"] is None


# --- the recorder -----------------------------------------------------------------------------------------------------


def reading(name: str) -> Reading:
    image = ImageFile(name, Path(name), name.ljust(64, "0"), 1, 1, 8, 8, "RGB", None, 1, 1)
    return Reading(image, (Caption("a dent", "stop", -1.0, 3), Caption("a crack", "stop", -1.0, 3)))


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    opened = Journal.open(tmp_path / "r.journal.jsonl", {"num_samples": 2, "pages": "first"})
    yield opened
    opened.close()


def test_what_was_handed_over_is_on_the_disk_once_it_is_closed(journal: Journal) -> None:
    recorder = Recorder(journal, Scorer(""))
    for name in "abc":
        recorder.submit([reading(name)], [(name, frozenset({1}))], 0.5)
    recorder.close()
    told = [line for line in journal.path.read_text().splitlines() if '"reading"' in line]
    assert len(told) == 3 and len(recorder.scored) == 3
    assert recorder.scored["a".ljust(64, "0"), 1, ""] == Scorer("").score(
        type("S", (), {"captions": reading("a").captions, "answers": None, "views": None})()
    )


def test_after_a_failure_nothing_is_written_and_it_is_raised_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("no space")

    recorder = Recorder(journal, None)
    monkeypatch.setattr(Journal, "append", full)
    recorder.submit([reading("a")])
    with pytest.raises(StoreError):
        recorder.submit([reading("b")])
    recorder.close()
    recorder = Recorder(journal, None)
    recorder.submit([reading("a")])
    with pytest.raises(StoreError):
        recorder.close()
    assert not recorder.scored


def test_images_that_become_whole_within_half_a_second_share_a_forced_write(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    force = Journal.force

    def note(self: Journal) -> None:
        forced.append(self.path.read_bytes().count(b'"kind"'))
        force(self)

    monkeypatch.setattr(Journal, "force", note)
    monkeypatch.setattr("vlmgate.run.writer.FORCE_EVERY", 3600.0)
    recorder = Recorder(journal, Scorer(""))
    for i in range(20):
        recorder.submit([reading(f"{i:02}")])
    recorder.drain()
    assert forced == [1, 20], "the first at once, for nothing was forced for a while; the others together"
    recorder.submit([reading("20")])
    recorder.close()
    assert forced == [1, 20, 21] and len(recorder.scored) == 21


def test_what_was_written_is_forced_soon_though_nothing_follows(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced = threading.Semaphore(0)
    force = Journal.force
    monkeypatch.setattr(Journal, "force", lambda self: (force(self), forced.release()))
    monkeypatch.setattr("vlmgate.run.writer.FORCE_EVERY", 0.05)
    recorder = Recorder(journal, None)
    for name in "ab":
        recorder.submit([reading(name)])
    assert forced.acquire(timeout=30) and forced.acquire(timeout=30)
    recorder.close()


def test_a_disk_that_fails_while_it_is_forced_is_told(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Journal) -> None:
        raise StoreError("no space")

    recorder = Recorder(journal, None)
    monkeypatch.setattr(Journal, "force", full)
    recorder.submit([reading("a")])
    with pytest.raises(StoreError, match="no space"):
        recorder.drain()
    recorder.close()


def test_what_was_written_before_a_failure_is_forced_to_the_disk(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    force = Journal.force
    monkeypatch.setattr(Journal, "force", lambda self: (forced.append(self._length), force(self))[1])
    recorder = Recorder(journal, None)
    recorder.submit([reading("a")])  # forced at once
    recorder.submit([reading("b")])  # within half a second of it
    recorder._wait(lambda: recorder._task is None)
    monkeypatch.setattr(Journal, "append", lambda *_, **__: (_ for _ in ()).throw(StoreError("no space")))
    recorder.submit([reading("c")])
    with pytest.raises(StoreError):
        recorder.close()
    assert forced[-1] == journal.path.stat().st_size and journal.path.read_text().count('"kind":"reading"') == 2


def test_a_full_disk_at_the_last_batch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", lambda *_, **__: (_ for _ in ()).throw(StoreError("no space")))
        result = scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=FakeCaptioner().load)
    assert "no space" in str(result.error) and [r.reason for r in result.records] == [Reason.NOT_READ]
