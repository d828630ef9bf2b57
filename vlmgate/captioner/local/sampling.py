"""Turn one uniform number and one row of logits into one token, reproducibly; start with `draw`.

There is no random state here: the caller brings the uniforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

BLOCK = 512  # tokens; the inverse CDF first finds a block of the vocabulary, then the token inside it
SMALLEST_TEMPERATURE = 1e-30  # below it float32 divides zero by zero; sampling is greedy long before that
FIRST_NUCLEUS = 256  # tokens looked at first when searching the top-p nucleus; grows eightfold until it is covered


@dataclass(frozen=True, slots=True)
class Warp:
    """How the model's distribution is bent before a token is drawn: temperature, then top-k, then top-p inside it."""

    temperature: float = 1.0  # > 0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # (0, 1], 1 = off


class Draw(NamedTuple):
    """One token for each of R rows."""

    tokens: torch.Tensor  # (R,) int64; 0 where the row is not finite
    logprobs: torch.Tensor  # (R,) float32, nats at temperature 1 before top-k and top-p
    finite: torch.Tensor  # (R,) bool; False = the logits hold NaN or +inf, or nothing but -inf


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Draws the token of row r at step t with the uniform that is written there."""

    table: torch.Tensor  # (R, T) float64 in [0, 1)
    warp: Warp

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        """Return the next tokens of these rows, from their (R', V) logits."""
        return draw(logits, self.table[rows.to(self.table.device), step], self.warp)


def draw(logits: torch.Tensor, uniform: torch.Tensor, warp: Warp) -> Draw:
    """Draw one token per row of (R, V) logits by inverse CDF over the vocabulary in index order.

    `uniform` is (R,) float64 in [0, 1). Tokens that tie with the last one kept by top-k or top-p are kept as well, so
    the result does not depend on how a sort orders equals. Logits of -inf are tokens of probability zero; they are
    never drawn, whatever the uniform.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)  # (R, 1)
    shifted = logits - top
    weights = shifted.exp()  # (R, V), proportional to the probabilities at temperature 1
    log_total = weights.sum(-1).log()  # (R,)
    finite = torch.isfinite(log_total)

    if warp.temperature != 1.0:
        weights = (shifted / max(warp.temperature, SMALLEST_TEMPERATURE)).exp()
    weights.masked_fill_(~finite[:, None], 0.0)
    weights[:, 0] += ~finite  # a broken row gets a harmless distribution, so that the maths below holds
    weights = _keep_top(weights, warp)

    tokens = _invert(weights, uniform)
    logprobs = shifted.gather(-1, tokens[:, None])[:, 0] - log_total
    return Draw(tokens, torch.where(finite, logprobs.clamp(max=0.0), torch.nan), finite)


def _keep_top(weights: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Zero the weights outside top-k, and outside the top-p nucleus of what top-k left."""
    vocabulary = weights.shape[-1]
    if 0 < warp.top_k < vocabulary:
        least = weights.topk(warp.top_k, dim=-1).values[:, -1:]
        weights = torch.where(weights >= least, weights, 0.0)
    if warp.top_p < 1.0:
        weights = torch.where(weights >= _nucleus_floor(weights, warp.top_p), weights, 0.0)
    return weights


def _nucleus_floor(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the (R, 1) weight of the least likely token in the smallest set of the likeliest that holds mass top_p.

    A full sort of 262,144 entries costs far more than the forward pass of a small model, so the likeliest few hundred
    are looked at first and more only if they do not cover top_p.
    """
    wanted = top_p * _exact(_blocks(weights).sum(-1)).sum(-1, keepdim=True)  # (R, 1)
    size = min(FIRST_NUCLEUS, weights.shape[-1])
    while True:
        best = weights.topk(size, dim=-1).values  # (R, size), descending
        mass = _exact(best).cumsum(-1)
        if size == weights.shape[-1] or bool((mass[:, -1:] >= wanted).all()):
            needed = (mass < wanted).sum(-1, keepdim=True).clamp(max=size - 1)  # (R, 1), index of the last one kept
            return best.gather(-1, needed.to(best.device))
        size = min(size * 8, weights.shape[-1])


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return, for each row, the first token whose cumulative weight exceeds `uniform` times the total; weight 0: never.

    In two steps, block and token, because one float32 sum over 262,144 entries loses the rare tokens, and one in
    float64 costs several times the memory traffic. Each step sums at most a few hundred terms in float64.
    """
    blocks = _blocks(weights)
    block_sums = _exact(blocks.sum(-1))  # (R, V / 512)
    uniform = uniform.to(block_sums.device)
    block, below = _find(block_sums, uniform * block_sums.sum(-1))
    rows = torch.arange(len(blocks), device=blocks.device)
    inside = _exact(blocks[rows, block.to(blocks.device)])  # (R, 512)
    chosen_sum = block_sums.gather(-1, block[:, None])[:, 0]
    # The float32 block sum and the float64 sum of its members differ in the last digits: scale one to the other.
    token, _ = _find(inside, below / chosen_sum * inside.sum(-1))
    return (block * BLOCK + token).to(weights.device)


def _find(parts: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first index of each row whose running sum exceeds the target, and the target less what came before.

    Rounding can push the target to or past the total, and a parallel running sum can wobble in its last digit: the
    index is therefore moved to a part above zero (down if there is one, else up).
    """
    running = parts.cumsum(-1)  # (R, N)
    positions = torch.arange(parts.shape[-1], device=parts.device)
    last_positive = torch.where(parts > 0, positions, -1).cummax(-1).values  # (R, N)
    found = torch.searchsorted(running, target[:, None], right=True).clamp(max=parts.shape[-1] - 1)
    index = last_positive.gather(-1, found)  # (R, 1)
    index = torch.where(index < 0, (parts > 0).int().argmax(-1, keepdim=True), index)
    before = running.gather(-1, index) - parts.gather(-1, index)
    return index[:, 0], (target - before[:, 0]).clamp(min=0.0)


def _blocks(weights: torch.Tensor) -> torch.Tensor:
    """View (R, V) weights as (R, V / 512, 512), padded with zeros."""
    return torch.nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)


def _exact(values: torch.Tensor) -> torch.Tensor:
    """Widen to float64; on the CPU where the device has none (Apple's)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
