"""How probable the answer is, from the log-probabilities of the answers drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlmgate.data import Caption, Reason, Sampled
from vlmgate.scores.answer_probability import likelier, unseen
from vlmgate.scores.score import Scorer

CHOICES = ("ok", "scratch")


def drawn(text: str, probability: float | None, tokens: int = 3, finish: str = "stop") -> Caption:
    mean = None if probability is None else math.log(probability) / tokens
    return Caption(text, finish, mean, tokens)  # type: ignore[arg-type]


def of(*answers: Caption, views: tuple[int, ...] | None = None) -> dict[str, float]:
    scorer = Scorer("", CHOICES)
    return {k: round(v, 9) for k, v in scorer.probabilities(Sampled((), answers, views=views)).items()}


def test_it_is_the_sum_over_the_different_texts_that_name_the_choice() -> None:
    answers = (drawn("ok", 0.5), drawn("ok", 0.5), drawn("OK.", 0.2, 4), drawn("scratch", 0.1), drawn("unsure", 0.05))
    assert of(*answers) == {"ok": 0.7, "scratch": 0.1}
    assert unseen(answers) == pytest.approx(1 - 0.85)


def test_equal_texts_of_other_tokens_count_as_the_likelier() -> None:
    assert of(drawn("ok", 0.2, 2), drawn("ok", 0.6, 1), drawn("ok", 0.3, 3)) == {"ok": 0.6}


def test_an_answer_that_did_not_end_adds_nothing() -> None:
    assert of(drawn("ok", 0.5), drawn("OK", 0.3, finish="length")) == {"ok": 0.5}
    assert of(drawn("ok", 0.5, finish="length")) == {}


def test_what_the_engine_cannot_say_is_unknown_and_no_zero() -> None:
    assert of(drawn("ok", None), Caption("ok", "stop", -0.1, 0)) == {}
    assert of(drawn("ok", None), drawn("OK", 0.3)) == {"ok": 0.3}
    assert unseen([drawn("ok", None)]) == 1.0


def test_views_are_averaged() -> None:
    answers = (drawn("ok", 0.9), drawn("ok", 0.9), drawn("ok", 0.5), drawn("scratch", 0.4))
    assert of(*answers, views=(0, 0, 1, 1)) == {"ok": 0.7, "scratch": 0.2}
    assert of(*answers) == {"ok": round(0.9 / 1.3, 9), "scratch": round(0.4 / 1.3, 9)}, "one view cannot have both"


def test_texts_more_probable_than_can_be_share_what_there_is() -> None:
    """A server that leaves the end token out gives "no" the probability of "no defect" as well."""
    said = Sampled((), (drawn("no", 0.9), drawn("no defect", 0.8)))
    found = Scorer("", ("no", "no defect")).probabilities(said)
    assert found == pytest.approx({"no": 0.9 / 1.7, "no defect": 0.8 / 1.7})
    assert of(Caption("ok", "stop", 0.0, 2)) == {"ok": 1.0}


def test_it_estimates_what_the_model_says_at_whatever_temperature_is_drawn() -> None:
    """The forms of a choice are all drawn sooner or later, whatever flattens or sharpens the draw."""
    rng = np.random.default_rng(0)
    forms = {"ok": 0.6, "OK.": 0.15, "It is ok.": 0.05, "scratch": 0.15, "a scratch": 0.05}
    for temperature in (0.7, 1.0, 1.6):
        weights = np.array([*forms.values()]) ** (1 / temperature)
        texts = rng.choice([*forms], size=400, p=weights / weights.sum()).tolist()
        assert of(*(drawn(text, forms[text]) for text in texts)) == {"ok": 0.8, "scratch": 0.2}


def test_of_choices_named_equally_often_the_likelier_is_known_or_none() -> None:
    assert likelier(["ok", "scratch"], {"ok": 0.4, "scratch": 0.5}) == "scratch"
    assert likelier(["ok", "scratch"], {"ok": 0.4, "scratch": 0.4}) is None
    assert likelier(["ok", "scratch"], {"ok": 0.4}) is None, "the other may be likelier"
    assert likelier(["ok"], {"ok": 0.4}) is None and likelier([], {}) is None


def test_a_tie_names_its_answer_and_keeps_its_reason() -> None:
    captions = tuple(Caption("a scratch on a ring", "stop", -0.1, 6) for _ in range(4))
    answers = (drawn("ok", 0.3), drawn("scratch", 0.6), drawn("ok", 0.3), drawn("scratch", 0.6))
    scores, reason = Scorer("", CHOICES).score(Sampled(captions, answers))
    assert (scores.answer, scores.answer_share, scores.answer_probability) == ("scratch", 0.5, 0.6)
    assert reason is Reason.NO_ANSWER
    scores, reason = Scorer("", CHOICES).score(Sampled(captions, (drawn("unsure", 0.9),) * 4))
    assert (scores.answer, scores.answer_probability, reason) == (None, None, Reason.NO_ANSWER)
