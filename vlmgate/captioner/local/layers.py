"""Faster layers: attention for packed branches, and in bfloat16 on a CPU attention and linear layers.

Start with `attention_in_blocks` (while a prompt is read), `attention_folded` (while packed branches are decoded) and
`prepack` (once, after loading). PyTorch's own CPU kernels are slow in bfloat16: two products with a softmax between
took 45 % of the time of its attention at 1,059 tokens (one thread, 16 heads of 64). Products are rounded to bfloat16
before the softmax, as in the "eager" attention of transformers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vlmgate.errors import shorten

logger = logging.getLogger(__name__)

BLOCKED, FOLDED = "vlmgate_blocks", "vlmgate_packed"  # the names under which transformers knows the two attentions
LEAST_ROWS = 192  # with fewer rows there is little to gain from blocks
BLOCK_ROWS = 128  # 64 to 128 were fastest at 1,048 tokens
LAYOUT_ROWS = 32  # for which oneDNN chooses the layout of a weight; 8 to 2,000 were as fast with it
LEAST_WEIGHT = 2**14  # numbers; below, the product is not what takes the time


class UnsuitableError(Exception):
    """A faster way is not known to be right for this model, its cache or its inputs."""


# --- attention --------------------------------------------------------------------------------------------------------


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
    fits = rows >= LEAST_ROWS and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    square = key.shape[2] == rows and value.shape[-1] == size
    if not (simple and fits and square and dropout == 0.0) or _has_extras(more):
        more |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return _by_torch(module, query, key, value, attention_mask, **more)
    causal = attention_mask is None and (is_causal if is_causal is not None else getattr(module, "is_causal", True))
    scale = size**-0.5 if scaling is None else scaling
    shared, groups = key.shape[1], heads // key.shape[1]
    queries = query.reshape(batch * shared, groups, rows, size)
    keys, values = key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)  # (B·H, D, L), (B·H, L, D)
    out = query.new_empty(batch * shared, groups, rows, size)
    lowest = torch.finfo(query.dtype).min  # not -inf: a row of padding may look nowhere, and must stay a number
    for begin in range(0, rows, BLOCK_ROWS):
        end = min(rows, begin + BLOCK_ROWS)
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
    """Attend with the query heads of a group as further rows of their key head, so that keys are not repeated.

    `query` is (B, G·H, K, D), `key` and `value` (B, H, L, D), the mask (B, 1, K, L), true where a row may look. As in
    Ainslie et al., "GQA" (EMNLP 2023), heads g·H … share a key head; here they share one product, too.
    """
    batch, heads, rows, _ = query.shape
    groups = heads // key.shape[1]
    if _has_extras(more):
        raise UnsuitableError("attention has more to it than a mask")
    one_mask = attention_mask is not None and attention_mask.shape[1] == 1
    if attention_mask is not None and one_mask and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return _by_products(query, key, value, attention_mask, scaling), None
    if attention_mask is None or not one_mask or groups == 1:
        return _by_torch(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more)
    folded = query.reshape(batch, key.shape[1], groups * rows, -1)
    mask = attention_mask.repeat(1, 1, groups, 1)  # (B, 1, G·K, L)
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, rows, -1).transpose(1, 2).contiguous(), None


def _by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attend by keys times queries rather than queries times keys: oneDNN is fast with the long side first."""
    batch, heads, rows, size = query.shape
    shared, length = key.shape[1], key.shape[2]
    keys, values = key.flatten(0, 1), value.flatten(0, 1)  # (B·H, L, D)
    queries = query.reshape(batch * shared, -1, size).transpose(1, 2)  # (B·H, D, G·K)
    scale = size**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(query.new_empty(1), keys, queries, beta=0, alpha=scale).transpose(1, 2).contiguous()
    unseen = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    scores.view(batch, heads, rows, length).add_(unseen)
    return torch.bmm(scores.softmax(-1), values).view(batch, heads, rows, size).transpose(1, 2).contiguous()


def _by_torch(*given: Any, **more: Any) -> tuple[torch.Tensor, None]:
    done: tuple[torch.Tensor, None] = sdpa_attention_forward(*given, **more)
    return done


def _has_extras(more: dict[str, Any]) -> bool:
    """Tell whether attention is asked for more than a mask and a scale."""
    return any(more.get(name) is not None for name in ("position_bias", "s_aux", "softcap"))


def attention_in_blocks(model: Any) -> AbstractContextManager[None]:
    """Let every layer of a bfloat16 model on a CPU attend by `blocked_attention` meanwhile; others as they are."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return nullcontext()
    AttentionMaskInterface.register(BLOCKED, sdpa_mask)
    return _attending_by(model, BLOCKED, blocked_attention, ("sdpa",))


def attention_folded(model: Any) -> AbstractContextManager[None]:
    """Let every layer of a model attend by `folded_attention` meanwhile."""
    return _attending_by(model, FOLDED, folded_attention, ("sdpa", BLOCKED))


@contextmanager
def _attending_by(model: Any, name: str, attention: Callable[..., Any], instead_of: tuple[str, ...]) -> Iterator[None]:
    AttentionInterface.register(name, attention)
    configs = {id(m.config): m.config for m in model.modules() if getattr(m, "config", None) is not None}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    changed = [(config, how) for config, how in before if how in instead_of]
    try:
        for config, _ in changed:
            config._attn_implementation = name
        yield
    finally:
        for config, how in changed:
            config._attn_implementation = how


# --- linear layers ----------------------------------------------------------------------------------------------------


class PrepackedLinear(torch.nn.Linear):
    """A linear layer whose weight is laid out for oneDNN; made of a `Linear` by `prepack`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input (…, I) times the weight (O, I), plus the bias."""
        weight = self._buffers.get("laid_out", self.weight)
        done: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, self.bias, "none", [], "")
        return done


def prepack(model: Any) -> int:
    """Lay the weights of linear layers out as oneDNN multiplies them, once instead of at every step.

    That takes a third of the time of a decoding step in bfloat16 on a CPU. The products are the same up to the order
    of their sums, which is tried on every layer. The first layout is dropped unless the weight has another use (tied
    embeddings). Returns how many layers were changed; one that cannot be is left.
    """
    if not _onednn_has_bfloat16():
        return 0
    used = Counter(id(w) for module in model.modules() for w in module._parameters.values() if w is not None)
    done = 0
    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            if type(module) is torch.nn.Linear and _fits(module):
                try:
                    _prepack_layer(module, shared=used[id(module.weight)] > 1)
                except Exception as error:  # of an operator that is not part of torch's promise
                    logger.info("linear layers keep their layout: %s", shorten(error))
                    return done
                done += 1
    return done


def undo_prepack(model: Any) -> None:
    """Give every layer back the layout that it had."""
    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            if type(module) is PrepackedLinear:
                layer: Any = module
                layer.__class__ = torch.nn.Linear
                if module._buffers.pop("laid_out", None) is None:
                    module.weight = torch.nn.Parameter(module.weight.detach().to_dense(), requires_grad=False)


def _onednn_has_bfloat16() -> bool:
    try:
        backend: Any = torch.backends.mkldnn
        return bool(backend.is_available()) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def _fits(module: torch.nn.Linear) -> bool:
    weight = module.weight
    bare = not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
    return bare and weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.numel() >= LEAST_WEIGHT


def _prepack_layer(module: torch.nn.Linear, *, shared: bool) -> None:
    """Turn a layer into a `PrepackedLinear`; raises `ValueError` where that computes something else."""
    weight = module.weight.detach()
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), LAYOUT_ROWS)
    probe = torch.linspace(-1.0, 1.0, 3 * weight.shape[1]).view(1, 3, -1).to(weight.dtype)
    now = torch.ops.mkldnn._linear_pointwise(probe, laid_out, module.bias, "none", [], "")
    before = torch.nn.functional.linear(probe, weight, module.bias)
    if now.shape != before.shape or not torch.allclose(now, before, rtol=2e-2, atol=2e-2 * float(before.abs().max())):
        raise ValueError("the product is another one")
    module.__class__ = PrepackedLinear
    if shared:
        module.register_buffer("laid_out", laid_out, persistent=False)
    else:
        module.weight = torch.nn.Parameter(laid_out, requires_grad=False)
