"""The model that ships with the package, and the world of rendered parts that it knows.

Knows where the weights lie; knows nothing of torch, and nothing of how the weights are used.
"""

from __future__ import annotations

from pathlib import Path


def weights_folder() -> Path:
    """Return the folder of the built-in checkpoint; any transformers code can load it by this path."""
    return Path(__file__).resolve().parent / "weights"
