"""Decide where a model's files are: the package, a folder or the hub.

Knows names and folders; knows nothing of torch, and never touches the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vlmgate.config import BUILTIN, ModelConfig
from vlmgate.errors import ModelError


@dataclass(frozen=True, slots=True)
class Local:
    """A folder that holds the whole checkpoint."""

    folder: Path
    builtin: bool = False


@dataclass(frozen=True, slots=True)
class Hub:
    """A model on the Hugging Face hub, or in its local cache."""

    name: str
    revision: str | None


def locate(model: ModelConfig) -> Local | Hub:
    """Return where the model is; a folder that exists wins over a hub id of the same spelling.

    Raises `ModelError` for a folder that is missing or holds no usable checkpoint.
    """
    place = _find(model)
    if isinstance(place, Local) and not model.trust_remote_code:
        _refuse_code_from_elsewhere(place.folder)
    if isinstance(place, Local) and model.revision is not None:
        raise ModelError(f"{model.model} is a folder on this machine and has no revisions. Leave out --revision.")
    return place


def _find(model: ModelConfig) -> Local | Hub:
    if model.model == BUILTIN:
        from vlmgate.captioner.builtin import weights_folder

        folder = Path(weights_folder())
        if not (folder / "config.json").is_file():
            raise ModelError(f"The built-in weights are missing from {folder}. Reinstall vlmgate, or use --model.")
        return Local(folder, builtin=True)
    folder = Path(model.model).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return Local(folder)
    if folder.exists():
        raise ModelError(f"{model.model} is a file. Name the folder that holds config.json and the weights.")
    if _looks_like_path(model.model):
        raise ModelError(
            f"There is no folder {model.model}. Give the path of a model folder, or a hub id (owner/name)."
        )
    return Hub(model.model, model.revision)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json. Name the folder of a model saved with save_pretrained.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no .safetensors weights, and pickled ones are refused because loading them runs code. "
            "Convert the model with save_pretrained."
        )


def _refuse_code_from_elsewhere(folder: Path) -> None:
    """Raise `ModelError` where config.json names a kernel of a hub repository: compiled code, and a download."""
    text = (folder / "config.json").read_text(encoding="utf-8", errors="replace")
    named = re.search(r'"_?(?:attn|experts)_implementation"\s*:\s*"([^"]*/[^"]*)"', text)
    if named:
        raise ModelError(
            f"{folder} asks for code from {named[1]}. Take that line out of its config.json, or allow it with "
            "--trust-remote-code."
        )


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1
