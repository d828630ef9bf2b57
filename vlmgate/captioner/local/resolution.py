"""How large a checkpoint's processor wants its pictures, told from its files.

Knows the JSON that processors are saved as; knows nothing of torch, and loads nothing. A photograph of 12 megapixels is
mostly thrown away by a processor that wants 384 pixels, and a JPEG can be decoded smaller for less. How small is safe
has to be known before the first one is opened, whether or not a model is loaded yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlmgate.captioner.location import Local, locate
from vlmgate.config import ModelConfig

# What a processor of one fixed size says of itself. Any other key may mean tiles, crops at full resolution, or as many
# pixels as there are, so a processor with one wants its pictures whole.
_PLAIN = frozenset(
    {
        *("crop_size", "data_format", "default_to_square", "device", "disable_grouping", "do_center_crop"),
        *("do_convert_rgb", "do_normalize", "do_pad", "do_rescale", "do_resize", "feature_extractor_type"),
        *("image_mean", "image_processor_type", "image_seq_length", "image_std", "input_data_format", "pad_size"),
        *("processor_class", "resample", "rescale_factor", "return_tensors", "size", "size_divisor"),
    }
)
_OFTEN_OFF = frozenset({"do_image_splitting", "do_pan_and_scan"})  # off, they mean nothing
MOST = 4096  # pixels; a processor that wants more, or says so by mistake, wants its pictures whole


def picture_side(model: ModelConfig) -> int | None:
    """Return the longest side, in pixels, that the processor shrinks every picture to; None where that is not known.

    It is known of checkpoints in a folder whose processor has one size for all pictures. Of a hub model it would be
    known only once it is downloaded, and how pictures are read must not hang on that.
    """
    place = locate(model)
    if not isinstance(place, Local):
        return None
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            told = json.loads((place.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            told = told.get("image_processor", told if name.startswith("pre") else None)
        if isinstance(told, dict):
            return _side(told)
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
