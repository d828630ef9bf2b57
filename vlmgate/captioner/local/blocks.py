"""Attend in blocks of rows while a prompt or a picture is read in bfloat16 on a CPU, where torch's own kernel is slow.

Knows the attention interface of transformers; knows nothing of what is attended to. PyTorch's kernel multiplies in
tiles of 32 to 512 numbers a side; over blocks of 128 rows, two ordinary products with a softmax between took 45 % of
its time at 1,059 tokens (one thread, 16 heads of 64). Products are rounded to bfloat16 before the softmax, as in the
"eager" attention of transformers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "vlmgate_blocks"
LEAST = 192  # rows; with fewer there is little to gain
ROWS = 128  # in a block; 64 to 128 were fastest at 1,048 tokens


def blocked_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `sdpa_attention_forward` does: `query` is (B, G·H, L, D), `key` and `value` (B, H, L, D).

    The mask is (B or 1, 1, L, L), true where a row may look; None: everywhere, or up to itself where the module is
    causal. Anything else goes to torch's kernel.
    """
    batch, heads, rows, size = query.shape
    simple = attention_mask is None or (attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1)
    known = not any(more.get(name) is not None for name in ("position_bias", "s_aux", "softcap"))
    fits = rows >= LEAST and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if not (simple and known and fits and dropout == 0.0 and key.shape[2] == rows and value.shape[-1] == size):
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **more
        )
        return done
    causal = attention_mask is None and (is_causal if is_causal is not None else getattr(module, "is_causal", True))
    scale = size**-0.5 if scaling is None else scaling
    shared = key.shape[1]
    groups = heads // shared
    queries = query.reshape(batch * shared, groups, rows, size)
    keys, values = key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)  # (B·H, D, L), (B·H, L, D)
    out = query.new_empty(batch * shared, groups, rows, size)
    lowest = torch.finfo(query.dtype).min  # not -inf: a row of padding may look nowhere, and must stay a number
    for begin in range(0, rows, ROWS):
        end = min(rows, begin + ROWS)
        seen = end if causal else rows
        block = queries[:, :, begin:end].reshape(batch * shared, -1, size)  # (B·H, G·R, D)
        scores = torch.baddbmm(query.new_empty(1), block, keys[..., :seen], beta=0, alpha=scale)
        by_row = scores.view(batch, heads, end - begin, seen)
        if causal:
            by_row[..., begin:].add_(torch.full((end - begin, end - begin), lowest, dtype=query.dtype).triu(1))
        elif attention_mask is not None:
            by_row.masked_fill_(~attention_mask[:, :, begin:end], lowest)
        attended = torch.bmm(scores.softmax(-1), values[:, :seen])
        out[:, :, begin:end] = attended.view(batch * shared, groups, end - begin, size)
    return out.view(batch, heads, rows, size).transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def attention_in_blocks(model: Any) -> Iterator[None]:
    """Let every layer of a bfloat16 model on a CPU attend by `blocked_attention` meanwhile; others as they are."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        yield
        return
    AttentionInterface.register(ATTENTION, blocked_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    configs = {id(m.config): m.config for m in model.modules() if getattr(m, "config", None) is not None}
    changed = [config for config in configs.values() if getattr(config, "_attn_implementation", None) == "sdpa"]
    try:
        for config in changed:
            config._attn_implementation = ATTENTION
        yield
    finally:
        for config in changed:
            config._attn_implementation = "sdpa"
