"""What a captioner promises: K sampled captions of each picture; and what an engine may offer beyond that."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from vlmgate.data import MOST_DEATHS, ModelInfo, Picture, Sampled, Times
from vlmgate.errors import ModelError


class Captioner(Protocol):
    """Reads pictures.

    Promise: same picture + same model + same sampling configuration + same seed = same captions and answers, whatever
    else is in the batch and in whatever order (up to floating-point differences between devices and dtypes). The
    captions are the same whether or not a question is asked. A model server promises no more than it keeps; whether
    the same seed gave the same text is in its `info`.
    """

    @property
    def info(self) -> ModelInfo:
        """What it is and where it runs."""

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        """Return K captions, and K answers where a question is asked, for each of B pictures, in the order given.

        Where `SamplingConfig.answers` is "exact", answers may be scored in place of drawn: every text that was scored,
        once, with the finish "scored". An engine that cannot do so, or not for a picture, draws K.
        Raises whatever the engine raises for a batch that it cannot read; the caller then tries smaller ones.
        """

    def with_samples(self, num_samples: int) -> Captioner:
        """Return a captioner that draws another number of samples with the same model; loads nothing."""

    def look(self, pictures: Sequence[Picture]) -> list[tuple[float, ...] | None]:
        """Return the vision features of B pictures as `read` does, without a caption; None where it shows none."""


@runtime_checkable
class Prepares(Captioner, Protocol):
    """A captioner that can be given its next pictures while it reads others; an engine need not be one."""

    def prompt_key(self, picture: Picture) -> Hashable:
        """Return what pictures with prompts of one length have in common; cheap, and safe in any thread."""

    def prepare(self, pictures: Sequence[Picture]) -> Any:
        """Return all that can be made of pictures without the model; safe in another thread than `read`."""

    def read_prepared(self, pictures: Sequence[Picture], prepared: Any) -> list[Sampled]:
        """Return what `read` returns of these pictures, of which `prepared` was made."""


@runtime_checkable
class ReadsEach(Captioner, Protocol):
    """A captioner that is done with one picture after the other, such as a model server; an engine need not be one."""

    def read_each(
        self, pictures: Sequence[Picture], deaths: Sequence[int] = ()
    ) -> Generator[tuple[Picture, Sampled | Exception]]:
        """Yield each picture as soon as it is done, with what `read` returns of it, or why it cannot be read.

        `deaths` says of each picture how often a server died while it had it; without it, never. Those that it died of
        are asked alone, and not at all from `MOST_DEATHS` on; then the error is a `ServerDiedError`.
        """


class ServerDiedError(ModelError):
    """A model server died while it had an image, `deaths` times by now."""

    def __init__(self, deaths: int) -> None:
        what = "died while it had this image, which is asked alone by the next run"
        if deaths >= MOST_DEATHS:
            what = f"died {deaths} times while it had this image, so it is not asked again until the file changes"
        super().__init__(f"the server {what}.")
        self.deaths = deaths


Enough = Callable[[Picture, Sampled], bool]  # says of what was drawn of a picture so far whether it will do


@runtime_checkable
class DrawsInRounds(Captioner, Protocol):
    """A captioner that can draw a few samples first and more where they are wanted; an engine need not be one."""

    def read_in_rounds(
        self, pictures: Sequence[Picture], looks: Sequence[int], enough: Enough, prepared: Any = None
    ) -> list[Sampled]:
        """Return the first samples of each picture: after how many of `looks` to ask `enough`, the last of them K.

        What it returns of a picture is the beginning of what `read` returns. `prepared` is what `Prepares.prepare` made
        of these pictures, if it did.
        """


@runtime_checkable
class KnowsItsBatch(Captioner, Protocol):
    """A captioner that says how many pictures at once suit it; an engine need not be one."""

    @property
    def at_once(self) -> int:
        """Return how many, where `SamplingConfig.batch_size` does not say."""


@runtime_checkable
class Timed(Protocol):
    """A captioner that says where its time went; an engine need not be one."""

    @property
    def times(self) -> Times:
        """Return the sum over all that was read so far."""
