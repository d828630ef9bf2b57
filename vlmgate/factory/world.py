"""The words of the rendered world: parts, finishes, conditions, positions, degradations, and what is true of a render.

Knows names; knows nothing of pixels or of sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("washer", "gear", "hex nut", "plate", "flange", "bracket")
FINISHES = ("brushed steel", "brass", "black oxide", "copper")
NONE = "none"
# After "none" the defects, gravest first: of several on one part captions name them in this order, answers the first.
CONDITIONS = (NONE, "crack", "missing hole", "chipped edge", "rust", "dent", "scratch", "stain")
DEFECTS = CONDITIONS[1:]
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
LOOK_ALIKES = ("machining mark", "reflection", "shadow", "drill point")  # no defects, and never spoken of
CLEAN = "none"
DEGRADATIONS = (
    "defocus",
    "motion blur",
    "sensor noise",
    "under-exposure",
    "over-exposure",
    "glare",
    "dust",
    "compression",
    "occlusion",
    "misframing",
)
VIEW_SIZE = 240  # pixels, both ways: what the model sees of a photograph
JUDGED_SIZE = 160  # pixels, both ways: where visibility is defined, whatever the model sees
VISIBLE = 16.0  # visibility (see `render.visibility`) from which on a defect counts as visible


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect and where it lies on the part."""

    condition: str
    position: str


@dataclass(frozen=True, slots=True)
class Truth:
    """What the renderer drew; the defects are in the order of `CONDITIONS`, none of them twice."""

    part: str
    finish: str
    defects: tuple[Defect, ...] = ()

    @property
    def condition(self) -> str:
        """Return the gravest defect, or "none"."""
        return self.defects[0].condition if self.defects else NONE

    @property
    def position(self) -> str | None:
        """Return where the gravest defect lies."""
        return self.defects[0].position if self.defects else None
