"""Every setting, declared once, as a field of a frozen dataclass: its name, range, default, help and flags.

`reading.py` says how images are read, `scan.py`, `calibrate.py` and `review.py` what is asked of the readings;
`commands.py` says which options a command takes. `options.py` is what they are made with.
"""

from vlmgate.config.calibrate import CalibrateConfig, CompareConfig, Costs
from vlmgate.config.reading import (
    ABSTENTION,
    BUILTIN,
    DEFAULT_PROMPT,
    DEFAULT_QUESTION,
    SERVER,
    EndpointConfig,
    ImageConfig,
    ModelConfig,
    Pages,
    SamplingConfig,
    question_prompt,
    split_samples,
)
from vlmgate.config.review import ReviewConfig
from vlmgate.config.scan import ClusterConfig, ScanConfig, Shard, WatchConfig, fingerprint, parse_duration

__all__ = [
    "ABSTENTION",
    "BUILTIN",
    "DEFAULT_PROMPT",
    "DEFAULT_QUESTION",
    "SERVER",
    "CalibrateConfig",
    "ClusterConfig",
    "CompareConfig",
    "Costs",
    "EndpointConfig",
    "ImageConfig",
    "ModelConfig",
    "Pages",
    "ReviewConfig",
    "SamplingConfig",
    "ScanConfig",
    "Shard",
    "WatchConfig",
    "fingerprint",
    "parse_duration",
    "question_prompt",
    "split_samples",
]
