"""Simulate what captions could still come after the first few: how far their entropy may yet move.

`seldom_ends` says whether it hardly ever ends on the other side of a limit.

What comes next is played with an urn: a caption is like the n_r that gave reading r with a chance of n_r - d, and is a
reading not seen yet with a chance of a + d D, both over k + a, of k captions with D readings (Pitman & Yor, "The
two-parameter Poisson-Dirichlet distribution", Ann. Probab. 25, 1997; a reading is all captions with the same words).
No one urn does for every image, so each play draws its own from a few, by the chance that each gives to the counts at
hand (Pitman, "Exchangeable and partially exchangeable random partitions", Probab. Theory Relat. Fields 102, 1995).
Where the engine knows how probable its captions are, a new reading is at most as likely as all captions not seen yet.
That is for models of few words: the built-in one words a reading in so many ways that it changes nothing there, and
readings drawn by their log-probabilities too, not by their counts alone, were foreseen no better.

In the space of the kernel a new reading lies half way between two captions drawn from those at hand, but for a part
that is like nothing else: as much as the readings at hand differ from the one most like them, and as readings do in
general.

`URNS` and `SIMILARITIES` were fitted to 3,300 renders of the built-in model (seeds 51 and 61 to 64): the urns by
likelihood, with little weight left to two that those do not need, one for wordy models, of which every caption is new,
and one for those that always say the same. The dice fall alike in every run, so that an image is always decided alike.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vlmgate.scores.diversity import Matrix

Counts = NDArray[np.int64]

PLAYS = 400
SELDOM = 1  # of the plays, at most
STAGES = (0, 25, 50, 100, 200, PLAYS)  # where it is not seldom, the first plays mostly tell
URNS = ((1.0, 0.6, 0.28), (3.0, 0.3, 0.60), (30.0, 0.9, 0.10), (0.3, 0.0, 0.02))  # a, d, weight
SIMILARITIES = (0.61, 0.67, 0.80, 0.87, 0.92, 0.94)  # of a new reading to the one most like it; as good as two at hand
LEAST_UNSEEN = 0.01  # for log-probabilities are rounded, and half precision adds to that
_TINY = 1e-9  # nats


def entropy(kernels: Matrix) -> Matrix:
    """Return the von Neumann entropy in nats, the logarithm of the Vendi score, of (..., n, n) kernels."""
    return _entropy(kernels / kernels.shape[-1])


def _entropy(states: Matrix) -> Matrix:
    values = np.linalg.eigvalsh(states).clip(1e-15)
    found: Matrix = -(values * np.log(values)).sum(-1)
    return found


def seldom_ends(kernel: Matrix, most: int, bound: float, *, above: bool, unseen: float = 1.0) -> bool:
    """Tell whether at most one of 400 plays of `most` captions ends above a bound in nats, or else not above.

    `kernel` is that of the k captions at hand, (k, k). `unseen` is the probability of all captions that are not among
    them together, in [0, 1]; 1 = unknown.
    """
    ended = 0
    for first, last in pairwise(STAGES):
        over = entropies(kernel, most, unseen, first, last) > bound + _TINY
        ended += int((over if above else ~over).sum())
        if ended > SELDOM:
            return False
    return True


def entropies(kernel: Matrix, most: int, unseen: float = 1.0, first: int = 0, last: int = PLAYS) -> Matrix:
    """Return the entropy in nats that `most` captions end with in each of some plays, (last - first,).

    The other parameters are those of `seldom_ends`.
    """
    labels = (kernel > 1 - _TINY).argmax(1)  # (k,), the first that has the same words
    at_hand, found = np.unique(labels, return_counts=True)  # (D,)
    counts = found.astype(np.int64)
    dice = _dice(most - len(kernel))[first:last]
    drawn = _drawn(counts, dice, unseen)  # (plays, D + new)
    mutual = kernel[np.ix_(at_hand, at_hand)]
    among = _among(mutual, counts, dice[:, 1 : drawn.shape[1] - len(counts) + 1, 1:])
    roots = np.sqrt(drawn / most)
    return _entropy(among * roots[:, :, None] * roots[:, None, :])


@lru_cache(maxsize=32)
def _dice(left: int) -> Matrix:
    """Return what falls in each play, (plays, 1 + left, 4) in [0, 1): for the urn, and for each caption to come."""
    return np.random.default_rng(0).random((PLAYS, 1 + left, 4))


def _drawn(counts: Counts, dice: Matrix, unseen: float) -> Matrix:
    """Return how many captions there are of each reading in the end, those at hand first, then the new ones."""
    k, distinct, left = int(counts.sum()), len(counts), dice.shape[1] - 1
    chosen = np.searchsorted(_urns_given(tuple(counts.tolist())), dice[:, 0, 0], side="right")
    strength, discount = np.array(URNS)[chosen, :2].T
    plays = np.arange(len(dice))
    drawn = np.zeros((len(dice), distinct + left))
    drawn[:, :distinct] = counts
    weights = np.zeros_like(drawn)  # n_r - d
    weights[:, :distinct] = counts - discount[:, None]
    readings = np.full(len(dice), distinct)
    for i in range(left):
        die = dice[:, 1 + i, 0]
        new = np.minimum((strength + discount * readings) / (k + i + strength), unseen)
        is_new = die < new
        heights = weights.cumsum(1)
        height = (die - new) / (1 - new) * heights[:, -1]
        which = np.where(is_new, readings, np.minimum((heights <= height[:, None]).sum(1), readings - 1))
        drawn[plays, which] += 1
        weights[plays, which] += np.where(is_new, 1 - discount, 1)
        readings = readings + is_new
    return drawn[:, : int(readings.max())]


@lru_cache(maxsize=4096)
def _urns_given(counts: tuple[int, ...]) -> Matrix:
    """Return the probabilities of the urns given the counts, added up but for the last, (urns - 1,)."""
    k, found = sum(counts), []
    for strength, discount, weight in URNS:
        likelihood = math.log(weight) + math.lgamma(strength + 1) - math.lgamma(strength + k)
        likelihood += sum(math.log(strength + discount * i) for i in range(1, len(counts)))
        found.append(likelihood + sum(math.lgamma(n - discount) - math.lgamma(1 - discount) for n in counts))
    shares = np.exp(np.array(found) - max(found))
    cumulated: Matrix = np.cumsum(shares / shares.sum())[:-1]
    return cumulated


def _among(mutual: Matrix, counts: Counts, dice: Matrix) -> Matrix:
    """Return the kernels of D readings at hand, of which `mutual` is known, and of some new ones, (plays, n, n)."""
    distinct, new = len(counts), dice.shape[1]
    shares = np.cumsum(counts / counts.sum())[:-1]
    one, other = (np.searchsorted(shares, dice[:, :, side], side="right") for side in (0, 1))  # (plays, new)
    length = np.sqrt(2 + 2 * mutual[one, other])
    alike = _similarities(mutual, dice[:, :, 2]) / length
    made_of = np.zeros((len(dice), distinct + new, distinct))  # of the readings at hand
    made_of[:, np.arange(distinct), np.arange(distinct)] = 1
    plays, rows = np.arange(len(dice))[:, None], distinct + np.arange(new)
    made_of[plays, rows, one] += alike
    made_of[plays, rows, other] += alike
    kernels: Matrix = made_of @ mutual @ made_of.transpose(0, 2, 1)
    everyone = np.arange(distinct + new)
    kernels[:, everyone, everyone] = 1  # what is left of a new reading is its own
    return kernels


def _similarities(mutual: Matrix, dice: Matrix) -> Matrix:
    """Return how much of a new reading lies in those at hand, drawn from what they share themselves and usually do."""
    distinct, typical = len(mutual), np.array(SIMILARITIES)
    if distinct < 2:
        alike: Matrix = typical[(dice * len(SIMILARITIES)).astype(int)]
        return alike
    nearest = (mutual - 2 * np.eye(distinct)).max(1)  # (D,)
    own = dice * (distinct + 2)  # the last two stand for what is usual
    usual = ((own - distinct).clip(0) / 2 * len(SIMILARITIES)).astype(int)
    found: Matrix = np.where(own < distinct, nearest[own.astype(int).clip(max=distinct - 1)], typical[usual])
    return found
