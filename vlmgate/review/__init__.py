"""The page on which people look at what was routed to them, and their verdicts.

    items ──► previews ──► make ──► server
    which     upright JPEG   HTML     the same page from
    why       of each        + data   127.0.0.1, verdicts
                                      on disk (verdicts)

Call `make_review`. What comes from a file name, a caption, an answer or a person is text on the page: it gets there as
JSON in which no character means anything to HTML, and `textContent` alone puts it on the screen.
"""

from vlmgate.config import ReviewConfig as Options
from vlmgate.review.make import Made, make_review

__all__ = ["Made", "Options", "make_review"]
