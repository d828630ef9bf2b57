"""Ask a vision-language model for K sampled captions of an image; start with `load_captioner`.

Torch is imported only when an engine is made that runs here.
"""

from __future__ import annotations

import os

from vlmgate.captioner.protocol import (
    Captioner,
    DrawsInRounds,
    Enough,
    KnowsItsBatch,
    Prepares,
    ReadsEach,
    ServerDiedError,
    Timed,
)
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.errors import ModelError, VlmgateError, shorten

__all__ = [
    "Captioner",
    "DrawsInRounds",
    "Enough",
    "KnowsItsBatch",
    "Prepares",
    "ReadsEach",
    "ServerDiedError",
    "Timed",
    "load_captioner",
]


def load_captioner(model: ModelConfig, sampling: SamplingConfig) -> Captioner:
    """Make the engine for `model` ready, here or at its server.

    Raises `ModelError` or `EndpointError` in one line when that cannot be done.
    """
    if model.endpoint is not None:
        from vlmgate.captioner.server.engine import EndpointCaptioner

        return EndpointCaptioner(model, sampling)
    # Idle threads that spin slow everything down where another program wants the cores: on two busy cores a run took
    # 1.6 times as long. Sleeping costs a few percent on an idle machine. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from vlmgate.captioner.local.engine import TransformersCaptioner

        return TransformersCaptioner(model, sampling)
    except VlmgateError:
        raise
    except Exception as error:  # a broken installation, or a checkpoint's own code
        detail = shorten(str(error))
        raise ModelError(f"{model.model} cannot be made ready: {detail} ({type(error).__name__})") from error
