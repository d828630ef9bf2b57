"""Decode K branches of each image as K query rows of one sequence, so that its beginning is stored and read once.

Knows the decoding hook, masks and the cache of transformers; knows nothing of files, prompts or text. Where the fork
copies the cache of a prompt to K rows, here all branches share one: each step feeds K tokens, one for each branch, all
at the same position, under a mask that lets a branch see the prompt and what itself has said. That is right only for
decoders whose every layer keeps every token it has seen, and attends where the mask says. Which models those are is
told by their structure, and tried against the fork before it is relied upon.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlmgate.captioner.local.blocks import ATTENTION as BLOCKS
from vlmgate.captioner.local.fork import DROP_AT, ForkDecoder, Log, cache_key, select_rows
from vlmgate.captioner.local.sampling import Draw

ATTENTION = "vlmgate_packed"
# What a step's inputs hold for each token, and what does not hang on their number; anything else is not known here.
_PER_TOKEN = frozenset({"position_ids", "token_type_ids", "mm_token_type_ids"})
_ALSO_KNOWN = frozenset({"input_ids", "attention_mask", "cache_position", "logits_to_keep"})


class CannotPackError(Exception):
    """A model, its cache or its inputs are of a kind for which packing is not known to be right."""


def check_structure(model: Any) -> None:
    """Raise `CannotPackError` for a model whose structure forbids packing, before anything is run."""
    if model.config.is_encoder_decoder:
        raise CannotPackError("the prompt is read by an encoder")
    if hasattr(model, "create_masks_for_generate"):
        raise CannotPackError("the model makes masks of its own")
    text = model.config.get_text_config(decoder=True)
    how = getattr(text, "_attn_implementation", None)
    if how != "sdpa":
        raise CannotPackError(f"attention is computed by {how}, not by sdpa")
    if set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        raise CannotPackError("some layers do not attend to every token")


class Teacher:
    """A `Pick` that draws other tokens for each branch, and keeps the logits that it is shown."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = torch.tensor(tokens)
        self.seen: list[torch.Tensor] = []  # per step (R, V)

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        self.seen.append(logits.double().cpu())
        tokens = self._tokens[(rows.cpu() + step * (step + 1)) % len(self._tokens)].to(rows.device)
        return Draw(tokens, torch.zeros(len(rows)), torch.ones_like(rows, dtype=torch.bool))


class PackedDecoder(ForkDecoder):
    """As `ForkDecoder`, with the same tokens for the same draws, and one sequence for all K branches of an image."""

    __slots__ = ()

    def go_on(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """Draw K rows for each of B prompts that have been run; raises `CannotPackError` before the first step."""
        sequences = Sequences(input_ids, state, self.num_samples, self.max_new_tokens - 1)
        with attention_folded(model):
            self._steps(model, logits, sequences)
        return input_ids

    def _steps(self, model: Any, logits: torch.Tensor, sequences: Sequences) -> None:
        """Sample, append, stop, forward, until every branch has ended."""
        batch, k, device = len(sequences.said), self.num_samples, sequences.said.device
        ends = torch.tensor(sorted(self.end_ids), dtype=torch.long, device=device)
        log = Log(batch * k, self.max_new_tokens, device)
        alive = torch.arange(batch * k, device=device).view(batch, k)  # (B', K'), rows that are still computed
        unended = torch.ones_like(alive, dtype=torch.bool)  # (B', K')
        logits = logits.to(device).repeat_interleave(k, dim=0)  # (B'·K', V)
        for step in range(self.max_new_tokens):
            rows = alive.flatten()
            drawn = Draw(*(part.to(device) for part in self.pick(logits, step, rows)))
            log.add(step, rows, unended.flatten(), drawn)
            unended = unended & (drawn.finite & ~torch.isin(drawn.tokens, ends)).view_as(unended)
            tokens = drawn.tokens.view_as(alive)  # (B', K')
            if step + 1 == self.max_new_tokens or not bool(unended.any()):
                break
            kept = _kept(unended)
            if kept is not None:
                sequences.keep(*kept)
                alive, unended, tokens = (part[kept[0]].gather(1, kept[1]) for part in (alive, unended, tokens))
            logits = sequences.step(model, tokens).flatten(0, 1)
        self.tokens, self.logprobs, self.finite = log.rows()


def _kept(unended: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the images (B'',) and their branches (B'', K'') to go on with; None where that would gain little.

    Where an image has fewer branches left than another, ended ones fill up; they are computed in vain.
    """
    counts = unended.sum(dim=1)
    images = counts.nonzero()[:, 0]
    most = int(counts.max())
    if len(images) * most > DROP_AT * unended.numel():
        return None
    first = torch.argsort((~unended[images]).int(), dim=1, stable=True)[:, :most]  # those that go on
    return images, first.sort(dim=1).values


class Sequences:
    """B prompts with K branches each: their cache, what each branch may see, and what the model needs besides."""

    def __init__(self, input_ids: torch.Tensor, state: dict[str, Any], branches: int, steps: int) -> None:
        key = cache_key(state)
        cache = state.get(key) if key else None
        mask = state.get("attention_mask")
        if cache is None or type(cache) is not DynamicCache or not cache.layers:
            raise CannotPackError(f"the cache is a {type(cache).__name__}")
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            raise CannotPackError("a layer of the cache does not keep every token")
        prompt = cache.layers[0].get_seq_length()
        if any(layer.get_seq_length() != prompt for layer in cache.layers) or prompt != input_ids.shape[1]:
            raise CannotPackError("the cache does not hold one entry for each token of the prompt")
        if mask is None:
            mask = torch.ones_like(input_ids)
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            raise CannotPackError("the mask of the prompt is of an unknown kind")
        self.said = input_ids  # (B', P + step), of the first branch; only its length and its last column matter
        self._state, self._prompt = state, prompt
        self._branches = branches
        self.layers = [_Layer(layer, branches * steps) for layer in cache.layers]
        cache.layers = list(self.layers)
        seen = mask[:, None, :prompt].bool()
        self._visible = seen.expand(-1, branches, -1)  # (B', K', L), the columns that a branch sees

    def step(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Feed a token (B', K') to each branch and return the (B', K', V) logits that follow."""
        outputs = model(**self.inputs(model, tokens), return_dict=True)
        self._state = model._update_model_kwargs_for_generation(outputs, self._state, is_encoder_decoder=False)
        logits: torch.Tensor = outputs.logits
        if logits.shape[:2] != tokens.shape:
            raise CannotPackError(f"logits of shape {tuple(logits.shape)} came for {tuple(tokens.shape)} tokens")
        return logits

    def inputs(self, model: Any, tokens: torch.Tensor) -> dict[str, Any]:
        """Append a token (B', K') to each branch and return what the model is to be given."""
        self.said = torch.cat([self.said, tokens[:, :1]], dim=1)
        own = torch.eye(self._branches, dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        self._visible = torch.cat([self._visible, own], dim=2)
        inputs = model.prepare_inputs_for_generation(self.said, next_sequence_length=1, **self._state)
        return self._widened(inputs, tokens)

    def _widened(self, inputs: Mapping[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
        """Return the inputs for one token of each sequence as inputs for K of them, at the same position."""
        if not isinstance(inputs.get("position_ids"), torch.Tensor):
            raise CannotPackError("positions are counted by the model itself")
        wide = {}
        for name, value in inputs.items():
            if name in _PER_TOKEN and isinstance(value, torch.Tensor):
                value = value[..., -1:].expand(*value.shape[:-1], tokens.shape[1])
            elif isinstance(value, torch.Tensor) and name not in _ALSO_KNOWN:
                raise CannotPackError(f"{name} may hang on the number of tokens")
            wide[name] = value
        wide.pop("cache_position", None)
        if "logits_to_keep" in wide:
            wide["logits_to_keep"] = 0  # all
        return wide | {"input_ids": tokens, "attention_mask": self._visible[:, None]}

    def keep(self, images: torch.Tensor, branches: torch.Tensor) -> None:
        """Go on with these images (B'',) and these branches (B'', K'') of theirs."""
        before, now = self._branches, branches.shape[1]
        columns = None
        if now < before:
            length = self._visible.shape[2]
            steps = torch.arange((length - self._prompt) // before, device=images.device)
            prompt = torch.arange(self._prompt, device=images.device).expand(len(images), -1)
            own = self._prompt + steps[None, :, None] * before + branches[:, None, :]  # (B'', steps, K'')
            columns = torch.cat([prompt, own.flatten(1)], dim=1)  # (B'', L'')
            rows = self._visible[images].gather(1, branches[..., None].expand(-1, -1, length))
            self._visible = rows.gather(2, columns[:, None].expand(-1, now, -1))
        else:
            self._visible = self._visible[images]
        for layer in self.layers:
            layer.keep(images, columns, now / before)
        select_rows(self._state, images, len(self.said))
        self.said, self._branches = self.said[images], now


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
        if room == 0:
            self._show(length)
            return
        self._all = tuple(part.new_empty((*part.shape[:-2], length + room, part.shape[-1])) for part in (keys, values))
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

    def keep(self, images: torch.Tensor, columns: torch.Tensor | None, share: float) -> None:
        """Keep some images, and of each the given columns (B'', L''); the room left shrinks to `share`."""
        room = round((self._all[0].shape[-2] - self.keys.shape[-2]) * share)
        keys, values = self.keys[images.to(self.keys.device)], self.values[images.to(self.values.device)]
        if columns is not None:
            keys, values = _columns(keys, columns), _columns(values, columns)
        self._set(keys, values, room)


def _columns(part: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    index = columns.to(part.device)[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[-1])
    return part.gather(2, index)


# --- attention --------------------------------------------------------------------------------------------------------


def folded_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with the query heads of a group as further rows of their key head, whose keys are then not repeated.

    `query` is (B, G·H, K, D), `key` and `value` (B, H, L, D), the mask (B, 1, K, L), true where a row may look. As in
    Ainslie et al., "GQA" (EMNLP 2023), heads g·H … share a key head; here they share one product, too.
    """
    batch, heads, rows, _ = query.shape
    groups = heads // key.shape[1]
    if more.get("position_bias") is not None or more.get("s_aux") is not None or more.get("softcap") is not None:
        raise CannotPackError("attention has more to it than a mask")
    one_mask = attention_mask is not None and attention_mask.shape[1] == 1
    if one_mask and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return _by_products(query, key, value, attention_mask, scaling), None
    if groups == 1 or not one_mask:
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return done
    assert attention_mask is not None
    folded = query.reshape(batch, key.shape[1], groups * rows, -1)
    mask = attention_mask.repeat(1, 1, groups, 1)  # (B, 1, G·K, L)
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, rows, -1).transpose(1, 2).contiguous(), None


def _by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attend by two products with a softmax between, which on a CPU in bfloat16 takes half the time of torch's kernel.

    Keys times queries rather than queries times keys: the long side first is what oneDNN is fast at. As in `blocks`,
    the first product is rounded to bfloat16.
    """
    assert mask is not None
    batch, heads, rows, size = query.shape
    shared, length = key.shape[1], key.shape[2]
    keys, values = key.flatten(0, 1), value.flatten(0, 1)  # (B·H, L, D)
    queries = query.reshape(batch * shared, -1, size).transpose(1, 2)  # (B·H, D, G·K)
    scale = size**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(query.new_empty(1), keys, queries, beta=0, alpha=scale).transpose(1, 2).contiguous()
    unseen = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    scores.view(batch, heads, rows, length).add_(unseen)
    return torch.bmm(scores.softmax(-1), values).view(batch, heads, rows, size).transpose(1, 2).contiguous()


@contextlib.contextmanager
def attention_folded(model: Any) -> Iterator[None]:
    """Let every layer of a model attend by `folded_attention` meanwhile."""
    AttentionInterface.register(ATTENTION, folded_attention)
    configs = {id(m.config): m.config for m in model.modules() if getattr(m, "config", None) is not None}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    try:
        for config, how in before:
            if how in ("sdpa", BLOCKS):
                config._attn_implementation = ATTENTION
        yield
    finally:
        for config, how in before:
            if how in ("sdpa", BLOCKS):
                config._attn_implementation = how
