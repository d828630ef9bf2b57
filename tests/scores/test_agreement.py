"""What the default split makes of readings as real models word them: agreement is accepted, contradiction never."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vlmgate.data import Caption, Decision, Reason, Route, Sampled
from vlmgate.gate.rules import Candidate, decide, make_gate
from vlmgate.scores import phrases
from vlmgate.scores.score import Scorer

K = 8
SCORER = Scorer("")
LONG = (
    "The image shows a round machined metal gear wheel with a dark black oxide finish, photographed from above on a "
    "plain light grey background under even diffuse lighting. The gear has twenty four evenly spaced teeth, a central "
    "bore with keyway, four lightening holes, and a stamped serial number near the hub. The edges are clean, the "
    "surface texture is fine and uniform, "
)
# Two texts of one image that cannot both be true.
CONTRADICTIONS = [
    (
        f"{LONG}and no scratches or other defects are visible.",
        f"{LONG}and a long deep crack runs from the bore to the rim.",
    ),
    (
        "图像显示一个黑色氧化处理的金属齿轮，放置在浅灰色背景上，表面光滑均匀，齿形完整，未发现明显裂纹或缺陷。",
        "图像显示一个黑色氧化处理的金属齿轮，放置在浅灰色背景上，表面光滑均匀，齿形完整，发现明显裂纹或缺陷。",
    ),
    (
        "この画像は黒色の金属製歯車を示しており、表面は均一で、エッジは滑らかですが、右下に傷が見られます。",
        "この画像は黒色の金属製歯車を示しており、表面は均一で、エッジは滑らかですが、右下に傷は見られません。",
    ),
    ("Ein Kratzer ist sichtbar auf dem schwarzen Zahnrad.", "Kein Kratzer ist sichtbar auf dem schwarzen Zahnrad."),
    ("La pièce présente une fissure.", "La pièce ne présente aucune fissure."),
    ("Se observa una grieta en el borde.", "No se observa ninguna grieta en el borde."),
    ("Sul bordo è presente un graffio.", "Sul bordo non è presente alcun graffio."),
    ("Na krawędzi widać rysę.", "Na krawędzi nie widać żadnej rysy."),
    ("표면에 긁힘이 있다.", "표면에 긁힘이 없다."),
    ("The gap is < 0.5 mm, within tolerance.", "The gap is > 0.5 mm, within tolerance."),
    ("The gap is at most 0.5 mm; no defects.", "The gap is more than 0.5 mm; no defects."),
    ("The deviation is +0.1 mm. No defects.", "The deviation is -0.1 mm. No defects."),
    ("The runout is 300 µm. No defects.", "The runout is 0.4 mm. No defects."),
    (
        "The left bolt is longer than the right one; no defects.",
        "The right bolt is longer than the left one; no defects.",
    ),
    (
        "The left bolt is longer than the right one; no defects.",
        "The left bolt is shorter than the right one; no defects.",
    ),
    ("The rim has been scratched by the tool.", "The rim has not been scratched by the tool."),
    ("The part is free of cracks.", "The part is not free of cracks."),
    ("Scratches: none. Dents: none. Rust: none.", "Scratches: none. Dents: one. Rust: none."),
    ("- Scratches: no\n- Cracks: no", "- Scratches: no\n- Cracks: yes, at the hub"),
    ('{"defects": []}', '{"defects": ["crack"]}'),
    ("The seal is intact.", "The seal is not intact."),
    ("All four screws are present.", "One of the four screws is missing."),
    ("No defects except for a stain.", "No defects."),
    ("A dent, but no scratch.", "A scratch, but no dent."),
]
# One image, always told truly, in the styles of several models.
# The same, where the layout or another sentence says whether the finding is there.
UNCLEAR = [
    ("Scratches ✓ Dents ✗", "Scratches ✗ Dents ✓"),
    ("- [x] scratch\n- [ ] dent", "- [ ] scratch\n- [x] dent"),
    ("(x) crack ( ) dent", "( ) crack (x) dent"),
    ("Scratch: ❌\nDent: ✅", "Scratch: ✅\nDent: ❌"),
    ("~~Scratch on rim~~ No defects.", "Scratch on rim. No other defects."),
    (
        "| Defect | Found |\n|---|---|\n| Scratch | ✓ |\n| Dent | – |",
        "| Defect | Found |\n|---|---|\n| Scratch | – |\n| Dent | ✓ |",
    ),
    ("| Scratch | Dent |\n|---|---|\n| 1 | 0 |", "| Scratch | Dent |\n|---|---|\n| 0 | 1 |"),
    ("Scratch | Dent | Crack\nno | no | yes", "Scratch | Dent | Crack\nyes | no | no"),
    ("scratch(-), dent(+)", "scratch(+), dent(-)"),
    ("Crack 0/8, dent 1/8", "Crack 1/8, dent 0/8"),
    ("Scratches 0, dents 2", "Scratches 2, dents 0"),
    ("0x crack, 2x dent", "2x crack, 0x dent"),
    ('{"scratch": 0.02, "crack": 0.97}', '{"scratch": 0.97, "crack": 0.02}'),
    ('{"defects": [{"type": "scratch", "present": false}]}', '{"defects": [{"type": "scratch", "present": true}]}'),
    ('{"defect": "crack", "present": 0}', '{"defect": "crack", "present": 1}'),
    ('{"class": "crack", "status": "absent"}', '{"class": "crack", "status": "present"}'),
    ("<defect>scratch</defect><present>no</present>", "<defect>scratch</defect><present>yes</present>"),
    ("Defects not found:\n- scratch\n- dent", "Defects found:\n- scratch\n- dent"),
    ("Nicht gefunden:\n- Kratzer\n- Risse", "Gefunden:\n- Kratzer\n- Risse"),
    ("Non observés :\n- rayures\n- fissures", "Observés :\n- rayures\n- fissures"),
    ("No observados:\n- rasguños\n- grietas", "Observados:\n- rasguños\n- grietas"),
    ("未见:\n1. 划痕\n2. 裂纹", "可见:\n1. 划痕\n2. 裂纹"),
    ("## Defects\nNone of the following:\n- crack\n- rust", "## Defects\nAll of the following:\n- crack\n- rust"),
    ("No\nscratches\nvisible", "Scratches\nvisible"),
    ("Scratches were looked for but not seen.", "Scratches were looked for and seen."),
    ("Scratches, dents and cracks were checked. All negative.", "Scratches, dents and cracks were found."),
    ("Auf Kratzer wurde geprüft; es fanden sich keine.", "Auf Kratzer wurde geprüft; es fanden sich einige."),
    ("None is cracked.", "No. 3 is cracked."),
    ("The surface is cratered, with no other defects.", "The surface is smooth, with no defects."),
    ("Die Oberfläche ist ruppig, keine weiteren Mängel.", "Die Oberfläche ist glatt, keine Mängel."),
    ("No defects were found on the part. Am Rand ist ein Riss.", "No defects were found on the part."),
    ("Das Teil ist in Ordnung. There is a crack at the rim.", "Das Teil ist in Ordnung."),
    ("The part is un-damaged.", "The part is damaged."),
    ("The part isnt cracked", "The part is cracked"),
    ("Unlike the reference, which is cracked, this part is intact.", "Like the reference, this part is cracked."),
    ("参考件有裂纹,零件没有。", "零件有裂纹,参考件没有。"),
    ("It used to be rusty but is now clean.", "It used to be clean but is now rusty."),
    ("A crack would be visible here.", "A crack is visible here."),
    ("The crack has vanished.", "The crack has grown."),
    ("The scratch is a light reflection.", "The scratch is real."),
    ("La fissure n'est plus visible.", "La fissure est toujours visible."),
    ("Statt eines Kratzers ist ein Riss zu sehen.", "Statt eines Risses ist ein Kratzer zu sehen."),
    ("Crack test: negative", "Crack test: positive"),
    ("ひび検査:陰性", "ひび検査:陽性"),
]
NO_READING = [
    "Scratches:",
    "Scratch, dent, crack, rust, stain or none?",
    "The gear has a scratch and no",
    "Inspected for: scratches, cracks and dents.",
    "To inspect the part, look for scratches, dents and cracks.",
    "Make sure there are no scratches.",
    "Common defects include scratches, dents, and rust.",
    "Suppose the part is cracked.",
    '{"defect": "scratch", "confidence": 0.05}',
    "No defects can be seen because the image is black.",
    "No defects visible; the image is completely white.",
    "No obvious defects, but the image is too dark to be sure.",
    "There is no part in the image, so there are no defects.",
    "No part, no defects.",
    "Ich kann keine Kratzer erkennen, weil das Bild zu dunkel ist.",
    "L'image est noire, aucun défaut visible.",
    "La imagen está negra, no se ven defectos.",
    "图中没有零件,没有缺陷。",
    "请确保没有划痕。",
    "傷がないことを確認してください。",
]
# What of these may be said in passing is still a reading.
IN_PASSING = [
    "Inspection result: OK, nothing to report.",
    "La macchia misura 0,5 mm o più.",
    "- **Scratches:** none\n- **Dents:** none\n- ✅ in good condition",
    "The rim is scratched, but the hub is not.",
    "The part has a scratch. The image is black and white.",
    "**Defects:**\n- Scratch on the rim\n\n**Other defects:**\n- None",
    "Inspected for dents, cracks and rust. The rim is scratched.",
    "Am Rand ist ein Kratzer, keine weiteren Mängel.",
]
SCRATCHED = {
    "short": ["A scratch on the rim.", "Scratched rim.", "The rim has a scratch.", "Scratch at the rim, left side."],
    "five sentences": [
        f"{first} It lies on a plain background. {said} The teeth are evenly spaced. The lighting is even."
        for first in ("This is a black metal gear.", "The image shows a gear wheel with a central bore.")
        for said in ("A long scratch runs across the rim.", "Its rim is scratched.")
    ],
    "black and white": [
        "This is a black and white image of a metal ring with a scratch.",
        "A black-and-white photo of a ring; its surface shows a scratch.",
        "This is a black and white image of a scratched ring.",
        "The grayscale image shows a metal ring. There is a visible scratch on it.",
    ],
    "markdown": [
        "**Part:** gear\n**Scratches:** one on the rim\n**Dents:** none",
        "## Inspection\n- Part: gear\n- Defect: scratch on the rim",
        "- **Scratch**: visible on the rim\n- **Cracks**: none",
        "**Finding:** The rim is scratched.\n\n**Other defects:** none",
    ],
    "JSON": [
        '{"part": "gear", "defects": ["scratch"]}',
        '{"scratch": true, "dent": false}',
        '```json\n{"defect": "scratch", "location": "rim"}\n```',
        '{"condition": "scratched rim"}',
    ],
    "Japanese": [
        "縁に傷があります。",
        "歯車の縁に引っかき傷が見られます。",
        "金属部品の表面に細い傷が確認できます。",
        "リングの縁に傷が一本あり、へこみはありません。",
    ],
}
SOUND = {
    "short": ["No defects.", "The part is intact.", "No visible damage.", "A clean gear without any defects."],
    "five sentences": [
        f"{first} It lies on a plain background. {said} The teeth are evenly spaced. The lighting is even."
        for first in ("This is a black metal gear.", "The image shows a gear wheel with a central bore.")
        for said in ("No scratches, dents or cracks are visible.", "The part appears to be in good condition.")
    ],
    "black and white": [
        "This is a black and white image of a metal ring with no visible defects.",
        "A black-and-white photo of an intact ring.",
        "The grayscale image shows a metal ring. There are no signs of damage.",
        "This is a black and white image of a flawless ring.",
    ],
    "markdown": [
        "**Part:** gear\n**Scratches:** none\n**Dents:** none",
        "## Inspection\n- Part: gear\n- Defects: none",
        "**Defects:**\n- None",
        "**Condition:** The part is undamaged.",
    ],
    "JSON": ['{"defects": []}', '{"scratch": false, "dent": false}', '{"defect": null}', '{"defects": "none"}'],
    "Japanese": [
        "欠陥は見られません。",
        "傷や凹みはありません。",
        "異常なし。",
        "部品は良好な状態で、傷は確認できません。",
    ],
}


def decided(texts: Sequence[str]) -> Decision:
    scores, reason = SCORER.score(Sampled(tuple(Caption(text, "stop", None, 0) for text in texts)))
    (decision,) = decide([Candidate.of("", scores, reason)], make_gate(num_samples=len(texts)))
    return decision


@pytest.mark.parametrize("pair", CONTRADICTIONS, ids=range(len(CONTRADICTIONS)))
@pytest.mark.parametrize("against", [4, 1, 7])
def test_readings_that_contradict_each_other_are_never_accepted(pair: tuple[str, str], against: int) -> None:
    one, other = pair
    assert decided([one] * (K - against) + [other] * against).route is Route.HUMAN_REVIEW


@pytest.mark.parametrize("pair", UNCLEAR, ids=range(len(UNCLEAR)))
def test_what_the_layout_leaves_unclear_is_no_agreement(pair: tuple[str, str]) -> None:
    one, other = pair
    for several in ([one] * 4 + [other] * 4, [one] * 7 + [other], [other] * 7 + [one]):
        assert decided(several).route is Route.HUMAN_REVIEW


@pytest.mark.parametrize("text", NO_READING)
def test_a_question_a_task_or_a_dark_image_is_no_reading(text: str) -> None:
    assert decided([text] * K).route is Route.HUMAN_REVIEW, SCORER.vocabulary.claims(text).describe()


@pytest.mark.parametrize("text", IN_PASSING)
def test_what_is_said_in_passing_does_not_spoil_a_reading(text: str) -> None:
    assert decided([text] * K).route is Route.AUTO_ACCEPT, SCORER.vocabulary.claims(text).describe()


@pytest.mark.parametrize("said", [SCRATCHED, SOUND], ids=["scratched", "sound"])
@pytest.mark.parametrize("style", SOUND)
def test_a_model_that_always_tells_the_truth_is_accepted_in_every_style(said: dict[str, list[str]], style: str) -> None:
    decision = decided(said[style] * 2)
    assert decision.route is Route.AUTO_ACCEPT, [SCORER.vocabulary.claims(text).describe() for text in said[style]]


def test_eight_refusals_are_no_agreement_and_eight_empty_descriptions_neither() -> None:
    assert decided(["이미지를 볼 수 없습니다."] * K).reason is Reason.REFUSED
    assert decided(["The picture did not load."] * K).reason is Reason.REFUSED
    assert decided(["A round grey metal part on a table."] * K).reason is Reason.NO_CLAIM
    assert decided(["Деталь лежит на столе, царапин не видно."] * K).reason is Reason.UNKNOWN_LANGUAGE
    assert decided(["There may be a scratch."] * K).route is Route.HUMAN_REVIEW


def test_when_the_tables_of_words_are_full_no_reading_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrases, "KEPT", 0)
    scorer = Scorer("", terms='extends = "default"\n[[finding]]\nid = "gizmo"\nen = ["gizmo"]\n')  # tables of its own
    for text in (text for pair in CONTRADICTIONS for text in pair):
        assert scorer.vocabulary.claims(text).describe() == SCORER.vocabulary.claims(text).describe()


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("No <b>scratches</b> or dents.", "no dent, no scratch"),
        ("<b>No</b> <b class='x'>scratches</b>", "no scratch"),
        ("There is no <ref>scratch</ref><box>(12,34),(3,4)</box>.", "no scratch"),
        ("<p>No scratch.</p><p>Crack at the rim</p>", "crack, no scratch"),
        ("<ul><li>No scratch</li><li>Dent</li></ul>", "dent, no scratch"),
        ("<report><crack>no</crack><scratch>yes</scratch></report>", "scratch, no crack"),
        ("<tr><td>scratch</td><td>no</td></tr>", "perhaps scratch"),
        ("No <del>crack</del>", "perhaps crack"),
        ("A <defect> on the part.", "nothing"),
        ("No scratch, a crack<br/>no dent", "crack, no dent, no scratch"),
    ],
)
def test_tags_are_no_words(text: str, claims: str) -> None:
    assert SCORER.vocabulary.claims(text).describe() == claims


def test_the_reading_is_a_caption_that_claims_something() -> None:
    texts = ["A grey gear.", "Perhaps a dent.", "Perhaps there is a dent.", "Perhaps a dent."]
    scores, _ = SCORER.score(Sampled(tuple(Caption(text, "stop", None, 0) for text in texts)))
    assert scores.medoid == 1
