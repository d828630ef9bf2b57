"""Watch a folder that fills: which files have settled, when to publish, when to end.

Knows names, sizes, times and clocks; knows nothing of what is inside a file or of what is done with it. It polls, for
that works on every disk and on network shares, where no system tells of a change. A file has settled when its size and
times have stayed the same for a while by our own clock; the clock of a file server may be another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from vlmgate.config import WatchConfig
from vlmgate.data import Source, Stamp
from vlmgate.errors import NoImagesError
from vlmgate.images import Walk, turned_of

_LEAST_PAUSE, _MOST_PAUSE = 0.05, 1.0  # seconds between two looks, unless a look takes long
_LONGEST_PAUSE = 60.0  # seconds, however long a look takes
_DUTY = 4  # pauses are so many times as long as a look takes, so that a slow share is not kept busy
_RECHECK = 600.0  # seconds, where nothing is published


@dataclass(slots=True)
class _Seen:
    """A file of the folder, and since when it is as it is."""

    source: Source
    stamp: Stamp | None
    since: float
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """What there is to do now."""

    walk: Walk  # every image so far, those that are gone from the folder included
    news: Sequence[Source]  # settled, and not handed out as they are now; at most `limit`
    waiting: int  # files of which the same is true, for the next rounds


class Watch:
    """Hands out the files of a folder as they settle; each again where it has changed and settled anew."""

    def __init__(
        self,
        config: WatchConfig,
        look: Callable[[], Walk],
        tell: Callable[[str], None],
        *,
        kept: Sequence[Source] = (),
        limit: int = 128,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`kept` are files that were read before and are gone; they stay in the walk."""
        self._config, self._look, self._tell, self._limit = config, look, tell, limit
        self._clock, self._now, self._sleep = clock, now, sleep
        self._seen: dict[str, _Seen] = {s.file_name: _Seen(s, None, 0.0, settled=True) for s in kept}
        self._there: set[str] = set()  # in the folder at the last look
        self._rows = set(self._seen)  # names that have been handed out
        self._walk = Walk((), (), ())
        self._backlog: list[Source] = []
        self._took = 0.0  # seconds of the last look
        self._lost = False  # the folder could not be listed
        self._last_news = self._last_name = self._last_published = self._last_recheck = clock()
        self._until = None if config.until is None else next_time(config.until, now())

    def rounds(self) -> Iterator[Round]:
        """Yield whenever there is something to do, with pauses between; end when the configuration says so."""
        closing: float | None = None  # when to wait no longer for files that still change
        self._take_stock()
        yield self._round()
        while True:
            if closing is None and not self._backlog and self._is_over():
                closing = self._clock() + 2 * self._config.settle + self._pause
                self.recheck()
            if not self._backlog and (closing is None or self._clock() < closing):
                self._take_stock()
            if self._backlog or self.publishing_is_due():
                news = bool(self._backlog)
                yield self._round()
                if self.publishing_is_due():  # whoever takes the rounds has seen to it
                    self._last_published = self._clock()
                if news:
                    self._last_news = self._clock()
                    closing = closing if self._until_has_come() else None  # not idle after all
                continue
            if closing is not None and (not self.unsettled or self._clock() >= closing):
                return
            self._sleep(self._pause)

    @property
    def unsettled(self) -> list[str]:
        """Return the names of files that are there and have not been the same for long enough."""
        return [name for name in sorted(self._there) if not self._seen[name].settled]

    @property
    def in_doubt(self) -> list[Source]:
        """Return the files that may not be what was read under their names: not settled, or yet to be handed out."""
        return [self._seen[name].source for name in self.unsettled] + self._backlog

    def publishing_is_due(self) -> bool:
        """Say whether the time has come to publish; to be asked at the end of a round, before the next."""
        every = self._config.publish_every
        return every > 0 and not self._lost and self._clock() - self._last_published >= every

    def recheck(self) -> None:
        """Ask again of every settled file whether it has changed, which is too slow to be done at every look.

        A file that cannot be asked, as on a share that is away, has not changed for all that is known.
        """
        if self._lost:
            return
        self._last_recheck = self._clock()
        waiting = {source.file_name for source in self._backlog}
        for name in self._there - waiting:
            seen = self._seen[name]
            if seen.settled and (stamp := seen.source.stamp()) not in (seen.stamp, None):
                self._seen[name] = _Seen(seen.source, stamp, self._clock())

    def hand_out_again(self, names: Collection[str]) -> None:
        """Have files settle anew that turned out not to be what was read under their names."""
        for name in names:
            self._seen[name].settled, self._seen[name].since = False, self._clock()

    def everything(self) -> Walk:
        """Return every image so far and what is in the folder now, settled or not."""
        self._take_stock()
        self.recheck()
        return self._whole(also_unsettled=True)

    # --- one look ---

    @property
    def _pause(self) -> float:
        usual = min(_MOST_PAUSE, max(_LEAST_PAUSE, self._config.settle / 2))
        return max(usual, min(_LONGEST_PAUSE, _DUTY * self._took))

    def _take_stock(self) -> None:
        """Look at the folder: what is new, what has settled since the last look."""
        begun = self._clock()
        try:
            walk = self._look()
        except NoImagesError as error:  # a share that has gone for a while must not end the shift
            if not self._lost:
                self._tell(f"The folder cannot be listed at the moment, trying again: {error}")
            self._lost = True
            self._took = self._clock() - begun
            return
        if self._lost:
            self._tell("The folder is back.")
        self._lost = False
        self._walk = walk
        self._there = {source.file_name for source in walk.sources}
        for source in walk.sources:
            seen = self._seen.get(source.file_name)
            if seen is None or not seen.settled or seen.source != source:
                self._look_at(source, seen)
        every = self._config.publish_every or _RECHECK
        if self._clock() - self._last_recheck >= every:
            self.recheck()
        self._took = self._clock() - begun

    def _look_at(self, source: Source, seen: _Seen | None) -> None:
        now, stamp = self._clock(), source.stamp()
        if seen is None:
            self._last_name = now
        if seen is None or seen.stamp != stamp or seen.source != source:
            self._seen[source.file_name] = _Seen(source, stamp, now)
        elif now - seen.since >= self._config.settle:
            seen.settled = True
            self._backlog.append(source)

    def _round(self) -> Round:
        news, self._backlog = tuple(self._backlog[: self._limit]), self._backlog[self._limit :]
        return Round(self._whole(), news, len(self._backlog))

    def _whole(self, *, also_unsettled: bool = False) -> Walk:
        """Return every image so far; one that changes again stays, for it has a row."""
        known = {
            name: seen.source
            for name, seen in self._seen.items()
            if also_unsettled or seen.settled or name in self._rows
        }
        self._rows |= known.keys()
        turned = turned_of(self._walk, known)
        sources = tuple(known[name] for name in sorted(known))
        return replace(self._walk, sources=sources, unreadable=(*self._walk.unreadable, *turned))

    # --- the end ---

    def _is_over(self) -> bool:
        idle = self._config.idle
        # One that changes for ever, such as a preview, must not keep it from ending.
        is_idle = idle is not None and self._clock() - max(self._last_news, self._last_name) >= idle
        return is_idle or self._until_has_come()

    def _until_has_come(self) -> bool:
        return self._until is not None and self._now() >= self._until


def next_time(clock_time: str, now: datetime) -> datetime:
    """Return the next moment that a clock on the wall shows this time ("06:00")."""
    hour, minute = map(int, clock_time.split(":"))
    moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return moment if moment > now else moment + timedelta(days=1)
