"""vlmgate: can a vision-language model's reading of an inspection image be trusted, or must a person look?

`scan`, `calibrate` and `Gate` do from Python what the command line does; they are loaded when they are asked for. No
module is called as a public name is, so that it never matters what was imported first.
"""

from typing import TYPE_CHECKING, Any

from vlmgate.data import (
    Caption,
    Decision,
    ImageFile,
    Quality,
    Reading,
    Reason,
    Record,
    Route,
    Sampled,
    Scores,
    Unreadable,
)
from vlmgate.errors import (
    ConfigError,
    EndpointError,
    FatalError,
    GateError,
    LabelError,
    ModelError,
    NoImagesError,
    OutputError,
    ResumeError,
    StoreError,
    UsageError,
    VlmgateError,
)
from vlmgate.version import __version__

if TYPE_CHECKING:
    from vlmgate.api.functions import Calibration, Gate, Progressed, ScanResult, calibrate, scan

__all__ = [
    "Calibration",
    "Caption",
    "ConfigError",
    "Decision",
    "EndpointError",
    "FatalError",
    "Gate",
    "GateError",
    "ImageFile",
    "LabelError",
    "ModelError",
    "NoImagesError",
    "OutputError",
    "Progressed",
    "Quality",
    "Reading",
    "Reason",
    "Record",
    "ResumeError",
    "Route",
    "Sampled",
    "ScanResult",
    "Scores",
    "StoreError",
    "Unreadable",
    "UsageError",
    "VlmgateError",
    "__version__",
    "calibrate",
    "scan",
]

_OF_API = frozenset(("Calibration", "Gate", "Progressed", "ScanResult", "calibrate", "scan"))


def __getattr__(name: str) -> Any:
    """Load the Python API when it is asked for, so that `import vlmgate` costs nothing."""
    if name not in _OF_API:
        raise AttributeError(f"module 'vlmgate' has no attribute '{name}'")
    from vlmgate import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
