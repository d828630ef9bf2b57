"""Scores of captions: what counts as the same reading, and which way every number points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmgate.data import Caption
from vlmgate.errors import KernelError
from vlmgate.scores.diversity import (
    agreement,
    cocoa,
    mean_dissimilarity,
    medoid,
    predictive_entropy,
    score_captions,
    semantic_entropy,
    vendi_score,
    view_contrast,
    word_kernel,
)
from vlmgate.scores.encoders import as_kernel
from vlmgate.scores.words import content_words


def captions(*texts: str) -> list[Caption]:
    return [Caption(text, "stop", -0.5, 9) for text in texts]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a scratch", "scratch"),
        ("no scratch", "¬scratch"),
        ("without a scratch", "¬scratch"),
        ("There is no visible sign of a scratch.", "¬scratch"),
        ("A scratch is not visible.", "¬scratch"),
        ("Scratches: none", "¬scratch"),
        ("Defect: none. Brushed steel washer", "¬defect brushed steel washer"),
        ("scratch-free", "¬scratch"),
        ("A brass gear free of defects", "brass gear ¬defect"),
        ("defect free brass gear", "defect free brass gear"),  # "free" without "of" or a clause end is an adjective
        ("No scratches, dents or cracks on the washer.", "¬scratch ¬dent ¬crack washer"),
        ("No scratch, but a crack near the rim", "¬scratch crack rim"),
        ("no scratches and a dent", "¬scratch dent"),
        ("neither scratches nor dents", "¬scratch ¬dent"),
        ("without scratch and without dent", "¬scratch ¬dent"),
        ("not without scratches", "scratch"),
        ("not only scratched but cracked", "scratched cracked"),
        ("The plate isn't scratched", "plate ¬scratched"),
        ("The PLATE isn’t scratched", "plate ¬scratched"),
        ("Ｐｌａｔｅ ７", "plate 7"),
        ("0.5 mm crack, 7 holes", "0.5 mm crack 7 hole"),
        ("有划痕", "有划 划痕"),
        ("没有划痕", "没有 有划 划痕"),
        ("क्षति नहीं", "क्षति नहीं"),
        ("It is the", "it is the"),
        ("...", ""),
    ],
)
def test_content_words(text: str, words: str) -> None:
    assert content_words(text) == frozenset(words.split())


def test_negation_is_the_difference_that_counts() -> None:
    kernel = word_kernel(["The washer has a scratch", "The washer has no scratch", "The washer is without any scratch"])
    assert kernel[1, 2] == 1
    assert kernel[0, 1] == pytest.approx(0.5)


def test_vendi_score_of_known_matrices() -> None:
    assert vendi_score(np.eye(4)) == pytest.approx(4)
    assert vendi_score(np.ones((4, 4))) == pytest.approx(1)
    two_pairs = np.kron(np.eye(2), np.ones((2, 2)))
    assert vendi_score(two_pairs) == pytest.approx(2)


@pytest.mark.parametrize(
    "kernel",
    [
        np.zeros((3, 3)),
        np.array([[1, 0.5], [0.2, 1]]),
        np.array([[1, np.nan], [np.nan, 1]]),
        np.ones((2, 3)),
        np.ones((0, 0)),
        np.array([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]]),  # not positive semi-definite
    ],
)
def test_what_is_no_kernel_is_refused(kernel: np.ndarray) -> None:
    with pytest.raises(KernelError):
        vendi_score(kernel)


def test_more_disagreement_is_a_higher_score_and_a_lower_agreement() -> None:
    same = score_captions(captions(*["a steel washer with a dent"] * 4))
    mixed = score_captions(captions(*["a steel washer with a dent"] * 3, "a steel washer with a crack"))
    apart = score_captions(captions("alpha beta", "gamma delta", "epsilon zeta", "eta theta"))
    assert same.vendi_score == 1 and same.agreement == 1 and same.mean_dissimilarity == 0
    assert apart.vendi_score == 4 and apart.agreement == 0 and apart.mean_dissimilarity == 1
    assert same.vendi_score < mixed.vendi_score < apart.vendi_score  # type: ignore[operator]


def test_the_medoid_is_the_majority() -> None:
    scores = score_captions(captions("a crack", "a dent", "a dent", "a stain"))
    assert scores.medoid == 1


def test_one_caption_cannot_agree_or_disagree() -> None:
    assert agreement(1.0, 1) is None
    assert mean_dissimilarity(np.ones((1, 1))) is None


def test_an_unknown_log_probability_is_null_and_never_nan() -> None:
    some = [Caption("a dent", "stop", None, 2), Caption("a dent", "stop", -1.0, 2)]
    broken = [Caption("a dent", "stop", math.nan, 2), Caption("a dent", "stop", -1.0, 2)]
    assert score_captions(some).mean_logprob is None
    assert score_captions(broken).mean_logprob is None
    assert score_captions(captions("a dent", "a dent")).mean_logprob == -0.5


def blocks(*sizes: int, across: float = 0.0) -> np.ndarray:
    """Return a kernel of groups of equal captions, groups similar by `across`."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(group[:, None] == group, 1.0, across)


def test_semantic_entropy_is_that_of_the_clusters() -> None:
    assert semantic_entropy(blocks(8)) == 0
    assert semantic_entropy(blocks(4, 4)) == pytest.approx(math.log(2))
    assert semantic_entropy(blocks(1, 1, 1, 1)) == pytest.approx(math.log(4))
    assert semantic_entropy(blocks(6, 2)) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert semantic_entropy(blocks(4, 4, across=0.5), same=0.5) == 0
    chain = np.array([[1, 0.9, 0.6], [0.9, 1, 0.9], [0.6, 0.9, 1]])  # a chain connects its ends
    assert semantic_entropy(chain, same=0.9) == 0


def test_one_defect_for_another_is_another_cluster_and_another_wording_is_not() -> None:
    same = captions("A brass gear with no visible defect.", "This brass gear is free of damage.")
    assert score_captions(same).semantic_entropy == 0
    other = captions("A brushed steel washer with a scratch at the upper left.") + captions(
        "A brushed steel washer with a dent at the upper left."
    )
    assert score_captions(other).semantic_entropy == pytest.approx(math.log(2), abs=1e-6)


def test_cocoa_is_doubt_of_the_medoid_times_its_distance() -> None:
    kernel = np.array([[1, 0.8, 0.6], [0.8, 1, 0.5], [0.6, 0.5, 1]])
    said = [Caption("", "stop", logprob, 2) for logprob in (-0.5, -1.0, -2.0)]
    assert cocoa(kernel, said) == pytest.approx(0.5 * (0.2 + 0.4) / 2)
    assert cocoa(np.ones((3, 3)), said) == 0
    assert cocoa(kernel, [Caption("", "stop", None, 2)] * 3) is None
    assert cocoa(np.ones((1, 1)), said[:1]) is None


def test_predictive_entropy_is_the_mean_negative_log_probability() -> None:
    said = [Caption("", "stop", logprob, 2) for logprob in (-0.5, -1.0)]
    assert predictive_entropy(said) == 0.75
    assert predictive_entropy([*said, Caption("", "stop", None, 2)]) is None


def test_view_contrast_compares_the_clean_view_with_the_noised_ones() -> None:
    kernel = blocks(2, 2, across=0.25)
    assert view_contrast(kernel, (0, 0, 1, 1)) == 0.75
    assert view_contrast(blocks(4), (0, 1, 2, 3)) == 0
    assert view_contrast(kernel, (0, 1, 0, 1)) == pytest.approx(0.375)
    assert view_contrast(kernel, None) is None and view_contrast(kernel, (0, 0, 0, 0)) is None
    assert score_captions(captions("a dent", "a crack"), views=(0, 1)).view_contrast == 1
    assert score_captions(captions("a dent", "a crack")).view_contrast is None


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_any_table_of_similarities_becomes_a_kernel(size: int, seed: int) -> None:
    table = np.random.default_rng(seed).uniform(0, 1, (size, size))
    np.fill_diagonal(table, 1.0)
    kernel = as_kernel(table)
    assert 1 <= vendi_score(kernel) <= size + 1e-9
    np.testing.assert_allclose(as_kernel(kernel), kernel, atol=1e-8)


def test_a_kernel_stays_as_it_is() -> None:
    kernel = word_kernel(["a dent", "a dent and a crack", "nothing"])
    np.testing.assert_allclose(as_kernel(kernel), kernel, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), min_size=2, max_size=9))
def test_any_text_gives_scores_in_their_ranges(texts: list[str]) -> None:
    scores = score_captions(captions(*texts))
    assert 1 <= scores.vendi_score <= len(texts)  # type: ignore[operator]
    assert 0 <= scores.agreement <= 1  # type: ignore[operator]
    assert 0 <= scores.mean_dissimilarity <= 1  # type: ignore[operator]
    assert 0 <= scores.semantic_entropy <= math.log(len(texts)) + 1e-6  # type: ignore[operator]
    assert scores.cocoa >= 0  # type: ignore[operator]
    assert scores.medoid == medoid(word_kernel(texts))
    assert scores == score_captions(captions(*texts))


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["crack", "no", "dent,", "or", "a", "free", "of", "not", "without", ".", "is"]), max_size=12
    )
)
def test_negation_never_loses_a_word(tokens: list[str]) -> None:
    text = " ".join(tokens)
    found = {word.lstrip("¬") for word in content_words(text)}
    assert {t.rstrip(",") for t in tokens} & {"crack", "dent"} <= found
