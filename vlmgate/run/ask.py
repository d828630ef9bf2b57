"""Ask a captioner for a batch of pictures, whatever it makes of it.

Knows pictures, captioners and what a complete answer is; knows nothing of folders, journals or of where it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableSet, Sequence
from dataclasses import replace
from typing import Any

from vlmgate.captioner import Captioner, DrawsInRounds, Prepares
from vlmgate.config import SamplingConfig
from vlmgate.data import Caption, Content, Duplicate, Failure, Picture, Reading, Sampled, Unreadable, content_of
from vlmgate.errors import EndpointError, ModelError, one_line
from vlmgate.gate.early_stop import looks
from vlmgate.scores.novelty import pack

log = logging.getLogger(__name__)


def set_aside(page: Picture | Unreadable, seen: MutableSet[Content]) -> Unreadable | Duplicate | None:
    """Return what needs no model, being unreadable or `seen` before; None for a picture to read, which is seen now."""
    if isinstance(page, Unreadable):
        log.warning("unreadable: %s page %d: %s", page.file_name, page.page, page.reason)
        return page
    if content_of(page.file) in seen:
        return Duplicate(page.file)
    seen.add(content_of(page.file))
    return None


def ask(
    pictures: Sequence[Picture],
    captioner: Captioner,
    sampling: SamplingConfig,
    prepared: Any = None,
    enough: Callable[[Reading], bool] | None = None,
) -> list[Reading | Failure]:
    """Return a reading or a failure for each picture, in order; a batch that fails is halved to find the culprit.

    `prepared` is what the captioner made of the pictures ahead. With `first_samples`, `enough` says whether the samples
    drawn so far decide an image. Raises `EndpointError` where a model server is gone: then no image is to blame, and
    the next would fare no better.
    """
    try:
        sampled = _sampled(pictures, captioner, sampling, prepared, enough)
        if len(sampled) != len(pictures) or not all(_is_complete(one, sampling) for one in sampled):
            raise ModelError("the captioner did not return K captions for every picture; this is a bug in vlmgate.")
        return [_reading(picture, one) for picture, one in zip(pictures, sampled, strict=True)]
    except EndpointError:
        raise
    except Exception as error:
        log.warning("a batch of %d failed", len(pictures), exc_info=error)
        if len(pictures) == 1:
            return [Failure(pictures[0].file, one_line(error))]
        middle = len(pictures) // 2
        halves = pictures[:middle], pictures[middle:]
        return [entry for half in halves for entry in ask(half, captioner, sampling, None, enough)]


def _sampled(
    pictures: Sequence[Picture],
    captioner: Captioner,
    sampling: SamplingConfig,
    prepared: Any,
    enough: Callable[[Reading], bool] | None,
) -> list[Sampled]:
    first = sampling.first_samples
    if first is not None and enough is not None and isinstance(captioner, DrawsInRounds):

        def decides(picture: Picture, sampled: Sampled) -> bool:
            return enough(_reading(picture, sampled))

        return captioner.read_in_rounds(pictures, looks(first, sampling.num_samples), decides, prepared)
    if prepared is not None and isinstance(captioner, Prepares):
        return captioner.read_prepared(pictures, prepared)
    return captioner.read(pictures)


def _is_complete(sampled: Sampled, sampling: SamplingConfig) -> bool:
    """Say whether there are K captions, or as many as were enough, and K answers just where a question was asked."""
    most = sampling.num_samples
    samples = len(sampled.captions)
    answers = None if sampled.answers is None else len(sampled.answers)
    views = samples if sampled.views is None else len(sampled.views)
    asked = samples if sampling.question else None
    return (sampling.first_samples or most) <= samples <= most and views == samples and answers == asked


def _reading(picture: Picture, sampled: Sampled) -> Reading:
    """Return what is kept of a picture: text that can be stored, features that are numbers."""
    return Reading(
        picture.file,
        captions=tuple(_clean(caption) for caption in sampled.captions),
        answers=None if sampled.answers is None else tuple(_clean(answer) for answer in sampled.answers),
        features=pack(sampled.features),
        views=sampled.views,
        quality=picture.quality,
    )


def _clean(caption: Caption) -> Caption:
    """Return the caption with text that can be stored: UTF-8, and a finite log-probability or none."""
    logprob = caption.mean_logprob
    finite = logprob is not None and abs(logprob) < float("inf")
    text = caption.text.encode("utf-8", "replace").decode()
    return replace(caption, text=text, mean_logprob=logprob if finite else None)
