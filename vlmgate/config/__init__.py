"""Every setting, declared once, as a field of a frozen dataclass: its name, range, default, help and flags.

`model.py` says which model reads, `images.py` how files become pixels, `scan.py` how they are read and split,
`long_runs.py` how the run goes on for days or over many machines, `calibrate.py` and `review.py` what is asked of the
readings. `options.py` is what they are all made with.
"""

from vlmgate.config.calibrate import CalibrateConfig, CompareConfig, Costs
from vlmgate.config.images import ImageConfig, Pages
from vlmgate.config.long_runs import ClusterConfig, Shard, WatchConfig
from vlmgate.config.model import BUILTIN, SERVER, EndpointConfig, ModelConfig
from vlmgate.config.review import ReviewConfig
from vlmgate.config.scan import (
    ABSTENTION,
    DEFAULT_PROMPT,
    DEFAULT_QUESTION,
    FORMER,
    OnDrift,
    SamplingConfig,
    ScanConfig,
    caption_prompt,
    fingerprint,
    question_prompt,
)

__all__ = [
    "ABSTENTION",
    "BUILTIN",
    "DEFAULT_PROMPT",
    "DEFAULT_QUESTION",
    "FORMER",
    "SERVER",
    "CalibrateConfig",
    "ClusterConfig",
    "CompareConfig",
    "Costs",
    "EndpointConfig",
    "ImageConfig",
    "ModelConfig",
    "OnDrift",
    "Pages",
    "ReviewConfig",
    "SamplingConfig",
    "ScanConfig",
    "Shard",
    "WatchConfig",
    "caption_prompt",
    "fingerprint",
    "question_prompt",
]
