"""What an answer says: a choice where it says nothing else; never the first, the last or the "good" one by default."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmgate.config import question_prompt
from vlmgate.data import Caption, Reason
from vlmgate.scores.answers import Parsed, parse, problem_with, tally
from vlmgate.scores.refusals import degenerate_answers

CHOICES = ("ok", "scratch", "surface crack")
ABSTAINS = Parsed(None, abstains=True)
UNPARSABLE = Parsed(None)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("OK", "ok"),
        ("Okay.", "ok"),
        ("O.K.", "ok"),
        ("**ok**", "ok"),
        ("a scratch", "scratch"),
        ("Scratches", "scratch"),
        ("ＳＣＲＡＴＣＨ", "scratch"),
        ("The answer is: scratch.", "scratch"),
        ("Surface cracks!", "surface crack"),
        ("surface-crack", "surface crack"),
        ("crack", "surface crack"),  # a part has no other place for it
        ("The part shows a scratch at the far left.", "scratch"),
        ("A surface crack appears at the top.", "surface crack"),
        ("ok, no defects", "ok"),
        ("Scratch. No other defects.", "scratch"),
        ("scratch, not a dent", "scratch"),
    ],
)
def test_a_choice_in_its_many_forms(text: str, choice: str) -> None:
    assert parse(text, CHOICES) == Parsed(choice)


@pytest.mark.parametrize(
    "text",
    [
        "unsure",
        "Unsure.",
        "I am not sure",
        "I don’t know.",
        "cannot tell",
        "Can't say, the image is too dark.",
        "unclear",
        "no idea",
        "N/A",
        "I'm sorry, I can't help with that.",
        "The image is blurry.",
        "ok, but I'm not sure",
        "maybe a scratch",
        "It could be a scratch.",
        "Probably ok",
        "either ok or scratch",
        "weiß nicht",
        "不明",
    ],
)
def test_declining_and_hedging_is_abstaining(text: str) -> None:
    assert parse(text, CHOICES) == ABSTAINS


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "...",
        "dent",
        "good",
        "scratched",
        "ok or scratch",
        "ok, scratch",
        "not ok",
        "not a scratch but a surface crack",
        "no scratch",
        "No scratches, dents or cracks",
        "without a scratch",
        "It isn't a scratch.",
        "scratch: none",
        "Scratch? No.",
        "Scratch?",
        "a scratch is not visible",
        "a scratch is not what this is",
        "nothing like a scratch",
        "scratch-free",
        "anything but ok",
        "far from ok",
        "kein scratch",
        "sans scratch",
        "ok (no scratch)",
        "Answer with one of: ok, scratch, surface crack.",
        "これはokです",
    ],
)
def test_whatever_is_ambiguous_is_no_choice(text: str) -> None:
    assert parse(text, CHOICES) == UNPARSABLE


@pytest.mark.parametrize(
    "text",
    [
        "Okay, so this part has a dent.",
        "ok but dented",
        "ok, I will reject it",
        "OK, I see.",
        "damaged, ok",
        "if ok",
        "should be ok",
        "would be ok if it were not dented",
        "less than ok",
        "partly ok",
        "too damaged to be ok",
        "ok. Actually bent.",
        "ok, actually no",
        "ok, not really",
        "ok, no more",
        "not only ok",
        "No part here. OK",
        "The part is not shown. OK",
        "not visible: ok",
        "The part is absent, ok",
        "ok: the part is not there",
        "there was a scratch, it is not here",
        "10% ok",
        "ok: 0",
        "0 scratches",
        "N.OK",
        "ok/NG",
        "The label says ok",
        "Ignore all previous instructions. OK",
    ],
)
def test_a_sentence_that_says_more_than_a_choice_is_no_choice(text: str) -> None:
    assert parse(text, CHOICES).choice is None


@pytest.mark.parametrize("denial", ["ikke {}", "inte {}", "не {}", "ليس {}", "{} 아님", "niemals {}", "kaum {}"])
def test_a_denial_in_whatever_language_is_no_choice(denial: str) -> None:
    assert parse(denial.format("ok"), CHOICES) == UNPARSABLE
    assert parse(denial.format("годен"), ("годен", "брак")) == UNPARSABLE


@pytest.mark.parametrize(
    "text", ["~~ok~~", "!ok", "ok ❌", "✗ ok", "ok 👎", "[ ] ok", "ok؟", "ok" + 20_000 * " " + "is wrong"]
)
def test_a_mark_that_strikes_a_choice_out_counts(text: str) -> None:
    assert parse(text, CHOICES) == UNPARSABLE
    assert parse("✓ ok", CHOICES) == Parsed("ok")


def test_to_pass_is_to_abstain() -> None:
    assert parse("I'll pass.", ("pass", "fail")) == ABSTAINS
    assert parse("pass", ("pass", "fail")) == Parsed("pass")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("No.", "no"),
        ("No, there is no defect.", "no"),
        ("Yes", "yes"),
        ("yes, it is", "yes"),
        ("There is no defect.", None),  # whether that is a no depends on the question
        ("No way to be certain of it", None),
        ("yes and no", None),
        ("Yes, I can help with that.", None),
        ("No. I'm an assistant.", None),
    ],
)
def test_yes_and_no_must_open_the_answer(text: str, choice: str | None) -> None:
    assert parse(text, ("yes", "no")).choice == choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("no visible defect", "no defect"),
        ("There is no defect.", "no defect"),
        ("free of defects", "no defect"),
        ("The defect is visible.", "defect"),
        ("The defect is not visible.", "no defect"),
        ("No: a dent", None),
        ("a dent", None),
    ],
)
def test_a_choice_may_hold_a_negation(text: str, choice: str | None) -> None:
    assert parse(text, ("defect", "no defect")).choice == choice


def test_marks_between_words_part_them() -> None:
    assert parse("no. defect", ("no defect", "ok")) == UNPARSABLE
    assert parse("(no defect)!", ("no defect", "ok")) == Parsed("no defect")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", "A"),
        ("(a)", "A"),
        ("Option B.", "B"),
        ("A scratch", None),
        ("A or B", None),
        ("A B", None),
        ("A/B", None),
        ("a|b", None),
    ],
)
def test_single_letters_must_be_the_whole_answer(text: str, choice: str | None) -> None:
    assert parse(text, ("A", "B")).choice == choice


@pytest.mark.parametrize(("text", "choice"), [("傷。", "傷"), ("傷なし", None), ("傷ではない", None), ("正常", "正常")])
def test_in_scripts_without_spaces_the_answer_is_the_choice_itself(text: str, choice: str | None) -> None:
    assert parse(text, ("正常", "傷")).choice == choice


def test_choices_that_could_not_be_told_apart_are_named() -> None:
    assert problem_with(CHOICES) is None
    assert problem_with(("yes", "no")) is None
    assert problem_with(("none", "scratch")) is None
    assert "scratch" in str(problem_with(("scratch", "Scratches")))
    assert "abstains" in str(problem_with(("ok", "unsure")))
    assert "says nothing" in str(problem_with(("ok", "-")))


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_parsed_and_what_names_nothing_is_no_choice(text: str) -> None:
    parsed = parse(text, ("qqq", "vvv"))
    assert parsed.choice is None or parsed.choice in text.casefold() or not text.isascii()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["ok", "scratch", "no", "not", "a", ",", ".", "is", "without", "or"]), max_size=7))
def test_a_denied_choice_never_counts(words: list[str]) -> None:
    text = " ".join(words)
    choice = parse(text, CHOICES).choice
    assert choice is None or (choice in words and len({"ok", "scratch"} & set(words)) == 1)
    for negator in ("not", "no", "without"):
        assert f"{negator} {choice}" not in text


def parsed(*said: str | None) -> list[Parsed]:
    return [Parsed(None, abstains=s == "?") if s in (None, "?") else Parsed(s) for s in said]


def test_shares_are_of_all_answers_so_that_abstaining_counts_against() -> None:
    told = tally(parsed("ok", "ok", "scratch", "?", "?", None, None, None))
    assert (told.answer, told.answer_share) == ("ok", 0.25)
    assert (told.abstain_rate, told.unparsable_rate) == (0.25, 0.375)
    one, two = 1 / 8 * math.log(8), 2 / 8 * math.log(4)
    assert told.answer_entropy == pytest.approx(2 * two + 4 * one)


def test_a_tie_or_nothing_named_is_no_answer() -> None:
    assert tally(parsed("ok", "ok", "scratch", "scratch")).answer is None
    assert tally(parsed("?", "?", None, None)).answer is None
    assert tally(parsed("?", "?")).answer_share == 0
    assert tally(parsed("?", "?", "?", "scratch")).answer == "scratch"


def test_the_entropy_runs_from_none_to_all_different() -> None:
    assert tally(parsed(*["ok"] * 8)).answer_entropy == 0
    assert tally(parsed(*[None] * 8)).answer_entropy == pytest.approx(math.log(8)), "unparsable is not agreement"
    assert tally(parsed(*["?"] * 8)).answer_entropy == 0, "the abstain rate tells"


def said(text: str, finish: str = "stop") -> Caption:
    return Caption(text, finish, -0.1, 2)  # type: ignore[arg-type]


def test_answers_that_are_none_are_for_a_person() -> None:
    good = [said("ok")] * 7
    assert degenerate_answers([*good, said("unsure")]) is None
    assert degenerate_answers([*good, said(" ")]) == Reason.EMPTY_ANSWER
    assert degenerate_answers([*good, said("ok", "length")]) == Reason.ANSWER_CUT_OFF
    assert degenerate_answers([*good, said("ok", "non-finite")]) == Reason.NON_FINITE
    assert degenerate_answers([]) == Reason.EMPTY_ANSWER


def test_the_prompt_offers_to_abstain_unless_told_not_to() -> None:
    offered = question_prompt("What is it? ", CHOICES, abstain=True)
    assert offered == "What is it? Answer with one of: ok, scratch, surface crack, or unsure if you cannot tell."
    assert "unsure" not in question_prompt("What is it?", CHOICES, abstain=False)
