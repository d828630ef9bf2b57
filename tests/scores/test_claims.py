"""What captions claim, in words and by its place; the place is exact, or there is none."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import pytest

from tests.support.hostile_page import HOSTILE
from vlmgate.scores.claims import (
    _traced,
    claims_line,
    dispute,
    groups,
    in_words,
    places,
    summed_up,
    vocabulary_of,
)
from vlmgate.scores.diversity import contradiction
from vlmgate.scores.findings import load_vocabulary
from vlmgate.scores.language import fold, languages

ENGLISH = load_vocabulary()
TERMS = """
[[finding]]
id = "flow_mark"
en = ["flow mark"]
[[finding]]
id = "logo"
good = true
en = ["logo"]
"""


def marked(*texts: str) -> list[list[str]]:
    return [[text[a:b] for a, b in ranges] for text, ranges in zip(texts, places(texts, ENGLISH), strict=True)]


# --- in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "line"),
    [
        (
            ["A long scratch."] * 5 + ["No defects."] * 2 + ["Scratched at the rim."],
            "6 of 8 scratch · 2 of 8 no defect",
        ),
        (["Perhaps a scratch.", "A round grey part."], "1 of 2 nothing of the condition · 1 of 2 perhaps scratch"),
        (["A scratch or a crack."], "1 of 1 perhaps crack, perhaps scratch"),
        (["No scratches.", "The surface has no scratch."], "2 of 2 no scratch"),
        (["No scratches.", "The part is intact."], "2 of 2 no defect"),
        (["A crack, but no dent.", "A crack.", "A dent."], "1 of 3 crack · 1 of 3 crack, no dent · 1 of 3 dent"),
        (["A gap of < 0.5 mm.", "A gap of 0.5 mm."], "1 of 2 0.5 mm · 1 of 2 < 0.5 mm"),
        (["The left pin is longer than the right one."], "1 of 1 longer: left > right"),
        (["A crack of 0.5 mm.", "A crack of 0.8 mm."], "1 of 2 crack, 0.5 mm · 1 of 2 crack, 0.8 mm"),
        (["A crack of 0.5 mm.", "A crack."], "2 of 2 crack"),
        (["A ring of 0.5 mm."], "1 of 1 0.5 mm"),
        (["The part is defective."], "1 of 1 some defect"),
        (["На поверхности царапина", "scratch"], "1 of 2 language not known · 1 of 2 scratch"),
        (["", "42"], "2 of 2 nothing of the condition"),
    ],
)
def test_claims_are_a_line_the_most_frequent_first(captions: list[str], line: str) -> None:
    assert claims_line(captions, ENGLISH) == line


def test_the_words_are_those_of_the_terms_and_choices_of_the_result() -> None:
    own = vocabulary_of({"terms": TERMS, "choices": ["ok", "gizmo"]})
    captions = ["a flow mark", "a logo, no flow mark", "a gizmo", "a scratch"]
    assert claims_line(captions, own) == (
        "1 of 4 flow mark · 1 of 4 gizmo · 1 of 4 logo, no flow mark · 1 of 4 nothing of the condition"
    )
    assert claims_line(captions, vocabulary_of({"prompt": "of a result of before"})).endswith("1 of 4 scratch")


def test_beyond_eight_groups_the_rest_are_counted() -> None:
    names = ("scratch", "dent", "crack", "rust", "stain", "burr", "chip", "hole", "tear", "bubble")
    found = groups([f"There is a {name}." for name in names], ENGLISH)
    assert len(found) == 9 and found[-1] == ("something else", 2)
    assert sum(times for _, times in found) == len(names)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("=0.5mm", "0.5 mm"),
        ("≤30°", "≤ 30 °"),
        ("±0.1mm", "±0.1 mm"),
        ("-0.1mm", "-0.1 mm"),
        ("<0.5", "< 0.5"),
        ("=1e+06mm", "1e+06 mm"),
        ("==4mm;=6mm", "4 mm then 6 mm"),
        ("length:left>right", "length: left > right"),
        ("length:left>", "length: left > others"),
        ("length:>left", "length: others > left"),
        ("flow_mark", "flow mark"),
        ("NG: bent > 1", "NG: bent > 1"),
        ("<b>ok</b>", "<b>ok</b>"),
        ("-;=", "-;="),
    ],
)
def test_a_claim_is_told_in_words(claim: str, words: str) -> None:
    assert in_words(claim) == words


def test_a_single_caption_is_summed_up_where_it_claims_something_for_sure() -> None:
    said = ("A brushed washer without visible defects.", "Perhaps a dent.", "A round part.", "A dent and a crack.")
    assert [summed_up(text, ENGLISH) for text in said] == ["no defect", None, None, "crack, dent"]


DISPUTES = [
    (["a scratch"] * 5 + ["no scratch"] * 3, "5 of 8 say scratch, 3 of 8 deny it"),
    (["a scratch"] * 2 + ["no defects"] + ["a crack"], "2 of 4 say scratch, 1 of 4 deny it"),
    (["a gap of < 0.5 mm"] * 3 + ["a gap of > 0.5 mm"], "3 of 4 say < 0.5 mm, 1 of 4 say the opposite"),
    (["The part is defective."] * 2 + ["no defect"] * 2, "2 of 4 say some defect, 2 of 4 deny it"),
    (["a scratch", "a dent"], None),
    (["a grey part"], None),
]


@pytest.mark.parametrize(("captions", "words"), DISPUTES)
def test_a_contradiction_names_the_claim_and_both_sides(captions: list[str], words: str | None) -> None:
    assert dispute(captions, None, "they differ", ENGLISH) == "they differ" + (f": {words}" if words else "")
    figure = contradiction([ENGLISH.claims(text) for text in captions])
    assert (figure > 0) == (words is not None)


def test_captions_that_dispute_the_answer_are_counted() -> None:
    captions = ["no defects"] * 3 + ["a grey part"]
    assert dispute(captions, "scratch", "why", ENGLISH) == "3 of 4 readings contradict the answer 'scratch'"
    assert dispute(captions, "ok", "why", ENGLISH) == "why"
    both = ["a scratch"] * 3 + ["no scratch"]
    assert dispute(both, "scratch", "why", ENGLISH) == "why: 3 of 4 say scratch, 1 of 4 deny it"


# --- where it stands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("A brass gear with a dent.", "A steel gear with a crack."), [["dent"], ["crack"]]),
        (("A scratch on the gear.", "No visible scratch on the gear."), [["scratch"], ["No", "scratch"]]),
        (("No scratches.", "Free of defects, intact."), [[], []]),
        (("a dent and a scratch", "a dent"), [["scratch"], []]),
        (("a scratch", "no dents, no scratches, no cracks"), [["scratch"], ["no scratches"]]),
        (("a grey part", "no dents or cracks"), [[], ["no dents", "cracks"]]),
        (("Perhaps a scratch.", "A scratch."), [["Perhaps", "scratch"], ["scratch"]]),
        (("Perhaps a scratch.", "A scratch, perhaps."), [[], []]),
        (("a scratch or a crack", "a crack"), [["scratch or", "crack"], ["crack"]]),
        (("The part is intact.", "The part is dented."), [["intact"], ["dented"]]),
        (("A gap of < 0.5 mm.", "A gap of > 0.5 mm."), [["< 0.5 mm"], ["> 0.5 mm"]]),
        (("A crack of 0.5 mm.", "A crack.", "A dent."), [["crack"], ["crack"], ["dent"]]),
        (("A deep gouge.", "No scratches."), [["gouge"], ["No scratches"]]),
        (("off by -0.1 mm", "off by +0.1 mm"), [["-0.1 mm"], ["+0.1 mm"]]),
        (("Scratches: 0", "Scratches: yes"), [["Scratches", "0"], ["Scratches"]]),
        (("scratch", "scratch", ""), [[], [], []]),
        (("a scratch", "  "), [[], []]),
        (("царапина на детали", "a scratch"), [[], ["scratch"]]),
    ],
)
def test_claims_that_not_all_captions_make_alike_are_marked(texts: tuple[str, ...], words: list[list[str]]) -> None:
    assert marked(*texts) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Auf der Maßangabe „groß“ ist kein Kratzer.", ["kein Kratzer"]),
        ("Kratzer sind nicht sichtbar.", ["Kratzer", "nicht"]),
        ("Ｎｏ　ｓｃｒａｔｃｈ\u3000ｉｓ visible.", ["Ｎｏ　ｓｃｒａｔｃｈ"]),
        ("👩‍🏭 ½ of the Straße: no 🔩 scra\u00adtch 👍🏽", ["no", "scra\u00adtch"]),
        ("A cafe\u0301 table, nai\u0308ve, without a scratch.", ["without", "scratch"]),
        ("**Defects:**\n\n- Scratch: **no**\n- Shape: round\n", ["Defects", "Scratch", "no"]),
        ('```json\n{"scratch": false, "part": "ring"}\n```', ["scratch", "false"]),
        ("## Result\n\nNo `scratch` here.", ["No", "scratch"]),
        ("The part isn’t scratched.", ["isn’t scratched"]),
        ("Line one\\nno scratch", ["no scratch"]),
        ("| defect | seen |\n|---|---|\n| scratch | no |\n", ["scratch", "no"]),
        ("表面に傷は確認できません。", ["傷", "確認できません"]),
        ("ﾜｯｼｬｰの表面に傷なし", ["傷なし"]),
        (unicodedata.normalize("NFD", "La pièce n’a pas de rayure."), ["pas", "rayure"]),
        (unicodedata.normalize("NFD", "표면에 긁힘이 없다."), [unicodedata.normalize("NFD", "긁힘이 없다")]),
    ],
)
def test_the_place_is_that_in_the_text_as_it_was_written(text: str, words: list[str]) -> None:
    assert marked(text, "a deep scratch")[0] == words


@pytest.mark.parametrize("code", languages())
def test_texts_of_every_language_are_followed_back_and_opposites_are_marked(code: str) -> None:
    examples = languages()[code].examples
    assert examples["opposite"]
    for pair in examples["opposite"]:
        assert all(places(pair, ENGLISH)), pair
    for texts in examples.values():
        for text in (one for several in texts for one in ([several] if isinstance(several, str) else several)):
            folded = fold(text)
            found = _traced(text, folded, [(m.start(), m.end()) for m in re.finditer(r"[^\W_]+", folded)])
            told = [folded[m.start() : m.end()] for m in re.finditer(r"[^\W_]+", folded)]
            assert [fold(text[a:b]).strip() for a, b in found] == told, text


PARTS = (
    *(
        "Straße",
        "ﬁne",
        "ＡＢＣ",
        "ｶﾞﾗｽ",
        "e\u0301",
        "ÅÅ",
        "½",
        "²",
        "™",
        "①",
        "ǅ",
        "İstanbul",
        "a\u00adb",
        "\u200b",
        "🔩",
    ),
    *("👩‍🏭", "**x**", "`y`", "\\n", "\n", "\n## H\n", "| a | b |\n", "(none)", "a: 1, b: 2", "´", "’", "¨", "\t"),
    *("〃", "㎜", "℃", "Ω", "가", "각", "\u1112\u1161\u11ab", "が", "か\u3099", "ẞ", "ŉ", "\ufeff", "\x00", "<=", "−1"),
)


def test_a_word_is_found_where_it_was_put_or_not_at_all() -> None:
    """Random texts with a known word in them; a wrong place is never given."""
    chance, found = random.Random(7), 0
    for _ in range(3000):
        before = " ".join(chance.choices(PARTS, k=chance.randrange(8))) + " "
        text = before + "scratch " + " ".join(chance.choices(PARTS, k=chance.randrange(8)))
        folded = fold(text)
        at = folded.index("scratch")
        ranges = _traced(text, folded, [(at, at + 7)])
        assert ranges in ([], [(len(before), len(before) + 7)]), ascii(text)
        found += bool(ranges)
    assert found > 2500, "most texts can be followed back"


def test_marks_are_in_order_and_within_the_text_whatever_the_text() -> None:
    with_claims = [f"{text} no scratch {text[::-1]} perhaps a dent" for text in HOSTILE]
    for texts in (HOSTILE, with_claims, [*with_claims, "a crack"]):
        for text, ranges in zip(texts, places(texts, ENGLISH), strict=True):
            assert all(0 <= a < b <= len(text) for a, b in ranges)
            assert all(before[1] < after[0] for before, after in pairwise(ranges))


def test_a_hostile_caption_does_not_take_long() -> None:
    texts: Sequence[str] = (
        "no not perhaps a scratch or no dent " * 110,
        "(" * 4000,
        "a scratch, " * 360,
        "n't " * 1000,
    )
    begun = time.perf_counter()
    places([*texts, "a scratch"], ENGLISH)
    assert time.perf_counter() - begun < 5
