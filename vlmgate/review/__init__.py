"""The page on which people look at what was routed to them, and what comes of it.

Knows rows, pictures, pages and verdicts; knows nothing of models, or of how an image was read or decided.

    items ──► previews ──► page ──► folder ──► server
    which     upright JPEG   HTML    written     the same page from
    why       of each        + data  in one step 127.0.0.1, verdicts on disk
     └─ sentences, marks                           └─ verdicts

What comes from a file name, a caption, an answer or a person is text on the page: it gets there as JSON in which no
character means anything to HTML, and is put on the screen by `textContent` alone.
"""

from vlmgate.review.make import Made, Options, make_review

__all__ = ["Made", "Options", "make_review"]
