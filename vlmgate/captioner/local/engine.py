"""Caption with any vision-language checkpoint that transformers loads, on the route *packed* or *fork*.

Start with `TransformersCaptioner`: it tries which faster ways are right for a checkpoint, and reads pictures in batches
that fit into memory.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from PIL import Image

from vlmgate.captioner.local import trials
from vlmgate.captioner.local.checkpoint import describe, load_checkpoint, out_of_memory, quiet, release
from vlmgate.captioner.local.features import Features
from vlmgate.captioner.local.fork import ForkDecoder, Pick
from vlmgate.captioner.local.runner import Runner, length_varies
from vlmgate.captioner.local.scored import Scoring
from vlmgate.captioner.local.shared_prefill import Continuation, Prefill
from vlmgate.captioner.protocol import Enough
from vlmgate.captioner.streams import Stream, views_of
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Caption, Picture, Sampled, Times
from vlmgate.errors import ModelError

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A batch as the processor leaves it, on the CPU."""

    images: list[Image.Image]  # B·V, those of one picture together
    inputs: dict[str, Any]
    question: dict[str, Any] | None  # with the other prompt; None where it was not, or need not be, prepared


class TransformersCaptioner:
    """A `Captioner` over a local folder, a hub model or the built-in model."""

    def __init__(self, model: ModelConfig, sampling: SamplingConfig) -> None:
        """Load the model; raises `ModelError` in one line."""
        checkpoint = load_checkpoint(model)
        self._runner = runner = Runner(checkpoint, sampling)
        with quiet():
            self._length_varies = length_varies(runner.encode)
        trials.lay_out_weights(runner)
        vision, warnings = _sight(runner, model)
        runner.packs = trials.can_pack(runner)
        info = describe(model.model, checkpoint, "packed" if runner.packs else "fork")
        self.info = replace(info, vision=vision, warnings=warnings)
        self._tails = trials.shared_tails(runner)
        self._scoring = Scoring.of(runner)
        runner.times = Times()  # less what the trials took
        self.at_once = trials.fitting(runner, self.info.route, sampling.at_once)  # images; halved if memory runs out

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        """Return what is sampled of each of B pictures, in the order given; raises what processor and model raise.

        A batch that does not fit into memory is halved, and so are all later ones; a single picture raises.
        """
        return self._in_batches(self._read_batch, pictures)

    @property
    def times(self) -> Times:
        """Where the time went so far."""
        return self._runner.times

    def prompt_key(self, picture: Picture) -> Hashable:
        """Return the shape of a picture where the length of its prompt depends on that."""
        return picture.rgb.size if self._length_varies else None

    def prepare(self, pictures: Sequence[Picture]) -> Prepared | None:
        """Return a batch as the processor leaves it; None where that must wait for the batch's turn."""
        if len(pictures) > self.at_once or not self._runner.encodes_ahead:
            return None
        return self._prepared(pictures)

    def read_prepared(self, pictures: Sequence[Picture], prepared: Prepared | None) -> list[Sampled]:
        """Return what `read` returns; a batch that does not fit into memory is prepared anew in smaller ones."""
        if prepared is None or len(pictures) > self.at_once:
            return self.read(pictures)
        done = _if_it_fits(lambda batch: self._read_batch(batch, prepared), pictures)
        return self.read(pictures) if done is None else done  # which fails again, and halves for good

    def read_in_rounds(
        self, pictures: Sequence[Picture], looks: Sequence[int], enough: Enough, prepared: Prepared | None = None
    ) -> list[Sampled]:
        """Return the first samples of each picture, as many as are enough; K where rounds would cost more."""
        if self._runner.ask is not None and self._tails is None:  # every round would be a prefill
            return self.read_prepared(pictures, prepared)

        def act(batch: Sequence[Picture]) -> list[Sampled]:
            ready = prepared if len(batch) == len(pictures) else None
            return self._read_batch_in_rounds(batch, looks, enough, ready) or self._read_batch(batch, ready)

        return self._in_batches(act, pictures)

    def with_samples(self, num_samples: int) -> TransformersCaptioner:
        """Return a captioner that draws another number of samples with the same model; loads nothing."""
        other = copy.copy(self)
        other._runner = copy.copy(self._runner)
        other._runner.sampling = replace(self._runner.sampling, num_samples=num_samples)
        other._scoring = Scoring.of(other._runner)
        return other

    def look(self, pictures: Sequence[Picture]) -> list[Features | None]:
        """Return the vision features of each of B pictures, in the order given; costs a prefill."""
        return self._in_batches(self._look_batch, pictures)

    # --- batches ---

    def _in_batches(self, act: Callable[[Sequence[Picture]], list[T]], pictures: Sequence[Picture]) -> list[T]:
        found: list[T] = []
        while len(found) < len(pictures):
            batch = pictures[len(found) : len(found) + self.at_once]
            done = _if_it_fits(act, batch)
            if done is None:
                self.at_once = len(batch) // 2
                logger.warning("out of memory with %d images at once; going on with %d", len(batch), self.at_once)
                self._runner.recordings.clear()
                release(self._runner.checkpoint.device)
            else:
                found += done
        return found

    def _look_batch(self, batch: Sequence[Picture]) -> list[Features | None]:
        runner = self._runner
        inputs = runner.inputs(runner.encode, [p.rgb for p in batch])
        runner.generate(inputs, runner.decoder(runner.sampler(batch, "captions"), 1), watch=True)
        return runner.tap.take(len(batch))

    def _prepared(self, batch: Sequence[Picture]) -> Prepared:
        runner, sampling = self._runner, self._runner.sampling
        images = [view for p in batch for view in views_of(p, sampling.views, sampling.view_noise, sampling.seed)]
        question = runner.inputs(runner.ask, images) if runner.ask is not None and self._tails is None else None
        return Prepared(images, runner.inputs(runner.encode, images), question)

    def _read_batch(self, batch: Sequence[Picture], prepared: Prepared | None = None) -> list[Sampled]:
        """Return K captions, and K answers where there is a question, of each picture in a batch."""
        runner, sampling = self._runner, self._runner.sampling
        ready = prepared or self._prepared(batch)
        pick = runner.sampler(batch, "captions")
        answering: ForkDecoder | None = None
        if self._scoring is not None:
            answering = _prefill(runner)
        elif runner.ask is not None:
            answering = runner.decoder(runner.sampler(batch, "answers"), sampling.max_answer_tokens)
        captioning = self._decode(ready.images, pick, answers=answering, inputs=ready.inputs)
        if runner.ask is not None and answering is not None and captioning.then is None:
            # They could not go on from the captions' prefill.
            runner.generate(ready.question or runner.inputs(runner.ask, ready.images), answering)
        captions = runner.captions(captioning, len(batch))
        answers: Sequence[tuple[Caption, ...] | None] = [None] * len(batch)
        if isinstance(answering, Prefill):
            answers = self._scored_or_drawn(answering, batch)
        elif answering is not None:
            answers = runner.captions(answering, len(batch))
        features = runner.tap.take(len(ready.images))[:: sampling.views]
        samples = range(sampling.num_samples)
        views = tuple(k * sampling.views // sampling.num_samples for k in samples) if sampling.views > 1 else None
        return [Sampled(*one, views) for one in zip(captions, answers, features, strict=True)]

    def _scored_or_drawn(self, prefill: Prefill, batch: Sequence[Picture]) -> list[tuple[Caption, ...]]:
        """Return the scored answers of each picture, or K drawn ones where their forms hold too little."""
        assert self._scoring is not None
        scored = self._scoring.score(prefill)
        left = [i for i, answers in enumerate(scored) if answers is None]
        drawn = self._draw(prefill, batch, left, "answers", slice(0, self._runner.sampling.num_samples))
        return [drawn[i] if answers is None else answers for i, answers in enumerate(scored)]

    def _decode(
        self, images: Sequence[Image.Image], pick: Pick, answers: ForkDecoder | None = None, inputs: Any = None
    ) -> ForkDecoder:
        """Caption a batch, with `pick` choosing every token; fill `answers` on the way where the prefill is shared."""
        runner = self._runner
        decoder = runner.decoder(pick, runner.sampling.max_new_tokens)
        inputs = runner.inputs(runner.encode, images) if inputs is None else inputs
        if answers is not None and self._tails is not None and self._tails.fit(inputs["input_ids"]):
            decoder.then = Continuation(self._tails, answers)
        runner.generate(inputs, decoder, watch=True)
        return decoder

    # --- rounds ---

    def _read_batch_in_rounds(
        self, batch: Sequence[Picture], looks: Sequence[int], enough: Enough, prepared: Prepared | None
    ) -> list[Sampled] | None:
        """Draw a few samples at a time from one prefill, and stop for each image where those will do.

        They are the first of those that would be drawn at once. None where prompts do not end as they should.
        """
        runner = self._runner
        prefills = self._prefill((prepared or self._prepared(batch)).inputs)
        if prefills is None:
            return None
        features = runner.tap.take(len(batch))
        texts: dict[Stream, list[list[Caption]]] = {use: [[] for _ in batch] for use in prefills}
        scored: list[tuple[Caption, ...] | None] = [None] * len(batch)
        if self._scoring is not None:
            scored = self._scoring.score(prefills["answers"])

        def sampled(image: int) -> Sampled:
            drawn = tuple(texts["answers"][image]) if "answers" in texts else None
            return Sampled(tuple(texts["captions"][image]), scored[image] or drawn, features[image])

        left, drawn = list(range(len(batch))), 0
        for look in looks:
            for use, prefill in prefills.items():
                wanted = [image for image in left if use == "captions" or scored[image] is None]
                more = self._draw(prefill, batch, wanted, use, slice(drawn, look))
                for image in wanted:
                    texts[use][image] += more[image]
            drawn = look
            left = [image for image in left if not enough(batch[image], sampled(image))]
            if not left:
                break
        return [sampled(image) for image in range(len(batch))]

    def _prefill(self, inputs: dict[str, Any]) -> dict[Stream, Prefill] | None:
        """Run a batch's prompts once; None where they do not end as they should."""
        runner, tails = self._runner, self._tails
        if tails is not None and not tails.fit(inputs["input_ids"]):
            return None
        captions, answers = _prefill(runner), _prefill(runner)
        if tails is not None:
            captions.then = Continuation(tails, answers)
        runner.generate(inputs, captions, watch=True)
        return {"captions": captions} if tails is None else {"captions": captions, "answers": answers}

    def _draw(
        self, prefill: Prefill, batch: Sequence[Picture], images: Sequence[int], use: Stream, part: slice
    ) -> dict[int, tuple[Caption, ...]]:
        """Return a part of the samples of some images of a batch, of all where some cannot go on without the others."""
        runner, count, views = self._runner, part.stop - part.start, self._runner.sampling.views
        if not images:
            return {}
        if not prefill.can_drop(runner.checkpoint.model):
            images = range(len(batch))
        rows = [image * views + view for image in images for view in range(views)]  # of the prefill
        # Recorded steps copy the prefill; outside of a recording a GPU forks faster than it packs.
        kind = ForkDecoder if runner.checkpoint.device.type == "cuda" else None
        most = runner.sampling.max_answer_tokens if use == "answers" else runner.sampling.max_new_tokens
        pick = runner.sampler([batch[i] for i in images], use, part)
        decoder = runner.decoder(pick, most, kind, branches=count // views)
        prefill.draw(runner.checkpoint.model, rows, decoder)
        runner.spend(0.0, decoder.seconds)
        return dict(zip(images, runner.captions(decoder, len(images), count), strict=True))


def _sight(runner: Runner, model: ModelConfig) -> tuple[str, tuple[str, ...]]:
    """Return what came of the trial whether the model sees pictures, and what has to be known of that.

    Raises `ModelError` for one that does not, unless the user insists.
    """
    apart = trials.sight(runner)
    if apart is None:
        vision = "it could not be tried whether a red and a green picture make a difference"
        return vision, (f"{model.model} may not see the pictures: {vision}.",)
    vision = f"between a red and a green picture the logits differ by {apart:.2g} of their spread"
    if apart > trials.TOLERANCE[runner.checkpoint.dtype]:
        return vision, ()
    if model.trust_vision:
        return vision, (f"{model.model} may not see the pictures: {vision}. --trust-vision was given.",)
    raise ModelError(
        f"{model.model} does not seem to see the pictures: {vision}. Its vision part or its projector may be missing "
        "or untrained. Where you know that it sees, --trust-vision insists."
    )


def _prefill(runner: Runner) -> Prefill:
    """Return a decoder that keeps what the prefill of a batch leaves."""
    decoder = runner.decoder(_draws_nothing, 1, Prefill, branches=1)
    assert isinstance(decoder, Prefill)
    return decoder


def _draws_nothing(*_: Any) -> Any:
    raise AssertionError("a prefill draws nothing")


def _if_it_fits(act: Callable[[Sequence[Picture]], list[T]], batch: Sequence[Picture]) -> list[T] | None:
    """Return None when memory ran out; only outside of the handler are the failed batch's tensors let go."""
    try:
        return act(batch)
    except (RuntimeError, MemoryError) as error:
        if len(batch) == 1 or not out_of_memory(error):
            raise
    return None
