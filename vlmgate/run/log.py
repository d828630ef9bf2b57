"""The log file of a run.

Knows logging; knows nothing of what is logged, but that it must not steer a terminal.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmgate.errors import VlmgateError, plain

log = logging.getLogger(__name__)


class PlainFormatter(logging.Formatter):
    """Writes each record without characters that could steer a terminal; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(plain(line) for line in super().format(record).split("\n"))


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send everything that is logged, by us and by the libraries, to a file for the duration of a run."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    ours = logging.getLogger("vlmgate")
    former = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    except VlmgateError as error:
        log.error("%s", error, exc_info=error)
        raise
    except Exception:
        log.exception("internal error")
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        ours.setLevel(former)
        with contextlib.suppress(OSError):  # a full disk: the run has its result all the same
            handler.close()
