"""Build tiny checkpoints of real architectures, with random weights, a real processor and a real tokenizer.

Knows configurations of transformers; knows nothing of captioners. Each builder writes an ordinary checkpoint folder,
which the tests load through the engine like any other. The weights are scaled so that the logits hang on the picture.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from vlmgate.data import ImageFile, Picture

SIZES = [(64, 64), (130, 40), (40, 120), (33, 77), (160, 96)]  # of pictures that make batches uneven
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<end>")
HIDDEN = 48
EXTRA_TOKENS = 1152  # PaliGemma's processor adds 1,024 places and 128 segments to any tokenizer
_CORPUS = [
    "Describe the part in this inspection image and any defect in one short sentence.",
    "a brushed steel washer with a scratch near the edge, a plate without a defect, a dent, rust, a crack, a stain.",
    "User: Assistant: the gear is clean and has no chipped tooth at the lower left of the hex nut",
]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def chat_template(image: str) -> str:
    """Return a chat template that marks an image with this text."""
    return CHAT_TEMPLATE.replace("IMAGE", image)


def tokenizer(extra: tuple[str, ...] = (), *, bos: bool = True, **named: str) -> Any:
    """Train a small byte-pair tokenizer; `extra` and `named` are further special tokens."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted({piece for text in _CORPUS for piece in text.replace(" ", "Ġ")} | set("0123456789:\n'Ċ"))
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=[*SPECIAL, *extra], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
        )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<end>", *extra],
        **({"extra_special_tokens": named} if named else {}),
    )


def strengthen(model: Any, image: float = 1.5, embed: float = 0.6, head: float = 2.0) -> None:
    """Draw weights large enough that pictures matter; `image` scales their features, `head` the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                fan_in = weight[0].numel()
                scale = embed if "embed" in name else 1.6 / math.sqrt(fan_in)
                if "projector" in name or "connector" in name or "merger" in name:
                    scale *= image
                if "lm_head" in name:
                    scale *= head
                weight.normal_(0.0, scale, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)


def _save(folder: Path, model: Any, processor: Any) -> None:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def _save_parts(folder: Path, model: Any, images: Any, tok: Any, template: str, **processor: Any) -> None:
    """Save as on the hub: the parts and the name of their processor, which cannot be made here without torchvision."""
    for part in (model.eval(), images, tok):
        part.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "processor_config.json").write_text(json.dumps(processor))


def _text(vocabulary: int, **more: Any) -> dict[str, Any]:
    """Return what a tiny decoder's configuration needs, whatever the family."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN // 4,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | more


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    } | more


def llava(folder: Path, **text: Any) -> None:
    """SigLIP and Llama: one square per picture."""
    tok = tokenizer()
    config = tf.LlavaConfig(
        vision_config=tf.SiglipVisionConfig(**_vision(vision_use_head=False)),
        text_config=tf.LlamaConfig(**_text(len(tok), **text)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=16,
    )
    model = tf.LlavaForConditionalGeneration(config)
    strengthen(model)
    images = tf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = tf.LlavaProcessor(
        images, tok, patch_size=8, vision_feature_select_strategy="full", chat_template=chat_template("<image>\n")
    )
    _save(folder, model, processor)


def idefics3(folder: Path) -> None:
    """Several tiles per picture, as many as its shape asks for; prompts of different lengths in one batch."""
    grid = tuple(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))
    tok = tokenizer(("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *grid))
    config = tf.Idefics3Config(
        vision_config=_vision(),
        text_config={"model_type": "llama", **_text(len(tok))},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    model = tf.Idefics3ForConditionalGeneration(config)
    strengthen(model)
    images = tf.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = tf.Idefics3Processor(images, tok, image_seq_len=4, chat_template=chat_template("<image>"))
    _save(folder, model, processor)


def qwen2_5_vl(folder: Path) -> None:
    """M-RoPE: positions in three dimensions, and as many patches as the picture's own size gives."""
    tok = tokenizer(("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"), bos=False)
    ids = {name: tok.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    config = tf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
        },
        text_config=_text(len(tok), rope_parameters={"rope_type": "default", "mrope_section": [2, 2, 2]}),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
    )
    model = tf.Qwen2_5_VLForConditionalGeneration(config)
    strengthen(model)
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 24}
    )
    template = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
    _save_parts(folder, model, images, tok, template, processor_class="Qwen2_5_VLProcessor")


def qwen3_5(folder: Path) -> None:
    """Linear attention, whose state is no list of keys and values, between layers of the usual kind; M-RoPE again."""
    tok = tokenizer(("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"), bos=False)
    config = tf.Qwen3_5Config(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
        },
        text_config=_text(
            len(tok),
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tok.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
    )
    model = tf.Qwen3_5ForConditionalGeneration(config)
    strengthen(model, image=4.0)
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 24}
    )
    template = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
    _save_parts(folder, model, images, tok, template, processor_class="Qwen3VLProcessor")


def internvl(folder: Path) -> None:
    """Tiles again, and a processor with a video half."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<ctx>"}
    tok = tokenizer((*names.values(), "<video>"), bos=False, video_token="<video>", **names)
    config = tf.InternVLConfig(
        vision_config=_vision(image_size=(32, 32), patch_size=(8, 8)),
        text_config={"model_type": "qwen2", **_text(len(tok))},
        image_token_id=tok.convert_tokens_to_ids("<ctx>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = tf.InternVLForConditionalGeneration(config)
    strengthen(model)
    images = tf.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6)
    template = chat_template("<ctx>\n")
    _save_parts(folder, model, images, tok, template, processor_class="InternVLProcessor", image_seq_length=4)


def gemma3(folder: Path) -> None:
    """Sliding-window layers, with a window shorter than the prompt; an image attends to itself both ways."""
    tok = tokenizer(("<boi>", "<eoi>", "<soft>"), boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    config = tf.Gemma3Config(
        vision_config=_vision(),
        text_config=_text(
            len(tok),
            num_hidden_layers=3,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=12,
            tie_word_embeddings=False,
        ),
        tie_word_embeddings=False,  # tied, a random model says its last token again and again
        mm_tokens_per_image=4,
        boi_token_index=tok.convert_tokens_to_ids("<boi>"),
        eoi_token_index=tok.convert_tokens_to_ids("<eoi>"),
        image_token_index=tok.convert_tokens_to_ids("<soft>"),
    )
    model = tf.Gemma3ForConditionalGeneration(config)
    strengthen(model, embed=0.1)
    images = tf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=4)
    processor = tf.Gemma3Processor(images, tok, chat_template=chat_template("<boi>"), image_seq_length=4)
    _save(folder, model, processor)


def paligemma(folder: Path) -> None:
    """No chat template; the whole prompt attends both ways."""
    tok = tokenizer(bos=False)
    config = tf.PaliGemmaConfig(
        vision_config=_vision(projection_dim=HIDDEN, vision_use_head=False),
        text_config={"model_type": "gemma", **_text(len(tok) + EXTRA_TOKENS, tie_word_embeddings=False)},
        tie_word_embeddings=False,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    model = tf.PaliGemmaForConditionalGeneration(config)
    strengthen(model, image=4.0, embed=0.1)
    images = tf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    _save(folder, model, tf.PaliGemmaProcessor(images, tok))


def florence2(folder: Path) -> None:
    """Encoder and decoder; the picture is read by the encoder only."""
    tok = tokenizer(image_token="<image>")
    config = tf.Florence2Config(
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
            "projection_dim": HIDDEN,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(tok),
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )
    model = tf.Florence2ForConditionalGeneration(config)
    strengthen(model, head=1.2)
    images = tf.CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, crop_size={"height": 32, "width": 32}
    )
    images.image_seq_length = 17
    _save(folder, model, tf.Florence2Processor(images, tok))


FAMILIES: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "idefics3": idefics3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_5": qwen3_5,
    "internvl": internvl,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "florence2": florence2,
}


@cache
def build(family: str, root: Path) -> Path:
    """Build a family's checkpoint under `root`, once a run."""
    folder = root / family
    torch.manual_seed(0)
    FAMILIES[family](folder)
    return folder


def picture(index: int, size: tuple[int, int], content: int | None = None) -> Picture:
    """Paint coarse random squares; `content` gives another picture's squares under this one's name."""
    squares = np.random.default_rng(index if content is None else content).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rgb = Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)
    name = f"{index}.png"
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Picture(ImageFile(name, Path(name), sha256, 1, 1, *size, "RGB", None, 1, 1), rgb)


def images(pictures: Sequence[Picture]) -> list[Image.Image]:
    """Return what a model looks at."""
    return [one.rgb for one in pictures]


def copied(engine: Any) -> Any:
    """Return an engine over the same model that can be changed without changing this one."""
    other = copy.copy(engine)
    other._runner = copy.copy(engine._runner)
    return other


def in_float64(engine: Any) -> Any:
    """Make an engine compute in float64, so that the batch cannot change a token.

    In float32 a logit's last digit depends on how many rows are multiplied at once. A uniform that falls within some
    1e-6 of the border between two tokens then picks the one or the other: one draw in some ten thousand on weights as
    random as these, and another one on another CPU.
    """
    checkpoint = engine._runner.checkpoint
    engine._runner.checkpoint = dataclasses.replace(checkpoint, model=checkpoint.model.double(), dtype=torch.float64)
    return engine
