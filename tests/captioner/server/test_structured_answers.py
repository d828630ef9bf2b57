"""A server that is made to answer with the choices alone: only one that obeys, and never to an image's loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.captioner.server.test_server import K, captioner, config, picture, run
from tests.support.fakes import folder_of
from tests.support.faulty_server import AGREE, Asked, FaultyServer, Reply, choice, completion, refusal
from vlmgate.captioner.server.structured import WAYS, allowed_of, obeys, options_of
from vlmgate.config import EndpointConfig, ModelConfig, SamplingConfig
from vlmgate.data import Reason
from vlmgate.errors import EndpointError, ResumeError
from vlmgate.scores.answers import parse

CHOICES = ("ok", "surface crack")
QUESTION = SamplingConfig(num_samples=K, question="What is it?", choices=CHOICES)


def allowed_in(body: dict[str, Any]) -> list[str] | None:
    """Return what a request allows as an answer; None where anything is."""
    if "structured_outputs" in body:
        return list(body["structured_outputs"]["choice"])
    if "guided_choice" in body:
        return list(body["guided_choice"])
    if "grammar" in body:
        return [json.loads(one) for one in body["grammar"].removeprefix("root ::= ").split(" | ")]
    if "response_format" in body:
        return list(body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"])
    return None


def obeying(*ways: str, pick: int = -1, refuses: bool = False) -> Any:
    """Return the behaviour of a server that obeys some ways, and refuses or ignores the others."""

    def behave(asked: Asked) -> Reply | dict[str, Any] | None:
        allowed = allowed_in(asked.body)
        if allowed is None or asked.body["temperature"] == 2.0:
            return None
        way = next(way for way in WAYS if way in asked.body)
        if way not in ways:
            return refusal(f"unknown option {way}") if refuses else None
        text = json.dumps({"answer": allowed[pick]}) if way == "response_format" else allowed[pick]
        return completion(*(choice(text, index=i) for i in range(asked.body.get("n", 1))))

    return behave


def answers_asked(faulty: FaultyServer) -> list[Asked]:
    return [asked for asked in faulty.images if asked.prompt.startswith("What is it?")]


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_the_first_way_that_a_server_obeys_is_used_for_answers_alone(
    faulty: FaultyServer, way: str, refuses: bool
) -> None:
    faulty.behave = obeying(way, pick=1, refuses=refuses)
    reader = captioner(faulty, QUESTION, structured_answers=True)
    told = reader.info.server
    assert told is not None and told["structured_answers"] == f"nothing but the choices, by {way}"
    (read,) = reader.read([picture("a")])
    assert read.answers is not None
    assert {parse(answer.text, CHOICES).choice for answer in read.answers} == {"surface crack"}
    assert {caption.text for caption in read.captions} == {AGREE}, "captions stay free"
    assert {tuple(allowed_in(asked.body) or ()) for asked in answers_asked(faulty)} == {(*CHOICES, "unsure")}
    assert all(allowed_in(asked.body) is None for asked in faulty.images if asked not in answers_asked(faulty))


def test_it_is_not_asked_for_unless_named(faulty: FaultyServer) -> None:
    faulty.behave = obeying(*WAYS)
    reader = captioner(faulty, QUESTION)
    reader.read([picture("a")])
    assert all(allowed_in(asked.body) is None for asked in faulty.asked)
    assert reader.info.server is not None and "structured_answers" not in reader.info.server


@pytest.mark.parametrize("behave", [obeying(), obeying(refuses=True)])
def test_a_server_that_does_not_obey_is_refused_in_one_line(faulty: FaultyServer, behave: Any) -> None:
    faulty.behave = behave
    with pytest.raises(EndpointError, match=r"does not keep to given answers.*leave out --structured-answers"):
        captioner(faulty, QUESTION, structured_answers=True)


def test_one_word_over_and_over_is_not_obeying(faulty: FaultyServer) -> None:
    faulty.say = lambda asked, sample: "qorvel"  # one of the first pair
    with pytest.raises(EndpointError, match="does not keep to given answers"):
        captioner(faulty, QUESTION, structured_answers=True)


def test_to_be_unsure_stays_possible_where_it_is_offered() -> None:
    assert allowed_of(QUESTION) == ("ok", "surface crack", "unsure")
    assert allowed_of(replace(QUESTION, abstain=False)) == CHOICES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [("ok", 'a "deep" scratch'), ("良品", "傷"), ("a\\b", "in Ordnung")])
def test_what_a_way_gives_is_read_as_the_choice(way: str, words: tuple[str, ...]) -> None:
    json.dumps(options_of(way, words))  # can be sent
    for one in words:
        text = json.dumps({"answer": one}, ensure_ascii=False) if way == "response_format" else one
        assert obeys(way, text, words) and not obeys(way, f"{text} or so", words)
        if one.isalpha():
            assert parse(text, words).choice == one
    assert not obeys(way, "{}", words) and not obeys(way, AGREE, words)


@pytest.mark.parametrize("status", [400, 422, 500])
def test_where_it_stops_working_no_image_is_blamed(faulty: FaultyServer, tmp_path: Path, status: int) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    faulty.behave = obeying("guided_choice", pick=0)
    good = obeying("guided_choice", pick=0)

    def broken(asked: Asked) -> Reply | dict[str, Any] | None:
        if allowed_in(asked.body) is not None and not asked.is_trial:
            return refusal("the grammar engine is gone", status)
        return completion(*(choice("ok", index=i) for i in range(K))) if asked in answers_asked(faulty) else good(asked)

    faulty.behave = broken
    where = ModelConfig("some-model", endpoint=EndpointConfig(faulty.url, retries=0, structured_answers=True))
    result = run(config(faulty, folder, tmp_path / "out.parquet", model=where, sampling=QUESTION))
    assert [record.reason for record in result.records] == [Reason.AGREED] * 2
    assert [record.answer for record in result.records] == ["ok"] * 2


def test_a_journal_is_never_mixed(faulty: FaultyServer, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    faulty.behave = obeying("guided_choice", pick=0)
    free = config(faulty, folder, tmp_path / "out.parquet", sampling=QUESTION)
    held = replace(free, model=ModelConfig("some-model", endpoint=EndpointConfig(faulty.url, structured_answers=True)))
    run(held)
    with pytest.raises(ResumeError, match=r"checkpoint\.structured_answers"):
        run(free)
    folder_of(tmp_path / "in", "b.png")
    faulty.behave = obeying("response_format", pick=0)  # the server was changed
    ended = run(held)
    assert isinstance(ended.error, ResumeError) and "by guided_choice' then" in str(ended.error)
    assert [record.reason for record in ended.records] == [Reason.AGREED, Reason.NOT_READ], "nothing is mixed in"
    faulty.behave = obeying("guided_choice", pick=0)
    assert [record.answer for record in run(held).records] == ["ok", "ok"]
