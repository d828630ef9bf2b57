"""What an answer says: a choice where it says nothing else; never the first, the last or the "good" one by default."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmgate.config import question_prompt
from vlmgate.data import Caption, Reason, Sampled
from vlmgate.scores.answers import Parsed, degenerate_answers, parse, parse_cut_off, problem_with, tally
from vlmgate.scores.score import Scorer

CHOICES = ("ok", "scratch", "surface crack")
ABSTAINS = Parsed(None, abstains=True)
UNPARSABLE = Parsed(None)
DATA = Path(__file__).parent / "data"


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
        ("scratched", "scratch"),
        ("ok (no scratch)", "ok"),
        ("これはokです", "ok"),
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
        "Answer with one of: ok, scratch, surface crack.",
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
    assert choice is None or choice in words
    for other in {"ok", "scratch"} - {choice} if choice else ():  # another one only where it is denied
        assert other not in words or {"no", "not", "without"} & set(words[: words.index(other)]), text
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


# --- the usual forms, and what only looks like one --------------------------------------------------------------------


def forms() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Return (language, answer, choices, expected) of the list of usual forms; "?" is to abstain."""
    found, language, choices = [], "", ()
    for line in (DATA / "answer_forms.txt").read_text(encoding="utf-8").splitlines()[1:]:
        if line.startswith("# ") and " | " in line:
            language, _, names = line[2:].partition(" | ")
            choices = tuple(name.strip() for name in names.split(","))
        elif line:
            text, expected = line.split(" => ")
            found.append((language, text.replace("\\n", "\n"), choices, expected))
    return found


def read(text: str, choices: tuple[str, ...]) -> str | None:
    said = parse(text, choices)
    return "?" if said.abstains else said.choice


def test_the_usual_forms_are_read_in_every_language() -> None:
    every = forms()
    assert len(every) >= 120 and len({language for language, *_ in every}) >= 9
    missed = [(text, expected, read(text, choices)) for _, text, choices, expected in every]
    missed = [one for one in missed if one[1] != one[2]]
    assert len(missed) <= 0.05 * len(every), missed
    assert not [one for one in missed if one[2] not in (None, "?")], "never a wrong one"
    for language in {language for language, *_ in every}:
        own = [text for name, text, *_ in every if name == language]
        assert sum(one[0] in own for one in missed) <= 0.1 * len(own), (language, missed)


def test_the_choices_of_the_usual_forms_can_be_told_apart() -> None:
    for choices in {choices for _, _, choices, _ in forms()}:
        assert problem_with(choices) is None, choices


ANSWERS_OF_NO_CHOICE = (DATA / "answers_of_no_choice.txt").read_text(encoding="utf-8").splitlines()[2:]


@pytest.mark.parametrize("text", ANSWERS_OF_NO_CHOICE)
def test_what_only_looks_like_an_answer_is_none(text: str) -> None:
    said = text.replace("\\n", "\n")
    assert parse(said, ("ok", "scratch", "crack")).choice is None
    assert parse_cut_off(said, ("ok", "scratch", "crack")) is None


# Clauses about a thing, by language: the first choice is the good one.
CLAUSES: dict[str, tuple[tuple[str, ...], list[str], list[str], list[str], list[str]]] = {
    "en": (
        ("ok", "scratch", "crack", "dent"),
        ["there is a {x}", "a {x} is visible", "{x}", "{x} at the edge", "I see a {x}", "the surface is {x}ed"],
        [
            "no {x}",
            "there is no {x}",
            "a {x} is not visible",
            "free of {x}s",
            "not a {x}",
            "{x} absent",
            "no visible {x}s",
        ],
        [
            "no {x}s or {y}s",
            "neither {x} nor {y}",
            "{x}s and {y}s are not visible",
            "no {x}s, {y}s",
            "{x}s, {y}s: none",
        ],
        [", ", ". ", "; ", " and ", " with ", " - ", ": ", "\n", ", and ", " ("],
    ),
    "de": (
        ("in Ordnung", "Kratzer", "Riss", "Delle"),
        ["es gibt einen {x}", "ein {x} ist sichtbar", "{x}", "{x} am Rand", "das ist ein {x}"],
        ["kein {x}", "es gibt keinen {x}", "ein {x} ist nicht sichtbar", "ohne {x}", "frei von {x}", "nicht {x}"],
        ["keine {x} oder {y}", "weder {x} noch {y}", "{x} und {y} sind nicht sichtbar", "{x}, {y} sind nicht da"],
        [", ", ". ", "; ", " mit ", " - ", ": ", "\n", ", und "],
    ),
    "fr": (
        ("conforme", "rayure", "fissure", "tache"),
        ["il y a une {x}", "on voit une {x}", "{x}", "c'est une {x}", "{x} sur le bord"],
        ["pas de {x}", "il n'y a pas de {x}", "sans {x}", "aucune {x}", "ce n'est pas une {x}", "plus de {x}"],
        ["ni {x} ni {y}", "aucune {x} ni {y}", "{x} et {y} ne sont pas visibles", "pas de {x}, {y}"],
        [", ", ". ", " avec ", ": ", "\n", " mais "],
    ),
    "es": (
        ("correcto", "rayón", "grieta", "mancha"),
        ["hay un {x}", "se ve un {x}", "{x}", "la pieza tiene un {x}", "es un {x}"],
        ["no hay {x}", "sin {x}", "no es un {x}", "ningún {x}", "{x} no visible", "nunca {x}"],
        ["ni {x} ni {y}", "no hay {x} ni {y}", "{x} y {y} no son visibles", "no hay {x}, {y}"],
        [", ", ". ", " con ", ": ", "\n", " pero "],
    ),
    "zh": (
        ("合格", "划痕", "裂纹", "凹痕"),
        ["有{x}", "存在{x}", "{x}", "表面有明显的{x}", "这是{x}", "发现{x}"],
        ["没有{x}", "无{x}", "未发现{x}", "不是{x}", "{x}不存在", "非{x}", "未见{x}", "不{x}"],
        ["没有{x}和{y}", "没有{x}或{y}", "没有{x}、{y}", "{x}和{y}不存在", "{x}，{y}都没有", "未发现{x}和明显的{y}"],
        ["，", "。", "；", "但", "\n", "：", ""],
    ),
    "ja": (
        ("良品", "傷", "割れ", "凹み"),
        ["{x}があります", "{x}が見られます", "{x}です", "{x}", "{x}あり"],
        ["{x}はありません", "{x}なし", "{x}ではない", "{x}は見られず", "無{x}", "非{x}", "{x}は確認できません"],
        ["{x}や{y}はありません", "{x}、{y}なし", "{x}も{y}もありません"],
        ["。", "\n", "が、", ""],
    ),
    "ko": (
        ("양품", "스크래치", "균열", "찍힘"),
        ["{x}가 있습니다", "{x}입니다", "{x}", "표면에 {x}이 보입니다"],
        ["{x}가 없습니다", "{x}가 아닙니다", "{x} 없음", "{x}는 보이지 않습니다", "비{x}"],
        ["{x}나 {y}가 없습니다", "{x}와 {y}는 없습니다", "{x}도 {y}도 없습니다"],
        [", ", ". ", "\n", " 하지만 "],
    ),
}


def sentences(rng: random.Random) -> tuple[str, tuple[str, ...], str | None]:
    """Return an answer of one to three clauses, its choices, and the only one that it asserts, if there is one."""
    choices, asserting, denying, denying_both, joins = CLAUSES[rng.choice(sorted(CLAUSES))]
    left, parts = rng.sample(choices, len(choices)), []
    asserted, denied = set(), set()
    for _ in range(rng.choice([1, 2, 2, 3])):
        x, y = left.pop(), left[-1] if left else ""
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(asserting).format(x=x))
            asserted.add(x)
        elif kind < 0.8 or not y or choices[0] in (x, y):
            parts.append(rng.choice(denying).format(x=x))
            denied.add(x)
        else:
            parts.append(rng.choice(denying_both).format(x=x, y=left.pop()))
            denied |= {x, y}
        if not left:
            break
    text = parts[0] + "".join(rng.choice(joins) + part for part in parts[1:])
    return text, choices, asserted.pop() if len(asserted) == 1 and not asserted & denied else None


# {a} and {b} are two choices of ("ok", "scratch", "crack", "dent"); the second is what may be read, if anything.
TRAPS: list[tuple[str, str | None]] = [
    ("{a} or {b}", None), ("{a}/{b}", None), ("either {a} or {b}", None), ("{a}, {b}", None), ("{a} and {b}", None),
    ("{a}? {b}?", None), ("{a}?", None), ("is it {a}", None), ("Is the part {a}?", None), ("maybe {a}", None),
    ("probably {a}", None), ("It could be {a}.", None), ("I think it might be {a}", None), ("{a}, I guess", None),
    ("not {a}", None), ("isn't {a}", None), ("never {a}", None), ("no {a}", None), ("without {a}", None),
    ("hardly {a}", None), ("almost {a}", None), ("less than {a}", None), ("better than {a}", None), ("like {a}", None),
    ("similar to {a}", None), ("the label says {a}", None), ('the label says "{a}"', None), ("~~{a}~~", None),
    ("{a} \u274c", None), ("\u2717 {a}", None), ("[ ] {a}", None), ("<del>{a}</del>", None), ("<s>{a}</s>", None),
    ("{a} is wrong", None), ("{a}: no", None), ("{a}: none", None), ("{a}: 0", None), ("{a}: false", None),
    ("0 {a}", None),
    ("{a}, but {b}", None), ("{a}. However, {b}.", None), ("{a}. Actually {b}.", None), ("{a}... wait, {b}", None),
    ("{a}. On second thought, {b}.", None), ("{a} although there is a {b}", None), ("{a}, except for a {b}", None),
    ("{a} unless it is {b}", None), ("if {a} then {b}", None), ("{a}. Correction: {b}", None),
    ("{a}. Sorry, {b}.", None),
    ("{a}. No, {b}.", None), ("{a}\n{b}", None), ("1. {a}\n2. {b}", None), ("A) {a}\nB) {b}", None),
    ("Options: {a}, {b}", None), ("Answer with one of: {a}, {b}.", None), ("- {a}\n- {b}", None),
    ("Answer: {a}\nAnswer: {b}", None), ("<answer>{a}</answer><answer>{b}</answer>", None), ("<think>{a}", None),
    ("<think>{a}</think>", None), ("{a}<think>hm</think>{b}", None), ("<|im_start|>user\n{a}", None),
    ("{a}<|im_end|>\n<|im_start|>user\n{b}", None), ("\\boxed{{{a}}} \\boxed{{{b}}}", None),
    ("At first it looks {a}. Final answer: {b}", "b"), ("Initially {a}. The answer is {b}.", "b"),
    ("<think>It is {a}.</think>{b}", "b"), ("maybe {a}</think>\n\n<answer>{b}</answer>", "b"),
    ("not {a}. {b}.", "b"), ("{b}, not {a}", "b"), ("It is a {b}, not a {a}.", "b"), ("{b} (no {a})", "b"),
    ("{b}. There is no {a}.", "b"), ("There is no {a}. Final answer: {b}", "b"), ("Verdict: {b}\nReason: no {a}", "b"),
    ("There is no {b}. Final answer: {b}", None), ("{b}. There is no {b}.", None), ("It is not {b}. Answer: {b}", None),
    ("Final answer: {a}. It is {b}.", None), ("Answer: {a}. Answer: {b}", None), ("{a}, {a}, {b}", None),
    ("The part was {a}, now {b}", None), ("The {a} was removed", None), ("{a}-free", None), ("non-{a}", None),
    ("{a} is absent", None), ("the absence of {a}", None), ("clear of {a}", None), ("lacks {a}", None),
    ("not not {a}", None), ("{b}, not not {a}", None), ("{a} of", None), ("on none {a}", None),
    ("kein {a}", None), ("pas de {a}", None), ("sin {a}", None), ("ikke {a}", None),
    ("\u4e0d{a}", None), ("{a}\u306a\u3057", None),
]  # fmt: skip
WRAPPINGS = [
    "{}", "**{}**", "Answer: {}", "**Answer:** {}", "<answer>{}</answer>", "Assistant: {}", "{}<|im_end|>", "{}</s>",
    "<think>Let me see.</think>{}", "```\n{}\n```", "\\boxed{{{}}}", "JSON",
]  # fmt: skip


def traps() -> Iterator[tuple[str, tuple[str, ...], str | None]]:
    """Yield (answer, choices, what may be read) of every trap, for some pairs of choices, in every wrapping."""
    choices = ("ok", "scratch", "crack", "dent")
    for template, expected in TRAPS:
        for a, b in (("ok", "scratch"), ("crack", "ok"), ("scratch", "crack")):
            said = template.format(a=a, b=b)
            for wrapping in WRAPPINGS:
                text = json.dumps({"answer": said}) if wrapping == "JSON" else wrapping.format(said)
                yield text, choices, b if expected == "b" else None


def test_no_wrong_choice_is_taken_from_thousands_of_traps() -> None:
    every = list(traps())
    rng = random.Random(20)
    every += [sentences(rng) for _ in range(1500)]
    wrong = [(text, expected, said) for text, choices, expected in every if (said := read(text, choices)) not in
             (None, "?", expected)]  # fmt: skip
    assert not wrong and len(every) >= 1000
    right = sum(expected is not None and read(text, choices) == expected for text, choices, expected in every)
    assert right > 400, "some of them are answers, and most of these are read"


def test_a_word_that_takes_an_answer_back_does_so_wherever_it_stands() -> None:
    rng = random.Random(21)
    words = ["but", "however", "although", "except", "unless", "if", "almost", "wait", "instead", "maybe", "possibly"]
    for language, text, choices, expected in forms():
        if language != "en" or expected == "?" or "{" in text or "<" in text or "\\" in text:
            continue
        tokens = text.split(" ")
        tokens.insert(rng.randrange(len(tokens) + 1), rng.choice(words))
        said = " ".join(tokens)
        assert parse(said, choices).choice is None, said


NEGATORS = {
    "en": "not no never without hardly neither nor or if isn't none absent zero free barely nothing",
    "de": "nicht kein keinen ohne nie kaum weder oder fast nein",
    "fr": "pas sans aucune ni jamais ou ne peut-être",
    "es": "no sin ni nunca o quizás casi tampoco",
    "it": "non senza né mai o forse quasi",
    "pt": "não sem nem nunca ou talvez quase",
    "nl": "niet geen zonder nooit of bijna",
    "pl": "nie bez brak ani nigdy lub prawie",
    "ja": "ない なし ません ではない 無 非 不 か",
    "zh": "不 没有 无 未 非 没 或 吗",
    "ko": "없 안 않 아니 비 무 못",
}


def test_a_negation_or_an_or_anywhere_in_a_sentence_takes_its_choice_back() -> None:
    """Of one clause, for what another clause denies is another matter ("scratch, not a crack")."""
    tried = 0
    for language, text, choices, expected in forms():
        said = text.strip(" .。*")
        if expected == "?" or any(mark in said for mark in ".,:;!?\n(){}<>\\-–。、：，`|[]" + '"') or choices[0] == "A":
            continue
        if {*expected.split()} & {"no", "not", "none"}:  # "There are no defects."
            continue
        for negator in NEGATORS[language].split():
            spaced = language not in ("ja", "zh", "ko")
            pieces = said.split(" ") if spaced else list(said)
            for i in range(len(pieces) + 1):
                changed = (" " if spaced else "").join([*pieces[:i], negator, *pieces[i:]])
                tried += 1
                assert parse(changed, choices).choice is None, changed
    assert tried > 3000


# --- cut off ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "choices", "named"),
    [
        ("Scratch. There is a visible li", "ok scratch crack", "scratch"),
        ("**Answer:** B\n\nExplan", "A B C", "B"),
        ("B. There is a visible li", "A B C", "B"),
        ("Verdict: scratch\nReas", "ok scratch", "scratch"),
        ("<think>hm</think>Scratch. There is a visible li", "ok scratch", "scratch"),
        ("OK. The surface is smooth and unif", "ok scratch", "ok"),
        ("划痕。零件表面有一", "合格 划痕", "划痕"),
        ("傷。表面に", "良品 傷", "傷"),
        ("Scratch", "ok scratch", None),  # may go on: "scratch-free"
        ("Scratch.", "ok scratch", None),
        ("Scratch - there is a visible li", "ok scratch", None),
        ("no", "yes no", None),
        ("No. 5", "yes no", None),
        ("B", "A B", None),
        ("A scratch. The li", "A B", None),
        ("Scratch. Act", "ok scratch", None),  # "Actually"
        ("Scratch. How", "ok scratch", None),
        ("Scratch. B", "ok scratch", None),
        ("Scratch. This is wro", "ok scratch", None),
        ("Scratch.\nOk", "ok scratch", None),
        ("Scratch. There is a line. The cr", "ok scratch crack", None),
        ("ok. There is a visible li", "ok scratch", None),  # a defect after all
        ("OK. The surface", "ok scratch", None),
        ("Crack. The crack rep", "crack,crack repaired", None),
        ("At first it looks ok. Final ans", "ok scratch", None),
        ("The image shows a scratch. The scr", "ok scratch", None),
        ("<think>It is ok. There", "ok scratch", None),
        ("Kratzer. Ab", "gut Kratzer", None),  # "Aber"
        ("划痕。但", "合格 划痕", None),
    ],
)
def test_an_answer_that_was_cut_off_counts_where_it_had_named_its_choice(
    text: str, choices: str, named: str | None
) -> None:
    names = tuple(choices.split("," if "," in choices else " "))
    assert parse_cut_off(text, names) == named
    ends = [said(text, "length")]
    assert degenerate_answers(ends, names) == (None if named else Reason.ANSWER_CUT_OFF)
    assert degenerate_answers([said(text, "unknown")], names) == Reason.ANSWER_CUT_OFF


def test_an_image_whose_answers_named_their_choice_in_time_is_decided_by_them() -> None:
    captions = (said("a steel ring with a scratch"),) * 4
    cut = (said("Scratch. There is a visible li", "length"),) * 3
    scorer = Scorer("Describe the part.", ("ok", "scratch"))
    scores, reason = scorer.score(Sampled(captions, (*cut, said("scratch"))))
    assert (scores.answer, scores.answer_share, reason) == ("scratch", 1.0, None)
    scores, reason = scorer.score(Sampled(captions, (*cut, said("Scra", "length"))))
    assert (scores.answer, scores.answer_share, reason) == ("scratch", 0.75, Reason.ANSWER_CUT_OFF)


def test_wherever_an_answer_is_cut_off_it_names_no_other_choice_than_in_full() -> None:
    named = 0
    for _, text, choices, expected in forms():
        for end in range(1, len(text)):
            found = parse_cut_off(text[:end], choices)
            named += found is not None
            assert found in (None, expected), (text[:end], found)
    assert named > 300
    for text in ANSWERS_OF_NO_CHOICE:
        answer = text.replace("\\n", "\n")
        for end in range(1, len(answer)):
            found = parse_cut_off(answer[:end], ("ok", "scratch", "crack"))
            assert found is None or answer.casefold().startswith(f"{found}. "), answer[:end]
