"""Decode packed branches in shapes that never change, so that a GPU can replay a step instead of being told it anew.

Knows CUDA graphs, and the packed route whose steps it repeats; knows nothing of files, prompts or text. A decoding step
is some hundred small kernels, and on a fast GPU launching them takes longer than running them. A recorded graph is
launched at once, but only with the same tensors at the same addresses: the cache has its full length from the first
step, the mask tells what of it is filled, and where the next tokens go is told by a tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from vlmgate.captioner.fork import Log, cache_key
from vlmgate.captioner.packed import PackedDecoder, Sequences, attention_folded
from vlmgate.captioner.sampling import Draw

ROUND_TO = 64  # columns; prompts of nearly the same length share a recording


@dataclass(slots=True)
class Recordings:
    """The recorded steps of a model, by shape; the latest ones only, for each holds a cache."""

    most: int = 2
    _kept: dict[tuple[Any, ...], _Step] = field(default_factory=dict)

    def get(self, model: Any, wide: Mapping[str, Any], sequences: Sequences, room: int) -> _Step:
        """Return the step for such shapes, recorded now if it has not been."""
        prompt = sequences.layers[0].keys.shape[-2]
        length = -(-(prompt + room) // ROUND_TO) * ROUND_TO
        batch, branches = wide["input_ids"].shape
        rest = tuple((name, None if isinstance(v, torch.Tensor) else repr(v)) for name, v in _constant(wide).items())
        key = (batch, branches, length, rest)
        step = self._kept.pop(key, None)
        if step is None:
            while len(self._kept) >= self.most:
                self._kept.pop(next(iter(self._kept)))
            step = _Step(model, wide, sequences, length)
        self._kept[key] = step
        return step


@dataclass(slots=True)
class GraphDecoder(PackedDecoder):
    """As `PackedDecoder`, with the same tokens for the same draws; rows that have ended are computed to the end."""

    recordings: Recordings = field(default_factory=Recordings)

    def go_on(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """Draw K rows for each of B prompts that have been run; raises `CannotPackError` before the first step."""
        batch, k, device = len(input_ids), self.num_samples, input_ids.device
        sequences = Sequences(input_ids, state, k, 0)
        step: _Step | None = None
        ends = torch.tensor(sorted(self.end_ids), dtype=torch.long, device=device)
        log = Log(batch * k, self.max_new_tokens, device)
        rows = torch.arange(batch * k, device=device)
        unended = torch.ones_like(rows, dtype=torch.bool)
        logits = logits.to(device).repeat_interleave(k, dim=0)  # (B·K, V)
        with attention_folded(model):
            for number in range(self.max_new_tokens):
                drawn = Draw(*(part.to(device) for part in self.pick(logits, number, rows)))
                log.add(number, rows, unended, drawn)
                unended = unended & drawn.finite & ~torch.isin(drawn.tokens, ends)
                if number + 1 == self.max_new_tokens or not bool(unended.any()):
                    break
                tokens = drawn.tokens.view(batch, k)
                if step is None:
                    wide = sequences.inputs(model, tokens)
                    step = self.recordings.get(model, wide, sequences, k * (self.max_new_tokens - 1))
                    step.load(wide, sequences)
                    state.pop(cache_key(state) or "", None)
                logits = step(tokens).flatten(0, 1)
        self.tokens, self.logprobs, self.finite = log.rows()
        return input_ids


def _constant(wide: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs besides tokens, positions, mask and cache."""
    own = {"input_ids", "position_ids", "attention_mask"}
    return {k: v for k, v in wide.items() if k not in own and not hasattr(v, "reorder_cache")}


class _Step:
    """One decoding step of a model: its inputs and its cache at fixed addresses, recorded where there is CUDA."""

    def __init__(self, model: Any, wide: Mapping[str, Any], sequences: Sequences, length: int) -> None:
        tokens = wide["input_ids"]
        batch, branches = tokens.shape
        self._model, self._branches = model, branches
        self._tokens = torch.zeros_like(tokens)
        self._positions = wide["position_ids"].clone(memory_format=torch.contiguous_format)
        self._mask = torch.zeros(batch, 1, branches, length, dtype=torch.bool, device=tokens.device)
        self._where = torch.arange(branches, device=tokens.device)  # (K,) the columns of the tokens to come
        self._layers = [_FixedLayer(layer, length, self._where) for layer in sequences.layers]
        name = next(k for k, v in wide.items() if hasattr(v, "reorder_cache"))
        cache = copy.copy(wide[name])
        cache.layers = list(self._layers)
        self._inputs = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in _constant(wide).items()}
        self._inputs |= {
            name: cache,
            "input_ids": self._tokens,
            "position_ids": self._positions,
            "attention_mask": self._mask,
        }
        self._graph: Any = None
        self._logits: torch.Tensor | None = None
        if tokens.device.type == "cuda":
            self._record(tokens.device)

    def _record(self, device: torch.device) -> None:
        """Run the step until every kernel it needs has been chosen, then record it."""
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run()
        torch.cuda.current_stream(device).wait_stream(side)
        self._where.copy_(torch.arange(self._branches, device=device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._run()
        self._graph = graph

    def load(self, wide: Mapping[str, Any], sequences: Sequences) -> None:
        """Take over the prompts of a batch: their cache, what may be seen of it, and the first position."""
        seen = wide["attention_mask"]  # (B, 1, K, P + K)
        prompt = seen.shape[-1] - self._branches
        self._mask.zero_()
        self._mask[..., :prompt] = seen[..., :prompt]
        self._positions.copy_(wide["position_ids"])
        self._where.copy_(torch.arange(prompt, prompt + self._branches, device=self._where.device))
        for name, value in _constant(wide).items():
            if isinstance(value, torch.Tensor):
                self._inputs[name].copy_(value)
        for mine, theirs in zip(self._layers, sequences.layers, strict=True):
            mine.load(theirs)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed a token (B, K) to each branch and return the (B, K, V) logits that follow, until the next call."""
        self._tokens.copy_(tokens)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def _run(self) -> torch.Tensor:
        columns = self._where[None, None, :, None].expand(len(self._tokens), 1, -1, -1)
        self._mask.scatter_(3, columns, True)
        outputs = self._model(**self._inputs, return_dict=True)
        self._where.add_(self._branches)
        self._positions.add_(1)
        logits: torch.Tensor = outputs.logits
        return logits


class _FixedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """A layer of the cache that has its full length from the beginning."""

    def __init__(self, like: Any, length: int, where: torch.Tensor) -> None:
        super().__init__()
        self.device, self.dtype, self.is_initialized, self._where = like.keys.device, like.keys.dtype, True, where
        # Zeros, for what is masked is still multiplied, and what lies about in memory may be no number.
        self.keys, self.values = (
            part.new_zeros((*part.shape[:-2], length, part.shape[-1])) for part in (like.keys, like.values)
        )

    def load(self, other: Any) -> None:
        """Copy a prompt to the beginning."""
        prompt = other.keys.shape[-2]
        self.keys[..., :prompt, :] = other.keys
        self.values[..., :prompt, :] = other.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens to their columns, and return all columns."""
        self.keys.index_copy_(2, self._where, key_states)
        self.values.index_copy_(2, self._where, value_states)
        return self.keys, self.values
