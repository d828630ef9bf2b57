"""Captions that find the same and exclude each other by other words: sides, counts, states, verdicts, parts."""

from __future__ import annotations

import pytest

from tests.scores.test_agreement import SCORER, decided
from vlmgate.data import Route
from vlmgate.scores.claims import claims_line, in_words
from vlmgate.scores.diversity import readings

OPPOSED = [
    ("A screw is missing.", "Three screws are missing."),
    ("No defects. Four screws hold the lid.", "No defects. Three screws hold the lid."),
    ("Missing screws: 2", "Missing screws: 3"),
    ("Three of the four screws are missing.", "One of the four screws is missing."),
    ("There is one scratch.", "There are several scratches."),
    ("The left bolt is cracked; the right one is fine.", "The right bolt is cracked; the left one is fine."),
    ("The cap is cracked, the body is intact.", "The body is cracked, the cap is intact."),
    ("The reference is cracked; the part is intact.", "The part is cracked; the reference is intact."),
    ("A crack on the upper edge.", "A crack on the lower edge."),
    ("The cap is closed; no defects.", "The cap is open; no defects."),
    ("The cap is not closed; no defects.", "The cap is closed; no defects."),
    ("The bottle is full, no defects.", "The bottle is half empty, no defects."),
    ("The connector is not plugged in; no defects.", "The connector is plugged in; no defects."),
    ("The LED is on. No defects.", "The LED is off. No defects."),
    ("The gap is too wide.", "The gap is too narrow."),
    ("The scratch is acceptable.", "The scratch is unacceptable."),
    ("Crack: low\nDent: high", "Crack: high\nDent: low"),
    ('{"ok": true, "defect": "scratch"}', '{"ok": false, "defect": "scratch"}'),
    ('{"label": "good", "defect": "crack"}', '{"label": "bad", "defect": "crack"}'),
    ('{"defect": "crack", "verdict": "false positive"}', '{"defect": "crack", "verdict": "true positive"}'),
    ("| Cap | present |\n| Label | missing |", "| Cap | missing |\n| Label | present |"),
    ("The part is good, no scratch.", "The part is bad, no scratch."),
    ("Hole A: fine. Hole B: fine. Hole C: chipped.", "Hole A: fine. Hole B: chipped. Hole C: fine."),
    ("Verdict: accept. No defects.", "Verdict: reject. No defects."),
    ("The crack in the flange has been repaired.", "The crack in the flange is still there."),
    ("The crack runs through the wall.", "The crack is only on the surface."),
    ("Drei Schrauben fehlen.", "Eine Schraube fehlt."),
    ("Die linke Schraube hat einen Riss.", "Die rechte Schraube hat einen Riss."),
    ("Die Kappe ist offen, keine Mängel.", "Die Kappe ist geschlossen, keine Mängel."),
    ("Le bouchon est ouvert, aucun défaut.", "Le bouchon est fermé, aucun défaut."),
    ("La rayure est acceptable.", "La rayure est inacceptable."),
    ("Faltan tres tornillos.", "Falta un tornillo."),
    ("El tapón está agrietado, el cuerpo está intacto.", "El cuerpo está agrietado, el tapón está intacto."),
    ("Manca una vite.", "Mancano tre viti."),
    ("La arandela está menos oxidada que la tuerca.", "La tuerca está menos oxidada que la arandela."),
    ("El tornillo izquierdo está menos oxidado que el derecho.", "El derecho está menos oxidado que el izquierdo."),
    ("Die obere Kante ist stärker verrostet als die untere.", "Die untere Kante ist stärker verrostet als die obere."),
    ("En ninguna zona, desde el borde hasta el centro, se ven grietas.", "En el borde se ven grietas."),
    ("Brakuje trzech śrub.", "Brakuje dwóch śrub."),
    ("Pęknięcie po lewej stronie.", "Pęknięcie po prawej stronie."),
    ("ねじが3本欠けている。", "ねじが2本欠けている。"),
    ("左側に傷があります。", "右側に傷があります。"),
    ("蓋にひびがあり、本体は無傷です。", "本体にひびがあり、蓋は無傷です。"),
    ("缺少三个螺钉。", "缺少一个螺钉。"),
    ("划痕可以接受。", "划痕不可接受。"),
    ("盖子有裂纹，瓶身完好。", "瓶身有裂纹，盖子完好。"),
    ("나사 3개가 누락되었습니다.", "나사 2개가 누락되었습니다."),
    ("왼쪽에 긁힘이 있습니다.", "오른쪽에 긁힘이 있습니다."),
]
ALIKE = [
    ("A crack on the left bolt.", "There is a crack. The part lies on a grey mat."),
    ("One of the four screws is missing.", "A screw is missing."),
    ("All four screws are there; no defects.", "No defects are visible."),
    ("A crack at the upper left edge.", "A crack at the top, on the left."),
    ("Three small scratches are visible.", "Several scratches are visible."),
    ("The lighting is good. A dent is visible.", "A dent is visible in bad light."),
    ("Eine von vier Schrauben fehlt.", "Eine Schraube fehlt."),
    ("缺少一颗螺丝。", "四颗螺丝中有一颗缺失。"),
]


@pytest.mark.parametrize(("one", "other"), OPPOSED)
def test_images_whose_captions_exclude_each_other_go_to_a_person(one: str, other: str) -> None:
    for texts in ([one] * 4 + [other] * 4, [one] * 7 + [other], [other] * 7 + [one]):
        assert decided(texts).route is not Route.AUTO_ACCEPT


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_words_that_exclude_nothing_part_no_captions(one: str, other: str) -> None:
    assert decided([one] * 4 + [other] * 4).route is Route.AUTO_ACCEPT


@pytest.mark.parametrize("text", ["The cap is open.", "Four screws.", "The left side.", "指示灯点亮。"])
def test_a_state_alone_is_no_reading_of_the_condition(text: str) -> None:
    claims = SCORER.vocabulary.claims(text)
    assert not claims.states and readings([claims]) == [None]
    assert decided([text] * 8).route is not Route.AUTO_ACCEPT


def test_people_read_what_differs_in_words() -> None:
    assert in_words("~opening:open") == "open"
    assert in_words("~part:cap>body") == "of cap, not of body"
    assert in_words("~number missing_part:3") == "3 missing part…"
    line = claims_line(["The cap is open, no defects."] * 2 + ["The cap is closed, no defects."], SCORER.vocabulary)
    assert line == "2 of 3 open, no defect · 1 of 3 closed, no defect"


@pytest.mark.parametrize(
    "text",
    [
        "No scratch. Verdict: bad.",
        "No crack; the part cannot be used.",
        "Das Teil ist schlecht, kein Kratzer.",
        "未发现划痕，判定不合格。",
    ],
)
def test_a_bad_verdict_without_a_defect_is_for_a_person(text: str) -> None:
    assert decided([text] * 8).route is not Route.AUTO_ACCEPT
    assert SCORER.vocabulary.claims(text).verdict is None or SCORER.vocabulary.claims(text).defects
