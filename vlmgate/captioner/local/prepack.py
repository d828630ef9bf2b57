"""Lay the weights of linear layers out as oneDNN multiplies them, once, instead of at every step.

Knows linear layers in bfloat16 on a CPU; knows nothing of what they belong to. A decoding step multiplies a few dozen
rows by every weight of a model, and what oneDNN then does to each weight before the product takes a third of the time.
The products are the same up to the order of their sums; that is tried on every layer. The first layout is dropped, so
that a model takes no more memory than before, except where a weight has another use (embeddings tied to the head).
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from vlmgate.captioner.failures import one_line

logger = logging.getLogger(__name__)

ROWS = 32  # for which oneDNN chooses the layout; others from 8 to 2,000 were as fast with it
LEAST = 2**14  # numbers in a weight; below, the product is not what takes the time


class PrepackedLinear(torch.nn.Linear):
    """A linear layer whose weight is laid out for oneDNN; made of a `Linear` by `prepack`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input (…, I) times the weight (O, I), plus the bias."""
        weight = self._buffers.get("laid_out", self.weight)
        done: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, self.bias, "none", [], "")
        return done


def prepack(model: Any) -> int:
    """Lay out every linear layer of a bfloat16 model on the CPU; return how many. One that will not is left."""
    if not _possible():
        return 0
    used: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            if weight is not None:
                used[id(weight)] = used.get(id(weight), 0) + 1
    done = 0
    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            if type(module) is torch.nn.Linear and _fits(module):
                try:
                    done += _prepack(module, used[id(module.weight)] > 1)
                except Exception as error:  # of an operator that is not part of torch's promise
                    logger.info("linear layers keep their layout: %s", one_line(error))
                    return done
    return done


def undo(model: Any) -> None:
    """Give every layer back the layout that it had."""
    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            if type(module) is PrepackedLinear:
                layer: Any = module
                layer.__class__ = torch.nn.Linear
                if module._buffers.pop("laid_out", None) is None:
                    module.weight = torch.nn.Parameter(module.weight.detach().to_dense(), requires_grad=False)


def _possible() -> bool:
    try:
        backend: Any = torch.backends.mkldnn
        return bool(backend.is_available()) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def _fits(module: torch.nn.Linear) -> bool:
    weight = module.weight
    bare = not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
    return bare and weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.numel() >= LEAST


def _prepack(module: torch.nn.Linear, shared: bool) -> bool:
    """Turn a layer into a `PrepackedLinear` if that computes the same."""
    weight = module.weight.detach()
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
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
    return True
