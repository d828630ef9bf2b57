"""Let more than one decoding go on from one prefill: a second prompt, or further samples.

Start with `find_tails` and `Continuation` for a second prompt, with `Prefill` for samples in rounds. The cache of the
first prompt is cut back to the beginning that both share, image included, and the rest of the second is run on from
there. That is right only where what a model makes of the beginning does not depend on what follows it, which is judged
by its structure here, and tried on two pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from vlmgate.captioner.local.fork import ForkDecoder, cache_key, can_drop_rows, keep_rows, last_logits, updated
from vlmgate.captioner.local.layers import UnsuitableError

# What a processor makes of the text itself; its tail follows from that of the tokens.
TEXT_KEYS = frozenset({"attention_mask", "input_ids", "mm_token_type_ids", "token_type_ids"})
# What may be in the state after the prefill; anything else may depend on the prompt in ways that are not known here.
KNOWN_STATE = TEXT_KEYS | {"position_ids"}


# --- a second prompt --------------------------------------------------------------------------------------------------


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
    """Compare what a processor makes of the same pictures with two prompts; raises `UnsuitableError`."""
    if model.config.is_encoder_decoder:
        raise UnsuitableError("the prompt is read by an encoder")
    if hasattr(model, "create_masks_for_generate"):
        raise UnsuitableError("the model makes masks of its own, so tokens may attend to later ones")
    for key in (first.keys() | second.keys()) - TEXT_KEYS:
        if not _same(first.get(key), second.get(key)):
            raise UnsuitableError(f"{key} depends on the prompt")
    pairs = {_tails(a, b) for a, b in zip(_rows(first), _rows(second), strict=True)}
    if len(pairs) != 1:
        raise UnsuitableError("what follows the image depends on the image")
    (tails,) = pairs
    if not tails.second or image_token_ids & {*tails.first, *tails.second}:
        raise UnsuitableError("the prompts differ before the image")
    return tails


def _tails(first: list[int], second: list[int]) -> Tails:
    shared, most = 0, min(len(first), len(second) - 1)  # at least one token must be run to have logits
    while shared < most and first[shared] == second[shared]:
        shared += 1
    return Tails(tuple(first[shared:]), tuple(second[shared:]))


def _rows(inputs: Mapping[str, Any]) -> list[list[int]]:
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and not isinstance(a, dict) and bool(a == b)


@dataclass(slots=True)
class Continuation:
    """The second prompt of a batch; `decoder` draws its tokens."""

    tails: Tails
    decoder: ForkDecoder
    _input_ids: torch.Tensor = field(init=False)  # (B, P + S)
    _state: dict[str, Any] = field(init=False)

    def begin(self, input_ids: torch.Tensor, state: Mapping[str, Any]) -> None:
        """Keep what the first prompt's prefill left, cut back and not copied; call it before the cache is forked."""
        prompt = input_ids.shape[1]
        shared = prompt - len(self.tails.first)  # P, padding included
        tail = torch.tensor(self.tails.second, dtype=input_ids.dtype, device=input_ids.device)  # (S,)
        key = cache_key(state)
        if key is None:
            raise UnsuitableError("there is no cache")
        self._state = {
            name: _cut_back(value, prompt, shared) if name == key else _continued(name, value, shared, len(tail))
            for name, value in state.items()
        }
        self._input_ids = torch.cat([input_ids[:, :shared], tail.expand(len(input_ids), -1)], dim=1)

    def run(self, model: Any) -> None:
        """Run the rest of the second prompt and draw its tokens."""
        tail = len(self.tails.second)
        inputs = model.prepare_inputs_for_generation(self._input_ids, next_sequence_length=tail, **self._state)
        outputs = model(**inputs, return_dict=True)
        state = updated(model, outputs, self._state)
        self.decoder.timed(model, last_logits(outputs), self._input_ids, state)


def _cut_back(cache: Any, length: int, shared: int) -> DynamicCache:
    """Return a cache of the first `shared` of `length` positions, over the same memory."""
    layers = getattr(cache, "layers", None)
    if type(cache) is not DynamicCache or not layers:
        raise UnsuitableError(f"{type(cache).__name__} cannot be cut back")
    for layer in layers:
        if type(layer) is not DynamicLayer or layer.get_seq_length() != length:
            raise UnsuitableError(f"a layer of kind {type(layer).__name__} cannot be cut back")
    short = _copied_cache(cache)
    for layer in short.layers:
        layer.keys, layer.values = layer.keys[..., :shared, :], layer.values[..., :shared, :]
    return short


def _continued(name: str, value: Any, shared: int, tail: int) -> Any:
    """Return a part of the state as the second prompt needs it: the beginning, and the tail's `tail` tokens of text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if name not in KNOWN_STATE or not isinstance(value, torch.Tensor):
        raise UnsuitableError(f"{name} may depend on the prompt")
    if name == "position_ids":  # counts on, wherever the image left it: the next one is written where it was cut
        following = value[..., shared : shared + 1] + torch.arange(tail, device=value.device)
    else:  # a mask shows the tail; of the others 0 means text
        following = value.new_full((*value.shape[:-1], tail), int(name == "attention_mask"))
    return torch.cat([value[..., :shared], following], dim=-1)


# --- samples in rounds ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Prefill(ForkDecoder):
    """A decoder that draws nothing: it keeps what the prefill of B prompts left, so that many can go on from it."""

    logits: torch.Tensor = field(init=False)  # (B, V), of the last position
    input_ids: torch.Tensor = field(init=False)  # (B, P)
    state: Mapping[str, Any] = field(init=False)

    def go_on(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> None:
        """Keep it all."""
        self.logits, self.input_ids, self.state = logits, input_ids, state

    def draw(self, model: Any, images: Sequence[int], decoder: ForkDecoder) -> None:
        """Let a decoder go on from some of the images; the prefill stays as it is."""
        state = _copied(self.state)
        rows = torch.tensor(list(images), device=self.input_ids.device)
        if len(images) < len(self.input_ids):
            keep_rows(state, rows, len(self.input_ids))
        with torch.inference_mode():
            decoder.timed(model, self.logits[rows.to(self.logits.device)], self.input_ids[rows], state)

    def can_drop(self, model: Any) -> bool:
        """Tell whether some of the images may go on without the others."""
        return can_drop_rows(model, self.state)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with another cache, over the same memory where that is never written to in place."""
    other = {name: copy.copy(value) if isinstance(value, dict) else value for name, value in state.items()}
    if (key := cache_key(state)) is not None:
        cache = state[key]
        plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
        other[key] = _copied_cache(cache) if plain else copy.deepcopy(cache)
    return other


def _copied_cache(cache: Any) -> Any:
    """Return a cache with other layers over the same keys and values."""
    short = copy.copy(cache)
    short.layers = [copy.copy(layer) for layer in cache.layers]
    return short
