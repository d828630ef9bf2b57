"""Gather the pages of files into full batches, ahead of the model.

While a batch is with the model, a thread puts the next one together and, where the captioner can do that, runs it
through the model's processor. Pictures whose prompts have the same length come together, so that none is padded. A
captioner that cannot say takes them in the order in which they come. Start with `BatchMaker`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableSet
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from vlmgate.captioner import Captioner, Prepares
from vlmgate.config import ImageConfig
from vlmgate.data import Content, Duplicate, Entry, ModelInfo, Picture, Source, Unreadable, content_of
from vlmgate.images import Opened, read_ahead
from vlmgate.images.memory import GIGABYTE, KEPT

log = logging.getLogger(__name__)

_PIXELS_BESIDE = 128_000_000  # of the batch in the making; one with more waits until the model is done with its own
_ASIDE_AT_ONCE = 256  # entries that need no model
_WAITING_BATCHES = 4  # so many batches' worth of pictures wait for others whose prompts are as long
_PIXELS_WAITING = 4 * _PIXELS_BESIDE  # or so many pixels, 2 GB, where a batch or its pictures are large


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some pages on their way from the files to the journal.

    It is made with `pictures` to read and `entries` that need no model; `Reader` puts what the model said in the place
    of the pictures.
    """

    pictures: tuple[Picture, ...] = ()  # as many as were asked for, or none; fewer at the end, or where they are large
    entries: tuple[Entry, ...] = ()
    ended: tuple[tuple[str, frozenset[int]], ...] = ()  # files that were opened to their end, and the pages they have
    finished: tuple[str, ...] = ()  # files of which nothing is still to come
    prepared: Any = None  # what the captioner made of the pictures ahead
    images: int = 0  # that the model was shown
    seconds: float = 0.0  # wall time of the model, for all of them together
    waited: float = 0.0  # seconds until the pictures were there
    model: ModelInfo | None = None  # of a worker of a cluster

    @property
    def seconds_each(self) -> float:
        """Return the wall time of the model for one image."""
        return round(self.seconds / max(1, self.images), 4)


class ModelWanted:
    """Comes once, before the first batch with pictures: answer it with `BatchMaker.provide`, or close."""


@dataclass(slots=True)
class _Making:
    """The batches in the making."""

    buckets: dict[Hashable, list[Picture]] = field(default_factory=dict)  # the one begun first comes first
    aside: list[Entry] = field(default_factory=list)
    ended: list[tuple[str, frozenset[int]]] = field(default_factory=list)
    open: dict[str, int] = field(default_factory=dict)  # file → pictures of it that are not handed over
    read: set[str] = field(default_factory=set)  # files that were opened to their end, and are open

    def waiting(self) -> int:
        return sum(map(len, self.buckets.values()))

    def pixels(self) -> int:
        return sum(p.rgb.width * p.rgb.height for bucket in self.buckets.values() for p in bucket)


class BatchMaker:
    """Makes batches of what has to be read, one ahead; iterate over it once, and close it.

    `seen` are the contents that need no reading; it grows. An error of the thread is raised where the batch would have
    come.
    """

    def __init__(
        self, pending: Iterable[Source], images: ImageConfig, batch_size: int, seen: MutableSet[Content]
    ) -> None:
        self._pending, self._images, self._size, self._seen = pending, images, batch_size, seen
        # By what was asked for only: what is free differs from run to run, and batches must not.
        asked = images.image_memory
        self._most_pixels = _PIXELS_WAITING if asked is None else min(_PIXELS_WAITING, int(asked * GIGABYTE / KEPT))
        self._changed = threading.Condition()
        self._ready: Batch | ModelWanted | None = None
        self._captioner: Captioner | None = None
        self._idle = False  # the consumer waits
        self._stopped = self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="vlmgate-batches", daemon=True)

    # --- in the consumer's thread ---

    def __iter__(self) -> Iterator[Batch | ModelWanted]:
        self._thread.start()
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._ready is not None or self._ended)
                ready, self._ready, self._idle = self._ready, None, False
                self._changed.notify_all()
            if ready is None:
                if self._error is not None:
                    raise self._error
                return
            yield ready
            del ready  # or its pictures would stay in memory while the next is waited for

    def provide(self, captioner: Captioner, batch_size: int | None = None) -> None:
        """Answer `ModelWanted`; from now on batches have `batch_size` pictures, where that is given."""
        with self._changed:
            self._captioner = captioner
            self._size = batch_size or self._size
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the threads; nobody waits for a file that is slow."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(1.0)  # seconds

    # --- in the thread ---

    def _work(self) -> None:
        try:
            with closing(read_ahead(self._pending, self._images)) as opened:
                for batch in self._batches(opened):
                    self._hand_over(batch)
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or ready())
            if self._stopped:
                raise _Closed

    def _hand_over(self, batch: Batch | ModelWanted) -> None:
        with self._changed:
            self._wait(lambda: self._ready is None)
            self._ready = batch
            self._changed.notify_all()

    def _batches(self, opened: Iterable[Opened]) -> Iterator[Batch]:
        making, pages = _Making(), set[int]()
        for one in opened:
            if self._stopped:
                raise _Closed
            page = one.result
            name = one.source.file_name
            aside = self._set_aside(page)
            if aside is not None:
                making.aside.append(aside)
            elif isinstance(page, Picture):
                making.buckets.setdefault(self._key(page), []).append(page)
                making.open[name] = making.open.get(name, 0) + 1
            pages.add(page.page if isinstance(page, Unreadable) else page.file.page)
            if one.last:
                making.ended.append((name, frozenset(pages)))
                making.open.setdefault(name, 0)
                making.read.add(name)
                pages = set()
            del one, page
            if making.pixels() > _PIXELS_BESIDE:
                self._wait(lambda: self._idle)
            full = self._full(making)
            if full or len(making.aside) >= _ASIDE_AT_ONCE:
                yield self._made(making, full)
        rest = [picture for bucket in making.buckets.values() for picture in bucket]
        making.buckets = {None: rest} if rest else {}
        while making.buckets or making.aside or making.ended:
            yield self._made(making, next(iter(making.buckets.values()), [])[: self._size])

    def _set_aside(self, page: Picture | Unreadable) -> Entry | None:
        """Return what needs no model, being unreadable or seen before; None for a picture, which is seen now."""
        if isinstance(page, Unreadable):
            log.warning("unreadable: %s page %d: %s", page.file_name, page.page, page.reason)
            return page
        if content_of(page.file) in self._seen:
            return Duplicate(page.file)
        self._seen.add(content_of(page.file))
        return None

    def _key(self, picture: Picture) -> Hashable:
        """Return what pictures with prompts of one length have in common."""
        if self._captioner is None:
            try:
                self._hand_over(ModelWanted())
                self._wait(lambda: self._captioner is not None)
            except _Closed:  # nobody reads it now
                self._seen.discard(content_of(picture.file))
                raise
        return self._captioner.prompt_key(picture) if isinstance(self._captioner, Prepares) else None

    def _full(self, making: _Making) -> list[Picture]:
        """Return a batch's worth of pictures with equal prompts; unequal ones where too many wait for their equals.

        Fewer where they have more pixels than may wait: they would take the memory of all images, and more.
        """
        for bucket in making.buckets.values():
            if len(bucket) >= self._size:
                return bucket[: self._size]
        if making.waiting() < _WAITING_BATCHES * self._size and making.pixels() <= self._most_pixels:
            return []
        ordered = [picture for bucket in making.buckets.values() for picture in bucket]
        return ordered[: self._size]

    def _made(self, making: _Making, pictures: list[Picture]) -> Batch:
        """Take pictures, and all that needs none, out of the making."""
        taken = {id(picture) for picture in pictures}
        kept = {key: [p for p in bucket if id(p) not in taken] for key, bucket in making.buckets.items()}
        making.buckets = {key: bucket for key, bucket in kept.items() if bucket}
        for picture in pictures:
            making.open[picture.file.file_name] -= 1
        done = [name for name in making.read if making.open[name] == 0]
        for name in done:
            del making.open[name]
            making.read.discard(name)
        aside, making.aside = tuple(making.aside), []
        ended, making.ended = tuple(making.ended), []
        self._wait(lambda: self._ready is None)  # no more than one batch ahead
        captioner = self._captioner
        prepared = _prepared(captioner, pictures) if pictures and isinstance(captioner, Prepares) else None
        return Batch(tuple(pictures), aside, ended, tuple(done), prepared)


class _Closed(BaseException):
    """The consumer has gone; no `except Exception` may take this for a broken image."""


def _prepared(captioner: Prepares, pictures: list[Picture]) -> Any:
    """Return what the captioner makes of pictures ahead; None where it fails, for then it fails again in its turn."""
    try:
        return captioner.prepare(pictures)
    except Exception as error:
        log.info("a batch could not be prepared ahead", exc_info=error)
        return None
