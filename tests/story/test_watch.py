"""A folder that fills during the shift: settled files only, nothing read twice, a clean end."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, let_it_read, picture_file
from vlmgate.cli import app
from vlmgate.config import WatchConfig
from vlmgate.config.long_runs import parse_duration
from vlmgate.data import Record
from vlmgate.errors import ConfigError, NoImagesError
from vlmgate.images import Walk, find_images
from vlmgate.run.watch import Watch, next_time
from vlmgate.store.result import read_provenance, read_result

runner = CliRunner()
QUICK = ("--watch", "--settle", "100ms", "--idle", "400ms")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    captioner = FakeCaptioner()
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line").mkdir()
    return captioner


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = runner.invoke(app, ["scan", *(str(a) for a in arguments)])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def rows() -> dict[str, Record]:
    return {row.file_name: row for row in read_result(Path("line.parquet"))[0]}


def then(does: dict[str, Callable[[], object]], said: tuple[str, ...] = AGREE) -> Callable[[str], tuple[str, ...]]:
    """Return a way to read that does something the first time that it reads a file: tests hang on no clock."""

    def say(name: str) -> tuple[str, ...]:
        if name in does:
            does.pop(name)()
        return said

    return say


# --- what has settled, by a clock of the test's own -------------------------------------------------------------------


class Clock:
    """Time that passes while somebody sleeps; `at` says what happens when."""

    def __init__(self, at: dict[float, Callable[[], object]] | None = None) -> None:
        self.time, self.at = 0.0, dict(at or {})

    def __call__(self) -> float:
        return self.time

    def now(self) -> datetime:
        return datetime(2026, 11, 20, 5, 59) + timedelta(seconds=self.time)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds
        for moment in sorted(moment for moment in self.at if moment <= self.time):
            self.at.pop(moment)()


def watch_of(folder: Path, clock: Clock, told: list[str] | None = None, limit: int = 128, **config: object) -> Watch:
    settings = WatchConfig(**{"settle": 5.0, "publish_every": 0.0, **config})  # type: ignore[arg-type]
    tell = (told if told is not None else []).append
    look = lambda: find_images(folder)  # noqa: E731
    return Watch(settings, look, tell, limit=limit, clock=clock, now=clock.now, sleep=clock.sleep)


def handed_out(watch: Watch, clock: Clock) -> list[tuple[float, list[str]]]:
    """Return when which files were handed out."""
    return [(clock.time, [s.file_name for s in one.news]) for one in watch.rounds() if one.news]


def test_a_file_that_grows_is_handed_out_when_it_has_stopped(tmp_path: Path) -> None:
    slow = tmp_path / "slow.png"
    (tmp_path / "quick.png").write_bytes(b"1")
    slow.write_bytes(b"1")
    clock = Clock({float(t): lambda t=t: slow.write_bytes(b"1" * t) for t in range(2, 20, 3)})  # type: ignore[misc]
    found = handed_out(watch_of(tmp_path, clock, idle=30.0), clock)
    assert [names for _, names in found] == [["quick.png"], ["slow.png"]]
    assert 5 <= found[0][0] <= 7 and 22 <= found[1][0] <= 25


def test_a_file_that_changes_later_is_handed_out_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    clock = Clock({20.0: lambda: path.write_bytes(b"22")})
    found = handed_out(watch_of(tmp_path, clock, idle=60.0, publish_every=30.0), clock)
    assert [names for _, names in found] == [["a.png"], ["a.png"]]
    assert found[1][0] >= 35  # seen at the next publishing, and settled


def test_it_ends_when_the_time_has_come_though_files_keep_coming(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"1")
    clock = Clock({float(t): lambda t=t: (tmp_path / f"{t}.png").write_bytes(b"1") for t in range(1, 200)})  # type: ignore[misc]
    watch = watch_of(tmp_path, clock, until="06:00")
    names = [name for _, some in handed_out(watch, clock) for name in some]
    assert 60 <= clock.time <= 75
    assert set(names) >= {f"{t}.png" for t in range(60)} and len(names) == len(set(names))
    late = {s.file_name for s in watch.everything().sources} - set(names)
    assert late and late >= set(watch.unsettled)  # what came too late is not forgotten


def test_a_file_that_changes_for_ever_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    live = tmp_path / "live.png"
    (tmp_path / "a.png").write_bytes(b"1")
    clock = Clock({float(t): lambda t=t: live.write_bytes(b"1" * t) for t in range(1, 500)})  # type: ignore[misc]
    watch = watch_of(tmp_path, clock, idle=30.0)
    assert [names for _, names in handed_out(watch, clock)] == [["a.png"]]
    assert clock.time < 90 and watch.unsettled == ["live.png"]


def test_a_look_that_takes_long_makes_no_pause_of_hours(tmp_path: Path) -> None:
    clock, took = Clock(), 2700.0

    def look() -> Walk:
        clock.time += took
        return find_images(tmp_path)

    watch = Watch(WatchConfig(settle=5.0), look, print, clock=clock, now=clock.now, sleep=clock.sleep)
    next(watch.rounds())
    assert watch._pause == 60


def test_much_is_handed_out_in_parts(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"1")
    clock = Clock()
    found = handed_out(watch_of(tmp_path, clock, limit=4, idle=10.0), clock)
    assert [len(names) for _, names in found] == [4, 4, 2]


def test_a_folder_that_is_gone_for_a_while_ends_nothing(tmp_path: Path) -> None:
    folder, away = tmp_path / "share", tmp_path / "away"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    told: list[str] = []

    def back() -> None:
        away.rename(folder)
        (folder / "b.png").write_bytes(b"1")

    clock = Clock({10.0: lambda: folder.rename(away), 20.0: back})
    watch = watch_of(folder, clock, told, idle=30.0)
    assert [names for _, names in handed_out(watch, clock)] == [["a.png"], ["b.png"]]
    assert len(told) == 2 and "cannot be listed at the moment" in told[0] and "is back" in told[1]
    with pytest.raises(NoImagesError):
        find_images(away)


@pytest.mark.parametrize(
    ("now", "time", "expected"),
    [
        ("05:59:59", "06:00", "2026-11-20 06:00"),
        ("06:00:00", "6:00", "2026-11-21 06:00"),
        ("22:00:00", "06:00", "2026-11-21 06:00"),
    ],
)
def test_the_next_time_of_day(now: str, time: str, expected: str) -> None:
    assert next_time(time, datetime.fromisoformat(f"2026-11-20 {now}")) == datetime.fromisoformat(expected)


def test_durations() -> None:
    assert [parse_duration(t, "--idle") for t in ("5s", "30m", "1.5h", "250ms", "7", 7)] == [5, 1800, 5400, 0.25, 7, 7]
    for wrong in ("", "soon", "-5s", "5 years", "nan"):
        with pytest.raises(ConfigError, match="give a time such as 5s"):
            parse_duration(wrong, "--idle")


# --- the command ------------------------------------------------------------------------------------------------------


def test_what_has_changed_since_is_not_accepted_by_a_run_that_never_came_to_look(
    tmp_path: Path, fake: FakeCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [picture_file(tmp_path / "line" / name) for name in ("a.png", "b.png")]
    run("line")
    paths[0].write_bytes(paths[0].read_bytes()[:60])

    def stopped(*_: object) -> FakeCaptioner:
        os.kill(os.getpid(), signal.SIGTERM)
        return fake

    with monkeypatch.context() as patch:
        let_it_read(SimpleNamespace(load=stopped), patch)  # type: ignore[arg-type]
        run("line", *QUICK, code=143)
    assert [str(row.reason) for row in rows().values()] == ["not_read", "agreed"]
    assert read_provenance(Path("line.parquet"))["complete"] is False
    run("line", code=3)
    assert [str(row.reason) for row in rows().values()] == ["unreadable", "agreed"]


def test_a_change_that_size_and_time_do_not_tell_is_seen(tmp_path: Path, fake: FakeCaptioner) -> None:
    path = picture_file(tmp_path / "line" / "a.png")
    picture_file(tmp_path / "line" / "b.png")

    def spoil() -> None:
        status = path.stat()
        path.write_bytes(b"\0" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    fake.say = then({"b.png": spoil})
    run("line", "--batch-size", 1, *QUICK, code=3)
    assert rows()["a.png"].reason == "unreadable"


@pytest.mark.parametrize("watching", [QUICK, ()])
def test_a_file_that_is_no_image_any_more_has_a_row(
    tmp_path: Path, fake: FakeCaptioner, watching: tuple[str, ...]
) -> None:
    path = picture_file(tmp_path / "line" / "frame.png").rename(tmp_path / "line" / "frame0001")
    picture_file(tmp_path / "line" / "z.png")
    run("line", *QUICK)
    assert rows()["frame0001"].route == "auto_accept"
    path.write_bytes(b"\0" * 500)
    run("line", *watching, code=3)
    told = rows()["frame0001"]
    assert (told.route, told.error) == ("human_review", "is no image any more, as it was when it was read")


def test_a_share_that_is_away_takes_no_row_away(tmp_path: Path, fake: FakeCaptioner) -> None:
    line, away = tmp_path / "line", tmp_path / "away"
    picture_file(line / "a.png")
    fake.say = then({"a.png": lambda: line.rename(away)})
    _, err = run("line", "--watch", "--settle", "100ms", "--idle", "700ms", "--publish-every", "200ms")
    assert "cannot be listed at the moment" in err and rows()["a.png"].route == "auto_accept"


@pytest.mark.parametrize("watching", [("--watch", "--settle", "50ms", "--idle", "1s"), ()])
def test_what_a_share_lost_for_a_moment_is_read_when_it_is_back(
    tmp_path: Path, fake: FakeCaptioner, watching: tuple[str, ...]
) -> None:
    line, away = tmp_path / "line", tmp_path / "away"
    for i in range(40):
        picture_file(line / f"{i:02}.png")
    back = threading.Timer(1.0, lambda: away.rename(line))

    def lose() -> None:
        line.rename(away)
        back.start()

    fake.say = then({"00.png": lose})
    run("line", "--batch-size", 1, "--workers", 1, *watching)
    back.join()
    assert {str(row.reason) for row in rows().values()} == {"agreed"} and len(rows()) == 40
    assert len(fake.read_names) == 40, "nothing is read twice"


@pytest.mark.parametrize("becomes", ["a link to nothing", "a named pipe"])
def test_what_was_read_and_can_be_read_no_more_is_not_accepted(
    tmp_path: Path, fake: FakeCaptioner, becomes: str
) -> None:
    line = tmp_path / "line"
    for name in ("a.png", "b.png"):
        picture_file(line / name)

    def spoil() -> None:
        (line / "a.png").unlink()
        if becomes == "a named pipe":
            os.mkfifo(line / "a.png")
        else:
            (line / "a.png").symlink_to(tmp_path / "nowhere")

    fake.say = then({"b.png": spoil})
    run("line", "--batch-size", 1, *QUICK, code=3)
    watched = rows()
    assert [str(row.route) for row in watched.values()] == ["human_review", "auto_accept"]
    assert becomes in str(watched["a.png"].error)
    run("line", "--batch-size", 1, code=3)
    assert rows() == watched, "as without --watch"


def test_what_comes_is_read_once_and_the_result_is_complete(tmp_path: Path, fake: FakeCaptioner) -> None:
    line = tmp_path / "line"
    picture_file(line / "1.png")
    fake.say = then(
        {
            "1.png": lambda: picture_file(line / "2.png"),
            "2.png": lambda: (picture_file(line / "deep" / "3.png"), (line / "broken.png").write_bytes(b"\x89PNG\r\n")),
        }
    )
    told, err = run("line", *QUICK, code=3)
    assert "Watching line; Ctrl-C ends it" in err and "Wrote line.parquet (4 rows)." in told
    assert fake.read_names == ["1.png", "2.png", "deep/3.png"]
    assert rows()["broken.png"].reason == "unreadable" and read_provenance(Path("line.parquet"))["complete"]
    fake.history.clear()
    picture_file(line / "4.png")
    run("line", *QUICK, code=3)
    assert fake.read_names == ["4.png"]
    run("line", code=3)  # without --watch: the same journal
    assert fake.read_names == ["4.png"]


def test_an_empty_folder_is_waited_for(tmp_path: Path, fake: FakeCaptioner) -> None:
    told, _ = run("line", *QUICK)
    assert "Wrote line.parquet (0 rows)." in told and rows() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_with_everything_read_is_success(tmp_path: Path, fake: FakeCaptioner, number: signal.Signals) -> None:
    picture_file(tmp_path / "line" / "1.png")
    told: list[str] = []

    def stop(self: Watch, *_: object) -> bool:
        if rows_read():
            told.append("stopped")
            os.kill(os.getpid(), number)
        return False

    def rows_read() -> bool:
        return bool(fake.read_names) and not told

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Watch, "_is_over", stop)
        run("line", "--watch", "--settle", "100ms")
    assert told and read_provenance(Path("line.parquet"))["complete"] and list(rows()) == ["1.png"]


def test_a_stop_in_the_middle_loses_nothing(tmp_path: Path, fake: FakeCaptioner) -> None:
    line = tmp_path / "line"
    for i in range(4):
        picture_file(line / f"{i}.png")
    fake.say = then({"1.png": lambda: (picture_file(line / "late.png"), os.kill(os.getpid(), signal.SIGINT))})
    told, _ = run("line", *QUICK, "--batch-size", 1, code=130)
    reasons = {name: row.reason for name, row in rows().items()}
    assert reasons == {"0.png": "agreed"} | dict.fromkeys(("1.png", "2.png", "3.png", "late.png"), "not_read")
    assert "Not complete: 4 images not read yet" in told
    fake.history.clear()
    run("line", *QUICK, "--batch-size", 1)
    assert fake.read_names == ["1.png", "2.png", "3.png", "late.png"]


def test_people_can_begin_in_the_middle_of_the_shift(tmp_path: Path, fake: FakeCaptioner) -> None:
    line = tmp_path / "line"
    picture_file(line / "1.png")
    seen: list[tuple[bool, dict[str, str]]] = []

    def look_in() -> None:
        seen.append((read_provenance(Path("line.parquet"))["complete"], {n: r.route for n, r in rows().items()}))

    fake.say = then({"1.png": lambda: picture_file(line / "2.png"), "2.png": look_in}, DISAGREE)
    _, err = run("line", *QUICK, "--publish-every", "1ms", "--threshold", 1.5, "-k", 4)
    assert seen == [(False, {"1.png": "human_review"})]
    assert re.search(r"Published line\.parquet: 1 rows?, 1 for people", err)
    assert read_provenance(Path("line.parquet"))["complete"] and len(rows()) == 2
    assert not list(tmp_path.glob("*.old.parquet"))


def test_no_reading_of_a_file_that_has_changed_is_published(tmp_path: Path, fake: FakeCaptioner) -> None:
    """While 2.png is read, 1.png is overwritten: published then, and until it has settled, it is no accepted image."""
    line = tmp_path / "line"
    picture_file(line / "1.png")
    seen: list[dict[str, str]] = []

    def overwritten() -> None:
        picture_file(line / "1.png", size=(30, 20))
        picture_file(line / "3.png")

    fake.say = then(
        {
            "1.png": lambda: picture_file(line / "2.png"),
            "2.png": overwritten,
            "3.png": lambda: seen.append({name: row.reason for name, row in rows().items()}),
        }
    )
    run("line", *QUICK, "--publish-every", "1ms", "--batch-size", 1, "--threshold", 1.5, "-k", 4)
    assert sorted(fake.read_names) == ["1.png", "1.png", "2.png", "3.png"]
    assert seen[0]["2.png"] == "agreed" and seen[0]["1.png"] in ("not_read", "agreed")
    assert (seen[0]["1.png"] == "not_read") or fake.read_names.index("3.png") == 3  # or it was read anew before
    assert rows()["1.png"].width == 30 and {row.reason for row in rows().values()} == {"agreed"}


def test_what_waits_to_be_read_again_has_no_row_of_before(tmp_path: Path, fake: FakeCaptioner) -> None:
    """More files are overwritten than one round takes, and the run is stopped in the first of those rounds."""
    names = [f"{i:02d}.png" for i in range(20)]  # a round takes 16
    for name in names:
        picture_file(tmp_path / "line" / name)

    def say(_: str) -> tuple[str, ...]:
        if len(fake.read_names) == len(names):
            for name in names:
                picture_file(tmp_path / "line" / name, size=(30, 20))
        if len(fake.read_names) == len(names) + 3:
            os.kill(os.getpid(), signal.SIGINT)
        return AGREE

    fake.say = say
    run("line", *QUICK, "--settle", "1s", "--batch-size", 1, code=130)
    assert len(fake.read_names) == len(names) + 3
    found = rows()
    assert [found[name].reason for name in names] == ["agreed"] * 2 + ["not_read"] * 18
    assert {row.width for row in found.values() if row.reason == "agreed"} == {30}


def test_a_stop_before_anything_has_settled_keeps_what_was_read_before(tmp_path: Path, fake: FakeCaptioner) -> None:
    picture_file(tmp_path / "line" / "1.png")
    changed = picture_file(tmp_path / "line" / "2.png")
    run("line", *QUICK)
    picture_file(changed, size=(30, 20))

    def stop(self: Watch, *_: object) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return False

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Watch, "_is_over", stop)
        run("line", "--watch", "--settle", "1h", code=130)
    assert {name: row.reason for name, row in rows().items()} == {"1.png": "agreed", "2.png": "not_read"}


def test_a_budget_is_filled_at_the_end(tmp_path: Path, fake: FakeCaptioner) -> None:
    line = tmp_path / "line"
    picture_file(line / "1.png")
    there: list[bool] = []
    more = {"1.png": lambda: picture_file(line / "2.png"), "2.png": lambda: there.append(Path("line.parquet").exists())}
    fake.say = then(more)
    run("line", *QUICK, "--publish-every", "1ms", "--review-budget", "50%")
    assert there == [False]
    assert sorted(row.route for row in rows().values()) == ["auto_accept", "human_review"]


def test_what_is_moved_away_keeps_its_row_and_what_is_overwritten_is_read_again(
    tmp_path: Path, fake: FakeCaptioner
) -> None:
    line = tmp_path / "line"
    for name in ("moved.png", "same.png"):
        picture_file(line / name)

    def moved_and_overwritten() -> None:
        (line / "moved.png").rename(tmp_path / "moved.png")
        picture_file(line / "same.png", size=(30, 20))
        picture_file(line / "trigger.png")

    fake.say = then({"same.png": moved_and_overwritten})
    run("line", *QUICK)
    assert sorted(fake.read_names) == ["moved.png", "same.png", "same.png", "trigger.png"]
    assert (rows()["same.png"].width, rows()["moved.png"].reason) == (30, "agreed")
    run("line", *QUICK)  # the next start still knows it
    assert set(rows()) == {"moved.png", "same.png", "trigger.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("line", "--settle", "5s"), "--settle is for --watch"),
        (("line", "--until", "06:00"), "--until is for --watch"),
        (("line", "--watch", "--until", "25:00"), "a time of day such as 06:00"),
        (("line", "--watch", "--idle", "soon"), "--idle is 'soon'; give a time"),
        (("line", "--watch", "--settle", "0"), "settle is 0.0; allowed: above 0"),
        (("-", "--watch"), "--watch takes a folder"),
        (("line/1.png", "--watch"), "--watch takes a folder"),
        (("nowhere", "--watch"), "no such folder"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, fake: FakeCaptioner, arguments: tuple[str, ...], words: str
) -> None:
    picture_file(tmp_path / "line" / "1.png")
    _, err = run(*arguments, code=2)
    assert words in err.splitlines()[-1] and fake.history == []
