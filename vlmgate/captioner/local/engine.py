"""Caption with any vision-language checkpoint that transformers loads, on the route *packed* or *fork*.

Knows how a batch of pictures becomes K captions, and K answers, each; knows nothing of folders, scores or results.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from vlmgate.captioner.failures import one_line, out_of_memory
from vlmgate.captioner.local import memory
from vlmgate.captioner.local.blocks import attention_in_blocks
from vlmgate.captioner.local.checkpoint import describe, load_checkpoint
from vlmgate.captioner.local.features import Features, FeatureTap
from vlmgate.captioner.local.fork import ForkDecoder, Pick
from vlmgate.captioner.local.generation import accepted_keys, image_token_ids_of, moved, own_generation_config
from vlmgate.captioner.local.packed import CannotPackError, PackedDecoder, Teacher, check_structure
from vlmgate.captioner.local.prepack import prepack, undo
from vlmgate.captioner.local.prompts import OPTIONAL_KEYS, PromptEncoder, apart, length_varies, trial_images
from vlmgate.captioner.local.recorded import RecordedDecoder, Recordings
from vlmgate.captioner.local.rounds import sample_in_rounds
from vlmgate.captioner.local.sampling import Sampler, Warp
from vlmgate.captioner.local.shared_prefill import (
    TRIAL_STEPS,
    CannotShareError,
    Continuation,
    Recorder,
    Tails,
    alike,
    find_tails,
)
from vlmgate.captioner.local.streams import Use, uniforms
from vlmgate.captioner.local.views import views_of
from vlmgate.captioner.protocol import Enough
from vlmgate.captioner.quiet import quiet
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Caption, Finish, ModelInfo, Picture, Sampled, Times

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
        self._name = model.model
        self._sampling = sampling
        self._checkpoint = load_checkpoint(model)
        if self._checkpoint.device.type == "cpu":
            memory.keep_freed_memory()
        self._image_ids = image_token_ids_of(self._checkpoint)
        with quiet():
            self._encode = self._encoder(sampling.prompt)
            self._ask = self._encoder(sampling.question_prompt) if sampling.question_prompt else None
            self._length_varies = length_varies(self._encode)
        self._encoding = threading.Lock()  # processors keep state while they run
        self._words = apart(self._checkpoint.processor.tokenizer)
        self._times = Times()
        self._generation = own_generation_config(self._checkpoint, sampling.max_new_tokens)
        self._image_keys = frozenset(self._checkpoint.processor.image_processor.model_input_names)
        self._accepted = accepted_keys(self._checkpoint.model)
        self._tap = FeatureTap(self._checkpoint.model)
        self._limit = sampling.at_once  # images per forward; halved for good when memory runs out
        self._recordings = Recordings()
        self._packs = False
        self._prepack()
        self._packs = self._can_pack()
        self._info = describe(model.model, self._checkpoint, "packed" if self._packs else "fork")
        self._tails = None if self._ask is None else self._shared_tails(self._ask)
        self._times = Times()  # less what the trials took
        self._limit = self._fitting()

    def _encoder(self, prompt: str) -> PromptEncoder:
        return PromptEncoder(
            self._checkpoint.processor,
            prompt,
            padding_side="right" if self._checkpoint.model.config.is_encoder_decoder else "left",
            image_token_ids=self._image_ids,
        )

    @property
    def info(self) -> ModelInfo:
        """What it is and where it runs."""
        return self._info

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        """Return what is sampled of each of B pictures, in the order given; raises what processor and model raise.

        A batch that does not fit into memory is halved, and so are all later ones; a single picture raises.
        """
        return self._in_batches(self._read_batch, pictures)

    @property
    def at_once(self) -> int:
        """How many images fit."""
        return self._limit

    @property
    def times(self) -> Times:
        """Where the time went so far."""
        return self._times

    def prompt_key(self, picture: Picture) -> Hashable:
        """Return the shape of a picture where the length of its prompt hangs on that."""
        return picture.rgb.size if self._length_varies else None

    def prepare(self, pictures: Sequence[Picture]) -> Prepared | None:
        """Return a batch as the processor leaves it; None where that must wait for the batch's turn."""
        if len(pictures) > self._limit or self._words is self._checkpoint.processor.tokenizer:
            return None
        images = self._images(pictures)
        ask = self._ask if self._tails is None else None
        return Prepared(images, self._inputs(self._encode, images), None if ask is None else self._inputs(ask, images))

    def read_prepared(self, pictures: Sequence[Picture], prepared: Prepared | None) -> list[Sampled]:
        """Return what `read` returns; a batch that does not fit into memory is prepared anew in smaller ones."""
        if prepared is None or len(pictures) > self._limit:
            return self.read(pictures)
        done = _if_it_fits(lambda batch: self._read_batch(batch, prepared), pictures)
        return self.read(pictures) if done is None else done  # which fails again, and halves for good

    def read_in_rounds(
        self, pictures: Sequence[Picture], looks: Sequence[int], enough: Enough, prepared: Prepared | None = None
    ) -> list[Sampled]:
        """Return the first samples of each picture, as many as are enough; K where rounds would cost more."""
        if self._ask is not None and self._tails is None:  # every round would be a prefill
            return self.read_prepared(pictures, prepared)

        def act(batch: Sequence[Picture]) -> list[Sampled]:
            ready = prepared if len(batch) == len(pictures) else None
            return sample_in_rounds(self, batch, looks, enough, ready) or self._read_batch(batch, ready)

        return self._in_batches(act, pictures)

    def with_samples(self, num_samples: int) -> TransformersCaptioner:
        """Return a captioner that draws another number of samples with the same model; loads nothing."""
        other = copy.copy(self)
        other._sampling = replace(self._sampling, num_samples=num_samples)
        return other

    def look(self, pictures: Sequence[Picture]) -> list[Features | None]:
        """Return the vision features of each of B pictures, in the order given; costs a prefill."""
        return self._in_batches(self._look_batch, pictures)

    def _in_batches(self, act: Callable[[Sequence[Picture]], list[T]], pictures: Sequence[Picture]) -> list[T]:
        found: list[T] = []
        while len(found) < len(pictures):
            batch = pictures[len(found) : len(found) + self._limit]
            done = _if_it_fits(act, batch)
            if done is None:
                self._limit = len(batch) // 2
                logger.warning("out of memory with %d images at once; going on with %d", len(batch), self._limit)
                self._recordings.clear()
                memory.release(self._checkpoint.device)
            else:
                found += done
        return found

    def _look_batch(self, batch: Sequence[Picture]) -> list[Features | None]:
        inputs = self._inputs(self._encode, [p.rgb for p in batch])
        with self._tap.watching(self._image_tokens(inputs)):
            self._generate(inputs, self._decoder(self._sampler(batch, "captions"), 1))
        return self._tap.take(len(batch))

    def _images(self, batch: Sequence[Picture]) -> list[Image.Image]:
        """Return B·V images, those of one picture together."""
        sampling = self._sampling
        return [view for p in batch for view in views_of(p, sampling.views, sampling.view_noise, sampling.seed)]

    def _read_batch(self, batch: Sequence[Picture], prepared: Prepared | None = None) -> list[Sampled]:
        sampling = self._sampling
        images = prepared.images if prepared else self._images(batch)
        captions, answers = self._sample(batch, images, prepared)
        features = self._tap.take(len(images))[:: sampling.views]
        samples = range(sampling.num_samples)
        views = tuple(k * sampling.views // sampling.num_samples for k in samples) if sampling.views > 1 else None
        return [
            Sampled(captions[b], answers[b] if answers is not None else None, features[b], views)
            for b in range(len(batch))
        ]

    def _sample(
        self, batch: Sequence[Picture], images: Sequence[Image.Image], prepared: Prepared | None = None
    ) -> tuple[list[tuple[Caption, ...]], list[tuple[Caption, ...]] | None]:
        """Return K captions, and K answers where there is a question, of each picture in a batch."""
        captioning = self._sampler(batch, "captions")
        inputs = prepared.inputs if prepared else None
        if self._ask is None:
            return self._grouped(self._decode(images, captioning, inputs=inputs), len(batch)), None
        answers = self._decoder(self._sampler(batch, "answers"), self._sampling.max_answer_tokens)
        captions = self._decode(images, captioning, answers, inputs)
        if not answers.tokens:  # they could not go on from the captions' prefill
            asked = prepared.question if prepared else None
            self._generate(asked or self._inputs(self._ask, images), answers)
        return self._grouped(captions, len(batch)), self._grouped(answers, len(batch))

    def _decode(
        self,
        images: Sequence[Image.Image],
        pick: Pick,
        answers: ForkDecoder | None = None,
        inputs: dict[str, Any] | None = None,
    ) -> ForkDecoder:
        """Caption a batch, with `pick` choosing every token; fill `answers` on the way where the prefill is shared."""
        decoder = self._decoder(pick, self._sampling.max_new_tokens)
        inputs = self._inputs(self._encode, images) if inputs is None else inputs
        if answers is not None and self._tails is not None and self._tails.fit(inputs["input_ids"]):
            decoder.then = Continuation(self._tails, answers)
        with self._tap.watching(self._image_tokens(inputs)):
            self._generate(inputs, decoder)
        return decoder

    def _decoder(
        self, pick: Pick, max_tokens: int, kind: type[ForkDecoder] | None = None, branches: int | None = None
    ) -> ForkDecoder:
        branches = branches or self._sampling.num_samples // self._sampling.views
        kind = kind or (self._fast_kind() if self._packs and branches > 1 else ForkDecoder)
        decoder = kind(
            num_samples=branches,
            max_new_tokens=max_tokens,
            end_ids=self._checkpoint.end_ids,
            pick=pick,
            image_keys=self._image_keys,
        )
        if isinstance(decoder, RecordedDecoder):
            decoder.recordings = self._recordings
        return decoder

    def _fast_kind(self) -> type[PackedDecoder]:
        """Return how to pack here: on CUDA only in recorded steps.

        Packing feeds few rows through many small kernels; where those are launched one by one it took 1.2 times
        as long as the fork on an H200, and where they are replayed 0.16 to 0.34 times as long (the draw not recorded).
        """
        return RecordedDecoder if self._checkpoint.device.type == "cuda" else PackedDecoder

    def _inputs(self, encode: PromptEncoder, images: Sequence[Image.Image]) -> dict[str, Any]:
        with self._encoding:
            inputs = encode(images)
        return {k: v for k, v in inputs.items() if k not in OPTIONAL_KEYS or k in self._accepted}

    def _generate(self, inputs: dict[str, Any], decoder: ForkDecoder) -> None:
        """Run the model over a batch's inputs, with `decoder` in the place of its own loop."""
        model = self._checkpoint.model
        begun = time.perf_counter()
        with torch.inference_mode(), attention_in_blocks(model):  # generate reads the pictures before the decoder runs
            # Of the class, because a repository's own code may have replaced the instance's method.
            type(model).generate(
                model,
                **moved(inputs, self._checkpoint.device, self._checkpoint.dtype),
                generation_config=self._generation,
                custom_generate=decoder,
            )
        drawing = decoder.seconds
        if isinstance(decoder.then, Continuation):
            drawing += decoder.then.decoder.seconds
        self._spend(time.perf_counter() - begun - drawing, drawing)

    def _spend(self, vision_and_prefill: float, decoding: float) -> None:
        before = self._times
        self._times = Times(before.vision_and_prefill + vision_and_prefill, before.decoding + decoding)

    def _image_tokens(self, inputs: dict[str, Any]) -> list[int]:
        """Return how many image tokens each prompt of a batch holds; 1 each where nothing tells."""
        ids = inputs["input_ids"]
        if not self._image_ids:
            return [1] * len(ids)
        counts: list[int] = torch.isin(ids, torch.tensor(sorted(self._image_ids))).sum(-1).tolist()
        return counts

    def _sampler(self, batch: Sequence[Picture], use: Use, part: slice = slice(None)) -> Pick:
        """Return the function that draws row b·K + k of every step from stream k of image b, of K or a part of them."""
        sampling = self._sampling
        steps = sampling.max_answer_tokens if use == "answers" else sampling.max_new_tokens
        k = sampling.num_samples
        streams = [uniforms(sampling.seed, p.file.sha256, p.file.page, k, steps, use)[part] for p in batch]
        streams_on = "cpu" if self._checkpoint.device.type == "mps" else self._checkpoint.device  # mps has no float64
        table = torch.from_numpy(np.concatenate(streams)).to(streams_on)  # (B·K, T)
        return Sampler(table, Warp(sampling.temperature, sampling.top_k, sampling.top_p))

    def _grouped(self, decoder: ForkDecoder, batch: int, k: int | None = None) -> list[tuple[Caption, ...]]:
        """Return the decoder's rows in words, K by K."""
        rows = [self._caption(*row) for row in zip(decoder.tokens, decoder.logprobs, decoder.finite, strict=True)]
        k = k or self._sampling.num_samples
        if len(rows) != batch * k:  # never seen; a caption on the wrong image would be worse than a stop
            raise RuntimeError(f"{len(rows)} texts came back for {batch} images with {k} each")
        return [tuple(rows[i : i + k]) for i in range(0, len(rows), k)]

    # --- the faster ways, where they are right ---

    def _prepack(self) -> None:
        """Lay the weights out anew for the CPU, unless a trial then fails or comes out differently."""
        checkpoint = self._checkpoint
        if checkpoint.device.type != "cpu" or checkpoint.dtype != torch.bfloat16:
            return
        seen: list[list[torch.Tensor]] = []
        done = 0
        try:
            with quiet():
                inputs = self._inputs(self._encode, trial_images())
                for _ in range(2):
                    teacher = Teacher([i for i in range(100) if i not in checkpoint.end_ids | self._image_ids][-20:])
                    self._generate(inputs, self._decoder(teacher, 2, ForkDecoder, branches=1))
                    seen.append(teacher.seen)
                    done = done or prepack(checkpoint.model)
            if alike(seen[1], seen[0], checkpoint.dtype):
                logger.info("%d linear layers are laid out for this processor", done)
                return
            logger.warning("linear layers keep their layout: the captions would come out differently")
        except Exception as error:  # what a model raises that looks at its weights in ways of its own
            logger.warning("linear layers keep their layout: %s", one_line(error))
        undo(checkpoint.model)

    def _can_pack(self) -> bool:
        """Say whether all branches may share one sequence.

        Whatever the structure promises, a few steps are computed both ways and compared, with other tokens for each
        branch. Both ways draw the same tokens, so this decides about time and memory only.
        """
        model = self._checkpoint.model
        try:
            check_structure(model)
            tokens = [i for i in range(100) if i not in self._checkpoint.end_ids | self._image_ids]
            with quiet():
                inputs = self._inputs(self._encode, trial_images())
                seen: dict[type[ForkDecoder], list[torch.Tensor]] = {}
                packed = self._fast_kind()
                for kind in (ForkDecoder, packed):
                    teacher = Teacher(tokens[-20:])
                    self._generate(inputs, self._decoder(teacher, TRIAL_STEPS, kind, branches=3))
                    seen[kind] = teacher.seen
                if not alike(seen[packed], seen[ForkDecoder], self._checkpoint.dtype):
                    raise CannotPackError("the captions would come out differently")
                if packed is RecordedDecoder and not self._draws_alike():
                    logger.warning("tokens are drawn outside of the recorded steps: they would come out differently")
                    self._recordings.draws_inside = False
        except CannotPackError as error:
            logger.info("every sample has a cache of its own: %s", error)
            return False
        except Exception as error:  # what a model that was not made for this raises, or too little memory
            logger.warning("every sample has a cache of its own: %s", one_line(error))
            return False
        return True

    def _fitting(self) -> int:
        """Return how many images at once a GPU's free memory is likely to hold; no less than 1, no more than asked for.

        Estimated from the prefill of one small picture: larger ones may take more, and then the batch is halved.
        """
        device, sampling = self._checkpoint.device, self._sampling
        if device.type != "cuda":
            return min(self._limit, sampling.at_once)
        try:
            text = self._checkpoint.model.config.get_text_config(decoder=True)
            inputs = self._inputs(self._encode, trial_images()[:1])
            once = self._decoder(Teacher([0]), 1, ForkDecoder, branches=1)
            taken = memory.peak(lambda: self._generate(inputs, once), device)
            token, prompt = memory.token_bytes(text, self._checkpoint.dtype), inputs["input_ids"].shape[1]
        except Exception as error:  # an estimate is no reason to fail
            logger.warning("how many images fit into memory is not known: %s", one_line(error))
            return min(self._limit, sampling.at_once)
        footprint = memory.Footprint(token, taken, text.vocab_size, prompt)
        image = footprint.image(self._info.route, sampling.num_samples, sampling.max_new_tokens) * sampling.views
        memory.release(device)
        most = sampling.at_once * (1 if sampling.batch_size else memory.MOST_BATCH // sampling.batch)
        fits = memory.fitting(memory.free_bytes(device), image, most)
        logger.info("an image takes about %d MiB; %d of %d at once", image >> 20, fits, most)
        return fits

    def _draws_alike(self) -> bool:
        """Tell whether recorded steps draw, inside, what is drawn outside from the same numbers."""
        rows, steps = len(trial_images()) * 3, TRIAL_STEPS + 1
        table = torch.linspace(0.05, 0.95, rows * steps, dtype=torch.float64).view(rows, steps)
        inputs = self._inputs(self._encode, trial_images())
        found = []
        for inside in (True, False):
            recordings = Recordings(draws_inside=inside)
            sampler = Sampler(table.to(self._checkpoint.device), Warp())
            decoder = self._decoder(sampler, steps, RecordedDecoder, branches=3)
            assert isinstance(decoder, RecordedDecoder)
            decoder.recordings = recordings
            self._generate(inputs, decoder)
            found.append((decoder.tokens, decoder.finite))
        return found[0] == found[1]

    def _shared_tails(self, ask: PromptEncoder) -> Tails | None:
        """Return how the two prompts end where answers may go on from the captions' prefill; None where they may not.

        Whatever the structure promises, the first steps are computed both ways and compared. Both ways give the same
        answers, so this decides about time only.
        """
        images = trial_images()
        try:
            with quiet():
                inputs = self._inputs(self._encode, images), self._inputs(ask, images)
                tails = find_tails(self._checkpoint.model, *inputs, self._image_ids)
                shared, apart = Recorder(tails.second), Recorder(tails.second)
                captions = self._decoder(Recorder(tails.second), 1)
                captions.then = Continuation(tails, self._decoder(shared, TRIAL_STEPS))
                self._generate(inputs[0], captions)
                self._generate(inputs[1], self._decoder(apart, TRIAL_STEPS))
                if not alike(shared.seen, apart.seen, self._checkpoint.dtype):
                    raise CannotShareError("the answers would come out differently")
        except CannotShareError as error:
            logger.info("captions and answers are prefilled apart: %s", error)
            return None
        except Exception as error:  # what a model that was not made for this raises, or too little memory
            logger.warning("captions and answers are prefilled apart: %s", one_line(error))
            return None
        logger.info("answers go on from the captions' prefill; %d tokens of their own", len(tails.second))
        return tails

    def _caption(self, tokens: list[int], logprobs: list[float], finite: bool) -> Caption:
        ends = self._checkpoint.end_ids
        ended = bool(tokens) and tokens[-1] in ends
        finish: Finish = ("stop" if ended else "length") if finite else "non-finite"
        text = self._words.decode([token for token in tokens if token not in ends], skip_special_tokens=True)
        mean = round(min(sum(logprobs) / len(logprobs), 0.0), 6) + 0.0 if finite and logprobs else None
        return Caption(text=text.strip(), finish=finish, mean_logprob=mean, num_tokens=len(tokens))


def _if_it_fits(act: Callable[[Sequence[Picture]], list[T]], batch: Sequence[Picture]) -> list[T] | None:
    """Return None when memory ran out; only outside of the handler are the failed batch's tensors let go."""
    try:
        return act(batch)
    except (RuntimeError, MemoryError) as error:
        if len(batch) == 1 or not out_of_memory(error):
            raise
    return None
