"""The range of values that the pictures of one camera share: those of the same kind and size in the same folder.

A camera of 12 bits delivers pictures whose largest value is 900 or 1,100. Each taken by itself, one would come out as
10 bits and the other as 12, four times as dark.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from functools import lru_cache, reduce
from pathlib import Path

from vlmgate.images.depth import Shared, Span
from vlmgate.images.formats import extension_of

_LOOKED_AT = 8  # pictures of a folder
FEWEST_PIXELS = 10_000  # smaller pictures say nothing about a camera
_lock = threading.Lock()

# Takes a path and what the camera is known by; returns the range of that picture, None if it is of another camera.
Measure = Callable[[Path, Hashable], Span | None]


def beside(path: Path, camera: Hashable, measure: Measure) -> Shared:
    """Return what widens the range of one picture to that of its camera; it looks at no file before it is called."""

    def shared(own: Span) -> Span:
        with _lock:  # one thread looks, the others wait for what it finds
            found = _range(os.fspath(path.parent), extension_of(path.name), camera, measure)
        return own if found is None else own.joined(found)

    return shared


@lru_cache(maxsize=4096)
def _range(folder: str, extension: str, camera: Hashable, measure: Measure) -> Span | None:
    """Return the range of some pictures of a folder, spread over its names, so that all see the same ones."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if extension_of(entry.name) == extension)
    except OSError:
        return None
    some = dict.fromkeys(names[number * len(names) // _LOOKED_AT] for number in range(_LOOKED_AT) if names)
    spans = [span for name in some if (span := measure(Path(folder, name), camera)) is not None]
    return reduce(Span.joined, spans) if spans else None
