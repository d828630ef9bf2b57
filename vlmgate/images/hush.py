"""Keep what decoders say from the terminal: `quiet` collects warnings in a thread, `silence_loggers` ends the rest."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast


class _Hush(threading.local):
    """A message matcher for `warnings.filters` that matches in the threads that asked for it only, and takes notes.

    `warnings.catch_warnings` swaps the filters of the whole process and is not safe in threads. One entry that is asked
    per warning, and that answers per thread, leaves the warnings of everybody else alone.
    """

    notes: list[str] | None = None

    def match(self, message: str) -> bool:
        if self.notes is None:
            return False
        self.notes.append(message)
        return True


_hush = _Hush()
_hush_entry = ("ignore", _hush, Warning, None, 0)
_hush_lock = threading.Lock()


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Collect the warnings that this thread raises instead of showing them."""
    filters = cast("list[Any]", warnings.filters)  # typed as read-only, though it is documented as a list
    with _hush_lock:
        if not filters or filters[0] is not _hush_entry:
            filters[:] = [_hush_entry, *(entry for entry in filters if entry is not _hush_entry)]
    outer, _hush.notes = _hush.notes, []
    try:
        yield _hush.notes
    finally:
        _hush.notes = outer


@cache
def silence_loggers() -> None:
    """Keep the loggers of decoders from the terminal, where Python puts what nobody handles; others still get it."""
    for name in ("PIL", "tifffile", "pydicom"):
        logging.getLogger(name).addHandler(logging.NullHandler())
