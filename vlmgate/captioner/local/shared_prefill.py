"""Let a second prompt go on from the prefill of the first, up to where the two differ.

Knows prompts as tokens, and caches; knows nothing of text, of families by name or of how tokens are drawn. The cache of
the first prompt is cut back to the beginning that both share, image included, and the rest of the second is run on from
there. That is right only where what a model makes of the beginning does not depend on what follows it: which models
that holds for is told by their structure here, and tried on two pictures by the engine before it is relied upon.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from vlmgate.captioner.local.fork import ForkDecoder, cache_key, last_logits
from vlmgate.captioner.local.sampling import Draw

# What a processor makes of the text itself; the tail of these follows from the tail of the tokens.
TEXT_KEYS = frozenset({"attention_mask", "input_ids", "mm_token_type_ids", "token_type_ids"})
# What may be in the state after the prefill; anything else may hang on the prompt in ways that are not known here.
KNOWN_STATE = TEXT_KEYS | {"position_ids"}


TRIAL_STEPS = 3  # tokens that are drawn both ways when a model is tried
# How far the logits of the two ways may lie apart, as a share of their spread.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class CannotShareError(Exception):
    """A model, its cache or its inputs are of a kind for which a shared beginning is not known to do."""


@dataclass(frozen=True, slots=True)
class Tails:
    """How two prompts end after the beginning that they share, as tokens."""

    first: tuple[int, ...]  # may be empty
    second: tuple[int, ...]  # at least one

    def fit(self, input_ids: torch.Tensor) -> bool:
        """Tell whether every row of the first prompt's (B, L) tokens ends as it should."""
        end = torch.tensor(self.first, dtype=input_ids.dtype)
        return bool((input_ids[:, input_ids.shape[1] - len(end) :] == end).all())


def find_tails(
    model: Any, first: Mapping[str, Any], second: Mapping[str, Any], image_token_ids: frozenset[int]
) -> Tails:
    """Compare what a processor makes of the same pictures with two prompts; raises `CannotShareError`."""
    if model.config.is_encoder_decoder:
        raise CannotShareError("the prompt is read by an encoder")
    if hasattr(model, "create_masks_for_generate"):
        raise CannotShareError("the model makes masks of its own, so tokens may attend to later ones")
    for key in (first.keys() | second.keys()) - TEXT_KEYS:
        if not _same(first.get(key), second.get(key)):
            raise CannotShareError(f"{key} depends on the prompt")
    pairs = {_tails(a, b) for a, b in zip(_rows(first), _rows(second), strict=True)}
    if len(pairs) != 1:
        raise CannotShareError("what follows the image depends on the image")
    (tails,) = pairs
    if not tails.second or image_token_ids & {*tails.first, *tails.second}:
        raise CannotShareError("the prompts differ before the image")
    return tails


def _tails(first: list[int], second: list[int]) -> Tails:
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    if shared == len(second):  # at least one token must be run to have logits
        shared -= 1
    return Tails(tuple(first[shared:]), tuple(second[shared:]))


def _rows(inputs: Mapping[str, Any]) -> list[list[int]]:
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None:
        return [row.tolist() for row in ids]
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and not isinstance(a, dict) and bool(a == b)


class Recorder:
    """A `Pick` that draws given tokens and keeps the logits that it is shown."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self.seen: list[torch.Tensor] = []  # per step (R, V)

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        self.seen.append(logits.double().cpu())
        tokens = torch.full_like(rows, self._tokens[step % len(self._tokens)])
        return Draw(tokens, torch.zeros(len(rows)), torch.ones_like(rows, dtype=torch.bool))


def alike(shared: Sequence[torch.Tensor], apart: Sequence[torch.Tensor], dtype: torch.dtype) -> bool:
    """Tell whether two ways of computing the same logits agree, row by row, as well as the dtype allows."""
    if not apart or [step.shape for step in shared] != [step.shape for step in apart]:
        return False
    a, b = torch.cat(list(shared)), torch.cat(list(apart))  # (steps · R, V)
    kept = b != -torch.inf  # some models mask tokens that are never said
    if not torch.equal(kept, a != -torch.inf):
        return False
    a, b = torch.where(kept, a, 0.0), torch.where(kept, b, 0.0)
    apart_by = (a - b).square().mean(-1).sqrt()
    return bool((apart_by <= TOLERANCE[dtype] * b.std(-1)).all())


@dataclass(slots=True)
class Continuation:
    """The second prompt of a batch; `decoder` draws its tokens."""

    tails: Tails
    decoder: ForkDecoder
    _input_ids: torch.Tensor = field(init=False)  # (B, P + S)
    _state: dict[str, Any] = field(init=False)

    def begin(self, input_ids: torch.Tensor, state: Mapping[str, Any]) -> None:
        """Keep what the first prompt's prefill left, cut back; call it before the cache is copied to K rows.

        The keys and values that are kept are those of the prefill themselves, not copies: forking makes new ones.
        """
        prompt = input_ids.shape[1]
        shared = prompt - len(self.tails.first)  # P, padding included
        tail = torch.tensor(self.tails.second, dtype=input_ids.dtype, device=input_ids.device)  # (S,)
        key = cache_key(state)
        if key is None:
            raise CannotShareError("there is no cache")
        self._state = {
            name: _cut_back(value, prompt, shared) if name == key else _continued(name, value, shared, len(tail))
            for name, value in state.items()
        }
        self._input_ids = torch.cat([input_ids[:, :shared], tail.expand(len(input_ids), -1)], dim=1)

    def run(self, model: Any) -> None:
        """Run the rest of the second prompt and draw its tokens."""
        self.decoder.timed(model, *self.prefilled(model))

    def prefilled(self, model: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Run the rest of the second prompt; return its last logits, its tokens and the state that it leaves."""
        tail = len(self.tails.second)
        inputs = model.prepare_inputs_for_generation(self._input_ids, next_sequence_length=tail, **self._state)
        outputs = model(**inputs, return_dict=True)
        logits = last_logits(outputs)
        state = model._update_model_kwargs_for_generation(outputs, self._state, is_encoder_decoder=False)
        return logits, self._input_ids, state


def _cut_back(cache: Any, length: int, shared: int) -> DynamicCache:
    """Return a cache of the first `shared` of `length` positions, over the same memory."""
    layers = getattr(cache, "layers", None)
    if type(cache) is not DynamicCache or not layers:
        raise CannotShareError(f"{type(cache).__name__} cannot be cut back")
    for layer in layers:
        if type(layer) is not DynamicLayer or layer.get_seq_length() != length:
            raise CannotShareError(f"a layer of kind {type(layer).__name__} cannot be cut back")
    short = copy.copy(cache)
    short.layers = [copy.copy(layer) for layer in layers]
    for layer in short.layers:
        layer.keys, layer.values = layer.keys[..., :shared, :], layer.values[..., :shared, :]
    return short


def _continued(name: str, value: Any, shared: int, tail: int) -> Any:
    """Return a part of the state as the second prompt needs it: the beginning, and the tail's `tail` tokens of text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if name not in KNOWN_STATE or not isinstance(value, torch.Tensor):
        raise CannotShareError(f"{name} may depend on the prompt")
    beginning = value[..., :shared]
    if name == "position_ids":  # counts on, wherever the image left it: the next one is written where it was cut
        following = value[..., shared : shared + 1] + torch.arange(tail, device=value.device)
    elif name == "attention_mask":
        following = value.new_ones((*value.shape[:-1], tail))
    else:
        following = value.new_zeros((*value.shape[:-1], tail))  # text
    return torch.cat([beginning, following], dim=-1)
