"""Try a model on one test image, as `vlmgate doctor` does before a night's run.

Knows that a model must load and answer; knows nothing of whether the answer is any good.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmgate.captioner import load_captioner
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.errors import EndpointError, ModelError, one_line
from vlmgate.records import ImageFile, Picture


def try_model(config: ModelConfig) -> dict[str, Any]:
    """Let a model read a test image, and return what it says of itself; raises `ModelError` or `EndpointError`."""
    begun = time.perf_counter()
    captioner = load_captioner(config, SamplingConfig())
    loaded = time.perf_counter()
    try:
        captions = captioner.read([trial_picture()])[0].captions
    except EndpointError:
        raise
    except Exception as error:
        raise ModelError(f"{config.model}: loads, but cannot read a test image ({one_line(error)}).") from error
    return asdict(captioner.info) | {
        "answers" if config.endpoint else "loads": "yes",
        "ask_seconds" if config.endpoint else "load_seconds": round(loaded - begun, 2),
        "read_seconds": round(time.perf_counter() - loaded, 2),
        "says": captions[0].text,
        "finishes": ", ".join(f"{n} × {finish}" for finish, n in Counter(c.finish for c in captions).items()),
        "tokens": f"{max(c.num_tokens for c in captions)} of {SamplingConfig().max_new_tokens} at most",
    }


def trial_picture() -> Picture:
    """Return a picture that any model can read, from no file: a grey ramp with a dark disc."""
    y, x = np.mgrid[0:256, 0:320]
    grey = np.where((x - 160) ** 2 + (y - 128) ** 2 < 80**2, 60, 120 + x // 4).astype(np.uint8)
    image = ImageFile("test image", Path(), "0" * 64, 1, 1, 320, 256, "RGB", None, 0, 0, 0)
    return Picture(image, Image.fromarray(np.repeat(grey[..., None], 3, axis=2)))
