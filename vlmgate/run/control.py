"""Between a run and whoever started it: progress goes out, signals come in.

`Progress` is told how a run goes. `Signals` turns Ctrl-C and the like into `Interrupted` when it does no harm.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Protocol, Self

from vlmgate.config import ScanConfig
from vlmgate.data import ModelInfo
from vlmgate.errors import one_line
from vlmgate.gate.rules import Gate

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Told what happens, in the order in which it happens; `vlmgate.report.terminal` shows it to people."""

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None: ...
    def message(self, text: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, images: int) -> None: ...
    def stop(self) -> None: ...


class _Forwarding:
    """Hands every call on by its name."""

    def _tell(self, name: str, *arguments: object) -> None:
        raise NotImplementedError

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None:
        self._tell("header", model, gate, config)

    def message(self, text: str) -> None:
        self._tell("message", text)

    def start(self, total: int, done: int) -> None:
        self._tell("start", total, done)

    def advance(self, images: int) -> None:
        self._tell("advance", images)

    def stop(self) -> None:
        self._tell("stop")


class Unbreakable(_Forwarding):
    """Passes everything on to a `Progress` until that fails: a closed terminal must not end a night's run."""

    def __init__(self, progress: Progress) -> None:
        self._progress: Progress | None = progress

    def _tell(self, name: str, *arguments: object) -> None:
        try:
            if self._progress is not None:
                getattr(self._progress, name)(*arguments)
        except (Exception, SystemExit) as error:  # rich exits where its pipe is closed
            self._progress = None
            log.warning("nobody is told any more (%s)", one_line(error))


class Aside(_Forwarding):
    """Passes everything on in a thread of its own: a terminal that nobody reads (Ctrl-S) must not hold up a night.

    As a context, it waits at its end until all is told, for `patience` seconds at most; so does `stop`.
    """

    def __init__(self, progress: Progress, *, patience: float = 2.0) -> None:
        self._progress, self._patience = Unbreakable(progress), patience
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="vlmgate-progress", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()

    def stop(self) -> None:
        """Pass it on, and wait until that is done."""
        super().stop()
        self._wait()

    def _tell(self, name: str, *arguments: object) -> None:
        self._calls.put(partial(self._progress._tell, name, *arguments))

    def _wait(self) -> None:
        told = threading.Event()
        self._calls.put(told.set)
        told.wait(self._patience)

    def _work(self) -> None:
        while True:
            self._calls.get()()


# --- signals ---


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP arrived; not an `Exception`, so that no per-image handler takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


ENDING = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # a run


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
        former: dict[signal.Signals, Any] = {}
        try:
            for number in ENDING:
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
