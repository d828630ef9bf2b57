"""How much K captions of one image differ.

Knows strings and matrices; knows nothing of images, models or files.

The kernel `words` compares captions by the content they assert: function words and the filler of inspection reports are
dropped, and a negation is bound to what it negates, so that "no scratch" and "without a scratch" are one reading and
"a scratch" is another. It is a lexical measure: two wordings of one fact count as different where they share no word.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vlmgate.errors import KernelError
from vlmgate.records import Caption, Scores

Matrix = NDArray[np.float64]

LONGEST = 10_000  # characters of a caption that are compared

# --- from a caption to its content words ------------------------------------------------------------------------------

_ARTICLES = frozenset({"a", "an", "the", "one", "some"})
_FUNCTION_WORDS = _ARTICLES | frozenset(
    """
    this that these those it its it's there there's here is are was were be been being am do does did done has
    have had having can could will would shall should must and or as by of to for from in on at near
    into onto with within along across around about which who where when while if then than so also very quite
    rather just any each both such i we you they he she them their our your my me us but however although though
    yet except whereas not s
    """.split()
)
# How reports say that something is to be seen; without them "no scratch is visible" equals "no scratch".
_FILLER = frozenset(
    """
    visible seen see sign signs evidence trace traces apparent evident present appear appears appearing show
    shows showing shown noticeable obvious yes inspection surface part found detected observed indication
    indications image picture photo photograph only
    """.split()
)
# Names for something wrong that say nothing of what: "no damage" and "no defects" are one reading.
_ANY_DEFECT = frozenset("damage flaw fault imperfection blemish anomaly abnormality irregularity issue problem".split())
_NEGATORS = frozenset(
    """
    no not without none never nor neither nothing cannot lack lacks lacking absence absent isn't aren't wasn't
    weren't doesn't don't didn't can't couldn't hasn't haven't won't wouldn't free zero
    """.split()
)
_LINKING = frozenset("is are was were be been can could".split())
# A negated verb carries the negation on to its object: "does not have a scratch".
_VERBS = _LINKING | frozenset("has have had having show shows showing".split())
# A negation reaches forward to the next of these: "no scratch on the washer" says nothing against the washer.
_SCOPE_ENDS = (
    frozenset(
        """
    but however although though yet except while whereas on in at near with along across around about over under
    above below between which that who where has have had show shows showing
    """.split()
    )
    | _LINKING
)
_STOP = "."  # stands for every mark that ends a clause
_MARKS = frozenset(".;:!?()。；：！？、")
_CLAUSE_BREAK = re.compile(r"\s[-–—]+\s|[–—\n\r\u2028]+")  # dashes between clauses, lines of a list
_FREE_SUFFIX = re.compile(r"\b([^\W_]+)-free\b")
# Scripts written without spaces: kana, Chinese characters, Thai, Lao, Khmer, Myanmar.
_SPACELESS = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+"
)


def content_words(text: str) -> frozenset[str]:
    """Return what a caption asserts: a set of folded words, a negated word prefixed with "¬".

    Case and width are folded (NFKC), plurals cut, function words dropped, digits kept. Runs of scripts written without
    spaces become character bigrams. A caption of nothing but function words keeps them all, so the set is empty only
    for a caption without a letter or digit.
    """
    folded = unicodedata.normalize("NFKC", text[:LONGEST]).casefold().replace("’", "'")
    folded = _CLAUSE_BREAK.sub(" . ", _FREE_SUFFIX.sub(r" without \1 . ", folded))
    folded = re.sub(r"\bw/o\b", "without", folded).replace(" at all", "")
    bigrams = {pair for run in _SPACELESS.findall(folded) for pair in _bigrams(run)}
    tokens = _tokens(_SPACELESS.sub(" ", folded))
    words = _bind_negation(tokens) | bigrams
    return frozenset(words or (token for token in tokens if token not in (_STOP, ",")))


def _bigrams(run: str) -> set[str]:
    return {run[i : i + 2] for i in range(len(run) - 1)} or {run}


def _tokens(folded: str) -> list[str]:
    """Split into words, numbers with their decimals, commas and clause ends."""
    marks = "" if folded.isascii() else "".join(sorted({c for c in folded if unicodedata.category(c)[0] == "M"}))
    found = _token_pattern(marks).findall(folded)
    return [_STOP if token in _MARKS else token for token in found]


@lru_cache(maxsize=64)
def _token_pattern(combining: str) -> re.Pattern[str]:
    """Return the pattern of a token; `combining` marks (vowel signs, accents) belong to the word they stand in."""
    letter = f"(?:[^\\W_]|[{re.escape(combining)}])" if combining else "[^\\W_]"
    return re.compile(rf"\d+(?:[.,]\d+)+|{letter}+(?:'{letter}+)?|[,.;:!?()。；：！？、]")


def _bind_negation(tokens: Sequence[str]) -> set[str]:
    """Return the content words, marked where a negation reaches them.

    A negator reaches forward to the end of its clause, to a preposition, a verb or the next noun phrase; where nothing
    follows it ("a scratch is not visible", "cracks: none") it reaches back over the noun phrase before it.
    """
    words: list[str] = []
    phrase_start = 0  # where the noun phrase began that a backward negation would take
    negating = reached = listing = False  # a negation is open; it has reached a word
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else _STOP
        after = tokens[i + 1] if i + 1 < len(tokens) else _STOP
        if token in (",", _STOP):
            negating = listing = negating and token == "," and _is_list(tokens[i + 1 :], listing)
            if not _says_nothing(tokens[i + 1 :]):
                phrase_start = len(words)
        elif token in _NEGATORS and _negates(token, after, words):
            if (token == "absent" or _says_nothing(tokens[i + 1 :])) and len(words) > phrase_start:
                start = len(words) - 1 if token == "free" else phrase_start
                words[start:] = [word if word[0] == "¬" else f"¬{word}" for word in words[start:]]
                negating = False
            else:  # "not without" is a double negation; "neither … nor", "no … without" are two single ones
                negating = not (negating and not reached and token not in ("nor", "neither"))
                reached = False
        else:
            if reached and (token in _SCOPE_ENDS or (token in _ARTICLES and before not in ("or", "nor"))):
                negating = False
            if token in _ARTICLES or (token in _SCOPE_ENDS and token not in _LINKING):
                phrase_start = len(words)
            if token not in _FUNCTION_WORDS and token not in _FILLER:
                words.append(f"¬{_stem(token)}" if negating else _stem(token))
                reached = True
    return set(words)


def _negates(token: str, after: str, words: Sequence[str]) -> bool:
    """Say whether a negator negates here: "free" does in "free of" or at a clause end, "not" does not in "not only"."""
    if token == "free":
        return after in ("of", "from") or (after in (_STOP, ",") and bool(words))
    return after != "only"


def _is_list(rest: Sequence[str], listing: bool) -> bool:
    """Say whether a comma stands in a list that a negation governs: "no scratches, dents or cracks"."""
    clause = rest[: rest.index(_STOP)] if _STOP in rest else rest
    if not clause or clause[0] in _ARTICLES | _SCOPE_ENDS:
        return False
    if clause[0] == "and":
        return listing and len(clause) > 1 and clause[1] not in _ARTICLES | _SCOPE_ENDS
    return "or" in clause or "nor" in clause or (",", "and") in pairwise(clause)


def _says_nothing(rest: Sequence[str]) -> bool:
    """Say whether no content word follows before the clause ends, though a negator or a filler may."""
    for token in rest:
        if token in (_STOP, ",") or token in _SCOPE_ENDS - _VERBS:
            return True
        if token not in _FILLER and token not in _NEGATORS and token not in ("be", "been", "to"):
            return False
    return True


def _stem(word: str) -> str:
    singular = _singular(word)
    return "defect" if singular in _ANY_DEFECT else singular


def _singular(word: str) -> str:
    """Cut an English plural; after Harman's S-stemmer (J. Am. Soc. Inf. Sci. 42, 1991) with the -es of sibilants."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1]


# --- kernels ----------------------------------------------------------------------------------------------------------


def word_kernel(texts: Sequence[str]) -> Matrix:
    """Return the (K, K) similarity of captions by their content words, in [0, 1]; 1 = the same set of words.

    Cosine of the binary word vectors, |A ∩ B| / sqrt(|A| |B|): positive semi-definite (Ochiai 1957). Two captions
    without words are the same; one without words is unlike all that have some.
    """
    sets = [content_words(text) for text in texts]
    vocabulary = {word: i for i, word in enumerate(sorted(frozenset().union(*sets)))}
    vectors = np.zeros((len(sets), len(vocabulary) + 1))  # (K, words + 1); the last column stands for "no word at all"
    for row, words in zip(vectors, sets, strict=True):
        row[[vocabulary[word] for word in words] or [-1]] = 1
    sizes = vectors.sum(axis=1)  # (K,)
    kernel: Matrix = (vectors @ vectors.T) / np.sqrt(np.outer(sizes, sizes))  # equal sets give exactly 1
    return kernel


def _checked(kernel: Matrix) -> Matrix:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] == 0:
        raise KernelError(f"kernel of shape {kernel.shape}: give a square matrix, one row per caption.")
    if not np.isfinite(kernel).all():
        raise KernelError("kernel holds NaN or infinity: check the texts or embeddings that it was made of.")
    if not np.allclose(kernel, kernel.T, atol=1e-6) or not np.allclose(np.diag(kernel), 1, atol=1e-6):
        raise KernelError("kernel is not symmetric with a unit diagonal: normalise it first.")
    return kernel


# --- scores -----------------------------------------------------------------------------------------------------------


def vendi_score(kernel: Matrix) -> float:
    """Return the effective number of different captions, in [1, K]; higher = more disagreement.

    exp(-Σ λ ln λ) over the eigenvalues λ of kernel / K (Friedman & Dieng, "The Vendi Score", TMLR 2023). Raises
    `KernelError` for a matrix that is no kernel.
    """
    kernel = _checked(kernel)
    eigenvalues = np.linalg.eigvalsh(kernel / len(kernel))
    if eigenvalues[0] < -1e-6:
        raise KernelError(f"kernel has a negative eigenvalue ({eigenvalues[0]:.2g}): it is not positive semi-definite.")
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.clip(np.exp(-np.sum(positive * np.log(positive))), 1, len(kernel)))


def agreement(vendi: float, num_samples: int) -> float | None:
    """Return 1 - (vendi - 1) / (K - 1), in [0, 1]; higher = safer. None for K = 1, which cannot disagree."""
    return None if num_samples < 2 else 1 - (vendi - 1) / (num_samples - 1)


def mean_dissimilarity(kernel: Matrix) -> float | None:
    """Return the mean of 1 - kernel over pairs, in [0, 1]; higher = more disagreement. None for K = 1."""
    kernel = _checked(kernel)
    k = len(kernel)
    return None if k < 2 else float(1 - (kernel.sum() - k) / (k * (k - 1)))


def medoid(kernel: Matrix) -> int:
    """Return the index of the caption most similar to all others; the first of equals."""
    return int(np.argmax(np.round(_checked(kernel).sum(axis=1), 9)))


def score_captions(captions: Sequence[Caption]) -> Scores:
    """Return the scores of one image's K captions under the `words` kernel, rounded to 6 decimals."""
    kernel = word_kernel([caption.text for caption in captions])
    vendi = vendi_score(kernel)
    return Scores(
        vendi_score=_rounded(vendi),
        agreement=_rounded(agreement(vendi, len(captions))),
        mean_dissimilarity=_rounded(mean_dissimilarity(kernel)),
        mean_logprob=_rounded(_mean(caption.mean_logprob for caption in captions)),
        medoid=medoid(kernel),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    present = [value for value in known if value is not None and math.isfinite(value)]
    return sum(present) / len(present) if present and len(present) == len(known) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6) + 0.0  # + 0.0 turns -0.0 into 0.0
