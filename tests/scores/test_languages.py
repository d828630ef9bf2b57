"""Every file of `languages/` keeps what its own examples say."""

from __future__ import annotations

import pytest

from vlmgate.scores.diversity import most_disputed, readings
from vlmgate.scores.findings import Claims, load_vocabulary
from vlmgate.scores.language import languages
from vlmgate.scores.measures import is_measure
from vlmgate.scores.refusals import is_refusal

VOCABULARY = load_vocabulary()
CLAIMS = VOCABULARY.claims


def same(one: Claims, other: Claims) -> bool:
    first, second = readings([one, other])
    return first is not None and first == second


def contradict(one: Claims, other: Claims) -> bool:
    return most_disputed([one, other]) is not None


@pytest.mark.parametrize("code", languages())
def test_examples_that_say_the_same(code: str) -> None:
    for pair in languages()[code].examples["same"]:
        one, other = map(CLAIMS, pair)
        assert same(one, other), (pair, one.describe(), other.describe())
        assert not contradict(one, other), (pair, one.describe(), other.describe())


@pytest.mark.parametrize("code", languages())
def test_examples_that_say_the_opposite(code: str) -> None:
    for pair in languages()[code].examples["opposite"]:
        one, other = map(CLAIMS, pair)
        assert contradict(one, other) and not same(one, other), (pair, one.describe(), other.describe())


@pytest.mark.parametrize("code", languages())
def test_examples_that_are_not_sure(code: str) -> None:
    for text in languages()[code].examples["hedged"]:
        assert not CLAIMS(text).certain, (text, CLAIMS(text).describe())


@pytest.mark.parametrize("code", languages())
def test_examples_that_only_describe_the_part(code: str) -> None:
    for text in languages()[code].examples["neutral"]:
        claims = CLAIMS(text)
        said = {claim for claim in claims.asserted | claims.denied | claims.hedged if not is_measure(claim)}
        assert not said, (text, claims.describe())


@pytest.mark.parametrize("code", languages())
def test_examples_of_refusals_and_readings(code: str) -> None:
    missed = [text for text in languages()[code].examples.get("refusal", ()) if not is_refusal(text)]
    taken = [text for text in languages()[code].examples.get("reading", ()) if is_refusal(text)]
    assert not missed and not taken


@pytest.mark.parametrize("code", languages())
def test_findings_are_those_of_english(code: str) -> None:
    one, english = languages()[code], languages()["en"]
    assert one.findings.keys() <= english.findings.keys()
    assert len(one.findings) >= 45
