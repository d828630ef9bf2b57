"""Tell somebody how a run goes, for as long as they can be told.

Knows what there is to tell; knows nothing of terminals.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol, Self

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
