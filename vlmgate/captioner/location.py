"""Where a model's files are, and what they say before it is loaded; nothing here needs torch or the network.

Start with `locate` (the package, a folder or the hub), `model_fingerprint` (is this the same model?),
`picture_side` (how large does it want its pictures?) and `own_limits` (of the built-in model).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmgate.config import BUILTIN, SERVER, ModelConfig, SamplingConfig
from vlmgate.errors import ModelError

PIPELINE = "1"  # raised when the way from a picture to a server's text changes
WHOLE = 32 * 1024**2  # bytes; up to here a file is hashed in full
CHUNKS = 512  # evenly spaced samples of a larger file: a changed output layer alone is still hit many times
CHUNK_BYTES = 4096
ADAPTER = frozenset({"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"})  # files of peft
SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".py", ".safetensors"})

# What a processor of one fixed size says of itself. With any other key it may cut tiles, and wants its pictures whole.
_PLAIN = frozenset(
    "crop_size data_format default_to_square device disable_grouping do_center_crop do_convert_rgb do_normalize do_pad "
    "do_rescale do_resize feature_extractor_type image_mean image_processor_type image_seq_length image_std "
    "input_data_format pad_size processor_class resample rescale_factor return_tensors size size_divisor".split()
)
_OFTEN_OFF = frozenset({"do_image_splitting", "do_pan_and_scan"})  # off, they mean nothing
MOST = 4096  # pixels; a processor that wants more, or says so by mistake, wants its pictures whole

# Measured by `tests.bench.builtin`, by kernel, on images that training never saw; vlmgate/factory/README.md says what
# they let through. At 2, two captions of eight may find something else, as long as none denies what another asserts;
# 1.25 would accept half as many, and no smaller share of those is wrong.
OWN_LIMITS: Mapping[str, tuple[str, ...]] = {
    "findings": ("vendi_score <= 2",),
    "kappa": ("vendi_score <= 2",),  # accepts no more than `findings` does
    "words": ("vendi_score <= 2",),
}
# Of every model that carries a reference: 1 is as far out as the strangest hundredth of what it is meant for.
OWN_NOVELTY = ("novelty <= 1",)


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
        folder = weights_folder()
        if not (folder / "config.json").is_file():
            raise ModelError(f"The built-in weights are missing from {folder}. Reinstall vlmgate, or use --model.")
        return Local(folder, builtin=True)
    name, folder = model.model, Path(model.model).expanduser()
    if folder.is_dir():
        refuse_adapter(str(folder), [path.name for path in folder.glob("adapter_*")])
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no config.json. Name the folder of a model saved with save_pretrained.")
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{folder} holds no .safetensors weights, and pickled ones are refused because loading them runs code. "
                "Convert the model with save_pretrained."
            )
        return Local(folder)
    if folder.exists():
        raise ModelError(f"{name} is a file. Name the folder that holds config.json and the weights.")
    if name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1:
        raise ModelError(f"There is no folder {name}. Give the path of a model folder, or a hub id (owner/name).")
    return Hub(name, model.revision)


def refuse_adapter(where: str, names: Collection[str]) -> None:
    """Raise `ModelError` where files of these names hold a LoRA adapter that is not merged into the weights.

    Whether it is loaded would depend on an installed package, and from which base on what the adapter says of that.
    Left out, another model would read than the one that was named.
    """
    found = sorted(set(names) & ADAPTER)
    if found:
        raise ModelError(
            f"{where} holds an adapter ({found[0]}), and vlmgate loads none. Merge it into the model (in peft: "
            "merge_and_unload, then save_pretrained) and name that folder, or take the adapter's files out of this one."
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


# --- the built-in model -----------------------------------------------------------------------------------------------


def weights_folder() -> Path:
    """Return the folder of the built-in checkpoint; any transformers code can load it by this path."""
    return Path(__file__).resolve().parent / "weights"


def own_limits(sampling: SamplingConfig, kernel: str) -> tuple[str, ...]:
    """Return the limits that were measured for the built-in model; none where captions are drawn in another way.

    Nor are there any for a kernel that they were not measured with.

    Fewer samples have lower Vendi scores, and so have those of a lower temperature: the same limit would accept more.
    That on novelty (`OWN_NOVELTY`) holds beside them, however captions are drawn.
    """
    usual = SamplingConfig()
    drawn = ("prompt", "temperature", "top_p", "top_k")
    same = all(getattr(sampling, name) == getattr(usual, name) for name in drawn)
    return OWN_LIMITS.get(kernel, ()) if same and sampling.num_samples >= usual.num_samples else ()


# --- which model it is ------------------------------------------------------------------------------------------------


def model_fingerprint(model: ModelConfig) -> dict[str, str]:
    """Return what identifies the checkpoint: its content for a folder or the built-in model, its name for a hub model.

    Of a model server it is the name that it knows the model by, how images are sent, and whether it may answer with
    anything but the choices (not named where it may, as before there was a choice). A folder's path or a server's
    URL is no part of it, so that they may move. A hub name does not say which commit a branch points to;
    `ModelInfo.revision` does once the model is loaded. Raises `ModelError` if there is no such folder.
    """
    if model.endpoint is not None:
        told = {"model": SERVER, "name": model.model, "max_side": str(model.endpoint.max_side), "pipeline": PIPELINE}
        return told | ({"structured_answers": "yes"} if model.endpoint.structured_answers else {})
    place = locate(model)
    if isinstance(place, Local):
        return {"model": "builtin" if place.builtin else "folder", "content": _folder_hash(place.folder)}
    return {"model": place.name, "revision": place.revision or "main"}


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith((".", "__")) for part in relative.parts)
        if hidden or path.suffix not in SUFFIXES or not path.is_file():
            continue
        digest.update(f"{relative.as_posix()}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        _add_file(digest, path)
    return digest.hexdigest()


def weights_digest(folder: Path) -> str:
    """Return what identifies the weights in a folder, whatever else lies there; large files are sampled."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
            return
        for i in range(CHUNKS):
            file.seek(i * (size - CHUNK_BYTES) // (CHUNKS - 1))
            digest.update(file.read(CHUNK_BYTES))


# --- how large it wants its pictures ----------------------------------------------------------------------------------


def picture_side(model: ModelConfig) -> int | None:
    """Return the longest side, in pixels, that the processor shrinks every picture to; None where that is not known.

    It is known of folders whose processor has one size. A hub model's must not depend on whether it is downloaded.
    """
    place = locate(model)
    if not isinstance(place, Local):
        return None
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            config = json.loads((place.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(config, dict):
            config = config.get("image_processor", config if name.startswith("pre") else None)
        if isinstance(config, dict):
            return _side(config)
    return None


def _side(processor: Mapping[str, Any]) -> int | None:
    unknown = {key for key, value in processor.items() if not (key in _OFTEN_OFF and not value)} - _PLAIN
    if unknown or not processor.get("do_resize", True):
        return None
    size: Any = processor.get("size")
    named = isinstance(size, dict) and set(size) in ({"height", "width"}, {"shortest_edge"})
    sides: list[Any] = list(size.values()) if named else [size]
    if not all(type(side) is int and 0 < side <= MOST for side in sides):
        return None
    return int(max(sides))
