"""Signals that end a run, turned into an exception at moments when it does no harm.

Knows the operating system; knows nothing of what is being interrupted.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP arrived; not an `Exception`, so that no per-image handler takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """Turns the signals that end a run into `Interrupted`, but never while the journal is being written."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: int | None = None
        self._raised: int | None = None

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self._held:
            self._waiting = self._waiting or signum
        else:
            self._held = True  # a second Ctrl-C must not take the result away
            self._raised = signum
            raise Interrupted(signum)

    @contextmanager
    def installed(self) -> Iterator[None]:
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        former: dict[signal.Signals, Any] = {}
        try:
            for name in names:
                number = signal.Signals[name]
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has said that this one does not matter
                    former[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: whoever started it handles signals
            pass
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing interrupt the block; raise afterwards what arrived meanwhile, unless one was raised before."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        if self._waiting is not None and not before:
            self._held = True
            waiting, self._waiting = self._waiting, None
            self._raised = waiting
            raise Interrupted(waiting)

    def heed(self) -> None:
        """Raise again what was raised before; to be called where that was caught by nobody who should have."""
        if self._raised is not None:
            raise Interrupted(self._raised)

    def hold(self) -> int | None:
        """Let nothing interrupt from here on; return what already waits."""
        self._held = True
        return self._waiting
