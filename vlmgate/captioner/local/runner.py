"""Run batches of pictures through a loaded checkpoint: prompts, inputs, prefill, decoding, and tokens put into words.

Start with `Runner`. How a processor wants its image marked in the prompt differs by family and is written down nowhere,
so `PromptEncoder` tries the forms once on two blank pictures.
"""

from __future__ import annotations

import copy
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from vlmgate.captioner.local.checkpoint import Checkpoint, quiet
from vlmgate.captioner.local.features import FeatureTap
from vlmgate.captioner.local.fork import ForkDecoder, Pick, Sampler, Warp
from vlmgate.captioner.local.layers import attention_in_blocks
from vlmgate.captioner.local.packed import PackedDecoder
from vlmgate.captioner.local.recorded import RecordedDecoder, Recordings
from vlmgate.captioner.streams import Stream, uniforms
from vlmgate.config import SamplingConfig
from vlmgate.data import Caption, Finish, Picture, Times
from vlmgate.errors import ModelError, shorten

logger = logging.getLogger(__name__)

# By-products of tokenizers that many models do not take and `generate` therefore refuses.
OPTIONAL_KEYS = frozenset({"labels", "mm_token_type_ids", "special_tokens_mask", "token_type_ids"})


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
        # One thread may encode while another one puts tokens into words.
        self.encodes_ahead = self._tokenizer is not checkpoint.processor.tokenizer
        self._generation = own_generation_config(checkpoint, sampling.max_new_tokens)
        self._image_keys = frozenset(checkpoint.processor.image_processor.model_input_names)
        model = checkpoint.model
        methods = (model.forward, model.prepare_inputs_for_generation, type(model).generate)  # their inputs by name
        self._accepted = frozenset(name for method in methods for name in inspect.signature(method).parameters)

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

        Packing feeds few rows through many small kernels. Launched one by one they took 1.2 times as long as the fork
        on an H200, replayed 0.16 to 0.34 times as long (the draw not recorded).
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
        drawing = decoder.seconds + (decoder.then.decoder.seconds if decoder.then is not None else 0.0)
        self.spend(time.perf_counter() - begun - drawing, drawing)

    def spend(self, vision_and_prefill: float, decoding: float) -> None:
        """Add seconds to the times."""
        self.times = Times(self.times.vision_and_prefill + vision_and_prefill, self.times.decoding + decoding)

    def _image_tokens(self, inputs: dict[str, Any]) -> list[int]:
        """Return how many image tokens each prompt of a batch holds; 1 each where that cannot be seen."""
        ids = inputs["input_ids"]
        found = torch.isin(ids, torch.tensor(sorted(self.image_ids))).sum(-1).tolist() if self.image_ids else None
        return found or [1] * len(ids)

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

    `generate` would fill what is left open from the model's own. Only the ids of structural tokens are kept.
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


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move tensors, in dicts and lists too, to the device; pixels and other floats to the model's dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {key: moved(part, device, dtype) for key, part in value.items()}
    return [moved(part, device, dtype) for part in value] if isinstance(value, list) else value


# --- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """One way of calling a processor."""

    text: str  # the whole prompt, image placeholder included where the processor wants one
    nested: bool  # images as one list per text, or as one flat list
    options: tuple[tuple[str, Any], ...]  # further keyword arguments of the processor


def trial_images() -> list[Image.Image]:
    """Return two images with something on them, of shapes so different that their prompts are often of two lengths."""
    ramp = Image.linear_gradient("L")
    colours = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    return [colours.resize((192, 64)), colours.resize((96, 96))]


class PromptEncoder:
    """Turn pictures into model inputs with one fixed prompt."""

    def __init__(self, processor: Any, prompt: str, *, padding_side: str, image_token_ids: frozenset[int]) -> None:
        self._processor = processor
        self._padding_side = padding_side
        self._image_token_ids = image_token_ids
        tokenizer = processor.tokenizer
        tokenizer.padding_side = padding_side
        if tokenizer.pad_token_id is None:  # padding is masked, so any token will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        self.form = self._find_form(prompt)

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the inputs of B pictures as CPU tensors; raises whatever the processor raises."""
        inputs = self._call(self.form, images)
        mask = inputs.get("attention_mask")
        if self._padding_side == "left" and mask is not None and not bool(mask[:, -1].all()):
            raise ModelError("The processor pads on the right, which breaks decoding in batches. Use --batch-size 1.")
        return inputs

    def _call(self, form: Form, images: Sequence[Image.Image]) -> dict[str, Any]:
        inputs = self._processor(
            text=[form.text] * len(images),
            images=[[image] for image in images] if form.nested else list(images),
            padding=True,
            return_tensors="pt",
            **dict(form.options),
        )
        return dict(inputs)

    def _find_form(self, prompt: str) -> Form:
        blanks = [Image.new("RGB", (96, 64), (127, 127, 127)), Image.new("RGB", (64, 96), (127, 127, 127))]
        failures: list[Exception] = []
        for form in self._forms(prompt):
            try:
                ids = self._ids(form, blanks)
            except Exception as error:
                logger.debug("prompt form %r was refused: %s", form, shorten(error))
                failures.append(error)
            else:
                form = self._spelt_out(form, ids, prompt, blanks)
                logger.info("prompt form: %r", form)
                return form
        reason = shorten(failures[0]) if failures else "it has no tokenizer"
        raise ModelError(
            f"{type(self._processor).__name__} takes an image with this prompt in no known form ({reason}). "
            "Check that the processor's files belong to this model."
        ) from (failures[0] if failures else None)

    def _spelt_out(self, form: Form, ids: torch.Tensor, prompt: str, blanks: list[Image.Image]) -> Form:
        """Mark the image in the text where that comes to the same: PaliGemma's processor warns at every call if not."""
        if form.text == prompt:
            for mark in _marks(self._processor):
                marked = replace(form, text=mark + prompt)
                try:
                    if torch.equal(self._ids(marked, blanks), ids):
                        return marked
                except Exception as error:
                    logger.debug("prompt form %r was refused: %s", marked, shorten(error))
        return form

    def _ids(self, form: Form, blanks: list[Image.Image]) -> torch.Tensor:
        """Return the token ids of a form; raises unless they are one prompt per picture with an image in each."""
        ids: torch.Tensor = self._call(form, blanks)["input_ids"]
        if ids.shape[0] != len(blanks):
            raise ValueError(f"{ids.shape[0]} prompts came back for {len(blanks)} pictures")
        marks = torch.tensor(sorted(self._image_token_ids))
        if len(marks) and not bool(torch.isin(ids, marks).any(-1).all()):
            raise ValueError("the prompt holds no image")
        return ids

    def _forms(self, prompt: str) -> Iterator[Form]:
        padding = (("padding_side", self._padding_side),)
        for text in _texts(self._processor, prompt):
            # A template that writes the beginning-of-sequence token itself must not get a second one.
            bos = getattr(self._processor.tokenizer, "bos_token", None)
            special = (("add_special_tokens", False),) if bos and text.startswith(bos) else ()
            for options in (special + padding, special):  # processors of a repository's own may not know the latter
                for nested in (True, False):
                    yield Form(text, nested, options)


def length_varies(encode: PromptEncoder) -> bool:
    """Tell whether pictures of other shapes have prompts of another length, as far as a few of them tell."""
    shapes = ((64, 64), (192, 64), (64, 192), (640, 480), (1600, 1200))
    try:
        lengths = {encode([Image.new("RGB", shape, (127, 127, 127))])["input_ids"].shape[1] for shape in shapes}
    except Exception as error:  # some shapes are too narrow for some models
        logger.debug("the lengths of prompts were not told apart: %s", error)
        return True
    return len(lengths) > 1


def copied_tokenizer(tokenizer: Any) -> Any:
    """Return a copy that can decode while the original encodes in another thread; the original if it has no copy."""
    try:
        return copy.deepcopy(tokenizer)
    except Exception as error:  # a tokenizer of the checkpoint's own
        logger.info("the tokenizer cannot be copied: %s", error)
        return tokenizer


def _texts(processor: Any, prompt: str) -> Iterator[str]:
    """Yield the prompt as the processor's chat template writes it, then plain, then with the image marked.

    Processors that accept it plain put the image in themselves, and would do so twice.
    """
    marks = _marks(processor)
    listed = [{"type": "image"}, {"type": "text", "text": prompt}]
    for owner in (processor, processor.tokenizer):
        if not (template := getattr(owner, "chat_template", None)):
            continue
        for content in (listed, *(f"{mark}\n{prompt}" for mark in marks)):
            text = _render(owner.apply_chat_template, str(template), content)
            if text is not None and prompt.strip() in text and text.count("'type':") == prompt.count("'type':"):
                yield text
        logger.warning("the chat template of %s fits no image with a prompt", type(owner).__name__)
    yield prompt
    yield from (mark + prompt for mark in marks)


def _marks(processor: Any) -> list[str]:
    """Return the texts that may stand for an image in a prompt, likeliest first."""
    places = ((processor, "boi_token"), (processor, "image_token"), (processor.tokenizer, "image_token"))
    found = [getattr(owner, name, None) for owner, name in places]
    return list(dict.fromkeys(str(mark) for mark in found if mark))


def _render(apply: Callable[..., Any], template: str, content: object) -> str | None:
    """Return the chat template's text for one user turn, or None where the template refuses it."""
    # Models that think aloud by default would spend every token on it.
    switches = {"enable_thinking": False} if "enable_thinking" in template else {}
    turn = [{"role": "user", "content": content}]
    try:
        return str(apply(turn, add_generation_prompt=True, tokenize=False, **switches))
    except Exception as error:  # templates raise what they like
        logger.debug("the chat template refused %r: %s", content, shorten(error))
        return None
