"""Random numbers that belong to one page of one image, and to one use of them; start with `uniforms`.

PCG64, SeedSequence and `random_raw` are frozen by numpy's compatibility policy; the rest is spelled out here because
`Generator` carries no such promise. There is no global random state: a stream is made anew from its key wherever it is
needed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stream = Literal["captions", "answers", "views"]

# The words that follow the page in a stream's key. Captions have none: their streams were there first. The lengths
# differ from use to use, so that no child of one use is another use's stream.
_WORDS: dict[Stream, tuple[int, ...]] = {"captions": (), "answers": (1,), "views": (2, 0)}


def uniforms(
    seed: int, sha256: str, page: int, num_samples: int, num_tokens: int, use: Stream = "captions"
) -> NDArray[np.float64]:
    """Return the (K, T) uniforms in [0, 1) with which the samples of one page are drawn, one row per sample.

    Each row has its own stream, so that a larger K or T adds to what a smaller one gives and changes none of it.
    Captions have other streams than answers, so that a question changes no caption.
    """
    children = _root(seed, sha256, page, use).spawn(num_samples)
    return _uniform(np.stack([np.random.PCG64(child).random_raw(num_tokens) for child in children]))


def seeds(seed: int, sha256: str, page: int, num_samples: int, use: Stream = "captions") -> list[int]:
    """Return K seeds in [0, 2^31), for a server that draws the samples of one page with its own random numbers.

    Seed k comes from the stream of sample k, so that a larger K adds seeds and changes none.
    """
    children = _root(seed, sha256, page, use).spawn(num_samples)
    return [int(np.random.PCG64(child).random_raw()) >> 33 for child in children]


def view_noise(seed: int, sha256: str, page: int, view: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the standard normal noise of one view of one page."""
    children = _root(seed, sha256, page, "views").spawn(view + 1)
    return _normal(children[view], shape)


def fixed_normal(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return standard normal numbers that are always the same for a shape, whatever the seed of a run."""
    return _normal(np.random.SeedSequence(shape), shape)


def _root(seed: int, sha256: str, page: int, use: Stream) -> np.random.SeedSequence:
    digest = [int(sha256[i : i + 8], 16) for i in range(0, 64, 8)]
    return np.random.SeedSequence([seed & 0xFFFFFFFF, seed >> 32, *digest, page, *_WORDS[use]])


def _normal(key: np.random.SeedSequence, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return standard normal numbers by the method of Box and Muller (1958)."""
    count = int(np.prod(shape))
    first, second = _uniform(np.random.PCG64(key).random_raw((2, -(-count // 2))))
    radius = np.sqrt(-2.0 * np.log1p(-first))
    normal = np.concatenate([radius * np.cos(2.0 * np.pi * second), radius * np.sin(2.0 * np.pi * second)])
    return normal[:count].reshape(shape)


def _uniform(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
