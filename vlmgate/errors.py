"""What can go wrong, with which exit code the command line answers, and text that is safe to print.

    VlmgateError                 exit code
    ├── UsageError               2   the command, its configuration or its inputs are off
    │   ├── ConfigError          2   an option, environment variable or TOML key
    │   ├── NoImagesError        2   the folder holds no image
    │   ├── GateError            2   a threshold, budget or gate file that cannot be used
    │   ├── LabelError           2   labels that cannot be read, or that say too little
    │   ├── OutputError          2   the output cannot be written, or belongs to something else
    │   ├── PartsError           2   results that do not make one result
    │   └── ResumeError          2   a journal that was made with other settings
    └── FatalError               1   the run cannot go on
        ├── ModelError           1   a model that cannot be loaded or run
        ├── EndpointError        1   a model server that is gone, refuses, or does not do what it must
        ├── StoreError           1   a result or journal that cannot be read or written
        ├── KernelError          1   a kernel matrix that is no kernel
        ├── DriftError           5   images unlike the calibrated ones, and no result is wanted of such
        └── NoveltyError         1   features that make no reference, or a reference that does not fit

Every message is one line: what, where, what to do next. What is expected of a single image (a broken file,
an empty caption) is a value in `records`, never one of these.
"""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # invisible, but several scripts need them


def plain(text: str) -> str:
    """Return text with every character that could steer a terminal or reorder a line shown as an escape."""
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _is_harmless(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def shorten(what: str | BaseException, limit: int = 240) -> str:
    """Return a text, or the message of an exception, on one line of at most `limit` characters, storable as UTF-8."""
    text = " ".join(str(what).encode("utf-8", "replace").decode().split())
    if not text and isinstance(what, BaseException):
        text = type(what).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the name and message of an exception on one line of at most `limit` characters, storable as UTF-8."""
    return shorten(f"{type(error).__name__}: {error}", limit)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "1,200 images"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


class VlmgateError(Exception):
    """Root of all errors that vlmgate raises on purpose; carries the exit code of the command line."""

    exit_code: int = 1


class UsageError(VlmgateError):
    """The person at the keyboard can put it right before anything is run."""

    exit_code = 2


class ConfigError(UsageError):
    """An option, an environment variable or a TOML key is unknown or out of range."""


class NoImagesError(UsageError):
    """There is nothing to scan."""


class GateError(UsageError):
    """A threshold, a review budget or a gate file cannot be used."""


class LabelError(UsageError):
    """Labels cannot be read, match no image, or cannot support what is asked of them."""


class OutputError(UsageError):
    """The output path cannot be written, or another run holds it."""


class PartsError(UsageError):
    """Results of shards do not belong together, or some are missing."""


class ResumeError(UsageError):
    """The journal beside the output was made with other settings."""


class FatalError(VlmgateError):
    """The run cannot go on; what was read so far is safe in the journal."""


class ModelError(FatalError):
    """A model cannot be loaded, or fails on every image."""


class EndpointError(FatalError):
    """A model server is gone, refuses everything, or does not sample; no single image is to blame."""


class StoreError(FatalError):
    """A journal or result file cannot be read or written."""


class LostReadingError(StoreError):
    """A reading that a decision was made on is not in the journal any more."""


class DriftError(FatalError):
    """The images do not look like those that the gate was calibrated on, and so no result was written."""

    exit_code = 5


class KernelError(FatalError):
    """A matrix given as a kernel is not symmetric, finite and of unit diagonal."""


class NoveltyError(FatalError):
    """Features make no reference, or a reference file is damaged or of another model."""
