"""The naive route: a plain forward over prompt and tokens, of one image alone: no cache, no padding, no fork.

Nothing in it can put a text on the wrong image or shift a position, so the engine's logits are compared with its own.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import Draw
from vlmgate.captioner.local.runner import PromptEncoder, moved
from vlmgate.data import Picture

TOLERANCE = 1e-4  # logits, float32
LOOSE = 1e-3  # for linear attention, where step by step and in chunks are two algorithms


def tolerance(captioner: TransformersCaptioner) -> float:
    return LOOSE if "Qwen3_5" in captioner.info.architecture else TOLERANCE


class Forced:
    """A `Pick` that draws given tokens (R, T), and keeps the logits of every step; NaN where they were not computed."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self._seen: list[torch.Tensor] = []

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        padded = torch.full((len(self.tokens), logits.shape[-1]), torch.nan, dtype=logits.dtype)
        padded[rows] = logits
        self._seen.append(padded)
        return Draw(self.tokens[rows, step], torch.zeros(len(rows)), torch.ones(len(rows), dtype=torch.bool))

    @property
    def logits(self) -> torch.Tensor:
        return torch.stack(self._seen, dim=1)  # (R, T, V)


def naive_logits(
    captioner: TransformersCaptioner, picture: Picture, forced: torch.Tensor, encode: PromptEncoder | None = None
) -> torch.Tensor:
    """Return the (T, V) logits that follow the prompt and each of T - 1 forced tokens."""
    model: Any = captioner._runner.checkpoint.model
    inputs = moved(
        (encode or captioner._runner.encode)([picture.rgb]), torch.device("cpu"), captioner._runner.checkpoint.dtype
    )
    inputs.pop("labels", None)
    said = forced[None, :-1]  # (1, T - 1)
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            start = torch.full((1, 1), model.config.get_text_config(decoder=True).decoder_start_token_id)
            logits = model(**inputs, decoder_input_ids=torch.cat([start, said], 1), use_cache=False).logits
            return logits[0]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], said], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        # In PaliGemma type 0 is the prompt, which attends both ways, and type 1 what follows; elsewhere 0 is text.
        kind = int("PaliGemma" in type(model).__name__)
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in inputs:
                inputs[key] = torch.cat([inputs[key], torch.full_like(said, kind)], 1)
        return model(**inputs, use_cache=False).logits[0, -len(forced) :]


def random_tokens(captioner: TransformersCaptioner, rows: int, steps: int) -> torch.Tensor:
    """Return (rows, steps) tokens that are neither special nor the end."""
    generator = torch.Generator().manual_seed(4)
    vocabulary = len(captioner._runner.checkpoint.processor.tokenizer)
    return torch.randint(60, min(vocabulary, 150), (rows, steps), generator=generator)
