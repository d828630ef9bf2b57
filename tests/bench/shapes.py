"""Models of real families and shapes with random weights, inputs for them, and the ways to sample from them.

Built on the device from configurations alone, without tokenizer, processor or files, so that a bench runs anywhere
torch and transformers do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf

from vlmgate.captioner.local.fork import ForkDecoder, Sampler, Warp
from vlmgate.captioner.local.layers import attention_in_blocks
from vlmgate.captioner.local.packed import PackedDecoder
from vlmgate.captioner.local.recorded import RecordedDecoder, Recordings

IMAGE_TOKEN = 7  # any token of the vocabulary will do
PATCH = 14  # pixels
# The other families make one token of four patches.
ONE_TOKEN_A_PATCH = frozenset({"llava", "gemma3", "paligemma"})
WORDS = 24  # tokens of the prompt around the image


@dataclass(frozen=True)
class Shape:
    """A family and the numbers of its decoder; the vision tower goes with the family."""

    name: str
    family: str  # a name of transformers, as in `build`
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    vision: tuple[int, int, int, int] = (1152, 4304, 27, 16)  # hidden, intermediate, layers, heads


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def pixels(shape: Shape, image_tokens: int) -> int:
    """Return the side of a square picture that makes so many tokens (a square number)."""
    side = round(image_tokens**0.5)
    if side * side != image_tokens:
        raise SystemExit(f"{image_tokens} image tokens are no square; give 64, 256, 576 or 1024.")
    return side * PATCH * (1 if shape.family in ONE_TOKEN_A_PATCH else 2)


def build(shape: Shape, image_tokens: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a model with random weights for pictures of so many tokens (a square number)."""
    hidden, intermediate, layers, heads = shape.vision
    text: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape.tied,
    }
    torch.manual_seed(0)
    vision = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": pixels(shape, image_tokens),
        "patch_size": PATCH,
    }
    common = {"image_token_id": IMAGE_TOKEN, "tie_word_embeddings": shape.tied}
    config: Any
    kind: Any
    match shape.family:
        case "llava":
            config = tf.LlavaConfig(
                vision_config=tf.SiglipVisionConfig(**vision, vision_use_head=False),
                text_config=tf.LlamaConfig(**text),
                vision_feature_select_strategy="full",
                vision_feature_layer=-1,
                image_seq_length=image_tokens,
                **common,
            )
            kind = tf.LlavaForConditionalGeneration
        case "idefics3":
            config = tf.Idefics3Config(
                vision_config=vision, text_config={"model_type": "llama", **text}, scale_factor=2, **common
            )
            kind = tf.Idefics3ForConditionalGeneration
        case "internvl":
            square = {"image_size": (vision["image_size"],) * 2, "patch_size": (PATCH, PATCH)}
            config = tf.InternVLConfig(
                vision_config=vision | square,
                text_config={"model_type": "qwen2", **text},
                image_seq_length=image_tokens,
                **common,
            )
            kind = tf.InternVLForConditionalGeneration
        case "gemma3":
            kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(shape.layers)]
            text |= {"sliding_window": 512, "layer_types": kinds, "head_dim": shape.hidden // shape.heads}
            config = tf.Gemma3Config(
                vision_config=vision | {"vision_use_head": False},
                text_config=text,
                mm_tokens_per_image=image_tokens,
                boi_token_index=IMAGE_TOKEN + 2,
                eoi_token_index=IMAGE_TOKEN + 3,
                image_token_index=IMAGE_TOKEN,
                tie_word_embeddings=shape.tied,
            )
            kind = tf.Gemma3ForConditionalGeneration
        case "paligemma":
            config = tf.PaliGemmaConfig(
                vision_config=vision | {"projection_dim": shape.hidden, "vision_use_head": False},
                text_config={"model_type": "gemma", **text, "head_dim": shape.hidden // shape.heads},
                projection_dim=shape.hidden,
                hidden_size=shape.hidden,
                **common,
            )
            kind = tf.PaliGemmaForConditionalGeneration
        case _:
            half = shape.hidden // shape.heads // 2
            third = half * 3 // 8
            text["rope_parameters"] = {"rope_type": "default", "mrope_section": [half - 2 * third, third, third]}
            config = tf.Qwen2_5_VLConfig(
                vision_config={
                    "depth": layers,
                    "hidden_size": hidden,
                    "intermediate_size": intermediate,
                    "num_heads": heads,
                    "patch_size": PATCH,
                    "window_size": 8 * PATCH,
                    "out_hidden_size": shape.hidden,
                    "fullatt_block_indexes": [i for i in range(layers) if i % 8 == 7] or [layers - 1],
                },
                text_config=text,
                video_token_id=IMAGE_TOKEN + 1,
                vision_start_token_id=IMAGE_TOKEN + 2,
                vision_end_token_id=IMAGE_TOKEN + 3,
                **common,
            )
            kind = tf.Qwen2_5_VLForConditionalGeneration
    with _made_on(device, dtype):
        model = kind(config)
    model = model.to(device=device, dtype=dtype).eval()
    model.generation_config = tf.GenerationConfig()
    return model


def inputs_of(shape: Shape, image_tokens: int, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a processor would: B prompts of WORDS tokens and one image each."""
    side = round(image_tokens**0.5)
    generator = torch.Generator().manual_seed(1)
    low = IMAGE_TOKEN + 4
    words = torch.randint(low, shape.vocabulary, (batch, WORDS), generator=generator)
    middle = torch.full((batch, image_tokens), IMAGE_TOKEN)
    before, after = (
        torch.full((batch, 0 if shape.family in ("llava", "paligemma") else 1), IMAGE_TOKEN + i) for i in (2, 3)
    )
    parts = [middle, words] if shape.family == "paligemma" else [words[:, :4], before, middle, after, words[:, 4:]]
    ids = torch.cat(parts, dim=1)
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    size = pixels(shape, image_tokens)
    if shape.family == "qwen2_5_vl":
        patches = 4 * image_tokens
        found["pixel_values"] = torch.randn(batch * patches, 3 * 2 * PATCH * PATCH, generator=generator).to(dtype)
        found["image_grid_thw"] = torch.tensor([[1, 2 * side, 2 * side]]).expand(batch, -1).contiguous()
        found["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    else:
        found["pixel_values"] = torch.randn(batch, 3, size, size, generator=generator).to(dtype)
    if shape.family == "idefics3":
        found["pixel_values"] = found["pixel_values"][:, None]  # one tile
    if shape.family in ("gemma3", "paligemma"):
        image_is = 1 if shape.family == "gemma3" else 0  # in PaliGemma the whole prompt is of type 0
        found["token_type_ids"] = (ids == IMAGE_TOKEN).int() * image_is
    return {name: value.to(device) for name, value in found.items()}


def ways_of(
    model: Any, inputs: dict[str, Any], samples: int, tokens: int, seed: int = 2
) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; each returns its tokens, B·K rows of them."""
    batch, prompt = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    table = torch.rand(batch * samples, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    table = table.to(device)
    recordings = Recordings()

    pick = Sampler(table, Warp())

    def generate(count: int) -> list[list[int]]:
        settings = tf.GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=tokens, num_return_sequences=count, pad_token_id=0
        )
        with torch.inference_mode():
            said = model.generate(**inputs, generation_config=settings)
        return said[:, prompt:].tolist()

    def decode(kind: Callable[..., ForkDecoder], length: int = tokens) -> list[list[int]]:
        decoder = kind(num_samples=samples, max_new_tokens=length, end_ids=frozenset(), pick=pick)
        settings = tf.GenerationConfig(max_new_tokens=length, do_sample=False, pad_token_id=0)
        with torch.inference_mode(), attention_in_blocks(model):
            model.generate(**inputs, generation_config=settings, custom_generate=decoder)
        return decoder.tokens

    return {
        "naive": lambda: generate(samples),
        "loop": lambda: [row for _ in range(samples) for row in generate(1)],
        "fork": lambda: decode(ForkDecoder),
        "packed": lambda: decode(PackedDecoder),
        "graph": lambda: decode(functools.partial(RecordedDecoder, recordings=recordings)),
        "prefill": lambda: decode(ForkDecoder, 1),
    }
