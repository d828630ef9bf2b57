"""Where the weights of the built-in model lie, and the limits that were measured for it.

How the model is made is in `vlmgate/factory/` of the repository.
"""

from __future__ import annotations

from pathlib import Path

from vlmgate.config import SamplingConfig

# Measured by `tests.bench.builtin` on images that training never saw; vlmgate/factory/README.md says what they let
# through. The model words one reading in many ways, so that even sure readings come to a Vendi score of about 2.
OWN_LIMITS = ("vendi_score <= 2", "novelty <= 1")


def weights_folder() -> Path:
    """Return the folder of the built-in checkpoint; any transformers code can load it by this path."""
    return Path(__file__).resolve().parent / "weights"


def own_limits(sampling: SamplingConfig) -> tuple[str, ...]:
    """Return the limits that were measured for the built-in model; none where captions are drawn in another way.

    Fewer samples have lower Vendi scores, and so have those of a lower temperature: the same limit would accept more.
    """
    usual = SamplingConfig()
    drawn = ("prompt", "temperature", "top_p", "top_k")
    same = all(getattr(sampling, name) == getattr(usual, name) for name in drawn)
    return OWN_LIMITS if same and sampling.num_samples >= usual.num_samples else ()
