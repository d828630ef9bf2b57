"""A question beside the captions: what is accepted by answer, and that nothing is accepted without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.fakes import AGREE, FakeCaptioner, SilentProgress, config_for, folder_of
from vlmgate.config import ScanConfig
from vlmgate.data import Caption, Reason, Record, Route
from vlmgate.errors import ConfigError, GateError
from vlmgate.report.summary import print_summary
from vlmgate.run.loop import scan
from vlmgate.scores.answers import check_choices
from vlmgate.store.result import read_result

QUESTION, CHOICES = "Is the part ok?", ("ok", "scratch", "crack")
Said = Sequence[str | Caption]
SURE = Caption("ok", "stop", -0.05, 2)


def asking(folder: Path, out: Path, *, abstain: bool = True, **changes: object) -> ScanConfig:
    config = config_for(folder, out, **changes)
    return replace(config, sampling=replace(config.sampling, question=QUESTION, choices=CHOICES, abstain=abstain))


def answered(tmp_path: Path, answers: Said, *, captions: Said = AGREE, **changes: object) -> Record:
    """Return the row of one image whose four answers and captions are these."""
    folder = folder_of(tmp_path / "in", "a.png")
    fake = FakeCaptioner(lambda _: captions, answer=lambda _: answers)
    (row,) = scan(asking(folder, tmp_path / "r.parquet", **changes), SilentProgress(), load=fake.load).records
    return row


def test_the_answer_most_samples_give_is_accepted_where_the_captions_agree(tmp_path: Path) -> None:
    row = answered(tmp_path, ("OK.", "ok", "The part is ok.", "unsure"), limits=("answer_share >= 0.75",))
    assert (row.route, row.reason, row.answer) == (Route.AUTO_ACCEPT, Reason.AGREED, "ok")
    assert row.answers == ("OK.", "ok", "The part is ok.", "unsure")
    assert (row.answer_share, row.abstain_rate, row.unparsable_rate) == (0.75, 0.25, 0.0)
    assert row.answer_entropy == pytest.approx(0.562335)
    assert row.answer_finishes == ("stop",) * 4 and row.answer_probability == 0.75, "three texts, each of a quarter"
    assert row.answer_logprobs == pytest.approx([math.log(0.25) / tokens for tokens in (2, 2, 5, 2)])


def test_a_bad_answer_in_agreement_is_accepted_too(tmp_path: Path) -> None:
    row = answered(tmp_path, (Caption("scratch", "stop", -0.05, 2),), captions=("a long scratch",))
    assert row.route == Route.AUTO_ACCEPT


@pytest.mark.parametrize(
    "answers",
    [
        ("unsure",),
        ("I'm sorry, I can't help with that.",),
        ("ok", "ok", "scratch", "scratch"),
        ("dent",),
        ("not ok",),
        ("ok or scratch",),
        ("ok, scratch, crack",),
    ],
)
@pytest.mark.parametrize(
    "gate", [{"score": "vendi_score", "threshold": 4.0}, {"review_budget": "0"}, {"limits": ("answer_share >= 0",)}]
)
def test_without_an_answer_nothing_is_accepted(tmp_path: Path, answers: Said, gate: dict[str, object]) -> None:
    row = answered(tmp_path, answers, **gate)
    assert (row.route, row.reason, row.answer) == (Route.HUMAN_REVIEW, Reason.NO_ANSWER, None)
    assert row.vendi_score == 1.0, "the captions are scored all the same"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", Reason.EMPTY_ANSWER),
        (" … ", Reason.EMPTY_ANSWER),
        (Caption("ok", "length", -0.1, 16), Reason.ANSWER_CUT_OFF),
        (Caption("ok", "non-finite", None, 1), Reason.NON_FINITE),
    ],
)
@pytest.mark.parametrize("gate", [{"score": "vendi_score", "threshold": 4.0}, {"review_budget": "0"}])
def test_one_empty_cut_off_or_broken_answer_of_k_is_for_a_person(
    tmp_path: Path, bad: str | Caption, reason: Reason, gate: dict[str, object]
) -> None:
    row = answered(tmp_path, ("ok", "ok", "ok", bad), **gate)
    assert (row.route, row.reason) == (Route.HUMAN_REVIEW, reason)
    assert row.unparsable_rate == 0.25


def test_captions_that_are_none_come_before_answers(tmp_path: Path) -> None:
    row = answered(tmp_path, ("ok",), captions=("",))
    assert (row.route, row.reason, row.vendi_score, row.answer) == (
        Route.HUMAN_REVIEW,
        Reason.EMPTY_CAPTION,
        None,
        "ok",
    )


@pytest.mark.parametrize("abstain", [True, False])
def test_a_lonely_answer_beside_abstentions_is_not_accepted(tmp_path: Path, abstain: bool) -> None:
    row = answered(
        tmp_path, ("ok", "unsure", "unsure", "cannot tell"), abstain=abstain, score="vendi_score", threshold=4.0
    )
    assert (row.answer, row.answer_share) == ("ok", 0.25)
    assert (row.route, row.reason, row.decided_by) == (Route.HUMAN_REVIEW, Reason.BEYOND_LIMIT, "answer_probability")


APART = ("it is round", "a black thing", "one big plate", "some steel")  # claim nothing, and contradict no answer


def test_the_wording_of_captions_bars_nothing_but_what_contradicts_the_answer_does(tmp_path: Path) -> None:
    row = answered(tmp_path, (SURE,), captions=APART)
    assert (row.route, row.decided_by, row.vendi_score) == (Route.AUTO_ACCEPT, "answer_probability", 4.0)
    (tmp_path / "again").mkdir()
    row = answered(tmp_path / "again", (SURE,), captions=("a scratch", *APART[1:]))
    assert (row.route, row.reason, row.contradiction) == (Route.HUMAN_REVIEW, Reason.CONTRADICTED, 0.25)


def test_answers_alone_can_be_the_gate(tmp_path: Path) -> None:
    row = answered(tmp_path, ("ok",), captions=APART, score="answer_share", threshold=0.75)
    assert (row.route, row.decided_by, row.threshold) == (Route.AUTO_ACCEPT, "answer_share", 0.75)


def test_the_probability_of_the_answer_is_a_column_a_limit_and_a_score(tmp_path: Path) -> None:
    answers = (Caption("ok", "stop", -0.1, 2), Caption("OK.", "stop", -1.0, 3), Caption("scratch", "stop", -1.5, 2))
    row = answered(tmp_path, (*answers, answers[0]))
    expected = math.exp(-0.2) + math.exp(-3.0)
    assert (row.answer, row.answer_share, row.answer_probability) == ("ok", 0.75, round(expected, 6))
    (held,), _ = read_result(tmp_path / "r.parquet")
    assert held.answer_probability == row.answer_probability
    assert row.route == Route.AUTO_ACCEPT
    for gate in ({"limits": ("answer_probability >= 0.9",)}, {"score": "answer_probability", "threshold": 0.9}):
        row = answered(tmp_path, (*answers, answers[0]), **gate)
        assert (row.route, row.decided_by, row.threshold) == (Route.HUMAN_REVIEW, "answer_probability", 0.9)


def test_the_likelier_of_two_choices_is_the_answer_where_the_probability_decides(tmp_path: Path) -> None:
    answers = (Caption("scratch", "stop", -1.6, 1), Caption("ok", "stop", -0.25, 1))
    gate = {"score": "answer_probability", "threshold": 0.75, "limits": ("answer_share >= 0.5",)}
    row = answered(tmp_path, answers, **gate)
    assert (row.answer, row.answer_share, row.route) == ("ok", 0.5, Route.AUTO_ACCEPT)
    row = answered(tmp_path, answers, score="vendi_score", threshold=4.0, limits=("answer_share >= 0.5",))
    assert (row.answer, row.reason) == ("ok", Reason.NO_ANSWER), "a gate of shares takes a tie for no answer"


def test_without_log_probabilities_there_is_none_and_one_line_says_so(tmp_path: Path) -> None:
    row = answered(tmp_path, (Caption("ok", "stop", None, 2),))
    assert (row.answer, row.answer_probability) == ("ok", None)
    records, provenance = read_result(tmp_path / "r.parquet")
    console = Console(file=StringIO(), width=200)
    print_summary(records, provenance, tmp_path / "r.parquet", console)
    assert console.file.getvalue().count("answer_probability is unknown") == 1  # type: ignore[attr-defined]
    row = answered(tmp_path, (Caption("ok", "stop", None, 2),), limits=("answer_probability >= 0",))
    assert (row.route, row.reason) == (Route.HUMAN_REVIEW, Reason.NO_SCORE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limits": ("abstain_rate <= 0.25",)}, "add --question"),
        ({"score": "answer_entropy", "threshold": 0.5}, "add --question"),
        ({"limits": ("view_contrast <= 0.25",)}, "add --views"),
    ],
)
def test_a_limit_that_nothing_could_keep_is_refused_before_a_model_is_loaded(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    fake = FakeCaptioner()
    with pytest.raises(GateError, match=words):
        scan(config_for(folder, tmp_path / "r.parquet", **changes), SilentProgress(), load=fake.load)
    assert fake.num_samples == 0


def test_choices_that_cannot_be_told_apart_are_refused() -> None:
    for choices, words in (
        (("ok", "unsure"), "abstains"),
        (("dent", "Dents"), "told from"),
        (("ok", "-"), "says nothing"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_choices(choices)


def test_views_are_kept_and_compared(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    config = config_for(folder, tmp_path / "r.parquet", threshold=4.0)
    fake = FakeCaptioner(lambda _: ("a dent", "a dent", "a crack", "a crack"))
    viewed = replace(config, sampling=replace(config.sampling, views=2))
    (row,) = scan(viewed, SilentProgress(), load=fake.load).records
    assert row.caption_views == (0, 0, 1, 1) and row.view_contrast == 1.0
