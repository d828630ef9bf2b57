"""What training asks of the model, as losses, and what turns and mirrors do to the labels.

Knows torch and labels; knows nothing of files, schedules or renders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vlmgate.builtin.captions import INSTRUCTIONS, KEY_WORDS, random_caption
from vlmgate.builtin.dataset import NO_POSITION, RenderedSet
from vlmgate.builtin.world import CONDITIONS, FINISHES, PARTS, POSITIONS, Truth

_SHARE = 8  # of 255: a patch with less of the defect than this does not count as showing it
_KEY_WEIGHT = 3.0  # of a word on which the meaning hangs, against 1 for the frame around it
_SOUND_PATCH_WEIGHT = 0.15  # most patches show no defect
_NOT_A_TARGET = -100


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B images with their labels, turned and mirrored at random."""

    pixels: Tensor  # (B, 3, 160, 160) in [-1, 1]
    labels: Tensor  # (B, 4) part, finish, condition, position
    patches: Tensor  # (B, 100) condition of each patch


class Heads(nn.Module):
    """Read all four labels from the mean patch, and the condition from every patch; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.image = nn.ModuleList(
            nn.Linear(width, count) for count in (len(PARTS), len(FINISHES), len(CONDITIONS), len(POSITIONS) + 1)
        )
        self.patch = nn.Linear(width, len(CONDITIONS))

    def forward(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the logits of the image labels, and of each patch (B, 100, 8); features are (B, 100, width)."""
        features = self.norm(features.float())
        mean = features.mean(dim=1)
        return [head(mean) for head in self.image], self.patch(features)


def draw_batch(data: RenderedSet, picked: NDArray[np.int64], rng: np.random.Generator | None, device: str) -> Batch:
    """Return the images `picked`, each in one of the eight ways to lay a square if `rng` is given."""
    count = len(picked)
    images, patches = data.images[picked], data.patches[picked]
    labels = data.labels[picked].copy()
    if rng is not None:
        ways = rng.integers(8, size=count)
        for i, way in enumerate(ways):
            images[i], patches[i] = _lay(images[i], way), _lay(patches[i], way)
        labels[:, 3] = _MOVED[ways, labels[:, 3]]
    flat = patches.reshape(count, -1)
    shows = (flat >= _SHARE) | ((flat > 0) & (flat == flat.max(axis=1, keepdims=True)))
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Batch(
        pixels.contiguous(),
        torch.from_numpy(labels).to(device),
        torch.from_numpy(np.where(shows, labels[:, 2:3], 0)).to(device),
    )


def _lay(square: NDArray[Any], way: int) -> NDArray[Any]:
    """Return `square` transposed and mirrored as the three bits of `way` say."""
    if way & 4:
        square = np.swapaxes(square, 0, 1)
    if way & 2:
        square = square[::-1]
    if way & 1:
        square = square[:, ::-1]
    return square.copy()


def _moved_positions() -> NDArray[np.int64]:
    """Return (8, 10): where each position lies after each way to lay the image."""
    grid = np.arange(9).reshape(3, 3)
    table = np.full((8, NO_POSITION + 1), NO_POSITION)
    for way in range(8):
        table[way, _lay(grid, way).ravel()] = np.arange(9)
    return table


_MOVED = _moved_positions()


def read_features(model: Any, pixels: Tensor) -> Tensor:
    """Return the patch features that the language model is given, before projection: (B, 100, width)."""
    features: Tensor = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return features


def vision_loss(heads: Heads, features: Tensor, batch: Batch) -> Tensor:
    """Return the loss of the throw-away heads; lower is better."""
    image_logits, patch_logits = heads(features)
    whole = [functional.cross_entropy(logits, batch.labels[:, i]) for i, logits in enumerate(image_logits)]
    weight = torch.where(batch.patches > 0, 1.0, _SOUND_PATCH_WEIGHT).flatten()
    every = functional.cross_entropy(patch_logits.flatten(0, 1), batch.patches.flatten(), reduction="none")
    dense = (every * weight).sum() / weight.sum()
    return 0.3 * whole[0] + 0.3 * whole[1] + whole[2] + 0.7 * whole[3] + 2 * dense


class CaptionTask:
    """Turns truths into token rows by the chat template that inference uses, and scores the model on them."""

    def __init__(self, processor: Any) -> None:
        tokenizer = processor.tokenizer
        self._tokenizer = tokenizer
        self._image = tokenizer.convert_tokens_to_ids("<image>")
        self._prefixes = [self._prefix(processor, text) for text in INSTRUCTIONS]
        words = {tokenizer.decode([i]).strip() for i in range(len(tokenizer))} & KEY_WORDS
        self._key = torch.tensor([tokenizer.decode([i]).strip() in words for i in range(len(tokenizer))])

    def _prefix(self, processor: Any, text: str) -> tuple[list[int], list[int]]:
        """Return the tokens before and after the image."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        tokens = self._tokenizer.encode(chat, add_special_tokens=False)
        at = tokens.index(self._image)
        return tokens[:at], tokens[at + 1 :]

    def loss(self, model: Any, features: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the loss of captions drawn from `rng`, per token; lower is better."""
        device = features.device
        before, after = self._prefixes[int(rng.integers(len(self._prefixes)))]
        rows = [
            [*self._tokenizer.encode(random_caption(_truth(row), rng)), self._tokenizer.eos_token_id]
            for row in labels.tolist()
        ]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [_NOT_A_TARGET] * (longest - len(row)) for row in rows], device=device)  # (B, T)
        embed = model.get_input_embeddings()
        start, end = (embed(torch.tensor(part, device=device)).expand(len(rows), -1, -1) for part in (before, after))
        fed = embed(tokens[:, :-1].clamp(min=0))
        image = model.model.multi_modal_projector(features).to(fed.dtype)
        states = model.model.language_model(inputs_embeds=torch.cat([start, image, end, fed], 1)).last_hidden_state
        logits = model.lm_head(states[:, -longest:]).float()  # (B, T, vocabulary)
        every = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        key = self._key.to(device)[tokens.clamp(min=0)]
        weight = torch.where(key, _KEY_WEIGHT, 1.0).flatten() * (tokens != _NOT_A_TARGET).flatten()
        return (every * weight).sum() / weight.sum()


def _truth(row: list[int]) -> Truth:
    part, finish, condition, position = row
    return Truth(
        PARTS[part],
        FINISHES[finish],
        CONDITIONS[condition],
        None if position == NO_POSITION else POSITIONS[position],
    )


def head_accuracy(heads: Heads, features: Tensor, batch: Batch) -> NDArray[np.int64]:
    """Return (B, 4): 1 where the throw-away heads are right."""
    image_logits, _ = heads(features)
    right = [logits.argmax(-1) == batch.labels[:, i] for i, logits in enumerate(image_logits)]
    return torch.stack(right, dim=1).long().cpu().numpy()
