"""Tell somebody how a run goes, for as long as they can be told.

Knows what there is to tell; knows nothing of terminals.
"""

from __future__ import annotations

import logging
from typing import Protocol

from vlmgate.config import ScanConfig
from vlmgate.errors import one_line
from vlmgate.gate import Gate
from vlmgate.records import ModelInfo

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Told what happens, in the order in which it happens; `vlmgate.report` shows it to people."""

    def header(self, model: ModelInfo | None, gate: Gate, config: ScanConfig) -> None: ...
    def message(self, text: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, images: int) -> None: ...
    def stop(self) -> None: ...


class Unbreakable:
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
