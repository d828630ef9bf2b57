"""Rules that one language needs and all have: verbs at the end, words in one piece, letters in two forms."""

from __future__ import annotations

import unicodedata

import pytest

from vlmgate.scores.findings import load_vocabulary
from vlmgate.scores.language import fold

CLAIMS = load_vocabulary().claims


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # a verb that is one with the finding ends its clause, so that "none" does not reach back over it
        ("표면이 긁혔고 균열은 없습니다.", "scratch, no crack"),
        ("긁힘이 있고 균열은 없습니다.", "scratch, no crack"),
        # … and a list without a verb is denied as a whole
        ("긁힘이나 균열은 보이지 않습니다.", "no crack, no scratch"),
        # what is not deep is there; what is not seen is not
        ("긁힘은 깊지 않습니다.", "scratch"),
        ("긁힘은 화려하지 않습니다.", "perhaps scratch"),
        ("긁힘은 확인되지 않습니다.", "no scratch"),
        # "none" in one word with its noun
        ("긁힘없음", "no scratch"),
        # what a suffix denies is its own word
        ("Çiziksiz.", "no scratch"),
        ("Kablo kopmamış.", "no broken"),
        ("Lehim yetersiz.", "insufficient_solder"),
        # an adjective in a list without "or" may be said of the part
        ("Yüzey paslı, çatlak yok.", "perhaps rust, no crack"),
        ("Paslı veya çatlak parça yok.", "no crack, no rust"),
        ("1 adet çizik, çatlak yok.", "perhaps scratch, no crack"),
        # "intact" is no part of a list that is denied
        ("밀봉 상태 양호, 누액 없음.", "no defect, no leak"),
        # a phrase that holds a verb is a clause
        ("Không có vết xước, nắp bị mở.", "open_seal, no scratch"),
        ("No scratches, one screw is missing.", "missing_part, no scratch"),
        ("No screw is missing.", "no missing_part"),
        ("Scratches or dents are not visible.", "no dent, no scratch"),
        # "not" ends before the verb of another clause
        ("The surface is not smooth and has a stain.", "stain"),
        ("The surface is not smooth because of a stain.", "stain"),
        # 3 pieces and 2 faces are no volts and metres
        ("Có 2 mặt và 3 mảnh, 4 vết xước.", "scratch"),
    ],
)
def test_what_a_caption_claims(text: str, said: str) -> None:
    assert CLAIMS(text).describe() == said


@pytest.mark.parametrize(
    "text", ["Bề mặt bị xước và có vết nứt.", "표면에 긁힘이 있습니다.", "Yüzeyde çatlak ve çizik var."]
)
def test_letters_in_pieces_are_the_same_letters(text: str) -> None:
    pieces = unicodedata.normalize("NFD", text)
    assert pieces != text
    assert CLAIMS(pieces).asserted == CLAIMS(text).asserted != frozenset()


def test_turkish_capitals() -> None:
    assert fold("ÇİZİK KIRIK") == fold("çizik kırık")
