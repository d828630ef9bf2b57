"""Where an image goes: limits, budgets, and the readings that no score may save."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from vlmgate.captioner.location import OWN_NOVELTY, own_limits
from vlmgate.config import SamplingConfig
from vlmgate.data import Caption, Quality, Reason, Record, Route, Sampled, Scores
from vlmgate.errors import GateError
from vlmgate.gate.rules import COLUMNS, HIGHER_IS_WORSE, Candidate, Gate, Limit, decide, make_gate
from vlmgate.scores.answers import Parsed, tally
from vlmgate.scores.diversity import score_captions
from vlmgate.scores.refusals import degenerate, is_empty, is_refusal, says_nothing
from vlmgate.scores.score import Scorer, doubt


def scored(name: str, vendi: float | None, logprob: float | None = None) -> Candidate:
    agreement = None if vendi is None else 1 - (vendi - 1) / 7
    return Candidate.of(name, Scores(vendi, agreement, None, logprob, 0), None)


def lost(name: str) -> Candidate:
    return Candidate.of(name, None, Reason.UNREADABLE)


def caption(text: str, finish: str = "stop") -> Caption:
    return Caption(text, finish, -0.1, 5)  # type: ignore[arg-type]


def test_the_limit_itself_is_accepted_and_the_next_value_is_not() -> None:
    gate = make_gate(num_samples=8, threshold=1.8)
    a, b = decide([scored("a", 1.8), scored("b", 1.800001)], gate)
    assert (a.route, a.reason, a.threshold) == (Route.AUTO_ACCEPT, Reason.AGREED, 1.8)
    assert (b.route, b.reason, b.threshold) == (Route.HUMAN_REVIEW, Reason.DISAGREED, 1.8)


def test_scores_that_are_better_when_higher_are_compared_the_other_way() -> None:
    gate = make_gate(num_samples=8, score="agreement", threshold=0.9)
    a, b = decide([scored("a", 1.0), scored("b", 5.0)], gate)
    assert (a.route, b.route) == (Route.AUTO_ACCEPT, Route.HUMAN_REVIEW)


@pytest.mark.parametrize("vendi", [None, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("gate", [make_gate(num_samples=8, threshold=8), make_gate(num_samples=8, review_budget="0")])
def test_without_a_finite_score_nothing_is_accepted(vendi: float | None, gate: object) -> None:
    (decision,) = decide([scored("a", vendi)], gate)  # type: ignore[arg-type]
    assert (decision.route, decision.reason) == (Route.HUMAN_REVIEW, Reason.NO_SCORE)


def test_a_share_budget_takes_the_most_uncertain() -> None:
    rows = [scored(f"{i}", 1 + i / 10) for i in range(10)]
    decisions = decide(rows, make_gate(num_samples=8, review_budget="20%"))
    assert [d.route == Route.HUMAN_REVIEW for d in decisions] == [False] * 8 + [True] * 2
    assert {d.threshold for d in decisions} == {1.8}


def test_what_must_be_seen_takes_its_place_in_the_budget_first_and_may_exceed_it() -> None:
    rows = [lost("x"), lost("y"), scored("a", 1.0), scored("b", 5.0)]
    assert [d.route for d in decide(rows, make_gate(num_samples=8, review_budget="3"))].count(Route.HUMAN_REVIEW) == 3
    assert [d.route for d in decide(rows, make_gate(num_samples=8, review_budget="1"))].count(Route.HUMAN_REVIEW) == 2
    assert decide(rows, make_gate(num_samples=8, review_budget="3"))[3].reason == Reason.MOST_UNCERTAIN


def test_equals_are_told_apart_by_their_log_probability() -> None:
    rows = [scored("a", 1.0, -0.1), scored("b", 1.0, -0.9), scored("c", 1.0, -0.5)]
    decisions = decide(rows, make_gate(num_samples=8, review_budget="1"))
    assert [d.route == Route.HUMAN_REVIEW for d in decisions] == [False, True, False]


def test_exact_duplicates_go_the_same_way() -> None:
    rows = [scored("same", 2.0), scored("same", 2.0), scored("c", 1.0)]
    decisions = decide(rows, make_gate(num_samples=8, review_budget="1"))
    assert [d.route == Route.HUMAN_REVIEW for d in decisions] == [True, True, False]


def test_an_unknown_log_probability_is_the_less_certain_of_equals() -> None:
    rows = [scored("a", 1.0, -0.1), scored("b", 1.0, None)]
    assert decide(rows, make_gate(num_samples=8, review_budget="1"))[1].route == Route.HUMAN_REVIEW


def test_a_share_is_rounded_up() -> None:
    rows = [scored(f"{i:02d}", 1.0) for i in range(38)]
    decisions = decide(rows, make_gate(num_samples=8, review_budget="10%"))
    assert [d.route for d in decisions].count(Route.HUMAN_REVIEW) == 4


def test_a_gate_has_exactly_one_limit() -> None:
    for limits in ({}, {"threshold": 1.5, "budget_count": 3}):
        with pytest.raises(GateError, match="exactly one limit"):
            Gate(**limits)  # type: ignore[arg-type]


def coin_flip(*texts: str) -> Candidate:
    captions = [caption(text) for text in texts for _ in range(8 // len(texts))]
    return Candidate.of("x", score_captions(captions), degenerate(captions))


@pytest.mark.parametrize(
    "texts",
    [
        ("A brushed steel washer with a scratch at the upper left.", "A brushed steel washer with no visible defect."),
        ("A brass gear with a scratch at the center.", "This brass gear shows a dent at the center."),
        tuple(
            f"A copper plate with a {what} at the lower right." for what in "scratch crack dent stain chip".split()[:4]
        ),
    ],
)
def test_the_default_accepts_no_contradiction(texts: tuple[str, ...]) -> None:
    (decision,) = decide([coin_flip(*texts)], make_gate(num_samples=8))
    assert decision.route == Route.HUMAN_REVIEW


def test_the_default_accepts_one_reading_in_several_wordings() -> None:
    same = (
        "A brass gear with no visible defect.",
        "No defect is visible on this brass gear.",
        "A brass gear free of damage.",
    )
    (decision,) = decide([coin_flip(*same)], make_gate(num_samples=8))
    assert decision.route == Route.AUTO_ACCEPT


@pytest.mark.parametrize(
    ("score", "limit", "good", "bad"),
    [
        ("vendi_score", 2.0, 1.5, 2.5),
        ("mean_dissimilarity", 0.2, 0.1, 0.3),
        ("agreement", 0.8, 0.9, 0.7),
        ("mean_logprob", -0.5, -0.4, -0.6),
    ],
)
def test_every_score_is_compared_in_its_own_direction(score: str, limit: float, good: float, bad: float) -> None:
    rows = [
        Candidate.of(name, replace(Scores(None, None, None, None, 0), **{score: value}), None)
        for name, value in (("good", good), ("bad", bad))
    ]
    for gate in (
        make_gate(num_samples=8, score=score, threshold=limit),
        make_gate(num_samples=8, score=score, review_budget="1"),
    ):
        assert [d.route for d in decide(rows, gate)] == [Route.AUTO_ACCEPT, Route.HUMAN_REVIEW]


def test_the_default_is_uncalibrated_and_says_so() -> None:
    gate = make_gate(num_samples=8)
    assert gate.default and gate.threshold == 1.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5, "review_budget": "10%"}, "exclude each other"),
        ({"threshold": 9.0}, "lies between 1 and 8"),
        ({"threshold": float("nan")}, "lies between"),
        ({"review_budget": "110%"}, "such as 10%"),
        ({"review_budget": "ten"}, "such as 10%"),
        ({"review_budget": "1.5"}, "such as 10%"),
        ({"review_budget": "-1"}, "such as 10%"),
        ({"score": "luck"}, "choose one of"),
        ({"score": "agreement"}, "no default limit"),
        ({"kernel": "minilm"}, "--kernel minilm has no default limit"),
    ],
)
def test_gates_that_mean_nothing_are_refused_in_one_line(options: dict[str, object], words: str) -> None:
    with pytest.raises(GateError, match=words) as caught:
        make_gate(num_samples=8, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "   ", ".", "…", "!!!!", "\u200b", "\u3164", "aaaa", "the the the the a", "-----", "washer washer washer."],
)
def test_empty_captions(text: str) -> None:
    assert is_empty(text)
    assert degenerate([caption("a brass gear"), caption(text)]) == Reason.EMPTY_CAPTION


ASKED = "Describe the part and any defect."


@pytest.mark.parametrize(
    "text",
    [
        *("</s>", "<s></s>", "[PAD]", "<think></think>", "assistant", "<end_of_turn>", "the the", "It is.", "of the"),
        *("The image shows", "In this image", "Sure, here you go.", "image", "abababababab", "划痕划痕划痕划痕"),
        *("the part the part the part the part", ASKED, f"{ASKED} {ASKED}", f"USER: {ASKED} ASSISTANT"),
        f"[INST] {ASKED} [/INST]",
    ],
)
def test_captions_that_assert_nothing(text: str) -> None:
    assert says_nothing(text, ASKED)
    assert degenerate([caption("a brass gear"), caption(text)], ASKED) == Reason.EMPTY_CAPTION


@pytest.mark.parametrize(
    "text",
    [
        *("ok", "OK", "4", "A", "no", "yes", "on", "off", "gear", "划痕", "A gear.", "The image shows a gear."),
        *("Sure! A bolt with a dent.", "12121212", "AB-12-AB-13", "user manual", "It is on the left, scratched."),
        *("gear <2 mm scratch>", f"{ASKED} A gear with a dent.", "a caption plate with text"),
    ],
)
def test_captions_that_may_be_all_that_was_asked_for(text: str) -> None:
    assert degenerate([caption(text)] * 4, ASKED) is None


@pytest.mark.parametrize(
    "text",
    [
        *("I\u200b can\u200bnot help", "i cannot_help_with that", "I can\u00b4t help", "I cannot.", "Request blocked."),
        *(
            "500 Internal Server Error",
            "Image unavailable.",
            "No object detected.",
            "Nichts zu erkennen.",
            "すみません。",
        ),
        *("Tut mir leid.", "Something went wrong.", "The image contains no part.", "Please share the image."),
    ],
)
def test_refusals_in_disguise(text: str) -> None:
    assert degenerate([caption(text)] * 4, ASKED) == Reason.REFUSED


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am unable to determine the condition of the part.",
        "As an AI language model, I cannot view images.",
        "Sorry, no.",
        "I can’t tell.",
        "No image was provided.",
        "The image is too dark to make out any detail.",
        "It is impossible to tell whether there is a crack.",
        "The condition cannot be determined from this photo.",
        "unsure",
        "Ich kann das Bild leider nicht beurteilen.",
        "抱歉，我无法描述。",
        "The image is completely black.",
        "The image quality is too poor to determine the condition.",
        "The resolution is insufficient to assess the surface.",
        "It is unclear whether there is a crack.",
        "The image is blurry and details cannot be seen.",
        "I'm not sure.",
        "There is not enough detail to judge.",
        "Please provide an image.",
        "cannot determine",
        "Das Bild ist zu dunkel, um etwas zu erkennen.",
        "Cannot determine.",
        "I can't see anything in this image.",
        "Unanswerable",
        "No image.",
        "The image is very blurry.",
        "Not enough information.",
        "error: image could not be loaded",
        "The part is not visible.",
        "Nothing.",
        "<unk><unk>",
        "不明",
        "I can't see any part here.",
        "No description available.",
        "There is no image to describe.",
        "Image not found.",
        "Nothing is visible.",
        "The image shows nothing.",
        "It is too dark.",
        "Everything is blurry.",
        "A dark image.",
        "A blank white background.",
        "unsure if you cannot tell",
        "Don't know",
        "Sure, I can help with that.",
        "Sure, here is a description:",
        "I'm just an AI.",
        "I'm afraid that is not possible.",
        "I won't do that.",
        "Request declined.",
        "Content policy violation",
        "Das Bild ist zu dunkel.",
        "Je ne sais pas.",
        "No lo sé",
        "図がわからない",
        "图片太暗",
        "모르겠습니다",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)
    assert degenerate([caption("a brass gear")] * 7 + [caption(text)]) == Reason.REFUSED


@pytest.mark.parametrize(
    "text",
    [
        "I cannot see any scratch on the washer.",
        "A brushed steel washer without visible defects.",
        "The part has a dark stain at the upper left.",
        "A black oxide plate, free of damage.",
        "No defect.",
        "A gear with one missing tooth; the image shows it in the center.",
        "The image is black and white and shows a gear.",
        "The scratch is too small to affect the part.",
        "No scratch, no dent, no crack and no rust on the gear.",
        "A washer on a black background; no part of it is scratched.",
        "A black washer on a white background.",
        "I don't see any defects on the part.",
        "I can't see a scratch on this component.",
        "A dark blurred stain at the rim.",
        "A white square plate without defects.",
        "It is a black gear.",
        "It is black.",
        "OK.",
        "The burr violates the drawing.",
        "Nothing is wrong with this part.",
        "Das Bild zeigt ein schwarzes Zahnrad.",
        "Дефектов не видно.",
        "4",
        "有",
    ],
)
def test_honest_readings_are_no_refusals(text: str) -> None:
    assert not is_refusal(text) and not is_empty(text)
    assert degenerate([caption(text)] * 8) is None


@pytest.mark.parametrize(
    "text",
    ["Не могу определить", "На детали видна царапина.", "Дефектов не видно.", "لا أعرف", "لا توجد عيوب على السطح"],
)
def test_captions_in_a_language_without_a_file_are_never_accepted_on_captions_alone(text: str) -> None:
    scores, reason = Scorer("").score(Sampled((caption(text),) * 8))
    assert (scores.vendi_score, reason) == (8.0, Reason.UNKNOWN_LANGUAGE), "each is like no other"
    one = Candidate.of("a", scores, reason)
    limits = ["contradiction <= 0.5"]
    for gate in (make_gate(num_samples=8, threshold=8, limits=limits), make_gate(num_samples=8, review_budget="0")):
        (decision,) = decide([one], gate)
        assert (decision.route, decision.reason) == (Route.HUMAN_REVIEW, Reason.UNKNOWN_LANGUAGE)
    answered = Scorer("", ("ok", "dent")).score(Sampled((caption(text),) * 8, (caption("ok"),) * 8))
    assert answered[1] is None and answered[0].answer == "ok", "an answer to a question is read all the same"


@pytest.mark.parametrize(
    ("answer", "said", "disputed"),
    [
        ("none", "a dent", 0.5),
        ("None.", "a dent", 0.5),
        ("nichts", "a dent", 0.5),
        ("なし", "a dent", 0.5),
        ("ok", "a dent", 0.5),
        ("none", "no defect", 0.0),
        ("none", "a round plate", 0.0),
        ("no", "a dent", 0.0),  # may answer "is it good?", or "is it dented?"
        ("absent", "a dent", 0.0),  # a part may be
        ("dent", "no defect", 0.5),
    ],
)
def test_captions_dispute_an_answer_that_names_no_defect(answer: str, said: str, disputed: float) -> None:
    scorer = Scorer("", (answer, "rust"))
    scores, reason = scorer.score(Sampled((caption(said),) * 4, (caption(answer),) * 4))
    assert (scores.answer, scores.contradiction, reason) == (answer, disputed, None)


def test_a_caption_that_repeats_the_prompt_says_nothing() -> None:
    assert degenerate([caption("describe the part")] * 8, "Describe the part.") == Reason.EMPTY_CAPTION


def test_images_whose_turn_never_came_take_no_place_in_the_budget() -> None:
    waiting = [Candidate.of(f"w{i}", None, Reason.NOT_READ) for i in range(6)]
    rows = [scored(f"{i}", 1 + i / 10) for i in range(4)]
    decisions = decide([*rows, *waiting], make_gate(num_samples=8, review_budget="20%"))
    assert [d.reason for d in decisions[:4]].count(Reason.MOST_UNCERTAIN) == 2


def test_a_cut_off_or_overflowed_caption_is_for_a_person() -> None:
    assert degenerate([caption("a brass gear"), caption("a brass", "length")]) == Reason.CUT_OFF
    assert degenerate([caption("a brass gear"), caption("a brass", "non-finite")]) == Reason.NON_FINITE
    assert degenerate([]) is not None


# --- limits on several columns ----------------------------------------------------------------------------------------


def full(name: str, *, quality: Quality | None = None, novelty: float | None = None, **scores: object) -> Candidate:
    values: dict[str, object] = {"vendi_score": 1.0, "mean_logprob": -0.1} | scores
    empty = Scores(None, None, None, None, 0)
    return Candidate.of(name, replace(empty, **values), None, quality, novelty)  # type: ignore[arg-type]


def test_each_limit_routes_with_its_own_column() -> None:
    gate = make_gate(
        num_samples=8,
        threshold=1.8,
        limits=["abstain_rate <= 0.25", "answer_share ≥ 0.75", "sharpness>=20", "novelty <= 1"],
    )
    sharp, soft = Quality(25.0, 0.5, 0.1, 1.0, 0.0, 0.0), Quality(5.0, 0.5, 0.1, 1.0, 0.0, 0.0)
    good = {"abstain_rate": 0.25, "answer_share": 0.75}
    rows = [
        full("a", **good, quality=sharp, novelty=1.0),
        full("b", **good | {"abstain_rate": 0.375}, quality=sharp, novelty=1.0),
        full("c", **good | {"answer_share": 0.5}, quality=sharp, novelty=1.0),
        full("d", **good, quality=soft, novelty=1.0),
        full("e", **good, quality=sharp, novelty=1.01),
        full("f", **good | {"vendi_score": 1.9}, quality=sharp, novelty=1.0),
    ]
    told = [(d.route == Route.AUTO_ACCEPT, d.reason, d.column, d.threshold) for d in decide(rows, gate)]
    assert told == [
        (True, Reason.AGREED, "vendi_score", 1.8),
        (False, Reason.BEYOND_LIMIT, "abstain_rate", 0.25),
        (False, Reason.BEYOND_LIMIT, "answer_share", 0.75),
        (False, Reason.BEYOND_LIMIT, "sharpness", 20.0),
        (False, Reason.BEYOND_LIMIT, "novelty", 1.0),
        (False, Reason.DISAGREED, "vendi_score", 1.8),
    ]
    assert gate.describe() == (
        "vendi_score ≤ 1.8 and abstain_rate ≤ 0.25 and answer_share ≥ 0.75 and sharpness ≥ 20 and novelty ≤ 1"
    )


def test_a_tie_of_answers_is_broken_for_gates_alone_that_go_by_the_probability() -> None:
    tie = replace(
        full("a", answer="ok", answer_share=0.5, answer_probability=0.9, answer_entropy=0.69), reason=Reason.NO_ANSWER
    )
    none = replace(full("b", answer_share=0.0), reason=Reason.NO_ANSWER)
    by_limit = make_gate(num_samples=8, threshold=1.8, limits=["answer_probability >= 0.75"])
    by_score = make_gate(num_samples=8, score="answer_probability", threshold=0.75)
    for gate in (by_limit, by_score):
        first, second = decide([tie, none], gate)
        assert first.route is Route.AUTO_ACCEPT and second.reason is Reason.NO_ANSWER
    stricter = make_gate(num_samples=8, score="answer_probability", threshold=0.95)
    assert decide([tie], stricter)[0].reason is Reason.DISAGREED
    of_another_answer = Limit("answer_probability", ">=", 0.75, answer="dent")
    for gate in (
        make_gate(num_samples=8, threshold=1.8),
        make_gate(num_samples=8, score="answer_share", threshold=0.5),
        Gate(threshold=1.8, limits=(of_another_answer,)),
    ):
        assert decide([tie], gate)[0].reason is Reason.NO_ANSWER
    cut = replace(tie, reason=Reason.CUT_OFF)
    assert decide([cut], by_limit)[0].reason is Reason.CUT_OFF


def test_of_equal_shares_the_least_likely_answer_goes_to_a_person_first() -> None:
    likely = {"a": 0.99, "b": 0.8, "c": None, "d": 0.9}
    rows = [full(name, answer="ok", answer_share=1.0, answer_probability=p) for name, p in likely.items()]
    routed = []
    for budget in ("1", "2", "3"):
        gate = make_gate(num_samples=8, score="answer_share", review_budget=budget)
        decided = zip("abcd", decide(rows, gate), strict=True)
        routed.append("".join(name for name, decision in decided if decision.route is Route.HUMAN_REVIEW))
    assert routed == ["c", "bc", "bcd"], "what is unknown comes first"


@pytest.mark.parametrize("column", sorted(COLUMNS))
@pytest.mark.parametrize("budget", [None, "0"])
def test_what_is_unknown_in_a_limited_column_is_never_accepted(column: str, budget: str | None) -> None:
    safe = "<=" if HIGHER_IS_WORSE.get(column, True) else ">="
    value = {"vendi_score": 8, "doubt": 8, "mean_logprob": -100}.get(column, 0.5)
    gate = make_gate(
        num_samples=8, threshold=None if budget else 8, review_budget=budget, limits=[f"{column} {safe} {value}"]
    )
    nothing = Candidate.of("a", Scores(None, None, None, None, 0), None)
    broken = full("b", **{column: float("nan")}) if hasattr(Scores, column) else nothing
    for decision in decide([nothing, broken], gate):
        assert (decision.route, decision.reason, decision.column) == (Route.HUMAN_REVIEW, Reason.NO_SCORE, column)


def test_every_number_of_a_reading_can_be_limited() -> None:
    numbers = {f.name for kind in (Scores, Quality) for f in fields(kind)} - {"medoid", "answer"}
    assert set(COLUMNS) == numbers | {"novelty"}
    assert set(COLUMNS) <= {f.name for f in fields(Record)}


def test_what_is_beyond_a_limit_takes_its_place_in_the_budget_first() -> None:
    rows = [full("a", abstain_rate=0.9), full("b", abstain_rate=0.0, vendi_score=2.0), full("c", abstain_rate=0.0)]
    for budget, routed in (("1", "a"), ("2", "ab"), ("0", "a")):
        gate = make_gate(num_samples=8, review_budget=budget, limits=["abstain_rate <= 0.5"])
        names = [c.key[0] for c, d in zip(rows, decide(rows, gate), strict=True) if d.route == Route.HUMAN_REVIEW]
        assert "".join(names) == routed


def test_a_limit_on_the_score_takes_the_place_of_the_default_and_others_do_not() -> None:
    alone = make_gate(num_samples=8, limits=["vendi_score <= 2"])
    assert alone.threshold is None and alone.describe() == "vendi_score ≤ 2"
    a, b = decide([scored("a", 2.0), scored("b", 2.1)], alone)
    assert (a.route, a.reason, a.threshold, a.column) == (Route.AUTO_ACCEPT, Reason.AGREED, 2.0, "vendi_score")
    assert (b.route, b.reason) == (Route.HUMAN_REVIEW, Reason.BEYOND_LIMIT)
    beside = make_gate(num_samples=8, limits=["sharpness >= 20"])
    assert beside.threshold == 1.25 and beside.default
    assert make_gate(num_samples=8, score="agreement", limits=["agreement >= .9"]).limits[0].value == 0.9


def test_limits_that_were_measured_for_a_model_take_the_place_of_the_default_but_not_of_the_users() -> None:
    own = ("vendi_score <= 2.2", "novelty <= 1.5")
    gate = make_gate(num_samples=8, own=own)
    assert gate.describe() == "vendi_score ≤ 2.2 (the model's own) and novelty ≤ 1.5 (the model's own)"
    rows = [full("a", vendi_score=2.2, novelty=1.5), full("b", novelty=1.6), full("c", vendi_score=2.3, novelty=0.5)]
    told = [(d.route == Route.AUTO_ACCEPT, d.column) for d in decide(rows, gate)]
    assert told == [(True, "vendi_score"), (False, "novelty"), (False, "vendi_score")]
    assert decide([full("unknown")], gate)[0].reason is Reason.NO_SCORE
    assert Gate.of(asdict(gate)) == gate
    assert make_gate(num_samples=8, own=own, limits=["novelty <= 3"]).describe() == (
        "vendi_score ≤ 2.2 (the model's own) and novelty ≤ 3"
    )
    splits: list[dict[str, Any]] = [
        *({"threshold": 3.0}, {"review_budget": "5"}, {"limits": ["vendi_score <= 3"]}),
        *({"score": "agreement", "threshold": 0.1}, {"answered": True}, {"answered": True, "threshold": 0.1}),
    ]
    for chosen in splits:
        gate = make_gate(num_samples=8, own=own, **chosen)
        assert gate.describe().count("the model's own") == 1 and "novelty ≤ 1.5 (the model's own)" in gate.describe()
        strange = full("a", vendi_score=1.0, novelty=1.6, agreement=1.0, answer="ok", answer_probability=1.0)
        assert decide([strange], gate)[0].column == "novelty"
        lifted = [*chosen.get("limits", ()), "novelty <= inf"]
        gate = make_gate(num_samples=8, own=own, **chosen | {"limits": lifted})
        assert "novelty" not in gate.describe() and Gate.of(gate.told()) == gate
        assert decide([strange], gate)[0].column != "novelty"
    with pytest.raises(GateError, match="--kernel minilm has no default limit"):
        make_gate(num_samples=8, own=own, kernel="minilm")


def test_with_a_question_most_of_all_answers_must_name_the_answer_unless_told_otherwise() -> None:
    by_captions: dict[str, Any] = {"num_samples": 8, "score": "vendi_score", "threshold": 1.8, "answered": True}
    gate, usual = make_gate(**by_captions), "answer_probability (or answer_share) ≥ 0.75 (uncalibrated default)"
    assert gate.describe() == f"vendi_score ≤ 1.8 and {usual}"
    lonely = full("a", answer="ok", answer_share=0.125, abstain_rate=0.875)
    likely = replace(lonely, record=replace(lonely.record, answer_probability=0.8))
    assert [decide([one], gate)[0].column for one in (lonely, likely)] == ["answer_share", "vendi_score"]
    told = make_gate(**by_captions, limits=["answer_share >= 0.5"])
    assert told.describe() == "vendi_score ≤ 1.8 and answer_share ≥ 0.5"
    assert len(make_gate(num_samples=8, answered=True, limits=["abstain_rate <= 0.5"]).limits) == 1
    with pytest.raises(GateError, match="add --score vendi_score"):
        make_gate(num_samples=8, threshold=1.8, answered=True)


def test_with_a_question_the_answers_decide() -> None:
    gate = make_gate(num_samples=8, answered=True, own=("vendi_score <= 2", "novelty <= 1"))
    assert gate.describe() == (
        "answer_probability (or answer_share) ≥ 0.75 (uncalibrated default) and novelty ≤ 1 (the model's own)"
    )
    apart = {"vendi_score": 8.0, "answer": "ok", "novelty": 0.5}
    sure, share = full("a", answer_probability=0.8, **apart), full("b", answer_share=0.8, **apart)
    unsure = full("c", answer_probability=0.7, answer_share=1.0, **apart)
    disputed = full("d", answer_probability=0.8, contradiction=0.125, **apart)
    told = [(d.route == Route.AUTO_ACCEPT, d.column) for d in decide([sure, share, unsure, disputed], gate)]
    assert told == [
        (True, "answer_probability"),
        (True, "answer_share"),
        (False, "answer_probability"),
        (False, "contradiction"),
    ]
    assert Gate.of(asdict(gate)) == gate
    budget = make_gate(num_samples=8, answered=True, review_budget="1", limits=["answer_share >= 0.5"])
    budget = replace(budget, score="answer_probability")  # a result without log-probabilities
    assert [d.route == Route.AUTO_ACCEPT for d in decide([share, replace_share(share, 0.9)], budget)] == [False, True]


def replace_share(one: Candidate, share: float) -> Candidate:
    return replace(one, record=replace(one.record, file_name="z", answer_share=share))


def test_captions_that_contradict_each_other_are_accepted_under_no_gate_that_does_not_say_so() -> None:
    row = full("a", vendi_score=1.0, contradiction=0.125)
    for gate in (
        make_gate(num_samples=8),
        make_gate(num_samples=8, threshold=8),
        make_gate(num_samples=8, review_budget="0"),
    ):
        (decision,) = decide([row], gate)
        assert (decision.route, decision.reason) == (Route.HUMAN_REVIEW, Reason.CONTRADICTED)
    (decision,) = decide([row], make_gate(num_samples=8, limits=["contradiction <= 0.15"]))
    assert decision.route == Route.AUTO_ACCEPT
    assert not make_gate(num_samples=8, limits=[]).limits


@pytest.mark.parametrize(
    "options",
    [
        {"limits": ["answer_entropy <= 0.7"], "score": "answer_probability"},
        {"score": "answer_entropy", "threshold": 0.7},
        {"score": "answer_entropy", "review_budget": "0"},
        {"score": "answer_share", "review_budget": "0"},
    ],
)
def test_one_answer_beside_seven_that_abstain_is_no_verdict(options: dict[str, object]) -> None:
    told = tally([Parsed(None, abstains=True)] * 7 + [Parsed("ok")])
    assert told.answer_entropy < 0.7
    lonely = full("a", answer="ok", answer_share=told.answer_share, answer_entropy=told.answer_entropy)
    (decision,) = decide([lonely], make_gate(num_samples=8, answered=True, **options))  # type: ignore[arg-type]
    assert (decision.route, decision.column) == (Route.HUMAN_REVIEW, "answer_share")  # no probability is known


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("abstain_rate < 0.25", "<= or >="),
        ("abstain_rate", "<= or >="),
        ("abstain_rate <= nan", "<= or >="),
        ("abstain_rate <= 1e9", "<= or >="),
        ("luck <= 1", "unknown column 'luck'"),
        ("answer <= 1", "unknown column 'answer'"),
        ("abstain_rate >= 0.25", "would accept the worst"),
        ("answer_share <= 0.25", "would accept the worst"),
        ("novelty >= 1", "would accept the worst"),
        ("abstain_rate <= 1.5", "lies between 0 and 1"),
        ("vendi_score <= 9", "lies between 1 and 8"),
    ],
)
def test_limits_that_mean_nothing_are_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(GateError, match=words) as caught:
        make_gate(num_samples=8, limits=[text])
    assert "\n" not in str(caught.value)


def test_pictures_may_be_limited_from_both_sides() -> None:
    gate = make_gate(num_samples=8, limits=["exposure >= 0.2", "exposure <= 0.8", "noise >= 0"])
    rows = [full(f"{x}", quality=Quality(1.0, x, 0.1, 1.0, 0.0, 0.0)) for x in (0.1, 0.5, 0.9)]
    assert [d.route == Route.AUTO_ACCEPT for d in decide(rows, gate)] == [False, True, False]
    with pytest.raises(GateError, match="unknown score 'exposure'"):
        make_gate(num_samples=8, score="exposure", review_budget="10%")


def test_a_gate_survives_the_provenance_of_a_result() -> None:
    gate = make_gate(num_samples=8, threshold=1.8, limits=["novelty <= 1", "exposure >= 0.2"])
    assert Gate.of(json.loads(json.dumps(asdict(gate)))) == gate
    before = {"score": "vendi_score", "threshold": 1.8, "budget_share": None, "budget_count": None, "default": False}
    assert Gate.of(before) == make_gate(num_samples=8, threshold=1.8)


@pytest.mark.parametrize("novelty", [None, float("nan"), float("inf")])
def test_an_unknown_novelty_leaves_doubt_unknown(novelty: float | None) -> None:
    assert doubt(1.0, novelty, 8) is None and doubt(None, 1.0, 8) is None


def test_what_is_strange_is_doubted_more_than_whatever_is_familiar() -> None:
    assert doubt(1.5, 0.5, 8) == 1.5 and doubt(8.0, 1.0, 8) == 8.0
    assert doubt(1.0, 1.01, 8) == 9.0 and doubt(1.5, 7.0, 8) == 9.5


# --- the built-in model -----------------------------------------------------------------------------------------------


def test_the_built_in_models_limits_hold_for_the_kernels_and_the_sampling_that_they_were_measured_with() -> None:
    usual = SamplingConfig()
    for kernel in ("findings", "words"):
        gate = make_gate(num_samples=8, kernel=kernel, own=(*own_limits(usual, kernel), *OWN_NOVELTY))
        assert gate.describe() == "vendi_score ≤ 2 (the model's own) and novelty ≤ 1 (the model's own)"
        two = Candidate.of("a", Scores(1.9, 0.9, None, None, 0, contradiction=0.125), None, None, 0.5)
        assert decide([two], gate)[0].reason is Reason.CONTRADICTED, "a limit on the score allows for no contradiction"
    assert own_limits(usual, "minilm") == ()
    assert own_limits(usual, "kappa") == own_limits(usual, "findings") != ()
    assert make_gate(num_samples=8, kernel="kappa") == make_gate(num_samples=8), "the same default limit"
    for other in ({"num_samples": 4}, {"temperature": 0.5}, {"prompt": "What is it?"}):
        assert own_limits(replace(usual, **other), "findings") == ()
    assert own_limits(replace(usual, max_new_tokens=64), "words"), (
        "the limit of length changes no reading of this model"
    )


def test_a_limit_on_flat_rows_routes_broken_copies_and_what_was_never_measured() -> None:
    def quality(flat: float | None) -> Quality:
        return Quality(100.0, 0.5, 0.1, 1.0, 0.0, 0.0, flat)

    rows = [full(name, quality=quality(flat)) for name, flat in (("whole", 0.0), ("cut", 0.4), ("of before", None))]
    gate = make_gate(num_samples=8, threshold=8.0, limits=("flat_rows <= 0.02",))
    found = [(one.route, one.reason) for one in decide(rows, gate)]
    assert found == [
        (Route.AUTO_ACCEPT, Reason.AGREED),
        (Route.HUMAN_REVIEW, Reason.BEYOND_LIMIT),
        (Route.HUMAN_REVIEW, Reason.NO_SCORE),
    ]
