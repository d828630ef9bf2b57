"""The data that flows from one step to the next.

Knows names and types; knows nothing of how any of it is made, stored or shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

VERDICTS = ("correct", "wrong", "unusable")  # what a person may say of a reading; unusable = the image shows nothing
Stamp = tuple[int, int, int]  # bytes, time of change, time of status change (both in ns): alike = the file is unchanged
ENDED = ("stop", "scored")  # of an answer: its text is whole
Finish = Literal["stop", "length", "non-finite", "refused", "unknown", "scored"]


@dataclass(frozen=True, slots=True, init=False)
class Source:
    """A file found by the walk, not opened yet; `file_name` is its path relative to the scanned folder, in POSIX form.

    `file_name` is valid UTF-8 and unique within a scan, whatever bytes the name on disk holds; `path` opens the file.
    """

    file_name: str
    where: str  # the path as text: for a hundred thousand files, `Path` objects would take 30 MB more

    def __init__(self, file_name: str, path: str | Path) -> None:
        object.__setattr__(self, "file_name", file_name)
        object.__setattr__(self, "where", os.fspath(path))

    @property
    def path(self) -> Path:
        """Return the path that opens the file."""
        return Path(self.where)

    def stamp(self) -> Stamp | None:
        """Ask the disk for the file's stamp as it is now; None where it cannot be asked."""
        try:
            status = self.path.stat()
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One page of an image file that was opened and decoded in full."""

    file_name: str
    path: Path
    sha256: str  # of the file's bytes, 64 hexadecimal digits
    page: int  # counted from 1
    num_pages: int
    width: int  # pixels, upright (after EXIF orientation)
    height: int  # pixels, upright
    mode: str  # how the file stores pixels, e.g. "RGB", "L", "I;16", "CMYK"
    conversion: str | None  # what was done to reach upright 8-bit RGB, in words; None = nothing
    size_bytes: int
    mtime_ns: int
    ctime_ns: int = 0  # tells apart what was put in the place of a file with its size and time

    @property
    def stamp(self) -> Stamp:
        """Return the stamp of the file when it was read."""
        return self.size_bytes, self.mtime_ns, self.ctime_ns


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image, or a folder, that could not be read; it is routed to a person."""

    file_name: str
    reason: str  # one line in plain words
    page: int = 1


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a picture was taken; null where a picture is too small to tell."""

    sharpness: float | None  # variance of the Laplacian at a standard size, ≥ 0; higher = sharper
    exposure: float | None  # mean luma, [0, 1]; neither end is good
    contrast: float | None  # standard deviation of luma, [0, 0.5]; higher = more
    noise: float | None  # standard deviation, grey levels of 255; higher = noisier
    clipped_dark: float | None  # share of pixels that are black, [0, 1]; higher = worse
    clipped_bright: float | None  # share of pixels that are white, [0, 1]; higher = worse
    # Share of rows, or of columns where that is more, that are one value from end to end, [0, 1]; higher = worse. None
    # in what was measured before there was this figure.
    flat_rows: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image ready for a captioner: upright 8-bit RGB pixels and the file they came from."""

    file: ImageFile
    rgb: Image.Image
    quality: Quality | None = None  # None = was not or could not be measured


@dataclass(frozen=True, slots=True)
class Caption:
    """One sampled caption, or one sampled answer."""

    text: str
    # "stop" = the model ended it; "length" = cut off at the limit; "non-finite" = broken logits. Of model servers
    # alone: "refused" = the server says that it declines; "unknown" = it does not say that the text is whole. Of
    # answers alone: "scored" = nobody drew it; the log-probability is that of the text, in whatever tokens, and its end
    finish: Finish
    mean_logprob: float | None  # nats per token at temperature 1 before top-k/top-p, ≤ 0; None = the engine cannot say
    num_tokens: int  # generated tokens, the end token included; 0 = the engine cannot say


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a captioner makes of one picture; what an engine cannot say, or was not asked for, is None."""

    captions: tuple[Caption, ...]  # K
    answers: tuple[Caption, ...] | None = None  # K sampled short answers, or the scored ones; None = no question
    features: tuple[float, ...] | None = None  # pooled vision features of the clean view
    views: tuple[int, ...] | None = None  # K, the noised view that each sample was drawn from (0 = clean); None = one


@dataclass(frozen=True, slots=True)
class Times:
    """Where a captioner's time went so far, in seconds of wall time."""

    vision_and_prefill: float = 0.0  # until the first token can be drawn
    decoding: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What was sampled from one image."""

    image: ImageFile
    captions: tuple[Caption, ...]
    answers: tuple[Caption, ...] | None = None  # as in `Sampled`
    features: bytes | None = (
        None  # packed: float16, little-endian; a tuple of floats would take twelve times the memory
    )
    views: tuple[int, ...] | None = None  # as in `Sampled`
    quality: Quality | None = None


# Keys of a model that decide its readings: two runs that differ in one of them do not belong together.
MODEL_KEYS = ("revision", "architecture", "num_parameters", "dtype", "image_processor")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a captioner says of itself, for the header of a run and the provenance of its result."""

    model: str  # as the user named it, or "builtin"
    revision: str | None  # resolved commit of a hub model; None for a local folder
    architecture: str  # class name of the model
    num_parameters: int | None  # None = the engine cannot say
    device: str  # e.g. "cpu", "cuda:0"; "server"
    dtype: str  # e.g. "float32", "bfloat16"
    image_processor: str  # class name of the image processor, which tells its backend
    route: str  # how K captions are made, e.g. "fork"
    versions: dict[str, str]  # library → version
    server: dict[str, str] | None = None  # where a model server is and what it can and cannot do; None = runs here
    vision: str | None = None  # what came of the trial whether it sees pictures, in words; None = there was none
    warnings: tuple[str, ...] = ()  # what people have to know of it before they believe it, a line each


@dataclass(frozen=True, slots=True)
class Scores:
    """How sure the K captions and answers of one image are; what cannot be computed is null, never NaN."""

    vendi_score: float | None  # effective number of different captions, [1, K]; higher = more disagreement
    agreement: float | None  # 1 - (vendi_score - 1) / (K - 1), [0, 1]; higher = safer
    mean_dissimilarity: float | None  # mean of 1 - kernel over pairs, [0, 1]; higher = more disagreement
    mean_logprob: (
        float | None
    )  # mean over captions of their mean log-probability, nats per token, ≤ 0; lower = less sure
    medoid: int | None  # index of the caption most like all the others; null without a usable caption
    semantic_entropy: float | None = None  # of the clusters of captions, nats, [0, ln K]; higher = more disagreement
    predictive_entropy: float | None = None  # -mean_logprob, under the name that papers give it; higher = less sure
    cocoa: float | None = None  # -mean_logprob of the medoid × its dissimilarity to the others, ≥ 0; higher = worse
    support: float | None = None  # share of the captions that back the typical one's least backed claim; higher = safer
    verdict_share: float | None = None  # share that agrees with most on defect or no defect, [0, 1]; higher = safer
    contradiction: float | None = None  # share on the smaller side of the most disputed claim, [0, 0.5]; higher = worse
    view_contrast: float | None = None  # dissimilarity of clean and noised views' captions, [0, 1]; higher = worse
    answer: str | None = None  # the choice named most often; null without one, or where two are equally often
    answer_share: float | None = None  # share of all K answers that name it, [0, 1]; higher = safer
    answer_probability: float | None = None  # of one answer naming it, at temperature 1, [0, 1]; higher = safer
    answer_entropy: float | None = None  # of choices, abstaining and unparsable ones, nats, [0, ln K]; higher = worse
    abstain_rate: float | None = None  # share of the answers that abstain, [0, 1]; higher = less sure
    unparsable_rate: float | None = None  # share of the answers that are neither, [0, 1]; higher = worse
    doubt: float | None = (
        None  # vendi_score, + K where novelty is above 1; 1 to 2 K; higher = worse; null without novelty
    )


def columns_of(figures: Scores | Quality | None) -> dict[str, Any]:
    """Return the columns of a row that these figures fill."""
    return {name: getattr(figures, name) for name in figures.__slots__ if name != "medoid"} if figures else {}


# --- what comes of an image ---

Key = tuple[str, int]  # (file_name, page)
Content = tuple[str, int, str]  # (sha256, page, region): what a reading belongs to; region "" = the whole image


# Of a model server with one image, which is not asked again then. The first may be the deed of another image that was
# under way, or of the network. From then on an image is asked alone, so two more are two that it had the server alone.
MOST_DEATHS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that opened but that the model could not read, alone in a batch."""

    image: ImageFile
    error: str
    deaths: int = 0  # how often a model server died while it had this image, in this run and those before


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image whose bytes were read before, under this or another name; it shares that reading."""

    image: ImageFile


@dataclass(frozen=True, slots=True)
class Read:
    """What is remembered of an image that was read, or whose bytes were; `readings` hold what was said."""

    image: ImageFile
    seconds: float | None = None  # of wall time that its reading took; None for one that shares a reading


Entry = Reading | Failure | Duplicate | Unreadable  # as they are written
Found = Read | Failure | Unreadable  # as they are remembered


def content_of(image: ImageFile | Record) -> Content:
    """Return what two files share when one reading serves both: the hash of their bytes, the page and the region."""
    return image.sha256 or "", image.page, ""


def key_of(entry: Entry) -> Key:
    """Return (file_name, page)."""
    image = entry if isinstance(entry, Unreadable) else entry.image
    return image.file_name, image.page


class Route(StrEnum):
    """Where an image goes."""

    AUTO_ACCEPT = "auto_accept"
    HUMAN_REVIEW = "human_review"


class Reason(StrEnum):
    """Why an image goes there; exactly one per image, the first that holds in the order below."""

    UNREADABLE = "unreadable"  # the file could not be opened as an image
    NOT_READ = "not_read"  # the run ended before its turn
    MODEL_FAILED = "model_failed"  # the model raised an error on it, alone in a batch
    NON_FINITE = "non_finite"  # the model's numbers overflowed in at least one caption
    EMPTY_CAPTION = "empty_caption"  # at least one caption says nothing
    REFUSED = "refused"  # at least one caption declines to answer
    CUT_OFF = "cut_off"  # at least one caption was cut off at max_new_tokens
    NO_CLAIM = "no_claim"  # no caption says anything of the part's condition
    UNKNOWN_LANGUAGE = "unknown_language"  # the captions are in a language that has no word list
    EMPTY_ANSWER = "empty_answer"  # at least one answer to the question says nothing
    ANSWER_CUT_OFF = "answer_cut_off"  # at least one answer was cut off at max_answer_tokens
    NO_ANSWER = "no_answer"  # no choice was named more often than every other
    DRIFTED = "drifted"  # the images of the run do not look like those that the gate was calibrated on
    NO_SCORE = "no_score"  # a column that has a limit cannot be computed
    CONTRADICTED = "contradicted"  # one caption asserts what another denies
    BEYOND_LIMIT = "beyond_limit"  # a column is beyond its own limit
    DISAGREED = "disagreed"  # the score is beyond the limit
    MOST_UNCERTAIN = "most_uncertain"  # among the most uncertain that fill the review budget
    AGREED = "agreed"  # the captions agree within the limit
    LEAST_UNCERTAIN = "least_uncertain"  # less uncertain than those that fill the review budget


# Why there is no reading that a score could judge; all other reasons are decisions of a gate.
NO_READING = frozenset(
    (
        *(Reason.UNREADABLE, Reason.NOT_READ, Reason.MODEL_FAILED, Reason.NON_FINITE, Reason.EMPTY_CAPTION),
        *(
            Reason.REFUSED,
            Reason.CUT_OFF,
            Reason.NO_CLAIM,
            Reason.UNKNOWN_LANGUAGE,
            Reason.EMPTY_ANSWER,
            Reason.ANSWER_CUT_OFF,
            Reason.NO_ANSWER,
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Where one image goes and why; `threshold` is the limit it was compared with, null where none was."""

    route: Route
    reason: Reason
    threshold: float | None
    column: str | None = None  # the column whose limit decided; null where none was compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of the result: one page of one image, or a folder that could not be listed; unknown is None."""

    file_name: str
    page: int
    num_pages: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    conversion: str | None = None
    captions: tuple[str, ...] | None = None
    caption_finishes: tuple[str, ...] | None = None
    caption_logprobs: tuple[float | None, ...] | None = None
    caption_tokens: tuple[int | None, ...] | None = None  # generated tokens of each; None = the engine cannot say
    num_samples: int | None = None  # captions that were drawn
    caption_views: tuple[int, ...] | None = None  # the noised view that each caption and answer is of; null = one view
    caption: str | None = None  # the medoid
    answers: tuple[str, ...] | None = None
    answer_finishes: tuple[str, ...] | None = None
    answer_logprobs: tuple[float | None, ...] | None = None
    answer_tokens: tuple[int | None, ...] | None = None
    answer: str | None = None
    vendi_score: float | None = None
    agreement: float | None = None
    mean_dissimilarity: float | None = None
    mean_logprob: float | None = None
    semantic_entropy: float | None = None
    predictive_entropy: float | None = None
    cocoa: float | None = None
    support: float | None = None
    verdict_share: float | None = None
    contradiction: float | None = None
    view_contrast: float | None = None
    answer_share: float | None = None
    answer_probability: float | None = None
    answer_entropy: float | None = None
    abstain_rate: float | None = None
    unparsable_rate: float | None = None
    doubt: float | None = None
    novelty: float | None = None  # distance from the reference, ≥ 0; 1 = as far out as its own strangest hundredth
    sharpness: float | None = None  # this and the next six as in `Quality`
    exposure: float | None = None
    contrast: float | None = None
    noise: float | None = None
    clipped_dark: float | None = None
    clipped_bright: float | None = None
    flat_rows: float | None = None
    route: str = Route.HUMAN_REVIEW  # until it is decided, the safe one
    reason: str = Reason.NOT_READ
    decided_by: str | None = None  # the column whose limit decided
    threshold: float | None = None  # that limit
    seed: int
    error: str | None = None
    duplicate_of: str | None = None
    seconds: float | None = None  # share of its batch's wall time; null for what no model read
    vision_features: bytes | None = None  # as in `Reading`; a list of floats in the file
