"""Decode K captions, or K answers, of each of B images from one prefill.

Knows the decoding hook and the cache of transformers; knows nothing of files, prompts or text. The vision tower and the
prompt are run once per image, the cache is then copied to K rows, and one short loop draws the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vlmgate.captioner.local.blocks import attention_in_blocks
from vlmgate.captioner.local.sampling import Draw

# Draws one token for each row that is still computed: (R, V) logits, the step counted from 0, and the rows' numbers
# (R,) among the B·K of the batch.
Pick = Callable[[torch.Tensor, int, torch.Tensor], Draw]

# Share of rows left at which the ended ones are dropped: often enough to matter, seldom enough that copying the cache
# costs at most a few steps in all.
DROP_AT = 0.75

# What only the prefill reads. Rows of these are images, tiles or patches, not sequences, so repeating them K times
# would at best waste memory; they are dropped before the fork. `image_keys` adds what a checkpoint's processor makes.
PREFILL_ONLY = frozenset(
    {
        "aspect_ratio_ids",
        "aspect_ratio_mask",
        "image_grid_thw",
        "image_sizes",
        "mm_encoder_outputs",
        "pixel_attention_mask",
        "pixel_mask",
        "pixel_values",
        "spatial_shapes",
    }
)


class Then(Protocol):
    """What goes on from the first prompt's prefill: `begin` before the cache is copied to K rows, `run` at the end."""

    def begin(self, input_ids: torch.Tensor, state: Mapping[str, Any]) -> None: ...
    def run(self, model: Any) -> None: ...


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
    then: Then | None = None
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
        """Fill `tokens`, `logprobs` and `finite`; return the sequences as `generate` expects it of a decoding loop.

        The processors, criteria and generation settings that `generate` prepared are ignored on purpose: sampling is
        `pick`, stopping is `end_ids` and `max_new_tokens`, and nothing else may have a say.
        """
        logits, state = self._prefill(model, input_ids, state)
        if self.then is not None:
            self.then.begin(input_ids, state)
        said = self.timed(model, logits, input_ids, state)
        if self.then is not None:
            self.then.run(model)
        return said

    def timed(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """Do what `go_on` does, and add to `seconds` what it took."""
        if logits.device.type == "cuda":  # else the prefill, which may still be running there, would count
            torch.cuda.synchronize(logits.device)
        begun = time.perf_counter()
        said = self.go_on(model, logits, input_ids, state)
        self.seconds += time.perf_counter() - begun
        return said

    def go_on(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """Draw K rows for each of B prompts that have been run: their last logits, their tokens, what they left."""
        return self._loop(model, *self._fork(model, logits, input_ids, state))

    def _prefill(
        self, model: Any, input_ids: torch.Tensor, state: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Run B images once and return their (B, V) logits and the state, less what only the prefill reads."""
        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state)
        with attention_in_blocks(model):
            outputs = model(**inputs, return_dict=True)
        encoder_decoder = bool(model.config.is_encoder_decoder)
        state = model._update_model_kwargs_for_generation(outputs, state, is_encoder_decoder=encoder_decoder)
        state = {k: v for k, v in state.items() if k not in PREFILL_ONLY and k not in self.image_keys}
        return last_logits(outputs), state

    def _fork(
        self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Copy the rows of B images to B·K rows."""
        batch = input_ids.shape[0]
        rows = torch.arange(batch, device=input_ids.device).repeat_interleave(self.num_samples)  # (B·K,)
        key = cache_key(state)
        if key is None:
            raise NotImplementedError(f"{type(model).__name__} keeps no cache that can be forked.")
        state[key].reorder_cache(rows)
        _one_row_each(state, batch)
        input_ids, state = model._expand_inputs_for_generation(
            input_ids=input_ids,
            expand_size=self.num_samples,
            is_encoder_decoder=bool(model.config.is_encoder_decoder),
            **state,
        )
        return logits[rows.to(logits.device)], input_ids, state

    def _loop(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """Sample, append, stop, forward, until every row has ended."""
        encoder_decoder = bool(model.config.is_encoder_decoder)
        ends = torch.tensor(sorted(self.end_ids), dtype=torch.long, device=input_ids.device)
        log = Log(len(input_ids), self.max_new_tokens, input_ids.device)
        alive = torch.arange(len(input_ids), device=input_ids.device)  # (R,), the rows that are still computed
        unended = torch.ones_like(alive, dtype=torch.bool)  # (R,)
        for step in range(self.max_new_tokens):
            drawn = Draw(*(part.to(input_ids.device) for part in self.pick(logits, step, alive)))
            log.add(step, alive, unended, drawn)
            unended = unended & drawn.finite & ~torch.isin(drawn.tokens, ends)
            input_ids = torch.cat([input_ids, drawn.tokens[:, None]], dim=-1)
            left = int(unended.sum())
            if left == 0 or step + 1 == self.max_new_tokens:
                break
            if left <= DROP_AT * len(alive) and can_drop_rows(model, state):
                kept = unended.nonzero()[:, 0]
                keep_rows(state, kept, len(alive))
                input_ids, alive, unended = input_ids[kept], alive[kept], unended[kept]
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **state)
            outputs = model(**inputs, return_dict=True)
            logits = outputs.logits[:, -1]  # (R, V)
            state = model._update_model_kwargs_for_generation(outputs, state, is_encoder_decoder=encoder_decoder)
        self.tokens, self.logprobs, self.finite = log.rows()
        return input_ids


def last_logits(outputs: Any) -> torch.Tensor:
    """Return the (B, V) logits of the last position, without holding on to those of the others."""
    logits: torch.Tensor = outputs.logits[:, -1].clone()
    return logits


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


def cache_key(state: Mapping[str, Any]) -> str | None:
    """Return the name under which the state holds a cache whose rows can be chosen; None where it holds none.

    Transformers 5.24 renamed `past_key_values` to `cache`, and goes on using the old name for code that expects it.
    """
    return next((key for key, value in state.items() if hasattr(value, "reorder_cache")), None)


def can_drop_rows(model: Any, state: dict[str, Any]) -> bool:
    """Tell whether every part of the state is of a kind whose rows `keep_rows` knows how to select.

    Decoders without positions of their own in the state may derive them from numbers that the model keeps per image
    (Qwen-VL), which would no longer fit.
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
