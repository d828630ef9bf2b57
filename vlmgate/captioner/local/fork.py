"""Decode K captions, or K answers, of each of B images from one prefill, on the route *fork*.

Start with `ForkDecoder`, which `generate` runs in place of its own loop. The vision tower and the prompt are run once
per image, the cache is then copied to K rows, and one short loop draws the tokens. `draw` turns one uniform number and
one row of logits into one token; there is no random state here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from vlmgate.captioner.local.layers import attention_in_blocks

BLOCK = 512  # tokens; the inverse CDF first finds a block of the vocabulary, then the token inside it
SMALLEST_TEMPERATURE = 1e-30  # below it float32 divides zero by zero; sampling is greedy long before that
FIRST_NUCLEUS = 256  # tokens looked at first when searching the top-p nucleus; grows eightfold until it is covered

# Draws one token for each row: (R, V) logits, the step from 0, and the rows' numbers (R,) among the batch's B·K.
Pick = Callable[[torch.Tensor, int, torch.Tensor], "Draw"]

DROP_AT = 0.75  # share of rows left at which the ended ones are dropped; copying the cache costs a few steps in all

# What only the prefill reads: images, tiles or patches, which must not be repeated K times. `image_keys` adds to it.
PREFILL_ONLY = frozenset(
    "aspect_ratio_ids aspect_ratio_mask image_grid_thw image_sizes mm_encoder_outputs "
    "pixel_attention_mask pixel_mask pixel_values spatial_shapes".split()
)


@dataclass(slots=True)
class ForkDecoder:
    """The callable that `model.generate(custom_generate=…)` runs in place of its own loop; for one batch.

    Rows are image-major: rows b·K … b·K + K - 1 belong to image b.
    """

    num_samples: int  # K
    max_new_tokens: int  # T
    end_ids: frozenset[int]
    pick: Pick
    image_keys: frozenset[str] = frozenset()
    then: Any = None  # a `Continuation`: `begin` before the cache is copied to K rows, `run` at the end
    tokens: list[list[int]] = field(init=False, default_factory=list)  # B·K rows, the end token included
    logprobs: list[list[float]] = field(init=False, default_factory=list)  # the same shape, nats
    finite: list[bool] = field(init=False, default_factory=list)  # B·K
    seconds: float = field(init=False, default=0.0)  # from the end of the prefill on

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **state: Any,
    ) -> torch.Tensor:
        """Fill `tokens`, `logprobs` and `finite`; return the prompts, for `generate` expects some sequences.

        What else `generate` prepared is ignored on purpose: sampling is `pick`, stopping is `end_ids` and
        `max_new_tokens`.
        """
        logits, state = self._prefill(model, input_ids, state)
        if self.then is not None:
            self.then.begin(input_ids, state)
        self.timed(model, logits, input_ids, state)
        if self.then is not None:
            self.then.run(model)
        return input_ids

    def timed(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> None:
        """Do what `go_on` does, and add to `seconds` what it took."""
        if logits.device.type == "cuda":  # else the prefill, which may still be running there, would count
            torch.cuda.synchronize(logits.device)
        begun = time.perf_counter()
        self.go_on(model, logits, input_ids, state)
        self.seconds += time.perf_counter() - begun

    def go_on(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> None:
        """Draw K rows for each of B prompts that have been run: their last logits, their tokens, what they left."""
        self._loop(model, logits, Branches(model, input_ids, state, self.num_samples), 1, input_ids.device)

    def _prefill(
        self, model: Any, input_ids: torch.Tensor, state: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Run B images once and return their (B, V) logits and the state, less what only the prefill reads."""
        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state)
        with attention_in_blocks(model):
            outputs = model(**inputs, return_dict=True)
        state = updated(model, outputs, state)
        state = {k: v for k, v in state.items() if k not in PREFILL_ONLY and k not in self.image_keys}
        return last_logits(outputs), state

    def _loop(self, model: Any, logits: torch.Tensor, branches: Branches, together: int, device: torch.device) -> None:
        """Sample, append, stop, forward, until every row has ended.

        `logits` are (B, V), those of the prompts; `together` is K where branches share a sequence, else 1.
        """
        logits = logits.repeat_interleave(self.num_samples, dim=0)  # (B·K, V)
        ends = torch.tensor(sorted(self.end_ids), dtype=torch.long, device=device)
        log = Log(len(logits), self.max_new_tokens, device)
        alive = torch.arange(len(logits), device=device).view(-1, together)  # (B', K'), rows that are still computed
        unended = torch.ones_like(alive, dtype=torch.bool)  # (B', K')
        for step in range(self.max_new_tokens):
            rows = alive.flatten()
            drawn = Draw(*(part.to(device) for part in self.pick(logits, step, rows)))
            log.add(step, rows, unended.flatten(), drawn)
            unended = unended & (drawn.finite & ~torch.isin(drawn.tokens, ends)).view_as(unended)
            tokens = drawn.tokens.view_as(alive)  # (B', K')
            counts = unended.sum(dim=1).tolist()  # the one time in a step that a GPU is waited for
            if step + 1 == self.max_new_tokens or not any(counts):
                break
            left = [i for i, count in enumerate(counts) if count]
            if len(left) * max(counts) <= DROP_AT * unended.numel() and branches.can_drop(model):
                kept = _kept(unended, left, max(counts))
                branches.keep(*kept)
                alive, unended, tokens = (part[kept[0]].gather(1, kept[1]) for part in (alive, unended, tokens))
            logits = branches.step(model, tokens).flatten(0, 1)
        self.tokens, self.logprobs, self.finite = log.rows()


def _kept(unended: torch.Tensor, left: list[int], most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prompts (B'',) and their branches (B'', K'') to go on with; ended ones fill up, in vain."""
    prompts = torch.tensor(left, device=unended.device)
    first = torch.argsort((~unended[prompts]).int(), dim=1, stable=True)[:, :most]  # those that go on
    return prompts, first.sort(dim=1).values


class Branches:
    """B·K rows, each with a copy of its prompt's cache; every row counts as a prompt with one branch."""

    def __init__(self, model: Any, input_ids: torch.Tensor, state: dict[str, Any], samples: int) -> None:
        """Copy the rows of B prompts to B·K rows."""
        batch = len(input_ids)
        key = cache_key(state)
        if key is None:
            raise NotImplementedError(f"{type(model).__name__} keeps no cache that can be forked.")
        state[key].reorder_cache(torch.arange(batch, device=input_ids.device).repeat_interleave(samples))
        _one_row_each(state, batch)
        self._input_ids, self._state = model._expand_inputs_for_generation(
            input_ids=input_ids,
            expand_size=samples,
            is_encoder_decoder=bool(model.config.is_encoder_decoder),
            **state,
        )

    def step(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Feed a token (B', K') to each branch and return the (B', K', V) logits that follow."""
        self._input_ids = torch.cat([self._input_ids, tokens], dim=-1)
        inputs = model.prepare_inputs_for_generation(self._input_ids, next_sequence_length=1, **self._state)
        outputs = model(**inputs, return_dict=True)
        self._state = updated(model, outputs, self._state)
        logits: torch.Tensor = outputs.logits[:, -1:]
        return logits

    def can_drop(self, model: Any) -> bool:
        """Tell whether some may go on without the others."""
        return can_drop_rows(model, self._state)

    def keep(self, prompts: torch.Tensor, branches: torch.Tensor) -> None:
        """Go on with these prompts (B'',) and these branches (B'', K'') of theirs."""
        keep_rows(self._state, prompts, len(self._input_ids))
        self._input_ids = self._input_ids[prompts]


class Log:
    """What was drawn, by original row and step, until each row ended; kept on the device, read once."""

    def __init__(self, rows: int, steps: int, device: torch.device) -> None:
        self._tokens = torch.zeros(rows, steps, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(rows, steps, device=device)
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._finite = torch.ones(rows, dtype=torch.bool, device=device)

    def add(self, step: int | torch.Tensor, alive: torch.Tensor, unended: torch.Tensor, drawn: Draw) -> None:
        self._tokens[alive, step] = drawn.tokens
        self._logprobs[alive, step] = drawn.logprobs
        self._lengths[alive] += unended & drawn.finite  # a row is unended up to its end and never after: a length
        self._finite[alive] &= drawn.finite | ~unended

    def clear(self) -> None:
        """Be as new, at the same addresses."""
        for part in (self._tokens, self._logprobs, self._lengths):
            part.zero_()
        self._finite.fill_(True)

    def rows(self) -> tuple[list[list[int]], list[list[float]], list[bool]]:
        lengths = self._lengths.tolist()
        tokens = [row[:n] for row, n in zip(self._tokens.tolist(), lengths, strict=True)]
        logprobs = [row[:n] for row, n in zip(self._logprobs.tolist(), lengths, strict=True)]
        return tokens, logprobs, self._finite.tolist()


# --- the state between two forwards -----------------------------------------------------------------------------------


def updated(model: Any, outputs: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state after a forward, as transformers keeps it."""
    encoder_decoder = bool(model.config.is_encoder_decoder)
    return dict(model._update_model_kwargs_for_generation(outputs, state, is_encoder_decoder=encoder_decoder))


def last_logits(outputs: Any) -> torch.Tensor:
    """Return the (B, V) logits of the last position, without holding on to those of the others."""
    logits: torch.Tensor = outputs.logits[:, -1].clone()
    return logits


def cache_key(state: Mapping[str, Any]) -> str | None:
    """Return the state's name for a cache whose rows can be chosen, which depends on transformers' version; or None."""
    return next((key for key, value in state.items() if hasattr(value, "reorder_cache")), None)


def can_drop_rows(model: Any, state: Mapping[str, Any]) -> bool:
    """Tell whether `keep_rows` knows how to select rows of every part of the state.

    With no positions in it, they may come from numbers that the model keeps per image (Qwen-VL) and would not fit.
    """
    if not model.config.is_encoder_decoder and state.get("position_ids") is None:
        return False
    known = (torch.Tensor, bool, int, float, str, type(None))
    for key, value in state.items():
        parts = value.values() if key == "encoder_outputs" and isinstance(value, Mapping) else [value]
        if not hasattr(value, "reorder_cache") and not all(isinstance(part, known) for part in parts):
            return False
    return True


def keep_rows(state: dict[str, Any], kept: torch.Tensor, rows: int) -> None:
    """Reduce cache, masks, positions and encoder outputs from `rows` rows to those in `kept`."""
    key = cache_key(state)
    if key is not None:
        state[key].reorder_cache(kept)
    select_rows(state, kept, rows)


def select_rows(state: dict[str, Any], kept: torch.Tensor, rows: int) -> None:
    """Reduce masks, positions and encoder outputs, but no cache, from `rows` rows to those in `kept`."""
    for part in (state, state.get("encoder_outputs") or {}):
        for key, value in part.items():
            if isinstance(value, torch.Tensor):
                dim = _row_dim(key, value)
                if value.ndim > dim and value.shape[dim] == rows:
                    part[key] = value.index_select(dim, kept.to(value.device))


def _row_dim(key: str, value: torch.Tensor) -> int:
    """Return the dimension that counts rows; M-RoPE positions are (3 or 4, R, L)."""
    return 1 if key.endswith("position_ids") and value.ndim == 3 else 0


def _one_row_each(state: dict[str, Any], batch: int) -> None:
    """Give position ids that are shared by the batch one row per image, so that they can be repeated with the rest."""
    positions = state.get("position_ids")
    if isinstance(positions, torch.Tensor) and batch > 1:
        dim = _row_dim("position_ids", positions)
        if positions.shape[dim] == 1:
            state["position_ids"] = positions.repeat_interleave(batch, dim=dim)


# --- from logits to a token -------------------------------------------------------------------------------------------


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
    that the order of a sort does not matter. Logits of -inf are never drawn, whatever the uniform.
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

    A full sort of 262,144 entries costs more than a small model's forward pass, so the likeliest are looked at first.
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

    In two steps, block and token: a float32 sum over 262,144 entries loses the rare tokens, and one in float64 costs
    several times the memory traffic.
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

    Rounding can push the target past the total, and a parallel running sum can wobble in its last digit: the index is
    moved to a part above zero (down if there is one, else up).
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
