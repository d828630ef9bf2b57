"""Load a checkpoint's processor, also where torchvision is missing.

Knows transformers' processor classes; knows nothing of models, prompts or pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def load_processor(source: str, config: Any, options: Mapping[str, Any]) -> Any:
    """Return the processor of a checkpoint; raises what transformers raises.

    Many families (Qwen-VL, InternVL, SmolVLM) read video as well as images, and their video half needs torchvision,
    which is optional here and often clashes with the installed torch. Without it that half is left out.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(source, **options)
    except (ImportError, ValueError, AttributeError) as error:  # what it is depends on the version and the family
        base = None if _has_torchvision() else _class_with_video(config)
        if base is None:
            raise
        logger.info("%s is loaded without its video half: %s", base.__name__, error)
    return _without_video(base).from_pretrained(source, **options)


def _class_with_video(config: Any) -> Any:
    """Return the processor class of an architecture if it takes a video processor."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    names: Mapping[str, str] = PROCESSOR_MAPPING_NAMES
    base = processor_class_from_name(names[config.model_type]) if config.model_type in names else None
    return base if base is not None and "video_processor" in base.get_attributes() else None


def _has_torchvision() -> bool:
    from transformers.utils.import_utils import is_torchvision_available

    return bool(is_torchvision_available())


def _without_video(base: Any) -> Any:
    """Return the class less its video part; under the same name, because transformers looks at names."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in base.get_attributes() if name != "video_processor"]

    return type(base.__name__, (base,), {"get_attributes": classmethod(get_attributes)})
