"""vlmgate: can a vision-language model's reading of an inspection image be trusted, or must a person look?"""

from vlmgate.errors import FatalError, UsageError, VlmgateError
from vlmgate.records import (
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

__version__ = "0.1.0"

__all__ = [
    "Caption",
    "Decision",
    "FatalError",
    "ImageFile",
    "Quality",
    "Reading",
    "Reason",
    "Record",
    "Route",
    "Sampled",
    "Scores",
    "Unreadable",
    "UsageError",
    "VlmgateError",
    "__version__",
]
