"""Model servers that do as they should, as they like, or nothing at all: no image is lost, none passes by mistake."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.fakes import SilentProgress, folder_of, picture_file
from tests.support.faulty_server import AGREE, Asked, FaultyServer, Reply, choice, completion, refusal
from vlmgate.captioner import load_captioner
from vlmgate.captioner.server import client as server
from vlmgate.captioner.server import engine as endpoint
from vlmgate.captioner.server.engine import EndpointCaptioner
from vlmgate.captioner.streams import COLOUR_QUESTION, seeds, trial_picture
from vlmgate.config import EndpointConfig, ModelConfig, SamplingConfig, ScanConfig
from vlmgate.data import ImageFile, Picture, Reason, Route
from vlmgate.errors import EndpointError, ModelError, ResumeError
from vlmgate.run.loop import scan
from vlmgate.run.outcome import ScanResult
from vlmgate.store.result import read_result

K = 4


def model(faulty: FaultyServer, **changes: Any) -> ModelConfig:
    return ModelConfig(model="some-model", endpoint=EndpointConfig(faulty.url, **{"timeout": 20.0} | changes))


def captioner(faulty: FaultyServer, sampling: SamplingConfig | None = None, **changes: Any) -> EndpointCaptioner:
    made = load_captioner(model(faulty, **changes), sampling or SamplingConfig(num_samples=K))
    assert isinstance(made, EndpointCaptioner)
    return made


def picture(name: str = "a", size: tuple[int, int] = (40, 30)) -> Picture:
    rng = np.random.default_rng(list(name.encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    digest = name.encode().hex().rjust(64, "0")
    file = ImageFile(name, Path(name), digest, 1, 1, *size, "RGB", None, 1, 1)
    return Picture(file, Image.fromarray(pixels))


def config(faulty: FaultyServer, folder: Path, out: Path, **changes: Any) -> ScanConfig:
    sampling = SamplingConfig(num_samples=K, batch_size=2)
    told: dict[str, Any] = {"model": model(faulty), "sampling": sampling}
    return ScanConfig(folder, out, **told | changes)


def run(settings: ScanConfig) -> ScanResult:
    return scan(settings, SilentProgress())


class TestOneByOne:
    def test_a_picture_that_takes_long_holds_back_no_other(self, faulty: FaultyServer) -> None:
        slow, bad, quick = picture("slow"), picture("bad"), picture("quick")
        come = threading.Event()

        def behave(asked: Asked) -> Reply | None:
            if asked.name == slow.rgb.tobytes()[:600]:
                assert come.wait(20)
            return refusal("too odd") if asked.name == bad.rgb.tobytes()[:600] else None

        reader = captioner(faulty)
        faulty.behave = behave
        seen = []
        for one, outcome in reader.read_each([slow, bad, quick]):
            seen.append((one.file.file_name, isinstance(outcome, ModelError)))
            come.set()
        assert seen == [("quick", False), ("slow", False), ("bad", True)], "failures come last"

    def test_what_is_read_is_on_the_disk_while_the_rest_of_its_batch_is_waited_for(
        self, faulty: FaultyServer, tmp_path: Path
    ) -> None:
        """A night at a server that is killed loses what is under way, not the readings that were paid for."""
        folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(6)))
        last = Image.open(folder / "5.png").convert("RGB").tobytes()[:600]
        settings = config(faulty, folder, tmp_path / "r.parquet", sampling=SamplingConfig(num_samples=K, batch_size=6))
        journalled: list[int] = []

        def behave(asked: Asked) -> None:
            if asked.name == last:
                journal, end = settings.out.with_suffix(".journal.jsonl"), time.monotonic() + 20
                while time.monotonic() < end and (not journalled or journalled[-1] < 5):
                    journalled.append(journal.read_bytes().count(b'"kind":"reading"') if journal.exists() else 0)
                    time.sleep(0.02)

        faulty.behave = behave
        result = run(settings)
        assert journalled[-1] == 5 and [r.reason for r in result.records] == [Reason.AGREED] * 6


class TestAsking:
    def test_a_server_that_can_all_is_asked_once_an_image(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty)
        trials = len(faulty.asked)
        pictures = [picture("a"), picture("b")]
        sampled = reader.read(pictures)
        assert trials <= 8
        assert [len(one.captions) for one in sampled] == [K, K]
        assert {(c.text, c.finish, c.mean_logprob, c.num_tokens) for one in sampled for c in one.captions} == {
            (AGREE, "stop", -1.0, 2)
        }
        assert len(faulty.images) == 2
        first = next(asked for asked in faulty.images if asked.name == pictures[0].rgb.tobytes()[:600])
        sent = first.body
        assert sent["n"] == K and sent["seed"] == seeds(0, pictures[0].file.sha256, 1, K)[0]
        assert (sent["model"], sent["temperature"], sent["top_p"], sent["max_tokens"]) == ("some-model", 1.0, 1.0, 192)
        assert (sent["top_k"], sent["min_p"], sent["logprobs"]) == (-1, 0.0, True)
        assert reader.info.route == "n samples a request"
        told = reader.info.server
        assert told is not None and told["url"] == faulty.url and "vision features" in told["lacks"]
        assert "same text" in told["seeds"] and told["log_probabilities"] == "given"

    def test_what_is_refused_is_left_out(self, faulty: FaultyServer) -> None:
        strange = {"n", "logprobs", "seed", "top_k", "min_p", "chat_template_kwargs", "generation_config"}

        def strict(asked: Asked) -> Reply | None:
            odd = strange & set(asked.body)
            return refusal(f"unknown: {sorted(odd)}") if odd else None

        faulty.behave = strict
        reader = captioner(faulty)
        faulty.asked.clear()
        (sampled,) = reader.read([picture()])
        assert len(sampled.captions) == len(faulty.images) == K
        assert all(caption.mean_logprob is None for caption in sampled.captions)
        told = reader.info.server
        assert told is not None and told["seeds"] == "none is taken" and told["log_probabilities"] == "not given"
        assert told["other_sampling"].startswith("the server's own")

    @pytest.mark.parametrize("how", ["refused", "ignored", "copies"])
    def test_without_n_every_sample_has_a_request_and_a_seed_of_its_own(self, faulty: FaultyServer, how: str) -> None:
        def behave(asked: Asked) -> Reply | dict[str, Any] | None:
            if how == "refused" and "n" in asked.body:
                return refusal("n must be 1", 422)
            if how == "copies" and "n" in asked.body:
                return completion(*[choice("the same", index=i) for i in range(asked.body["n"])])
            return None

        faulty.behave, faulty.takes_n = behave, how != "ignored"
        reader = captioner(faulty)
        one = picture()
        reader.read([one])
        assert sorted(asked.body["seed"] for asked in faulty.images) == sorted(seeds(0, one.file.sha256, 1, K))
        assert not any("n" in asked.body for asked in faulty.images)
        assert reader.info.route == "a request a sample"

    def test_a_server_that_does_not_sample_is_refused(self, faulty: FaultyServer) -> None:
        faulty.behave = lambda asked: completion(*[choice(index=i) for i in range(asked.body.get("n", 1))])
        with pytest.raises(EndpointError, match="does not sample"):
            captioner(faulty)

    def test_who_only_thinks_within_the_trial_is_not_taken_for_one(self, faulty: FaultyServer, tmp_path: Path) -> None:
        def thinking(asked: Asked) -> dict[str, Any] | None:
            empty = choice(None, "length")
            thinks = asked.is_trial and asked.prompt != COLOUR_QUESTION
            return completion(*[empty] * asked.body.get("n", 1)) if thinks else None

        faulty.behave = thinking
        reader = captioner(faulty)
        assert reader.info.server is not None and reader.info.server["independent"] == "could not be tested"
        assert reader.info.route == "a request a sample"
        folder = folder_of(tmp_path / "in", "a.png")
        progress = SilentProgress()
        scan(config(faulty, folder, tmp_path / "out.parquet"), progress)
        assert any("could not be tested whether this server samples" in message for message in progress.messages)
        _, provenance = read_result(tmp_path / "out.parquet")
        assert any("could not be tested whether this server samples" in line for line in provenance["warnings"])

    def test_who_refuses_the_heat_or_needs_more_words_is_tested_otherwise(self, faulty: FaultyServer) -> None:
        def cool(asked: Asked) -> Reply | None:
            return refusal("temperature is at most 1") if asked.body["temperature"] > 1 else None

        faulty.behave = cool
        faulty.say = lambda asked, sample: f"{AGREE} {asked.body.get('seed')} {sample}"
        reader = captioner(faulty)
        assert reader.info.route == "n samples a request"
        assert reader.info.server is not None and reader.info.server["independent"] == "seen to differ"

        def thinking(asked: Asked) -> dict[str, Any] | None:
            short = asked.body["max_tokens"] < 192
            return completion(*[choice(None, "length")] * asked.body.get("n", 1)) if short else None

        faulty.behave = thinking
        told = captioner(faulty).info.server
        assert told is not None and told["independent"] == "seen to differ"

    def test_the_other_name_of_the_token_limit(self, faulty: FaultyServer) -> None:
        def modern(asked: Asked) -> Reply | None:
            odd = {"max_tokens", "top_k", "generation_config", "chat_template_kwargs"} & set(asked.body)
            return refusal("use max_completion_tokens") if odd else None

        faulty.behave = modern
        captioner(faulty).read([picture()])
        assert {asked.body["max_completion_tokens"] for asked in faulty.images} == {192}

    def test_a_wrong_name_is_told_with_the_right_ones(self, faulty: FaultyServer) -> None:
        faulty.behave = lambda asked: refusal("no such model", 404)
        with pytest.raises(
            EndpointError, match=r"HTTP 404: no such model.*other-model; name one with --model"
        ) as caught:
            captioner(faulty)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"<!doctype html><title>Login</title>", "a web page; a URL usually ends in /v1"),
            (b"{", "no JSON"),
            (b"", "nothing"),
            (b"[" * 5000, "no JSON"),
            (b'{"object": "list"}', "no chat completion"),
            (b'{"choices": {"a": 1}}', "no chat completion"),
        ],
    )
    def test_what_is_no_model_server(self, faulty: FaultyServer, body: bytes, words: str) -> None:
        faulty.behave = lambda asked: Reply(body)
        with pytest.raises(EndpointError, match=words):
            captioner(faulty)

    def test_nobody_there(self, faulty: FaultyServer) -> None:
        settings = model(faulty)
        faulty.stop()
        with pytest.raises(EndpointError, match=r"no connection.*See whether it runs"):
            load_captioner(settings, SamplingConfig(num_samples=K))

    def test_no_redirect_is_followed(self, faulty: FaultyServer) -> None:
        elsewhere = FaultyServer()
        with elsewhere.running():
            faulty.behave = lambda asked: Reply(status=307, headers={"Location": f"{elsewhere.url}/chat/completions"})
            with pytest.raises(EndpointError, match="sends us elsewhere"):
                captioner(faulty)
        assert not elsewhere.asked

    def test_no_proxy_stands_between_this_machine_and_itself(
        self, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert len(captioner(faulty).read([picture()])) == 1

    def test_top_k_that_cannot_be_had_is_no_secret(self, faulty: FaultyServer) -> None:
        odd = {"top_k", "generation_config"}
        faulty.behave = lambda asked: refusal("unknown field") if odd & set(asked.body) else None
        with pytest.raises(EndpointError, match="takes no top_k"):
            captioner(faulty, SamplingConfig(num_samples=K, top_k=20))


class TestReading:
    def test_a_question_is_asked_beside(self, faulty: FaultyServer) -> None:
        faulty.say = lambda asked, sample: "ok" if "Answer with one of: ok, bad" in asked.prompt else AGREE
        sampling = SamplingConfig(num_samples=K, question="Which?", choices=("ok", "bad"), max_answer_tokens=9)
        (sampled,) = captioner(faulty, sampling).read([picture()])
        assert sampled.answers is not None and [answer.text for answer in sampled.answers] == ["ok"] * K
        assert [caption.text for caption in sampled.captions] == [AGREE] * K
        by_prompt = {asked.prompt[:6]: asked.body for asked in faulty.images}
        assert by_prompt["Which?"]["max_tokens"] == 9
        assert by_prompt["Which?"]["seed"] == seeds(0, picture().file.sha256, 1, K, "answers")[0]

    def test_views_are_sent_one_by_one(self, faulty: FaultyServer) -> None:
        (sampled,) = captioner(faulty, SamplingConfig(num_samples=K, views=2)).read([picture()])
        assert sampled.views == (0, 0, 1, 1)
        assert len({asked.name for asked in faulty.images}) == 2
        assert [asked.body["n"] for asked in faulty.images] == [2, 2]

    def test_another_number_of_samples(self, faulty: FaultyServer) -> None:
        (sampled,) = captioner(faulty).with_samples(2).read([picture()])
        assert len(sampled.captions) == 2

    def test_captions_stay_with_their_image(self, faulty: FaultyServer) -> None:
        pictures = [picture(name) for name in "abcdefghij"]
        names = {one.rgb.tobytes()[:600]: one.file.file_name for one in pictures}

        def late(asked: Asked) -> dict[str, Any] | None:
            if asked.is_trial:
                return None
            name = names[asked.name]
            time.sleep(0.01 * (ord(name) % 3))
            return completion(*[choice(f"part {name}", index=i) for i in range(K)])

        faulty.behave = late
        sampled = captioner(faulty).read(pictures)
        assert [one.captions[0].text for one in sampled] == [f"part {one.file.file_name}" for one in pictures]

    def test_so_many_requests_at_once_and_no_more(self, faulty: FaultyServer) -> None:
        faulty.takes_n = False
        reader = captioner(faulty, concurrency=3)
        faulty.behave = lambda asked: time.sleep(0.02)
        reader.read([picture(name) for name in "abcde"])
        assert 2 <= faulty.most_at_once <= 3

    def test_images_are_sent_small_enough(self, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        noisy = picture("noisy", (400, 300))
        monkeypatch.setattr("vlmgate.captioner.server.messages.MOST_PNG", 50_000)
        for max_side in (100, 400):
            captioner(faulty, max_side=max_side).read([noisy])
        sent = [(asked.picture.size, asked.kind) for asked in faulty.images]
        assert sent == [((100, 75), "png"), ((400, 300), "jpeg")]

    def test_only_pixels_are_sent(self, faulty: FaultyServer, tmp_path: Path) -> None:
        path = tmp_path / "in" / "secret name.jpg"
        path.parent.mkdir()
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "taken in hall 4"  # orientation, description
        Image.new("RGB", (64, 16), "red").save(path, exif=exif, icc_profile=b"a profile")
        run(config(faulty, path.parent, tmp_path / "out.parquet"))
        (asked,) = faulty.images
        assert asked.picture.size == (16, 64)  # upright
        assert asked.picture.mode == "RGB" and not asked.picture.getexif() and "icc_profile" not in asked.picture.info
        assert "secret" not in json.dumps(asked.body)


class TestTrouble:
    @pytest.mark.parametrize(
        "trouble",
        [
            Reply(b"busy", 429, {"Retry-After": "1"}),
            Reply(b"down", 503),
            Reply(b"oops", 500),
            Reply(completion(choice()), cut=True),
            Reply(b"<html>gateway</html>"),
            Reply({"choices": []}),
        ],
        ids=["429", "503", "500", "cut", "html", "empty"],
    )
    def test_what_passes_is_waited_for(self, faulty: FaultyServer, trouble: Reply) -> None:
        reader = captioner(faulty)
        seen: Counter[bytes] = Counter()

        def first_time(asked: Asked) -> Reply | None:
            seen[asked.name] += 1
            return trouble if seen[asked.name] == 1 else None

        faulty.behave = first_time
        sampled = reader.read([picture("a"), picture("b")])
        assert [[c.text for c in one.captions] for one in sampled] == [[AGREE] * K] * 2

    def test_a_short_set_is_completed(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty)
        faulty.behave = lambda asked: completion(choice(), choice(index=1)) if "n" in asked.body else None
        one = picture()
        (sampled,) = reader.read([one])
        assert len(sampled.captions) == K
        singly = [asked.body["seed"] for asked in faulty.images if "n" not in asked.body]
        assert sorted(singly) == sorted(seeds(0, one.file.sha256, 1, K)[2:])

    def test_more_than_asked_for_is_not_taken(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty)
        faulty.behave = lambda asked: completion(*[choice(f"text {i}", index=i) for i in range(9)])
        (sampled,) = reader.read([picture()])
        assert [caption.text for caption in sampled.captions] == [f"text {i}" for i in range(K)]

    def test_a_set_that_stays_short_goes_to_a_person(self, faulty: FaultyServer, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png", "b.png")
        bad = Image.open(folder / "b.png").tobytes()[:600]

        def short(asked: Asked) -> dict[str, Any] | None:
            return completion(*[choice()] * (3 if "n" in asked.body else 0)) if asked.name == bad else None

        faulty.behave = short
        result = run(config(faulty, folder, tmp_path / "out.parquet"))
        rows = {record.file_name: record for record in result.records}
        assert result.error is None
        assert rows["a.png"].route == Route.AUTO_ACCEPT
        assert (rows["b.png"].route, rows["b.png"].reason) == (Route.HUMAN_REVIEW, Reason.MODEL_FAILED)
        assert rows["b.png"].captions is None and "samples stay incomplete" in str(rows["b.png"].error)

    def test_one_bad_image_costs_the_others_nothing(self, faulty: FaultyServer, tmp_path: Path) -> None:
        names = [f"{i}.png" for i in range(8)]
        folder = folder_of(tmp_path / "in", *names)
        bad = Image.open(folder / "5.png").tobytes()[:600]
        faulty.behave = lambda asked: refusal("image too odd", 400) if asked.name == bad else None
        settings = config(faulty, folder, tmp_path / "out.parquet", sampling=SamplingConfig(num_samples=K))
        result = run(settings)
        failed = [record for record in result.records if record.reason == Reason.MODEL_FAILED]
        assert [record.file_name for record in failed] == ["5.png"] and "image too odd" in str(failed[0].error)
        assert [record.file_name for record in result.records] == names
        assert set(Counter(asked.name for asked in faulty.images).values()) == {1}  # none was asked for twice

    def test_an_image_on_which_the_server_always_breaks(self, faulty: FaultyServer, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", "a.png", "b.png", "c.png")
        bad = Image.open(folder / "b.png").tobytes()[:600]
        faulty.behave = lambda asked: Reply(b"crash", 500) if asked.name == bad else None
        result = run(config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=1)))
        assert {r.file_name: str(r.reason) for r in result.records if r.reason != Reason.AGREED} == {
            "b.png": "model_failed"
        }
        assert result.error is None

    def test_a_slow_answer_is_given_up(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty, timeout=2.0, retries=0)
        faulty.behave = lambda asked: None if asked.is_trial else Reply(completion(choice()), delay=6)
        with pytest.raises(ModelError, match=r"no answer within 2 s"):
            reader.read([picture()])

    def test_an_endless_answer_is_given_up(self, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        reader = captioner(faulty)
        monkeypatch.setattr(server, "MOST_BYTES", 1024**2)
        for status in (200, 500):
            faulty.asked.clear()
            faulty.behave = lambda asked, s=status: (  # type: ignore[misc]
                None if asked.is_trial else Reply(b'{"choices": [' + b" " * 2_000_000 + b"]}", s)
            )
            with pytest.raises(ModelError, match="more than 1 MiB"):
                reader.read([picture()])
            assert len(faulty.images) == 1  # it would be no shorter the next time

    def test_a_server_that_goes_away_ends_the_run_which_resumes_elsewhere(
        self, faulty: FaultyServer, tmp_path: Path
    ) -> None:
        folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(6)))
        settings = config(faulty, folder, tmp_path / "out.parquet", model=model(faulty, retries=1))

        def leaving(asked: Asked) -> Reply | None:
            if len({one.name for one in faulty.images}) <= 2:
                return None
            faulty.behave = lambda asked: Reply(b"shutting down", 503)
            return Reply(b"shutting down", 503)

        faulty.behave = leaving
        result = run(settings)
        assert isinstance(result.error, EndpointError) and result.error.exit_code == 1
        assert "the server is gone" in str(result.error) and "\n" not in str(result.error)
        reasons = [str(record.reason) for record in result.records]
        assert reasons == ["agreed"] * 2 + ["not_read"] * 4
        other = FaultyServer()
        with other.running():
            result = run(replace(settings, model=model(other)))
        assert result.error is None and {str(record.reason) for record in result.records} == {"agreed"}
        assert len({asked.name for asked in other.images}) == 4

    def test_ctrl_c_need_not_wait_for_the_server(self, faulty: FaultyServer, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(4)))
        asked_slowly = threading.Event()

        def slow(asked: Asked) -> Reply | None:
            if asked.is_trial or len({one.name for one in faulty.images}) <= 2:
                return None
            if not asked_slowly.is_set():
                asked_slowly.set()
                os.kill(os.getpid(), signal.SIGINT)
            return Reply(completion(choice()), delay=3)

        faulty.behave = slow
        result = run(config(faulty, folder, tmp_path / "out.parquet"))
        assert asked_slowly.is_set()
        assert result.interrupted == signal.SIGINT
        assert [str(r.reason) for r in result.records] == ["agreed"] * 2 + ["not_read"] * 2


class TestDegenerate:
    @pytest.mark.parametrize(
        ("odd", "reason"),
        [
            (choice(AGREE, "length"), Reason.CUT_OFF),
            (choice(AGREE, None), Reason.CUT_OFF),
            (choice(AGREE, "a new reason"), Reason.CUT_OFF),
            (choice(AGREE, "tool_calls", tool_calls=[{"type": "function"}]), Reason.CUT_OFF),
            (choice(AGREE, "stop", tool_calls=[{"type": "function"}]), Reason.CUT_OFF),
            (choice(AGREE, "content_filter"), Reason.REFUSED),
            (choice(AGREE, "stop", refusal="Against my rules."), Reason.REFUSED),
            (choice(None, "stop", refusal="Against my rules."), Reason.REFUSED),
            (choice(None), Reason.EMPTY_CAPTION),
            (choice(None, "length", reasoning_content="Let me see: a washer"), Reason.EMPTY_CAPTION),
            (choice("<think>a washer, it seems", "length"), Reason.EMPTY_CAPTION),
            (choice("x" * 70_000), Reason.EMPTY_CAPTION),
            (choice("a washer " * 9_000), Reason.EMPTY_CAPTION),
            ({"index": 0, "message": {"content": 7}, "finish_reason": "stop"}, Reason.EMPTY_CAPTION),
            ({"index": 0, "message": {"content": AGREE}, "finish_reason": ["stop"]}, Reason.CUT_OFF),
        ],
    )
    def test_one_odd_text_among_k_goes_to_a_person(
        self, faulty: FaultyServer, tmp_path: Path, odd: dict[str, Any], reason: Reason
    ) -> None:
        folder = folder_of(tmp_path / "in", "a.png")
        odd = odd | {"index": K - 1}
        good = [choice(index=i) for i in range(K - 1)]
        faulty.behave = lambda asked: None if asked.is_trial else completion(*good, odd)
        (record,) = run(config(faulty, folder, tmp_path / "out.parquet")).records
        assert (record.route, record.reason) == (Route.HUMAN_REVIEW, reason)

    def test_thoughts_are_no_part_of_a_caption(self, faulty: FaultyServer) -> None:
        reader = captioner(faulty)
        parts = [
            {"type": "text", "text": f"<think>A gear? No.</think>\n{AGREE[:7]}"},
            {"type": "text", "text": AGREE[7:]},
        ]
        one = choice(AGREE) | {"message": {"content": parts, "reasoning_content": "A gear? No."}}
        faulty.behave = lambda asked: completion(*[one] * K)
        (sampled,) = reader.read([picture()])
        assert {caption.text for caption in sampled.captions} == {AGREE}

    @pytest.mark.parametrize("listed", [None, [], [{"token": "a"}], [{"logprob": "x"}], [{"logprob": float("nan")}], 5])
    def test_log_probabilities_that_are_none(self, faulty: FaultyServer, listed: object) -> None:
        reader = captioner(faulty)
        one = choice() | {"logprobs": {"content": listed}}
        faulty.behave = lambda asked: completion(*[one] * K)
        (sampled,) = reader.read([picture()])
        assert {caption.mean_logprob for caption in sampled.captions} == {None}

    def test_hostile_text_is_kept_as_text(self, faulty: FaultyServer, tmp_path: Path) -> None:
        from typer.testing import CliRunner

        from vlmgate.cli import app

        hostile = "a [bold]washer[/bold] \x1b[31m\x00 \ud800 <script>alert(1)</script> =1+1"
        faulty.say = lambda asked, sample: hostile
        out = tmp_path / "out.parquet"
        run(config(faulty, folder_of(tmp_path / "in", "a.png"), out))
        (record,), _ = read_result(out)
        assert record.captions is not None and "[bold]washer[/bold]" in record.captions[0]
        shown = CliRunner().invoke(app, ["show", str(out), "a.png"])
        assert shown.exit_code == 0 and "\x1b[31m" not in shown.output and "[bold]washer[/bold]" in shown.output


class TestKeys:
    KEY = "sk-this-is-the-secret-0123456789"

    @pytest.fixture
    def key(self, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("VLMGATE_API_KEY", self.KEY)
        return self.KEY

    def test_the_key_travels_in_the_header_alone(self, faulty: FaultyServer, key: str) -> None:
        captioner(faulty).read([picture()])
        assert {asked.headers["authorization"] for asked in faulty.asked} == {f"Bearer {key}"}
        assert not any(key in json.dumps(asked.body) for asked in faulty.asked)

    def test_without_a_key_none_is_sent(self, faulty: FaultyServer) -> None:
        captioner(faulty)
        assert all("authorization" not in asked.headers for asked in faulty.asked)

    @pytest.mark.parametrize("where", ["start", "later", "caption", "crash"])
    def test_a_server_that_repeats_it_does_not_spread_it(
        self, faulty: FaultyServer, key: str, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from typer.testing import CliRunner

        from vlmgate.cli import app

        def echoing(asked: Asked) -> Reply | dict[str, Any] | None:
            if where == "start":
                return refusal(f"invalid key {key}", 401)
            if asked.is_trial:
                return None
            if where == "caption":
                return completion(*[choice(f"a washer {key}")] * K)
            if where == "crash":
                return Reply(f"Traceback: Authorization: Bearer {key}".encode(), 500)
            return refusal(f"invalid key {key}")

        faulty.behave = echoing
        folder = folder_of(tmp_path / "in", "a.png", "b.png")
        arguments = ["scan", folder, "-o", tmp_path / "out.parquet", "--endpoint", faulty.url, "--model", "m", "-v"]
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(app, [*map(str, arguments), "-k", str(K), "--retries", "1"])
        assert done.exit_code == (1 if where in ("start", "later", "crash") else 0)
        written = [path for path in tmp_path.iterdir() if path.is_file()]
        assert (tmp_path / "out.log") in written
        for text in (done.output, *(path.read_bytes().decode("latin-1") for path in written)):
            assert key not in text and key[3:20] not in text


def test_other_settings_begin_anew_and_another_place_does_not(faulty: FaultyServer, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    settings = config(faulty, folder, tmp_path / "out.parquet")
    run(settings)
    faulty.asked.clear()
    moved = EndpointConfig("https://elsewhere.example/v1", concurrency=2, timeout=1, retries=0)
    run(replace(settings, model=ModelConfig("some-model", endpoint=moved)))
    assert not faulty.asked  # nor is anybody else asked: all is read
    for other in (model(faulty, max_side=512), replace(model(faulty), model="another")):
        with pytest.raises(ResumeError, match=r"checkpoint\.(max_side|name)"):
            run(replace(settings, model=other))


def test_the_result_says_where_it_comes_from(faulty: FaultyServer, tmp_path: Path) -> None:
    picture_file(tmp_path / "in" / "a.png")
    run(config(faulty, tmp_path / "in", tmp_path / "out.parquet"))
    (record,), provenance = read_result(tmp_path / "out.parquet")
    assert provenance["model"]["model"] == "some-model" and provenance["model"]["server"]["url"] == faulty.url
    assert record.novelty is None and record.vision_features is None and record.mean_logprob == -1.0


def test_the_trial_picture_is_what_the_tests_take_it_for() -> None:
    assert trial_picture().rgb.size == (320, 256) and endpoint.EMPTY_ANSWERS > 1
