"""Decode K branches of each image as K query rows of one sequence, on the route *packed*.

Start with `PackedDecoder`. The K branches of a prompt share its cache, so that it is stored and read once: each step
feeds one token for each branch, all at the same position, under a mask that lets a branch see the prompt and its own
tokens. That is right only for decoders whose every layer keeps every token and attends where the mask says:
`check_structure` looks at the structure, and a trial compares with the fork before the route is taken.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from vlmgate.captioner.local.fork import Branches, ForkDecoder, cache_key, select_rows, updated
from vlmgate.captioner.local.layers import UnsuitableError, attention_folded

# What a step's inputs hold for each token, and what does not depend on their number; anything else is not known here.
_PER_TOKEN = frozenset({"position_ids", "token_type_ids", "mm_token_type_ids"})
_ALSO_KNOWN = frozenset({"input_ids", "attention_mask", "cache_position", "logits_to_keep"})


def check_structure(model: Any) -> None:
    """Raise `UnsuitableError` for a model whose structure forbids packing, before anything is run."""
    if model.config.is_encoder_decoder:
        raise UnsuitableError("the prompt is read by an encoder")
    if hasattr(model, "create_masks_for_generate"):
        raise UnsuitableError("the model makes masks of its own")
    text = model.config.get_text_config(decoder=True)
    how = getattr(text, "_attn_implementation", None)
    if how != "sdpa":
        raise UnsuitableError(f"attention is computed by {how}, not by sdpa")
    if set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        raise UnsuitableError("some layers do not attend to every token")


class PackedDecoder(ForkDecoder):
    """As `ForkDecoder`, with the same tokens for the same draws, and one sequence for all K branches of an image."""

    __slots__ = ()

    def go_on(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> None:
        """Draw K rows for each of B prompts that have been run; raises `UnsuitableError` before the first step."""
        sequences = Sequences(input_ids, state, self.num_samples, self.max_new_tokens - 1)
        with attention_folded(model):
            self._loop(model, logits.to(input_ids.device), sequences, self.num_samples, input_ids.device)


class Sequences(Branches):
    """B prompts with K branches each in one sequence: the cache, what each may see, and the model's other inputs."""

    def __init__(self, input_ids: torch.Tensor, state: dict[str, Any], branches: int, steps: int) -> None:
        key = cache_key(state)
        cache = state.get(key) if key else None
        mask = state.get("attention_mask")
        if cache is None or type(cache) is not DynamicCache or not cache.layers:
            raise UnsuitableError(f"the cache is a {type(cache).__name__}")
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            raise UnsuitableError("a layer of the cache does not keep every token")
        prompt = cache.layers[0].get_seq_length()
        if any(layer.get_seq_length() != prompt for layer in cache.layers) or prompt != input_ids.shape[1]:
            raise UnsuitableError("the cache does not hold one entry for each token of the prompt")
        if mask is None:
            mask = torch.ones_like(input_ids)
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            raise UnsuitableError("the mask of the prompt is of an unknown kind")
        self._input_ids = input_ids  # (B', P + step), of the first branch; only its length and its last column matter
        self._state, self._prompt = state, prompt
        self._branches = branches
        self.layers = [_Layer(layer, branches * steps) for layer in cache.layers]
        cache.layers = list(self.layers)
        self._visible = mask[:, None, :prompt].bool().expand(-1, branches, -1)  # (B', K', L), what a branch sees

    def step(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Feed a token (B', K') to each branch and return the (B', K', V) logits that follow."""
        outputs = model(**self.inputs(model, tokens), return_dict=True)
        self._state = updated(model, outputs, self._state)
        return checked_logits(outputs, tokens)

    def inputs(self, model: Any, tokens: torch.Tensor) -> dict[str, Any]:
        """Append a token (B', K') to each branch and return what the model is to be given."""
        self._input_ids = torch.cat([self._input_ids, tokens[:, :1]], dim=1)
        own = torch.eye(self._branches, dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        self._visible = torch.cat([self._visible, own], dim=2)
        inputs = model.prepare_inputs_for_generation(self._input_ids, next_sequence_length=1, **self._state)
        # These are for one token of each sequence; from here on for K of them, at the same position.
        if not isinstance(inputs.get("position_ids"), torch.Tensor):
            raise UnsuitableError("positions are counted by the model itself")
        wide = {}
        for name, value in inputs.items():
            if name in _PER_TOKEN and isinstance(value, torch.Tensor):
                value = value[..., -1:].expand(*value.shape[:-1], tokens.shape[1])
            elif isinstance(value, torch.Tensor) and name not in _ALSO_KNOWN:
                raise UnsuitableError(f"{name} may depend on the number of tokens")
            wide[name] = value
        wide.pop("cache_position", None)
        if "logits_to_keep" in wide:
            wide["logits_to_keep"] = 0  # all
        return wide | {"input_ids": tokens, "attention_mask": self._visible[:, None]}

    def can_drop(self, model: Any) -> bool:
        """Tell whether some may go on without the others: always."""
        return True

    def keep(self, prompts: torch.Tensor, branches: torch.Tensor) -> None:
        """Go on with these prompts (B'',) and these branches (B'', K'') of theirs."""
        before, now = self._branches, branches.shape[1]
        columns = None
        if now < before:
            length = self._visible.shape[2]
            steps = torch.arange((length - self._prompt) // before, device=prompts.device)
            prompt = torch.arange(self._prompt, device=prompts.device).expand(len(prompts), -1)
            own = self._prompt + steps[None, :, None] * before + branches[:, None, :]  # (B'', steps, K'')
            columns = torch.cat([prompt, own.flatten(1)], dim=1)  # (B'', L'')
            rows = self._visible[prompts].gather(1, branches[..., None].expand(-1, -1, length))
            self._visible = rows.gather(2, columns[:, None].expand(-1, now, -1))
        else:
            self._visible = self._visible[prompts]
        for layer in self.layers:
            layer.keep(prompts, columns, now / before)
        select_rows(self._state, prompts, len(self._input_ids))
        self._input_ids, self._branches = self._input_ids[prompts], now


def checked_logits(outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the (B, K, V) logits that follow (B, K) tokens; raises `UnsuitableError` where there are others."""
    logits: torch.Tensor = outputs.logits
    if logits.shape[:2] != tokens.shape:
        raise UnsuitableError(f"logits of shape {tuple(logits.shape)} came for {tuple(tokens.shape)} tokens")
    return logits


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """A layer of the cache that grows in place, into room that was made once."""

    def __init__(self, layer: Any, room: int) -> None:
        super().__init__()
        self.device, self.is_initialized = layer.keys.device, True
        self._set(layer.keys, layer.values, room)

    def _set(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        """Copy what there is to the beginning of a buffer with room for more tokens; leave it where none is wanted."""
        length = keys.shape[-2]
        self._all: tuple[torch.Tensor, ...] = (keys, values)
        if room:
            self._all = tuple(p.new_empty((*p.shape[:-2], length + room, p.shape[-1])) for p in (keys, values))
            for whole, part in zip(self._all, (keys, values), strict=True):
                whole[..., :length, :] = part
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (whole[..., :length, :] for whole in self._all)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens behind those that are there, and return all of them."""
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        for whole, new in zip(self._all, (key_states, value_states), strict=True):
            whole[..., begin:end, :] = new
        self._show(end)
        return self.keys, self.values

    def keep(self, prompts: torch.Tensor, columns: torch.Tensor | None, share: float) -> None:
        """Keep some prompts, and of each the given columns (B'', L''); the room left shrinks to `share`."""
        room = round((self._all[0].shape[-2] - self.keys.shape[-2]) * share)
        keys, values = self.keys[prompts.to(self.keys.device)], self.values[prompts.to(self.values.device)]
        if columns is not None:
            keys, values = _columns(keys, columns), _columns(values, columns)
        self._set(keys, values, room)


def _columns(part: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    index = columns.to(part.device)[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[-1])
    return part.gather(2, index)
