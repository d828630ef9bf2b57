"""What training asks of the model, as losses, and what turns and mirrors do to the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vlmgate.factory.captions import INSTRUCTIONS, Seen, random_caption, random_question, true_answer
from vlmgate.factory.dataset import MOST, NO_POSITION, UNKNOWN, RenderedSet, truth_of
from vlmgate.factory.world import CONDITIONS, DEFECTS, FINISHES, PARTS, POSITIONS, Truth

_SOUND_PATCH_WEIGHT = 0.15  # most patches show no defect
_NOT_A_TARGET = -100
_SHIFT = 6  # pixels
_LIGHT = 0.06  # of the brightness


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B images with what is true of them, turned and mirrored at random."""

    pixels: Tensor  # (B, 3, V, V) in [-1, 1]
    labels: Tensor  # (B, 2) part, finish
    shown: Tensor  # (B, 7) 1.0 where the part has this defect
    places: Tensor  # (B, 9) 1.0 where a defect lies at this position
    patches: Tensor  # (B, 100) condition of each patch, or `_NOT_A_TARGET`
    truths: tuple[Truth, ...]
    seen: tuple[Seen, ...]


class Heads(nn.Module):
    """Read part, finish, defects and their positions from the mean patch, and the condition from every patch.

    Thrown away after training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.image = nn.ModuleList(
            nn.Linear(width, count) for count in (len(PARTS), len(FINISHES), len(DEFECTS), len(POSITIONS))
        )
        self.patch = nn.Linear(width, len(CONDITIONS))

    def forward(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the logits of the image, and of each patch (B, 100, 8); features are (B, 100, width)."""
        features = self.norm(features.float())
        mean = features.mean(dim=1)
        return [head(mean) for head in self.image], self.patch(features)


def draw_batch(
    data: RenderedSet, picked: NDArray[np.int64], rng: np.random.Generator | None, device: str, truths: bool = True
) -> Batch:
    """Return the images `picked`; if `rng` is given, each in one of the eight ways to lay a square, and moved a little.

    All are moved alike, by at most a quarter of a patch, and each is a little lighter or darker. Without
    `truths`, they and what is seen are left out, which saves time.
    """
    images, patches = data.images(picked).to(device), data.patches(picked).to(device)
    conditions, positions, visibilities = (data[name][picked] for name in ("conditions", "positions", "visibilities"))
    gain = torch.ones((), device=device)
    if rng is not None:
        ways = rng.integers(8, size=len(picked))
        images, patches = _lay_all(images, ways), _lay_all(patches, ways)
        positions = _MOVED[ways[:, None], positions]
        images = images.roll([int(step) for step in rng.integers(-_SHIFT, _SHIFT + 1, 2)], (1, 2))
        light = rng.uniform(1 - _LIGHT, 1 + _LIGHT, (len(picked), 1, 1, 1)).astype(np.float32)
        gain = torch.from_numpy(light).to(device)
    shown = (conditions[:, :, None] == np.arange(1, len(CONDITIONS))).any(axis=1)
    places = (positions[:, :, None] == np.arange(len(POSITIONS))).any(axis=1)
    flat = patches.flatten(1).long()
    pixels = ((images.permute(0, 3, 1, 2).float() * gain).clamp(max=255) / 127.5 - 1).contiguous()
    return Batch(
        pixels=pixels,
        labels=torch.from_numpy(data["labels"][picked]).to(device),
        shown=torch.from_numpy(shown.astype(np.float32)).to(device),
        places=torch.from_numpy(places.astype(np.float32)).to(device),
        patches=torch.where(flat == UNKNOWN, _NOT_A_TARGET, flat),
        truths=tuple(map(truth_of, data["labels"][picked], conditions, positions)) if truths else (),
        seen=tuple(map(_seen, conditions, visibilities, data["ghosts"][picked])) if truths else (),
    )


def _lay_all(squares: Tensor, ways: NDArray[np.int64]) -> Tensor:
    """Return each of (B, S, S, ...) laid in its way."""
    chosen = torch.from_numpy(ways).to(squares.device).view(-1, *[1] * (squares.ndim - 1))
    squares = torch.where((chosen & 4) > 0, squares.transpose(1, 2), squares)
    squares = torch.where((chosen & 2) > 0, squares.flip(1), squares)
    return torch.where((chosen & 1) > 0, squares.flip(2), squares)


def _seen(conditions: NDArray[np.int64], visibilities: NDArray[np.float32], ghost: float) -> Seen:
    there = [i for i in range(MOST) if conditions[i]]
    return Seen(
        tuple(CONDITIONS[conditions[i]] for i in there), tuple(float(visibilities[i]) for i in there), float(ghost)
    )


def _moved_positions() -> NDArray[np.int64]:
    """Return (8, 10): where each position lies after each way to lay the image."""
    laid = _lay_all(torch.arange(9).view(1, 3, 3).expand(8, 3, 3), np.arange(8)).flatten(1)
    return np.pad(laid.argsort(dim=1).numpy(), ((0, 0), (0, 1)), constant_values=NO_POSITION)


_MOVED = _moved_positions()


def read_features(model: Any, pixels: Tensor) -> Tensor:
    """Return the patch features that the language model is given, before projection: (B, 100, width)."""
    features: Tensor = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return features


def vision_loss(heads: Heads, features: Tensor, batch: Batch) -> Tensor:
    """Return the loss of the throw-away heads; lower is better."""
    (part, finish, defects, places), patch_logits = heads(features)
    every = functional.cross_entropy(patch_logits.flatten(0, 1), batch.patches.flatten(), reduction="none")
    weight = torch.where(batch.patches > 0, 1.0, torch.where(batch.patches == 0, _SOUND_PATCH_WEIGHT, 0.0)).flatten()
    dense = (every * weight).sum() / weight.sum()
    return (
        0.3 * functional.cross_entropy(part, batch.labels[:, 0])
        + 0.3 * functional.cross_entropy(finish, batch.labels[:, 1])
        + 4 * functional.binary_cross_entropy_with_logits(defects, batch.shown)
        + 2 * functional.binary_cross_entropy_with_logits(places, batch.places)
        + 2 * dense
    )


Example = tuple[list[int], list[int], list[int]]  # tokens before and after the image, and what is to be said
_PLACE = "(text)"


class LanguageTask:
    """Turns truths into token rows by the chat template that inference uses, and scores the model on them."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image = self._tokenizer.convert_tokens_to_ids("<image>")
        content = [{"type": "image"}, {"type": "text", "text": _PLACE}]
        chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        self._frame = chat.split(_PLACE)  # the template, once: thousands of questions are asked
        self._instructions = self._prompts(INSTRUCTIONS)

    def _prompts(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Return the tokens before and after the image."""
        tokens = self._encoded([self._frame[0] + text + self._frame[1] for text in texts])
        return [(row[: row.index(self._image)], row[row.index(self._image) + 1 :]) for row in tokens]

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []

    def _targets(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*row, self._tokenizer.eos_token_id] for row in self._encoded(texts)]

    def caption_rows(self, truths: Sequence[Truth], rng: np.random.Generator) -> list[Example]:
        """Return instructions and captions drawn from `rng`."""
        asked = [self._instructions[int(rng.integers(len(self._instructions)))] for _ in truths]
        said = self._targets([random_caption(truth, rng) for truth in truths])
        return [(*prompt, target) for prompt, target in zip(asked, said, strict=True)]

    def answer_rows(self, seen: Sequence[Seen], rng: np.random.Generator) -> list[Example]:
        """Return questions drawn from `rng` and their true answers."""
        asked = [random_question(one, rng) for one in seen]
        prompts = self._prompts([question.text() for question in asked])
        answers = self._targets([true_answer(question, one) for question, one in zip(asked, seen, strict=True)])
        return [(*prompt, target) for prompt, target in zip(prompts, answers, strict=True)]

    def caption_loss(self, model: Any, features: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the loss of captions, per token; lower is better."""
        return self._loss(model, features, rows).mean()

    def answer_loss(self, model: Any, features: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the loss of answers, per answer; lower is better."""
        return self._loss(model, features, rows).sum() / len(rows)

    def _loss(self, model: Any, features: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the loss of every target token, one after the other; rows are (before, after, target) of B images.

        Rows are padded at their end: what comes after a token changes nothing for it.
        """
        device = features.device
        longest = max(len(after) + len(target) for _, after, target in rows)
        fed = torch.full((len(rows), longest), self._tokenizer.pad_token_id)
        wanted = torch.full((len(rows), longest), _NOT_A_TARGET)
        for i, (_, after, target) in enumerate(rows):
            fed[i, : len(after) + len(target)] = torch.tensor(after + target)
            wanted[i, len(after) - 1 : len(after) + len(target) - 1] = torch.tensor(target)
        embed = model.get_input_embeddings()
        start = embed(torch.tensor(rows[0][0], device=device)).expand(len(rows), -1, -1)  # the same in all prompts
        text = embed(fed.to(device))
        image = model.model.multi_modal_projector(features).to(text.dtype)
        states = model.model.language_model(inputs_embeds=torch.cat([start, image, text], 1)).last_hidden_state
        targets = wanted.to(device).flatten()
        kept = targets != _NOT_A_TARGET
        logits = model.lm_head(states[:, -longest:].flatten(0, 1)[kept]).float()  # (tokens, vocabulary)
        return functional.cross_entropy(logits, targets[kept], reduction="none")


def head_accuracy(heads: Heads, features: Tensor, batch: Batch) -> NDArray[np.int64]:
    """Return (B, 4): 1 where the throw-away heads are right about part, finish, defects and their positions."""
    (part, finish, defects, places), _ = heads(features)
    right = [
        part.argmax(-1) == batch.labels[:, 0],
        finish.argmax(-1) == batch.labels[:, 1],
        ((defects > 0) == (batch.shown > 0.5)).all(dim=1),
        ((places > 0) == (batch.places > 0.5)).all(dim=1),
    ]
    return torch.stack(right, dim=1).long().cpu().numpy()
