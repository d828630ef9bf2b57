"""Draw the samples of a batch a few at a time from one prefill, and stop for each image where a few will do.

Knows prefills, their caches and rows; knows nothing of what makes a few enough. Sample k of an image is drawn from its
own stream, so those that are drawn are the very first of those that would have been.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from vlmgate.captioner.local.fork import ForkDecoder, cache_key, can_drop_rows, keep_rows
from vlmgate.captioner.local.shared_prefill import Continuation, Tails
from vlmgate.captioner.local.streams import Use
from vlmgate.data import Caption, Picture, Sampled

if TYPE_CHECKING:
    from vlmgate.captioner.local.engine import Prepared, TransformersCaptioner
    from vlmgate.captioner.protocol import Enough


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """What a prefill of B prompts left."""

    logits: torch.Tensor  # (B, V), of the last position
    input_ids: torch.Tensor  # (B, P)
    state: Mapping[str, Any]

    def of(self, images: Sequence[int]) -> Beginning:
        """Return what is left of some of the images, to be used up; this one stays as it is."""
        state = _copied(self.state)
        rows = torch.tensor(list(images), device=self.input_ids.device)
        if len(images) < len(self.input_ids):
            keep_rows(state, rows, len(self.input_ids))
        return Beginning(self.logits[rows.to(self.logits.device)], self.input_ids[rows], state)

    def can_be_parted(self, model: Any) -> bool:
        """Tell whether some of the images may go on without the others."""
        return can_drop_rows(model, dict(self.state))


@dataclass(slots=True)
class Prefill(ForkDecoder):
    """A decoder that draws nothing: it keeps what the prefill left, and with `tails` that of a second prompt, too."""

    tails: Tails | None = None
    first: Beginning | None = field(init=False, default=None)
    second: Beginning | None = field(init=False, default=None)

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **state: Any,
    ) -> torch.Tensor:
        """Run B prompts once."""
        logits, left = self._prefill(model, input_ids, state)
        self.first = Beginning(logits, input_ids, left)
        if self.tails is not None:
            continuation = Continuation(self.tails, self)
            continuation.begin(input_ids, left)
            self.second = Beginning(*continuation.prefilled(model))
        return input_ids


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with a cache of its own, over the same memory where that is never written to in place."""
    key = cache_key(state)
    other = {name: copy.copy(value) if isinstance(value, dict) else value for name, value in state.items()}
    if key is not None:
        other[key] = _cache(state[key])
    return other


def _cache(cache: Any) -> Any:
    layers = getattr(cache, "layers", None)
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in layers or ()):
        return copy.deepcopy(cache)
    short = copy.copy(cache)
    short.layers = [copy.copy(layer) for layer in layers or ()]
    return short


def sample_in_rounds(
    engine: TransformersCaptioner,
    batch: Sequence[Picture],
    looks: Sequence[int],
    enough: Enough,
    prepared: Prepared | None,
) -> list[Sampled] | None:
    """Read a batch in rounds from one prefill; None where its prompts do not end as they should."""
    inputs = prepared.inputs if prepared else engine._inputs(engine._encode, engine._images(batch))
    tails = engine._tails
    if tails is not None and not tails.fit(inputs["input_ids"]):
        return None
    prefill = Prefill(1, 1, frozenset(), _draws_nothing, engine._image_keys, tails=tails)
    with engine._tap.watching(engine._image_tokens(inputs)):
        engine._generate(inputs, prefill)
    features = engine._tap.take(len(batch))
    beginnings: list[tuple[Use, Beginning | None]] = [("captions", prefill.first)]
    beginnings += [("answers", prefill.second)] if tails is not None else []
    said: dict[Use, list[list[Caption]]] = {use: [[] for _ in batch] for use, _ in beginnings}
    lengths = {"captions": engine._sampling.max_new_tokens, "answers": engine._sampling.max_answer_tokens}

    def sampled(image: int) -> Sampled:
        answers = tuple(said["answers"][image]) if "answers" in said else None
        return Sampled(tuple(said["captions"][image]), answers, features[image])

    # Recorded steps hold a prefill of their own; outside of a recording a GPU forks faster than it packs.
    kind = ForkDecoder if engine._checkpoint.device.type == "cuda" else None
    model, open_, drawn = engine._checkpoint.model, list(range(len(batch))), 0
    for look in looks:
        for use, beginning in beginnings:
            assert beginning is not None
            going = open_ if beginning.can_be_parted(model) else range(len(batch))
            pick = engine._sampler([batch[i] for i in going], use, slice(drawn, look))
            decoder = engine._decoder(pick, lengths[use], kind, branches=look - drawn)
            left = beginning.of(going)
            with torch.inference_mode():
                decoder.timed(model, left.logits, left.input_ids, dict(left.state))
            engine._spend(0.0, decoder.seconds)
            for image, captions in zip(going, engine._grouped(decoder, len(going), look - drawn), strict=True):
                if image in open_:
                    said[use][image] += captions
        drawn = look
        open_ = [image for image in open_ if not enough(batch[image], sampled(image))]
        if not open_:
            break
    return [sampled(image) for image in range(len(batch))]


def _draws_nothing(*_: Any) -> Any:
    raise AssertionError("a prefill draws nothing")
