"""Decode packed branches in steps of one fixed shape, so that a GPU replays a recorded step (a CUDA graph).

Start with `RecordedDecoder`. On a fast GPU, launching the hundreds of small kernels of a step takes several times as
long as running them. A recorded graph is launched at once, but only with the same tensors at the same addresses: the
cache has its full length from the first step, the mask says what of it is filled, and a tensor says where the next
tokens go. Without CUDA the same steps are run one by one, for tests.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from vlmgate.captioner.local.checkpoint import out_of_memory
from vlmgate.captioner.local.fork import Draw, ForkDecoder, Log, Sampler, Warp, cache_key
from vlmgate.captioner.local.layers import UnsuitableError, attention_folded
from vlmgate.captioner.local.packed import PackedDecoder, Sequences, checked_logits
from vlmgate.errors import shorten

logger = logging.getLogger(__name__)

ROUND_TO = 64  # columns; prompts of nearly the same length share a recording
LOOK_EVERY = 4  # steps between two looks at whether every row has ended: each makes the processor wait for the GPU
_OWN = frozenset({"input_ids", "position_ids", "attention_mask"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What a recorded step is to do besides running the model."""

    steps: int  # T
    ends: tuple[int, ...]
    warp: Warp | None  # how tokens are drawn inside; None where that is done outside


@dataclass(slots=True)
class Recordings:
    """The recorded steps of one model, by shape; the latest ones only, for each holds a cache."""

    most: int = 2
    draws_inside: bool = True  # False once recording how tokens are drawn has failed
    _kept: dict[tuple[Any, ...], RecordedStep] = field(init=False, default_factory=dict)

    def get(self, model: Any, wide: Mapping[str, Any], sequences: Sequences, rule: Rule) -> RecordedStep:
        """Return the step for such shapes, recorded now if it has not been.

        Raises `UnsuitableError` where it cannot be recorded, and what torch raises where memory runs out.
        """
        batch, branches = wide["input_ids"].shape
        prompt = sequences.layers[0].keys.shape[-2]
        length = -(-(prompt + branches * rule.steps) // ROUND_TO) * ROUND_TO
        constant = tuple(
            (name, tuple(value.shape) if isinstance(value, torch.Tensor) else repr(value))
            for name, value in _constant(wide).items()
        )
        key = (id(model), batch, branches, length, rule, constant)
        step = self._kept.pop(key, None)
        if step is None:
            while len(self._kept) >= self.most:  # before the new one is made: both may not fit
                self._kept.pop(next(iter(self._kept)))
            step = self._record(model, wide, sequences, rule, length)
        self._kept[key] = step
        return step

    def clear(self) -> None:
        """Let all go, and their memory."""
        self._kept.clear()

    def _record(
        self, model: Any, wide: Mapping[str, Any], sequences: Sequences, rule: Rule, length: int
    ) -> RecordedStep:
        step = RecordedStep(model, wide, sequences, rule, length)
        if step.device.type == "cuda":
            stream = torch.cuda.current_stream(step.device)
            try:
                step.record()
            except Exception as error:
                torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
                if out_of_memory(error):
                    raise
                raise UnsuitableError(f"a step cannot be recorded: {shorten(error)}") from error
        return step


@dataclass(slots=True)
class RecordedDecoder(PackedDecoder):
    """As `PackedDecoder`, with the same tokens for the same draws; rows that have ended are computed to the end."""

    recordings: Recordings = field(default_factory=Recordings)

    def go_on(self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any]) -> None:
        """Draw K rows for each of B prompts that have been run; raises `UnsuitableError` before the first step."""
        if self.max_new_tokens == 1:  # nothing to replay
            return ForkDecoder.go_on(self, model, logits, input_ids, state)
        if isinstance(self.pick, Sampler) and self.pick.warp.top_p >= 1.0 and self.recordings.draws_inside:
            try:
                return self._replay(model, logits, input_ids, state, self.pick)
            except UnsuitableError as error:
                logger.warning("tokens are drawn outside of the recorded steps: %s", error)
                self.recordings.draws_inside = False
        return self._replay(model, logits, input_ids, state, None)

    def _replay(
        self, model: Any, logits: torch.Tensor, input_ids: torch.Tensor, state: dict[str, Any], inside: Sampler | None
    ) -> None:
        batch, k = len(input_ids), self.num_samples
        rule = Rule(self.max_new_tokens, tuple(sorted(self.end_ids)), inside.warp if inside else None)
        key = cache_key(state)
        cache: Any = state[key] if key else None
        sequences = Sequences(input_ids, state | ({key: copy.copy(cache)} if key else {}), k, 0)
        wide = sequences.inputs(model, torch.zeros(batch, k, dtype=torch.long, device=input_ids.device))
        with attention_folded(model):
            step = self.recordings.get(model, wide, sequences, rule)
            step.load(wide, sequences, logits.repeat_interleave(k, dim=0), inside)
            del wide, sequences
            cache.layers = []  # it is held from elsewhere, too, and not needed any more
            for number in range(self.max_new_tokens):
                if inside is None:
                    step.take(self.pick(step.logits, number, step.rows))
                if number + 1 < self.max_new_tokens:
                    step()
                elif inside is not None:
                    step.draw()
                if number % LOOK_EVERY == LOOK_EVERY - 1 and not step.goes_on():
                    break
        self.tokens, self.logprobs, self.finite = step.log.rows()


def _constant(wide: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs besides tokens, positions, mask and cache."""
    return {k: v for k, v in wide.items() if k not in _OWN and not hasattr(v, "reorder_cache")}


class RecordedStep:
    """One step of K branches of B prompts, draw and forward: inputs, cache and what is drawn at fixed addresses."""

    def __init__(self, model: Any, wide: Mapping[str, Any], sequences: Sequences, rule: Rule, length: int) -> None:
        tokens = wide["input_ids"]
        batch, branches = tokens.shape
        self.device = device = tokens.device
        self._model, self._rule, self._branches = model, rule, branches
        self._tokens = torch.zeros_like(tokens)
        self._positions = wide["position_ids"].clone(memory_format=torch.contiguous_format)
        self._mask = torch.zeros(batch, 1, branches, length, dtype=torch.bool, device=device)
        self._columns = torch.arange(branches, device=device)  # (K,) where the next tokens go
        self._layers = [_FixedLayer(layer, length, self._columns) for layer in sequences.layers]
        name = next(k for k, v in wide.items() if hasattr(v, "reorder_cache"))
        cache = copy.copy(wide[name])
        cache.layers = list(self._layers)
        self._inputs = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in _constant(wide).items()}
        own = {"input_ids": self._tokens, "position_ids": self._positions, "attention_mask": self._mask}
        self._inputs |= {name: cache, **own}
        self.rows = torch.arange(batch * branches, device=device)
        self.log = Log(batch * branches, rule.steps, device)
        self._unended = torch.ones_like(self.rows, dtype=torch.bool)
        self._ends = torch.tensor(rule.ends, dtype=torch.long, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)  # of the step
        self._table = torch.zeros(batch * branches, rule.steps, dtype=torch.float64, device=device)
        self._graph: Any = None
        self.logits = torch.empty(0)  # (B·K, V), those that come next

    def record(self) -> None:
        """Run the step until every kernel it needs has been chosen, then record it."""
        stream: Any = torch.cuda.Stream
        side = stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            self.logits = torch.zeros_like(self._forward().flatten(0, 1))
            for _ in range(2):
                self._begin(0)
                self._run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        self._begin(0)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self._graph = graph

    def load(self, wide: Mapping[str, Any], sequences: Sequences, logits: torch.Tensor, inside: Sampler | None) -> None:
        """Take over a batch: its prompts' cache and what may be seen of it, the first position, the first logits."""
        seen = wide["attention_mask"]  # (B, 1, K, P + K)
        prompt = seen.shape[-1] - self._branches
        self._begin(prompt)
        self._mask[..., :prompt] = seen[..., :prompt]
        self._positions.copy_(wide["position_ids"])
        for name, value in _constant(wide).items():
            if isinstance(value, torch.Tensor):
                self._inputs[name].copy_(value)
        for mine, theirs in zip(self._layers, sequences.layers, strict=True):
            mine.load(theirs)
        if self._graph is None:
            self.logits = torch.empty_like(logits, device=self.device)
        self.logits.copy_(logits)
        if inside is not None:
            self._table.copy_(inside.table[:, : self._rule.steps])

    def _begin(self, prompt: int) -> None:
        """Forget what was drawn."""
        self._mask.zero_()
        self._columns.copy_(torch.arange(prompt, prompt + self._branches, device=self.device))
        self._number.zero_()
        self._unended.fill_(True)
        self.log.clear()

    def __call__(self) -> None:
        """Draw a token for each branch, unless that is done outside, feed it, and go on to the next logits."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def draw(self) -> None:
        """Draw a token for each branch, with no forward after it."""
        assert self._rule.warp is not None
        table, number = self._table, self._number
        self.take(Sampler(table.index_select(1, number), self._rule.warp)(self.logits, 0, self.rows))

    def take(self, drawn: Draw) -> None:
        """Note what was drawn, and have it fed next."""
        tokens, logprobs, finite = (part.to(self.device) for part in drawn)
        self.log.add(self._number, self.rows, self._unended, Draw(tokens, logprobs, finite))
        self._unended.logical_and_(finite & ~(tokens[:, None] == self._ends).any(dim=1))
        self._tokens.copy_(tokens.view_as(self._tokens))
        self._number.add_(1)

    def goes_on(self) -> bool:
        """Tell whether any row has not ended; waits for the device."""
        return bool(self._unended.any())

    def _run(self) -> None:
        if self._rule.warp is not None:
            self.draw()
        self.logits.copy_(self._forward().flatten(0, 1))

    def _forward(self) -> torch.Tensor:
        columns = self._columns[None, None, :, None].expand(len(self._tokens), 1, -1, -1)
        self._mask.scatter_(3, columns, True)
        outputs = self._model(**self._inputs, return_dict=True)
        self._columns.add_(self._branches)
        self._positions.add_(1)
        return checked_logits(outputs, self._tokens)


class _FixedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """A layer of the cache that has its full length from the beginning."""

    def __init__(self, like: Any, length: int, columns: torch.Tensor) -> None:
        super().__init__()
        self.device, self.dtype, self.is_initialized = like.keys.device, like.keys.dtype, True
        self._columns = columns
        self.keys, self.values = (
            part.new_zeros((*part.shape[:-2], length, part.shape[-1])) for part in (like.keys, like.values)
        )

    def load(self, other: Any) -> None:
        """Copy a prompt to the beginning, and zeros behind it: a NaN of the last batch would pass the mask."""
        prompt = other.keys.shape[-2]
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[..., :prompt, :] = theirs
            mine[..., prompt:, :] = 0.0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens to their columns, and return all columns."""
        self.keys.index_copy_(2, self._columns, key_states)
        self.values.index_copy_(2, self._columns, value_states)
        return self.keys, self.values
