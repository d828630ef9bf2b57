"""Run batches of pictures through a loaded checkpoint: inputs, prefill, decoding, and tokens put into words.

Start with `Runner`. `engine` makes a `Captioner` of it, and `trials` finds out which faster ways are right for it.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from vlmgate.captioner.local.checkpoint import Checkpoint
from vlmgate.captioner.local.features import FeatureTap
from vlmgate.captioner.local.fork import ForkDecoder, Pick
from vlmgate.captioner.local.layers import attention_in_blocks
from vlmgate.captioner.local.packed import PackedDecoder
from vlmgate.captioner.local.prompts import OPTIONAL_KEYS, PromptEncoder, copied_tokenizer
from vlmgate.captioner.local.recorded import RecordedDecoder, Recordings
from vlmgate.captioner.local.sampling import Sampler, Warp
from vlmgate.captioner.local.shared_prefill import Continuation
from vlmgate.captioner.quiet import quiet
from vlmgate.captioner.streams import Stream, uniforms
from vlmgate.config import SamplingConfig
from vlmgate.data import Caption, Finish, Picture, Times


class Runner:
    """One checkpoint, its prompts, and what is kept between batches."""

    def __init__(self, checkpoint: Checkpoint, sampling: SamplingConfig) -> None:
        """Make all ready; raises `ModelError` where the processor takes no image with these prompts."""
        self.checkpoint, self.sampling = checkpoint, sampling
        self.image_ids = image_token_ids_of(checkpoint)
        with quiet():
            self.encode = self.encoder(sampling.prompt)
            self.ask = self.encoder(sampling.question_prompt) if sampling.question_prompt else None
        self.tap = FeatureTap(checkpoint.model)
        self.recordings = Recordings()
        self.packs = False  # branches share one sequence
        self.times = Times()
        self._encoding = threading.Lock()  # processors keep state while they run
        self._tokenizer = copied_tokenizer(checkpoint.processor.tokenizer)
        self._generation = own_generation_config(checkpoint, sampling.max_new_tokens)
        self._image_keys = frozenset(checkpoint.processor.image_processor.model_input_names)
        self._accepted = accepted_keys(checkpoint.model)

    @property
    def encodes_ahead(self) -> bool:
        """Whether one thread may encode while another one puts tokens into words."""
        return self._tokenizer is not self.checkpoint.processor.tokenizer

    def encoder(self, prompt: str) -> PromptEncoder:
        """Return what turns images into inputs with this prompt."""
        side = "right" if self.checkpoint.model.config.is_encoder_decoder else "left"
        return PromptEncoder(self.checkpoint.processor, prompt, padding_side=side, image_token_ids=self.image_ids)

    def inputs(self, encode: PromptEncoder, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return what the model is to be given, on the CPU."""
        with self._encoding:
            inputs = encode(images)
        return {k: v for k, v in inputs.items() if k not in OPTIONAL_KEYS or k in self._accepted}

    def decoder(
        self, pick: Pick, max_tokens: int, kind: type[ForkDecoder] | None = None, branches: int | None = None
    ) -> ForkDecoder:
        """Return a decoder for one batch, by default of the fastest kind that is right here."""
        branches = branches or self.sampling.num_samples // self.sampling.views
        kind = kind or (self.fast_kind() if self.packs and branches > 1 else ForkDecoder)
        decoder = kind(branches, max_tokens, self.checkpoint.end_ids, pick, self._image_keys)
        if isinstance(decoder, RecordedDecoder):
            decoder.recordings = self.recordings
        return decoder

    def fast_kind(self) -> type[PackedDecoder]:
        """Return how to pack here: on CUDA only in recorded steps.

        Packing feeds few rows through many small kernels; where those are launched one by one it took 1.2 times
        as long as the fork on an H200, and where they are replayed 0.16 to 0.34 times as long (the draw not recorded).
        """
        return RecordedDecoder if self.checkpoint.device.type == "cuda" else PackedDecoder

    def generate(self, inputs: dict[str, Any], decoder: ForkDecoder, *, watch: bool = False) -> None:
        """Run the model over a batch's inputs, with `decoder` in the place of its own loop.

        With `watch`, the vision features are there to take afterwards.
        """
        model = self.checkpoint.model
        watching = self.tap.watching(self._image_tokens(inputs)) if watch else nullcontext()
        begun = time.perf_counter()
        with watching, torch.inference_mode(), attention_in_blocks(model):  # generate may read pictures by itself
            # Of the class, because a repository's own code may have replaced the instance's method.
            type(model).generate(
                model,
                **moved(inputs, self.checkpoint.device, self.checkpoint.dtype),
                generation_config=self._generation,
                custom_generate=decoder,
            )
        drawing = decoder.seconds
        if isinstance(decoder.then, Continuation):
            drawing += decoder.then.decoder.seconds
        self.spend(time.perf_counter() - begun - drawing, drawing)

    def spend(self, vision_and_prefill: float, decoding: float) -> None:
        """Add seconds to the times."""
        before = self.times
        self.times = Times(before.vision_and_prefill + vision_and_prefill, before.decoding + decoding)

    def _image_tokens(self, inputs: dict[str, Any]) -> list[int]:
        """Return how many image tokens each prompt of a batch holds; 1 each where that cannot be seen."""
        ids = inputs["input_ids"]
        if not self.image_ids:
            return [1] * len(ids)
        counts: list[int] = torch.isin(ids, torch.tensor(sorted(self.image_ids))).sum(-1).tolist()
        return counts

    def sampler(self, batch: Sequence[Picture], use: Stream, part: slice = slice(None)) -> Pick:
        """Return the function that draws row b·K + k of every step from stream k of image b, of K or a part of them."""
        sampling, k = self.sampling, self.sampling.num_samples
        steps = sampling.max_answer_tokens if use == "answers" else sampling.max_new_tokens
        streams = [uniforms(sampling.seed, p.file.sha256, p.file.page, k, steps, use)[part] for p in batch]
        streams_on = "cpu" if self.checkpoint.device.type == "mps" else self.checkpoint.device  # mps has no float64
        table = torch.from_numpy(np.concatenate(streams)).to(streams_on)  # (B·K, T)
        return Sampler(table, Warp(sampling.temperature, sampling.top_k, sampling.top_p))

    def captions(self, decoder: ForkDecoder, batch: int, k: int | None = None) -> list[tuple[Caption, ...]]:
        """Return the decoder's rows in words, K for each image of a batch."""
        rows = [self._caption(*row) for row in zip(decoder.tokens, decoder.logprobs, decoder.finite, strict=True)]
        k = k or self.sampling.num_samples
        if len(rows) != batch * k:  # never seen; a caption on the wrong image would be worse than a stop
            raise RuntimeError(f"{len(rows)} texts came back for {batch} images with {k} each")
        return [tuple(rows[i : i + k]) for i in range(0, len(rows), k)]

    def _caption(self, tokens: list[int], logprobs: list[float], finite: bool) -> Caption:
        ends = self.checkpoint.end_ids
        ended = bool(tokens) and tokens[-1] in ends
        finish: Finish = ("stop" if ended else "length") if finite else "non-finite"
        text = self._tokenizer.decode([token for token in tokens if token not in ends], skip_special_tokens=True)
        mean = round(min(sum(logprobs) / len(logprobs), 0.0), 6) + 0.0 if finite and logprobs else None
        return Caption(text=text.strip(), finish=finish, mean_logprob=mean, num_tokens=len(tokens))


def own_generation_config(checkpoint: Checkpoint, max_new_tokens: int) -> Any:
    """Replace the checkpoint's generation config, in the model and its parts, and return the new one.

    `generate` fills every setting that is left open from the model's own config, so that one is replaced as well. Only
    the ids of structural tokens are kept: they say how a sequence begins and ends, not how it is sampled.
    """
    model = checkpoint.model
    text = model.config.get_text_config(decoder=True)

    def from_config(name: str) -> Any:
        value = getattr(model.config, name, None)
        return getattr(text, name, None) if value is None else value

    tokenizer = checkpoint.processor.tokenizer
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        bos_token_id=tokenizer.bos_token_id if tokenizer.bos_token_id is not None else from_config("bos_token_id"),
        eos_token_id=sorted(checkpoint.end_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=from_config("decoder_start_token_id"),
    )
    for part in model.modules():
        if isinstance(getattr(part, "generation_config", None), transformers.GenerationConfig):
            part.generation_config = config
    return config


def image_token_ids_of(checkpoint: Checkpoint) -> frozenset[int]:
    """Return the ids that mark an image in a prompt, as far as model and processor say."""
    config = checkpoint.model.config
    found = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    found.append(getattr(checkpoint.processor, "image_token_id", None))
    return frozenset(i for i in found if isinstance(i, int))


def accepted_keys(model: Any) -> frozenset[str]:
    """Return the inputs by name that `generate` lets through to this model."""
    methods = (model.forward, model.prepare_inputs_for_generation, type(model).generate)
    return frozenset(name for method in methods for name in inspect.signature(method).parameters)


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move tensors, in dicts and lists too, to the device; pixels and other floats to the model's dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {key: moved(part, device, dtype) for key, part in value.items()}
    return [moved(part, device, dtype) for part in value] if isinstance(value, list) else value
