"""Workers of a Ray cluster read a folder: the result of a local scan, whatever becomes of the workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import vlmgate.run.ray.crew
from tests.story.test_resume import stack
from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from tests.support.inbox import INBOX
from tests.support.paths import ROOT
from vlmgate.captioner.location import weights_folder
from vlmgate.captioner.streams import trial_picture
from vlmgate.config import ClusterConfig, ImageConfig, ModelConfig, SamplingConfig, ScanConfig
from vlmgate.data import Duplicate, Failure, Picture, Reading, Reason, Record, Sampled, Unreadable
from vlmgate.errors import ConfigError, FatalError, ModelError, UsageError
from vlmgate.images import find_images
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult
from vlmgate.run.ray.connection import Room
from vlmgate.run.ray.worker import Delivery, Job, Setup, Worker
from vlmgate.run.reader import Reader as PictureReader
from vlmgate.store.result import read_result

TWO = ClusterConfig("local", workers=2)


def timeless(records: Sequence[Record]) -> list[Record]:
    return [replace(record, seconds=None) for record in records]


def number_in(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()) or 0)


def said(name: str) -> Sequence[str]:
    """Return captions that follow from the number in a name, so that copies with one number are read alike."""
    number = number_in(name)
    return AGREE if number % 3 == 0 else (*AGREE, *DISAGREE[: 1 + number % 4])


class Reader(FakeCaptioner):
    """A fake that workers can be given: what it says follows from the name, and a file tells of each batch."""

    def __init__(self, told: Path, seconds: float = 0.0, meet: int = 1) -> None:
        """With `meet`, nobody reads before so many workers are there."""
        super().__init__(say=said, features=features)
        self.told, self.seconds, self.meet = told, seconds, meet

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        self.told.with_suffix(f".{os.getpid()}.there").touch()
        deadline = time.monotonic() + 60
        while len(list(self.told.parent.glob("*.there"))) < self.meet and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self.seconds)
        with self.told.open("a") as file:  # short appends do not mix
            file.write("".join(f"{os.getpid()}\t{p.file.file_name}\t{p.file.page}\n" for p in pictures))
        return super().read(pictures)

    def lines(self) -> list[list[str]]:
        """Return process, file name and page of what was read, test images apart."""
        told = [line.split("\t") for line in self.told.read_text().splitlines()]
        return [line for line in told if line[1] != trial_picture().file.file_name]


def features(name: str) -> tuple[float, ...]:
    return (float(number_in(name)), 2.0)


# --- one worker, without Ray ------------------------------------------------------------------------------------------


def worker_for(images: Path, load: object, **changes: object) -> Worker:
    setup = Setup(
        ModelConfig(), SamplingConfig(num_samples=4, batch_size=4), ImageConfig(pages="all"), images, {}, "builtin"
    )
    return Worker(replace(setup, **changes), load)  # type: ignore[arg-type]


def read_with(worker: Worker, folder: Path) -> list[Delivery]:
    (first,) = worker.read(Job(find_images(folder).sources[:1]), [])
    if first.wants_model:
        assert worker.load().batch.model
    return list(worker.read(Job(find_images(folder).sources), []))


def test_a_worker_hands_back_every_page_and_tells_which_files_are_through(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(5)))
    stack(folder / "s.tif", 6)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "copy.png").write_bytes((folder / "2.png").read_bytes())
    deliveries = read_with(worker_for(folder, FakeCaptioner().load), folder)
    batches = [one.batch for one in deliveries]
    entries = [entry for batch in batches for entry in batch.entries]
    assert [type(e) for e in entries].count(Reading) == 11 and len(entries) == 13
    assert [type(e) for e in entries].count(Unreadable) == [type(e) for e in entries].count(Duplicate) == 1
    finished = dict(pair for batch in batches for pair in batch.ended)
    assert finished.keys() == {name for batch in batches for name in batch.finished}
    assert finished == {s.file_name: frozenset({1}) for s in find_images(folder).sources} | {
        "s.tif": frozenset(range(1, 7))
    }
    assert all(sum(isinstance(e, Reading) for e in batch.entries) <= 4 for batch in batches)
    assert any("broken.png" in line for one in deliveries for line in one.log)


class ByWidth(FakeCaptioner):
    """Has prompts as long as pictures are wide, and can be given pictures ahead."""

    prepared = 0

    def prompt_key(self, picture: Picture) -> int:
        return picture.rgb.width

    def prepare(self, pictures: Sequence[Picture]) -> int:
        return len(pictures)

    def read_prepared(self, pictures: Sequence[Picture], prepared: int) -> list[Sampled]:
        self.prepared += prepared
        return self.read(pictures)


def test_a_worker_puts_prompts_of_one_length_together_and_prepares_them_ahead(tmp_path: Path) -> None:
    """As a run on one machine does: both have the same reader."""
    for i in range(16):
        picture_file(tmp_path / "in" / f"{i:02d}.png", size=(8 + 8 * (i % 2), 8))
    fake = ByWidth()
    read_with(worker_for(tmp_path / "in", fake.load), tmp_path / "in")
    read = [[int(name[:2]) % 2 for name in batch] for batch in fake.history if len(batch) > 1]
    assert read == [[0] * 4, [1] * 4, [0] * 4, [1] * 4] and fake.prepared == 16


def test_a_worker_does_not_read_what_others_have_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    worker = worker_for(folder, FakeCaptioner().load)
    read_with(worker, folder)
    (delivery,) = read_with(worker, folder)
    assert [type(e) for e in delivery.batch.entries] == [Duplicate, Duplicate]


class Failing(FakeCaptioner):
    """Fails on some files, and on everything from a moment on."""

    def __init__(self, bad: str, dies: bool) -> None:
        super().__init__()
        self.bad, self.dies, self.dead = bad, dies, False

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        bad = any(picture.file.file_name == self.bad for picture in pictures)
        self.dead |= bad and self.dies
        if bad or self.dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().read(pictures)


def test_an_image_that_fails_is_no_trouble_but_a_model_that_fails_on_all_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(8)))
    deliveries = read_with(worker_for(folder, Failing("3.png", dies=False).load), folder)
    entries = [entry for one in deliveries for entry in one.batch.entries]
    assert [e.image.file_name for e in entries if isinstance(e, Failure)] == ["3.png"] and len(entries) == 8
    *_, last = read_with(worker_for(folder, Failing("3.png", dies=True).load), folder)
    assert last.trouble and last.trouble.kind == "dead" and not last.batch.entries
    assert "illegal memory access" in last.trouble.text and any("Traceback" in line for line in last.log)


def test_a_model_in_doubt_is_tested_before_its_failures_are_handed_back_and_at_no_other_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that another job of the same worker may have the model."""
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(24)))
    held: list[bool] = []
    check = PictureReader._check_model

    def noted(self: PictureReader, after: int = 16) -> None:
        held.append(self._asking.locked())
        check(self, after)

    monkeypatch.setattr(PictureReader, "_check_model", noted)
    read_with(worker_for(folder, Failing("3.png", dies=False).load), folder)
    assert held and all(held)


def test_a_machine_that_is_not_as_it_must_be_says_what_it_lacks(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")

    def lacks(**changes: object) -> str:
        trouble = worker_for(folder, FakeCaptioner().load, **changes).check()[1]
        assert trouble and trouble.kind == "machine"
        return trouble.text

    assert "does not see" in lacks(folder=tmp_path / "elsewhere")
    assert "has vlmgate" in lacks(version="0.0.1")
    assert "has other files of the model builtin" in lacks(checkpoint={"model": "builtin", "content": "0"})
    assert "nowhere" in lacks(model=ModelConfig(model=str(tmp_path / "nowhere")))


def test_a_model_that_does_not_load_is_trouble_in_one_line(tmp_path: Path) -> None:
    def load(*_: object) -> FakeCaptioner:
        raise ModelError("the model lacks its weights.")

    folder = folder_of(tmp_path / "in", "a.png")
    batch = worker_for(folder, load).load()
    assert batch.trouble and batch.trouble.kind == "model" and batch.trouble.text == "the model lacks its weights."


# --- room, options ----------------------------------------------------------------------------------------------------


def test_room_is_counted_machine_by_machine() -> None:
    room = Room(({"CPU": 16.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 8.0}, {"CPU": 64.0}))
    assert room.workers(1.0) == 4 + 3 and room.workers(0.5) == 8 + 3 and room.workers(2.0) == 2 + 3
    assert room.workers(0.0) == 83 and room.describe() == "3 machines, 83 CPUs, 12 GPUs"


@pytest.mark.parametrize(
    "wrong", [{"workers": -1}, {"gpus_per_worker": 1.5}, {"gpus_per_worker": -1.0}, {"address": " "}]
)
def test_what_no_cluster_can_give_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ClusterConfig(**{"address": "auto"} | wrong)  # type: ignore[arg-type]


# --- a cluster of two workers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for the tests of this module; the folder of tests is where its workers find the fakes."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    from vlmgate.run.ray.connection import joined

    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two workers need two cores")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with joined("local", lambda _: None):
            assert ray.is_initialized()
            yield


def scan_with(config: ScanConfig, reader: FakeCaptioner, progress: SilentProgress | None = None) -> ScanResult:
    return scan(config, progress or SilentProgress(), load=reader.load)


def odd_folder(path: Path, images: int = 24) -> Path:
    """Make a folder with copies, broken files and pages."""
    folder_of(path, *(f"part_{i:02d}.png" for i in range(images)))
    stack(path / "s.tif", 7)
    (path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("a_copy_07.png", "z_copy_07.png"):
        (path / name).write_bytes((path / "part_07.png").read_bytes())
    return path


def test_two_workers_give_the_result_of_a_local_scan(tmp_path: Path, cluster: None) -> None:
    config = config_for(
        odd_folder(tmp_path / "in"), tmp_path / "local.parquet", images=ImageConfig(pages="all"), review_budget="30%"
    )
    local = scan_with(config, FakeCaptioner(said, features=features))
    reader, progress = Reader(tmp_path / "told", 0.05, meet=2), SilentProgress()
    result = scan_with(replace(config, out=tmp_path / "ray.parquet", cluster=TWO), reader, progress)
    assert result.error is None and progress.advanced == 28
    assert timeless(result.records) == timeless(local.records)
    own = {"run_id", "started", "finished", "time"}
    assert {k: v for k, v in result.provenance.items() if k not in own} == {
        k: v for k, v in local.provenance.items() if k not in own
    }
    assert len({pid for pid, *_ in reader.lines()}) == 2, "both workers read"
    idle = Reader(tmp_path / "told_again")
    again = scan_with(
        replace(config, out=tmp_path / "ray.parquet", cluster=TWO, threshold=2.0, review_budget=None), idle
    )
    assert not idle.told.exists() and len(again.records) == len(local.records), "nothing is read twice"


class Dying(Reader):
    """Kills its own process, the hard way, on a file: the first time, or every time."""

    def __init__(self, told: Path, deadly: str, always: bool = False) -> None:
        super().__init__(told, 0.02)
        self.deadly, self.always = deadly, always

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        mark = self.told.with_suffix(".dead")
        if any(p.file.file_name == self.deadly for p in pictures) and (self.always or not mark.exists()):
            with mark.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(pictures)


def test_paths_that_start_here_are_found_from_elsewhere(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are started in some other folder."""
    monkeypatch.chdir(folder_of(tmp_path / "in", "a.png", "b.png").parent)
    shutil.copytree(weights_folder(), "model")
    config = config_for(Path("in"), Path("r.parquet"), model=ModelConfig(model="./model"), cluster=TWO)
    result = scan_with(config, Reader(tmp_path / "told"))
    assert [r.reason for r in result.records] == [Reason.AGREED] * 2
    assert result.provenance["model"]["model"] == "./model"


@pytest.mark.slow
def test_a_killed_worker_costs_no_row_and_no_duplicate(tmp_path: Path, cluster: None) -> None:
    config = config_for(odd_folder(tmp_path / "in", 40), tmp_path / "local.parquet", images=ImageConfig(pages="all"))
    local = scan_with(config, FakeCaptioner(said, features=features))
    reader, progress = Dying(tmp_path / "told", "part_20.png"), SilentProgress()
    result = scan_with(replace(config, out=tmp_path / "ray.parquet", cluster=TWO), reader, progress)
    assert reader.told.with_suffix(".dead").read_text() == "x", "one worker was killed"
    assert result.error is None and result.provenance["complete"] and progress.advanced == 44
    assert timeless(result.records) == timeless(local.records)
    journalled = [line for line in result.outputs.journal.read_text().splitlines() if '"kind":"reading"' in line]
    assert len(journalled) == 40 + 7, "every image is journalled once"
    assert "died" in result.outputs.log.read_text()


@pytest.mark.slow
def test_a_file_that_kills_every_worker_is_given_up_and_no_other(tmp_path: Path, cluster: None) -> None:
    config = config_for(
        folder_of(tmp_path / "in", *(f"part_{i:02d}.png" for i in range(12))), tmp_path / "r.parquet", cluster=TWO
    )
    reader = Dying(tmp_path / "told", "part_05.png", always=True)
    result = scan_with(config, reader)
    reasons = {r.file_name: r.reason for r in result.records}
    assert reasons.pop("part_05.png") == Reason.UNREADABLE and len(reasons) == 11
    assert Reason.UNREADABLE not in reasons.values() and Reason.NOT_READ not in reasons.values()
    assert next(r.error for r in result.records if r.error) == "the process that read it died, 3 times"
    assert len(reader.told.with_suffix(".dead").read_text()) == 4


class Stopping(Reader):
    """Ends the run from outside after some batches."""

    def __init__(self, told: Path, pid: int) -> None:
        super().__init__(told, 0.1)
        self.pid = pid

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        sampled = super().read(pictures)
        if len(self.lines()) >= 16:
            os.kill(self.pid, signal.SIGTERM)
        return sampled


@pytest.mark.slow
def test_a_stopped_run_is_finalised_and_goes_on_where_it_was(tmp_path: Path, cluster: None) -> None:
    config = config_for(
        folder_of(tmp_path / "in", *(f"part_{i:02d}.png" for i in range(60))), tmp_path / "r.parquet", cluster=TWO
    )
    result = scan_with(config, Stopping(tmp_path / "told", os.getpid()))
    assert result.interrupted == signal.SIGTERM and result.provenance["complete"] is False
    kept = {r.file_name for r in result.records if r.captions}
    assert 0 < len(kept) < 60 and len(read_result(config.out)[0]) == 60
    reader = Reader(tmp_path / "told_later")
    result = scan_with(config, reader)
    assert result.provenance["complete"] and {name for _, name, _ in reader.lines()}.isdisjoint(kept)
    assert len(reader.lines()) == 60 - len(kept)


class Unloadable(FakeCaptioner):
    def load(self, *_: object) -> FakeCaptioner:
        raise ModelError("the model lacks its weights.")


class Broken(FakeCaptioner):
    """Reads nothing, not even a test image."""

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        raise RuntimeError("CUDA error")


def test_a_model_that_loads_nowhere_or_reads_nothing_ends_the_run(tmp_path: Path, cluster: None) -> None:
    config = config_for(folder_of(tmp_path / "in", "a.png", "b.png"), tmp_path / "r.parquet", cluster=TWO)
    with pytest.raises(ModelError, match="lacks its weights"):
        scan_with(config, Unloadable())
    with pytest.raises(ModelError, match="the model reads nothing: RuntimeError: CUDA error"):
        scan_with(config, Broken())


class DyingAsItLoads(FakeCaptioner):
    def load(self, *_: object) -> FakeCaptioner:
        os.kill(os.getpid(), signal.SIGKILL)
        return self


@pytest.mark.slow
def test_workers_that_die_as_they_load_end_the_run_and_blame_no_file(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlmgate.run.ray.crew, "_MOST_DEATHS", 0)  # three for each worker remain
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config = config_for(folder, tmp_path / "r.parquet", cluster=ClusterConfig("local", workers=1))
    with pytest.raises(FatalError, match="workers died one after the other, the last with: while it loaded the model"):
        scan_with(config, DyingAsItLoads())


@pytest.mark.slow
def test_the_reference_is_read_by_a_worker(tmp_path: Path, cluster: None) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(4)))
    good = folder_of(tmp_path / "good", *(f"good_{i}.png" for i in range(12)))
    config = config_for(folder, tmp_path / "local.parquet", reference=good)
    local = scan_with(config, FakeCaptioner(said, features=features))
    result = scan_with(replace(config, out=tmp_path / "ray.parquet", cluster=TWO), Reader(tmp_path / "told"))
    assert all(r.novelty is not None for r in result.records)
    assert timeless(result.records) == timeless(local.records)


def test_more_than_the_cluster_has_is_refused_before_anything_is_read(tmp_path: Path, cluster: None) -> None:
    config = config_for(folder_of(tmp_path / "in", "a.png"), tmp_path / "r.parquet")
    greedy = replace(config, cluster=ClusterConfig("local", gpus_per_worker=4.0))
    with pytest.raises(UsageError, match="no machine has the 1 CPU and 4 GPUs that a worker needs"):
        scan_with(greedy, FakeCaptioner())
    with pytest.raises(UsageError, match="client's address"):
        scan_with(replace(config, cluster=ClusterConfig("ray://host:10001")), FakeCaptioner())


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "nobody answers there"),
        ("nonsense", "give auto, local, or host:port"),
        ("head:port", "give auto, local, or host:port"),
        ("127.0.0.1:99999999", "nobody answers there"),
    ],
)
def test_an_address_where_nobody_answers_is_refused_at_once(
    tmp_path: Path, address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    config = config_for(folder_of(tmp_path / "in", "a.png"), tmp_path / "r.parquet", cluster=ClusterConfig(address))
    with pytest.raises(UsageError, match=told):
        scan_with(config, FakeCaptioner())


# --- the real command, the real model ---------------------------------------------------------------------------------


def workers_of(mark: str) -> list[int]:
    """Return the processes that read for a command which was given this mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"VLMGATE_TEST={mark}".encode() in (process / "environ").read_bytes()
            if ours and (process / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                found.append(int(process.name))
        except OSError:  # gone, or somebody else's
            continue
    return found


def lines_in(journal: Path) -> int:
    return journal.read_bytes().count(b'"kind":"reading"') if journal.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="tells processes apart by /proc")
def test_the_real_command_with_a_worker_killed_and_then_stopped(tmp_path: Path) -> None:
    """Kill a worker, then press Ctrl-C, then run it again without Ray: the result is that of a local scan."""
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted((INBOX.parent / "labelled").rglob("*.jpg"))[:28]:
        shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
    command = [sys.executable, "-m", "vlmgate", "scan", str(folder), "--batch-size", "4", "--num-samples", "4"]
    subprocess.run([*command, "-q", "-o", str(tmp_path / "local.parquet")], check=True, capture_output=True)
    out, mark = tmp_path / "ray.parquet", tmp_path.name
    with_ray = [*command, "-o", str(out), "--ray", "local", "--ray-workers", "2", "--format", "json"]
    process = subprocess.Popen(
        with_ray,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"VLMGATE_TEST": mark, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    journal = out.with_suffix(".journal.jsonl")
    killed = 0
    while process.poll() is None and lines_in(journal) < 4:
        time.sleep(0.05)
    for worker in workers_of(mark)[:1]:
        os.kill(worker, signal.SIGKILL)
        killed += 1
    while process.poll() is None and lines_in(journal) < 12:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    printed, told = process.communicate(timeout=60)
    assert killed == 1 and process.returncode == 130, told
    assert "Traceback" not in told and json.loads(printed)["exit_code"] == 130
    assert told.count("\n") == len([line for line in told.splitlines() if line and "ray::" not in line])
    done = {r.file_name for r in read_result(out)[0] if r.captions}
    assert 12 <= len(done) < 28 and len(read_result(out)[0]) == 28
    assert not workers_of(mark), "a worker has outlived its run"
    subprocess.run([*command, "-q", "-o", str(out)], check=True, capture_output=True)
    assert timeless(read_result(out)[0]) == timeless(read_result(tmp_path / "local.parquet")[0])
    assert lines_in(journal) == 28, "an image was read twice"
