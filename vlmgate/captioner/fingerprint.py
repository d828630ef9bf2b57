"""Identify a checkpoint cheaply, so that a run can tell whether it is resumed with the same model.

Knows files and bytes; knows nothing of torch or of what the bytes mean.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vlmgate.captioner.location import Local, locate
from vlmgate.config import SERVER, ModelConfig

PIPELINE = "1"  # raised when the way from a picture to a server's text changes
WHOLE = 32 * 1024**2  # bytes; up to here a file is hashed in full
CHUNKS = 512  # evenly spaced samples of a larger file: a changed output layer alone is still hit many times
CHUNK_BYTES = 4096
SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".py", ".safetensors"})


def model_fingerprint(model: ModelConfig) -> dict[str, str]:
    """Return what identifies the checkpoint: its content for a folder or the built-in model, its name for a hub model.

    A folder's path is no part of it: the same files elsewhere are the same model. A hub name does not say which commit
    a branch points to today; `ModelInfo.revision` does once the model is loaded. Of a model server it is the name that
    it knows the model by, and how images are sent; where it stands is no part of it, so that it may move. Raises
    `ModelError` if there is no such folder.
    """
    if model.endpoint is not None:
        return {"model": SERVER, "name": model.model, "max_side": str(model.endpoint.max_side), "pipeline": PIPELINE}
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


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
            return
        for i in range(CHUNKS):
            file.seek(i * (size - CHUNK_BYTES) // (CHUNKS - 1))
            digest.update(file.read(CHUNK_BYTES))
