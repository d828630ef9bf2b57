"""The words of the rendered world: parts, finishes, conditions, positions, degradations.

Knows names; knows nothing of pixels or of sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("washer", "gear", "hex nut", "plate", "flange", "bracket")
FINISHES = ("brushed steel", "brass", "black oxide", "copper")
NONE = "none"
CONDITIONS = (NONE, "scratch", "crack", "dent", "stain", "rust", "chipped edge", "missing hole")
POSITIONS = (  # row by row; index = 3 * row + column
    "upper left",
    "upper center",
    "upper right",
    "middle left",
    "center",
    "middle right",
    "lower left",
    "lower center",
    "lower right",
)
CLEAN = "none"
DEGRADATIONS = ("blur", "motion", "noise", "low light", "glare", "occlusion")


@dataclass(frozen=True, slots=True)
class Truth:
    """What the renderer drew; `position` is null for a part without a defect."""

    part: str
    finish: str
    condition: str
    position: str | None
