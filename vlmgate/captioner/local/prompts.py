"""Put a prompt and pictures into the form a checkpoint's processor wants; start with `PromptEncoder`.

How a processor wants its image marked differs by family and is written down nowhere, so the forms are tried once on two
blank pictures.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from vlmgate.errors import ModelError, shorten

logger = logging.getLogger(__name__)

# By-products of tokenizers that many models do not take and `generate` therefore refuses.
OPTIONAL_KEYS = frozenset({"labels", "mm_token_type_ids", "special_tokens_mask", "token_type_ids"})


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
        _prepare_tokenizer(processor.tokenizer, padding_side)
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
        if self._image_token_ids:
            marks = torch.isin(ids, torch.tensor(sorted(self._image_token_ids)))
            if not bool(marks.any(-1).all()):
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

    Plain comes first because the processors that accept it put the image in themselves, and would do so twice.
    """
    marks = _marks(processor)
    listed = [{"type": "image"}, {"type": "text", "text": prompt}]
    for owner in (processor, processor.tokenizer):
        template = getattr(owner, "chat_template", None)
        if not template:
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


def _prepare_tokenizer(tokenizer: Any, padding_side: str) -> None:
    tokenizer.padding_side = padding_side
    if tokenizer.pad_token_id is None:  # padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
