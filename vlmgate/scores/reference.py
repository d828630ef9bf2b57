"""The reference for novelty that `--reference` names: a folder of images, read with the same model.

`ReferenceFolder` reads it and keeps it next to the output, with a note of what it was made of, so that the same command
does not read it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from vlmgate.captioner import Captioner
from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source
from vlmgate.errors import NoImagesError, NoveltyError
from vlmgate.images import find_images, is_of_the_disk, read_ahead
from vlmgate.scores.novelty import Reference, pack, unpack

log = logging.getLogger(__name__)

# What a reference depends on besides its images: how pixels and features come about.
_KEYS = ("dtype", "pages", "max_pixels", "least_side", "image_pipeline", "caption_pipeline")


class ReferenceFolder:
    """A folder of images that the model is meant for."""

    def __init__(
        self,
        folder: Path,
        kept: Path,
        fingerprint: Mapping[str, Any],
        write: Callable[[Path, bytes], object] = Path.write_bytes,
    ) -> None:
        """Find the images; raises `UsageError` where there are none. Nothing is opened yet.

        `write` puts the content of the kept file in its place; a run gives one that is atomic.
        """
        self.folder, self.kept, self._write = folder, kept, write
        self.sources: Sequence[Source] = find_images(folder).sources
        if not self.sources:
            raise NoImagesError(f"{folder}: no image found; name a folder of images for --reference.")
        self._note = _digest(self.sources, fingerprint)

    def load(self) -> Reference | None:
        """Return the reference as it was kept, unless an image, the model or its settings have changed since."""
        try:
            found = Reference.load(self.kept) if self.kept.exists() else None
        except NoveltyError as error:
            log.warning("%s", error)
            return None
        return found if found is not None and found.note == self._note else None

    def fit(self, features: Sequence[bytes]) -> Reference:
        """Fit the reference to packed features and keep it; raises `NoveltyError` where it cannot be had."""
        if not features:
            raise NoveltyError(f"{self.folder}: this model shows no vision features, so --reference cannot be used.")
        Reference.fit(unpack(features), note=self._note).save(self.kept, self._write)
        return Reference.load(self.kept)  # rounded as the next run will find it


def features_of(sources: Sequence[Source], captioner: Captioner, images: ImageConfig, batch_size: int) -> list[bytes]:
    """Return the packed features of files; those that cannot be read, or that show none, are left out."""
    features: list[bytes] = []
    batch: list[Picture] = []
    with closing(read_ahead(sources, images)) as opened:
        for one in opened:
            if isinstance(one.result, Picture):
                batch.append(one.result)
            elif is_of_the_disk(one.result.reason):  # a reference of what was left would be kept, and stand for all
                what = f"{one.result.file_name}: {one.result.reason} while the reference was read"
                raise NoveltyError(f"{what}; run again once it is there.")
            else:
                log.warning("reference: %s: %s", one.result.file_name, one.result.reason)
            if len(batch) == batch_size:
                features += _features(batch, captioner)
                batch = []
    return features + _features(batch, captioner)


def _features(batch: Sequence[Picture], captioner: Captioner) -> list[bytes]:
    """Return the features of pictures; those that the model cannot read or says nothing of are left out."""
    if not batch:
        return []
    try:
        packed = [pack(features) for features in captioner.look(batch)]
    except Exception as error:
        log.warning("reference: a batch of %d failed", len(batch), exc_info=error)
        return [one for picture in batch for one in _features([picture], captioner)] if len(batch) > 1 else []
    return [one for one in packed if one is not None]


def _digest(sources: Sequence[Source], fingerprint: Mapping[str, Any]) -> str:
    """Return a hash of what a reference is made of: names, sizes and times of the files, model, and image settings."""
    files = [[source.file_name, *stamp[:2]] for source in sources if (stamp := source.stamp()) is not None]
    settings = {key: value for key, value in fingerprint.items() if key in _KEYS or key.startswith("checkpoint.")}
    content = json.dumps([files, settings], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
