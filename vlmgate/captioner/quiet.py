"""Keep transformers and the hub's client off the terminal while a model is loaded; start with `quiet`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress bars, and send all that is warned of to the application's log.

    Log records of both libraries propagate to whatever handlers the application has set, also after this context;
    without any they are dropped, not printed.
    """
    from transformers.utils import logging as hf_logging

    hf_logging.disable_default_handler()
    for name in ("transformers", "huggingface_hub"):
        _leave_to_application(logging.getLogger(name))
    had_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield
    finally:
        if had_bars:
            hf_logging.enable_progress_bar()
    for warning in caught:
        logger.info("while loading: %s: %s", warning.category.__name__, warning.message)


def _leave_to_application(library: logging.Logger) -> None:
    library.propagate = True
    for handler in list(library.handlers):
        # What the library itself puts there at import: a plain handler, not formatted, that writes to stderr.
        if type(handler) is logging.StreamHandler and handler.formatter is None:
            library.removeHandler(handler)
    if not any(isinstance(handler, logging.NullHandler) for handler in library.handlers):
        library.addHandler(logging.NullHandler())  # else Python prints what nobody handles
