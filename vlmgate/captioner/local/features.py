"""Pool what the vision tower sees into a few hundred numbers, in the same forward pass that captions.

Start with `FeatureTap`. A caption can be sure of nonsense; these numbers show how far a picture lies from others.

The tower's layers are the `ModuleList` with the most weights that no other list holds and that runs once for a batch;
lists next to a token embedding are text. From its first, middle and last layer come the mean and the standard deviation
over tokens, per image. Where this is unclear (a layer that runs twice, rows of no known image) there are no features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vlmgate.captioner.streams import fixed_normal

DEPTHS = 3  # first, middle, last
WIDTH = 256  # numbers per depth at most; more are reduced by a random projection

Features = tuple[float, ...]


class FeatureTap:
    """Watches the vision tower of one model."""

    def __init__(self, model: Any) -> None:
        self._towers = [_depths(layers) for layers in _lists_of_layers(model)]  # the one with the most weights first
        self._counts: Sequence[int] | None = None  # image tokens of each row of the batch in hand; None = not watching
        self._seen: dict[tuple[int, int], torch.Tensor | None] = {}  # (tower, depth) → (B, 2·D); None = unclear
        for i, layers in enumerate(self._towers):
            for j, layer in enumerate(layers):
                layer.register_forward_hook(partial(self._see, (i, j)))

    @contextmanager
    def watching(self, counts: Sequence[int]) -> Iterator[None]:
        """Note what passes through the tower; `counts` are the image tokens in each of the batch's B prompts."""
        self._counts, self._seen = counts, {}
        try:
            yield
        finally:
            self._counts = None

    def take(self, rows: int) -> list[Features | None]:
        """Return the features of each of B images that were watched last, and forget them."""
        seen, self._seen = self._seen, {}
        for i, layers in enumerate(self._towers):
            if not any((i, j) in seen for j in range(len(layers))):  # an audio tower, say
                continue
            found = [seen.get((i, j)) for j in range(len(layers))]
            parts = [_reduced(part) for part in found if part is not None and len(part) == rows]
            if len(parts) < len(layers):
                break
            return [_finite(row) for row in np.concatenate(parts, axis=1)]
        return [None] * rows

    def _see(self, key: tuple[int, int], _module: nn.Module, _arguments: Any, output: Any) -> None:
        if self._counts is not None:
            again = key in self._seen
            tensor = _first_tensor(output)
            self._seen[key] = None if again or tensor is None else _pooled(tensor, self._counts)


# --- finding the tower ------------------------------------------------------------------------------------------------


def _lists_of_layers(model: Any) -> list[list[nn.Module]]:
    """Return the lists of layers that may be a vision tower's, the one with the most weights first."""
    embedding = model.get_input_embeddings()
    vocabulary = None if embedding is None else embedding.weight.shape
    lists = [layers for found in _outermost(model, vocabulary) if (layers := list(_flat(found)))]
    return sorted(lists, key=lambda layers: -sum(p.numel() for layer in layers for p in layer.parameters()))


def _outermost(module: nn.Module, vocabulary: torch.Size | None) -> Iterator[nn.ModuleList]:
    """Yield every ModuleList that no other one holds, but those of a module that embeds tokens itself: a text model."""
    text = any(isinstance(child, nn.Embedding) and child.weight.shape == vocabulary for child in module.children())
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from _outermost(child, vocabulary)
        elif not text:
            yield child


def _flat(layers: nn.ModuleList) -> Iterator[nn.Module]:
    """Yield the layers of a list, or of the lists in it (stages); a list itself is never run."""
    for child in layers:
        yield from _flat(child) if isinstance(child, nn.ModuleList) else (child,)


def _depths(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the first, the middle and the last layer, each once."""
    last = len(layers) - 1
    return [layers[i] for i in sorted({round(step * last / (DEPTHS - 1)) for step in range(DEPTHS)})]


# --- pooling ----------------------------------------------------------------------------------------------------------


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, torch.Tensor) and output.is_floating_point() else None


def _pooled(output: torch.Tensor, counts: Sequence[int]) -> torch.Tensor | None:
    """Return the (B, 2·D) means and standard deviations over the tokens of each image; None where it is unclear.

    Rows of a (N, L, D) output are images or their tiles, which are averaged; a (T, D) or (1, T, D) output holds the
    tokens of all images one after the other.
    """
    tokens = _as_tokens(output)
    if tokens is None:
        return None
    if len(tokens) == 1 and len(counts) > 1:
        tokens = tokens[0]
    shares = _shares(len(tokens), counts)
    if shares is None:
        return None
    if tokens.ndim == 2:
        return torch.stack([_statistics(part) for part in torch.split(tokens, shares)])
    return torch.stack([part.mean(0) for part in torch.split(_statistics(tokens), shares)])


def _as_tokens(output: torch.Tensor) -> torch.Tensor | None:
    """Return (N, L, D) or (T, D); maps of features are square, which tells their channels."""
    if output.ndim == 4:
        if output.shape[2] == output.shape[3] != output.shape[1]:
            return output.flatten(2).transpose(1, 2)
        return output.flatten(1, 2) if output.shape[1] == output.shape[2] != output.shape[3] else None
    return output if output.ndim in (2, 3) else None


def _shares(total: int, counts: Sequence[int]) -> list[int] | None:
    """Say how many of `total` rows belong to each image; None where the image tokens of the prompts do not tell.

    Rows (tiles or patches) and image tokens are in one whole proportion.
    """
    if total == len(counts):
        return [1] * total
    tokens = sum(counts)
    if not tokens or not total:
        return None
    if total % tokens == 0:
        return [count * (total // tokens) for count in counts]
    if tokens % total or any(count % (tokens // total) for count in counts):
        return None
    return [count // (tokens // total) for count in counts]


def _statistics(tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean and the standard deviation over the last but one dimension: (..., L, D) to (..., 2·D)."""
    variance, mean = torch.var_mean(tokens.float(), dim=-2, correction=0)
    return torch.cat([mean, variance.sqrt()], dim=-1)


def _reduced(pooled: torch.Tensor) -> NDArray[np.float64]:
    """Return (B, at most 256) numbers: as they are, or projected at random, which keeps distances to a few percent."""
    values = pooled.cpu().double().numpy()
    if values.shape[1] <= WIDTH:
        return values
    with np.errstate(all="ignore"):  # a row with values that are not finite is dropped later
        projected: NDArray[np.float64] = values @ _projection(values.shape[1])
    return projected


@lru_cache(maxsize=8)
def _projection(width: int) -> NDArray[np.float64]:
    projection: NDArray[np.float64] = fixed_normal((width, WIDTH)) / WIDTH**0.5
    return projection


def _finite(row: NDArray[np.float64]) -> Features | None:
    with np.errstate(over="ignore"):
        values = row.astype(np.float32)
    return tuple(values.tolist()) if np.isfinite(values).all() else None
