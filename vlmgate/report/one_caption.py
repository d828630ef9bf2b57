"""One caption for most of a folder: a model that does not see the images says the same of all. Call `one_caption`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlmgate.data import Record
from vlmgate.errors import shorten

FEW = 10  # images; of fewer it is no wonder that one caption is that of most


def one_caption(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return the caption of most images: a model that does not see them says the same of all. Copies do not count."""
    read = [record.caption for record in records if record.caption and record.duplicate_of is None]
    if len(read) < FEW:
        return None
    alike = [" ".join(caption.casefold().split()).rstrip(".") for caption in read]
    (most, images), *_ = Counter(alike).most_common(1)
    return {"caption": read[alike.index(most)], "images": images, "of": len(read)} if 2 * images > len(read) else None


def note_on_one_caption(found: Mapping[str, Any] | None) -> list[str]:
    """Return what is said of it, a line each."""
    if found is None:
        return []
    return [
        f"{found['images']:,} of {found['of']:,} images got the same caption: {shorten(found['caption'], 120)!r}. "
        "If the images differ, the model may not see them: `vlmgate doctor` tries that."
    ]
