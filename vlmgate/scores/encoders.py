"""Kernels that need a model: sentence embeddings and entailment. `diversity.load_kernel` makes them.

Weights come from a folder, as safetensors; nothing is fetched, and no code that comes with them is run.

Sentence embeddings hardly tell "a crack" from "no crack": on 28 hard pairs they were no better than a coin. A model of
entailment is, and costs a pass for every pair of captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from vlmgate.captioner.local.checkpoint import quiet
from vlmgate.errors import ModelError, one_line

Matrix = NDArray[np.float64]

_BATCH = 64  # texts or pairs
_LONGEST = 512  # tokens


def as_kernel(similarities: Matrix) -> Matrix:
    """Return the kernel that a (K, K) table of similarities stands for.

    What a model says of pairs need not be symmetric, with a unit diagonal and without negative eigenvalues. The latter
    are cut and the diagonal is set to 1 again, which leaves a table that is a kernel already as it is.
    """
    symmetric = (similarities + similarities.T) / 2
    if not np.isfinite(symmetric).all():  # is refused by whoever scores it
        return symmetric
    eigenvalues, vectors = np.linalg.eigh(symmetric)
    if eigenvalues[0] < 0:
        symmetric = (vectors * np.maximum(eigenvalues, 0)) @ vectors.T
    sizes = np.sqrt(np.maximum(np.diag(symmetric), 1e-12))
    kernel: Matrix = symmetric / np.outer(sizes, sizes)
    np.fill_diagonal(kernel, 1.0)
    return (kernel + kernel.T) / 2


class EmbeddingKernel:
    """Cosine of sentence embeddings, in [-1, 1]; tokens are averaged, or the first is taken if the folder says so."""

    same = 0.9  # of 0.7 to 0.97 the best for MiniLM on the built-in model's captions

    def __init__(self, folder: Path) -> None:
        self._loaded = _load(folder, transformers.AutoModel)
        self._first_token = _takes_first_token(folder)
        self._known: dict[str, NDArray[np.float32]] = {}

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """Encode every text that was not seen before, the like lengths together."""
        new = sorted({text for texts in groups for text in texts} - self._known.keys(), key=lambda t: (len(t), t))
        for i in range(0, len(new), _BATCH):
            some = new[i : i + _BATCH]
            self._known |= zip(some, self._encoded(some), strict=True)

    def __call__(self, texts: Sequence[str]) -> Matrix:
        self.prepare([texts])
        vectors = np.stack([self._known[text] for text in texts]).astype(np.float64)
        return as_kernel(vectors @ vectors.T)

    def _encoded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        inputs = _tokens(self._loaded, list(texts), None)
        with torch.inference_mode():
            states = self._loaded.model(**inputs).last_hidden_state  # (N, T, D)
        if self._first_token:
            pooled = states[:, 0]
        else:
            mask = inputs["attention_mask"][..., None].to(states.dtype)
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        unit: NDArray[np.float32] = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        return unit


class EntailmentKernel:
    """Probability that one caption entails the other, the mean of both directions, in [0, 1].

    Lin, Trivedi & Sun, "Generating with Confidence: Uncertainty Quantification for Black-box Large Language Models"
    (TMLR 2024); made a kernel by cutting negative eigenvalues.
    """

    same = 0.75  # both directions are more likely than not; one alone comes to half

    def __init__(self, folder: Path) -> None:
        self._loaded = _load(folder, transformers.AutoModelForSequenceClassification)
        labels = {str(label).casefold(): int(i) for i, label in self._loaded.model.config.id2label.items()}
        found = [i for label, i in labels.items() if label.startswith("entail")]
        if len(found) != 1:
            raise ModelError(
                f"{folder}: none of its labels {sorted(labels)} is entailment; name a model that was trained for it."
            )
        self._entailment = found[0]
        self._known: dict[tuple[str, str], float] = {}

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """Judge every pair, in either direction, that was not seen before, the like lengths together."""
        pairs = {(a, b) for texts in groups for a in set(texts) for b in set(texts) if a != b}
        new = sorted(pairs - self._known.keys(), key=lambda pair: (len(pair[0]) + len(pair[1]), pair))
        for i in range(0, len(new), _BATCH):
            some = new[i : i + _BATCH]
            inputs = _tokens(self._loaded, [a for a, _ in some], [b for _, b in some])
            with torch.inference_mode():
                chances = self._loaded.model(**inputs).logits.float().softmax(dim=1)[:, self._entailment]
            self._known |= zip(some, chances.cpu().tolist(), strict=True)

    def __call__(self, texts: Sequence[str]) -> Matrix:
        self.prepare([texts])
        table = np.array([[1.0 if a == b else self._known[a, b] for b in texts] for a in texts])
        return as_kernel(table)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A text model, ready to run."""

    model: Any
    tokenizer: Any
    longest: int  # tokens


def _load(folder: Path, kind: Any) -> _Loaded:
    """Load a model from its folder; raises `ModelError`."""
    try:
        with quiet():
            options = {"local_files_only": True, "trust_remote_code": False}
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **options)
    except Exception as error:
        raise ModelError(f"{folder}: the model of --kernel cannot be loaded ({one_line(error, 200)}).") from error
    positions = getattr(model.config, "max_position_embeddings", None) or _LONGEST
    longest = min(_LONGEST, int(tokenizer.model_max_length), positions - 2)  # some families count from the third
    return _Loaded(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, longest)


def _tokens(loaded: _Loaded, first: list[str], second: list[str] | None) -> dict[str, Any]:
    options = {"padding": True, "truncation": True, "max_length": loaded.longest, "return_tensors": "pt"}
    return {key: value.to(loaded.model.device) for key, value in loaded.tokenizer(first, second, **options).items()}


def _takes_first_token(folder: Path) -> bool:
    """Say whether a sentence encoder's folder asks for the first token instead of the mean of all."""
    try:
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(pooling, dict) and pooling.get("pooling_mode_cls_token") is True
