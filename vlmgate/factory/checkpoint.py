"""The untrained model with its tokenizer and processor, and the files of the trained one.

Start with `build_processor` and `build_model`; `export` writes an ordinary transformers checkpoint, `write_reference`
adds what novelty is measured against. The heavy packages are imported when they are needed.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmgate.config import ABSTENTION, ModelConfig, SamplingConfig
from vlmgate.data import ImageFile, Picture
from vlmgate.factory.captions import FULL, INSTRUCTIONS, NUM_WORDINGS, SOUND, some_captions
from vlmgate.factory.render import Wanted, render
from vlmgate.factory.world import CLEAN, VIEW_SIZE

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

INPUT_SIZE = VIEW_SIZE
PATCH = 24  # pixels
_REFERENCE_STREAM = 5  # first word of the seeds of the renders that novelty is measured against
_SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'User: ' if message['role'] == 'user' else 'Assistant:\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<image>\\n' }}{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the model is."""

    width: int = 192
    vision_layers: tuple[int, ...] = (2, 2, 6)  # per stage; each halves the grid and doubles the width
    vision_heads: tuple[int, ...] = (2, 3, 6)
    text_layers: int = 4
    text_heads: int = 3
    text_inner: int = 512


def _prompts() -> list[str]:
    """Return what the model is asked, often enough for its words to become tokens."""
    questions = [
        replace(FULL, choices=(*FULL.choices, *SOUND), wording=wording).text() for wording in range(NUM_WORDINGS)
    ]
    answers = [f"Assistant:\n{word}" for word in (*FULL.choices, *SOUND, ABSTENTION)]
    return [*(f"User: \n{text}\nAssistant:\n" for text in (*INSTRUCTIONS, *questions)), *answers] * 400


def build_processor() -> Any:
    """Return the processor: an image processor, a byte-level tokenizer made from the grammar, a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([*some_captions(), *_prompts()], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    image_processor = SiglipImageProcessorPil(size={"height": INPUT_SIZE, "width": INPUT_SIZE}, resample=3)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=_CHAT_TEMPLATE,
        num_additional_image_tokens=0,
    )


def build_model(processor: Any, shape: Shape = Shape()) -> Any:
    """Return an untrained model that fits `processor`; its weights come from torch's global generator."""
    from transformers import GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SwinConfig

    tokenizer = processor.tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    vision = SwinConfig(
        image_size=INPUT_SIZE,
        patch_size=PATCH // 2 ** (len(shape.vision_layers) - 1),
        embed_dim=shape.width // 2 ** (len(shape.vision_layers) - 1),
        depths=list(shape.vision_layers),
        num_heads=list(shape.vision_heads),
        window_size=5,
        use_absolute_embeddings=True,
        drop_path_rate=0.0,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.text_inner,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        num_key_value_heads=shape.text_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=(INPUT_SIZE // PATCH) ** 2,
        tie_word_embeddings=True,
        **ids,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def export(model: nn.Module, processor: Any, folder: Path) -> None:
    """Write the checkpoint in bfloat16."""
    import torch

    small: Any = copy.deepcopy(model).to("cpu", torch.bfloat16)
    small.config.dtype = torch.bfloat16
    small.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_reference(weights: Path, count: int = 3_000) -> Path:
    """Write `novelty.npz`, made from `count` clean renders, into a checkpoint's folder and return its path."""
    from vlmgate.captioner import load_captioner
    from vlmgate.captioner.location import weights_digest
    from vlmgate.scores.novelty import Reference

    captioner = load_captioner(ModelConfig(model=str(weights)), SamplingConfig(batch_size=16))
    drawn = (render((_REFERENCE_STREAM, i), Wanted(degradation=CLEAN)).image for i in range(count))
    features = captioner.look([picture_of(i, image) for i, image in enumerate(drawn)])  # as a scan sees them
    path = weights / "novelty.npz"
    replace(Reference.fit(np.array(features, np.float32)), weights=weights_digest(weights)).save(path)
    return path


def picture_of(number: int, image: Image.Image) -> Picture:
    """Return a render as a captioner takes it, with the digest of its pixels in the place of a file's."""
    name = f"render_{number:05d}"
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return Picture(ImageFile(name, Path(name), digest, 1, 1, *image.size, "RGB", None, 0, 0), image)
