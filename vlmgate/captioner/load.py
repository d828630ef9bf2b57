"""Make the engine for a model ready. Torch is imported only when a local engine is made."""

from __future__ import annotations

import os

from vlmgate.captioner.protocol import Captioner
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.errors import ModelError, VlmgateError


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
        detail = " ".join(str(error).split())[:240]
        raise ModelError(f"{model.model} cannot be made ready: {detail} ({type(error).__name__})") from error
