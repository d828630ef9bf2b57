"""One image that a server dies of, or breaks on, costs the others nothing: not tonight, and not the next night."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.captioner.server.test_server import K, captioner, config, model, picture, run
from tests.support.fakes import folder_of, picture_file
from tests.support.faulty_server import Asked, FaultyServer, Reply, refusal
from tests.support.mortal_server import DEADLY, HAUNTED, restarted
from vlmgate.captioner import ServerDiedError
from vlmgate.captioner.server import client as server
from vlmgate.captioner.server.engine import TURNS
from vlmgate.captioner.server.messages import data_url
from vlmgate.config import EndpointConfig, ModelConfig, SamplingConfig, ScanConfig
from vlmgate.data import Picture, Reason, Route
from vlmgate.errors import EndpointError, ModelError
from vlmgate.run.outcome import ScanResult

BAD = (77, 33)


def reasons(result: ScanResult) -> dict[str, str]:
    return {record.file_name: str(record.reason) for record in result.records}


def deadly(name: str) -> Picture:
    one = picture(name, BAD)
    return one


class Mortal:
    """Makes the server of the tests go away whenever it gets a picture of `BAD` size, for so many requests."""

    def __init__(self, faulty: FaultyServer, away: int, last_words: Reply | None = None) -> None:
        self.last_words = last_words or Reply(b"bad gateway", 502)
        self.faulty, self.away, self.left, self.deaths = faulty, away, 0, 0
        self.lock, self.asked_of = threading.Lock(), list[Asked]()
        faulty.behave = self

    def __call__(self, asked: Asked) -> Reply | None:
        with self.lock:
            if self.left:
                self.left -= 1
                return Reply(b"bad gateway", 502)
            self.asked_of.append(asked)
            if asked.picture.size == BAD:
                self.left, self.deaths = self.away, self.deaths + 1
                return self.last_words
        return None


class TestDeath:
    def test_a_real_process_that_dies_costs_one_image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The case of a server that is started again by its supervisor; pauses are the real ones."""
        pytest.importorskip("openai")
        folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(5)))
        picture_file(folder / "2_deadly.png", size=DEADLY)
        for i in range(3):
            picture_file(folder / f"2_haunted{i}.png", size=HAUNTED)
        with restarted(2.0) as (url, deaths):
            where = ModelConfig("m", endpoint=EndpointConfig(url, timeout=20))
            sampling = SamplingConfig(num_samples=K, batch_size=4)
            result = run(ScanConfig(folder, tmp_path / "out.parquet", model=where, sampling=sampling))
            assert result.error is None and len(deaths) == 2
            assert [name for name, why in reasons(result).items() if why != "agreed"] == ["2_deadly.png"]
            bad = next(record for record in result.records if record.file_name == "2_deadly.png")
            assert (bad.route, bad.reason) == (Route.HUMAN_REVIEW, Reason.MODEL_FAILED)
            assert "died while it had this image" in str(bad.error)
            for _ in range(2):
                again = run(ScanConfig(folder, tmp_path / "out.parquet", model=where, sampling=sampling))
                assert reasons(again) == reasons(result) and len(deaths) == 3, "it is asked alone once more"
            bad = next(record for record in again.records if record.file_name == "2_deadly.png")
            assert "died 3 times while it had this image" in str(bad.error)

    @pytest.mark.parametrize(
        "last_words",
        [
            Reply(b"bad gateway", 502),
            Reply({"error": {"message": "EngineCore encountered an issue. See stack trace"}}, 500),
            Reply(b"upstream connect error or disconnect/reset before headers. reset reason: connection reset", 503),
            Reply({"choices": []}, cut=True),
        ],
        ids=["proxy", "engine", "mesh", "broken off"],
    )
    def test_suspects_are_asked_alone_and_the_culprit_no_third_time_tonight(
        self, faulty: FaultyServer, last_words: Reply
    ) -> None:
        reader = captioner(faulty)
        mortal = Mortal(faulty, 8, last_words)
        pictures = [picture("a"), deadly("b"), picture("c"), picture("d"), deadly("e")]
        found = dict((one.file.file_name, outcome) for one, outcome in reader.read_each(pictures))
        assert {name for name, outcome in found.items() if isinstance(outcome, Exception)} == {"b", "e"}
        assert all(isinstance(found[name], ServerDiedError) and found[name].deaths == 2 for name in "be")  # type: ignore[union-attr]
        asked = Counter(one.name for one in mortal.asked_of if one.picture.size == BAD)
        assert max(asked.values()) <= 2

    def test_a_suspect_has_the_server_for_itself(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty)
        together: list[int] = []
        all_there = threading.Barrier(3, timeout=20)
        trials = iter([Reply(b"away", 502)] * 3)
        faulty.asked.clear()

        def dying(asked: Asked) -> Reply | None:
            if asked.is_trial:
                return next(trials, None)
            if len(faulty.images) <= 3:
                all_there.wait()
                return Reply(b"bad gateway", 502)
            together.append(faulty.at_once)
            time.sleep(0.05)
            return None

        faulty.behave = dying
        sampled = reader.read([picture(name) for name in "abc"])
        assert len(sampled) == 3 and together == [1, 1, 1]

    def test_deaths_are_counted_across_runs(self, faulty: FaultyServer, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png", "c.png", "d.png")
        picture_file(folder / "b.png", size=BAD)
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=1))
        mortal = Mortal(faulty, 1000)
        first = run(settings)
        assert isinstance(first.error, EndpointError)
        known = reasons(first)
        assert known["b.png"] == "model_failed" and mortal.deaths == 1
        assert "asked alone by the next run" in str(next(r.error for r in first.records if r.file_name == "b.png"))
        mortal.left = 0
        second = run(settings)  # it is asked alone, and the server does not come back
        assert reasons(second)["b.png"] == "model_failed" and mortal.deaths == 2
        mortal.left, mortal.away = 0, 2
        third = run(settings)
        assert third.error is None and mortal.deaths == 3
        assert reasons(third) == {"a.png": "agreed", "b.png": "model_failed", "c.png": "agreed", "d.png": "agreed"}
        faulty.asked.clear()
        assert reasons(run(settings)) == reasons(third) and not faulty.asked, "nothing is left to read"
        assert mortal.deaths == 3, "it is not asked a fourth time"

    def test_a_server_that_never_comes_back_in_time_is_not_killed_for_ever(
        self, faulty: FaultyServer, tmp_path: Path
    ) -> None:
        """Somebody starts it again every morning: each run ends early, and the culprit is known all the same."""
        names = ["a.png", "b.png", "d.png", "e.png"]
        folder = folder_of(tmp_path / "in", *names)
        picture_file(folder / "c.png", size=BAD)
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=1))
        settings = replace(settings, sampling=SamplingConfig(num_samples=K, batch_size=5))
        all_there = threading.Barrier(5, timeout=20)
        mortal = Mortal(faulty, 1000)

        def together(asked: Asked) -> Reply | None:
            if not asked.is_trial and not mortal.deaths:
                all_there.wait()
                if asked.picture.size != BAD:
                    time.sleep(0.1)
            return mortal(asked)

        faulty.behave = together
        first = run(settings)
        assert isinstance(first.error, EndpointError) and set(reasons(first).values()) == {"model_failed"}
        for _ in range(6):
            mortal.left = 0
            last = run(settings)
        assert mortal.deaths == 3 and last.error is None
        assert reasons(last) == {**dict.fromkeys(names, "agreed"), "c.png": "model_failed"}

    def test_ctrl_c_while_it_is_away_forgets_no_death(self, faulty: FaultyServer, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png")
        picture_file(folder / "b.png", size=BAD)
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=50))
        mortal = Mortal(faulty, 10**6)

        def impatient(asked: Asked) -> Reply | None:
            told = mortal(asked)
            if mortal.deaths and mortal.left == 10**6 - 9:
                os.kill(os.getpid(), signal.SIGINT)
            return told

        faulty.behave = impatient
        assert run(settings).interrupted == signal.SIGINT and mortal.deaths == 1
        mortal.left, mortal.away = 0, 3
        assert reasons(run(settings)) == {"a.png": "agreed", "b.png": "model_failed"} and mortal.deaths == 2

    def test_many_suspects_at_once_do_not_end_the_run(self, faulty: FaultyServer, tmp_path: Path) -> None:
        names = [f"{i:02}.png" for i in range(24)]
        folder = folder_of(tmp_path / "in", *names)
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, concurrency=24))
        settings = replace(settings, sampling=SamplingConfig(num_samples=K, batch_size=24))
        all_there, first = threading.Barrier(24, timeout=20), threading.Event()
        down = iter(range(24 + 4))

        def dies_once(asked: Asked) -> Reply | None:
            if asked.is_trial:
                return Reply(b"bad gateway", 502) if first.is_set() and next(down, None) is not None else None
            if not first.is_set():
                all_there.wait()
                first.set()
                return Reply(b"bad gateway", 502)
            return None

        faulty.behave = dies_once
        result = run(settings)
        assert result.error is None and set(reasons(result).values()) == {"agreed"}

    def test_a_copy_of_a_deadly_image_is_not_asked_either(self, faulty: FaultyServer, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png")
        picture_file(folder / "b.png", size=BAD)
        settings = config(faulty, folder, tmp_path / "out.parquet")
        mortal = Mortal(faulty, 6)
        assert reasons(run(settings))["b.png"] == "model_failed" and mortal.deaths == 2
        run(settings)
        (folder / "z_copy.png").write_bytes((folder / "b.png").read_bytes())
        assert reasons(run(settings)) == {"a.png": "agreed", "b.png": "model_failed", "z_copy.png": "model_failed"}
        assert mortal.deaths == 3

    def test_another_time_stamp_asks_again(self, faulty: FaultyServer, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png")
        bad = picture_file(folder / "b.png", size=BAD)
        settings = config(faulty, folder, tmp_path / "out.parquet")
        Mortal(faulty, 6)
        run(settings)
        run(settings)
        faulty.behave = lambda asked: None  # somebody mended the server
        assert reasons(run(settings))["b.png"] == "model_failed"
        bad.touch()
        assert reasons(run(settings)) == {"a.png": "agreed", "b.png": "agreed"}

    def test_an_innocent_image_that_was_under_way_is_read_and_forgiven(
        self, faulty: FaultyServer, tmp_path: Path
    ) -> None:
        folder = folder_of(tmp_path / "in", "a.png", "b.png")
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=0))
        faulty.behave = lambda asked: None if asked.is_trial and not faulty.images else Reply(b"bad gateway", 502)
        first = run(settings)
        assert isinstance(first.error, EndpointError) and set(reasons(first).values()) == {"model_failed"}
        faulty.behave = lambda asked: None
        assert set(reasons(run(settings)).values()) == {"agreed"}

    def test_a_broken_connection_to_a_server_that_lives_is_no_death(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty)
        seen: Counter[bytes] = Counter()

        def cut_once(asked: Asked) -> Reply | None:
            seen[asked.name] += 1
            return Reply({"choices": []}, cut=True) if seen[asked.name] == 1 and not asked.is_trial else None

        faulty.behave = cut_once
        assert len(reader.read([picture("a"), picture("b")])) == 2

    def test_two_cuts_of_the_network_route_no_image_for_ever(self, faulty: FaultyServer, tmp_path: Path) -> None:
        """One cut in company and one alone: the image has died of neither."""
        folder = folder_of(tmp_path / "in", "a.png", "b.png")
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=0))
        for _ in range(2):
            faulty.asked.clear()
            faulty.behave = lambda asked: None if asked.is_trial and not faulty.images else Reply(b"", 502)
            assert isinstance(run(settings).error, EndpointError)
        faulty.behave = lambda asked: None
        assert set(reasons(run(settings)).values()) == {"agreed"}

    @pytest.mark.parametrize(
        "busy",
        [
            Reply(b"wait", 429, {"Retry-After": "1"}),
            Reply(b"", 429),
            Reply(b"wait", 503, {"Retry-After": "1"}),
            Reply(b"", 503),
            Reply(b"", 529),
        ],
        ids=["429 with a time", "429", "503 with a time", "503", "529"],
    )
    @pytest.mark.parametrize("broken", [Reply(b"", 500), Reply(b"", 502), Reply({"choices": []}, cut=True)])
    def test_a_busy_server_is_not_a_dead_one(self, faulty: FaultyServer, busy: Reply, broken: Reply) -> None:
        reader = captioner(faulty)
        faulty.asked.clear()
        once, busy_once = iter([broken]), iter([busy])

        def behave(asked: Asked) -> Reply | None:
            return next(busy_once, None) if asked.is_trial else next(once, None)

        faulty.behave = behave
        found = [outcome for _, outcome in reader.read_each([picture("a")])]
        assert len(found) == 1 and not isinstance(found[0], Exception), "no death was handed over"

    def test_a_proxy_that_calls_a_dead_server_busy_hides_no_culprit(self, faulty: FaultyServer, tmp_path: Path) -> None:
        """It says 503 while no server is behind it; the run must not hang on the same image every night."""
        folder = folder_of(tmp_path / "in", "a.png", "c.png")
        picture_file(folder / "b.png", size=BAD)
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=4))
        left = 0

        def behave(asked: Asked) -> Reply | None:
            nonlocal left
            if left:
                left -= 1
                return Reply(b"no server is available", 503)
            if asked.picture.size == BAD:
                left = 2
                return Reply(b"bad gateway", 502)
            return None

        faulty.behave = behave
        results = [run(settings) for _ in range(4)]
        assert results[-1].error is None
        assert reasons(results[-1]) == {"a.png": "agreed", "b.png": "model_failed", "c.png": "agreed"}
        assert "not asked again" in str(results[-1].records[1].error)


class TestSlowRestart:
    """A server takes longer to start again than a request is tried; images that never came to it are innocent."""

    @pytest.mark.parametrize("died", [True, False], ids=["of an image", "between two images"])
    def test_images_that_did_not_come_to_the_server_are_asked_again(
        self, faulty: FaultyServer, died: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = captioner(faulty, concurrency=2, retries=3)
        names = ["a", "b", "c", "d", "e"]
        troubles = Counter[str]()
        once, real = reader._server._once, _names_by_picture([*map(picture, names)])
        down = {"now": True}

        async def refused(request: dict[str, Any]) -> dict[str, Any]:
            """Refuse connections while the server is down, and let it be back once all tries are used up."""
            name = real(request)
            if name == "a" and died and not troubles["a"]:
                troubles["a"] += 1
                raise server._PassingError("no connection (broke off)", broke=True)
            if down["now"]:
                troubles[name] += 1
                if sum(troubles[one] >= 4 for one in names) >= len(names) - died:
                    down["now"] = False
                raise server._PassingError("no connection (refused)", sent=False)
            return await once(request)

        monkeypatch.setattr(reader._server, "_once", refused)
        found = {one.file.file_name: outcome for one, outcome in reader.read_each([*map(picture, names)])}
        assert sorted(found) == names and not [one for one in found.values() if isinstance(one, Exception)]
        assert all(troubles[name] >= 4 for name in names[died:])

    def test_a_server_that_takes_test_images_alone_is_not_asked_for_ever(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty, retries=1)
        tried = Counter[bool]()
        once = reader._server._once

        async def refused(request: dict[str, Any]) -> dict[str, Any]:
            trial = request["messages"] == reader._trial["messages"]
            tried[trial] += 1
            if not trial:
                raise server._PassingError("no connection (refused)", sent=False)
            return await once(request)

        reader._server._once = refused  # type: ignore[method-assign, assignment]
        with pytest.raises(ModelError, match="no connection"):
            reader.read([picture("a")])
        assert tried[False] == 2 * TURNS and tried[True] == TURNS


def _names_by_picture(pictures: list[Picture]) -> Callable[[dict[str, Any]], str]:
    """Return what says of a request which of these pictures it holds; "" for a test image."""
    urls = {data_url(one.rgb, 2048): one.file.file_name for one in pictures}
    return lambda request: urls.get(request["messages"][0]["content"][0]["image_url"]["url"], "")


class TestBreakingOnOneImage:
    @pytest.mark.parametrize("status", [500, 501, 520])
    @pytest.mark.parametrize("takes_n", [True, False])
    def test_two_equal_answers_are_enough_where_others_are_read(
        self, faulty: FaultyServer, tmp_path: Path, status: int, takes_n: bool
    ) -> None:
        folder = folder_of(tmp_path / "in", "a.png", "b.png", "c.png")
        picture_file(folder / "bad.png", size=BAD)
        faulty.takes_n = takes_n
        text = "failed to process image: the prompt exceeds the available context size"
        faulty.behave = lambda asked: refusal(text, status) if asked.picture.size == BAD else None
        result = run(config(faulty, folder, tmp_path / "out.parquet"))
        assert result.error is None
        assert {name for name, why in reasons(result).items() if why != "agreed"} == {"bad.png"}
        bad = next(record for record in result.records if record.file_name == "bad.png")
        assert text in str(bad.error) and "twice" in str(bad.error)
        asked = [one for one in faulty.images if one.picture.size == BAD]
        assert len(asked) <= (2 if takes_n else 2 * K), "--retries is 8"

    def test_different_troubles_are_still_waited_for(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty)
        texts = iter(f"trouble {i}" for i in range(5))

        def behave(asked: Asked) -> Reply | None:
            text = None if asked.is_trial else next(texts, None)
            return None if text is None else refusal(text, 500)

        faulty.behave = behave
        assert len(reader.read([picture()])) == 1 and len(faulty.images) == 6

    @pytest.mark.parametrize(
        "reply", [Reply(b"busy", 503), Reply(b"busy", 429), Reply(b"busy", 500, {"Retry-After": "1"})]
    )
    def test_a_busy_server_is_waited_for_as_ever(self, faulty: FaultyServer, reply: Reply) -> None:
        reader = captioner(faulty)
        left = iter(range(5))
        faulty.asked.clear()
        faulty.behave = lambda asked: reply if not asked.is_trial and next(left, None) is not None else None
        assert len(reader.read([picture()])) == 1 and len(faulty.images) == 6
        assert not any(asked.is_trial for asked in faulty.asked), "nobody asks for the test image"


def test_a_failure_of_before_holds_no_deaths(faulty: FaultyServer, tmp_path: Path) -> None:
    """Lines of older journals say nothing of deaths."""
    folder = folder_of(tmp_path / "in", "a.png")
    settings = config(faulty, folder, tmp_path / "out.parquet")
    faulty.behave = lambda asked: None if asked.is_trial else refusal("odd")
    run(settings)
    journal = settings.out.with_suffix(".journal.jsonl")
    from vlmgate.store.lines import parsed, sealed

    lines = journal.read_bytes().splitlines(keepends=True)
    older = [parsed(line) for line in lines[1:]]
    assert any(line is not None and line.pop("deaths", None) == 0 for line in older)
    journal.write_bytes(lines[0] + b"".join(f"{sealed(line)}\n".encode() for line in older if line))
    faulty.behave = lambda asked: None
    assert reasons(run(replace(settings))) == {"a.png": "agreed"}
